"""Bimanual ALOHA tasks in MuJoCo: `env` (one), `vector` (many), `tasks`, `cameras` and `rendering`."""

from __future__ import annotations

from robostack.envs.gl import heed_shell

heed_shell()  # before any module here imports mujoco
