"""Which Kinetix levels PPO solves, at what cost, and what delay does to its experts: docs/results/experts.md.

    .venv/bin/python scripts/expert_benchmark.py             every level that is not done yet
    .venv/bin/python scripts/expert_benchmark.py --only s/h6_unicycle_right

One level after the other, each by `robostack expert` on one core. Runs are kept below runs/experts/; what is done is
not done again, an interrupted run goes on, and the page is written anew after every level.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_pages
from benchmark_pages import (
    Record,
    commits_and_dates,
    how_made,
    read_records,
    refuse_unclean,
    share,
    write_page,
)

from robostack.common.files import write_file
from robostack.experts.ppo.acting import PpoExpert, play
from robostack.experts.ppo.checkpoint import ExpertCheckpoint
from robostack.experts.ppo.config import ExpertConfig
from robostack.experts.ppo.training import EVALUATION_SEED, read_updates, resume_expert, train_expert, world_of

RUNS = Path("runs/experts")
DELAYS = (0, 1, 2, 3, 4)
SOLVED, ENOUGH = 0.8, 128  # a level counts as solved at this share of so many episodes in a row


@dataclass(frozen=True)
class Case:
    """A level and how long it is tried."""

    level: str
    updates: int

    @property
    def run(self) -> Path:
        return RUNS / self.level.replace("/", "-")

    @property
    def env(self) -> str:
        return f"kinetix-{self.level.replace('/', '-')}"

    @property
    def first_checkpoint(self) -> int:
        """The first update, so that there are bad players too; later in large worlds, where 256 episodes take a
        minute."""
        return 4 if self.level.startswith("l/") else 1

    @property
    def command(self) -> list[str]:
        flags = ["--updates", str(self.updates), "--first-checkpoint", str(self.first_checkpoint)]
        return ["expert", "--env", self.env, "--out", str(self.run), *flags]


CASES = (
    Case("s/h0_weak_thrust", 64),
    Case("s/h2_one_wheel_car", 64),
    Case("s/h3_point_the_thruster", 64),
    Case("s/h4_thrust_aim", 64),
    Case("s/h5_rotate_fall", 64),
    Case("s/h6_unicycle_right", 32),
    Case("s/h7_unicycle_left", 32),
    Case("s/h8_unicycle_balance", 32),
    Case("m/h0_unicycle", 48),
    Case("m/h1_car_left", 32),
    Case("m/h2_car_right", 32),
    Case("m/h3_car_thrust", 64),
    Case("m/h7_car_flip", 48),
    Case("m/h8_weird_vehicle", 32),
    Case("m/h9_spin_the_right_way", 48),
    Case("m/h10_thrust_right_easy", 48),
    Case("m/h12_thrustfall_left", 48),
    Case("m/h13_thrustfall_right", 48),
    Case("m/h16_thrustcontrol_right", 192),
    Case("m/h18_thrust_right_very_easy", 32),
    Case("l/h4_cartpole", 48),
    Case("l/h15_swing_up", 96),
    Case("l/h17_unicycle", 32),
    Case("l/hard_lunar_lander", 112),
    Case("l/mjc_swimmer", 96),
)


def main() -> None:
    """Trains what is missing, and writes docs/results/experts.md, .json and .svg after every level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="levels that begin so; others keep their results")
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)), help="the core to train on")
    parser.add_argument("--page", action="store_true", help="write the page from the records, and run nothing")
    parser.add_argument(
        "--unclean", action="store_true", help="make records of a tree with changes that no commit holds"
    )
    arguments = parser.parse_args()
    if arguments.page:
        return _write()
    os.sched_setaffinity(0, {arguments.core})
    records = _earlier()
    for case in CASES:
        if case.level in records or not case.level.startswith(tuple(arguments.only)):
            continue
        refuse_unclean(arguments.unclean)
        _train(case)
        record = _measure(case) | ({"unclean": True} if arguments.unclean else {})
        records = {**_earlier(), case.level: record}  # another core may have written since
        chosen = [records[case.level] for case in CASES if case.level in records]
        text = json.dumps(chosen, indent=None).replace('{"level"', '\n{"level"') + "\n"
        write_file(benchmark_pages.RESULTS / "experts.json", text)
        _write()


def _earlier() -> dict[str, Record]:
    """The results that stand written, of levels that are still to be trained in the same way."""
    found = {record["level"]: record for record in read_records("experts")}
    wanted = {case.level: case.command for case in CASES}
    return {
        level: record
        for level, record in found.items()
        if wanted.get(level) == record["command"] and len(record["delayed"]) == len(DELAYS)
    }


def _train(case: Case) -> None:
    """In this process, so that levels of one size share their compiled programs."""
    if list(case.run.glob("checkpoints/*/expert.json")):
        made = ExpertCheckpoint.read(case.run)
        if made.config.updates != case.updates:
            raise SystemExit(f"{case.run} is a run of {made.config.updates} updates, not {case.updates}: remove it")
        if made.update < case.updates:
            print("robostack expert --resume", case.run, flush=True)
            resume_expert(case.run)
        return
    if case.run.exists():  # interrupted before its first checkpoint
        shutil.rmtree(case.run)
    print("robostack", *case.command, flush=True)
    train_expert(ExpertConfig(case.env, case.run, updates=case.updates, first_checkpoint=case.first_checkpoint))


def _measure(case: Case) -> Record:
    """Reads what training left, and plays on old observations."""
    checkpoint = ExpertCheckpoint.read(case.run)
    assert checkpoint.evaluation is not None
    log = read_updates(case.run)
    record: Record = {
        "level": case.level,
        "command": case.command,
        "updates": checkpoint.update,
        "env_steps": log[-1]["env_steps"],
        "cpu_s": log[-1]["cpu_s"],
        "cpu_s_to_80": cpu_s_to(log),
        "mean_length": checkpoint.evaluation["mean_length"],
        "success": checkpoint.evaluation["success"],
        "success_interval": checkpoint.evaluation["success_interval"],
        "episodes": checkpoint.evaluation["episodes"],
        "qualities": [
            {"update": at.update, "cpu_s": at.training.cpu_s, "success": at.evaluation["success"]}
            for at in map(ExpertCheckpoint.read, sorted(case.run.glob("checkpoints/update-*")))
            if at.evaluation is not None  # else it was stopped there
        ],
        "curve": [[line["cpu_s"], line["solved"], line["episodes"]] for line in log],
        **{key: getattr(checkpoint.training, key) for key in ("commit", "machine", "date")},
    }
    world, start = world_of(checkpoint.config)
    acting, config = PpoExpert(checkpoint).acting, checkpoint.config
    steps, seed = config.ppo.max_episode_steps, EVALUATION_SEED + config.seed
    record["delayed"] = [play(world, start, acting, config.evaluation_episodes, steps, seed, d) for d in DELAYS]
    return record


def cpu_s_to(log: Sequence[Mapping[str, Any]]) -> float | None:
    """CPU seconds of training until 80 % of the last 128 episodes or more were solved by the exploring policy."""
    for end in range(1, len(log) + 1):
        solved = episodes = 0.0
        for line in reversed(log[:end]):
            solved, episodes = solved + (line["solved"] or 0.0) * line["episodes"], episodes + line["episodes"]
            if episodes >= ENOUGH:
                break
        if episodes >= ENOUGH and solved >= SOLVED * episodes:
            return log[end - 1]["cpu_s"]
    return None


def _write() -> None:
    """docs/results/experts.md and .svg, from experts.json."""
    records = read_records("experts")
    _draw(records)
    missing = len(CASES) - len(records)
    note = f"**{missing} of {len(CASES)} levels are still to be trained.**\n\n" if missing else ""
    write_page(
        "experts",
        "# Experts by reinforcement in Kinetix\n\n"
        "PPO with the same settings in every level (the defaults of `robostack expert`, training seed 0; only the "
        "number of updates differs, 8,192 steps each), one core, actions with noise of deviation 0.1 in training and "
        "evaluation. Every level so trained is listed, solved or not; numbers of updates were chosen after shorter "
        "trial runs, which are not counted.\n\n"
        f"{note}{_table(records)}\n\n"
        "*Success*: of the deterministic policy (mean action) at the end of training, over 256 episodes with fresh "
        "noise; brackets are 95 % Wilson intervals. *CPU s to 80 %*: until the exploring policy solved 80 % of its "
        "last 128 episodes. CPU seconds are those of updates: compiling (some 33 s a world size, 7 from the cache) "
        "and evaluating are left out.\n\n"
        "## Old observations\n\n"
        "Success of the same experts if an action follows from what was seen d steps (of 1/30 s) before.\n\n"
        f"{_delay_table(records)}\n\n"
        "## Learning\n\n![share of solved episodes over CPU seconds](experts.svg)\n\n"
        f"{how_made(records)}"
        f"Command: `scripts/benchmark experts`, {records[-1]['machine']}, one core, {commits_and_dates(records)}. All "
        "figures: `experts.json`, from which `scripts/benchmark experts --page` writes this page.\n",
    )


def _table(records: Sequence[Record]) -> str:
    lines = [
        "| level | success | steps to the end | CPU s to 80 % | CPU s | environment steps | steps / CPU s "
        "| at the checkpoints before |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        to = "–" if r["cpu_s_to_80"] is None else f"{r['cpu_s_to_80']:.0f}"
        before = ", ".join(f"{quality['success']:.0%}" for quality in r["qualities"][:-1])
        lines.append(
            f"| {r['level']} | {_share(r)} | {r['mean_length']:.0f} | {to} | {r['cpu_s']:.0f} | {r['env_steps']:,} "
            f"| {r['env_steps'] / r['cpu_s']:,.0f} | {before} |"
        )
    return "\n".join(lines)


def _delay_table(records: Sequence[Record]) -> str:
    lines = ["| level | " + " | ".join(f"d = {d}" for d in DELAYS) + " |", "|---" * (len(DELAYS) + 1) + "|"]
    lines += [f"| {r['level']} | " + " | ".join(_share(delayed) for delayed in r["delayed"]) + " |" for r in records]
    return "\n".join(lines)


def _draw(records: Sequence[Record]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "robostack"  # the same file for the same figures
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(11, 5), sharey=True)
    for size, axes in zip("sml", panels, strict=True):
        sized = [record for record in records if record["level"].startswith(f"{size}/")]
        for i, record in enumerate(sized):
            seen = [(cpu_s, solved) for cpu_s, solved, _ in record["curve"] if solved is not None]
            name = record["level"].removeprefix(f"{size}/")
            axes.plot(*zip(*seen, strict=True), label=name, linestyle=("-", "--")[i // 10], linewidth=1.2)
        axes.set(xscale="log", xlabel="CPU s of training", ylim=(-0.02, 1.02), title=f"worlds of size {size}")
        axes.grid(alpha=0.3)
        if sized:
            axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    panels[0].set_ylabel("solved, of the episodes of an update")
    figure.savefig(benchmark_pages.RESULTS / "experts.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def _share(result: Mapping[str, Any]) -> str:
    return share(result["success"], result["success_interval"])


if __name__ == "__main__":
    main()
