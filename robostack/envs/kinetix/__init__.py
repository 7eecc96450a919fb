"""Kinetix: 2D rigid-body worlds in JAX (arXiv 2410.23208), as Gymnasium environments and as pure functions."""

import os

# Read when jax is first imported, so before any module here does it: XLA tells of every cached program that it loads.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
