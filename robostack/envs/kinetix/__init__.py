"""Kinetix: 2D rigid-body worlds in JAX (arXiv 2410.23208), as Gymnasium environments and as pure functions."""

from __future__ import annotations

import os

# Read when jax is first imported, so before any module here does it: XLA logs every cached program that it loads.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
