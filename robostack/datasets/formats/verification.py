"""Whether a converted data set is what its source is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robostack.datasets.episodes import Column, Episode, EpisodeReader, Feature

LOSSY_BOUND = 12.0
"""Grey levels of 255 by which a frame of a lossy target may differ on average: another frame of a moving scene, or
swapped colours, differ by more; AV1, H.264 and JPEG at their usual quality by 1 to 5."""


class VerificationError(RuntimeError):
    """The result is not what its source is."""


@dataclass(frozen=True)
class Verified:
    """What was compared."""

    frames: int
    actions_sha256: str
    """Of the result's actions; empty where there are none."""
    remarks: Mapping[str, tuple[int, ...]]
    """What the reader of the source set right, and in which of its episodes."""


def verify(
    read: Callable[[int], Episode],
    kept: Sequence[int],
    features: Mapping[str, Feature],
    result: EpisodeReader,
    bound: float,
    report: Callable[[int], None] = lambda done: None,
) -> Verified:
    """Compares a result with its source: episodes, lengths, tasks, every number of `features`, and of a few episodes
    the first and last frame of each camera; those of depth exactly, of colour within `bound` grey levels on average.

    `read` gives an episode of the source as it should be in the result, `kept` names those that are in it, in order,
    and `report` is told how many were compared. Raises VerificationError, which says where, when the result is another.
    """
    if result.episodes != len(kept):
        raise _differs(result.path, f"expected {len(kept)} episodes, got {result.episodes}")
    with_pictures = {0, len(kept) // 2, len(kept) - 1}
    expected, actions, frames = hashlib.sha256(), hashlib.sha256(), 0
    remarks: dict[str, list[int]] = {}
    for i, episode in enumerate(kept):
        source, copy = read(episode), result.read_episode(i)
        where = f"episode {episode}"
        if list(source.task) != list(copy.task):
            raise _differs(result.path, f"{where}: other task texts")
        for key, column in source.columns.items():
            if key not in copy.columns or len(copy.columns[key]) != len(column):
                raise _differs(result.path, f"{where}: {key} is missing or of another length")
            if not features[key].is_camera:
                if not _same_numbers(np.asarray(column), np.asarray(copy.columns[key])):
                    raise _differs(result.path, f"{where}: {key}")
            elif i in with_pictures:
                allowed = bound if features[key].is_image else 0.0
                if problem := _difference(column, copy.columns[key], allowed):
                    raise _differs(result.path, f"{where}: {key}: {problem}")
        if "action" in source.columns:
            written = np.asarray(copy.columns["action"])
            expected.update(np.ascontiguousarray(source.columns["action"], written.dtype).tobytes())
            actions.update(np.ascontiguousarray(written).tobytes())
        frames += len(source.task)
        for remark in source.remarks:
            remarks.setdefault(remark, []).append(episode)
        report(i + 1)
    if expected.digest() != actions.digest():
        raise _differs(result.path, "the hash of the actions")
    digest = actions.hexdigest() if "action" in features else ""
    return Verified(frames, digest, {remark: tuple(episodes) for remark, episodes in remarks.items()})


def _same_numbers(source: np.ndarray, copy: np.ndarray) -> bool:
    # Some formats hold no scalars, or not every type: then (T, 1) stands for (T,), and values are rounded to the type.
    return source.size == copy.size and np.array_equal(source.astype(copy.dtype).reshape(copy.shape), copy)


def _difference(source: Column, copy: Column, bound: float) -> str | None:
    for name, one, other in zip(("first", "last"), _ends(source), _ends(copy), strict=True):
        difference = np.abs(one.astype(np.int32) - other).mean() if one.shape == other.shape else math.inf
        if difference > bound:
            return f"the {name} frame, by {difference:.1f} grey levels, allowed are {bound:g}"
    return None


def _ends(column: Column) -> tuple[np.ndarray, np.ndarray]:
    frames = iter(column)
    first = last = next(frames)
    for frame in frames:
        last = frame
    return first, last


def _differs(path: Path, what: str) -> VerificationError:
    return VerificationError(f"{path} differs from its source: {what}: remove {path.parent} and convert again")
