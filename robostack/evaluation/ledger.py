"""The folder of an evaluation while it is under way: whatever kills it, the episodes that ended are on disk.

    settings.json     written first: what determines the episodes, and where and when they were begun
    episodes.jsonl    a line as each episode ends, in the order of their seeds once all have
    summary.json      once all have
    videos/           after that
    report.html       last: an evaluation with a report is finished

The same evaluation into such a folder goes on with what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from robostack.common.files import read_json, read_text, room_needed, write_file
from robostack.common.provenance import describe_run
from robostack.common.serialize import from_json, to_json
from robostack.common.text import one_line
from robostack.evaluation.config import EPISODES, SETTINGS, SUMMARY, refuse_finished
from robostack.evaluation.rollout import Outcome

_START_OVER = "remove it, or choose another with --out"


@dataclass(frozen=True)
class EpisodeSettings:
    """What the episodes of an evaluation follow from: two with the same settings are one evaluation."""

    checkpoint: str
    """Name of the checkpoint, and a hash of what it says of itself."""
    env: str
    seed: int
    episodes: int
    execute_len: int | None
    ensemble: float | None
    target_return: float | None
    device: str


@dataclass(frozen=True)
class Circumstances:
    """Of a summary, what does not follow from its episodes."""

    wall_s: float
    """Seconds that the episodes took since the last start."""
    kept: int
    """Episodes of earlier starts."""
    command: str
    commit: str
    date: str
    machine: str


class Ledger:
    """Keeps what an evaluation found. `begun` says where and when it began (`describe_run`)."""

    def __init__(self, folder: Path, settings: EpisodeSettings) -> None:
        """Opens the folder for an evaluation with these settings, and reads the episodes that it holds already.

        Raises FileExistsError where the folder is taken or holds episodes of other settings, ValueError where what it
        holds is damaged.
        """
        self.folder, self.settings = folder, settings
        self.begun: Mapping[str, Any] = describe_run()
        self.episodes: list[Outcome] = []
        refuse_finished(folder)
        self._made = not folder.exists()
        if (folder / SETTINGS).exists():
            self._go_on()
        with self.room():
            folder.mkdir(parents=True, exist_ok=True)
            if not self.episodes:
                begun = {"settings": to_json(settings), "begun": self.begun}
                write_file(folder / SETTINGS, json.dumps(begun, indent=1) + "\n")
            self._write(self.episodes)  # without what a kill cut short
        self.kept = len(self.episodes)
        """Episodes of an earlier start."""

    @property
    def summarized(self) -> bool:
        """Whether all episodes ended before, and only films and the report are missing."""
        return (self.folder / SUMMARY).is_file()

    @property
    def missing(self) -> set[int]:
        """Seeds whose episodes have not ended."""
        first = self.settings.seed
        return set(range(first, first + self.settings.episodes)) - {episode.seed for episode in self.episodes}

    def append(self, episode: Outcome) -> None:
        """Puts an episode that has just ended on disk. Raises DiskFullError."""
        record = to_record(episode)
        with self.room(), (self.folder / EPISODES).open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.episodes.append(from_record(record))  # what is read after a kill is what is counted without one

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary, and the episodes in the order of their seeds. Raises DiskFullError."""
        self.episodes.sort(key=lambda episode: episode.seed)
        with self.room():
            self._write(self.episodes)
            write_file(self.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")

    def read_cost(self) -> dict[str, Any]:
        """What the summary that stands written says and its episodes do not. Raises ValueError where it is damaged."""
        path = self.folder / SUMMARY
        summary = read_json(path)
        try:
            return to_json(from_json(Circumstances, {name.name: summary[name.name] for name in fields(Circumstances)}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no summary of an evaluation ({one_line(error)}): {_START_OVER}") from error

    def abandon(self) -> None:
        """Leaves no trace of an evaluation that failed before its first episode ended."""
        if self.episodes or self.summarized:
            return
        for name in (EPISODES, SETTINGS):
            (self.folder / name).unlink(missing_ok=True)
        if self._made and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def room(self) -> AbstractContextManager[None]:
        """Within it a full disk is told in one line with what is kept."""
        return room_needed(self.folder, f"{self.standing()}; make room and give the same command again")

    def standing(self) -> str:
        """What is kept of the evaluation, in words."""
        if self.summarized:
            return "all episodes and their summary are kept, films and report are missing"
        return f"{len(self.episodes)} of {self.settings.episodes} episodes are kept"

    def how_to_go_on(self) -> str:
        """What an interrupt leaves, in words."""
        return f"{self.standing()}; the same command goes on" if self.episodes else "no episode had ended"

    def _go_on(self) -> None:
        path = self.folder / SETTINGS
        episodes = self._read_episodes() if (self.folder / EPISODES).exists() else []
        if not episodes and not self.summarized:
            return
        written = read_json(path)
        try:
            then = from_json(EpisodeSettings, written["settings"])
            begun = {key: str(written["begun"][key]) for key in ("command", "commit", "date", "machine")}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({one_line(error)}): {_START_OVER}") from error
        if then != self.settings:
            old, new = asdict(then), asdict(self.settings)
            differing = ", ".join(f"{key} {_shown(old[key])}, now {new[key]}" for key in old if old[key] != new[key])
            raise FileExistsError(
                f"{self.folder} already exists, with {len(episodes)} episodes of an evaluation with other settings "
                f"({differing}): give the same, or {_START_OVER}"
            )
        seeds = range(self.settings.seed, self.settings.seed + self.settings.episodes)
        if strange := [episode.seed for episode in episodes if episode.seed not in seeds]:
            raise ValueError(
                f"{self.folder / EPISODES} holds an episode of seed {strange[0]}, not asked for: {_START_OVER}"
            )
        self.begun, self.episodes = begun, episodes
        if self.summarized and self.missing:
            raise ValueError(f"{self.folder} has a summary and lacks {len(self.missing)} episodes: {_START_OVER}")

    def _read_episodes(self) -> list[Outcome]:
        path = self.folder / EPISODES
        *lines, _ = read_text(path).split("\n")  # a kill may have cut the last one short
        episodes: dict[int, Outcome] = {}
        for number, line in enumerate(lines, 1):
            try:
                episode = from_record(json.loads(line))
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is no episode ({one_line(error)}): {_START_OVER}") from error
            episodes.setdefault(episode.seed, episode)
        return list(episodes.values())

    def _write(self, episodes: list[Outcome]) -> None:
        lines = [json.dumps(to_record(episode)) + "\n" for episode in episodes]
        write_file(self.folder / EPISODES, "".join(lines))


def _shown(value: Any) -> str:
    return one_line(ValueError(value), longest=60)


def to_record(episode: Outcome) -> dict[str, Any]:
    """An episode as a line of episodes.jsonl."""
    latencies = [round(latency, 3) for latency in episode.latencies_ms]
    median = round(float(np.median(latencies)), 2) if latencies else None
    return {
        **asdict(replace(episode, latencies_ms=())),
        "chunks": len(latencies),
        "latency_ms_p50": median,
        "latencies_ms": latencies,
    }


def from_record(record: Mapping[str, Any]) -> Outcome:
    """Undoes `to_record`. Raises ValueError, KeyError or TypeError where it is none."""
    values = dict(record)
    del values["chunks"], values["latency_ms_p50"]
    return from_json(Outcome, values)
