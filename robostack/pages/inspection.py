"""The page that shows a colleague a data set: what is in it, what is wrong with it, every dimension, some frames.

One file that needs nothing beside it, like the report of an evaluation. Curves and histograms are SVG drawn here, in
the page's own colours; frames are small JPEG pictures.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from robostack.common.extras import require_extra
from robostack.datasets.inspection.findings import Curve, Entry, FeatureSummary, Inspection, Picture, Problem
from robostack.pages.html import number, text, write_page

DIMENSIONS_DRAWN = 96
PROBLEMS_SHOWN = 100
ENTRIES_SHOWN = 64
"""Of one feature, in the table."""
TASKS_SHOWN = 100
BINS = 30
COLOURS = 6
"""How many colours of curves the style sheet has."""


def write_inspection(path: Path | str, inspection: Inspection) -> None:
    """Writes the page, whole or not at all.

    Raises MissingExtraError when there are pictures to show and pillow is not installed.
    """
    title = inspection.path.resolve().name
    write_page(
        path,
        title,
        (
            _header(title, inspection),
            _headline(inspection),
            _problems(inspection.wrong),
            _notes(inspection.notes),
            _cameras(inspection.pictures),
            _dimensions(inspection),
            _features(inspection.features),
            _lengths_and_tasks(inspection),
            _provenance(inspection),
        ),
    )


def bytes_text(count: int) -> str:
    """A size for people, such as "1.5 MB"."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if value < 999 else f"{value:.0f} {unit}"


def _header(title: str, inspection: Inspection) -> str:
    robot = f" · robot {text(inspection.robot)}" if inspection.robot else ""
    return f'<header><h1>{text(title)}</h1>\n<p class="soft">{text(inspection.format)}{robot}</p></header>\n'


def _headline(inspection: Inspection) -> str:
    lengths = sorted(inspection.lengths.values()) or [0]
    long = f"{lengths[0]:,} to {lengths[-1]:,} frames long,<br>median {np.median(lengths):,.0f}"
    long = f"{lengths[0]:,} frames each" if lengths[0] == lengths[-1] else long
    fps = inspection.fps
    rate = f"{number(fps, 'g')}<small> Hz</small>" if fps else '–<small class="bad"> not recorded</small>'
    time = f"{_duration(inspection.frames / fps)} at this rate." if fps else "How long they took is not known."
    count, notes = len(inspection.wrong), len(inspection.notes)
    cameras = any(summary.feature.is_camera for summary in inspection.features)
    pictures = f", and {len(inspection.pictures)} camera frames" if inspection.pictures else ""
    looked = f"All numbers were checked{pictures}{', but no camera frame' * (cameras and not pictures)}."
    more = f"<br>{notes:,} note{'s' * (notes != 1)} below." if notes else ""
    return f"""<section class="grid cards">
<div class="card"><h3>Episodes</h3><div class="figure">{inspection.episodes:,}</div>
<p>{long}.</p></div>
<div class="card"><h3>Frames</h3><div class="figure">{inspection.frames:,}</div>
<p>{bytes_text(inspection.bytes)} on disk.</p></div>
<div class="card"><h3>Rate</h3><div class="figure">{rate}</div><p>{time}</p></div>
<div class="card"><h3>Problems</h3><div class="figure {"bad" if count else "good"}">{count or "none"}</div>
<p>{looked}{more}</p></div>
</section>
"""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _problems(problems: Sequence[Problem]) -> str:
    if not problems:
        return """<section><h2>Problems</h2>
<p class="note"><span class="good">✓</span> None found: every episode can be read, all numbers are finite, nothing
jumps or turns too far, timestamps keep the rate.</p></section>
"""
    return _findings("Problems", problems, "bad")


def _notes(notes: Sequence[Problem]) -> str:
    about = '<p class="note">Good to know; sound data has these too.</p>\n'
    return _findings("Notes", notes, "soft", about) if notes else ""


def _findings(title: str, problems: Sequence[Problem], colour: str, about: str = "") -> str:
    rows = "\n".join(
        f'<tr><td class="left {colour}">{text(problem.kind)}</td><td class="left wrap">{text(problem.text)}</td></tr>'
        for problem in problems[:PROBLEMS_SHOWN]
    )
    return f"""<section><h2>{title}</h2>
{about}{_left_out(len(problems), PROBLEMS_SHOWN, title.lower())}
<div class="scroll"><table><tbody>
{rows}
</tbody></table></div></section>
"""


def _cameras(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    require_extra("PIL", "data")
    sheets = []
    for camera in dict.fromkeys(picture.camera for picture in pictures):
        frames = "\n".join(_figure(picture) for picture in pictures if picture.camera == camera)
        sheets.append(f'<h3 class="mono">{text(camera)}</h3>\n<div class="grid sheet">\n{frames}\n</div>')
    return f"""<section><h2>Cameras</h2>
<p class="note">First, middle and last frame of a few episodes.</p>
{chr(10).join(sheets)}</section>
"""


def _figure(picture: Picture) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture.pixels).save(data, "JPEG", quality=88, subsampling=0)
    caption = f"episode {picture.episode} · frame {picture.frame}"
    small = ' class="small"' if max(picture.pixels.shape) < 128 else ""
    source = base64.b64encode(data.getvalue()).decode("ascii")
    return (
        f'<figure class="clip"><img{small} alt="{text(picture.camera)}, {caption}" '
        f'src="data:image/jpeg;base64,{source}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _dimensions(inspection: Inspection) -> str:
    # A timestamp rises in a straight line.
    measured = [s for s in inspection.features if s.key in inspection.rows and s.key != "timestamp"]
    dimensions = [(summary, entry) for summary in measured for entry in range(len(summary.entries))]
    if not dimensions:
        return ""
    episodes = dict.fromkeys(curve.episode for curves in inspection.curves.values() for curve in curves)
    names = ", ".join(f'<span class="c{i % COLOURS}">{episode}</span>' for i, episode in enumerate(episodes))
    plots, drawn = [], dimensions[:DIMENSIONS_DRAWN]
    for key in dict.fromkeys(summary.key for summary, _ in drawn):
        cards = [_dimension(inspection, key, i, of.entries[i]) for of, i in drawn if of.key == key]
        plots.append(f'<h3 class="mono">{text(key)}</h3>\n<div class="grid dimensions">\n{chr(10).join(cards)}\n</div>')
    legend = f"Over time in {'episode' if len(episodes) == 1 else 'the episodes'} {names}" if episodes else "No curves"
    return f"""<section><h2>Every dimension</h2>
<p class="note">{legend}; at the right how often each value occurs over all episodes. A dashed line marks the worst jump
or another problem of the dimension.</p>{_left_out(len(dimensions), DIMENSIONS_DRAWN, "dimensions")}
{chr(10).join(plots)}</section>
"""


def _dimension(inspection: Inspection, key: str, index: int, entry: Entry) -> str:
    name = entry.name or key
    unit = f" <small>{text(entry.unit)}</small>" if entry.unit else ""
    caption = f"<figcaption>{text(name)}{unit}</figcaption>"
    if entry.min is None or entry.max is None:
        return f'<figure class="plot">{caption}<p class="note">No finite value.</p></figure>'
    low, high = _axis(entry.min, entry.max)
    plot = _Plot(low, high, [(curve, curve.rows[:, index]) for curve in inspection.curves[key]], inspection.fps)
    marks = [
        (problem.episodes[0], problem.frame)
        for problem in inspection.problems
        if (problem.feature, problem.entry) == (key, entry.name) and problem.episodes and problem.frame is not None
    ]
    content = plot.axes() + plot.marks(marks) + plot.curves() + plot.histogram(inspection.rows[key][:, index])
    label = text(f"{name}: over time, and how often each value occurs")
    svg = f'<svg role="img" aria-label="{label}" viewBox="0 0 340 132">{content}</svg>'
    return f'<figure class="plot">{caption}{svg}</figure>'


def _axis(low: float, high: float) -> tuple[float, float]:
    """A range to draw in: of values that are all alike, or next to, some room about them."""
    room = max(abs(low), abs(high)) * 1e-9
    if not math.isfinite(high - low):  # nobody's joint, but floats go up to 1.8e308
        return low / 2, high / 2
    return (low, high) if high - low > room else (low - max(0.5, 1e6 * room), high + max(0.5, 1e6 * room))


def ticks(low: float, high: float) -> tuple[str, str, str]:
    """Labels of the bottom, the middle and the top of an axis: as many digits as tell them apart, and no "-0"."""
    span = high - low
    places = 2 - math.floor(math.log10(span))
    largest = max(abs(low), abs(high))

    def label(value: float) -> str:
        value = round(value, places) + 0.0  # a rounded -0.0 becomes 0.0
        if value and (largest >= 1e6 or largest < 1e-3):
            # The digits that `places` leaves, in the shortest form.
            digits = max(math.floor(math.log10(abs(value))) + places, 0)
            mantissa, exponent = f"{value:.{min(digits, 15)}e}".split("e")
            mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
            return f"{mantissa}e{int(exponent)}"
        text = f"{value:.{max(places, 0)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text

    return label(low), label(low + span / 2), label(high)


class _Plot:
    """Curves from left to right and, at their right, the histogram of the same values: one axis of values for both."""

    RIGHT, TOP, BOTTOM = 258.0, 8.0, 108.0
    BARS, END = 266.0, 336.0
    DIGIT = 6.6
    """Width of a digit, with some room: the widest of fonts that a page may get."""

    def __init__(self, low: float, high: float, curves: Sequence[tuple[Curve, np.ndarray]], fps: float | None) -> None:
        self.low, self.high, self.drawn, self.fps = low, high, curves, fps
        self.ticks = ticks(low, high)
        self.left = max(54.0, 8 + self.DIGIT * max(map(len, self.ticks)))
        self.last = max([(len(values) - 1) * curve.stride for curve, values in curves] or [0]) or 1

    def _y(self, value: float) -> float:
        return self.BOTTOM - (value - self.low) / (self.high - self.low) * (self.BOTTOM - self.TOP)

    def _x(self, frame: float) -> float:
        return self.left + frame / self.last * (self.RIGHT - self.left)

    def axes(self) -> str:
        heights = (self.BOTTOM, (self.BOTTOM + self.TOP) / 2, self.TOP)
        parts = [
            f'<path class="line" d="M{self.left:.1f} {y:.1f}H{self.END}"/>'
            f'<text x="{self.left - 5:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{tick}</text>'
            for y, tick in zip(heights, self.ticks, strict=True)
        ]
        if self.drawn:
            end = f"{self.last / self.fps:.3g} s" if self.fps else f"frame {self.last}"
            parts.append(f'<text x="{self.left:.1f}" y="124">0</text>')
            parts.append(f'<text x="{self.RIGHT}" y="124" text-anchor="end">{end}</text>')
        return "".join(parts)

    def curves(self) -> str:
        paths = []
        for place, (curve, values) in enumerate(self.drawn):
            points, pen = [], "M"
            for step, value in enumerate(values.tolist()):
                if math.isfinite(value):
                    points.append(f"{pen}{self._x(step * curve.stride):.1f} {self._y(value):.1f}")
                pen = "L" if math.isfinite(value) else "M"
            paths.append(f'<path class="curve c{place % COLOURS}" d="{"".join(points)}"/>')
        return "".join(paths)

    def marks(self, places: Iterable[tuple[int, int]]) -> str:
        colours = {curve.episode: place % COLOURS for place, (curve, _) in enumerate(self.drawn)}
        return "".join(
            f'<path class="mark c{colours[episode]}" d="M{self._x(frame):.1f} {self.TOP}V{self.BOTTOM}"/>'
            for episode, frame in places
            if episode in colours
        )

    def histogram(self, values: np.ndarray) -> str:
        counts, _ = np.histogram(values[np.isfinite(values)], bins=BINS, range=(self.low, self.high))
        height = (self.BOTTOM - self.TOP) / BINS
        width = (self.END - self.BARS) / max(int(counts.max()), 1)
        bars = "".join(
            f"M{self.BARS} {self.BOTTOM - (place + 1) * height:.2f}h{count * width:.1f}v{height - 0.5:.2f}H{self.BARS}z"
            for place, count in enumerate(counts.tolist())
            if count
        )
        return f'<path class="bars" d="{bars}"/>'


def _features(features: Sequence[FeatureSummary]) -> str:
    rows = []
    for summary in features:
        feature = summary.feature
        shape = " × ".join(str(size) for size in feature.shape) or "one number"
        camera = "camera, " if feature.is_image else "depth camera, " if feature.is_depth else ""
        kind = camera or ("" if summary.entries else "not measured, ")
        rows.append(
            f'<tr class="group"><td class="left mono" colspan="6">{text(summary.key)}'
            f'<span class="soft"> {kind}{shape}, {text(feature.dtype)}</span></td></tr>'
        )
        for entry in summary.entries[:ENTRIES_SHOWN]:
            figures = "".join(f"<td>{number(v, '.4g')}</td>" for v in (entry.min, entry.max, entry.mean, entry.std))
            rows.append(
                f'<tr><td class="left">{text(entry.name)}</td>'
                f'<td class="left soft">{text(entry.unit)}</td>{figures}</tr>'
            )
        if (more := len(summary.entries) - ENTRIES_SHOWN) > 0:
            rows.append(f'<tr><td class="left soft" colspan="6">and {more} more</td></tr>')
    head = "".join(f'<th class="plain{side}">{name}</th>' for name, side in _HEAD)
    return f"""<section><h2>Features</h2>
<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody></table></div></section>
"""


_HEAD = (("Entry", " left"), ("Unit", " left"), ("Smallest", ""), ("Largest", ""), ("Mean", ""), ("Deviation", ""))


def _lengths_and_tasks(inspection: Inspection) -> str:
    tasks = "\n".join(
        f'<tr><td class="left wrap">{text(task) or "(no text)"}</td><td>{count:,}</td></tr>'
        for task, count in list(inspection.tasks.items())[:TASKS_SHOWN]
    )
    return f"""<section><h2>Tasks</h2>{_left_out(len(inspection.tasks), TASKS_SHOWN, "tasks")}
<div class="scroll"><table>
<thead><tr><th class="plain left">Task</th><th class="plain">Episodes</th></tr></thead>
<tbody>
{tasks}
</tbody></table></div></section>
<section><h2>Length of the episodes</h2>
{_length_histogram(list(inspection.lengths.values()))}</section>
"""


def _length_histogram(lengths: Sequence[int]) -> str:
    if not lengths:
        return '<p class="note">No episode can be read.</p>\n'
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return f'<p class="note">Every episode has {shortest:,} frames.</p>\n'
    bins = min(40, longest - shortest + 1)
    counts, _ = np.histogram(lengths, bins=bins, range=(shortest, longest))
    width = 640 / bins
    bars = "".join(
        f'<path class="bars" d="M{place * width + 1:.1f} 110V{110 - 95 * count / counts.max():.1f}'
        f'h{width - 2:.1f}V110z"><title>episodes: {count}</title></path>'
        for place, count in enumerate(counts.tolist())
        if count
    )
    return f"""<figure class="plot wide"><svg role="img" aria-label="episodes by length" viewBox="0 0 640 130">
{bars}<path class="line" d="M0 110H640"/><text x="0" y="126">{shortest:,} frames</text>
<text x="640" y="126" text-anchor="end">{longest:,} frames</text></svg></figure>
"""


def _provenance(inspection: Inspection) -> str:
    values = {"path": str(inspection.path), **inspection.provenance}
    items = "\n".join(
        f"<dt>{text(key)}</dt><dd><code>{text(value)}</code></dd>"
        for key, value in ((key, v if isinstance(v, str) else json.dumps(v, default=str)) for key, v in values.items())
    )
    return f"<section><h2>Where it comes from</h2>\n<dl>\n{items}\n</dl></section>\n"


def _left_out(count: int, shown: int, what: str) -> str:
    return f'<p class="note">The first {shown} of {count:,} {what} are shown.</p>' if count > shown else ""
