"""Tests run side by side (pytest-xdist), so each keeps to one thread; set before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

collect_ignore = [] if torch.cuda.is_available() else ["gpu"]
