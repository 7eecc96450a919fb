"""Checkpoints of other programs, turned into ours."""
