"""Small LeRobot v2.1 folders written by hand, as people have them: what a test changes, it names."""

import io
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TOP = "observation.images.top"
BOOKKEEPING = ("frame_index", "episode_index", "index", "task_index")


def numbers(dtype: str, shape: Sequence[int], names: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": names}


def camera(shape: Sequence[int] = (16, 20, 3), names: Any = ("height", "width", "channels"), **more: Any) -> dict:
    return {"dtype": "image", "shape": list(shape), "names": names and list(names), **more}


def encoded(pixels: np.ndarray, form: str = "PNG", mode: str | None = None) -> dict[str, Any]:
    from PIL import Image

    picture, data = Image.fromarray(pixels), io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(data, form)
    return {"bytes": data.getvalue(), "path": None}


def write_old(
    path: Path,
    features: dict[str, Any] | None = None,
    columns: Callable[[int, int], dict[str, Any]] = lambda episode, length: {},
    episodes: Sequence[int] = (0, 1),
    length: Callable[[int], int] = lambda episode: 8,
    fps: float = 10,
    times: Callable[[np.ndarray], np.ndarray] | None = None,
    video: Callable[[Path, int], None] | None = None,
    info: dict[str, Any] | None = None,
    texts: dict[str, str] | None = None,
) -> Path:
    """`columns` of (episode, length) replace those that are there, `texts` whole files of meta/."""
    described = {key: numbers("float32", [3], ["a", "b", "c"]) for key in ("observation.state", "action")}
    described |= {"timestamp": numbers("float32", [1]), **{key: numbers("int64", [1]) for key in BOOKKEEPING}}
    if video:
        described[TOP] = {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channels"]}
    described |= features or {}
    (path / "meta").mkdir(parents=True)
    (path / "data/chunk-000").mkdir(parents=True)
    rng, first = np.random.default_rng(0), 0
    for episode in episodes:
        count = length(episode)
        rows = np.cumsum(rng.normal(0, 0.1, (count, 3)), 0).astype(np.float32)
        beat = np.arange(count) / fps
        table = {
            "observation.state": list(rows),
            "action": list(rows + np.float32(0.01)),
            "timestamp": (beat if times is None else times(beat)).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, episode),
            "index": np.arange(first, first + count),
            "task_index": np.zeros(count, np.int64),
            **columns(episode, count),
        }
        first += count
        table = {key: pa.array(column) for key, column in table.items() if column is not None}
        pq.write_table(pa.table(table), path / f"data/chunk-000/episode_{episode:06d}.parquet")
        if video:
            file = path / f"videos/chunk-000/{TOP}/episode_{episode:06d}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            video(file, episode)
    said = {
        "codebase_version": "v2.1",
        "robot_type": "arm",
        "total_episodes": len(episodes),
        "chunks_size": 1000,
        "fps": fps,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": described,
        **(info or {}),
    }
    lines = [{"episode_index": episode, "tasks": ["pick"], "length": length(episode)} for episode in episodes]
    files = {
        "info.json": json.dumps(said),
        "tasks.jsonl": '{"task_index": 0, "task": "pick"}\n',
        "episodes.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        **(texts or {}),
    }
    for name, text in files.items():
        (path / "meta" / name).write_bytes(text.encode())
    return path


def bars(index: int) -> np.ndarray:
    """A picture in which a number can be read back after any compression."""
    frame = np.full((64, 64, 3), 30, np.uint8)
    for bit in range(6):
        frame[8:-8, bit * 10 + 2 : bit * 10 + 9] = 220 if (index >> bit) & 1 else 60
    return frame


def number_of(frame: np.ndarray) -> int:
    return sum(int(frame[16:48, bit * 10 + 4 : bit * 10 + 7].mean() > 140) << bit for bit in range(6))


def write_bars(path: Path, moments: Sequence[float], first: int = 0) -> None:
    """A video that shows the picture of first + i at moments[i] seconds."""
    import av

    base = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"bf": "0", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = base
        for index, moment in enumerate(moments):
            picture = av.VideoFrame.from_ndarray(bars(first + index), format="rgb24")
            picture.pts, picture.time_base = round(moment / float(base)), base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
