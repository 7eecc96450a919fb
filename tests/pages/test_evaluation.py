"""The report page: whole, self-contained, and safe with whatever the data holds."""

import base64
import math
import re
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from robostack.datasets.formats.video import write_video
from robostack.pages.evaluation import write_report


def make_summary(**changes: Any) -> dict[str, Any]:
    return {
        "env": "aloha-transfer-cube",
        "policy": "pi0",
        "task": "transfer the cube",
        "episodes": 4,
        "seed": 100,
        "success": 0.75,
        "success_interval": (0.301, 0.954),
        "final": 0.5,
        "final_interval": (0.150, 0.850),
        "stages": {"0": 0, "1": 0, "2": 1, "3": 0, "4": 3},
        "latency_ms_p50": 12.345,
        "latency_ms_p95": 15.678,
        "execute_len": 40,
        "wall_s": 12.0,
        "machine": "a processor, 2 cores",
        "commit": "0123abcd",
        "command": "robostack eval run --env aloha-transfer-cube",
        "date": "2026-01-02T03:04:05+00:00",
    } | changes


def make_episodes() -> list[dict[str, Any]]:
    return [
        {
            "seed": 100 + i,
            "success": i < 3,
            "final": i < 2,
            "stage_max": 4 if i < 3 else 2,
            "stage_final": 4 if i < 2 else 0,
            "first_success_step": 200 + i if i < 3 else None,
            "chunks": 10,
            "latency_ms_p50": 12.0 + i,
        }
        for i in range(4)
    ]


def make_log(count: int = 30) -> list[dict[str, float]]:
    return [
        {
            "step": 10 * (i + 1),
            "loss": math.exp(-i / 10),
            "learning_rate": 1e-3,
            "gradient_norm": 1.0,
            "steps_per_s": 30.0,
            "data_wait": 0.02,
            "time_s": float(i),
        }
        for i in range(count)
    ]


class Page(HTMLParser):
    """Tags opened and left open, attributes by tag, and the text outside style and script."""

    VOID = {"meta", "br", "link", "img", "input", "hr"}  # noqa: RUF012

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write_page(tmp_path, **arguments: Any) -> tuple[str, Page]:
    values: dict[str, Any] = {"summary": make_summary(), "episodes": make_episodes()} | arguments
    write_report(tmp_path / "report.html", **values)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    return html, page


@pytest.fixture
def videos(tmp_path):
    made = []
    for seed, success in ((100, True), (103, False)):
        path = tmp_path / f"{seed}.mp4"
        write_video(path, np.full((5, 32, 32, 3), seed, np.uint8), 25)
        made.append((path, f"seed {seed}", success))
    return made


def test_the_page_says_what_was_found(tmp_path):
    _, page = write_page(tmp_path, training_log=make_log())
    text = re.sub(r"\s+", " ", page.text)
    for expected in (
        *("pi0 on aloha-transfer-cube", "75.0 %", "3 of 4 episodes", "30.1 to 95.4 %", "2 of 4 episodes"),
        *("12.3 ms", "15.7 ms", "Stage 4 (success)", "100–103", "0123abcd", "a processor, 2 cores", "2026-01-02"),
        *("300 steps", "training step", "steps / s", "learning rate", "2.0 %"),
    ):
        assert expected in text, expected


def test_the_page_needs_nothing_beside_it(tmp_path, videos):
    html, page = write_page(tmp_path, training_log=make_log(), videos=videos)
    assert not re.search(
        r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"base64,[^\"]+", "", html).replace("// Sorts", "")
    )
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "poster", "action"):
            if tag != "a":  # files beside it are linked to, and not needed
                assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, name)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_videos_are_embedded_whole_and_apart(tmp_path, videos):
    html, page = write_page(tmp_path, videos=videos)
    embedded = page.all("video")
    assert len(embedded) == 2
    for attributes, (path, _, _) in zip(embedded, reversed(videos), strict=True):  # what went wrong comes first
        assert {"controls", "muted", "loop"} <= attributes.keys()
        data = (attributes["src"] or "").removeprefix("data:video/mp4;base64,")
        assert base64.b64decode(data, validate=True) == path.read_bytes()
    assert (
        html.index("What went wrong") < html.index("seed 103") < html.index("What went right") < html.index("seed 100")
    )


def test_text_from_data_is_escaped(tmp_path, videos):
    evil = "<script>alert('x')</script>\"&"
    summary = make_summary(**{key: evil for key in ("env", "policy", "task", "machine", "commit", "command", "date")})
    html, page = write_page(tmp_path, summary=summary, videos=[(videos[0][0], evil, True)])
    assert len(page.all("script")) == 1
    assert "<script>alert" not in html
    assert page.text.count("<script>alert('x')</script>\"&") >= 7


def test_every_episode_has_its_row(tmp_path):
    _, page = write_page(tmp_path)
    assert len(page.all("tr")) == 5
    assert [cell["data-value"] for cell in page.all("td")][:8] == ["100", "1", "1", "4", "4", "200", "10", "12"]
    assert [cell["data-value"] for cell in page.all("td")][-3] == ""  # no first success: sorts last


def test_what_is_not_finite_shows_as_a_dash(tmp_path):
    log = make_log(150)
    log[3]["loss"] = math.nan
    log[4] = {"step": 50, "loss": math.inf}
    log[5] = {"step": 60, "loss": 10**400, "data_wait": 10**400, "learning_rate": "fast", "steps_per_s": []}
    summary = make_summary(latency_ms_p50=math.nan, latency_ms_p95=None, success=math.nan, execute_len=None)
    html, page = write_page(tmp_path, summary=summary, training_log=log)
    assert not re.search(r"\b(nan|inf|none|null)\b", page.text, re.IGNORECASE)
    assert not re.search(r"\bnan\b", html, re.IGNORECASE)
    assert "– ms" in page.text


def test_an_expert_without_training_has_no_curves(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # and needs no matplotlib
    _, page = write_page(tmp_path, training_log=[])
    assert page.all("svg") == []
    assert "Training" not in page.text


@pytest.mark.parametrize("count", [1, 5, 400])
def test_curves_of_any_length(tmp_path, count):
    html, page = write_page(tmp_path, training_log=make_log(count))
    assert len(page.all("svg")) == 3
    assert "#0102" not in html  # every stand-in colour became a variable of the page
    assert all("viewbox" in svg and "width" not in svg for svg in page.all("svg"))


def test_the_same_input_gives_the_same_page(tmp_path, videos):
    first, _ = write_page(tmp_path, training_log=make_log(), videos=videos)
    second, _ = write_page(tmp_path, training_log=make_log(), videos=videos)
    assert first == second


def test_a_missing_key_is_named_and_nothing_is_written(tmp_path):
    summary = make_summary()
    del summary["commit"]
    with pytest.raises(ValueError, match="missing commit"):
        write_report(tmp_path / "report.html", summary, make_episodes())
    with pytest.raises(ValueError, match=r"episode 0 .* missing seed"):
        write_report(tmp_path / "report.html", make_summary(), [{"success": True}])
    assert list(tmp_path.iterdir()) == []


def test_a_page_without_matplotlib_says_how_to_get_curves(tmp_path, monkeypatch):
    monkeypatch.setattr("robostack.pages.evaluation.importlib.util.find_spec", lambda name: None)
    _, page = write_page(tmp_path, training_log=make_log())
    assert page.all("svg") == [] and "pip install 'robostack[report]'" in page.text


def test_stages_have_the_names_that_the_environment_gives_them(tmp_path):
    names = ["nothing", "touched", "lifted <b>", "passed", "handed over"]
    _, page = write_page(tmp_path, summary=make_summary(stage_names=names))
    assert "Stage 2: lifted <b>" in page.text and "Stage 4: handed over (success)" in page.text


def test_the_page_says_what_the_policy_was_trained_on(tmp_path):
    training = {
        "checkpoint": "runs/a[1]/checkpoints/step-00003000",
        "data": [
            {"path": "data/<i>", "episodes": 1500, "frames": 600_000, "seeds": [0, 1520]},
            {"path": "robot", "episodes": 20, "frames": 400, "seeds": None},
        ],
        **{"step": 3000, "steps": 3000, "batch": 64, "optimizer": "muon", "learning_rate": 0.001, "seed": 7},
        **{"chunk_len": 40, "parameters": 927_054},
    }
    _, page = write_page(tmp_path, summary=make_summary(training=training, device="cuda"))
    for expected in (
        *("runs/a[1]/checkpoints/step-00003000, 927,054 parameters", "data/<i>: 1,500 episodes, 600,000 frames"),
        *("seeds 0–1520", "seeds not known", "3,000 of 3,000 steps, batch 64, muon at learning rate 0.001, seed 7"),
        *("40 actions", "cuda"),
    ):
        assert expected in page.text, expected
    assert [link["href"] for link in page.all("a")] == ["summary.json", "episodes.jsonl"]


def test_the_page_says_how_long_films_took_and_what_an_earlier_start_did(tmp_path):
    _, page = write_page(tmp_path, summary=make_summary(films_s=97.4, kept=2, notes=["no films: <none>"]))
    text = re.sub(r"\s+", " ", page.text)
    assert "Took 12 s since the last start, before which 2 episodes had ended, and the films 97 s." in text
    assert "Note: no films: <none>." in text


def test_control_characters_are_shown_as_escapes(tmp_path):
    _, page = write_page(tmp_path, summary=make_summary(task="pick\x1b[31m [red]\x00\u202e"))
    assert r"pick\x1b[31m [red]\x00\u202e" in page.text


def test_small_films_are_shown_in_square_pixels(tmp_path, videos):
    large = tmp_path / "large.mp4"
    write_video(large, np.zeros((3, 240, 320, 3), np.uint8), 25)
    _, page = write_page(tmp_path, videos=[*videos, (large, "large", True)])
    shown = {(attributes.get("class"), attributes.get("style")) for attributes in page.all("video")}
    assert shown == {("small", "width:288px"), (None, None)}


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.9), (0.3, 1.2), (0.002, 3.0), (1e-6, 1e3)])
def test_ticks_of_the_loss_are_numbers_that_one_reads(low, high, tmp_path):
    log = [{"step": i, "loss": low + (high - low) * i / 9} for i in range(10)]
    _, page = write_page(tmp_path, training_log=log)
    ticks = [float(t.replace("−", "-")) for t in re.findall(r"(?m)^\s*([−\d.e+-]+)\s*$", page.text)]
    assert "×" not in page.text and len([tick for tick in ticks if low <= tick <= high]) >= 2
