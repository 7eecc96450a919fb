"""`robostack bench data`: batches for training, stores of ten million frames and conversions, beside LeRobot.

The work is that of an arm: 50 episodes of 400 frames, state and action of 14, one 96×96 camera, windows with a chunk of
50 actions, batches of 64. LeRobot reads the same frames from its own format, written by our writer. Everything lies in
a temporary folder, up to 1.5 GB, was just written, and is read from the system's page cache by all.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from robostack.bench import compare, measurement, take_turns
from robostack.bench.lerobot import Loading, lerobot_name, lerobot_process, torchcodec_loads, writing_rate
from robostack.common.extras import require_extra
from robostack.common.processes import worker_pool
from robostack.datasets.episodes import Feature
from robostack.datasets.formats.convert import ConvertConfig, convert
from robostack.datasets.formats.lerobot.settings import Images
from robostack.datasets.formats.lerobot.writer import LeRobotWriter
from robostack.datasets.moments import Windows
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.datasets.windows import WindowSampler

STATE, CAMERA = "observation.state", "observation.images.top"
FPS = 50.0
NUMBERS = {STATE: Feature((14,), "float32"), "action": Feature((14,), "float32")}
WITH_CAMERA = {**NUMBERS, CAMERA: Feature((96, 96, 3), "uint8")}
FRAME_MB = (96 * 96 * 3 + 2 * 14 * 4) / 1e6
"""A frame with its picture, as it is in memory."""


@dataclass(frozen=True)
class DataSize:
    """How much is measured; the tests take less."""

    episodes: int = 50
    frames: int = 400
    chunk_len: int = 50
    batch: int = 64
    blocks: int = 3
    seconds: float = 0.7
    """Of a block of ours."""
    batches: int = 12
    """Of a block of LeRobot's; with pictures half as many. Even: two workers take turns."""
    big_episodes: int = 2500
    big_frames: int = 4000
    converted_episodes: int = 5
    converted_frames: int = 200

    @property
    def room(self) -> float:
        """GB that the largest part takes on the disk, with what LeRobot caches."""
        small = 2.2 * self.episodes * self.frames * FRAME_MB / 1e3
        return max(small, self.big_episodes * self.big_frames * 112 / 1e9)


def bench_data(size: DataSize | None = None, say: Callable[[str], None] = lambda _: None) -> Iterator[dict[str, Any]]:
    """Measurements with the keys of `robostack bench`; `say` is told what is being prepared. Takes about six minutes on
    two cores. Raises OSError when the disk has no room."""
    require_extra("lerobot", "lerobot")
    size = size or DataSize()
    with tempfile.TemporaryDirectory(prefix="robostack-bench-") as name:
        folder = Path(name)
        if (free := shutil.disk_usage(folder).free / 1e9) < 1.3 * size.room:
            raise OSError(f"{folder} has {free:.1f} GB free, {1.3 * size.room:.1f} are needed: point TMPDIR elsewhere")
        with lerobot_process(folder / "cache") as lerobot:
            for part in (bench_state, bench_camera, bench_conversion):
                say(f"{part.__name__.removeprefix('bench_')}: making the data sets")
                (here := folder / part.__name__).mkdir()
                yield from part(here, size, lerobot)
                shutil.rmtree(here)
        say("store: writing ten million frames")
        yield from bench_store(folder, size, say)
        say("checksums: reading a store")
        yield from bench_checksums(folder / "checked", size)


# Batches


def bench_state(folder: Path, size: DataSize, lerobot: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """State and actions alone."""
    store = make_store(folder / "store", NUMBERS, size.episodes, size.frames)
    sampler = WindowSampler(store, [STATE], size.chunk_len)
    theirs = Loading(make_lerobot(store, folder / "lerobot"), FPS, size.chunk_len)
    check_same(sampler, theirs, lerobot, ())
    ours = {"ours": partial(_rate, sampler, size, tensors)}
    rates = take_turns(ours | loaders("numbers", theirs, size.batches, size, lerobot), size.blocks + 2)
    name = best(rates, ["numbers"])
    yield measurement("data", "state only", "windows", "per second", compare(rates["ours"], rates[name]), peer(name))


def bench_camera(folder: Path, size: DataSize, lerobot: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """With one camera: against every way of LeRobot's to keep it."""
    store = make_store(folder / "store", WITH_CAMERA, size.episodes, size.frames)
    sampler = WindowSampler(store, [STATE, CAMERA], size.chunk_len)
    pictures = make_lerobot(store, folder / "png", images="png")
    videos = make_lerobot(store, folder / "av1", images="video")
    ways = {
        "images (PNG)": Loading(pictures, FPS, size.chunk_len),
        "AV1 with PyAV": Loading(videos, FPS, size.chunk_len, "pyav"),
    }
    if codec := lerobot.submit(torchcodec_loads).result():
        ways["AV1 with torchcodec"] = Loading(videos, FPS, size.chunk_len, "torchcodec")
    programs: dict[str, Callable[[], float]] = {
        "ours": partial(_rate, sampler, size, tensors),
        "ours as float32": partial(_rate, sampler, size, float_tensors),
    }
    for way, theirs in ways.items():
        check_same(sampler, theirs, lerobot, (CAMERA,))
        programs |= loaders(way, theirs, size.batches // 2, size, lerobot)
    rates = take_turns(programs, size.blocks)

    def line(case: str, ours: str, others: list[str], note: str = "") -> dict[str, Any]:
        name = best(rates, others)
        found = compare(rates[ours], rates[name])
        return measurement("data", f"one 96x96 camera, {case}", "windows", "per second", found, peer(name) + note)

    for way in ways:
        yield line(f"against LeRobot's {way}", "ours", [way])
    note = "" if codec else " (torchcodec does not load here)"
    yield line("against LeRobot's best", "ours", list(ways), note)
    yield line("against LeRobot's best, ours as float32 in [0, 1]", "ours as float32", list(ways), note)


def loaders(
    way: str, theirs: Loading, batches: int, size: DataSize, lerobot: ProcessPoolExecutor
) -> dict[str, Callable[[], float]]:
    """LeRobot's DataLoader without and with two workers."""
    return {
        f"{way}, {workers} workers": lambda workers=workers: lerobot.submit(
            theirs.rate, workers, size.batch, batches
        ).result()
        for workers in (0, 2)
    }


def best(rates: Mapping[str, list[float]], ways: list[str]) -> str:
    """The quickest of the programs whose names begin with one of `ways`."""
    return max((name for name in rates if name.startswith(tuple(ways))), key=lambda name: median(rates[name]))


def peer(name: str) -> str:
    """The name of one of LeRobot's programs, with its version."""
    return f"{lerobot_name()} + DataLoader, {name}"


def check_same(sampler: WindowSampler, theirs: Loading, lerobot: ProcessPoolExecutor, cameras: tuple[str, ...]) -> None:
    """Raises RuntimeError unless both give the same windows: else they would not do the same work. Pictures may differ
    by what a video loses."""
    frames = np.linspace(0, len(sampler) - 1, 5).astype(np.int64)
    ours, other = sampler.gather(frames), lerobot.submit(theirs.windows, frames.tolist()).result()
    same = np.array_equal(ours.is_pad, other["action_is_pad"]) and np.array_equal(ours.action, other["action"])
    same = same and np.array_equal(ours.observation[STATE][:, 0], other[STATE])
    for key in cameras:
        rows = np.moveaxis(other[key], 1, -1)
        grey = rows.astype(np.float64) * (1 if rows.dtype == np.uint8 else 255)
        same = same and float(np.abs(grey - ours.observation[key][:, 0]).mean()) < 6
    if not same:
        raise RuntimeError(f"LeRobot reads other windows from {theirs.root} than robostack does: nothing was measured")


def tensors(windows: Windows) -> dict[str, Any]:
    """A batch as tensors, pictures as bytes with their channels first, as LeRobot's training takes videos."""
    import torch

    batch = {key: torch.from_numpy(rows[:, 0]) for key, rows in windows.observation.items()}  # of one observation step
    batch = {key: rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows for key, rows in batch.items()}
    numbers = {"action": windows.action, "is_pad": windows.is_pad, "task": windows.task}
    return batch | {key: torch.from_numpy(rows) for key, rows in numbers.items()}


def float_tensors(windows: Windows) -> dict[str, Any]:
    """The same with pictures as LeRobot gives its images: float32 in [0, 1]."""
    batch = tensors(windows)
    batch[CAMERA] = batch[CAMERA].float().contiguous().div_(255)
    return batch


def _rate(sampler: WindowSampler, size: DataSize, finish: Callable[[Windows], Any]) -> float:
    """Windows a second over one block."""
    rng, done, start = np.random.default_rng(0), 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < size.seconds or not done:
        finish(sampler.draw(size.batch, rng))
        done += size.batch
    return done / passed


# A large store


@dataclass(frozen=True)
class Opened:
    """A store in a process of its own."""

    seconds: float
    memory_mb: float
    """The most memory that process has had, Python and its libraries included."""
    windows: int


def bench_store(folder: Path, size: DataSize, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Ten million frames beside twenty thousand; in processes that have no torch."""
    small, big = folder / "small", folder / "big"
    make_store(small, NUMBERS, size.episodes, size.frames)
    start = time.perf_counter()
    frames = make_store(big, NUMBERS, size.big_episodes, size.big_frames, repeat=True).frames
    say(f"store: {frames} frames written in {time.perf_counter() - start:.0f} s")
    found: dict[Path, list[Opened]] = {small: [], big: []}
    for _ in range(size.blocks):
        for path, opened in found.items():
            with worker_pool(1, _nothing) as process:
                opened.append(process.submit(open_alone, path, size).result())
    with worker_pool(1, _nothing) as process:
        sampling = process.submit(sample_both, big, small, size).result()
    other = f"robostack, {size.episodes * size.frames} frames"
    case = f"store of {frames} frames, warm page cache"

    def less_is_better(metric: str, unit: str, of: Callable[[Opened], float]) -> dict[str, Any]:
        value, peer_value = (median(of(opened) for opened in found[path]) for path in (big, small))
        return measurement("data", case, metric, unit, (value, peer_value, peer_value / value), other)

    yield less_is_better("opening", "s", lambda opened: opened.seconds)
    yield measurement("data", case, "windows", "per second", sampling, other)
    yield less_is_better("most resident memory", "MB", lambda opened: opened.memory_mb)


def bench_checksums(path: Path, size: DataSize) -> Iterator[dict[str, Any]]:
    """Holding all chunks to their checksums, as `inspect` and `convert` do, beside reading the same files."""
    make_store(path, WITH_CAMERA, size.episodes, size.frames)
    files = [file for file in path.rglob("*") if file.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 1e6

    def rate(program: Callable[[], Any]) -> float:
        start = time.perf_counter()
        program()
        return megabytes / (time.perf_counter() - start)

    def read() -> None:
        for file in files:
            with open(file, "rb", buffering=0) as opened:
                while opened.read(1 << 20):
                    pass

    rates = take_turns(
        {"ours": lambda: rate(lambda: EpisodeStore(path).verify()), "peer": lambda: rate(read)}, size.blocks
    )
    case = f"checksums of {size.episodes * size.frames} frames with a camera, warm page cache"
    found = compare(rates["ours"], rates["peer"])
    yield measurement("data", case, "verifying", "MB/s", found, "reading the same files alone")


def open_alone(path: Path, size: DataSize) -> Opened:
    """Opens a store and draws from it for a block, in a process that has done nothing else."""
    start = time.perf_counter()
    sampler = WindowSampler(EpisodeStore(path), [STATE], size.chunk_len)
    seconds = time.perf_counter() - start
    _rate(sampler, size, lambda _: None)
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported, whose memory would be counted as the store's")
    return Opened(seconds, peak_memory_mb(), len(sampler))


def sample_both(big: Path, small: Path, size: DataSize) -> tuple[float, float, float]:
    """Windows a second of both stores, open at once, in turns, and the ratio."""
    samplers = {path.name: WindowSampler(EpisodeStore(path), [STATE], size.chunk_len) for path in (big, small)}
    programs = {name: partial(_rate, sampler, size, lambda _: None) for name, sampler in samplers.items()}
    rates = take_turns(programs, 2 * size.blocks)
    return compare(rates[big.name], rates[small.name])


def peak_memory_mb() -> float:
    """The most resident memory of this process. Not getrusage's, which a new process takes over from the process that
    started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def _nothing() -> None:
    pass


# Conversions


def bench_conversion(folder: Path, size: DataSize, lerobot: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """Every pair of formats through `convert`, checks included, against LeRobot's writer or what bounds it: the codec
    alone, or the disk."""
    source, made = folder / "robostack", folder / "made"
    episodes, frames = size.converted_episodes, size.converted_frames
    make_store(source, WITH_CAMERA, episodes, frames)
    total = episodes * frames
    there = {"LeRobot PNG": ("lerobot", "png"), "LeRobot AV1": ("lerobot", "video")}
    there |= {"ALOHA": ("aloha", "raw"), "Diffusion Policy": ("diffusion-policy", "")}
    sources = {name: folder / name.replace(" ", "-") for name in there}
    for name, (to, images) in there.items():
        conversion_rate(ConvertConfig(source, sources[name], to, images=images))
    copying = "copying the files written, synced"

    def lerobot_writes(videos: bool) -> float:
        shutil.rmtree(folder / "peer", ignore_errors=True)
        return lerobot.submit(writing_rate, source, folder / "peer", videos).result()

    peers: dict[tuple[str, str], tuple[str, Callable[[], float]]] = {
        ("robostack", "LeRobot PNG"): (f"{lerobot_name()}, writing", lambda: lerobot_writes(False)),
        ("robostack", "LeRobot AV1"): (f"{lerobot_name()}, writing", lambda: lerobot_writes(True)),
        ("LeRobot PNG", "robostack"): (
            f"Pillow {version('pillow')}, decoding alone",
            lambda: decoding_rate(_pictures(sources["LeRobot PNG"])),
        ),
        ("LeRobot AV1", "robostack"): (
            f"PyAV {version('av')}, decoding alone",
            lambda: decoding_rate(_video_frames(sources["LeRobot AV1"])),
        ),
    }
    peers["robostack", "ALOHA"] = (copying, partial(copying_rate, sources["ALOHA"], folder / "copy", total))
    peers["robostack", "Diffusion Policy"] = (
        f"numcodecs {version('numcodecs')}, compressing alone",
        partial(compressing_rate, sources["Diffusion Policy"]),
    )
    for name in ("ALOHA", "Diffusion Policy"):
        peers[name, "robostack"] = (copying, partial(copying_rate, source, folder / "copy", total))
    for (one, other), (name, program) in peers.items():
        to, images = there.get(other, ("robostack", ""))
        config = ConvertConfig(sources.get(one, source), made, to, images=images)
        os.sync()  # or a conversion would wait until what was made before is on the disk
        rates = take_turns({"ours": partial(conversion_rate, config), "peer": program}, size.blocks)
        found = compare(rates["ours"], rates["peer"])
        case = f"{one} to {other}, {episodes} x {frames} frames, checked"
        yield measurement("data", case, "conversion", "frames/s", found, name)
        found = (found[0] * FRAME_MB, found[1] * FRAME_MB, found[2])
        yield measurement("data", case, "conversion", "MB/s", found, name)


def conversion_rate(config: ConvertConfig) -> float:
    """Frames a second of a conversion anew, with its check and until it is on the disk."""
    shutil.rmtree(config.dst, ignore_errors=True)
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):  # of what a format does not record, each time
        done = convert(config)
    return done.frames / (time.perf_counter() - start)


def decoding_rate(frames: Iterator[np.ndarray]) -> float:
    """Frames a second of a decoder."""
    start = time.perf_counter()
    count = sum(1 for _ in frames)
    return count / (time.perf_counter() - start)


def copying_rate(source: Path, copy: Path, frames: int) -> float:
    """Frames a second of a plain copy, until it is on the disk."""
    shutil.rmtree(copy, ignore_errors=True)
    start = time.perf_counter()
    shutil.copytree(source, copy)
    os.sync()
    return frames / (time.perf_counter() - start)


def compressing_rate(data: Path) -> float:
    """Frames a second at which the pictures of a replay buffer are compressed as they are there, all else left out."""
    import numcodecs
    import zarr

    (path,) = (path for path in data.glob("data/*/.zarray") if len(json.loads(path.read_text())["shape"]) == 4)
    described = json.loads(path.read_text())
    codec, rows = numcodecs.get_codec(described["compressor"]), described["chunks"][0]
    frames = np.asarray(zarr.open_array(store=str(path.parent), mode="r")[:])
    start = time.perf_counter()
    for first in range(0, len(frames), rows):
        codec.encode(frames[first : first + rows])
    return len(frames) / (time.perf_counter() - start)


def _pictures(data: Path) -> Iterator[np.ndarray]:
    import pyarrow.parquet as pq
    from PIL import Image

    for path in sorted(data.glob("data/*/*.parquet")):
        for cell in pq.read_table(path, columns=[CAMERA])[CAMERA].to_pylist():
            yield np.asarray(Image.open(BytesIO(cell["bytes"])))


def _video_frames(data: Path) -> Iterator[np.ndarray]:
    import av

    for path in sorted(data.glob(f"videos/{CAMERA}/*/*.mp4")):
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")


# The data


def make_store(
    path: Path, features: Mapping[str, Feature], episodes: int, frames: int, repeat: bool = False
) -> EpisodeStore:
    """Episodes of `frames` frames, drawn anew or all the same."""
    writer, rng = EpisodeWriter(path, features, FPS), np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {}
    for _ in range(episodes):
        if not (columns and repeat):
            steps = rng.normal(0, 0.02, (2, frames, 14)).astype(np.float32)
            columns = dict(zip((STATE, "action"), np.cumsum(steps, axis=1), strict=True))
            if CAMERA in features:
                columns[CAMERA] = make_frames(frames, features[CAMERA].shape[0], rng)
        writer.append(columns, "move the disc")
    return EpisodeStore(path)


def make_frames(count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Pictures that compress like renders: a shaded ground, a disc that moves over it, a little noise."""
    y, x = np.mgrid[0:side, 0:side]
    shade = np.stack([x + y, 2 * y, 2 * side - x], -1) * (64 / side) + rng.uniform(20, 80, 3)
    phases = rng.uniform(0, 2 * np.pi, 2)[:, None] + np.arange(count) * rng.uniform(0.01, 0.05, (2, 1))
    centres = side / 2 + side / 3 * np.sin(phases)
    frames = rng.integers(0, 4, (count, side, side, 3), np.uint8)
    for frame, (row, column) in zip(frames, centres.T, strict=True):
        disc = (y - row) ** 2 + (x - column) ** 2 < (side / 10) ** 2
        frame += np.where(disc[..., None], (200, 60, 40), shade).astype(np.uint8)
    return frames


def make_lerobot(store: EpisodeStore, path: Path, images: Images = "png") -> Path:
    """The frames of a store as LeRobot keeps them, videos with LeRobot's settings."""
    writer = LeRobotWriter(path, store.features, FPS, images=images)
    for index in range(store.episodes):
        episode = store.read_episode(index)
        writer.append(episode.columns, episode.task)
    writer.finish()
    return path
