"""The page of a data set: everything on it, nothing beside it, safe with whatever the data holds."""

import base64
import dataclasses
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robostack.common.extras import MissingExtraError
from robostack.datasets.episodes import Feature
from robostack.datasets.inspection.findings import Curve, Entry, FeatureSummary, Inspection, Picture, Problem
from robostack.pages.inspection import DIMENSIONS_DRAWN, PROBLEMS_SHOWN, bytes_text, write_inspection

WAVE = np.sin(np.arange(200) / 9)[:, None]


def make(**changes: Any) -> Inspection:
    action = Feature((1,), "float32", ("waist",), ("rad",))
    camera = Feature((6, 8, 3), "uint8")
    rng = np.random.default_rng(0)
    return dataclasses.replace(
        Inspection(
            path=Path("folder/cubes"),
            format="LeRobot v3.0",
            robot="aloha",
            fps=50.0,
            provenance={"command": "robostack collect", "seeds": [0, 5]},
            bytes=1_234_567,
            lengths={0: 100, 1: 120},
            episodes=2,
            tasks={"lift": 2},
            features=(
                FeatureSummary("action", action, (Entry("waist", "rad", -1.0, 1.0, 0.25, 0.7),)),
                FeatureSummary("observation.images.top", camera),
            ),
            problems=(Problem("jump", "action waist jumps", "action", "waist", (1,), 30),),
            rows={"action": WAVE},
            curves={"action": (Curve(0, 1, WAVE[:100]), Curve(1, 2, WAVE[:60]))},
            pictures=tuple(
                Picture("observation.images.top", 1, frame, rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
                for frame in (0, 60, 119)
            ),
        ),
        **changes,
    )


def write(tmp_path: Path, inspection: Inspection) -> str:
    write_inspection(tmp_path / "page.html", inspection)
    return (tmp_path / "page.html").read_text()


def words(page: str) -> str:
    page = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_the_page_says_what_is_in_the_data(tmp_path: Path) -> None:
    text = words(write(tmp_path, make()))
    for expected in (
        *(
            "cubes",
            "LeRobot v3.0 · robot aloha",
            "100 to 120 frames long",
            "220",
            "1.23 MB",
            "50 Hz",
            "4 s at this rate",
        ),
        *("action waist jumps", "episode 1 · frame 60", "waist rad -1 1 0.25 0.7", "1, float32", "6 × 8 × 3, uint8"),
        *("lift 2", "robostack collect", "[0, 5]", "2.36 s"),
    ):
        assert expected in text, expected


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    page = write(tmp_path, make())
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|@import|url\(|<link|<iframe", re.sub(r"base64,[^\"]+", "", page))
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_pictures_are_those_of_the_cameras(tmp_path: Path) -> None:
    inspection = make()
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', write(tmp_path, inspection))
    assert len(sources) == len(inspection.pictures)
    for source, picture in zip(sources, inspection.pictures, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))).astype(float)
        assert np.abs(shown - picture.pixels).mean() < 12


def test_curves_go_through_the_values(tmp_path: Path) -> None:
    first, second = re.findall(r'class="curve [^"]*" d="([^"]*)"', write(tmp_path, make()))
    for path, values, stride in ((first, WAVE[:100], 1), (second, WAVE[:60], 2)):
        points = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", path), float)
        assert len(points) == len(values)
        assert np.corrcoef(points[:, 1], values[:, 0])[0, 1] == pytest.approx(-1, abs=1e-3)  # y points down
        assert np.ptp(points[:, 0]) == pytest.approx(204 * (len(values) - 1) * stride / 118, abs=0.2)


def test_what_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    values = WAVE[:100].copy()
    values[40:50] = np.nan
    page = write(tmp_path, make(curves={"action": (Curve(0, 1, values),)}, rows={"action": values}))
    (path,) = re.findall(r'class="curve [^"]*" d="([^"]*)"', page)
    assert path.count("M") == 2 and path.count("L") == 88 and "nan" not in page


def test_the_worst_place_is_marked_in_its_episode(tmp_path: Path) -> None:
    assert len(re.findall(r'class="mark c1"', write(tmp_path, make()))) == 1
    elsewhere = Problem("jump", "action waist jumps", "action", "waist", (7,), 30)
    assert 'class="mark' not in write(tmp_path, make(problems=(elsewhere,)))


def test_a_clean_data_set_says_so(tmp_path: Path) -> None:
    text = words(write(tmp_path, make(problems=())))
    assert "None found: every episode can be read" in text


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&"
    page = write(
        tmp_path,
        make(
            **{key: evil for key in ("format", "robot")},
            path=Path(evil.replace("/", "")),
            tasks={evil: 1},
            provenance={evil: evil, "other": [evil]},
            features=(FeatureSummary(evil, Feature((1,), "float32"), (Entry(evil, evil, 0.0, 1.0, 0.5, 0.5),)),),
            rows={evil: WAVE},
            curves={evil: ()},
            problems=(Problem("no task", evil, evil),),
            pictures=(Picture(evil, 0, 0, np.zeros((4, 4, 3), np.uint8)),),
        ),
    )
    assert page.count("<script>") == 1 and "<script>alert" not in page
    assert page.count("&lt;script&gt;") >= 10 and 'alt="&lt;' in page


def test_a_data_set_without_cameras_needs_no_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "Cameras" not in write(tmp_path, make(pictures=()))


def test_pictures_without_pillow_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robostack.common.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'robostack\[data\]'"):
        write_inspection(tmp_path / "page.html", make())
    assert list(tmp_path.iterdir()) == []


def test_nothing_readable_has_a_page_too(tmp_path: Path) -> None:
    empty = FeatureSummary("action", Feature((), "float32"), (Entry("", "", None, None, None, None),))
    nothing = {"rows": {}, "curves": {}, "pictures": (), "tasks": {}, "lengths": {}, "fps": None, "robot": None}
    text = words(write(tmp_path, make(**nothing, features=(empty,))))
    assert "– – – –" in text and "not recorded" in text and "No episode can be read" in text
    still = FeatureSummary("action", Feature((), "float32"), (Entry("", "", 3.0, 3.0, 3.0, 0.0),))
    rows = np.full((9, 1), 3.0)
    page = write(tmp_path, make(features=(still,), rows={"action": rows}, curves={"action": (Curve(0, 1, rows),)}))
    assert "nan" not in page and ">3<" in page


def test_notes_stand_apart_from_problems(tmp_path: Path) -> None:
    notes = (Problem("constant", "action elbow is constant", "action", "elbow", severity="note"),)
    text = words(write(tmp_path, make(problems=notes)))
    assert "Problems none All numbers were checked, and 3 camera frames. 1 note below." in text
    assert "None found: every episode can be read" in text and "Notes Good to know" in text
    text = words(write(tmp_path, make(problems=(*notes, *make().problems), pictures=())))
    assert "Problems 1 All numbers were checked, but no camera frame." in text and "action waist jumps" in text
    camera_less = make(features=make().features[:1], pictures=(), problems=())
    text = words(write(tmp_path, camera_less))
    assert "All numbers were checked." in text and "camera" not in text and "Notes" not in text


def labels(page: str) -> list[tuple[float, str]]:
    """Where each label of an axis of values ends, and its text."""
    found = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]*)</text>', page)
    return [(float(x), text) for x, text in found if "s" not in text and "frame" not in text]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.0, 1.0, ["-1", "0", "1"]),
        (-0.0966, 0.0955, ["-0.097", "-0.001", "0.096"]),
        (-0.0559, 0.0558, ["-0.056", "0", "0.056"]),
        (-0.004, 3.0, ["0", "1.5", "3"]),
        (-0.00296, 0.00184, ["-0.00296", "-0.00056", "0.00184"]),
        (123456.0, 123457.0, ["123456", "123456.5", "123457"]),
        (-1234567.0, 12.5, ["-1.23e6", "-6.2e5", "0"]),
        (1e-9, 3e-4, ["0", "1.5e-4", "3e-4"]),
        (3.0, 3.0, ["2.5", "3", "3.5"]),
        (1e8, 1e8, ["9.99e7", "1e8", "1.001e8"]),
        (-1e300, 1e300, ["-1e300", "0", "1e300"]),
    ],
)
def test_labels_are_whole_and_have_their_sign(tmp_path: Path, low: float, high: float, expected: list[str]) -> None:
    rows = np.linspace(low, high, 50)[:, None]
    feature = FeatureSummary("action", Feature((), "float64"), (Entry("", "m", low, high, low, 1.0),))
    found = labels(
        write(tmp_path, make(features=(feature,), rows={"action": rows}, curves={"action": (Curve(0, 1, rows),)}))
    )
    assert [text for _, text in found] == expected
    assert all(end >= 6.5 * len(text) for end, text in found), found  # none begins left of the picture


def test_a_timestamp_needs_no_plot(tmp_path: Path) -> None:
    time = FeatureSummary("timestamp", Feature((), "float32"), (Entry("", "s", 0.0, 4.0, 2.0, 1.0),))
    rows = np.linspace(0, 4, 200)[:, None]
    plotted = make(features=(*make().features, time), rows={"action": WAVE, "timestamp": rows})
    page = write(tmp_path, dataclasses.replace(plotted, curves={**plotted.curves, "timestamp": ()}))
    assert page.count("<svg") == 2 and "timestamp" in words(page)  # of the action, and the lengths of episodes


def test_control_characters_of_data_are_shown_as_escapes(tmp_path: Path) -> None:
    page = write(tmp_path, make(tasks={"a\x1b[2J\u2028b\ud800\u202e": 1}, path=Path("folder/x\udcff")))
    assert r"a\x1b[2J\u2028b\ud800\u202e" in page and r"x\udcff" in page


def test_much_is_cut_and_said(tmp_path: Path) -> None:
    many = DIMENSIONS_DRAWN + 40
    wide = FeatureSummary(
        "action", Feature((many,), "float32"), tuple(Entry(f"e{i}", "", -1.0, 1.0, 0.0, 1.0) for i in range(many))
    )
    page = write(
        tmp_path,
        make(
            features=(wide,),
            rows={"action": np.repeat(WAVE, many, 1)},
            curves={"action": ()},
            problems=tuple(Problem("jump", f"p{i}") for i in range(PROBLEMS_SHOWN + 5)),
            tasks={f"t{i}": 1 for i in range(500)},
        ),
    )
    text = words(page)
    assert page.count('class="bars"') == DIMENSIONS_DRAWN + 2  # and the two lengths of episodes
    for expected in (
        f"first 96 of {many} dimensions",
        "first 100 of 105 problems",
        "first 100 of 500 tasks",
        "72 more",
    ):
        assert expected in text, expected


def test_the_same_data_gives_the_same_page(tmp_path: Path) -> None:
    assert write(tmp_path, make()) == write(tmp_path, make())


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (42_552_043, "42.6 MB"), (10**16, "10000 TB"), (999_400, "999 kB")],
)
def test_sizes_for_people(count: int, expected: str) -> None:
    assert bytes_text(count) == expected
