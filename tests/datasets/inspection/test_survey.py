"""Each thing that can be wrong with a data set is found and named with its episode; a clean data set has none of it."""

import json
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robostack.datasets.episodes import DataError, Episode, Feature, FeatureError, Frames
from robostack.datasets.formats import open_reader
from robostack.datasets.inspection.findings import Inspection, Problem
from robostack.datasets.inspection.survey import FRAMES_DECODED, ROWS_KEPT, WIDEST, InspectConfig, inspect
from robostack.datasets.store import EpisodeWriter
from robostack.datasets.timing import check_times

FEATURES = {
    "observation.state": Feature((4,), "float32", ("waist", "elbow", "x", "gripper"), ("rad", "deg", "m", "1")),
    "observation.images.top": Feature((6, 8, 3), "uint8"),
    "action": Feature((2,), "float64"),
    "timestamp": Feature((), "float32"),
    "next.success": Feature((), "bool"),
}
Columns = dict[str, Any]
Change = Callable[[Columns], object]


def make_columns(number: int, length: int = 100, fps: float = 50) -> Columns:
    """A smooth movement, a moving picture, timestamps at the rate."""
    rng = np.random.default_rng(number)
    time = np.arange(length) / fps
    wave = np.sin(time[:, None] * [1, 2, 3, 1.5] + rng.uniform(0, 0.5, 4))
    switch = (time > 1).astype(float)
    return {
        "observation.state": (wave * [1, 57, 0.3, 0] + switch[:, None] * [0, 0, 0, 1]).astype(np.float32),
        "observation.images.top": rng.integers(30, 256, (length, 6, 8, 3), dtype=np.uint8),
        "action": wave[:, :2].copy(),
        "timestamp": time.astype(np.float32),
        "next.success": time > 1.5,
    }


class Data:
    """A reader of made-up episodes; the task of each and what is changed in it can be told."""

    format, robot, provenance = "made up", "aloha", {"seed": 1}
    left_out: Mapping[str, str] = {}
    remarks: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        changes: Mapping[int, Change] | None = None,
        episodes: int = 6,
        tasks: Mapping[int, str] | None = None,
        fps: float | None = 50,
        features: Mapping[str, Feature] = FEATURES,
    ) -> None:
        self.path, self.fps, self.features, self.episodes = path, fps, features, episodes
        self.changes, self.tasks = changes or {}, tasks or {}
        self.left_out: Mapping[str, str] = {}
        self.remarks: tuple[str, ...] = ()
        self.said: Mapping[int, tuple[str, ...]] = {}

    def select(self, keys: Collection[str]) -> None:
        self.features = {key: feature for key, feature in self.features.items() if key in keys}

    def columns(self, episode: int) -> Columns:
        columns = make_columns(episode)
        self.changes.get(episode, lambda _: None)(columns)
        return {key: rows for key, rows in columns.items() if key in self.features}

    def length(self, episode: int) -> int:
        return len(self.columns(episode)["action"])

    def read_episode(self, episode: int) -> Episode:
        columns = self.columns(episode)
        task = [self.tasks.get(episode, "lift")] * len(columns["action"])
        return Episode(columns, task, self.said.get(episode, ()))


def look(data: Data, **changes: Any) -> Inspection:
    return inspect(data, InspectConfig(**{"sampled": data.episodes} | changes))


def the_problem(data: Data, kind: str, **changes: Any) -> Problem:
    """The only problem of a kind, and there is no other."""
    problems = look(data, **changes).problems
    assert [problem.kind for problem in problems] == [kind], [problem.text for problem in problems]
    return problems[0]


def put(key: str, place: Any, value: Any) -> Change:
    return lambda columns: columns[key].__setitem__(place, value)


def test_a_clean_data_set_has_no_problem(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    inspection = look(Data(tmp_path, tasks={0: "push", 1: "push"}))
    assert inspection.problems == ()
    assert (inspection.episodes, inspection.frames, inspection.bytes) == (6, 600, 5)
    assert inspection.tasks == {"lift": 4, "push": 2}
    assert [summary.key for summary in inspection.features] == list(FEATURES)


def test_data_without_actions_are_none_the_worse(tmp_path: Path) -> None:
    features = {key: feature for key, feature in FEATURES.items() if key != "action"}
    writer = EpisodeWriter(tmp_path / "data", features, fps=50)
    for i in range(3):
        writer.append({key: rows for key, rows in make_columns(i).items() if key in features}, "lift")
    inspection = inspect(open_reader(tmp_path / "data"), InspectConfig())
    assert inspection.problems == () and (inspection.episodes, inspection.frames) == (3, 300)
    assert [summary.key for summary in inspection.features] == list(features)


def test_figures_are_those_of_all_rows(tmp_path: Path) -> None:
    data = Data(tmp_path)
    for summary in look(data).features:
        rows = np.concatenate([data.columns(i)[summary.key] for i in range(6)]).reshape(600, -1).astype(np.float64)
        for entry, column in zip(summary.entries, rows.T, strict=False):
            found = (entry.min, entry.max, entry.mean, entry.std)
            assert found == pytest.approx((column.min(), column.max(), column.mean(), column.std()), rel=1e-12)
    state, image, action, time, _ = look(data).features
    assert [(entry.name, entry.unit) for entry in state.entries][1:3] == [("elbow", "deg"), ("x", "m")]
    assert [entry.name for entry in action.entries] == ["0", "1"]
    assert image.entries == () and time.entries[0].name == ""


@settings(max_examples=30, deadline=None)
@given(st.lists(arrays(np.float64, st.integers(1, 9), elements=st.floats(-1e3, 1e3)), min_size=1, max_size=5))
def test_figures_far_from_zero_keep_their_digits(parts: list[np.ndarray]) -> None:
    parts = [part + 1e6 for part in parts]
    data = Data(Path(__file__), {i: lambda c, p=part: c.update(action=p) for i, part in enumerate(parts)}, len(parts))
    data.features = {"action": Feature((), "float64")}
    (entry,) = look(data).features[0].entries
    whole = np.concatenate(parts)
    assert entry.mean == pytest.approx(whole.mean(), rel=1e-14) and entry.std == pytest.approx(whole.std(), abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_and_left_out(tmp_path: Path, value: float) -> None:
    data = Data(tmp_path, {3: put("observation.state", (slice(40, 43), 2), value)})
    problem = the_problem(data, "not finite")
    assert (problem.feature, problem.entry, problem.episodes, problem.frame, problem.count) == (
        *("observation.state", "x", (3,), 40, 3),
    )
    state = look(data).features[0].entries[2]
    assert state.max is not None and state.max < 1 and json.loads(json.dumps(look(data).to_json(), allow_nan=False))


def test_an_entry_without_one_finite_value_has_no_figures(tmp_path: Path) -> None:
    data = Data(tmp_path, {i: put("action", (slice(None), 0), np.nan) for i in range(6)})
    assert the_problem(data, "not finite").count == 600
    entry = look(data).features[2].entries[0]
    assert (entry.min, entry.max, entry.mean, entry.std) == (None, None, None, None)


@pytest.mark.parametrize(("noise", "kind"), [(0.0, "constant"), (1e-3, "hardly varies")])
def test_an_entry_that_is_still_is_named(tmp_path: Path, noise: float, kind: str) -> None:
    def hold(columns: Columns) -> None:
        columns["action"][:, 1] = 0.5 + noise * np.random.default_rng(0).normal(size=100)

    problem = the_problem(Data(tmp_path, {i: hold for i in range(6)}), kind)
    assert (problem.feature, problem.entry, problem.episodes) == ("action", "1", ())
    assert len(look(Data(tmp_path, {i: hold for i in range(6)}), min_std=5e-4).problems) == (noise == 0)


def test_notes_are_told_from_problems(tmp_path: Path) -> None:
    def hold(columns: Columns) -> None:
        columns["action"][:, 1] = 0.5

    changes: dict[int, Change] = {i: hold for i in range(6)}
    inspection = look(Data(tmp_path, changes, tasks={2: ""}, fps=None))
    assert inspection.wrong == () and {note.kind for note in inspection.notes} == {"constant", "no task", "no rate"}
    described = inspection.to_json()
    assert {found["severity"] for found in described["problems"]} == {"note"}
    assert described["counts"] == {"problem": 0, "note": 3}
    changes[4] = lambda columns: (hold(columns), put("observation.state", (slice(40, 43), 2), np.nan)(columns))
    described = look(Data(tmp_path, changes)).to_json()
    assert [(found["kind"], found["severity"]) for found in described["problems"]] == [
        ("not finite", "problem"),
        ("constant", "note"),
    ]


def test_a_reward_that_nobody_knew_is_a_note(tmp_path: Path) -> None:
    features = FEATURES | {"next.reward": Feature((), "float32")}
    reward = np.r_[np.arange(99), np.nan].astype(np.float32)
    change = {i: lambda columns: columns.update({"next.reward": reward}) for i in range(6)}
    assert the_problem(Data(tmp_path, change, features=features), "not finite").severity == "note"


def test_what_was_never_recorded_is_a_note_and_what_is_missing_here_and_there_a_problem(tmp_path: Path) -> None:
    features = FEATURES | {"observation.effort": Feature((), "float32")}
    for known, severity in ((0, "note"), (50, "problem")):
        effort = np.where(np.arange(100) < known, np.sin(np.arange(100) / 9), np.nan).astype(np.float32)
        change = {i: lambda columns, effort=effort: columns.update({"observation.effort": effort}) for i in range(6)}
        assert the_problem(Data(tmp_path, change, features=features), "not finite").severity == severity


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_joint_that_is_still_can_jump(tmp_path: Path, noise: float) -> None:
    def hold(columns: Columns) -> None:
        columns["action"][:, 1] = 0.5 + noise * np.random.default_rng(0).normal(size=100)

    def jump(columns: Columns) -> None:
        hold(columns)
        columns["action"][33, 1] += 0.15

    inspection = look(Data(tmp_path, {i: jump if i == 4 else hold for i in range(6)}))
    assert [(problem.kind, problem.severity) for problem in inspection.problems] == [
        ("jump", "problem"),
        ("hardly varies", "note"),
    ]
    assert (inspection.problems[0].entry, inspection.problems[0].episodes) == ("1", (4,))
    assert inspection.problems[0].frame in (33, 34)


def test_a_tick_of_an_encoder_is_no_jump(tmp_path: Path) -> None:
    def hold(columns: Columns) -> None:
        columns["action"][:, 1] = 0.0015 * (np.arange(100) == 50)

    assert look(Data(tmp_path, {i: hold for i in range(6)})).wrong == ()


def test_a_joint_faster_than_joints_move_has_jumped(tmp_path: Path) -> None:
    data = Data(
        tmp_path,
        {2: put("observation.state", (slice(60, None), 0), 0.0), 4: put("observation.state", (30, 0), 5.0)},
    )
    problem = the_problem(data, "jump")
    assert (problem.entry, problem.episodes, problem.frame, problem.count) == ("waist", (4, 2), 30, 3)
    assert "rad to frame 30 of episode 4 (and 1 more episode)" in problem.text
    assert look(data, max_joint_speed=400.0).problems == ()


def test_degrees_are_angles_too(tmp_path: Path) -> None:
    problem = the_problem(Data(tmp_path, {1: put("observation.state", (slice(50, 52), 1), -40)}), "jump")
    assert (problem.entry, problem.episodes) == ("elbow", (1,)) and problem.frame in (50, 52)


def test_without_a_known_unit_half_the_range_is_a_jump(tmp_path: Path) -> None:
    problem = the_problem(Data(tmp_path, {5: put("action", (70, 1), 9.0)}), "jump")
    assert (problem.feature, problem.entry, problem.episodes, problem.count) == ("action", "1", (5,), 2)
    assert problem.frame in (70, 71)
    late = np.arange(100)[:, None] > 70
    assert look(Data(tmp_path, {5: lambda columns: columns["action"].__iadd__(0.5 * late)})).problems == ()


def test_noise_and_switches_do_not_jump(tmp_path: Path) -> None:
    def shake(columns: Columns) -> None:
        columns["action"][:, 0] = np.random.default_rng(1).normal(size=100)
        columns["action"][:, 1] = np.arange(100) // 30 % 2  # the state's gripper switches in every episode

    assert look(Data(tmp_path, {i: shake for i in range(6)})).problems == ()


def test_more_than_a_turn_is_beyond_the_limits(tmp_path: Path) -> None:
    def turn(columns: Columns) -> None:
        columns["observation.state"][:, 1] += np.linspace(0, 700, 100)

    problem = the_problem(Data(tmp_path, {1: turn}), "beyond limits")
    assert (problem.entry, problem.episodes, problem.frame) == ("elbow", (1,), 99) and problem.count > 20


@pytest.mark.parametrize(
    ("kind", "change", "frame", "count"),
    [
        ("dropped frames", lambda t: np.r_[t[:40], t[40:] + 0.06], 40, 3),
        ("off the rate", lambda t: np.r_[t[:40], t[40] + 0.004, t[41:]], 40, 2),
        ("not rising", lambda t: np.r_[t[:40], t[39:-1]], 40, 1),
        ("late start", lambda t: t + 3, 0, 1),
    ],
)
def test_timestamps_off_the_rate(tmp_path: Path, kind: str, change: Any, frame: int, count: int) -> None:
    def shift(columns: Columns) -> None:
        columns["timestamp"] = change(columns["timestamp"]).astype(np.float32)

    problem = the_problem(Data(tmp_path, {3: shift}), kind)
    assert (problem.feature, problem.episodes, problem.count) == ("timestamp", (3,), count)
    assert problem.frame in (frame, frame + 1)


@pytest.mark.parametrize(
    ("rate", "kinds"), [(50.0, []), (49.9, []), (48.0, ["off the rate"]), (52.0, ["off the rate"])]
)
def test_a_rate_that_is_a_little_off_adds_up(tmp_path: Path, rate: float, kinds: list[str]) -> None:
    def clock(columns: Columns) -> None:
        columns["timestamp"] = (np.arange(len(columns["timestamp"])) / rate).astype(np.float32)

    problems = look(Data(tmp_path, {3: clock})).problems
    assert [problem.kind for problem in problems] == kinds
    for problem in problems:  # 99 gaps of 4 % drift by nearly four frames
        assert problem.episodes == (3,) and problem.frame == 99 and "frame 99 of episode 3" in problem.text


@pytest.mark.parametrize(
    ("times", "serious"),
    [
        (lambda t: t + 0.4 / 50 * np.sin(np.arange(len(t))), False),  # jitter of less than half a period
        (lambda t: t + 1.764e9, False),  # since 1970, in float64
        (lambda t: t + 0.7 / 50 * (np.arange(len(t)) % 7 == 3), False),  # around another anchor they are within
        (lambda t: t + 1.2 / 50 * (np.arange(len(t)) == 30), True),
        (lambda t: t * 50 / 30, True),  # 50 Hz declared, 30 Hz recorded
        (lambda t: t * 30 / 50, True),
    ],
)
def test_times_are_held_to_the_bound_of_conversion(tmp_path: Path, times: Any, serious: bool) -> None:
    def change(columns: Columns) -> None:
        columns["timestamp"] = times(np.arange(len(columns["timestamp"])) / 50)

    features = FEATURES | {"timestamp": Feature((), "float64")}
    data = Data(tmp_path, {3: change}, features=features)
    stamps = data.columns(3)["timestamp"]
    assert bool(look(data).wrong) == serious
    if serious:
        with pytest.raises(DataError, match="do not keep 50 frames a second"):
            check_times(stamps, 50)
    else:
        check_times(stamps, 50)


def test_timestamps_too_coarse_to_tell_frames_apart_are_not_judged(tmp_path: Path) -> None:
    def since_1970(columns: Columns) -> None:
        columns["timestamp"] = (columns["timestamp"].astype(np.float64) + 1.764e9).astype(np.float32)

    assert the_problem(Data(tmp_path, {3: since_1970}), "coarse times").severity == "note"


def test_what_a_reader_left_out_or_set_right_is_noted(tmp_path: Path) -> None:
    data = Data(tmp_path)
    data.left_out, data.remarks = {"observation.words": "it holds texts"}, ("episode 9 is empty: left out",)
    data.said = {1: ("an action more than states was cut off",), 2: ("an action more than states was cut off",)}
    inspection = look(data)
    assert inspection.wrong == ()
    assert [(note.kind, note.feature, note.text) for note in inspection.notes] == [
        ("left out", "observation.words", "observation.words is left out: it holds texts"),
        ("set right", None, "episode 9 is empty: left out"),
        ("set right", None, "an action more than states was cut off (episode 1 and 1 more)"),
    ]


@pytest.mark.parametrize(("key", "severity"), [("next.success", "note"), ("observation.state", "problem")])
def test_a_feature_that_cannot_be_read_does_not_hide_the_rest(tmp_path: Path, key: str, severity: str) -> None:
    class Odd(Data):
        def read_episode(self, episode: int) -> Episode:
            if episode == 2 and key in self.features:
                raise FeatureError(key, "is ragged")
            return super().read_episode(episode)

    inspection = look(Odd(tmp_path))
    (found,) = inspection.problems
    assert found.severity == severity and found.feature == key and found.episodes == (2,) and "ragged" in found.text
    assert len(inspection.lengths) == 6 and key not in [summary.key for summary in inspection.features]


def test_a_depth_camera_is_looked_at(tmp_path: Path) -> None:
    key = "observation.images.depth"
    features = FEATURES | {key: Feature((16, 16, 1), "uint16", units=("mm",))}
    rng = np.random.default_rng(0)

    def look_far(columns: Columns) -> None:
        columns[key] = rng.integers(300, 4000, (100, 16, 16, 1), dtype=np.uint16)

    def covered(columns: Columns) -> None:
        columns[key] = np.zeros((100, 16, 16, 1), np.uint16)

    changes: dict[int, Change] = {i: look_far for i in range(6)}
    inspection = look(Data(tmp_path, changes, features=features))
    pictures = [picture.pixels for picture in inspection.pictures if picture.camera == key]
    assert inspection.problems == () and {(p.shape, p.dtype.name) for p in pictures} == {((16, 16, 3), "uint8")}
    changes[3] = covered
    assert the_problem(Data(tmp_path, changes, features=features), "black image").feature == key


def test_no_rate_is_said_and_the_rest_is_checked(tmp_path: Path) -> None:
    def stumble(columns: Columns) -> None:
        columns["timestamp"][40:] += 0.06
        columns["timestamp"][60] = columns["timestamp"][59]

    problems = look(Data(tmp_path, {3: stumble}, fps=None)).problems
    assert [problem.kind for problem in problems] == ["no rate", "not rising"]
    assert "not checked" in problems[0].text


@pytest.mark.parametrize("text", ["", "  "])
def test_a_missing_task_text(tmp_path: Path, text: str) -> None:
    problem = the_problem(Data(tmp_path, tasks={2: text, 4: text}), "no task")
    assert problem.episodes == (2, 4)


def test_episodes_too_short(tmp_path: Path) -> None:
    def cut(length: int) -> Change:
        return lambda columns: columns.update({key: rows[:length] for key, rows in columns.items()})

    problem = the_problem(Data(tmp_path, {1: cut(20), 4: cut(12)}), "short")
    assert problem.episodes == (4, 1) and "12 frames in episode 4" in problem.text
    assert look(Data(tmp_path, {1: cut(20)}), min_frames=20).problems == ()
    assert the_problem(Data(tmp_path, {1: cut(9)}), "short", min_frames=0).episodes == (1,)  # a tenth of the median


def test_an_unreadable_episode_does_not_stop_the_rest(tmp_path: Path) -> None:
    def damaged(columns: Columns) -> None:
        raise DataError("episode 2: file-002.parquet is\ntruncated")

    def misshapen(columns: Columns) -> None:
        columns["observation.state"] = columns["observation.state"][:, :3]

    done: list[int] = []
    inspection = inspect(Data(tmp_path, {2: damaged, 4: misshapen}), report=done.append)
    assert [(problem.kind, problem.episodes) for problem in inspection.problems] == [
        ("unreadable", (2,)),
        ("unreadable", (4,)),
    ]
    assert "file-002.parquet is truncated" in inspection.problems[0].text and "(100, 4)" in inspection.problems[1].text
    assert inspection.tasks == {"lift": 4} and done == [1, 2, 3, 4, 5, 6]


def test_nothing_readable_is_inspected_too(tmp_path: Path) -> None:
    def damaged(columns: Columns) -> None:
        raise DataError("gone")

    inspection = look(Data(tmp_path, {i: damaged for i in range(6)}))
    assert len(inspection.problems) == 6 and inspection.frames == 0
    assert inspection.to_json()["features"]["action"]["entries"][0]["mean"] is None
    assert look(Data(tmp_path, episodes=0)).problems == ()


@pytest.mark.parametrize(
    ("kind", "pixels", "count"),
    [
        ("black image", lambda images: images // 32 * (np.arange(100) < 60)[:, None, None, None], 3),
        ("flat image", lambda images: images * 0 + np.arange(100, dtype=np.uint8)[:, None, None, None] + 50, 3),
        ("frozen camera", lambda images: np.concatenate([images[:50], images[50:51].repeat(50, 0)]), 1),
    ],
)
def test_cameras_that_show_nothing(tmp_path: Path, kind: str, pixels: Any, count: int) -> None:
    def spoil(columns: Columns) -> None:
        columns["observation.images.top"] = pixels(columns["observation.images.top"]).astype(np.uint8)

    problem = the_problem(Data(tmp_path, {3: spoil}), kind)
    assert (problem.feature, problem.episodes, problem.count) == ("observation.images.top", (3,), count)
    assert look(Data(tmp_path, {3: spoil}), sampled=0).problems == ()


def test_a_camera_is_decoded_no_further_than_it_must(tmp_path: Path) -> None:
    decoded: list[int] = []
    base = np.random.default_rng(0).integers(30, 200, (400, 600, 3), dtype=np.uint8)
    length = FRAMES_DECODED + 500

    def read() -> Iterator[np.ndarray]:
        for frame in range(length):
            decoded.append(frame)
            yield base + np.uint8(frame % 7)

    features = {"action": Feature((), "float64"), "observation.images.top": Feature((400, 600, 3), "uint8")}
    change = {0: lambda c: c.update({"observation.images.top": Frames((length, 400, 600, 3), read)})}
    change[0] = lambda c, film=change[0]: (film(c), c.update(action=np.sin(np.arange(length) / 9)))
    inspection = look(Data(tmp_path, change, 1, features=features))
    assert inspection.problems == () and len(decoded) == FRAMES_DECODED
    assert [picture.frame for picture in inspection.pictures] == [0, FRAMES_DECODED // 2, FRAMES_DECODED - 1]
    assert inspection.pictures[0].pixels.shape == (100, 150, 3)


def test_a_camera_that_ends_early_is_named(tmp_path: Path) -> None:
    def cut(columns: Columns) -> None:
        images = columns["observation.images.top"]
        columns["observation.images.top"] = Frames(images.shape, lambda: iter(images[:70]))

    problem = the_problem(Data(tmp_path, {4: cut}), "unreadable")
    assert (problem.feature, problem.episodes) == ("observation.images.top", (4,)) and "frame 99" in problem.text


def test_one_episode_at_a_time_is_in_memory(tmp_path: Path) -> None:
    alive: list[int] = []

    class Counted(Data):
        def read_episode(self, episode: int) -> Episode:
            assert alive == [], "the episode before is still there"
            made = super().read_episode(episode)
            for rows in made.columns.values():
                alive.append(episode)
                weakref.finalize(rows, alive.remove, episode)
            return made

    inspection = look(Counted(tmp_path, episodes=100), sampled=100)
    assert inspection.episodes == 100 and inspection.frames == 10_000


def test_what_is_kept_to_draw_does_not_grow(tmp_path: Path) -> None:
    cut = {i: lambda columns, i=i: columns.update(action=columns["action"][: 60 + i % 37]) for i in range(120)}
    data = Data(tmp_path, cut, episodes=120, features={"action": FEATURES["action"]})
    inspection = look(data, sampled=3)
    kept = inspection.rows["action"]
    assert 0.4 * ROWS_KEPT < len(kept) <= ROWS_KEPT
    whole = np.concatenate([data.columns(i)["action"] for i in range(120)])
    places = [int(np.flatnonzero((whole == row).all(1))[0]) for row in kept]
    assert places == sorted(set(places))  # some rows of all, in order
    assert np.histogram(places, bins=8)[0].min() > 0.7 * len(kept) / 8  # from everywhere
    assert [curve.episode for curve in inspection.curves["action"]] == [0, 60, 119]
    assert np.array_equal(inspection.curves["action"][1].rows, data.columns(60)["action"])


def test_a_feature_too_wide_to_measure_is_listed(tmp_path: Path) -> None:
    features = {"action": Feature((), "float64"), "observation.depth": Feature((WIDEST + 1,), "float32")}
    zeros = {"action": np.sin(np.arange(60) / 9), "observation.depth": np.zeros((60, WIDEST + 1), np.float32)}
    inspection = look(Data(tmp_path, {0: lambda c: c.update(zeros)}, 1, features=features))
    assert [len(summary.entries) for summary in inspection.features] == [1, 0] and inspection.problems == ()


@pytest.mark.parametrize("name", ["max_joint_speed", "min_frames", "min_std", "sampled"])
def test_a_negative_setting_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        InspectConfig(**{name: -1})
