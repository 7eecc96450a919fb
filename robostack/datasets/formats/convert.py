"""Conversion of a data set to another format, episode by episode, checked against its source before it is there.

While it is made, the result lies beside its place:

    .<dst>.partial/conversion.json    what is converted, how, and what of it is left out
    .<dst>.partial/data               the result, renamed to <dst> as the last step

A conversion that was killed, or found the disk full, goes on when it is started again with the same settings.

A feature that one episode does not have as the others do is left out of all: the conversion notes it and starts over.
The action, the state and what was asked for with `keep` are not left out: without them the episode is damaged.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robostack.common.extras import require_extra
from robostack.common.files import DiskFullError, inside, is_disk_full, refuse_taken, room_needed, sync
from robostack.common.interrupt import saying
from robostack.datasets.episodes import (
    Appender,
    Column,
    DataError,
    EmptyEpisodeError,
    Episode,
    EpisodeReader,
    Feature,
    FeatureError,
    Frames,
)
from robostack.datasets.formats import (
    DatasetFormat,
    Recording,
    Selection,
    create_writer,
    detect,
    find_format,
    open_reader,
    resume_writer,
)
from robostack.datasets.formats.conversion_state import ConversionState
from robostack.datasets.formats.verification import LOSSY_BOUND, VerificationError
from robostack.datasets.formats.verification import verify as _verify
from robostack.datasets.store import EpisodeStore
from robostack.datasets.timing import LARGEST_DEVIATION, check_times, deviation, resolves

__all__ = ["ConvertConfig", "Converted", "DiskFullError", "Progress", "VerificationError", "convert"]

if TYPE_CHECKING:
    from robostack.datasets.store import EpisodeStore

STRICT = ("action", "observation.state")
"""Features without which nothing is learnt."""
SAME_RATE = 2e-3
"""Share by which a rate that is given may differ from that of the source."""


@dataclass(frozen=True)
class ConvertConfig:
    """Which data set to convert, and to what."""

    src: Path
    """SRC, a data set, which is never changed: robostack's, LeRobot v2.0 to v3.0, HDF5 of ALOHA, robomimic, LIBERO or
    ManiSkill, Diffusion Policy's Zarr or a zip of it, or a folder of videos; found by looking."""
    dst: Path
    """DST, the data set to write; must not exist yet, or be an empty folder."""
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
    left_out_features: Mapping[str, str]
    """Features of the source that the result does not have though nobody dropped them, and why."""
    remarks: tuple[str, ...]
    """What of the source was set right."""
    actions_sha256: str
    """Empty where there are no actions."""
    frames_per_s: float
    mb_per_s: float


def convert(config: ConvertConfig, report: Callable[[Progress], None] = lambda _: None) -> Converted:
    """Converts and checks; `report` is told after every episode.

    Raises FileExistsError when `dst` exists, ValueError for settings that do not fit, DataError for damaged data,
    DiskFullError, and VerificationError when the result is not the source. Only the last three leave something, and
    only if an episode was written: the unfinished result, with which the same settings go on.
    """
    job = _plan(config)
    try:
        with saying(job.kept), room_needed(lambda: Path(job.where), job.after_room):
            return _run(job, report)
    except Exception:
        if job.begun and not job.written:
            shutil.rmtree(job.partial, ignore_errors=True)  # so that the next try may have other settings
        raise


@dataclass
class _Job:
    """A conversion whose settings fit."""

    config: ConvertConfig
    reader: EpisodeReader
    target: DatasetFormat
    images: str
    size: tuple[int, int] | None
    fps: float | None
    where: str = "its start"
    begun: bool = False
    """Whether the unfinished result is this conversion's."""
    written: int = 0
    """Episodes that stand in it."""

    @property
    def partial(self) -> Path:
        return self.config.dst.with_name(f".{self.config.dst.name}.partial")

    @property
    def data(self) -> Path:
        return self.partial / "data"

    def kept(self) -> str:
        """What of it a user still has."""
        return f"{self.written} converted episodes are kept in {self.partial}: the same command goes on"

    def after_room(self) -> str:
        """What to do when the disk was full."""
        kept = f"; {self.written} converted episodes are kept in {self.partial}" if self.written else ""
        return f"make room and run the same command again{kept}"

    @property
    def recording(self) -> Recording:
        """What the result is told before its first episode."""
        features = dict(self.reader.features)
        if self.size:
            features = {
                key: replace(f, shape=(*self.size, f.shape[2])) if f.is_camera else f for key, f in features.items()
            }
        settings = {"from": self.reader.format, "drop": list(self.config.drop), "resize": self.config.resize}
        provenance = {**self.reader.provenance, "converted": settings}
        return Recording(features, self.fps, self.reader.robot, provenance)

    def read(self, episode: int) -> Episode:
        """An episode of the source as it should be in the result."""
        whole = self.reader.read_episode(episode)
        columns = {key: self._as_wanted(key, column, episode) for key, column in whole.columns.items()}
        times = columns.get("timestamp")
        if isinstance(times, np.ndarray) and self.fps and times.size == len(times) and np.isfinite(times).all():
            _check_times(times.reshape(-1), self.fps)
        return replace(whole, columns=columns, task=_task(whole.task, self.config, episode))

    def _as_wanted(self, key: str, column: Column, episode: int) -> Column:
        feature = self.reader.features[key]
        if not feature.is_camera:
            return column
        return _resized(column, feature, self.size) if self.size else _of_one_size(key, column, feature, episode)


def _plan(config: ConvertConfig) -> _Job:
    """Opens the source and checks the settings; writes nothing."""
    refuse_taken(config.dst)
    source_path = Path(os.path.realpath(config.src))  # unlike resolve, it takes links in a loop for what they are
    if source_path in Path(os.path.realpath(config.dst)).parents:
        raise ValueError(f"{config.dst} lies in the source, which is not changed: choose a path outside")
    source = detect(config.src)
    if config.to == "auto" and source.name == "robostack":
        raise ValueError(f"{config.src} is robostack's own: say to which format with --to")
    target = find_format("robostack" if config.to == "auto" else config.to)
    reader = open_reader(config.src, Selection(config.keep, config.drop, config.rename))
    if missing := [key for key in STRICT if key in reader.left_out]:
        why = reader.left_out[missing[0]]
        raise DataError(f"{config.src}: {missing[0]} is not read: {why} (--drop {missing[0]} goes on without it)")
    if not reader.features:
        raise DataError(f"{config.src} has no feature that is converted: keep one")
    for key in reader.features:
        try:
            inside(config.dst, key)  # it names files in most formats
        except ValueError as error:
            raise DataError(f"{config.src} has a feature {key!r}, which is no name: --rename or --drop it") from error
    images = config.images or target.images[0]
    if images not in target.images:
        raise ValueError(f"{target.name} keeps images as {' or '.join(target.images)}, not as {images!r}")
    if config.fps is not None and not (math.isfinite(config.fps) and config.fps > 0):
        raise ValueError(f"--fps: expected frames a second, got {config.fps:g}")
    # 29.97 and 30 are one rate, which is called either.
    if config.fps is not None and reader.fps is not None and abs(config.fps / reader.fps - 1) > SAME_RATE:
        raise ValueError(f"{config.src} has {reader.fps:g} frames a second, not {config.fps:g}: leave --fps out")
    fps = config.fps if reader.fps is None else reader.fps
    if fps is None and target.needs_fps:
        raise ValueError(f"{config.src} does not record its frames a second, which {target.name} needs: give --fps")
    size = None
    if config.resize:
        require_extra("PIL", "data")
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", config.resize)
        if match is None:
            raise ValueError(f"--resize: expected HEIGHTxWIDTH such as 224x224, got {config.resize!r}")
        size = (int(match[1]), int(match[2]))
    return _Job(config, reader, target, images, size, fps)


def _run(job: _Job, report: Callable[[Progress], None]) -> Converted:
    state = ConversionState.begin(job.partial, _settings(job))
    job.begun = True
    job.reader.select([key for key in job.reader.features if key not in state.noted.left_out_features])
    start, frames, size = time.monotonic(), 0, 0
    for episode, columns in _append_all(job, state):
        length = len(next(iter(columns.values())))
        frames, size = frames + length, size + sum(_bytes(column) for column in columns.values())
        report(Progress("converting", episode + 1, job.reader.episodes, len(state.noted.left_out)))
    seconds = time.monotonic() - start
    job.where = "the check"
    kept = [episode for episode in range(job.reader.episodes) if str(episode) not in state.noted.left_out]
    bound = 0.0 if job.images in job.target.lossless else LOSSY_BOUND

    def checked(done: int) -> None:
        report(Progress("checking", done, len(kept), job.reader.episodes - len(kept)))

    result = job.target.read(job.data)
    if isinstance(result, EpisodeStore):
        result.checks = False  # not yet: what is compared says better what is wrong
    verified = _verify(job.read, kept, job.recording.features, result, bound, checked)
    if isinstance(result, EpisodeStore):
        try:
            result.verify()
        except DataError as error:
            raise VerificationError(f"{error}: remove {job.partial} and convert again") from error
    os.sync()
    os.rename(job.data, job.config.dst)
    _sync_folder(job.config.dst.parent)
    shutil.rmtree(job.partial)
    return Converted(
        job.config.dst,
        job.target.name,
        len(kept),
        verified.frames,
        {int(episode): reason for episode, reason in state.noted.left_out.items()},
        {**job.reader.left_out, **state.noted.left_out_features},
        (*job.reader.remarks, *(_with_episodes(remark, of) for remark, of in verified.remarks.items())),
        verified.actions_sha256,
        frames / seconds,
        size / 1e6 / seconds,
    )


def _settings(job: _Job) -> dict[str, object]:
    """What a conversion that goes on must have in common with the one before."""
    return asdict(job.config) | {
        "src": str(job.config.src.resolve()),
        "dst": job.config.dst.name,
        **{name: list(getattr(job.config, name)) for name in ("drop", "keep", "rename")},
        "to": job.target.name,
        "images": job.images,
        "episodes": job.reader.episodes,
    }


def _append_all(job: _Job, state: ConversionState) -> Iterator[tuple[int, Mapping[str, Column]]]:
    """Writes what is not there yet; gives the number of each episode and its columns. Where a feature cannot be kept
    it starts over without it."""
    while (writer := _writer(job, state)) is not None:
        try:
            yield from _append_episodes(job, writer, state)
        except FeatureError as error:  # of one that can be left out
            state.save(
                created=False, left_out_features={**state.noted.left_out_features, error.feature: _said(job, error)}
            )
            job.written = 0
            job.reader.select([key for key in job.reader.features if key != error.feature])
            continue
        if not writer.episodes:
            first = f"; the first: {next(iter(left_out.values()))}" if (left_out := state.noted.left_out) else ""
            raise DataError(f"{job.config.src} has no episode that can be converted{first}")
        job.where = "the end"
        state.save(appended=True)
        writer.finish()
        return


def _writer(job: _Job, state: ConversionState) -> Appender | None:
    """The writer to go on with; None when everything is written."""
    if state.noted.created and job.data.exists():
        job.written = 1  # at least: nothing of it is removed
        try:
            return resume_writer(job.target.name, job.data)
        except DataError:
            if state.noted.appended:
                return None  # finished, as far as the writer knows; the check will tell
            raise
    shutil.rmtree(job.data, ignore_errors=True)
    writer = create_writer(job.target.name, job.data, job.recording, job.images)
    state.save(created=True)
    return writer


def _append_episodes(job: _Job, writer: Appender, state: ConversionState) -> Iterator[tuple[int, Mapping[str, Column]]]:
    job.written = written = writer.episodes
    for episode in range(job.reader.episodes):
        if str(episode) in state.noted.left_out:
            continue
        if written:
            written -= 1
            continue
        job.where = f"episode {episode}"
        try:
            read = job.read(episode)
            writer.append(read.columns, read.task)
        except DataError as error:
            if is_disk_full(error):
                raise
            # What is none of the features, such as episode_index, cannot be left out, nor can the last of them.
            optional = {*job.reader.features} - {*STRICT, *job.config.keep}
            if isinstance(error, FeatureError) and error.feature in optional and len(job.reader.features) > 1:
                raise
            line = _said(job, error)
            if not job.config.skip_damaged and not isinstance(error, EmptyEpisodeError):
                raise DataError(f"{line} (--skip-damaged leaves it out)") from error
            # Told before the next episode is written: else a run that goes on would count wrongly.
            state.save(left_out={**state.noted.left_out, str(episode): line})
            continue
        job.written += 1
        yield episode, read.columns


def _said(job: _Job, error: DataError) -> str:
    """What is wrong with an episode, with its number."""
    return str(error) if job.where in str(error) else f"{job.config.src}, {job.where}: {error}"


def _with_episodes(remark: str, episodes: Sequence[int]) -> str:
    some = ", ".join(map(str, episodes[:5]))
    return f"{remark} (episode{'s'[: len(episodes) > 1]} {some}{' …' if len(episodes) > 5 else ''})"


def _bytes(column: Column) -> int:
    return math.prod(column.shape) * column.dtype.itemsize


def _of_one_size(key: str, column: Column, feature: Feature, episode: int) -> Column:
    """The frames, each of which must have the size of the others of the data set."""

    def check(shape: Sequence[int], where: str) -> None:
        if tuple(shape) != feature.shape:
            got, expected = (f"{size[0]}x{size[1]}" for size in (shape, feature.shape))
            raise FeatureError(key, f"is {got} in {where}, {expected} before: --resize makes all one size")

    def read() -> Iterator[np.ndarray]:
        for i, frame in enumerate(column.read() if isinstance(column, Frames) else column):
            check(frame.shape, f"frame {i} of episode {episode}")
            yield frame

    check(column.shape[1:], f"episode {episode}")
    return replace(column, read=read) if isinstance(column, Frames) else column


def _check_times(times: np.ndarray, fps: float) -> None:
    """Raises DataError where timestamps keep another rate, FeatureError where they count something but seconds."""
    if not resolves(times, fps) or deviation(times, fps).periods <= LARGEST_DEVIATION:
        return
    for unit, a_second in (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)):
        if deviation((times - times[0]) / a_second, fps).periods <= LARGEST_DEVIATION:
            raise FeatureError("timestamp", f"is in {unit}, expected seconds")
    check_times(times, fps)


def _resized(column: Column, feature: Feature, size: tuple[int, int]) -> Frames:
    """Colours are interpolated; of depth the nearest is taken: between a cup and the wall behind it is nothing."""
    from PIL import Image

    how = Image.Resampling.BILINEAR if feature.is_image else Image.Resampling.NEAREST

    def read() -> Iterator[np.ndarray]:
        for frame in column.read() if isinstance(column, Frames) else column:  # whatever sizes they have
            if frame.shape[:2] == size:
                yield frame
                continue
            picture = Image.fromarray(frame if feature.is_image else frame[..., 0])
            yield np.asarray(picture.resize((size[1], size[0]), how), frame.dtype).reshape(*size, -1)

    return Frames((len(column), *size, feature.shape[2]), read, dtype=np.dtype(feature.dtype))


def _task(texts: Sequence[str], config: ConvertConfig, episode: int) -> Sequence[str]:
    if config.task is not None:
        if other := next((text for text in texts if text and text != config.task), None):
            raise ValueError(f"{config.src}, episode {episode} has the task {other!r}: leave --task out")
        return [config.task] * len(texts)
    if "" in texts:
        warnings.warn(f"{config.src} has episodes without a task text: give --task", stacklevel=2)
    return texts


def _sync_folder(path: Path) -> None:
    sync(path)
