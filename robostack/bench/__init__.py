"""How `robostack bench` measures: programs take turns, so that a machine that slows down slows all of them.

A program is called for one block of work and gives its rate. Reported are medians over the blocks, and the median ratio
of blocks that follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from robostack.common.provenance import describe_machine


def timed(program: Callable[[], int], clock: Callable[[], float]) -> Callable[[], float]:
    """The rate of a program that does one block of work and returns how much that was."""

    def rate() -> float:
        start = clock()
        done = program()
        return done / (clock() - start)

    return rate


def take_turns(programs: Mapping[str, Callable[[], float]], blocks: int) -> dict[str, list[float]]:
    """The rates of each program over `blocks` rounds in which all take turns.

    One unmeasured round comes first: it loads libraries and fills caches.
    """
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for block in range(blocks + 1):
        for name, program in programs.items():
            rate = program()
            if block:
                rates[name].append(rate)
    return rates


def compare(rates: list[float], peer_rates: list[float]) -> tuple[float, float, float]:
    """Both medians, and the median ratio of the blocks."""
    ratios = [one / other for one, other in zip(rates, peer_rates, strict=True)]
    return median(rates), median(peer_rates), median(ratios)


def measurement(
    bench: str, case: str, metric: str, unit: str, found: tuple[float, float, float], peer: str
) -> dict[str, Any]:
    """A line of `robostack bench`; `found` is the value, the peer's, and by how much robostack is better."""
    value, peer_value, ratio = found
    return {
        "bench": bench,
        "case": case,
        "metric": metric,
        "unit": unit,
        "value": _rounded(value),
        "peer": peer,
        "peer_value": _rounded(peer_value),
        "ratio": _rounded(ratio),
        "machine": describe_machine(),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
