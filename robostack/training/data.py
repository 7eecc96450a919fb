"""What `--data` names, as data sets that can be trained on: robostack's own, or others converted into a cache."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

from robostack.common.files import read_json, write_file
from robostack.common.text import one_line
from robostack.datasets.episodes import DataError
from robostack.datasets.formats import detect
from robostack.datasets.formats.convert import ConvertConfig, Progress, convert
from robostack.datasets.store import EpisodeStore
from robostack.datasets.timing import check_times, resolves
from robostack.training.config import TrainConfig

SOURCE_FILE = "source.json"
"""In a cache: what it was converted from, as it was then."""


def open_stores(train: TrainConfig, report: Callable[[Progress], None] = lambda _: None) -> list[EpisodeStore]:
    """The data sets of a run; `report` is told how far a conversion is.

    Raises DataError where there is none, or one in another format and no conversion is asked for, or where recorded
    times do not keep the rate; and as `convert`.
    """
    stores = [EpisodeStore(_own(path, train.convert, report)) for path in train.data]
    for store in stores:
        _check_times(store)
    return stores


def _check_times(store: EpisodeStore) -> None:
    """Holds what a store records of its frames' times to the bound of conversion and inspection: windows are cut by
    counting frames."""
    if "timestamp" not in store.features or store.features["timestamp"].entries != 1:
        return
    bounds = zip(store.episode_starts.tolist(), store.episode_ends.tolist(), strict=True)
    for episode, (start, end) in enumerate(bounds):
        times = store.read("timestamp", start, end).reshape(-1)
        if not resolves(times, store.fps):
            continue
        try:
            check_times(times, store.fps)
        except DataError as error:
            raise DataError(f"{store.path}, episode {episode}: {error}") from error


def _own(path: Path, converted: bool, report: Callable[[Progress], None]) -> Path:
    if not path.exists():
        raise DataError(f"{path} is not a robostack data set: it does not exist{_hub(path)}")
    if path.is_dir() and next(path.iterdir(), None) is None:
        raise DataError(f"{path} is not a robostack data set: it is an empty folder")
    if (found := detect(path).name) == "robostack":
        return path
    if not converted:
        raise DataError(
            f"{path} is a data set in the format {found}: robostack convert {path} NEW makes one to train on, or "
            "train with --convert"
        )
    return _cached(path, report)


def _hub(path: Path) -> str:
    """What is to be said of a path that looks like a name of the Hugging Face hub."""
    name = "/".join(path.parts[-2:])
    if path.parent.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return ""
    return (
        "; only local folders are read: download a data set of the Hugging Face hub first, with "
        f"hf download {name} --repo-type dataset --local-dir {path.name}"
    )


def _cached(path: Path, report: Callable[[Progress], None]) -> Path:
    """The conversion of `path` that lies beside it, made where there is none."""
    cache, source = path.with_name(f"{path.name}.robostack"), _fingerprint(path)
    if not cache.exists() or (cache.is_dir() and next(cache.iterdir(), None) is None):
        try:
            convert(ConvertConfig(path, cache), report)
        except ValueError as error:
            by_hand = f"convert it with robostack convert {path} NEW and its flags, then train on NEW"
            raise DataError(f"{path} cannot be converted as it is ({one_line(error)}): {by_hand}") from error
        write_file(cache / SOURCE_FILE, json.dumps(source) + "\n")
    elif not (cache / SOURCE_FILE).exists() or read_json(cache / SOURCE_FILE) != source:
        raise DataError(f"{cache} was not made of {path} as it is now: remove it, and --convert makes it anew")
    return cache


def _fingerprint(path: Path) -> dict[str, str]:
    """Of names, sizes and times of all files: their content may be hundreds of gigabytes."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found = file.stat()
            digest.update(f"{file.relative_to(path)}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="replace"))
    return {"files": digest.hexdigest()}
