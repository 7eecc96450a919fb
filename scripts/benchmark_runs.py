"""The machinery of learning results: runs of the command line, kept, and the pages written from them.

Each run is a few commands of the command line, one thread each and as many at once as there are cores. Runs are kept
below runs/ and what is done is not done again, so that an interrupted benchmark goes on; results already written stay
until their run is made anew.

Every training seed has demonstrations and evaluation seeds of its own: what differs between training seeds is then all
that chance decides, and their episodes are independent given the seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from benchmark_pages import (
    Record,
    commits_and_dates,
    how_made,
    of_each_seed,
    read_records,
    refuse_unclean,
    table_of_runs,
    training_seed,
    write_page,
    write_records,
)

from robostack.policies.checkpoint import Checkpoint
from robostack.recipes import Recipe
from robostack.training.log import read_training_log

RUNS = Path("runs")
SEEDS_EACH = 10_000
"""Seeds that a training seed has to itself, of demonstrations and of evaluation."""
FRESH, TUNING = 6_000_000, 2_000_000
"""First evaluation seeds of results, and of settings. 3,000,000, 4,000,000 and 5,000,000 were looked at before."""


def demonstration_seed(training: int) -> int:
    """Where the demonstrations of a training seed begin."""
    return SEEDS_EACH * training


def evaluation_seed(training: int, tuning: bool = False) -> int:
    """Where the evaluation of a training seed begins."""
    return (TUNING if tuning else FRESH) + SEEDS_EACH * training


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    label: str
    recipe: Recipe
    tuning: bool = False
    """Judged on the seeds that settings are chosen on."""
    evaluate: tuple[str, ...] = ()
    """More flags of `robostack eval`: runs that differ in these alone share a training."""

    @property
    def seed(self) -> int:
        """First evaluation seed."""
        return evaluation_seed(self.recipe.seed, self.tuning)

    @property
    def results(self) -> Path:
        """The folder of the evaluation."""
        return self.recipe.run / "-".join(["eval", str(self.seed), *(flag.lstrip("-") for flag in self.evaluate)])

    @property
    def commands(self) -> list[list[str]]:
        *before, evaluation = self.recipe.commands()
        return [["robostack", *command] for command in (*before, [*evaluation, *self.evaluate])]


def with_own_data(run: Run) -> Run:
    """The run on demonstrations of its training seed."""
    recipe, seed = run.recipe, run.recipe.seed
    own = ("--seed", str(demonstration_seed(seed)))
    data = recipe.data.with_name(f"{recipe.data.name}-seed{seed}")
    return replace(run, recipe=replace(recipe, data=data, collect=(*recipe.collect, *own)))


@dataclass(frozen=True)
class Benchmark:
    """What is run, and what the page says of it: before the table, and of its columns."""

    runs: Callable[[Path], list[Run]]
    text: str
    note: str = (
        "*Success*: stage 4 at any step; *final*: still at step 400. Latencies are wall time on a machine that trains "
        "beside."
    )
    overview: Callable[[Sequence[Record]], str] = of_each_seed
    """What stands before the table of runs, with an empty line behind it."""


def run_benchmark(name: str, benchmark: Benchmark, only: Sequence[str], jobs: int, unclean: bool) -> None:
    """Makes the runs whose labels begin with one of `only`, and writes docs/results/<name>.md and .json after each."""
    refuse_unclean(unclean)
    runs = [with_own_data(run) for run in benchmark.runs(RUNS / "own-seeds" / name)]
    chosen = [run for run in runs if run.label.startswith(tuple(only))]
    records = _earlier(name, runs)
    for recipe in {run.recipe.data: run.recipe for run in chosen}.values():
        if not recipe.data.exists():
            run_robostack(recipe.collect_command())
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(_train_and_evaluate, run, unclean) for run in chosen]):
            record = done.result()
            records[record["label"], record["training_seed"]] = record
            order = [(run.label, run.recipe.seed) for run in runs]
            write_records(name, [records[key] for key in order if key in records])
            write_benchmark_page(name, benchmark)


def _earlier(name: str, runs: Sequence[Run]) -> dict[tuple[str, int], Record]:
    """The results that stand written: those of the old plan of seeds, and those of runs that are still to be made in
    the same way."""
    wanted = {(run.label, run.recipe.seed): run.commands for run in runs}
    found = {(record["label"], training_seed(record)): record for record in read_records(name)}
    return {
        key: record
        for key, record in found.items()
        if "demonstration_seed" not in record or wanted.get(key) == record["commands"]
    }


_TRAINING: defaultdict[Path, Lock] = defaultdict(Lock)
"""One training at a time in a folder."""


def _train_and_evaluate(run: Run, unclean: bool) -> Record:
    recipe, results = run.recipe, run.results
    refuse_unclean(unclean)  # somebody may have changed the code meanwhile
    with _TRAINING[recipe.run]:
        if not recipe.run.exists():
            run_robostack([*recipe.train_command(), "--threads", "1"])
        elif Checkpoint.read(recipe.run).step < recipe.steps:
            run_robostack(["train", recipe.policy, "--resume", str(recipe.run)])
    if not (results / "report.html").exists():  # else it is finished
        # One worker: the runs beside this one are the parallelism.
        flags = ["--seed", str(run.seed), "--workers", "1", "--videos", "0", "--out", str(results)]
        run_robostack([*recipe.evaluate_command(), *run.evaluate, *flags])
    episodes = [json.loads(line) for line in (results / "episodes.jsonl").read_text().splitlines()]
    return {
        "label": run.label,
        "training_seed": recipe.seed,
        "demonstration_seed": demonstration_seed(recipe.seed),
        "commands": run.commands,
        "steps": recipe.steps,
        "training_cpu_s": read_training_log(recipe.run)[-1]["cpu_s"],
        "parameters": sum(parameter.numel() for parameter in Checkpoint.read(recipe.run).build().parameters()),
        **({"unclean": True} if unclean else {}),
        **json.loads((results / "summary.json").read_text()),
        "succeeded": [episode["seed"] for episode in episodes if episode["success"]],
        "held": [episode["seed"] for episode in episodes if episode["final"]],
    }


def run_robostack(arguments: Sequence[str]) -> None:
    """A command of the command line, in a process of its own."""
    print("robostack", *arguments, flush=True)
    command = [sys.executable, "-c", "from robostack.cli import main; raise SystemExit(main())", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL if not sys.stderr.isatty() else None)


def write_benchmark_page(name: str, benchmark: Benchmark) -> None:
    """Writes docs/results/<name>.md from <name>.json."""
    records = read_records(name)
    planned = len(benchmark.runs(RUNS / name))
    missing = (
        f"**{planned - len(records)} of {planned} runs are still to be made.**\n\n" if planned > len(records) else ""
    )
    write_page(
        name,
        f"{benchmark.text}\n\n{missing}{benchmark.overview(records)}{table_of_runs(records)}\n\n"
        f"Brackets in this table are 95 % Wilson intervals over the evaluation episodes of one training seed. "
        f"{benchmark.note}\n{how_made(records)}"
        f"Command: `scripts/benchmark {name}`, {records[-1]['machine']}, one thread a run, "
        f"{commits_and_dates(records)}. All figures: `{name}.json`, from which `scripts/benchmark {name} --page` "
        "writes this page.\n",
    )
