"""What holds for all tests: one thread, and no time limits of Hypothesis.

Tests are tiny, so that a pool of threads only makes them wait for each other. A limit on one example's time would fail
on a machine that is busy for a moment.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("mgqe", deadline=None)
settings.load_profile("mgqe")
