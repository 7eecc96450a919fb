"""An energy policy that was never told of a forbidden region is composed with the region's energy, or with a limit's.

    .venv/bin/python scripts/energy_composition.py

Trains an energy policy on aloha-transfer-cube, unless runs/composition holds it, and runs the same episodes without and
with what is added. Every demonstration breaks each constraint:
tray    the left fingertip stays above a height, at which the arms hand the cube over
ball    the left fingertip keeps out of a ball on its way to where it waits
wrist   the left wrist does not bend as far as it would
Writes to docs/results/composition.md and .json how often the task was done, and how often, long and far the constraint
was broken, by the arm itself and not by what it was told.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_pages import commits_and_dates, how_made, read_records, refuse_unclean, share, write_page, write_records
from benchmark_runs import FRESH, RUNS, run_robostack
from torch import Tensor

from robostack.common.intervals import wilson_interval
from robostack.common.provenance import describe_run
from robostack.envs.aloha.fingertips import Fingertips
from robostack.evaluation.actors import Look, PolicyActor
from robostack.evaluation.rollout import Worlds, make_worlds, run_together
from robostack.recipes import Recipe
from robostack.runtime.agent import Agent
from robostack.runtime.constraints import Below, Cost, Sphere, composed_agent, keep_out, limits

ENV = "aloha-transfer-cube"
LEFT = Fingertips(("left",))
TRAY = Below(height=0.24)
# Between where the fingertip starts, 5.8 cm away, and where it waits, 4.6 cm away: with its clearance it must hold
# neither, or the arm would leap out of it at once.
BALL = Sphere(centre=(-0.137, 0.5, 0.273), radius=0.02)
WRIST, LOWEST = 4, -0.6
"""Of an action, left_wrist_angle: it goes down to -0.65 rad."""


@dataclass(frozen=True)
class Constraint:
    """What is watched and what is added."""

    excess: Callable[[Tensor], Tensor]
    """State (14,) ↦ numbers, above 0 where it is broken: metres or radians."""
    cost: Cost
    """Begins before it is broken, as an arm lags behind what it is told."""


def wrist_limit(clearance: float) -> Tensor:
    """Lowest values of an action."""
    return torch.full((14,), -torch.inf).index_fill(0, torch.tensor(WRIST), LOWEST + clearance)


CONSTRAINTS = {
    "tray": Constraint(lambda state: TRAY.depth(LEFT(state)), keep_out(TRAY, LEFT, clearance=0.016, softness=0.02)),
    "ball": Constraint(lambda state: BALL.depth(LEFT(state)), keep_out(BALL, LEFT, clearance=0.026, softness=0.007)),
    "wrist": Constraint(
        lambda state: wrist_limit(0.0) - state, limits(wrist_limit(0.05), torch.full((14,), torch.inf), softness=0.01)
    ),
}


class Watched:
    """An actor, and the largest excess of the robot's own state at each step of its episode."""

    def __init__(self, actor: PolicyActor, excess: Callable[[Tensor], Tensor]) -> None:
        self._actor, self._excess = actor, excess
        self.latencies_ms: list[float] = []
        self.seen: list[float] = []

    def begin(self, worlds: Worlds, seeds: Sequence[int]) -> None:
        self._actor.begin(worlds, seeds)
        self.latencies_ms, self.seen = self._actor.latencies_ms, []

    def act(self, look: Look, rewards: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(look({"observation.state": (14,)})["observation.state"][0])
        self.seen.append(float(self._excess(state).max()))
        return self._actor.act(look, rewards)


def recipe(folder: Path) -> Recipe:
    """More noise on the state than else, since constraints lead where no demonstration was; and more steps at the end,
    for energies stiffer than the learned one."""
    train = ("--optimizer", "muon", "--state-noise", "0.1", "--policy.settle-steps", "40")
    return Recipe("energy", ENV, folder / "data", folder / "run", demonstrations=50, steps=2000, train=train)


def main() -> None:
    """Prints a JSON line for each constraint, without and with, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=25)
    parser.add_argument("--seed", type=int, default=FRESH)
    parser.add_argument("--constraints", nargs="+", default=list(CONSTRAINTS), choices=CONSTRAINTS)
    parser.add_argument("--page", action="store_true", help="write the page from the records, and run nothing")
    parser.add_argument(
        "--unclean", action="store_true", help="make records of a tree with changes that no commit holds"
    )
    arguments = parser.parse_args()
    made = recipe(RUNS / "composition")
    if arguments.page:
        return write(made)
    refuse_unclean(arguments.unclean)
    if not made.data.exists():
        run_robostack(made.collect_command())
    if not made.run.exists():
        run_robostack([*made.train_command(), "--threads", "1"])
    torch.set_num_threads(1)
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    lines = [study(made.run, name, added, seeds) for name in arguments.constraints for added in (False, True)]
    if arguments.seed == FRESH:
        lines = [{**line, **({"unclean": True} if arguments.unclean else {})} for line in lines]
        lines += [line for line in read_records("composition") if line["constraint"] not in arguments.constraints]
        place = list(CONSTRAINTS).index
        write_records("composition", sorted(lines, key=lambda line: (place(line["constraint"]), line["added"])))
        write(made)


def write(made: Recipe) -> None:
    """docs/results/composition.md, from composition.json."""
    lines = read_records("composition")
    rows = [
        "| constraint | its energy | task done | at the end | episodes that broke it | steps | deepest, mean "
        "| chunk, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        unit = "rad" if line["constraint"] == "wrist" else "m"
        rows.append(
            f"| {line['constraint']} | {'added' if line['added'] else 'not added'} "
            f"| {share(line['success'], line['success_interval'])} | {line['final']:.0%} "
            f"| {share(line['broken'], line['broken_interval'])} | {line['steps_broken_mean']:.1f} "
            f"| {line['excess_mean']:.4f} {unit} | {line['latency_ms_p50']:.0f} |"
        )
    page = (
        "# Energies add: constraints that the policy was never told of\n\n"
        f"An energy policy trained on {made.demonstrations} demonstrations of transfer cube, each of which breaks "
        "every constraint: the left fingertip stays above 0.24 m (tray), keeps out of a ball of 2 cm radius on its "
        "way (ball), the left wrist stays above -0.6 rad (wrist). At run time the constraint's energy is added to the "
        "policy's. *Deepest*: how far beyond the constraint the arm was at most, negative where it kept clear, "
        f"averaged over episodes.\n\n{chr(10).join(rows)}\n\n{lines[0]['episodes']} episodes of seeds that nothing was "
        "trained or tuned on, one training seed; brackets are 95 % Wilson intervals.\n"
        f"{how_made(lines)}"
        f"Commands: `scripts/benchmark composition`, which trains by `robostack {shlex.join(made.train_command())}`; "
        f"{lines[0]['machine']}, {commits_and_dates(lines)}. All figures: `composition.json`, from which "
        "`scripts/benchmark composition --page` writes this page.\n"
    )
    write_page("composition", page)


def study(run: Path, name: str, added: bool, seeds: range) -> dict[str, Any]:
    """The episodes of `seeds` with the constraint named, watched or also added, summed up."""
    constraint = CONSTRAINTS[name]
    acting = composed_agent(run, "aloha", constraint.cost) if added else Agent.load(run)
    worlds, actor = make_worlds(ENV), Watched(PolicyActor(acting), constraint.excess)
    done, depths, inside, latencies = [], [], [], []
    for seed in seeds:
        (episode,) = run_together(worlds, actor, [seed])
        done.append((episode.success, episode.final))
        depths.append(max(actor.seen))
        inside.append(sum(depth > 0 for depth in actor.seen))
        latencies += episode.latencies_ms
    successes, finals = (sum(column) for column in zip(*done, strict=True))
    broken = sum(steps > 0 for steps in inside)
    line: dict[str, Any] = {
        "constraint": name,
        "added": added,
        "episodes": len(seeds),
        "seed": seeds[0],
        "success": successes / len(seeds),
        "success_interval": list(wilson_interval(successes, len(seeds))),
        "final": finals / len(seeds),
        "broken": broken / len(seeds),
        "broken_interval": list(wilson_interval(broken, len(seeds))),
        "steps_broken_mean": float(np.mean(inside)),
        "excess_mean": float(np.mean(depths)),
        "excess_max": float(np.max(depths)),
        "latency_ms_p50": float(np.median(latencies)),
        **describe_run(),
    }
    print(json.dumps(line), flush=True)
    return line


if __name__ == "__main__":
    main()
