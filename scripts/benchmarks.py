"""Learning results in docs/results: what is trained, evaluated and written down, by name.

    .venv/bin/python scripts/benchmarks.py main          the main job: both tasks, three training seeds
    .venv/bin/python scripts/benchmarks.py pixels        transfer cube from one camera and joint positions
    .venv/bin/python scripts/benchmarks.py prediction    why data prediction: a table of runs
    .venv/bin/python scripts/benchmarks.py optimizers    AdamW and Muon on the same runs
    .venv/bin/python scripts/benchmarks.py policies      every policy on both tasks from state, three training seeds

Each run is a few commands of the command line, one thread each and as many at once as there are cores. Runs are kept
below runs/ and what is done is not done again, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robostack.evaluation.intervals import wilson_interval
from robostack.policies.checkpoint import Checkpoint
from robostack.provenance import describe_run
from robostack.recipes import Recipe, aloha_insertion, aloha_transfer_cube, aloha_transfer_cube_pixels
from robostack.training.log import read_log

# Evaluation seeds. Demonstrations start at 0; 2,000,000 and 3,000,000 were looked at while settings were chosen.
FRESH, TUNING = 4_000_000, 2_000_000
RUNS, RESULTS = Path("runs"), Path("docs/results")
TASKS = {"aloha-transfer-cube": "transfer cube", "aloha-insertion": "insertion"}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    label: str
    recipe: Recipe
    seed: int = FRESH
    """First evaluation seed."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    run: Run
    summary: dict[str, Any]
    cpu_s: float
    """CPU time of training, all threads."""
    parameters: int


def main() -> None:
    """Runs the named benchmark and writes docs/results/<name>.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at once, one thread each")
    arguments = parser.parse_args()
    make_runs, text = BENCHMARKS[arguments.name]
    runs = make_runs(RUNS / arguments.name)
    for recipe in {run.recipe.data: run.recipe for run in runs}.values():
        if not recipe.data.exists():
            _robostack(recipe.collect_command())
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(_train_and_evaluate, runs))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps([_record(o) for o in outcomes], indent=1) + "\n")
    page = RESULTS / f"{arguments.name}.md"
    page.write_text(f"{text}\n\n{_table(outcomes)}\n\n{_pooled(outcomes)}{_origin(arguments.name)}")
    print(page.read_text())


def main_runs(folder: Path) -> list[Run]:
    """Both tasks, three training seeds each on the same demonstrations."""
    recipes = [make(folder, seed) for seed in range(3) for make in (aloha_transfer_cube, aloha_insertion)]
    return [
        Run(TASKS[r.env], replace(r, data=folder / r.env / "data", run=folder / r.env / f"seed{r.seed}"))
        for r in recipes
    ]


POLICY_TRAINING: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "pi0": (5000, ()),
    "diffusion": (2000, ()),
    "act": (1500, ("--batch", "64")),
    "decision_transformer": (1500, ()),
    "energy": (2000, ()),
}
"""Training steps of each policy from state, and flags; everything else is its defaults."""


def policy_runs(folder: Path) -> list[Run]:
    """Every policy on both tasks, three training seeds each, on the same 50 demonstrations of each task."""
    return [
        Run(
            f"{policy}, {TASKS[env]}",
            Recipe(policy, env, folder / env, folder / f"{policy}-{env}-{seed}", 50, steps, train=flags, seed=seed),
        )
        for seed in range(3)
        for policy, (steps, flags) in POLICY_TRAINING.items()
        for env in TASKS
    ]


def pixel_runs(folder: Path) -> list[Run]:
    """Cameras and joint positions: the zoomed view, gym_aloha's own top camera cropped to it, and the other task."""
    recipe = replace(aloha_transfer_cube_pixels(folder), demonstrations=100, cameras=("top_zoom:64x64", "top:136x136"))
    zoom = [
        Run(f"{policy}, transfer cube, top_zoom 64×64", replace(recipe, policy=policy, eyes=("top_zoom",)))
        for policy in ("pi0", "diffusion", "act")
    ]
    crop = (*recipe.train, "--policy.encoder.crop", "64", "64")
    top = [
        Run(
            f"{policy}, transfer cube, top 136×136, its middle 64×64",
            replace(recipe, policy=policy, eyes=("top",), train=crop),
        )
        for policy in ("pi0",)
    ]
    insertion = replace(recipe, env="aloha-insertion", data=folder / "insertion", cameras=("top_zoom:64x64",))
    runs = [*zoom, *top, Run("pi0, insertion, top_zoom 64×64", insertion)]
    return [replace(run, recipe=replace(run.recipe, run=folder / str(i))) for i, run in enumerate(runs)]


def prediction_runs(folder: Path) -> list[Run]:
    """Data or velocity, by token width and actions a token."""
    velocity = ("--policy.prediction", "velocity", "--policy.loss", "velocity")
    wide = ("--policy.expert-width", "256", "--policy.heads", "8")
    single = ("--policy.actions-per-token", "1")
    variants: list[tuple[str, int, tuple[str, ...]]] = [
        ("data", 1000, ()),
        ("velocity", 1000, velocity),
        ("velocity, width 256 and 8 heads", 1000, (*velocity, *wide)),
        ("velocity, one action a token", 300, (*velocity, *single)),
    ]
    return [
        Run(
            label,
            replace(aloha_transfer_cube(folder), run=folder / str(i), steps=steps, train=flags, evaluations=50),
            TUNING,
        )
        for i, (label, steps, flags) in enumerate(variants)
    ]


def optimizer_runs(folder: Path) -> list[Run]:
    """AdamW and Muon on the same runs."""
    return [
        Run(
            f"{optimizer}, {TASKS[env]}",
            Recipe("pi0", env, folder / env, folder / f"{optimizer}-{env}", 50, 1000, train=("--optimizer", optimizer)),
            TUNING,
        )
        for env in TASKS
        for optimizer in ("adamw", "muon")
    ]


BENCHMARKS: dict[str, tuple[Callable[[Path], list[Run]], str]] = {
    "main": (
        main_runs,
        "# The main job: ALOHA from joint positions and object poses\n\n"
        "π0 (flow matching, data prediction), 150 demonstrations, 100 evaluation seeds that nothing was "
        "trained or tuned on, three training seeds.",
    ),
    "policies": (
        policy_runs,
        "# Every policy on ALOHA, from joint positions and object poses\n\n"
        "50 demonstrations of each task, 100 evaluation seeds that nothing was trained or tuned on, three training "
        "seeds. Settings are each policy's defaults.",
    ),
    "pixels": (
        pixel_runs,
        "# From one camera and joint positions\n\n"
        "100 demonstrations, 100 evaluation seeds that nothing was trained or tuned on, one training seed. A policy "
        "sees 14 joint positions and one image, never an object's pose, in training neither. `top_zoom` is gym_aloha's "
        "`top` camera narrowed from 78° to 42°; `top` is that camera as it is, of which the policy looks at the middle "
        "(which shows what `top_zoom` shows).",
    ),
    "optimizers": (
        optimizer_runs,
        "# AdamW and Muon\n\nπ0 from joints and object poses, 50 demonstrations, 1000 steps, the same learning rate "
        "(Muon's step is scaled to AdamW's size), one training seed, 100 tuning seeds.",
    ),
    "prediction": (
        prediction_runs,
        "# Data or velocity prediction\n\n"
        "Transfer cube from joints and the cube's pose, 150 demonstrations, one training seed, 50 tuning seeds.",
    ),
}


def _train_and_evaluate(run: Run) -> Outcome:
    recipe, results = run.recipe, run.recipe.run / f"eval-{run.seed}"
    if not recipe.run.exists():
        _robostack([*recipe.train_command(), "--threads", "1"])
    elif Checkpoint.read(recipe.run).step < recipe.steps:
        _robostack(["train", recipe.policy, "--resume", str(recipe.run)])
    if not results.exists():
        # One worker: the runs beside this one are the parallelism.
        flags = ["--seed", str(run.seed), "--workers", "1", "--videos", "0", "--out", str(results)]
        _robostack([*recipe.evaluate_command(), *flags])
    parameters = sum(parameter.numel() for parameter in Checkpoint.read(recipe.run).build().parameters())
    summary = json.loads((results / "summary.json").read_text())
    return Outcome(run, summary, read_log(recipe.run)[-1]["cpu_s"], parameters)


def _robostack(arguments: Sequence[str]) -> None:
    print("robostack", *arguments, flush=True)
    command = [sys.executable, "-c", "from robostack.cli import main; raise SystemExit(main())", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL if not sys.stderr.isatty() else None)


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| run | training seed | parameters | steps | training, CPU s | steps / CPU s | success | final "
        "| chunk latency, ms p50 / p95 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        recipe, summary = outcome.run.recipe, outcome.summary
        lines.append(
            f"| {outcome.run.label} | {recipe.seed} | {outcome.parameters / 1e6:.2f} M | {recipe.steps} "
            f"| {outcome.cpu_s:.0f} | {recipe.steps / outcome.cpu_s:.1f} "
            f"| {_share(summary['success'], summary['success_interval'])} "
            f"| {_share(summary['final'], summary['final_interval'])} "
            f"| {summary['latency_ms_p50']} / {summary['latency_ms_p95']} |"
        )
    return "\n".join(lines)


def _pooled(outcomes: Sequence[Outcome]) -> str:
    """Seeds of one label together, where there are several."""
    lines = []
    for label in dict.fromkeys(outcome.run.label for outcome in outcomes):
        summaries = [outcome.summary for outcome in outcomes if outcome.run.label == label]
        if len(summaries) > 1:
            count = sum(s["episodes"] for s in summaries)
            shares = []
            for key in ("success", "final"):
                total = round(sum(s[key] * s["episodes"] for s in summaries))
                shares.append(f"{key} {_share(total / count, wilson_interval(total, count))}")
            lines.append(f"- {label}, all training seeds: {', '.join(shares)} of {count} episodes\n")
    return "".join(lines) + "\n" if lines else ""


def _share(share: float, interval: Sequence[float]) -> str:
    return f"{share:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"


def _record(outcome: Outcome) -> dict[str, Any]:
    run = outcome.run
    commands = [["robostack", *command] for command in run.recipe.commands()]
    own = {"label": run.label, "commands": commands, "training_cpu_s": outcome.cpu_s}
    return {**own, "parameters": outcome.parameters, **outcome.summary}


def _origin(name: str) -> str:
    origin = describe_run()
    return (
        f"Brackets are 95 % Wilson intervals over the evaluation episodes. *Success*: stage 4 at any step; *final*: "
        f"still at step 400.\nCommand: `scripts/benchmark_{name}`, {origin['machine']}, one thread a run, commit "
        f"{origin['commit']}, {origin['date']}. All figures: `{name}.json`.\n"
    )


if __name__ == "__main__":
    main()
