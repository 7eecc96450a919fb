"""One policy on many Kinetix levels, from their entities, in levels that it was and was not trained on.

    .venv/bin/python scripts/kinetix_generalist.py

Demonstrations are those of the experts of scripts/benchmark experts. Runs are kept below runs/generalist, what is done
is not done again, and docs/results/generalist.md and .json are written anew after every level.
"""

from __future__ import annotations

import argparse
import json
import shlex

from benchmark_pages import commits_and_dates, how_made, read_records, refuse_unclean, write_page, write_records
from benchmark_runs import FRESH, RUNS, run_robostack
from kinetix_benchmarks import CHUNK, experts, shown

from robostack.policies.checkpoint import Checkpoint
from robostack.recipes import Recipe
from robostack.training.log import read_training_log

TRAINED = (
    "s-h7_unicycle_left",
    "s-h8_unicycle_balance",
    "m-h0_unicycle",
    "m-h1_car_left",
    "m-h3_car_thrust",
    "m-h7_car_flip",
    "m-h8_weird_vehicle",
    "m-h9_spin_the_right_way",
    "m-h10_thrust_right_easy",
    "m-h12_thrustfall_left",
    "l-h4_cartpole",
    "l-h17_unicycle",
)
HELD_OUT = ("s-h6_unicycle_right", "m-h2_car_right", "m-h13_thrustfall_right", "m-h18_thrust_right_very_easy")
"""Three of them are the mirror images of levels in training."""
OBSERVE = ("--observe", "observation.entities")
FOLDER = RUNS / "generalist"
DEMONSTRATIONS, STEPS = 100, 4000
TRAIN = ("--optimizer", "muon", *CHUNK, "--policy.actions-per-token", "4", *OBSERVE)


def recipe(level: str) -> Recipe:
    """Of one level: its demonstrations, and the evaluation there of the policy of all."""
    return Recipe(
        "pi0",
        f"kinetix-{level}",
        FOLDER / "data" / level,
        FOLDER / "run",
        demonstrations=DEMONSTRATIONS,
        steps=STEPS,
        collect=("--expert", str(RUNS / "experts" / level), *OBSERVE),
        train=TRAIN,
        evaluations=256,
    )


def main() -> None:
    """Collects, trains and evaluates what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page from the records, and run nothing")
    parser.add_argument(
        "--unclean", action="store_true", help="make records of a tree with changes that no commit holds"
    )
    arguments = parser.parse_args()
    if arguments.page:
        return write()
    refuse_unclean(arguments.unclean)
    recipes = {level: recipe(level) for level in (*TRAINED, *HELD_OUT)}
    for level in TRAINED:
        if not recipes[level].data.exists():
            run_robostack(recipes[level].collect_command())
    run = FOLDER / "run"
    if not run.exists():
        run_robostack([*train_command(), "--threads", "1"])
    elif Checkpoint.read(run).step < STEPS:
        run_robostack(["train", "pi0", "--resume", str(run)])
    records = []
    for level, made in recipes.items():
        results = run / f"eval-{level}-{FRESH}"
        if not (results / "report.html").exists():
            flags = ["--seed", str(FRESH), "--workers", "1", "--videos", "0", "--out", str(results)]
            run_robostack([*made.evaluate_command(), *flags])
        summary = json.loads((results / "summary.json").read_text())
        training = read_training_log(run)[-1]
        cost = {"steps": training["step"], "training_cpu_s": training["cpu_s"]}
        said = {"unclean": True} if arguments.unclean else {}
        records.append({"level": level, "trained": level in TRAINED, **cost, **said, **summary})
        write_records("generalist", records)
        write()


def train_command() -> list[str]:
    """One training on the data of all."""
    recipes = [recipe(level) for level in TRAINED]
    command = recipes[0].train_command()
    data = command.index("--data") + 1
    return [*command[:data], *(str(one.data) for one in recipes), *command[data + 1 :]]


def write() -> None:
    """docs/results/generalist.md, from generalist.json."""
    masters, records = experts(), read_records("generalist")
    rows = ["| level | in training | the policy | its expert | the expert after one update |", "|---|---|---|---|---|"]
    for record in records:
        master = masters.get(record["level"])
        first = master["qualities"][0] if master else {"update": None}
        rows.append(
            f"| {record['level']} | {'yes' if record['trained'] else 'no'} | {shown(record)} | {shown(master)} "
            f"| {format(first['success'], '.0%') if first['update'] == 1 else '–'} |"
        )
    last = records[-1]
    write_page(
        "generalist",
        "# One policy on many Kinetix levels\n\n"
        f"π0 on {DEMONSTRATIONS} demonstrations of the expert of each of {len(TRAINED)} levels, in worlds "
        "of three sizes, from the entity observation alone; the task's words are the same everywhere. Evaluated on "
        f"these levels and on {len(HELD_OUT)} that it never saw, 256 evaluation seeds each, one training seed. What "
        "a hardly trained expert solves says how little a level may ask.\n\n"
        f"{chr(10).join(rows)}\n\n"
        f"{last['steps']} training steps took {last['training_cpu_s']:.0f} CPU s. Brackets are 95 % Wilson intervals "
        f"over the evaluation episodes.\n{how_made(records)}Commands: `scripts/benchmark generalist`, which trains by "
        f"`robostack {shlex.join(train_command())}`; {last['machine']}, one thread, {commits_and_dates(records)}. All "
        "figures: `generalist.json`, from which `scripts/benchmark generalist --page` writes this page.\n",
    )


if __name__ == "__main__":
    main()
