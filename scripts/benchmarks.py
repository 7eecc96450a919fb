"""Learning results in docs/results: what is trained, evaluated and written down, by name.

    .venv/bin/python scripts/benchmarks.py main          the main job: both tasks, three training seeds
    .venv/bin/python scripts/benchmarks.py pixels        transfer cube from one camera and joint positions
    .venv/bin/python scripts/benchmarks.py prediction    why data prediction: a table of runs
    .venv/bin/python scripts/benchmarks.py optimizers    AdamW and Muon on the same runs
    .venv/bin/python scripts/benchmarks.py returns       a decision transformer asked for several returns
    .venv/bin/python scripts/benchmarks.py policies      every policy on both tasks from state, three training seeds
    .venv/bin/python scripts/benchmarks.py kinetix       every policy on Kinetix levels, beside their experts
    .venv/bin/python scripts/benchmarks.py mixtures      decision transformer and cloning on mixed Kinetix data

Each run is a few commands of the command line, one thread each and as many at once as there are cores. Runs are kept
below runs/ and what is done is not done again, so that an interrupted benchmark goes on; results already written stay
until their run is made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from robostack.intervals import wilson_interval
from robostack.policies.checkpoint import Checkpoint
from robostack.recipes import Recipe, aloha_insertion, aloha_transfer_cube, aloha_transfer_cube_pixels
from robostack.training.log import read_log

# Evaluation seeds. Demonstrations start at 0; 2,000,000 and 3,000,000 were looked at while settings were chosen.
FRESH, TUNING = 4_000_000, 2_000_000
RETURNS = (0, 240, 480, 720, 960)
RUNS, RESULTS = Path("runs"), Path("docs/results")
TASKS = {"aloha-transfer-cube": "transfer cube", "aloha-insertion": "insertion"}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    label: str
    recipe: Recipe
    seed: int = FRESH
    """First evaluation seed."""
    evaluate: tuple[str, ...] = ()
    """More flags of `robostack eval`: runs that differ in these alone share a training."""

    @property
    def results(self) -> Path:
        """The folder of the evaluation."""
        return self.recipe.run / "-".join(["eval", str(self.seed), *(flag.lstrip("-") for flag in self.evaluate)])

    @property
    def commands(self) -> list[list[str]]:
        *before, evaluation = self.recipe.commands()
        return [["robostack", *command] for command in (*before, [*evaluation, *self.evaluate])]


Record = dict[str, Any]
"""What came of a run: its label and training seed, commands, cost and evaluation, with commit, machine and date."""


def main() -> None:
    """Runs the named benchmark and writes docs/results/<name>.md and .json, anew after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at once, one thread each")
    parser.add_argument("--only", nargs="*", default=[""], help="runs whose labels begin so; others keep their results")
    arguments = parser.parse_args()
    benchmark = BENCHMARKS[arguments.name]
    runs = benchmark.runs(RUNS / arguments.name)
    chosen = [run for run in runs if run.label.startswith(tuple(arguments.only))]
    records = _earlier(arguments.name, runs)
    for recipe in {run.recipe.data: run.recipe for run in chosen}.values():
        if not recipe.data.exists():
            run_robostack(recipe.collect_command())
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in as_completed([pool.submit(_train_and_evaluate, run) for run in chosen]):
            record = done.result()
            records[record["label"], record["training_seed"]] = record
            order = [(run.label, run.recipe.seed) for run in runs]
            _write(arguments.name, benchmark, [records[key] for key in order if key in records], len(runs))


def main_runs(folder: Path) -> list[Run]:
    """Both tasks, three training seeds each on the same demonstrations."""
    recipes = [make(folder, seed) for seed in range(3) for make in (aloha_transfer_cube, aloha_insertion)]
    return [
        Run(TASKS[r.env], replace(r, data=folder / r.env / "data", run=folder / r.env / f"seed{r.seed}"))
        for r in recipes
    ]


POLICY_TRAINING: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "pi0": (2000, ("--optimizer", "muon")),
    "diffusion": (2000, ("--optimizer", "muon")),
    "act": (1500, ("--batch", "64", "--optimizer", "muon")),
    "decision_transformer": (1500, ()),
    "energy": (2000, ("--optimizer", "muon")),
}
"""Training steps of each policy from state, and flags; everything else is its defaults."""


def policy_runs(folder: Path) -> list[Run]:
    """Every policy on both tasks, three training seeds each, on the same 50 demonstrations of each task; and the U-Net
    of `diffusion`, whose steps take several times as long as the transformer's, with one training seed."""
    runs = [
        Run(
            f"{policy}, {TASKS[env]}",
            Recipe(policy, env, folder / env, folder / f"{policy}-{env}-{seed}", 50, steps, train=flags, seed=seed),
        )
        for seed in range(3)
        for policy, (steps, flags) in POLICY_TRAINING.items()
        for env in TASKS
    ]
    unet = ("--policy.network", "unet", "--batch", "64")
    return runs + [
        Run(
            f"U-Net of diffusion, {TASKS[env]}",
            Recipe("diffusion", env, folder / env, folder / f"unet-{env}-0", 50, 1000, train=unet),
        )
        for env in TASKS
    ]


def pixel_runs(folder: Path) -> list[Run]:
    """Cameras and joint positions: the zoomed view, gym_aloha's own top camera cropped to it, and the other task."""
    recipe = replace(aloha_transfer_cube_pixels(folder), demonstrations=100, cameras=("top_zoom:64x64", "top:136x136"))
    muon = replace(recipe, steps=2000, train=(*recipe.train, "--optimizer", "muon"))
    zoom = [
        Run(f"{policy}, transfer cube, top_zoom 64×64", replace(muon, policy=policy, eyes=("top_zoom",)))
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
    insertion = replace(muon, env="aloha-insertion", data=folder / "insertion", cameras=("top_zoom:64x64",))
    runs = [*zoom, *top, Run("pi0, insertion, top_zoom 64×64", insertion)]
    return [replace(run, recipe=replace(run.recipe, run=folder / str(i))) for i, run in enumerate(runs)]


def return_runs(folder: Path) -> list[Run]:
    """A decision transformer asked for several returns, and the same network that is not told any."""
    recipe = Recipe(
        "decision_transformer",
        "aloha-transfer-cube",
        folder / "data",
        folder / "run",
        demonstrations=200,
        steps=2000,
        collect=("--noise", "0", "0.01", "0.02", "0.04", "0.08"),
        evaluations=50,
    )
    runs = []
    for seed in range(3):
        told = replace(recipe, run=folder / f"told-{seed}", seed=seed)
        runs += [Run(f"asked {asked}", told, evaluate=("--target-return", str(asked))) for asked in RETURNS]
        cloned = replace(recipe, run=folder / f"cloned-{seed}", seed=seed, train=("--policy.no-conditioned",))
        runs.append(Run("behaviour cloning", cloned))
    return runs


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


KINETIX_LEVELS = (
    "s-h7_unicycle_left",
    "s-h8_unicycle_balance",
    "m-h0_unicycle",
    "m-h1_car_left",
    "m-h12_thrustfall_left",
    "l-h17_unicycle",
)
"""Levels of the table; their experts are those of scripts/benchmark_experts."""
CHUNK = ("--policy.chunk-len", "8", "--policy.execute-len", "4")
KINETIX_TRAINING: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "pi0": (1000, ("--optimizer", "muon", *CHUNK, "--policy.actions-per-token", "4")),
    "diffusion": (1000, ("--optimizer", "muon", *CHUNK, "--policy.dit.actions-per-token", "4")),
    "act": (1000, ("--optimizer", "muon", "--batch", "64", *CHUNK)),
    "decision_transformer": (1000, CHUNK),
    "energy": (1000, ("--optimizer", "muon", *CHUNK, "--policy.coefficients", "4")),
}


def kinetix_runs(folder: Path) -> list[Run]:
    """Every policy on every level, on the same demonstrations of the level's expert."""
    return [
        Run(f"{policy}, {level}", _kinetix_recipe(policy, level, folder, steps, flags))
        for level in KINETIX_LEVELS
        for policy, (steps, flags) in KINETIX_TRAINING.items()
    ]


def mixture_runs(folder: Path) -> list[Run]:
    """The same network told the return and not told it, on episodes of three checkpoints of each expert in turn."""
    runs = []
    for level in KINETIX_LEVELS:
        checkpoints = sorted((RUNS / "experts" / level).glob("checkpoints/update-*"))
        if not checkpoints:
            raise SystemExit(f"there is no expert of {level} yet: run scripts/benchmark_experts first")
        experts = tuple(map(str, [checkpoints[0], checkpoints[len(checkpoints) // 2], checkpoints[-1]]))
        for label, name, flags in (
            ("told the return", "told", ()),
            ("behaviour cloning", "cloned", ("--policy.no-conditioned",)),
        ):
            recipe = _kinetix_recipe("decision_transformer", level, folder, 1000, (*CHUNK, *flags))
            recipe = replace(recipe, run=folder / f"{name}-{level}", collect=("--expert", *experts))
            runs.append(Run(f"{label}, {level}", recipe))
    return runs


def _kinetix_recipe(policy: str, level: str, folder: Path, steps: int, flags: tuple[str, ...]) -> Recipe:
    return Recipe(
        policy,
        f"kinetix-{level}",
        folder / level,
        folder / f"{policy}-{level}",
        demonstrations=300,
        steps=steps,
        collect=("--expert", str(RUNS / "experts" / level)),
        train=flags,
        evaluations=256,
    )


@dataclass(frozen=True)
class Benchmark:
    """What is run, and what the page says of it: before the table, and of its columns."""

    runs: Callable[[Path], list[Run]]
    text: str
    note: str = (
        "*Success*: stage 4 at any step; *final*: still at step 400. Latencies are wall time on a machine that trains "
        "beside."
    )


KINETIX_NOTE = (
    "*Success*: green touched blue. Latencies are wall time of a batch of 128 episodes, on a machine that trains "
    "beside."
)
BENCHMARKS: dict[str, Benchmark] = {
    "main": Benchmark(
        main_runs,
        "# The main job: ALOHA from joint positions and object poses\n\n"
        "π0 (flow matching, data prediction), 150 demonstrations, 100 evaluation seeds that nothing was "
        "trained or tuned on, three training seeds.",
    ),
    "policies": Benchmark(
        policy_runs,
        "# Every policy on ALOHA, from joint positions and object poses\n\n"
        "50 demonstrations of each task, 100 evaluation seeds that nothing was trained or tuned on, three training "
        "seeds; the U-Net one. Beside steps, optimiser and batch (`policies.json` has the commands), settings are each "
        "policy's defaults.",
    ),
    "pixels": Benchmark(
        pixel_runs,
        "# From one camera and joint positions\n\n"
        "100 demonstrations, 100 evaluation seeds that nothing was trained or tuned on, one training seed. A policy "
        "sees 14 joint positions and one image, never an object's pose, in training neither. `top_zoom` is gym_aloha's "
        "`top` camera narrowed from 78° to 42°; `top` is that camera as it is, of which the policy looks at the middle "
        "(which shows what `top_zoom` shows).",
    ),
    "optimizers": Benchmark(
        optimizer_runs,
        "# AdamW and Muon\n\nπ0 from joints and object poses, 50 demonstrations, 1000 steps, the same learning rate "
        "(Muon's step is scaled to AdamW's size), one training seed, 100 tuning seeds.",
    ),
    "returns": Benchmark(
        return_runs,
        "# A decision transformer follows the return it is asked for\n\n"
        "Transfer cube from joints and the cube's pose. 200 demonstrations of mixed quality: the expert with a smooth "
        "disturbance of its joints, of 0, 0.01, 0.02, 0.04 and 0.08 rad in turn; the largest return among them is "
        "about 960. The policy sees one decision (K = 1: cloning conditioned on the return rather than a sequence "
        "model). 50 evaluation seeds, three training seeds. Behaviour cloning is the same network without the return.",
    ),
    "prediction": Benchmark(
        prediction_runs,
        "# Data or velocity prediction\n\n"
        "Transfer cube from joints and the cube's pose, 150 demonstrations, one training seed, 50 tuning seeds.",
    ),
    "kinetix": Benchmark(
        kinetix_runs,
        "# Every policy on Kinetix levels\n\n"
        "300 demonstrations of the level's expert (docs/results/experts.md, its last checkpoint), 256 evaluation "
        "seeds, one training seed; noise of deviation 0.1 on the actions throughout. Policies see the package's "
        "features of the level, predict 8 actions and run 4 of them.",
        KINETIX_NOTE,
    ),
    "mixtures": Benchmark(
        mixture_runs,
        "# A decision transformer on data of mixed quality in Kinetix\n\n"
        "300 demonstrations of three checkpoints of the level's expert in turn: its first, a middle and its last one. "
        "The decision transformer is asked for the largest return of its data; behaviour cloning is the same network "
        "without the return. 256 evaluation seeds, one training seed.",
        KINETIX_NOTE,
    ),
}


def _earlier(name: str, runs: Sequence[Run]) -> dict[tuple[str, int], Record]:
    """The results that stand written, of runs that are still to be made in the same way."""
    path = RESULTS / f"{name}.json"
    wanted = {(run.label, run.recipe.seed): run.commands for run in runs}
    records = json.loads(path.read_text()) if path.exists() else []
    found = {(record["label"], record["training_seed"]): record for record in records if "training_seed" in record}
    return {key: record for key, record in found.items() if wanted.get(key) == record["commands"]}


_TRAINING: defaultdict[Path, Lock] = defaultdict(Lock)
"""One training at a time in a folder."""


def _train_and_evaluate(run: Run) -> Record:
    recipe, results = run.recipe, run.results
    with _TRAINING[recipe.run]:
        if not recipe.run.exists():
            run_robostack([*recipe.train_command(), "--threads", "1"])
        elif Checkpoint.read(recipe.run).step < recipe.steps:
            run_robostack(["train", recipe.policy, "--resume", str(recipe.run)])
    if not results.exists():
        # One worker: the runs beside this one are the parallelism.
        flags = ["--seed", str(run.seed), "--workers", "1", "--videos", "0", "--out", str(results)]
        run_robostack([*recipe.evaluate_command(), *run.evaluate, *flags])
    return {
        "label": run.label,
        "training_seed": recipe.seed,
        "commands": run.commands,
        "steps": recipe.steps,
        "training_cpu_s": read_log(recipe.run)[-1]["cpu_s"],
        "parameters": sum(parameter.numel() for parameter in Checkpoint.read(recipe.run).build().parameters()),
        **json.loads((results / "summary.json").read_text()),
    }


def run_robostack(arguments: Sequence[str]) -> None:
    """A command of the command line, in a process of its own."""
    print("robostack", *arguments, flush=True)
    command = [sys.executable, "-c", "from robostack.cli import main; raise SystemExit(main())", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL if not sys.stderr.isatty() else None)


def _write(name: str, benchmark: Benchmark, records: Sequence[Record], planned: int) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(records, indent=1) + "\n")
    missing = (
        f"**{planned - len(records)} of {planned} runs are still to be made.**\n\n" if planned > len(records) else ""
    )
    commits = ", ".join(dict.fromkeys(record["commit"] for record in records))
    page = (
        f"{benchmark.text}\n\n{missing}{_table(records)}\n\n{_pooled(records)}Brackets are 95 % Wilson intervals "
        f"over the evaluation episodes. {benchmark.note}\n"
        f"Command: `scripts/benchmark_{name}`, {records[-1]['machine']}, one thread a "
        f"run, commits {commits}, until {max(record['date'] for record in records)}. All figures: `{name}.json`.\n"
    )
    (RESULTS / f"{name}.md").write_text(page)


def _table(records: Sequence[Record]) -> str:
    lines = [
        "| run | training seed | parameters | steps | training, CPU s | steps / CPU s | success | final "
        "| mean return | chunk latency, ms p50 / p95 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['label']} | {r['training_seed']} | {r['parameters'] / 1e6:.2f} M | {r['steps']} "
        f"| {r['training_cpu_s']:.0f} | {r['steps'] / r['training_cpu_s']:.1f} "
        f"| {share(r['success'], r['success_interval'])} | {share(r['final'], r['final_interval'])} "
        f"| {r['mean_return']:.0f} | {r['latency_ms_p50']} / {r['latency_ms_p95']} |"
        for r in records
    ]
    return "\n".join(lines)


def _pooled(records: Sequence[Record]) -> str:
    """Seeds of one label together, where there are several."""
    lines = []
    for label in dict.fromkeys(record["label"] for record in records):
        same = [record for record in records if record["label"] == label]
        if len(same) > 1:
            count = sum(record["episodes"] for record in same)
            shares = []
            for key in ("success", "final"):
                total = round(sum(record[key] * record["episodes"] for record in same))
                shares.append(f"{key} {share(total / count, wilson_interval(total, count))}")
            returns = sum(record["mean_return"] * record["episodes"] for record in same) / count
            lines.append(
                f"- {label}, {len(same)} training seeds: {', '.join(shares)}, mean return {returns:.0f}, of {count} "
                "episodes\n"
            )
    return "".join(lines) + "\n" if lines else ""


def share(value: float, interval: Sequence[float]) -> str:
    """A share with its interval, in per cent."""
    return f"{value:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"


if __name__ == "__main__":
    main()
