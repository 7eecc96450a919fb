"""An energy policy that was never told of a forbidden region is composed with the region's energy, or with a limit's.

    .venv/bin/python scripts/energy_composition.py RUN --episodes 50

RUN is a run of `robostack train energy` on aloha-transfer-cube. Every demonstration breaks each constraint:
tray    the left fingertip stays above a height, at which the arms hand the cube over
ball    the left fingertip keeps out of a ball on its way to where it waits
wrist   the left wrist does not bend as far as it would
The same episodes are run without and with what is added; a JSON line each says how often the task was done, and how
often, long and far the constraint was broken, by the arm itself and not by what it was told.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robostack.evaluation.actors import Look, PolicyActor
from robostack.evaluation.composition import Below, Cost, Fingertips, Sphere, composed_actor, keep_out, limits
from robostack.evaluation.rollout import Worlds, make_worlds, run_together
from robostack.intervals import wilson_interval

ENV = "aloha-transfer-cube"
LEFT = Fingertips(("left",))
TRAY = Below(height=0.24)
BALL = Sphere(centre=(-0.15, 0.5, 0.266), radius=0.03)
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
    "ball": Constraint(lambda state: BALL.depth(LEFT(state)), keep_out(BALL, LEFT, clearance=0.02, softness=0.025)),
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


def main() -> None:
    """Prints the JSON lines, and writes them to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=2_000_000)
    parser.add_argument("--constraints", nargs="+", default=list(CONSTRAINTS), choices=CONSTRAINTS)
    parser.add_argument("--added", nargs="+", type=int, default=[0, 1], choices=[0, 1], help="without, with")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        study(arguments.run, name, bool(added), range(arguments.seed, arguments.seed + arguments.episodes))
        for name in arguments.constraints
        for added in arguments.added
    ]
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


def study(run: Path, name: str, added: bool, seeds: range) -> dict[str, object]:
    """The episodes of `seeds` with the constraint named, watched or also added, summed up."""
    constraint = CONSTRAINTS[name]
    acting = composed_actor(run, "aloha", constraint.cost) if added else PolicyActor(run)
    worlds, actor = make_worlds(ENV), Watched(acting, constraint.excess)
    done, depths, inside, latencies = [], [], [], []
    for seed in seeds:
        (episode,) = run_together(worlds, actor, [seed])
        done.append((episode.success, episode.final))
        depths.append(max(actor.seen))
        inside.append(sum(depth > 0 for depth in actor.seen))
        latencies += episode.latencies_ms
    successes, finals = (sum(column) for column in zip(*done, strict=True))
    line: dict[str, object] = {
        "constraint": name,
        "added": added,
        "episodes": len(seeds),
        "seed": seeds[0],
        "success": successes / len(seeds),
        "success_interval": list(wilson_interval(successes, len(seeds))),
        "final": finals / len(seeds),
        "broken": sum(steps > 0 for steps in inside) / len(seeds),
        "steps_broken_mean": float(np.mean(inside)),
        "excess_mean": float(np.mean(depths)),
        "excess_max": float(np.max(depths)),
        "latency_ms_p50": float(np.median(latencies)),
    }
    print(json.dumps(line), flush=True)
    return line


if __name__ == "__main__":
    main()
