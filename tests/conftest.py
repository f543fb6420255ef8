"""What holds for all tests: one thread, no time limits of Hypothesis, and Triton's interpreter where no GPU is.

Tests are tiny, so that a pool of threads only makes them wait for each other. A limit on one example's time would fail
on a machine that is busy for a moment.
"""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, by whatever test comes first
settings.register_profile("mgqe", deadline=None)
settings.load_profile("mgqe")
