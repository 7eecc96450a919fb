"""Training curves as SVG that lives inside a page: its text and colours are the page's own, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robostack.common.extras import require_extra
from robostack.common.numbers import is_finite

# matplotlib wants real colours; each of these stands for a variable of the page's style sheet and is replaced.
_COLOURS = {"#010203": "var(--ink-soft)", "#010204": "var(--line)", "#010205": "var(--accent)"}
_INK, _LINE, _ACCENT = _COLOURS

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "robostack",  # the same log gives the same bytes
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}

_CURVES = (  # key in the log, title, label of the y axis, whether it is noisy, whether its scale is logarithmic
    ("loss", "Loss", "loss", True, True),
    ("learning_rate", "Learning rate", "learning rate", False, False),
    ("steps_per_s", "Speed", "steps / s", True, False),
)


def training_curves(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Plots over the training steps, each with its title, as (title, svg): loss, learning rate and speed.

    Lines of the log hold "step" and any of "loss", "learning_rate" and "steps_per_s". What is missing or not finite
    leaves a gap; a curve without a single point is left out, and one of fewer than three has no line. Raises
    MissingExtraError without matplotlib.
    """
    require_extra("matplotlib", "report")
    plots = []
    for key, title, label, noisy, logarithmic in _CURVES:
        steps = np.array([float(line["step"]) for line in log])
        values = np.array([_number(line.get(key)) for line in log])
        if np.isfinite(values).any():
            plots.append((title, _curve(steps, values, label, noisy, logarithmic)))
    return plots


def _number(value: Any) -> float:
    return float(value) if is_finite(value) else math.nan


def _curve(steps: np.ndarray, values: np.ndarray, label: str, noisy: bool, logarithmic: bool) -> str:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        smooth = _smoothed(values) if noisy else None
        if smooth is None:
            marker, line = "o" if len(steps) < 12 else "", "-" if len(steps) > 2 else ""
            axes.plot(steps, values, color=_ACCENT, linewidth=1.8, linestyle=line, marker=marker, markersize=3.5)
        else:
            axes.plot(steps, values, color=_ACCENT, linewidth=0.8, alpha=0.35)
            axes.plot(steps, smooth, color=_ACCENT, linewidth=1.8)
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.locator_params(axis="x", nbins=5)
        axes.margins(x=0.01)
        low, high = np.nanmin(values), np.nanmax(values)
        if logarithmic and low > 0 and high < 3 * low:
            pass  # too narrow for a logarithmic scale to have ticks
        elif logarithmic and low > 0:
            axes.set_yscale("log")
            # 0.2, 0.5, 1 where there are few decades: numbers that are read at a glance.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(which="minor", axis="y", linewidth=0.3)
        else:
            axes.set_ylim(bottom=0)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), f"{label} over training steps")


def _smoothed(values: np.ndarray, points: int = 100) -> np.ndarray | None:
    """A centred running mean, or None when the curve is too short or too broken to need one."""
    if len(values) < points or not np.isfinite(values).all():
        return None
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(len(values))
    low, high = np.maximum(ends - half, 0), np.minimum(ends + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _inline(svg: str, description: str) -> str:
    """The <svg> element alone, scalable, coloured by the page, without the addresses a stand-alone file carries."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every plot; nothing refers to them
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
