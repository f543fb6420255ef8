"""One thread unless a test sets more: tests are tiny, and a pool of threads only makes them wait for each other."""

import torch

torch.set_num_threads(1)
