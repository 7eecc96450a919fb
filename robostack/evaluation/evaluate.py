"""Evaluation of a policy or an expert: success with its interval, per-episode JSON, videos and a report page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robostack import envs
from robostack.evaluation.actors import Actor, ExpertActor, PolicyActor, TrainedExpertActor
from robostack.evaluation.config import EvalConfig
from robostack.evaluation.report import write_report
from robostack.evaluation.rollout import Episode, run_episodes
from robostack.extras import require_extra
from robostack.intervals import wilson_interval
from robostack.policies.checkpoint import Checkpoint
from robostack.provenance import describe_run
from robostack.runtime.chunks import newest, temporal_ensemble


@dataclass(frozen=True)
class Evaluation:
    """What came out: the summary has the fixed keys of the command line's JSON and more."""

    summary: dict[str, Any]
    episodes: tuple[Episode, ...]
    folder: Path


def evaluate(run: str, config: EvalConfig, report: Callable[[Episode], None] = lambda _: None) -> Evaluation:
    """Evaluates the run or checkpoint at `run`, of a policy or an expert, or the scripted expert if it is "expert".

    Writes summary.json, episodes.jsonl, videos/ and report.html. `report` is told about every episode as it ends.
    Raises ValueError for an unknown environment or seeds that the policy's demonstrations used, CheckpointError,
    FileExistsError when the folder of the results exists.
    """
    for module in ("av", "matplotlib"):
        require_extra(module, "report")
    envs.resolve(config.env)
    seeds = range(config.seed, config.seed + config.episodes)
    make_actor: Callable[[], Actor]
    scripted = run == "expert"
    if scripted or is_expert(run):
        _refuse_chunk_flags(config)
        folder = config.out or (Path(f"expert-{config.env}") if scripted else Path(run) / f"eval-{config.env}")
        name, training_log, execute_len = "expert", [], None
        make_actor = partial(ExpertActor, config.env) if scripted else partial(TrainedExpertActor, Path(run))
    else:
        checkpoint = Checkpoint.read(run)
        _keep_apart(seeds, checkpoint)
        folder = config.out or Path(run) / f"eval-{config.env}"
        name, training_log = checkpoint.policy, _training_log(checkpoint)
        make_actor = partial(_policy_actor, checkpoint.path, config)
        execute_len = config.execute_len or checkpoint.config.execute_len
    if folder.exists():
        raise FileExistsError(f"{folder} already exists: choose another with --out or remove it first")

    make_actor()  # what cannot be loaded is told here, in one line; in a worker it would be the pool's end

    begun, worlds = time.perf_counter(), envs.vector_class(config.env)
    episodes = []
    for episode in run_episodes(config.env, make_actor, seeds, config.workers):
        episodes.append(episode)
        report(episode)
    episodes.sort(key=lambda episode: episode.seed)
    summary = {
        **summarize(config.env, name, config.seed, episodes, worlds.highest_stage),
        "together": worlds.together,
        "execute_len": execute_len,
        "ensemble": config.ensemble,
        "target_return": config.target_return,
        "wall_s": round(time.perf_counter() - begun, 1),
        "task": envs.make(config.env).get_wrapper_attr("task"),
        **describe_run(),
    }
    folder.mkdir(parents=True)
    filmed = _film(config, make_actor, episodes, folder / "videos")
    records = [_record(episode) for episode in episodes]
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (folder / "episodes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_report(folder / "report.html", summary, records, training_log, filmed)
    return Evaluation(summary, tuple(episodes), folder)


def _refuse_chunk_flags(config: EvalConfig) -> None:
    names = ("execute_len", "ensemble", "target_return")
    if given := [name for name in names if getattr(config, name) is not None]:
        raise ValueError(f"{', '.join(given)} is for policies, and this is an expert: leave it out")


def is_expert(run: str) -> bool:
    """Whether a run or checkpoint is of `robostack expert`."""
    path = Path(run)
    return (path / "expert.json").is_file() or any(path.glob("checkpoints/*/expert.json"))


def _policy_actor(checkpoint: Path, config: EvalConfig) -> PolicyActor:
    blend = newest if config.ensemble is None else temporal_ensemble(config.ensemble)
    return PolicyActor(checkpoint, "cpu", config.execute_len, blend, config.target_return)


def summarize(env: str, policy: str, seed: int, episodes: Sequence[Episode], highest_stage: int) -> dict[str, Any]:
    """Shares with their 95 % Wilson intervals, how far episodes came, and the latency of a chunk: of all episodes that
    run `together`."""
    count = len(episodes)
    successes, finals = sum(e.success for e in episodes), sum(e.final for e in episodes)
    latencies = np.concatenate([e.latencies_ms for e in episodes])
    return {
        "env": env,
        "policy": policy,
        "episodes": count,
        "seed": seed,
        "success": successes / count,
        "success_interval": list(wilson_interval(successes, count)),
        "final": finals / count,
        "final_interval": list(wilson_interval(finals, count)),
        "mean_return": sum(e.total_reward for e in episodes) / count,
        "latency_ms_p50": round(float(np.quantile(latencies, 0.50)), 2),
        "latency_ms_p95": round(float(np.quantile(latencies, 0.95)), 2),
        "stages": {str(s): sum(e.stage_max == s for e in episodes) for s in range(highest_stage + 1)},
    }


def _keep_apart(seeds: range, checkpoint: Checkpoint) -> None:
    for data in checkpoint.training["data"]:
        first, last = data["seeds"] or (0, -1)
        if max(first, seeds[0]) <= min(last, seeds[-1]):
            raise ValueError(
                f"the policy was trained on demonstrations of seeds {first} to {last}, and evaluation asked for "
                f"{seeds[0]} to {seeds[-1]}: choose a --seed above {last}"
            )


def _training_log(checkpoint: Checkpoint) -> list[dict[str, float]]:
    path = checkpoint.path.parent.parent / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _film(
    config: EvalConfig, make_actor: Callable[[], Actor], episodes: Sequence[Episode], folder: Path
) -> list[tuple[Path, str, bool]]:
    """Runs the first successes and failures again, filmed: an episode is its seed, so it comes out the same."""
    succeeded = [e for e in episodes if e.success and e.final][: config.videos]
    failed = [e for e in episodes if not e.success][: config.videos]
    lost = [e for e in episodes if e.success and not e.final][: config.videos]
    chosen = [*failed, *lost, *succeeded]
    if not chosen:
        return []
    folder.mkdir()
    videos = {e.seed: folder / f"{e.seed}.mp4" for e in chosen}
    seeds = range(config.seed, config.seed + config.episodes)
    for again in run_episodes(config.env, make_actor, seeds, config.workers, videos):
        before = next(e for e in chosen if e.seed == again.seed)
        if replace(again, latencies_ms=()) != replace(before, latencies_ms=()):
            raise RuntimeError(f"the episode of seed {again.seed} came out differently when it was run again")
    return [(folder / f"{e.seed}.mp4", _caption(e), e.success and e.final) for e in chosen]


def _caption(episode: Episode) -> str:
    if episode.diverged_step is not None:
        return f"Seed {episode.seed}: failed, the simulation diverged at step {episode.diverged_step}"
    if not episode.success:
        return f"Seed {episode.seed}: failed, reached stage {episode.stage_max}"
    held = "held to the end" if episode.final else "lost again before the end"
    return f"Seed {episode.seed}: success at step {episode.first_success_step}, {held}"


def _record(episode: Episode) -> Mapping[str, Any]:
    values = asdict(episode)
    latencies = values.pop("latencies_ms")
    return {**values, "chunks": len(latencies), "latency_ms_p50": round(float(np.median(latencies)), 2)}
