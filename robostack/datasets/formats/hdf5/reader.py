"""Recordings in HDF5: ALOHA's, Mobile ALOHA's, robomimic's, LIBERO's, ManiSkill's, and others of their kind.

An episode is a file, or a group of one; `layout` says what its arrays are called. Numbers keep their type.

ALOHA's JPEGs come from `cv2.imencode` of the array as it is and go back through `cv2.imdecode`, which both take arrays
for BGR. To any other program the file's red is therefore the array's last channel, so channels are reversed here after
decoding: frames have the channel order of the array that was recorded.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robostack.common.extras import require_extra
from robostack.common.text import one_line
from robostack.datasets.episodes import (
    IMAGES,
    Column,
    DataError,
    EmptyEpisodeError,
    Episode,
    Feature,
    FeatureError,
    Frames,
)
from robostack.datasets.formats.hdf5.files import (
    arrays_below,
    attribute,
    check_array,
    files_of,
    member,
    names,
    opened,
    read_rows,
    text,
)
from robostack.datasets.formats.hdf5.layout import (
    ACTIONS,
    ARRAYS,
    BASE,
    OBSERVATIONS,
    StoredPictures,
    feature_of,
    key_of,
    with_base,
)

if TYPE_CHECKING:
    import h5py

_Keyed = Mapping[str, tuple[str, "h5py.Dataset"]]
"""The arrays of an episode by the names of their features: (path, array)."""
_KNOWN = ("compress_len", "language_instruction")
"""What is no feature, and needs no word."""


@dataclass(frozen=True)
class _Place:
    """Where an episode stands."""

    file: Path
    group: str


class Hdf5Reader:
    """Reads a folder of HDF5 files, or one, episodes in natural order: a file is one, or each of its groups.

    Features are those of all episodes together; `drop` leaves some out. An episode without frames is left out with a
    remark, and what is no feature is named in `left_out`.
    """

    def __init__(self, path: str | Path, drop: Sequence[str] = ()) -> None:
        require_extra("h5py", "data")
        self.path, self._drop = Path(path), frozenset(drop)
        self.left_out: dict[str, str] = {}
        self.fps: float | None = None
        self.robot: str | None = None
        self.provenance: Mapping[str, Any] = {}
        self.format = ""
        self._known: dict[str, Feature] = {}
        self._places: list[_Place] = []
        remarks: list[str] = []
        errors: list[DataError] = []
        counts: Counter[str] = Counter()
        files = files_of(self.path)
        for file in files:
            try:
                groups = _groups(file)
            except DataError as error:
                groups = [""]
                errors.append(DataError(f"{file}: {error}"))
            for group in groups:
                self._places.append(_Place(file, group))
                try:
                    with self._open(len(self._places) - 1) as root:
                        keys = self._look(root)
                except DataError as error:
                    errors.append(error)
                    continue
                if keys is None:
                    remarks.append(f"{file}{group and f', {group}'} has no frames: the episode is left out")
                    self._places.pop()
                else:
                    counts.update(keys)
        if not self._known:
            told = errors[0] if errors else "they have no frames"
            raise DataError(f"{path}: none of {len(files)} episodes can be read; the first: {told}")
        self._base = self._join_base(counts)
        for key, count in counts.items():
            if key in self._known and 2 * count <= (most := max(counts.values())):
                del self._known[key]
                self.left_out[key] = f"is in {count} of {most} episodes"
        self.left_out = {key: why for key, why in self.left_out.items() if key not in self._known}
        self.remarks = tuple(remarks)
        has = {key: feature for key, feature in self._known.items() if key not in drop}
        # Numbers, cameras, what was done: as a reader of a list looks for them.
        rank = {key: i for i, key in enumerate(ARRAYS)} | {"action": 100}
        order = sorted(has, key=lambda key: (rank.get(key, 50 + key.startswith(IMAGES)), key))
        self.features: Mapping[str, Feature] = {key: has[key] for key in order}
        if unknown := sorted(self._drop - {*self._known, *self.left_out}):
            raise DataError(f"{path} has no {', '.join(unknown)} to drop: it has {', '.join(order)}")
        self.left_out = {key: why for key, why in self.left_out.items() if key not in drop}
        self.provenance = {"source": {**self.provenance, "not_read": sorted(self.left_out)}}

    @property
    def episodes(self) -> int:
        return len(self._places)

    def select(self, keys: Collection[str]) -> None:
        self.features = {key: feature for key, feature in self.features.items() if key in keys}

    def length(self, episode: int) -> int:
        with self._open(episode) as root:
            return self._length(_keyed(root)[0])[0]

    def read_episode(self, episode: int) -> Episode:
        with self._open(episode) as root:
            keyed, where = _keyed(root)[0], self._where(episode)
            if (fps := _rate(root)) != self.fps:
                raise DataError(f"expected {self.fps} frames a second as in the episodes before, got {fps}")
            if "action" in keyed:
                check_array(*keyed["action"])
            length, remarks = self._length(keyed)
            if missing := [key for key in self.features if key not in keyed]:
                raise DataError(f"lacks {', '.join(missing)}, which other episodes have: leave the episode out")
            columns: dict[str, Column] = {}
            for key, feature in self.features.items():
                name, array = keyed[key]
                rows = len(array) if array.shape else 0
                if rows not in (length, length + 1):
                    raise FeatureError(key, f"has {rows} frames, action {length}: leave the episode out", where)
                check_array(name, array)
                columns[key] = (self._camera if feature.is_camera else self._numbers)(episode, key, keyed, length)
            return Episode(columns, [_task(root)] * length, remarks)

    def _camera(self, episode: int, key: str, keyed: _Keyed, length: int) -> Frames:
        (name, array), where = keyed[key], self._where(episode)
        pictures = StoredPictures.of(name, array, _is_aloha(array))
        if pictures is None:
            raise FeatureError(key, f"is no camera here, got {array.shape} {array.dtype}", where)
        try:
            first = _first(array, pictures)
        except DataError as error:
            raise DataError(f"{key}, frame 0: {error}") from error
        if first.shape[2:] != self.features[key].shape[2:]:
            raise FeatureError(key, "is of colours in one episode and of depth in another", where)
        read = partial(self._frames, episode, key, length)
        return Frames((length, *first.shape), read, dtype=first.dtype, where=f"{where}, {key}")

    def _numbers(self, episode: int, key: str, keyed: _Keyed, length: int) -> np.ndarray:
        name, array = keyed[key]
        feature = self.features[key]
        if array.dtype.kind not in "fiub":
            told = f"expected numbers (frames, entries), got {array.dtype}"
            raise DataError(f"action: {told}") if key == "action" else FeatureError(key, told, self._where(episode))
        rows = read_rows(name, array)[:length]
        if key == "action" and self._base:
            if BASE not in keyed:
                raise DataError(f"lacks /{BASE}, which other episodes have")
            check_array(*keyed[BASE])
            base = read_rows(*keyed[BASE])[:length]
            if base.shape != (length, 2) or rows.ndim != 2:
                raise DataError(f"{BASE}: expected numbers ({length}, 2), got {base.shape}")
            rows = np.concatenate([rows, base], axis=1)
        if (rows.shape[1:], rows.dtype.name) != (feature.shape, feature.dtype):
            told = f"expected {feature.shape} {feature.dtype}, got {rows.shape[1:]} {rows.dtype}"
            if key == "action":
                raise DataError(f"action: {told}")
            raise FeatureError(key, f"is not as in other episodes: {told}", self._where(episode))
        return rows

    def _frames(self, episode: int, key: str, length: int) -> Iterator[np.ndarray]:
        with self._open(episode) as root:
            name, array = _keyed(root)[0][key]
            pictures = StoredPictures.of(name, array, _is_aloha(root))
            if pictures is None:
                raise DataError(f"{key} is no camera any more: it was changed while it was read")
            pictures = pictures.scaled(array)
            is_plain = array.dtype == np.uint8 and pictures.form is not None and pictures.form.channel_axis == 2
            is_plain = is_plain and array.shape[3:] == (3,)
            for i, picture in enumerate(pictures.all(array)):
                if i == length:
                    return
                try:
                    yield picture if is_plain else pictures.one(picture)
                except DataError as error:
                    raise DataError(f"{key}, frame {i}: {error}") from error

    def _look(self, root: h5py.Group) -> set[str] | None:
        """Learns what of an episode was not seen before; gives the names of its features, None where it has no
        frames."""
        keyed, aside = _keyed(root)
        if keyed and all(not array.shape or not len(array) for _, array in keyed.values()):
            return None
        if not keyed:
            raise DataError(f"lacks /action: it has {', '.join(names(root)) or 'nothing'}")
        if not self._known:
            self.format, self.fps, self.robot = _format(root), _rate(root), _robot(root)
            sim = attribute(root, "sim")
            self.provenance = {"format": self.format, "sim": None if sim is None else bool(sim)}
        self.left_out.update({key_of(path): why for path, why in aside.items()})
        for key, (name, array) in keyed.items():
            if key in self._known:
                continue
            try:
                check_array(name, array)
                self._known[key] = feature_of(name, array, _is_aloha(root), partial(_first, array))
            except (OSError, TypeError, ValueError) as error:  # another episode may have it whole
                if key == "action":
                    raise
                self.left_out[key] = one_line(error)
        return {key for key in keyed if key in self._known}

    def _join_base(self, counts: Counter[str]) -> bool:
        """Whether the base's action joins that of the arms: where every episode has it."""
        base, action, episodes = self._known.pop(BASE, None), self._known.get("action"), max(counts.values())
        if base is None or action is None:
            return False
        if counts[BASE] == episodes and base.shape == (2,) and len(action.shape) == 1:
            self._known["action"] = with_base(action, base)
            return True
        self.left_out[BASE] = f"is in {counts[BASE]} of {episodes} episodes, with entries {base.shape}"
        return False

    def _length(self, keyed: _Keyed) -> tuple[int, tuple[str, ...]]:
        """The frames of an episode, and a word on the features that have one row more."""
        rows = {key: len(array) if array.shape else 0 for key, (_, array) in keyed.items() if key in self._known}
        if "action" not in self._known:
            return min(rows.values(), default=0), ()
        if "action" not in rows:
            raise DataError("lacks /action: record it or leave the episode out")
        length, observed = rows["action"], {key: n for key, n in rows.items() if key.startswith("observation.")}
        states = {rows["observation.state"]} if "observation.state" in rows else {*observed.values()}
        if states == {length - 1} and length > 1:
            length -= 1
            return length, ("action has one row more than the observations: its last is left out",)
        if set(observed.values()) == {length + 1}:
            return length, ("observations have one row more than action: their last is left out",)
        longer = ", ".join(sorted(key for key, n in rows.items() if n == length + 1))
        return length, (f"{longer} has one row more than action: its last is left out",) if longer else ()

    def _where(self, episode: int) -> str:
        place = self._places[episode]
        return f"{place.file}{place.group and f', {place.group}'}, episode {episode}"

    @contextmanager
    def _open(self, episode: int) -> Iterator[h5py.Group]:
        """The group of an episode. What goes wrong within is told with its place."""
        if not 0 <= episode < len(self._places):
            raise IndexError(f"episode {episode} of {len(self._places)}")
        import h5py

        place = self._places[episode]
        try:
            if place.file.is_file() and not place.file.stat().st_size:
                raise EmptyEpisodeError(f"{self._where(episode)} is truncated or damaged: the file is empty")
            with opened(place.file) as file:
                root = member(file, place.group) if place.group else file
                if not isinstance(root, h5py.Group):
                    raise DataError(f"lacks /{place.group}")
                yield root
        except (FeatureError, EmptyEpisodeError):
            raise
        except DataError as error:
            if str(error).startswith("it is truncated"):
                raise DataError(f"{self._where(episode)}{str(error).removeprefix('it')}") from error
            raise DataError(f"{self._where(episode)}: {error}") from error


def _groups(file: Path) -> list[str]:
    """The episodes of a file: "", the file itself, or its groups."""
    import h5py

    with opened(file) as root:
        if any(name in (*ACTIONS, *OBSERVATIONS) for name in root):
            return [""]
        for base in ("data", ""):
            group = member(root, base) if base else root
            if not isinstance(group, h5py.Group):
                continue
            found = [name for name in names(group) if _is_episode(group, name)]
            if found:
                return [f"{base}/{name}" if base else name for name in found]
        raise DataError(f"lacks /action: it has {', '.join(names(root)) or 'nothing'}")


def _is_episode(group: h5py.Group, name: str) -> bool:
    import h5py

    try:
        one = member(group, name)
    except DataError:  # a link out of the file
        return False
    return isinstance(one, h5py.Group) and any(inner in (*ACTIONS, *OBSERVATIONS) for inner in one)


def _keyed(root: h5py.Group) -> tuple[_Keyed, dict[str, str]]:
    """The arrays of an episode, (path, array), by the names of their features, and what is left aside and why."""
    found, aside = arrays_below(root)
    keyed: dict[str, tuple[str, Any]] = {}
    for path, array in found.items():
        if path in _KNOWN or attribute(array, "not_recorded") is not None:
            continue
        if path.startswith("next_obs/"):
            aside["next_obs"] = "the observations once more, a frame later"
            continue
        key = key_of(path)
        if key in keyed:  # two groups of depth have a camera of one name
            key = f"{key.removesuffix('_depth')}_{path.split('/')[1]}" if path.count("/") > 1 else key
        if key in keyed:
            aside[path] = f"would have the name of /{keyed[key][0]}: rename one"
        else:
            keyed[key] = (path, array)
    return keyed, aside


def _first(array: h5py.Dataset, pictures: StoredPictures) -> np.ndarray:
    return pictures.scaled(array).one(next(pictures.all(array)))


def _is_aloha(within: h5py.Group | h5py.Dataset) -> bool:
    return within.file.id.links.exists(b"observations")


def _format(root: h5py.Group) -> str:
    name = (root.name or "/").rsplit("/", 1)[-1]
    known = {"": "ALOHA", "demo": "robomimic", "traj": "ManiSkill"}
    return f"{known.get(name.split('_')[0], '')} HDF5".strip()


def _above(root: h5py.Group) -> list[Any]:
    """The group of an episode, and those that hold it."""
    return [root] if root.name in ("/", None) else [root, root.parent, root.file]


def _rate(root: h5py.Group) -> float | None:
    value: Any = attribute(root, "fps")
    if value is None:
        value = _described(root, "env_args").get("env_kwargs", {}).get("control_freq")
    if value is None:
        return None
    fps = float(value)
    if not (math.isfinite(fps) and fps > 0):
        raise DataError(f"attribute fps: expected frames a second, got {fps}")
    return fps


def _robot(root: h5py.Group) -> str | None:
    value = attribute(root, "robot")
    if value is None:
        value = _described(root, "env_args").get("env_kwargs", {}).get("robots")
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        return value if isinstance(value, str) else None
    return text(value, "robot")


def _described(root: h5py.Group, name: str) -> dict[str, Any]:
    """What robomimic and LIBERO write beside their demonstrations, as JSON in an attribute."""
    for group in _above(root):
        if (value := attribute(group, name)) is not None:
            described = json.loads(text(value, f"attribute {name}"))
            kwargs = described.get("env_kwargs") if isinstance(described, dict) else {}
            if not isinstance(described, dict) or not isinstance(kwargs or {}, dict):
                raise DataError(f"attribute {name}: expected an object")
            return {**described, "env_kwargs": kwargs or {}}
    return {}


def _task(root: h5py.Group) -> str:
    values: list[Any] = [attribute(root, "task"), attribute(root, "language_instruction")]
    if root.id.links.exists(b"language_instruction"):
        told: Any = member(root, "language_instruction")
        check_array("language_instruction", told)
        values.append(told[()])
    values.append(_described(root, "problem_info").get("language_instruction"))
    return next((text(value, "the task") for value in values if value is not None), "")
