"""What the pages of learning results have in common: tables, what they say of seeds and commits, and where they lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robostack.common.files import write_file
from robostack.common.intervals import seeds_interval
from robostack.common.provenance import commit

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"

Record = dict[str, Any]
"""What came of a run: its label and training seed, commands, cost and evaluation, with commit, machine and date."""


def read_records(name: str) -> list[Record]:
    """The records of docs/results/<name>.json; none where it does not exist."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def write_records(name: str, records: Sequence[Record]) -> None:
    """Writes docs/results/<name>.json."""
    write_file(RESULTS / f"{name}.json", json.dumps(records, indent=1) + "\n")


def write_page(name: str, page: str) -> None:
    """Writes docs/results/<name>.md."""
    write_file(RESULTS / f"{name}.md", page)


def refuse_unclean(allowed: bool) -> None:
    """Ends the script, in one line, where what is about to be measured is in no commit. What was measured before, below
    docs/results, does not count."""
    if (made_of := commit()).endswith("+changes") and not allowed:
        raise SystemExit(
            f"the tree has changes beyond {made_of.removesuffix('+changes')}: commit them, so that the record says "
            "what was measured, or give --unclean, which the record then says"
        )


def share(value: float, interval: Sequence[float]) -> str:
    """A share with its interval, in per cent."""
    return f"{value:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"


def training_seed(record: Record) -> int:
    """Records of the first scripts say it in their command alone."""
    return record["training_seed"] if "training_seed" in record else int(_flag(record, "--seed"))


def steps(record: Record) -> int:
    """As `training_seed`."""
    return record["steps"] if "steps" in record else int(_flag(record, "--steps"))


def _flag(record: Record, name: str) -> str:
    (train,) = (command for command in record["commands"] if command[1] == "train")
    return train[train.index(name) + 1]


def of_each_seed(records: Sequence[Record]) -> str:
    """What runs of one label reached with each of several training seeds, and an interval for the method."""
    lines = []
    for label in dict.fromkeys(record["label"] for record in records):
        same = sorted((record for record in records if record["label"] == label), key=training_seed)
        if len(same) > 1:
            rates = ", ".join(f"{key} {rate_of_seeds(same, key)}" for key in ("success", "final"))
            returns = ""
            if all("mean_return" in record for record in same):
                returns = "; mean return " + ", ".join(f"{record['mean_return']:.3g}" for record in same)
            lines.append(f"- {label}: {rates}{returns}\n")
    if not lines:
        return ""
    seeds = len({training_seed(record) for record in records})
    return (
        f"Over the training seeds: the mean rate, [an interval] and the rate of each seed. The interval is a bootstrap "
        f"that draws training seeds and, of each, its number of successes (the records hold counts, not single "
        f"episodes), never narrower than Wilson's for all episodes together; of {seeds} training seeds it is coarse, "
        f"and rather too narrow: look at the seeds.\n\n{''.join(lines)}\n"
    )


def rate_of_seeds(records: Sequence[Record], key: str) -> str:
    """`mean [interval] (each seed)`, in per cent, of records that differ in their training seed."""
    sizes = [record["episodes"] for record in records]
    counts = [round(record[key] * record["episodes"]) for record in records]
    interval = seeds_interval(counts, sizes, np.random.default_rng(0))
    each = ", ".join(f"{100 * count / size:.0f}" for count, size in zip(counts, sizes, strict=True))
    return f"{share(sum(counts) / sum(sizes), interval)} ({each})"


def how_made(records: Sequence[Record]) -> str:
    """What is to be known of how records were made: their seeds, and whether a commit holds what was measured."""
    said = ""
    labels = [record["label"] for record in records if "label" in record and "demonstration_seed" not in record]
    if len(set(labels)) < len(labels):
        said += (
            f"{len(labels)} of {len(records)} runs were made under the old plan of seeds: all training seeds of a "
            "label share the same demonstrations and the same evaluation seeds, so that what differs between them is "
            "the training alone. Runs made from now on have demonstrations and evaluation seeds of their own for every "
            "training seed.\n"
        )
    unclean = [record for record in records if record["commit"].endswith("+changes")]
    if unclean:
        said += (
            f"{len(unclean)} of {len(records)} records were made from a tree with changes that no commit holds "
            "(+changes). Scripts refuse that now.\n"
        )
    return said


def commits_and_dates(records: Sequence[Record]) -> str:
    """The commits of the records, and until when they were made."""
    commits = list(dict.fromkeys(record["commit"] for record in records))
    return f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}, until {max(r['date'] for r in records)}"


def table_of_runs(records: Sequence[Record]) -> str:
    """A line for each run."""
    lines = [
        "| run | training seed | parameters | steps | training, CPU s | steps / CPU s | success | final "
        "| mean return | chunk latency, ms p50 / p95 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        parameters = f"{r['parameters'] / 1e6:.2f} M" if "parameters" in r else "–"
        returned = f"{r['mean_return']:.3g}" if "mean_return" in r else "–"
        lines.append(
            f"| {r['label']} | {training_seed(r)} | {parameters} | {steps(r)} "
            f"| {r['training_cpu_s']:.0f} | {steps(r) / r['training_cpu_s']:.1f} "
            f"| {share(r['success'], r['success_interval'])} | {share(r['final'], r['final_interval'])} "
            f"| {returned} | {r['latency_ms_p50']} / {r['latency_ms_p95']} |"
        )
    return "\n".join(lines)
