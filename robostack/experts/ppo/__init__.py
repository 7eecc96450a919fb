"""Proximal policy optimisation for Kinetix levels, in JAX: training, checkpoints, and experts that act."""
