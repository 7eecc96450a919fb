"""The machinery of learning results: runs of the command line, kept, and the pages written from them.

Each run is a few commands of the command line, one thread each and as many at once as there are cores. Runs are kept
below runs/ and what is done is not done again, so that an interrupted benchmark goes on; results already written stay
until their run is made anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from robostack.intervals import wilson_interval
from robostack.policies.checkpoint import Checkpoint
from robostack.recipes import Recipe
from robostack.training.log import read_log

# Evaluation seeds. Demonstrations start at 0; 2,000,000 and 3,000,000 were looked at while settings were chosen.
FRESH, TUNING = 4_000_000, 2_000_000
RUNS, RESULTS = Path("runs"), Path("docs/results")


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


def pooled(records: Sequence[Record]) -> str:
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
                f"- {label}, {len(same)} training seeds: {', '.join(shares)}, mean return {returns:.3g}, of {count} "
                "episodes\n"
            )
    return "".join(lines) + "\n" if lines else ""


@dataclass(frozen=True)
class Benchmark:
    """What is run, and what the page says of it: before the table, and of its columns."""

    runs: Callable[[Path], list[Run]]
    text: str
    note: str = (
        "*Success*: stage 4 at any step; *final*: still at step 400. Latencies are wall time on a machine that trains "
        "beside."
    )
    overview: Callable[[Sequence[Record]], str] = pooled
    """What stands before the table of runs, with an empty line behind it."""


def run_benchmark(name: str, benchmark: Benchmark, only: Sequence[str], jobs: int) -> None:
    """Makes the runs whose labels begin with one of `only`, and writes docs/results/<name>.md and .json after each."""
    runs = benchmark.runs(RUNS / name)
    chosen = [run for run in runs if run.label.startswith(tuple(only))]
    records = _earlier(name, runs)

    def write() -> None:
        order = [(run.label, run.recipe.seed) for run in runs]
        _write(name, benchmark, [records[key] for key in order if key in records], len(runs))

    for recipe in {run.recipe.data: run.recipe for run in chosen}.values():
        if not recipe.data.exists():
            run_robostack(recipe.collect_command())
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(_train_and_evaluate, run) for run in chosen]):
            record = done.result()
            records[record["label"], record["training_seed"]] = record
            write()
    if records:  # the page may have changed, even if no run has
        write()


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
        f"{benchmark.text}\n\n{missing}{benchmark.overview(records)}{_table(records)}\n\n"
        f"Brackets are 95 % Wilson intervals over the evaluation episodes. {benchmark.note}\n"
        f"Command: `scripts/benchmark_{name}`, {records[-1]['machine']}, one thread a run, commits {commits}, until "
        f"{max(record['date'] for record in records)}. All figures: `{name}.json`.\n"
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
        f"| {r['mean_return']:.3g} | {r['latency_ms_p50']} / {r['latency_ms_p95']} |"
        for r in records
    ]
    return "\n".join(lines)


def share(value: float, interval: Sequence[float]) -> str:
    """A share with its interval, in per cent."""
    return f"{value:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"
