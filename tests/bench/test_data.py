"""`robostack bench data`: that it compares the same work and tells the truth about it, not how fast this machine is."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from robostack.bench import compare, measurement, take_turns
from robostack.bench import data as bench
from robostack.bench.lerobot import Loading, lerobot_process
from robostack.common.processes import worker_pool
from robostack.datasets.windows import WindowSampler

TINY = bench.DataSize(
    episodes=2,
    frames=20,
    chunk_len=8,
    batch=4,
    blocks=1,
    seconds=0.02,
    batches=2,
    big_episodes=3,
    big_frames=30,
    converted_episodes=1,
    converted_frames=4,
)
KEYS = ["bench", "case", "metric", "unit", "value", "peer", "peer_value", "ratio", "machine"]


def test_all_take_turns_and_the_first_round_is_not_counted():
    log = []

    def program(name, rates):
        found = iter(rates)
        return lambda: (log.append(name), next(found))[1]

    rates = take_turns({"a": program("a", [9.0, 1.0, 2.0]), "b": program("b", [9.0, 4.0, 1.0])}, blocks=2)
    assert log == ["a", "b"] * 3
    assert rates == {"a": [1.0, 2.0], "b": [4.0, 1.0]}
    # The ratio is of neighbours in time, not of the medians.
    assert compare(rates["a"], rates["b"]) == (1.5, 2.5, 1.125)


def test_figures_keep_five_digits_however_small_they_are():
    line = measurement("data", "opening", "opening", "s", (0.00123456, 0.5, 123456.0), "other")
    assert list(line) == KEYS
    assert (line["value"], line["ratio"]) == (0.0012346, 123460)


def test_the_best_of_the_peers_is_taken_among_those_that_are_meant():
    rates = {"ours": [900.0], "png, 0 workers": [5.0, 1.0, 1.0], "png, 2 workers": [2.0, 2.0, 2.0], "av1": [3.0]}
    assert bench.best(rates, ["png"]) == "png, 2 workers"
    assert bench.best(rates, ["png", "av1"]) == "av1"


def test_pictures_are_neither_flat_nor_noise_and_the_disc_moves():
    frames = bench.make_frames(30, 96, np.random.default_rng(0)).astype(int)
    assert frames.std(axis=(1, 2)).min() > 5
    assert np.abs(np.diff(frames, axis=2)).mean() < 8
    red = (frames[..., 0] > 195) & (frames[..., 2] < 50)
    rows = [np.argwhere(disc).mean(0) for disc in red]
    assert np.linalg.norm(rows[-1] - rows[0]) > 5


def test_tensors_have_lerobots_shapes_and_share_the_memory_of_the_batch(tmp_path):
    store = bench.make_store(tmp_path / "store", bench.WITH_CAMERA, 1, 10)
    windows = WindowSampler(store, [bench.STATE, bench.CAMERA], 4).gather(np.array([0, 9]))
    raw, floats = bench.tensors(windows), bench.float_tensors(windows)
    assert raw["action"].shape == (2, 4, 14) and raw["is_pad"].sum() == 3
    assert raw[bench.CAMERA].shape == (2, 3, 96, 96) and raw[bench.CAMERA].dtype.itemsize == 1
    assert floats[bench.CAMERA].is_contiguous() and floats[bench.CAMERA].max() <= 1
    frames = windows.observation[bench.CAMERA][:, 0].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(raw[bench.CAMERA].numpy(), frames)
    np.testing.assert_allclose(floats[bench.CAMERA].numpy(), frames / 255, atol=1e-6)


def test_a_store_alone_in_its_process_counts_no_memory_of_who_started_it():
    ballast = np.ones(60_000_000)  # 480 MB
    with worker_pool(1, bench._nothing) as process:
        memory = process.submit(bench.peak_memory_mb).result()
    assert bench.peak_memory_mb() > 400 + memory * 0.5 and memory < 250
    del ballast


def test_the_store_bench_measures_both_stores(tmp_path):
    said = []
    lines = list(bench.bench_store(tmp_path, TINY, said.append))
    assert [(line["metric"], line["unit"]) for line in lines] == [
        ("opening", "s"),
        ("windows", "per second"),
        ("most resident memory", "MB"),
    ]
    assert all(list(line) == KEYS and line["value"] > 0 for line in lines)
    opening, sampling, memory = lines
    assert opening["ratio"] == pytest.approx(opening["peer_value"] / opening["value"], rel=1e-3)
    assert memory["ratio"] == pytest.approx(memory["peer_value"] / memory["value"], rel=1e-3)
    assert sampling["peer"] == "robostack, 40 frames" and "90 frames" in sampling["case"]
    assert "90 frames written" in said[0]


def test_the_cost_of_checksums_is_told_apart(tmp_path):
    (line,) = bench.bench_checksums(tmp_path / "data", TINY)
    assert list(line) == KEYS and line["value"] > 0 and (line["metric"], line["unit"]) == ("verifying", "MB/s")


def test_no_torch_is_imported_where_memory_is_measured():
    script = "import sys, robostack.bench.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_full_disk_is_told_before_anything_is_written():
    pytest.importorskip("lerobot")
    with pytest.raises(OSError, match=r"GB free, .* are needed: point TMPDIR elsewhere"):
        next(iter(bench.bench_data(replace(TINY, big_episodes=10**9))))


@pytest.mark.slow
def test_beside_lerobot_the_same_windows_are_drawn_and_every_pair_is_converted(tmp_path, capfd):
    pytest.importorskip("lerobot")
    folders = [tmp_path / name for name in ("cache", "state", "camera", "conversion")]
    for folder in folders[1:]:
        folder.mkdir()
    cache, state, camera, conversion = folders
    with lerobot_process(cache) as lerobot:
        lines = list(bench.bench_state(state, TINY, lerobot))
        assert [line["case"] for line in lines] == ["state only"] and lines[0]["peer"].startswith("LeRobot 0.6.1")

        other = bench.make_store(tmp_path / "other", bench.NUMBERS, 1, 40)
        sampler, theirs = WindowSampler(other, [bench.STATE], 8), Loading(state / "lerobot", bench.FPS, 8)
        with pytest.raises(RuntimeError, match="other windows"):
            bench.check_same(sampler, theirs, lerobot, ())

        lines = list(bench.bench_camera(camera, TINY, lerobot))
        assert "against LeRobot's images (PNG)" in lines[0]["case"] and "PNG" in lines[0]["peer"]
        assert "AV1 with PyAV" in lines[1]["peer"]
        assert max(line["peer_value"] for line in lines[:-2]) == lines[-2]["peer_value"]

        lines = list(bench.bench_conversion(conversion, TINY, lerobot))
        assert len(lines) == 16 and {line["unit"] for line in lines} == {"frames/s", "MB/s"}
        frames, megabytes = lines[0], lines[1]
        assert megabytes["value"] == pytest.approx(frames["value"] * bench.FRAME_MB, rel=1e-3)
    assert capfd.readouterr().out == ""  # standard output is for the lines
