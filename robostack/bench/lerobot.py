"""LeRobot as a peer of `robostack bench data`.

It runs in a process of its own: its import takes 16 s of CPU time, its DataLoader forks, and what it prints must not
reach standard output. Its caches lie in the folder of the benchmark and go with it.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from robostack.common.processes import worker_pool
from robostack.datasets.store import EpisodeStore


@dataclass(frozen=True)
class Loading:
    """How LeRobot reads windows of a data set: the observation of a frame and the chunk of actions from it on."""

    root: Path
    fps: float
    chunk_len: int
    decoder: str | None = None
    """Of videos: pyav or torchcodec."""

    def windows(self, frames: Sequence[int]) -> dict[str, np.ndarray]:
        """Some windows, each feature as rows (len(frames), ...)."""
        items = [_dataset(self)[frame] for frame in frames]
        return {key: np.stack([np.asarray(item[key]) for item in items]) for key in items[0] if key != "task"}

    def rate(self, workers: int, batch: int, batches: int) -> float:
        """Samples a second of a shuffling DataLoader. Its first batches, one a worker and at least one, during which
        workers start, are not counted."""
        from lerobot.datasets import video_utils
        from torch.utils.data import DataLoader

        # torchcodec's decoders that were opened before a fork do not work in the workers.
        video_utils._default_decoder_cache.clear()
        # Forked, as Linux does by default; but this process was spawned, and would spawn its own too, which import
        # LeRobot anew for half a minute.
        context = "fork" if workers else None
        loader = DataLoader(_dataset(self), batch, shuffle=True, num_workers=workers, multiprocessing_context=context)
        iterator = iter(loader)
        for _ in range(max(1, workers)):
            next(iterator)
        start = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        return batch * batches / (time.perf_counter() - start)


def lerobot_process(folder: Path) -> ProcessPoolExecutor:
    """A process for one call at a time; what LeRobot caches lies in `folder`."""
    return worker_pool(1, _prepare, folder)


def lerobot_name() -> str:
    """LeRobot with its version."""
    return f"LeRobot {version('lerobot')}"


def torchcodec_loads() -> bool:
    """Whether LeRobot can decode with torchcodec, which needs FFmpeg's libraries. Called in LeRobot's process."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def writing_rate(source: Path, out: Path, videos: bool) -> float:
    """Frames a second at which LeRobot writes the episodes of our store, which are read beforehand."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    store = EpisodeStore(source)
    described = {
        key: {"dtype": "video" if videos else "image", "shape": feature.shape, "names": ["height", "width", "channels"]}
        if feature.is_image
        else {"dtype": feature.dtype, "shape": feature.shape, "names": None}
        for key, feature in store.features.items()
    }
    episodes = [(store.episode(i), store.read_episode(i).task) for i in range(store.episodes)]
    start = time.perf_counter()
    data = LeRobotDataset.create("bench/data", int(store.fps), described, root=out, use_videos=videos)
    for columns, task in episodes:
        for i, text in enumerate(task):
            data.add_frame({**{key: rows[i] for key, rows in columns.items()}, "task": text})
        data.save_episode()
    data.finalize()
    return store.frames / (time.perf_counter() - start)


def _prepare(folder: Path) -> None:
    os.dup2(2, 1)
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "SVT_LOG": "1",  # the AV1 encoder writes its settings to the terminal unless told not to
    }
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", message="Cannot enable progress bars")  # LeRobot tries to, each time


@cache
def _dataset(loading: Loading) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    steps = [i / loading.fps for i in range(loading.chunk_len)]
    # Frames of videos as bytes, as LeRobot's own training takes them: quicker than its default, float32.
    return LeRobotDataset(
        "bench/data",
        root=loading.root,
        delta_timestamps={"action": steps},
        video_backend=loading.decoder,
        return_uint8=True,
    )
