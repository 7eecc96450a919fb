"""Learning results in Kinetix: every policy on single levels, and data of mixed quality. See benchmarks.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark_pages import Record, read_records, share
from benchmark_runs import RUNS, Benchmark, Run

from robostack.recipes import Recipe

LEVELS = (
    "m-h0_unicycle",
    "m-h3_car_thrust",
    "m-h7_car_flip",
    "m-h10_thrust_right_easy",
    "m-h12_thrustfall_left",
    "l-h4_cartpole",
    "l-h17_unicycle",
    "l-hard_lunar_lander",
)
"""Levels of the tables; their experts are those of scripts/benchmark experts."""
CHUNK = ("--policy.chunk-len", "8", "--policy.execute-len", "4")
TRAINING: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "pi0": (1000, ("--optimizer", "muon", *CHUNK, "--policy.actions-per-token", "4")),
    "diffusion": (2500, ("--optimizer", "muon", *CHUNK, "--policy.dit.actions-per-token", "4")),
    "act": (1000, ("--optimizer", "muon", "--batch", "64", *CHUNK)),
    "decision_transformer": (1000, CHUNK),
    "energy": (1000, ("--optimizer", "muon", *CHUNK, "--policy.coefficients", "4")),
}
"""Training steps of each policy, and flags; everything else is its defaults."""
TOLD, CLONED = "told the return", "behaviour cloning"
ENOUGH = 0.9  # of the expert's rate


def kinetix_runs(folder: Path) -> list[Run]:
    """Every policy on every level, on the same demonstrations of the level's expert."""
    return [
        Run(f"{policy}, {level}", _recipe(policy, level, folder, steps, flags))
        for level in LEVELS
        for policy, (steps, flags) in TRAINING.items()
    ]


def mixture_runs(folder: Path) -> list[Run]:
    """The same network told the return and not told it, on episodes of all checkpoints of each expert in turn."""
    steps, flags = TRAINING["decision_transformer"]
    masters, runs = experts(), []
    for level in LEVELS:
        if level not in masters:
            raise SystemExit(f"there is no expert of {level} yet: run scripts/benchmark experts first")
        checkpoints = RUNS / "experts" / level / "checkpoints"
        players = [str(checkpoints / f"update-{quality['update']:08d}") for quality in masters[level]["qualities"]]
        for label, more in ((TOLD, ()), (CLONED, ("--policy.no-conditioned",))):
            recipe = _recipe("decision_transformer", level, folder, steps, (*flags, *more))
            run = folder / f"{label.replace(' ', '-')}-{level}"
            runs.append(Run(f"{label}, {level}", replace(recipe, run=run, collect=("--expert", *players))))
    return runs


def _recipe(policy: str, level: str, folder: Path, steps: int, flags: tuple[str, ...]) -> Recipe:
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


def experts() -> dict[str, dict[str, Any]]:
    """What docs/results/experts.json says of each level."""
    return {record["level"].replace("/", "-"): record for record in read_records("experts")}


def beside_experts(records: Sequence[Record]) -> str:
    """A table of levels and policies, and on how many levels each comes near to the expert."""
    masters, cells = experts(), _cells(records)
    lines = ["| level | expert | " + " | ".join(TRAINING) + " |", "|---" * (len(TRAINING) + 2) + "|"]
    near = {policy: [0, 0] for policy in TRAINING}
    for level in LEVELS:
        row = [shown(masters.get(level))]
        for policy in TRAINING:
            record = cells.get((policy, level))
            row.append(shown(record))
            if record and level in masters:
                near[policy][0] += record["success"] >= ENOUGH * masters[level]["success"]
                near[policy][1] += 1
        lines.append(f"| {level} | " + " | ".join(row) + " |")
    counts = ", ".join(f"{policy} on {reached} of {tried} levels" for policy, (reached, tried) in near.items())
    return "\n".join(lines) + f"\n\nAt least {ENOUGH:.0%} of the expert's rate: {counts}.\n\n"


def told_and_cloned(records: Sequence[Record]) -> str:
    """A table of levels: how well the players of the data do, and what was learned from them."""
    masters, cells = experts(), _cells(records)
    lines = [f"| level | success of the players | {TOLD} | {CLONED} |", "|---|---|---|---|"]
    above = tried = 0
    for level in LEVELS:
        told, cloned = cells.get((TOLD, level)), cells.get((CLONED, level))
        qualities = masters.get(level, {}).get("qualities", ())
        players = ", ".join(f"{quality['success']:.0%}" for quality in qualities)
        lines.append(f"| {level} | {players} | {shown(told)} | {shown(cloned)} |")
        if told and cloned:
            above += told["success_interval"][0] > cloned["success_interval"][1]
            tried += 1
    return (
        "\n".join(lines) + f"\n\nTold the return it does better than cloning on {above} of {tried} levels (intervals "
        "do not overlap).\n\n"
    )


def _cells(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    """By what was trained and by level, the two parts of a label."""
    found = {}
    for record in records:
        what, level = record["label"].split(", ")
        found[what, level] = record
    return found


def shown(record: Mapping[str, Any] | None) -> str:
    """A success rate with its interval, or a dash where there is none."""
    return share(record["success"], record["success_interval"]) if record else "–"


NOTE = (
    "*Success*: green touched blue. Latencies are wall time of a batch of 128 episodes, on a machine that trains "
    "beside."
)
KINETIX_BENCHMARKS = {
    "kinetix": Benchmark(
        kinetix_runs,
        "# Every policy on Kinetix levels\n\n"
        "300 demonstrations of the level's expert (docs/results/experts.md, its last checkpoint), 256 evaluation "
        "seeds, one training seed; noise of deviation 0.1 on the actions throughout. Policies see the package's "
        "features of the level, predict 8 actions and run 4 of them. `diffusion` had 1000 steps at first, with which "
        "it solved 51 % on the lander and 86 % on m-h10; 2500 were chosen on tuning seeds of the lander.",
        NOTE,
        beside_experts,
    ),
    "mixtures": Benchmark(
        mixture_runs,
        "# A decision transformer on data of mixed quality in Kinetix\n\n"
        "300 demonstrations of all checkpoints of the level's expert in turn (after 1, 2, 4 … updates, in large worlds "
        "4, 8, 16 …), kept whether they succeed or not. The decision transformer is asked for the largest return of "
        "its data; behaviour cloning is the same network without the return. 256 evaluation seeds, one training seed.",
        NOTE,
        told_and_cloned,
    ),
}
