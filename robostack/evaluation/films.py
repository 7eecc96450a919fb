"""Films of an evaluation: some of its episodes run again, with a camera."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robostack.common.files import is_disk_full
from robostack.common.text import one_line
from robostack.evaluation.actors import Actor
from robostack.evaluation.config import EvalConfig
from robostack.evaluation.rollout import Outcome, run_episodes


@dataclass(frozen=True)
class Film:
    """An mp4 file and what it shows."""

    path: Path
    caption: str
    went_right: bool
    """Of the episode that the evaluation counts, whatever the film shows."""


def film(
    config: EvalConfig,
    make_actor: Callable[[], Actor],
    episodes: Sequence[Outcome],
    folder: Path,
    told: Callable[[int, int], None],
) -> tuple[list[Film], str]:
    """Runs the first successes and failures again, filmed; gives the films and what is to be said of them, or "".

    An episode is its seed, so it comes out the same; where it does not, as on a GPU it may, a warning and its caption
    say so. Where there can be no film a warning says why: the evaluation stands. `told` hears how many of how many are
    done. Raises whatever a full disk raises.
    """
    chosen = choose(episodes, config.videos)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier start
    if not chosen:
        return [], ""
    told(0, len(chosen))
    folder.mkdir(exist_ok=True)
    paths = {episode.seed: folder / f"{episode.seed}.mp4" for episode in chosen}
    shown: dict[int, Outcome] = {}
    said = ""
    try:
        seeds = range(config.seed, config.seed + config.episodes)
        for episode in run_episodes(config.env, make_actor, seeds, config.workers, paths):
            shown[episode.seed] = episode
            told(len(shown), len(chosen))
    except Exception as error:
        if is_disk_full(error):
            raise
        said = f"{len(chosen) - len(shown)} of {len(chosen)} films could not be made: {one_line(error)}"
        warnings.warn(said, stacklevel=2)
    films = [_film(episode, shown[episode.seed], paths[episode.seed]) for episode in chosen if episode.seed in shown]
    if not films:
        shutil.rmtree(folder, ignore_errors=True)
    return films, said


def choose(episodes: Sequence[Outcome], most: int) -> list[Outcome]:
    """At most so many failures, successes that were lost again, and successes that held."""
    failed = [e for e in episodes if not e.success][:most]
    lost = [e for e in episodes if e.success and not e.final][:most]
    held = [e for e in episodes if e.success and e.final][:most]
    return [*failed, *lost, *held]


def _film(counted: Outcome, shown: Outcome, path: Path) -> Film:
    caption = caption_of(counted)
    if replace(shown, latencies_ms=()) != replace(counted, latencies_ms=()):
        warnings.warn(
            f"the episode of seed {counted.seed} came out differently when it was run again for the film; the result "
            "counts the first run",
            stacklevel=3,
        )
        caption += f". Run again for this film it came out differently: {_outcome(shown)}"
    return Film(path, caption, counted.success and counted.final)


def caption_of(episode: Outcome) -> str:
    """What became of a seed, in words."""
    return f"Seed {episode.seed}: {_outcome(episode)}"


def _outcome(episode: Outcome) -> str:
    if episode.diverged_step is not None:
        return f"failed, the simulation diverged at step {episode.diverged_step}"
    if not episode.success:
        return f"failed, reached stage {episode.stage_max}"
    held = "held to the end" if episode.final else "lost again before the end"
    return f"success at step {episode.first_success_step}, {held}"
