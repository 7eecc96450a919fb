"""Conversion of a data set to another format, episode by episode, checked against its source before it is there.

While it is made, the result lies beside its place:

    .<dst>.partial/conversion.json    what is converted, how, and which damaged episodes are left out
    .<dst>.partial/data               the result, renamed to <dst> as the last step

A conversion that was killed, or found the disk full, goes on when it is started again with the same settings.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robostack.datasets.episodes import Appender, Column, DataError, Episode, EpisodeReader, Frames
from robostack.datasets.formats import (
    Format,
    Recording,
    Selection,
    create_writer,
    detect,
    find_format,
    open_reader,
    resume_writer,
)
from robostack.extras import require_extra

LOSSY_BOUND = 12.0
"""Grey levels of 255 by which a frame of a lossy target may differ on average: another frame of a moving scene, or
swapped colours, differ by more; AV1, H.264 and JPEG at their usual quality by 1 to 5."""


class DiskFullError(OSError):
    """The disk is full; what was converted is kept, and the same command goes on."""


class VerificationError(RuntimeError):
    """The result is not what its source is."""


@dataclass(frozen=True)
class ConvertConfig:
    """Which data set to convert, and to what."""

    src: Path
    """SRC, a data set in any format; it is never changed."""
    dst: Path
    """DST, the data set to write; must not exist yet."""
    to: str = "auto"
    """Format: robostack, lerobot, aloha or diffusion-policy; auto is robostack for data of another format."""
    drop: tuple[str, ...] = ()
    """Features to leave out, such as next.reward."""
    keep: tuple[str, ...] = ()
    """Features asked for, which must be whole; by default all that can be read."""
    rename: tuple[str, ...] = ()
    """New names of features, as old=new."""
    resize: str = ""
    """Size of the cameras, as HEIGHTxWIDTH; as they are by default."""
    fps: float | None = None
    """Frames a second of a source that does not record them."""
    task: str | None = None
    """Task text of a source that does not record it."""
    images: str = ""
    """How cameras are kept: video or png (lerobot), raw or jpeg (aloha)."""
    skip_damaged: bool = False
    """Leave damaged episodes out; by default the conversion stops at the first."""


@dataclass(frozen=True)
class Progress:
    """How far a conversion is."""

    stage: str
    """converting or checking"""
    done: int
    """Episodes of the source that were dealt with."""
    total: int
    left_out: int


@dataclass(frozen=True)
class Converted:
    """What a conversion did. Rates are those of this run, over numbers and pixels as they are in memory."""

    path: Path
    format: str
    episodes: int
    frames: int
    left_out: Mapping[int, str]
    """Damaged episodes of the source, and what is wrong with them."""
    actions_sha256: str
    frames_per_s: float
    mb_per_s: float


def convert(config: ConvertConfig, report: Callable[[Progress], None] = lambda _: None) -> Converted:
    """Converts and checks; `report` is told after every episode.

    Raises FileExistsError when `dst` exists, ValueError for settings that do not fit, DataError for damaged data,
    DiskFullError, and VerificationError when the result is not the source. Only the last three leave something: the
    unfinished result, with which the same settings go on.
    """
    job = _plan(config)
    try:
        return _run(job, report)
    except Exception as error:
        if not _disk_is_full(error):
            raise
        raise DiskFullError(
            f"the disk is full at {job.where}: make room and run the same command again; "
            f"the episodes before are kept in {job.partial}"
        ) from error


@dataclass
class _Job:
    """A conversion whose settings fit."""

    config: ConvertConfig
    reader: EpisodeReader
    target: Format
    images: str
    size: tuple[int, int] | None
    recording: Recording
    where: str = "its start"

    @property
    def partial(self) -> Path:
        return self.config.dst.with_name(f".{self.config.dst.name}.partial")

    @property
    def data(self) -> Path:
        return self.partial / "data"

    def read(self, episode: int) -> Episode:
        """An episode of the source as it shall be in the result."""
        whole = self.reader.read_episode(episode)
        columns = {
            key: _resized(column, self.size) if self.size and self.reader.features[key].is_image else column
            for key, column in whole.columns.items()
        }
        return Episode(columns, _task(whole.task, self.config, episode))


def _plan(config: ConvertConfig) -> _Job:
    """Opens the source and checks the settings; writes nothing."""
    if os.path.lexists(config.dst):
        raise FileExistsError(f"{config.dst} already exists: choose another path or remove it first")
    if config.src.resolve() in config.dst.resolve().parents:
        raise ValueError(f"{config.dst} lies in the source, which is not changed: choose a path outside")
    source = detect(config.src)
    if config.to == "auto" and source.name == "robostack":
        raise ValueError(f"{config.src} is robostack's own: say to which format with --to")
    target = find_format("robostack" if config.to == "auto" else config.to)
    reader = open_reader(config.src, Selection(config.keep, config.drop, config.rename))
    if "action" not in reader.features:
        raise DataError(f"{config.src} has no action; it has {', '.join(reader.features)}")
    images = config.images or target.images[0]
    if images not in target.images:
        raise ValueError(f"{target.name} keeps images as {' or '.join(target.images)}, not as {images!r}")
    if config.fps is not None and reader.fps is not None and config.fps != reader.fps:
        raise ValueError(f"{config.src} has {reader.fps:g} frames a second, not {config.fps:g}: leave --fps out")
    fps = config.fps if reader.fps is None else reader.fps
    if fps is None and target.needs_fps:
        raise ValueError(f"{config.src} does not record its frames a second, which {target.name} needs: give --fps")
    size, features = None, dict(reader.features)
    if config.resize:
        require_extra("PIL", "data")
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", config.resize)
        if match is None:
            raise ValueError(f"--resize: expected HEIGHTxWIDTH such as 224x224, got {config.resize!r}")
        size = (int(match[1]), int(match[2]))
        features = {key: replace(f, shape=(*size, 3)) if f.is_image else f for key, f in features.items()}
    settings = {"from": reader.format, "drop": list(config.drop), "resize": config.resize}
    provenance = {**reader.provenance, "converted": settings}
    return _Job(config, reader, target, images, size, Recording(features, fps, reader.robot, provenance))


def _run(job: _Job, report: Callable[[Progress], None]) -> Converted:
    state = _State.begin(job)
    start, frames, size = time.monotonic(), 0, 0
    writer = _writer(job, state)
    if writer is not None:
        for episode, columns in _append_all(job, writer, state):
            frames += len(columns["action"])
            size += sum(math.prod(column.shape) * column.dtype.itemsize for column in columns.values())
            report(Progress("converting", episode + 1, job.reader.episodes, len(state.left_out)))
        if not writer.episodes:
            raise DataError(f"{job.config.src} has no episode that can be converted")
        job.where = "the end"
        state.save(appended=True)
        writer.finish()
    seconds = time.monotonic() - start
    kept = [episode for episode in range(job.reader.episodes) if str(episode) not in state.left_out]
    digest, total = _verify(job, kept, report)
    os.sync()
    os.rename(job.data, job.config.dst)
    _sync_folder(job.config.dst.parent)
    shutil.rmtree(job.partial)
    left_out = {int(episode): reason for episode, reason in state.left_out.items()}
    return Converted(
        job.config.dst, job.target.name, len(kept), total, left_out, digest, frames / seconds, size / 1e6 / seconds
    )


class _State:
    """conversion.json: what an unfinished conversion has to know to go on."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path, self._values = path, values

    @classmethod
    def begin(cls, job: _Job) -> _State:
        """The state of the unfinished conversion that is there, if it has the same settings, else a new one."""
        path = job.partial / "conversion.json"
        settings = asdict(job.config) | {
            "src": str(job.config.src.resolve()),
            "dst": job.config.dst.name,
            **{name: list(getattr(job.config, name)) for name in ("drop", "keep", "rename")},
            "to": job.target.name,
            "images": job.images,
            "episodes": job.reader.episodes,
        }
        state = cls(path, {"settings": settings, "created": False, "appended": False, "left_out": {}})
        if not path.exists():
            job.partial.mkdir(parents=True, exist_ok=True)
            state.save()
            return state
        try:
            state._values |= json.loads(path.read_text())
            before = dict(state._values["settings"])
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged: remove {job.partial} and start again") from error
        changed = [f"{k} {before.get(k)!r}, now {v!r}" for k, v in settings.items() if before.get(k) != v]
        if changed:
            raise ValueError(
                f"{job.partial} is an unfinished conversion with other settings ({'; '.join(changed)}): "
                "give the same, or remove it"
            )
        return state

    @property
    def created(self) -> bool:
        return self._values["created"]

    @property
    def appended(self) -> bool:
        return self._values["appended"]

    @property
    def left_out(self) -> dict[str, str]:
        return self._values["left_out"]

    def save(self, **changes: Any) -> None:
        self._values |= changes
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._values, indent=1))
        new.replace(self._path)


def _writer(job: _Job, state: _State) -> Appender | None:
    """The writer to go on with; None when everything is written."""
    if state.created and job.data.exists():
        try:
            return resume_writer(job.target.name, job.data)
        except DataError:
            if state.appended:
                return None  # finished, as far as the writer knows; the check will tell
            raise
    shutil.rmtree(job.data, ignore_errors=True)
    try:
        writer = create_writer(job.target.name, job.data, job.recording, job.images)
    except ValueError:
        shutil.rmtree(job.partial)  # the format cannot hold it: nothing to go on with
        raise
    state.save(created=True)
    return writer


def _append_all(job: _Job, writer: Appender, state: _State) -> Iterator[tuple[int, Mapping[str, Column]]]:
    """Appends what is not there yet; gives the number of each episode and its columns."""
    written = writer.episodes
    for episode in range(job.reader.episodes):
        if str(episode) in state.left_out:
            continue
        if written:
            written -= 1
            continue
        job.where = f"episode {episode}"
        try:
            columns, task = (read := job.read(episode)).columns, read.task
            writer.append(columns, task)
        except DataError as error:
            line = str(error) if f"episode {episode}" in str(error) else f"{job.config.src}, {job.where}: {error}"
            if _disk_is_full(error):
                raise
            if not job.config.skip_damaged:
                raise DataError(f"{line} (--skip-damaged leaves it out)") from error
            # Told before the next episode is written: else a run that goes on would count wrongly.
            state.save(left_out=state.left_out | {str(episode): line})
            continue
        yield episode, columns


def _verify(job: _Job, kept: Sequence[int], report: Callable[[Progress], None]) -> tuple[str, int]:
    """Compares the result with its source: episodes, lengths, tasks, every number, and of a few episodes the first and
    last frame of each camera. Gives the SHA-256 of the result's actions, and the frames."""
    result = job.target.read(job.data)
    if result.episodes != len(kept):
        raise _differs(job, f"expected {len(kept)} episodes, got {result.episodes}")
    with_images = {0, len(kept) // 2, len(kept) - 1}
    expected, actions, frames = hashlib.sha256(), hashlib.sha256(), 0
    for i, episode in enumerate(kept):
        source, copy = job.read(episode), result.read_episode(i)
        where = f"episode {episode}"
        if list(source.task) != list(copy.task):
            raise _differs(job, f"{where}: other task texts")
        for key, column in source.columns.items():
            if key not in copy.columns or len(copy.columns[key]) != len(column):
                raise _differs(job, f"{where}: {key} is missing or of another length")
            if not job.recording.features[key].is_image:
                _compare_numbers(job, f"{where}: {key}", np.asarray(column), np.asarray(copy.columns[key]))
            elif i in with_images:
                _compare_images(job, f"{where}: {key}", column, copy.columns[key])
        written = np.asarray(copy.columns["action"])
        expected.update(np.ascontiguousarray(source.columns["action"], written.dtype).tobytes())
        actions.update(np.ascontiguousarray(written).tobytes())
        frames += len(written)
        report(Progress("checking", i + 1, len(kept), job.reader.episodes - len(kept)))
    if expected.digest() != actions.digest():
        raise _differs(job, "the hash of the actions")
    return actions.hexdigest(), frames


def _compare_numbers(job: _Job, where: str, source: np.ndarray, copy: np.ndarray) -> None:
    # Some formats hold no scalars, or not every type: then (T, 1) stands for (T,), and values are rounded to the type.
    if source.size != copy.size or not np.array_equal(source.astype(copy.dtype).reshape(copy.shape), copy):
        raise _differs(job, where)


def _compare_images(job: _Job, where: str, source: Column, copy: Column) -> None:
    bound = 0.0 if job.images in job.target.lossless else LOSSY_BOUND
    for name, one, other in zip(("first", "last"), _ends(source), _ends(copy), strict=True):
        difference = np.abs(one.astype(np.int16) - other).mean() if one.shape == other.shape else math.inf
        if difference > bound:
            raise _differs(job, f"{where}: the {name} frame, by {difference:.1f} grey levels, allowed are {bound:g}")


def _ends(column: Column) -> tuple[np.ndarray, np.ndarray]:
    frames = iter(column)
    first = last = next(frames)
    for frame in frames:
        last = frame
    return first, last


def _differs(job: _Job, what: str) -> VerificationError:
    return VerificationError(f"{job.data} differs from its source: {what}: remove {job.partial} and convert again")


def _resized(column: Column, size: tuple[int, int]) -> Frames:
    from PIL import Image

    def read() -> Iterator[np.ndarray]:
        for frame in column.read() if isinstance(column, Frames) else column:  # whatever sizes they have
            yield np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BILINEAR))

    return Frames((len(column), *size, 3), read)


def _task(texts: Sequence[str], config: ConvertConfig, episode: int) -> Sequence[str]:
    if config.task is not None:
        if other := next((text for text in texts if text and text != config.task), None):
            raise ValueError(f"{config.src}, episode {episode} has the task {other!r}: leave --task out")
        return [config.task] * len(texts)
    if "" in texts:
        warnings.warn(f"{config.src} has episodes without a task text: give --task", stacklevel=2)
    return texts


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
