"""What is in a data set, and what is wrong with it: one pass over the episodes of any format.

One episode is in memory at a time. Numbers are measured whole; images only in a few episodes spread over the data
set, three frames each, but every video is held to the end it must reach. The pass keeps running figures and small
samples, whose size does not grow with the data.

A jump is a step between two neighbouring frames that nothing real makes: an angle (unit rad or deg) faster than
`max_joint_speed`; any other entry by more than half of its whole range and ten times its mean step, and `min_std` where
it hardly varies otherwise. Grippers, and entries of a few values that vary, switch by nature and are not judged so.

Timestamps are held to the bound that conversion and training hold them to (`timing`).
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float

from robostack.common.text import one_line
from robostack.datasets.episodes import Column, DataError, Episode, EpisodeReader, Feature, FeatureError, Frames
from robostack.datasets.inspection.findings import (
    KINDS,
    STEPS_KEPT,
    Curve,
    Entry,
    FeatureSummary,
    Inspection,
    Occurrences,
    Picture,
    Problem,
    ProblemKind,
    entry_name,
    entry_unit,
    problem_at,
)
from robostack.datasets.statistics import SMALLEST_SCALE, Accumulator
from robostack.datasets.timing import LARGEST_DEVIATION, deviation, resolves

ANGLES = {"rad": 1.0, "radian": 1.0, "radians": 1.0, "deg": math.pi / 180, "degree": math.pi / 180}
ANGLES |= {"degrees": ANGLES["deg"]}
"""Units of angles, in radians."""

WIDEST = 1024
"""A feature of more entries than this, such as a depth image, is listed and not measured."""
FEW_VALUES = 16
"""An entry that takes no more values than this switches, and may do so at once."""
ROWS_KEPT = 4096
POINTS_KEPT = 400
"""Of an episode, for a curve."""
FRAMES_DECODED = 1000
"""Of an episode's camera; a frame can be had only by decoding those before it."""
NEEDED = ("action", "observation.state")
"""Features without which an episode is of no use."""
WORTH_TELLING = 0.1
"""Frames that timestamps are off the rate."""
BLACK = 16
"""What video coding makes of black."""
THUMBNAIL = 192
"""Pixels of the longer side."""


@dataclass(frozen=True)
class InspectConfig:
    """What counts as wrong, and how much is looked at."""

    max_joint_speed: float = 10.0
    """Fastest that a joint can turn, rad/s; a faster step is a jump."""
    min_frames: int = 50
    """An episode of fewer frames is too short; so is one of less than a tenth of the median."""
    min_std: float = SMALLEST_SCALE
    """An entry that varies less hardly varies."""
    sampled: int = 4
    """Episodes whose camera frames are looked at and whose curves are drawn; 0 decodes no image."""

    def __post_init__(self) -> None:
        for name in ("max_joint_speed", "min_frames", "min_std", "sampled"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def inspect(
    reader: EpisodeReader, config: InspectConfig = InspectConfig(), report: Callable[[int], None] = lambda _: None
) -> Inspection:
    """Reads every episode once; `report` is told how many are done. What is wrong is found, not raised."""
    survey = _Survey(reader, config)
    for episode in range(reader.episodes):
        survey.look_at(episode)
        report(episode + 1)
    return survey.result()


class _Running:
    """Figures and largest steps of one feature, added to episode by episode."""

    def __init__(self, feature: Feature, max_step: Float[np.ndarray, " entries"]) -> None:
        entries = len(max_step)
        self.figures = Accumulator(entries, ROWS_KEPT)
        self.max_step = max_step
        self.step_sum, self.step_count = np.zeros(entries), np.zeros(entries, np.int64)
        self.steps: list[list[tuple[float, int, int]]] = [[] for _ in range(entries)]
        self.values: list[np.ndarray | None] = [np.empty(0)] * entries

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, episode: int, rows: Float[np.ndarray, "frames entries"]) -> None:
        """Rows of one more episode; values that are not finite are left out."""
        self.figures.add(rows)
        self._add_steps(episode, np.abs(np.diff(np.where(np.isfinite(rows), rows, np.nan), axis=0)))
        self._add_values(rows)

    def _add_steps(self, episode: int, steps: np.ndarray) -> None:
        known = np.isfinite(steps)
        self.step_sum += np.where(known, steps, 0.0).sum(0)
        self.step_count += known.sum(0)
        # The range so far is at most the whole range: what is left out here is no jump at the end either.
        limits = np.where(np.isinf(self.max_step), (self.figures.max - self.figures.min) / 2, self.max_step)
        for entry in np.flatnonzero((steps > limits).any(0)):
            places = np.flatnonzero(steps[:, entry] > limits[entry])
            found = [(float(steps[place, entry]), episode, int(place) + 1) for place in places]
            # Nothing else grows with the data: the largest are enough to name the worst.
            self.steps[entry] = heapq.nlargest(STEPS_KEPT, self.steps[entry] + found, key=lambda step: step[0])

    def _add_values(self, rows: np.ndarray) -> None:
        for entry, values in enumerate(self.values):
            if values is not None:
                values = np.union1d(values, rows[:, entry])
                self.values[entry] = values if len(values) <= FEW_VALUES else None


class _Survey:
    """What has been found up to now."""

    def __init__(self, reader: EpisodeReader, config: InspectConfig) -> None:
        self.reader, self.config = reader, config
        self.running: dict[str, _Running] = {}
        for key, feature in reader.features.items():
            if _measured(feature):
                self.running[key] = _Running(feature, self._max_step(feature))
        spread = np.linspace(0, reader.episodes - 1, min(config.sampled, reader.episodes))
        self.sampled = {int(episode) for episode in np.rint(spread)}
        self.lengths: dict[int, int] = {}
        self.tasks: Counter[str] = Counter()
        self.places: dict[tuple[ProblemKind, str | None, int | None], Occurrences] = {}
        self.told = [
            *(_note("left out", f"{key} is left out: {why}", key) for key, why in reader.left_out.items()),
            *(_note("set right", remark) for remark in reader.remarks),
        ]
        """What is known without looking at every episode, and what one episode says of itself."""
        self.remarks: dict[str, list[int]] = {}
        self.curves: dict[str, list[Curve]] = {key: [] for key in self.running}
        self.pictures: list[Picture] = []

    def _max_step(self, feature: Feature) -> np.ndarray:
        """The largest step of each angle from a frame to the next; infinite for entries judged by their range."""
        angles = [_angle(feature, entry) for entry in range(feature.entries)]
        fps, speed = self.reader.fps, self.config.max_joint_speed
        return np.array([speed / fps / angle if fps and angle else math.inf for angle in angles])

    def look_at(self, number: int) -> None:
        """Reads and measures one episode; nothing of it stays but copies."""
        try:
            self.lengths[number] = self.reader.length(number)
            episode = self._read(number)
            self._check(episode.columns, self.lengths[number])
        except DataError as error:
            text = f"episode {number} cannot be read: {one_line(error)}"
            self.told.append(Problem("unreadable", text, episodes=(number,)))
            return
        for remark in episode.remarks:
            self.remarks.setdefault(remark, []).append(number)
        for key, running in self.running.items():
            rows = np.asarray(episode.columns[key]).reshape(self.lengths[number], -1).astype(np.float64)
            self._measure(number, key, running, rows)
        if "timestamp" in self.running and (times := np.asarray(episode.columns["timestamp"])).size == len(times):
            self._look_at_times(number, times.reshape(-1))
        self._look_at_tasks(number, episode.task)
        for key, feature in self.reader.features.items():
            if feature.is_camera:
                self._look_at_camera(number, key, episode.columns[key])

    def _read(self, number: int) -> Episode:
        """An episode; a feature that turns out to be of no kind that can be kept is left out from here on."""
        while True:
            try:
                return self.reader.read_episode(number)
            except FeatureError as error:
                others = [key for key in self.reader.features if key != error.feature]
                if error.feature not in self.reader.features or not others:
                    raise
                text = f"{error.feature} is left out from episode {number} on: {one_line(error)}"
                needed = error.feature in NEEDED
                found = Problem("unreadable", text, error.feature) if needed else _note("left out", text, error.feature)
                self.told.append(replace(found, episodes=(number,)))
                self.reader.select(others)
                self.running.pop(error.feature, None)

    def _check(self, columns: Mapping[str, Column], length: int) -> None:
        for key, feature in self.reader.features.items():
            if key not in columns:
                raise DataError(f"{key} is missing")
            if columns[key].shape != (length, *feature.shape):
                raise DataError(f"{key}: expected shape {(length, *feature.shape)}, got {columns[key].shape}")

    def _place(self, kind: ProblemKind, key: str | None = None, entry: int | None = None) -> Occurrences:
        return self.places.setdefault((kind, key, entry), Occurrences())

    def _measure(self, number: int, key: str, running: _Running, rows: np.ndarray) -> None:
        if len(rows) == 0:
            return
        known = np.isfinite(rows)
        for entry in np.flatnonzero(~known.all(0)):
            bad = np.flatnonzero(~known[:, entry])
            self._place("not finite", key, int(entry)).add(number, int(bad[0]), count=len(bad))
        running.add(number, rows)
        feature = self.reader.features[key]
        for entry in range(rows.shape[1]):
            radians = np.abs(np.where(known[:, entry], rows[:, entry], 0.0)) * _angle(feature, entry)
            if beyond := int((radians > 2 * math.pi).sum()):
                worst = int(radians.argmax())
                self._place("beyond limits", key, entry).add(number, worst, float(radians[worst]), beyond)
        if number in self.sampled:
            stride = -(-len(rows) // POINTS_KEPT)
            self.curves[key].append(Curve(number, stride, rows[::stride].copy()))

    def _look_at_times(self, number: int, times: np.ndarray) -> None:
        """Timestamps (frames,) in seconds, of the type they are stored in."""
        if len(times) == 0 or not np.isfinite(times).all():
            return
        fps, seconds = self.reader.fps, times.astype(np.float64)
        gaps = np.diff(seconds)
        if not resolves(times, fps or 1.0):
            self._place("coarse times", "timestamp").add(number, 0)
            return
        period = 1 / fps if fps else float(np.median(gaps)) if len(gaps) else 0.0
        if abs(seconds[0]) > period / 2:
            self._place("late start", "timestamp").add(number, 0, float(abs(seconds[0])))
        falls = gaps <= 0
        if falls.any():
            worst = int(gaps.argmin())
            self._place("not rising", "timestamp").add(number, worst + 1, -float(gaps[worst]), int(falls.sum()))
        if fps is None:
            return
        found = deviation(times, fps)
        harmless = found.periods <= LARGEST_DEVIATION
        periods = gaps * fps
        missing = np.where((periods >= 1.5) & (not harmless), np.rint(periods) - 1, 0)
        if missing.any():
            worst = int(missing.argmax())
            self._place("dropped frames", "timestamp").add(number, worst + 1, missing[worst], int(missing.sum()))
        off = np.where((periods > 0) & (missing == 0), np.abs(periods - 1), 0.0)
        off[off <= WORTH_TELLING] = 0.0
        if not falls.any():
            # Gaps that are all a little too long add up: from half a frame on, a time means another frame.
            drift = np.abs(np.cumsum(periods - 1 - missing))
            off = np.maximum(off, np.where(drift > 0.5, drift, 0.0))
        if off.any():
            worst, place = int(off.argmax()), self._place("off the rate", "timestamp")
            place.harmless = harmless and (place.harmless or not place.count)
            worst, frame = (found.periods, found.frame) if harmless else (float(off[worst]), worst + 1)
            place.add(number, frame, worst, int((off > 0).sum()))

    def _look_at_tasks(self, number: int, task: Sequence[str]) -> None:
        self.tasks.update(list(dict.fromkeys(task)))
        empty = [frame for frame, text in enumerate(task) if not text.strip()]
        if empty or not task:
            self._place("no task").add(number, empty[0] if empty else 0, count=max(len(empty), 1))

    def _look_at_camera(self, number: int, key: str, frames: Column) -> None:
        """Checks a camera without decoding; of the sampled episodes it also decodes some frames."""
        length = min(len(frames), FRAMES_DECODED) if number in self.sampled else 0
        wanted = sorted({0, length // 2, length - 1}) if length else []
        try:
            if isinstance(frames, Frames):
                frames.check()
            chosen = dict(zip(wanted, _frames(frames, wanted), strict=True))
        except DataError as error:
            text = f"{key} of episode {number} cannot be read: {one_line(error)}"
            self.told.append(Problem("unreadable", text, key, episodes=(number,)))
            return
        chosen = {frame: _shown(pixels) for frame, pixels in chosen.items()}
        for frame, pixels in chosen.items():
            if pixels.max() <= BLACK:
                self._place("black image", key).add(number, frame)
            elif np.ptp(pixels.reshape(-1, 3), axis=0).max() <= 2:
                self._place("flat image", key).add(number, frame)
        for earlier, later in pairwise(wanted):
            if np.array_equal(chosen[earlier], chosen[later]) and chosen[later].max() > BLACK:
                self._place("frozen camera", key).add(number, later)
        self.pictures += [Picture(key, number, frame, _thumbnail(pixels)) for frame, pixels in chosen.items()]

    def result(self) -> Inspection:
        """The figures of all that was looked at, and the problems, most serious first."""
        summaries = []
        for key, feature in self.reader.features.items():
            running = self.running.get(key)
            summaries.append(
                FeatureSummary(key, feature, () if running is None else _figures(feature, running.figures))
            )
            if running is not None and key.startswith(("observation", "action")):
                self._judge(key, feature, running)
        self._judge_lengths()
        problems = [*self.told, *map(self._problem, self.places)]
        for remark, episodes in self.remarks.items():
            where = f"episode {episodes[0]}" + f" and {len(episodes) - 1} more" * (len(episodes) > 1)
            problems.append(replace(_note("set right", f"{remark} ({where})"), episodes=tuple(episodes)))
        if self.reader.fps is None:
            text = "the data set records no rate: speeds of joints and gaps between timestamps were not checked"
            problems.append(_note("no rate", text))
        reader = self.reader
        return Inspection(
            path=reader.path,
            format=reader.format,
            robot=reader.robot,
            fps=reader.fps,
            provenance=reader.provenance,
            bytes=_size(reader.path),
            lengths=self.lengths,
            episodes=reader.episodes,
            tasks=dict(self.tasks.most_common()),
            features=tuple(summaries),
            problems=tuple(sorted(problems, key=lambda problem: KINDS.index(problem.kind))),
            rows={key: running.figures.kept for key, running in self.running.items() if running.figures.rows},
            curves={key: tuple(curves) for key, curves in self.curves.items()},
            pictures=tuple(self.pictures),
        )

    def _judge(self, key: str, feature: Feature, running: _Running) -> None:
        """Finds entries that hardly vary and steps that are too large, now that the whole range is known."""
        figures = running.figures
        for entry in range(len(figures.count)):
            still = figures.count[entry] > 0 and figures.std[entry] < self.config.min_std
            if still and feature.dtype != "bool":
                kind = "constant" if figures.min[entry] == figures.max[entry] else "hardly varies"
                self._place(kind, key, entry).worst = float(figures.std[entry])
            if figures.count[entry] == 0 and key not in NEEDED and ("not finite", key, entry) in self.places:
                self.places["not finite", key, entry].harmless = True  # never recorded, and left out by conversion
            limit = float(running.max_step[entry])
            if math.isinf(limit):
                few = running.values[entry] is not None and not still
                if few or "gripper" in entry_name(feature, entry).lower() or figures.count[entry] == 0:
                    continue
                mean_step = running.step_sum[entry] / max(running.step_count[entry], 1)
                limit = max((figures.max[entry] - figures.min[entry]) / 2, 10 * mean_step)
                limit = max(limit, self.config.min_std) if still else limit
            for size, episode, frame in running.steps[entry]:
                if size > limit:
                    self._place("jump", key, entry).add(episode, frame, size)

    def _problem(self, place: tuple[ProblemKind, str | None, int | None]) -> Problem:
        kind, key, entry = place
        return problem_at(kind, key, self.reader.features[key] if key else None, entry, self.places[place])

    def _judge_lengths(self) -> None:
        shortest = max(float(self.config.min_frames), float(np.median([*self.lengths.values()] or [0])) / 10)
        for episode, length in self.lengths.items():
            if length < shortest:
                self._place("short").add(episode, 0, -length)


def _figures(feature: Feature, running: Accumulator) -> tuple[Entry, ...]:
    def entry(index: int) -> Entry:
        columns = (running.min, running.max, running.mean, running.std)
        figures = [float(column[index]) if np.isfinite(column[index]) else None for column in columns]
        figures = figures if running.count[index] else [None] * 4
        return Entry(entry_name(feature, index), entry_unit(feature, index), *figures)

    return tuple(entry(index) for index in range(len(running.count)))


def _measured(feature: Feature) -> bool:
    return not feature.is_camera and feature.entries <= WIDEST


def _angle(feature: Feature, entry: int) -> float:
    """Radians in the entry's unit; 0 where it is no angle."""
    return ANGLES.get(entry_unit(feature, entry), 0.0)


def _frames(frames: Column, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The wanted frames, in order; a camera is decoded no further than it must."""
    if isinstance(frames, np.ndarray):
        yield from (frames[place] for place in wanted)
        return
    found = 0
    for place, pixels in enumerate(islice(iter(frames), wanted[-1] + 1 if wanted else 0)):
        if place in wanted:
            found += 1
            yield pixels
    if found < len(wanted):
        raise DataError(f"expected {len(frames)} frames, the source ends before frame {wanted[found]}")


def _note(kind: ProblemKind, text: str, feature: str | None = None) -> Problem:
    return Problem(kind, text, feature, severity="note")


def _shown(pixels: np.ndarray) -> np.ndarray:
    """A frame as it can be shown: of depth the farther the brighter, black where nothing was measured."""
    if pixels.dtype == np.uint8:
        return pixels
    scaled = pixels.astype(np.float64) * (255.0 / max(int(pixels.max()), 1))
    return np.rint(scaled).astype(np.uint8).repeat(3, axis=-1)


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """The means of square blocks, so that no side is much longer than `THUMBNAIL`."""
    block = min(-(-max(pixels.shape[:2]) // THUMBNAIL), *pixels.shape[:2])
    height, width = pixels.shape[0] // block, pixels.shape[1] // block
    blocks = pixels[: height * block, : width * block].reshape(height, block, width, block, 3)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
