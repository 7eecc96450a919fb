"""Decoding in another process: the frames are the same, whatever it dies of is one line, and the next video is read."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from old_lerobot import write_bars

from robostack.datasets.episodes import DataError
from robostack.datasets.formats import video_process
from robostack.datasets.formats.video import frames_at, video_header
from robostack.datasets.formats.video_process import DecoderDiedError, decode_at, read_header

BEAT = [i / 10 for i in range(30)]


@pytest.fixture
def film(tmp_path) -> Path:
    write_bars(tmp_path / "film.mp4", BEAT)
    return tmp_path / "film.mp4"


def read(path: Path, due: list[float] = BEAT) -> np.ndarray:
    return np.stack(list(decode_at(path, due, 0.049)))


def test_frames_and_headers_are_those_of_this_process(film):
    assert np.array_equal(read(film), np.stack(list(frames_at(film, BEAT, 0.049))))
    assert np.array_equal(read(film, BEAT[13:17]), np.stack(list(frames_at(film, BEAT[13:17], 0.049))))
    assert read_header(film) == video_header(film)


def test_one_process_serves_many_videos_and_several_at_once(film, monkeypatch):
    monkeypatch.setattr(video_process, "_children", [])
    for _ in range(3):
        read(film)
    assert len(video_process._children) == 1
    both = list(zip(decode_at(film, BEAT, 0.049), decode_at(film, BEAT, 0.049), strict=True))
    assert len(both) == 30 and all(np.array_equal(one, other) for one, other in both)
    some = decode_at(film, BEAT, 0.049)
    next(some)
    some.close()  # nobody wants the rest
    assert len(video_process._children) == 2 and len(read(film)) == 30


def flipped(path: Path, seed: int) -> Path:
    data = bytearray(path.read_bytes())
    for place in np.random.default_rng(seed).integers(0, len(data), 12):
        data[place] ^= 0xFF
    damaged = path.with_name(f"damaged-{seed}.mp4")
    damaged.write_bytes(bytes(data))
    return damaged


def test_flipped_bytes_are_one_line_or_frames_and_the_next_video_is_read(film):
    for seed in range(6):
        damaged = flipped(film, seed)
        try:
            read_header(damaged)
            read(damaged)
        except DataError as error:
            assert "\n" not in str(error)
    assert len(read(film)) == 30


def test_a_video_without_a_codec_is_told():
    """Of which PyAV takes frames from nowhere: the process ends."""
    damaged = Path(__file__).parent / "damaged.mp4"
    for look in (lambda: read_header(damaged), lambda: read(damaged)):
        with pytest.raises(DataError, match="does not say by which codec"):
            look()


def kill_while(monkeypatch, number: int, when: int = 1) -> None:
    """Sends a signal to the process that decodes when it has sent `when` answers."""
    answers, real = [0], video_process._Child.answer

    def answer(self):
        answers[0] += 1
        if answers[0] == when:
            os.kill(self._process.pid, number)
        return real(self)

    monkeypatch.setattr(video_process._Child, "answer", answer)


def test_a_process_that_dies_names_the_video(film, monkeypatch):
    monkeypatch.setattr(video_process, "_children", [])
    monkeypatch.setattr(video_process, "_PIPE", 4096)
    kill_while(monkeypatch, signal.SIGSEGV)
    with pytest.raises(DecoderDiedError, match=r"the video is damaged: .* \(SIGSEGV\)"):
        read_header(film)
    assert len(read(film)) == 30


def test_what_a_process_decoded_before_is_not_held_against_a_video(film, monkeypatch):
    monkeypatch.setattr(video_process, "_children", [])
    read(film)
    kill_while(monkeypatch, signal.SIGKILL)
    assert read_header(film).height == 64
    read(film)
    kill_while(monkeypatch, signal.SIGKILL, when=3)
    assert len(read(film)) == 30  # those that had come are not given twice


def test_a_process_that_hangs_is_ended(film, monkeypatch):
    monkeypatch.setattr(video_process, "_children", [])
    monkeypatch.setattr(video_process, "PATIENCE", 0.2)
    kill_while(monkeypatch, signal.SIGSTOP)
    with pytest.raises(DecoderDiedError, match=r"did nothing for"):
        read_header(film)
    assert video_process._children == []


def test_it_ends_with_its_parent(film):
    program = """
import os, sys
from pathlib import Path
from robostack.datasets.formats import video_process
frames = video_process.decode_at(Path(sys.argv[1]), [i / 10 for i in range(30)], 0.049)
next(frames)
other = video_process._Child()
print(other._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    found = subprocess.run([sys.executable, "-c", program, str(film)], capture_output=True, text=True, check=False)
    child = Path(f"/proc/{int(found.stdout)}")
    for _ in range(200):
        if not child.exists() or "Z" in (child / "stat").read_text().split(")")[-1].split()[:1]:
            return
        time.sleep(0.1)
    raise AssertionError("it still runs")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: os.mkfifo(path), "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.mkdir(), "no regular file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS"),
        (lambda path: path.write_bytes(b"x" * 4096), "cannot be decoded"),
    ],
)
def test_what_is_no_video_is_not_even_opened_or_told(tmp_path, make, told):
    make(tmp_path / "a.mp4")
    for look in (read, read_header):
        with pytest.raises((DataError, ValueError), match=told):
            look(tmp_path / "a.mp4")


def test_a_header_of_absurd_size_costs_no_memory(film):
    data = bytearray(film.read_bytes())
    width, height = (64).to_bytes(4, "big"), (64).to_bytes(4, "big")
    place = data.index(b"avc1", data.index(b"stsd")) + 4 + 24  # the sizes that the track describes
    assert data[place : place + 4] == width[2:] + height[2:]
    data[place : place + 4] = b"\xff\xff\xff\xff"
    huge = film.with_name("huge.mp4")
    huge.write_bytes(bytes(data))
    try:
        assert read(huge).shape[1:] == (64, 64, 3)  # the stream's own say
    except DataError as error:
        assert "\n" not in str(error)
