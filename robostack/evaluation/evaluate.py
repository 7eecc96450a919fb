"""Evaluation of a policy or an expert: success with its interval, per-episode JSON, videos and a report page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robostack import envs
from robostack.common.extras import require_extra
from robostack.common.interrupt import saying
from robostack.common.intervals import wilson_interval
from robostack.common.processes import cores
from robostack.common.provenance import describe_run
from robostack.common.serialize import to_json
from robostack.core.devices import pick_device
from robostack.evaluation.about import describe_training, keep_apart, name_checkpoint, read_log_beside
from robostack.evaluation.actors import Actor, ExpertActor, PolicyActor, load_actor
from robostack.evaluation.config import REPORT, SCRIPTED, EvalConfig, refuse_finished, results_folder
from robostack.evaluation.films import film
from robostack.evaluation.ledger import Circumstances, EpisodeSettings, Ledger, to_record
from robostack.evaluation.rollout import Outcome, run_episodes
from robostack.experts import trained_expert
from robostack.policies.checkpoint import Checkpoint
from robostack.runtime.chunks import newest_chunk, temporal_ensemble

Record = Mapping[str, Any]
Video = tuple[Path, str, bool]
"""An mp4 file, its caption, whether it went right."""
PageWriter = Callable[[Path, Record, Sequence[Record], Sequence[Record], Sequence[Video]], None]
"""(page, summary, episodes, training log, videos): as `pages.evaluation.write_report`."""
GPU_BYTES_OF_A_PROCESS = 2 << 30
"""What CUDA and torch's workspaces take beside the weights."""


@dataclass(frozen=True)
class Evaluation:
    """What came out: the summary has the fixed keys of the command line's JSON and more."""

    summary: dict[str, Any]
    episodes: tuple[Outcome, ...]
    folder: Path


@dataclass(frozen=True)
class _Subject:
    """Who is evaluated."""

    name: str
    make_actor: Callable[[], Actor]
    settings: EpisodeSettings


def evaluate(
    run: str,
    config: EvalConfig,
    report: Callable[[Outcome], None] = lambda _: None,
    told: Callable[[str, int, int], None] = lambda what, done, of: None,
    *,
    write_page: PageWriter,
) -> Evaluation:
    """Evaluates the run or checkpoint at `run`, of a policy or an expert, or the scripted expert if it is "expert".

    Every episode is on disk when it ends; summary.json, videos/ and report.html, which `write_page` writes, follow.
    Interrupted, the same evaluation goes on where it was. `report` is told about every episode, those of an earlier
    start too, `told` how far films and page are: (what, done, of how many).

    Raises ValueError for an unknown environment or seeds that the policy's demonstrations used, CheckpointError,
    FileExistsError when the folder of the results holds a finished evaluation, one with other settings or anything
    else, DiskFullError.
    """
    if config.videos:
        require_extra("av", "report")
    envs.resolve(config.env)
    subject, folder = _subject(run, config), results_folder(run, config)
    refuse_finished(folder)
    actor = subject.make_actor()  # what cannot be loaded is told here; in a worker it would be the pool's end
    if isinstance(actor, PolicyActor) and config.workers == 0:
        config = replace(config, workers=workers_on(torch.device(subject.settings.device), actor.agent.parameters))
    make_actor = (lambda: actor) if config.workers == 1 else subject.make_actor
    about, log, log_said = _describe_env(config.env), [], ""
    if isinstance(actor, PolicyActor):
        about["training"] = describe_training(actor.agent.checkpoint, actor.agent.parameters)
        log, log_said = read_log_beside(actor.agent.checkpoint.path)

    ledger = Ledger(folder, subject.settings)
    with saying(ledger.how_to_go_on):
        if ledger.summarized:  # only films and page are missing
            summary = _summary(config, subject, ledger) | ledger.read_cost() | about
        else:
            seconds = _run(config, make_actor, ledger, report)
            summary = _summary(config, subject, ledger) | _cost(ledger, seconds) | about
            ledger.finish(summary)
        with ledger.room():
            begun = time.perf_counter()
            films, film_said = film(config, make_actor, ledger.episodes, folder / "videos", partial(told, "filming"))
            told("writing the page", 0, 1)
            page = summary | {
                "films_s": time.perf_counter() - begun if films else None,
                "notes": [said for said in (log_said, film_said) if said],
            }
            videos = [(one.path, one.caption, one.went_right) for one in films]
            write_page(folder / REPORT, page, [to_record(episode) for episode in ledger.episodes], log, videos)
            told("writing the page", 1, 1)
    return Evaluation(summary, tuple(ledger.episodes), folder)


def workers_on(device: torch.device, parameters: int) -> int:
    """How many processes evaluate a policy of so many parameters: one per core, but no more than have room for a policy
    of their own on a GPU."""
    if device.type != "cuda":
        return cores()
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(cores(), free // (GPU_BYTES_OF_A_PROCESS + 2 * 4 * parameters)))  # twice float32 weights


def _subject(run: str, config: EvalConfig) -> _Subject:
    chunks = (config.execute_len, config.ensemble, config.target_return)
    settings = EpisodeSettings(SCRIPTED, config.env, config.seed, config.episodes, *chunks, device="cpu")
    if run == SCRIPTED:
        _refuse_chunk_flags(config)
        return _Subject("expert", partial(ExpertActor, config.env), settings)
    if file := trained_expert(Path(run)):
        _refuse_chunk_flags(config)
        settings = replace(settings, checkpoint=name_checkpoint(file))
        return _Subject("expert", partial(ExpertActor, config.env, (Path(run),)), settings)
    checkpoint = Checkpoint.read(run)
    keep_apart(range(config.seed, config.seed + config.episodes), checkpoint.training.data)
    device = str(pick_device(config.device))
    blend = newest_chunk if config.ensemble is None else temporal_ensemble(config.ensemble)
    execute_len = checkpoint.config.execute_len if config.execute_len is None else config.execute_len
    settings = replace(
        settings,
        checkpoint=name_checkpoint(checkpoint.path / "checkpoint.json"),
        execute_len=execute_len,
        device=device,
    )
    actor = partial(load_actor, checkpoint.path, device, execute_len, blend, config.target_return)
    return _Subject(checkpoint.policy, actor, settings)


def _run(
    config: EvalConfig, make_actor: Callable[[], Actor], ledger: Ledger, report: Callable[[Outcome], None]
) -> float:
    """The episodes that are missing; returns the seconds that they took."""
    begun = time.perf_counter()
    for episode in ledger.episodes:
        report(episode)
    seeds = range(config.seed, config.seed + config.episodes)
    try:
        for episode in run_episodes(config.env, make_actor, seeds, config.workers, wanted=ledger.missing):
            ledger.append(episode)
            report(episode)
    except BaseException:
        ledger.abandon()
        raise
    return time.perf_counter() - begun


def _summary(config: EvalConfig, subject: _Subject, ledger: Ledger) -> dict[str, Any]:
    worlds, settings = envs.vector_class(config.env), ledger.settings
    return {
        **summarize(config.env, subject.name, config.seed, ledger.episodes, worlds.highest_stage),
        "together": worlds.rows_per_program,
        "execute_len": settings.execute_len,
        "ensemble": settings.ensemble,
        "target_return": settings.target_return,
        "device": settings.device,
    }


def _cost(ledger: Ledger, seconds: float) -> dict[str, Any]:
    described = describe_run()
    if (earlier := ledger.begun["commit"]) != described["commit"]:
        described["commit"] = f"{earlier}, then {described['commit']}"
    return to_json(Circumstances(round(seconds, 1), ledger.kept, **described))


def _describe_env(name: str) -> dict[str, Any]:
    env = envs.make(name)
    try:
        names = env.get_wrapper_attr("stage_names") if env.has_wrapper_attr("stage_names") else ()
        return {"task": env.get_wrapper_attr("task"), "stage_names": list(names)}
    finally:
        env.close()


def _refuse_chunk_flags(config: EvalConfig) -> None:
    names = ("execute_len", "ensemble", "target_return")
    given = [name for name in names if getattr(config, name) is not None]
    given += ["device"] if config.device not in ("auto", "cpu") else []
    if given:
        raise ValueError(f"{', '.join(given)} is for policies, and this is an expert: leave it out")


def summarize(env: str, policy: str, seed: int, episodes: Sequence[Outcome], highest_stage: int) -> dict[str, Any]:
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
