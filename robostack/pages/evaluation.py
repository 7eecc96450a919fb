"""The page that tells a colleague what an evaluation found: one HTML file that needs nothing beside it.

Everything is inside: style, plots (SVG), videos (base64); see `html`.
"""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robostack.common.numbers import is_finite
from robostack.pages.html import number, text, write_page
from robostack.pages.plots import training_curves

_CLIP_WIDTH = 288
"""Pixels of the narrowest column of films."""
_SUMMARY_KEYS = (
    *("env", "policy", "task", "episodes", "seed", "success", "success_interval", "final", "final_interval"),
    *("stages", "latency_ms_p50", "latency_ms_p95", "execute_len", "wall_s", "machine", "commit", "command", "date"),
)
_EPISODE_KEYS = (
    *("seed", "success", "final", "stage_max", "stage_final", "first_success_step", "chunks", "latency_ms_p50"),
)


def write_report(
    path: Path | str,
    summary: Mapping[str, Any],
    episodes: Sequence[Mapping[str, Any]],
    training_log: Sequence[Mapping[str, Any]] = (),
    videos: Sequence[tuple[Path | str, str, bool]] = (),
) -> None:
    """Writes the page, whole or not at all; numbers that are None or not finite show as "–".

    `summary` holds env, policy, task, episodes, seed (the first), success and final (shares in [0, 1]) with
    success_interval and final_interval (low, high), stages (highest stage reached → episodes), latency_ms_p50 and
    latency_ms_p95 (one call of the policy), execute_len (actions run of a chunk, or None), wall_s, machine, commit,
    command and date; and where there are: stage_names, training (`describe_training`), device, kept (episodes of an
    earlier start), films_s and notes (sentences).

    An episode holds seed, success, final, stage_max, stage_final, first_success_step (control steps, or None), chunks
    (calls of the policy) and latency_ms_p50. `training_log` is as for `training_curves`, and empty when nothing was
    trained. Videos are (mp4 file, caption, whether it went right), shown in this order, what went wrong first.

    Raises ValueError where a key is missing.
    """
    _require_keys("summary", summary, _SUMMARY_KEYS)
    for place, episode in enumerate(episodes):
        _require_keys(f"episode {place}", episode, _EPISODE_KEYS)
    title = f"{summary['policy']} on {summary['env']}"
    sections = (
        _header(title, summary),
        _headline(summary, episodes),
        _notes(summary.get("notes", ())),
        _stages(summary["stages"], summary.get("stage_names", ())),
        _videos("What went wrong", [video for video in videos if not video[2]]),
        _videos("What went right", [video for video in videos if video[2]]),
        _training(training_log),
        _provenance(summary, episodes),
        _episode_table(episodes),
    )
    write_page(path, title, sections)


def _header(title: str, summary: Mapping[str, Any]) -> str:
    return f'<header><h1>{text(title)}</h1>\n<p class="soft">{text(summary["task"])}</p></header>\n'


def _headline(summary: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    p50, p95 = (number(summary[key], ".1f") for key in ("latency_ms_p50", "latency_ms_p95"))
    executed = summary["execute_len"]
    executed = "" if executed is None else f"<br>One call plans a chunk of actions; {text(executed)} of them run."
    return f"""<section class="grid cards">
{_rate_card("Success · at any step", summary, "success", episodes)}
{_rate_card("Final · at the last step", summary, "final", episodes)}
<div class="card"><h3>Median latency</h3><div class="figure">{p50}<small> ms</small></div>
<p>95th percentile {p95} ms.{executed}</p></div>
<div class="card"><h3>Episodes</h3><div class="figure">{text(summary["episodes"])}</div>
<p>Seeds {_seeds(summary, episodes)}.<br>{_time_taken(summary)}</p></div>
</section>
"""


def _time_taken(summary: Mapping[str, Any]) -> str:
    took = f"Took {number(summary['wall_s'], '.0f')} s"
    if kept := summary.get("kept"):
        took += f" since the last start, before which {text(kept)} episodes had ended"
    films = summary.get("films_s")
    return took + (f", and the films {number(films, '.0f')} s." if films is not None else ".")


def _notes(notes: Sequence[str]) -> str:
    said = "".join(f'<p class="note">Note: {text(note)}.</p>\n' for note in notes)
    return f'<section class="notes">{said}</section>\n' if said else ""


def _rate_card(name: str, summary: Mapping[str, Any], key: str, episodes: Sequence[Mapping[str, Any]]) -> str:
    rate = summary[key]
    low, high = summary[f"{key}_interval"]
    count = sum(bool(episode[key]) for episode in episodes)
    bar = ""
    if all(is_finite(value) for value in (rate, low, high)):
        bar = (
            f'<div class="interval" role="img" aria-label="interval {low:.3f} to {high:.3f}">'
            f'<span style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></span>'
            f'<b style="left:{100 * rate:.2f}%"></b></div>'
        )
    return f"""<div class="card"><h3>{name}</h3>
<div class="figure">{number(rate, ".1f", 100)}<small> %</small></div>{bar}
<p>{count} of {len(episodes)} episodes.<br>
95 % interval {number(low, ".1f", 100)} to {number(high, ".1f", 100)} %.</p></div>"""


def _stages(stages: Mapping[str, int], names: Sequence[str]) -> str:
    total = max(sum(stages.values()), 1)
    top = max(stages, key=int, default="0")
    named = {str(stage): f": {text(name)}" for stage, name in enumerate(names)}
    rows = [
        f"<div>Stage {text(stage)}{named.get(stage, '')}{' (success)' if stage == top else ''}</div>"
        f'<div class="bar{" top" if stage == top else ""}"><span style="width:{100 * count / total:.2f}%"></span></div>'
        f'<div class="count">{text(count)}</div>'
        for stage, count in sorted(stages.items(), key=lambda item: int(item[0]))
    ]
    return f"""<section><h2>How far the episodes came</h2>
<p class="note">Episodes by the highest stage that they reached.</p>
<div class="stages">
{chr(10).join(rows)}
</div></section>
"""


def _videos(heading: str, videos: Sequence[tuple[Path | str, str, bool]]) -> str:
    if not videos:
        return ""
    clips = []
    for file, caption, success in videos:
        data = base64.b64encode(Path(file).read_bytes()).decode("ascii")
        outcome = '<span class="good">✓</span>' if success else '<span class="bad">✕</span>'
        clips.append(
            f'<figure class="clip"><video controls muted loop playsinline preload="auto"{_enlarged(file)} '
            f'src="data:video/mp4;base64,{data}"></video>\n'
            f"<figcaption>{outcome} {text(caption)}</figcaption></figure>"
        )
    return f"""<section><h2>{heading}</h2>
<div class="grid videos">
{chr(10).join(clips)}
</div></section>
"""


def _enlarged(file: Path | str) -> str:
    """Attributes that show a small film a whole number of times as large, in square pixels."""
    import av  # it made the film

    with av.open(str(file)) as container:
        width = container.streams.video[0].width
    times = _CLIP_WIDTH // width
    return f' class="small" style="width:{times * width}px"' if times > 1 else ""


def _training(log: Sequence[Mapping[str, Any]]) -> str:
    if not log:
        return ""
    last = log[-1]
    if importlib.util.find_spec("matplotlib") is None:
        return """<section><h2>Training</h2>
<p class="note">Curves need matplotlib: pip install 'robostack[report]', remove report.html and give the command of the
evaluation again. The numbers are in the run's log.jsonl.</p></section>
"""
    plots = "\n".join(
        f'<figure class="plot"><figcaption>{text(title)}</figcaption>{svg}</figure>'
        for title, svg in training_curves(log)
    )
    return f"""<section><h2>Training</h2>
<p class="note">{number(last.get("step"), ",.0f")} steps in {number(last.get("time_s"), ",.0f")} s.
Waiting for data took {number(_mean(log, "data_wait"), ".1f", 100)} % of the time.</p>
<div class="grid plots">
{plots}
</div></section>
"""


def _provenance(summary: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    rows = {
        "Environment": text(summary["env"]),
        "Task": text(summary["task"]),
        "Policy": text(summary["policy"]),
        "Seeds": _seeds(summary, episodes),
        **_describe_training(summary.get("training")),
        "Device": text(summary.get("device")),
        "Command": f"<code>{text(summary['command'])}</code>",
        "Commit": f"<code>{text(summary['commit'])}</code>",
        "Machine": text(summary["machine"]),
        "Date": text(summary["date"]),
    }
    items = "\n".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
    files = '<a href="summary.json">summary.json</a>, <a href="episodes.jsonl">episodes.jsonl</a>'
    return f"<section><h2>What was run</h2>\n<dl>\n{items}\n<dt>Figures</dt><dd>{files}</dd>\n</dl></section>\n"


def _describe_training(training: Mapping[str, Any] | None) -> dict[str, str]:
    if training is None:
        return {}
    sets = [
        f"{text(data['path'])}: {number(data['episodes'], ',d')} episodes, {number(data['frames'], ',d')} frames, "
        + ("seeds not known" if data["seeds"] is None else f"seeds {'–'.join(text(seed) for seed in data['seeds'])}")
        for data in training["data"]
    ]
    step, steps = (number(training[key], ",d") for key in ("step", "steps"))
    return {
        "Checkpoint": f"{text(training['checkpoint'])}, {number(training['parameters'], ',d')} parameters",
        "Data": "<br>".join(sets),
        "Training": f"{step} of {steps} steps, batch {text(training['batch'])}, {text(training['optimizer'])} at "
        f"learning rate {text(training['learning_rate'])}, seed {text(training['seed'])}",
        "Chunk": f"{text(training['chunk_len'])} actions",
    }


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("seed", "Seed", lambda value: text(value)),
    ("success", "Success", lambda value: _yes_no(value)),
    ("final", "Final", lambda value: _yes_no(value)),
    ("stage_max", "Highest stage", lambda value: text(value)),
    ("stage_final", "Last stage", lambda value: text(value)),
    ("first_success_step", "First success (step)", lambda value: number(value, ".0f")),
    ("chunks", "Chunks", lambda value: text(value)),
    ("latency_ms_p50", "Latency p50 (ms)", lambda value: number(value, ".1f")),
)


def _episode_table(episodes: Sequence[Mapping[str, Any]]) -> str:
    if not episodes:
        return ""
    head = "".join(f'<th><button type="button">{heading}</button></th>' for _, heading, _ in _COLUMNS)
    rows = [
        "".join(f'<td data-value="{_sort_value(row[key])}">{show(row[key])}</td>' for key, _, show in _COLUMNS)
        for row in episodes
    ]
    body = "\n".join(f"<tr>{cells}</tr>" for cells in rows)
    return f"""<section><h2>Every episode</h2>
<details><summary>{len(episodes)} episodes; a click on a heading sorts</summary>
<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div></details></section>
"""


def _seeds(summary: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> str:
    seeds = sorted(episode["seed"] for episode in episodes) or [summary["seed"]]
    return text(seeds[0]) if len(seeds) == 1 else f"{text(seeds[0])}–{text(seeds[-1])}"


def _require_keys(what: str, given: Mapping[str, Any], keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in given]
    if missing:
        raise ValueError(f"{what} of the report: expected the keys {', '.join(keys)}; missing {', '.join(missing)}")


def _sort_value(value: Any) -> str:
    return format(float(value), "g") if is_finite(value) else ""


def _yes_no(value: Any) -> str:
    return '<span class="good">yes</span>' if value else '<span class="bad">no</span>'


def _mean(log: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [line[key] for line in log if is_finite(line.get(key))]
    return sum(values) / len(values) if values else None
