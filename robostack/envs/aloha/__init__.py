"""Bimanual ALOHA tasks in MuJoCo: `env` (one), `vector` (many), `tasks`, `cameras` and `rendering`."""

from robostack.envs.gl import heed_shell

heed_shell()  # before any module here imports mujoco
