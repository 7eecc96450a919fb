"""Bimanual ALOHA tasks in MuJoCo: `env` (one), `vector` (many), `tasks`, `cameras` and `rendering`."""
