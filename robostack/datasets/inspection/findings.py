"""What an inspection found: figures of every entry, problems with their place, and samples to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8

from robostack.datasets.episodes import Feature

# fmt: off
ProblemKind = Literal[
    "unreadable", "not finite", "no rate", "no task", "dropped frames", "off the rate", "not rising", "late start",
    "jump", "beyond limits", "short", "black image", "flat image", "frozen camera", "left out", "set right",
    "coarse times", "constant", "hardly varies",
]
# fmt: on
KINDS: tuple[ProblemKind, ...] = get_args(ProblemKind)
"""Most serious first."""
NOTES = ("no rate", "no task", "late start", "short", "left out", "set right", "coarse times", "constant")
NOTES += ("hardly varies",)
"""Kinds that sound data has too: good to know, and nothing to mend before training."""

Severity = Literal["problem", "note"]

STEPS_KEPT = 100
"""Of each entry, the largest steps are kept; as many jumps may be more."""


@dataclass(frozen=True)
class Problem:
    """A finding: where, and a line that tells it. Without `episodes` it holds for the whole data set."""

    kind: ProblemKind
    text: str
    feature: str | None = None
    entry: str | None = None
    episodes: tuple[int, ...] = ()
    """The one with the worst place first, the others in order."""
    frame: int | None = None
    """The worst place, in the first of `episodes`."""
    count: int = 1
    severity: Severity = "problem"
    """A problem is to be mended; a note is good to know."""


@dataclass(frozen=True)
class Entry:
    """Figures of one entry of a feature over all readable frames; None where not one value was finite."""

    name: str
    unit: str
    min: float | None
    max: float | None
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class FeatureSummary:
    """A feature and its entries; images and those that were not measured have none."""

    key: str
    feature: Feature
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Every `stride`-th row of a feature in one episode."""

    episode: int
    stride: int
    rows: Float[np.ndarray, "rows entries"]


@dataclass(frozen=True)
class Picture:
    """A camera's frame, made small."""

    camera: str
    episode: int
    frame: int
    pixels: UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Inspection:
    """All that was found. `rows` and `curves` by feature, and `pictures`, are there to be drawn."""

    path: Path
    format: str
    robot: str | None
    fps: float | None
    provenance: Mapping[str, Any]
    bytes: int
    lengths: Mapping[int, int]
    """Frames of every episode whose length is known."""
    episodes: int
    tasks: Mapping[str, int]
    """Task text to episodes with it, most first."""
    features: tuple[FeatureSummary, ...]
    problems: tuple[Problem, ...]
    """All findings, most serious first; `wrong` are those to mend."""
    rows: Mapping[str, Float[np.ndarray, "_ _"]]
    """Rows drawn evenly from all, in order, a bounded number."""
    curves: Mapping[str, tuple[Curve, ...]]
    pictures: tuple[Picture, ...]

    @property
    def frames(self) -> int:
        return sum(self.lengths.values())

    @property
    def wrong(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "problem")

    @property
    def notes(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "note")

    def to_json(self) -> dict[str, Any]:
        """Everything but what is only there to be drawn."""
        lengths = sorted(self.lengths.values()) or [0]
        return {
            "path": str(self.path),
            **{name: getattr(self, name) for name in ("format", "robot", "fps", "bytes", "episodes", "frames")},
            "lengths": {"min": lengths[0], "median": float(np.median(lengths)), "max": lengths[-1]},
            "tasks": dict(self.tasks),
            "features": {
                summary.key: {**asdict(summary.feature), "entries": [asdict(entry) for entry in summary.entries]}
                for summary in self.features
            },
            "problems": [asdict(problem) for problem in self.problems],
            "counts": {"problem": len(self.wrong), "note": len(self.notes)},
            "provenance": dict(self.provenance),
        }


@dataclass
class Occurrences:
    """Where something is met: how often, in which episodes, and the worst of it."""

    count: int = 0
    worst: float = -math.inf
    episode: int = 0
    frame: int = 0
    episodes: dict[int, None] = field(default_factory=dict)
    harmless: bool = False
    """Whether every place is within what data may do."""

    def add(self, episode: int, frame: int, worst: float = 0.0, count: int = 1) -> None:
        self.count += count
        self.episodes[episode] = None
        if worst > self.worst:
            self.worst, self.episode, self.frame = worst, episode, frame

    @property
    def ordered(self) -> tuple[int, ...]:
        return (self.episode, *sorted(self.episodes.keys() - {self.episode}))

    def __str__(self) -> str:
        others = len(self.episodes) - 1
        more = f" (and {others} more episode{'s' * (others > 1)})" if others else ""
        return f"frame {self.frame} of episode {self.episode}{more}"


def problem_at(
    kind: ProblemKind, key: str | None, feature: Feature | None, entry: int | None, places: Occurrences
) -> Problem:
    """The problem of one kind in one feature or entry, over all the places where it was met."""
    name = None if feature is None or entry is None else entry_name(feature, entry)
    unit = "" if feature is None or entry is None else entry_unit(feature, entry)
    text = _line(kind, " ".join(part for part in (key, name) if part), unit, places)
    # A last reward that nobody knew is common, and only policies that ask for returns need it.
    aside = kind == "not finite" and not (key or "").startswith(("observation.", "action"))
    severity = "note" if kind in NOTES or aside or places.harmless else "problem"
    if kind in ("constant", "hardly varies"):
        return Problem(kind, text, key, name, severity=severity)
    frame = None if kind in ("short", "coarse times") else places.frame
    return Problem(kind, text, key, name, places.ordered, frame, places.count, severity)


def _line(kind: ProblemKind, where: str, unit: str, places: Occurrences) -> str:
    """For people; `where` names feature and entry."""
    count, worst, plural = places.count, places.worst, "s" * (places.count != 1)
    many = len(places.episodes)
    episodes = f"{many} episode{'s' * (many != 1)}"
    return {
        "not finite": f"{where}: {count} value{plural} not finite; first: {places}",
        "no task": f"no task text in {episodes}; first: {places}",
        "dropped frames": f"{count} frame{plural} dropped; most ({worst:.0f}) before {places}",
        "off the rate": f"timestamps off the rate {count} time{plural}"
        f"{', by less than half a frame' * places.harmless}; worst by {worst:.2g} frames at {places}",
        "coarse times": f"timestamps of {episodes} are too coarse to tell frames apart, and were not checked",
        "not rising": f"timestamps do not rise {count} time{plural}; worst by {worst:.3g} s at {places}",
        "late start": f"timestamps of {episodes} do not start at 0; largest {worst:.3g} s in {places}",
        "jump": f"{where} jumps {'at least ' * (count >= STEPS_KEPT)}{count} time{plural}; "
        f"worst by {worst:.3g}{unit and ' ' + unit} to {places}",
        "beyond limits": f"{where}: {count} angle{plural} beyond a full turn; worst {worst:.3g} rad at {places}",
        "short": f"{episodes} too short; shortest: {-worst:.0f} frame{'' if worst == -1 else 's'} in "
        f"episode {places.episode}",
        "black image": f"{where} is black in {count} sampled frame{plural}; first: {places}",
        "flat image": f"{where} is of one colour in {count} sampled frame{plural}; first: {places}",
        "frozen camera": f"{where} shows the same as in the sampled frame before; first: {places}",
        "constant": f"{where} is constant",
        "hardly varies": f"{where} hardly varies (std {worst:.2g})",
    }[kind]


def entry_name(feature: Feature, entry: int) -> str:
    """The entry's name; its index where entries have none, nothing for a scalar."""
    return feature.entry_names[entry]


def entry_unit(feature: Feature, entry: int) -> str:
    """The entry's unit; nothing where it is not known."""
    return feature.units[entry] if len(feature.units) == feature.entries else ""
