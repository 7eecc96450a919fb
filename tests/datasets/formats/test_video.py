"""Videos keep their frames, their times and their promises to browsers."""

from fractions import Fraction

import numpy as np
import pytest

from robostack.datasets.formats.video import (
    H264,
    Codec,
    decode_frames,
    join_videos,
    read_frames,
    video_end,
    write_video,
)

LOSSLESS = Codec("libx264rgb", "rgb24", {"crf": "0", "preset": "veryfast", "bf": "0"}, key_frames=4)
H264_IN_ORDER = Codec("libx264", "yuv420p", {**H264.options, "bf": "0"})
AV1 = Codec("libsvtav1", "yuv420p", {"crf": "30", "preset": "12"}, key_frames=2)


def moving_disc(count: int, height: int = 96, width: int = 128) -> np.ndarray:
    """(count, height, width, 3) uint8: a disc that crosses a shaded ground."""
    y, x = np.mgrid[0:height, 0:width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        ground = 60 + 100 * x / width
        disc = (x - 10 - 2 * i) ** 2 + (y - height / 2) ** 2 < 12**2
        frames[i] = np.where(disc[..., None], [200, 60, 40], ground[..., None])
    return frames


def peak_signal_to_noise(a: np.ndarray, b: np.ndarray) -> float:
    """In decibels."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize("fps", [30, 25.0, 12.5])
def test_round_trip_keeps_frames_and_exact_times(tmp_path, fps):
    frames = moving_disc(40)
    assert write_video(tmp_path / "a.mp4", iter(frames), fps) == 40
    back, times = read_frames(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    assert peak_signal_to_noise(frames, back) > 30
    assert times == [i / Fraction(fps) for i in range(40)]


def test_frames_stay_in_order(tmp_path):
    frames = np.stack([np.full((32, 32, 3), 6 * i, np.uint8) for i in range(40)])
    write_video(tmp_path / "a.mp4", frames, 25)
    back, _ = read_frames(tmp_path / "a.mp4")
    np.testing.assert_allclose(back.mean((1, 2, 3)), 6 * np.arange(40), atol=3)


def test_the_file_is_what_browsers_play(tmp_path):
    av = pytest.importorskip("av")
    write_video(tmp_path / "a.mp4", moving_disc(5), 25)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (6, 1)  # SMPTE 170M, limited range: said, not guessed
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index comes first, so that it plays while loading


def test_odd_sizes_gain_one_row_and_column(tmp_path):
    write_video(tmp_path / "a.mp4", moving_disc(3, height=61, width=83), 25)
    assert read_frames(tmp_path / "a.mp4")[0].shape == (3, 62, 84, 3)


def test_a_failure_midway_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, moving_disc(3), 25)
    before = path.read_bytes()

    def broken():
        yield from moving_disc(2)
        raise RuntimeError("renderer died")

    with pytest.raises(RuntimeError, match="renderer died"):
        write_video(path, broken(), 25)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 25, "at least one frame"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], 25, r"as large as the first, \(8, 8\)"),
        ([np.zeros((8, 8, 3), np.uint8)], 0, "fps >= 1"),
    ],
)
def test_bad_input_is_named(tmp_path, frames, fps, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_lossless_is_exact_at_any_size(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 61, 83, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames, 25, LOSSLESS)
    assert np.array_equal(read_frames(tmp_path / "a.mp4")[0], frames)


@pytest.mark.parametrize("codec", [H264_IN_ORDER, LOSSLESS, AV1], ids=["h264", "lossless", "av1"])
@pytest.mark.parametrize("fps", [30, 12.5, Fraction(30000, 1001)])
def test_joined_videos_are_their_pieces_at_exact_times(tmp_path, codec, fps):
    pieces = [(tmp_path / f"{count}.mp4", count) for count in (13, 1, 20)]
    for path, count in pieces:
        write_video(path, moving_disc(count, 64, 96), fps, codec)
    join_videos(tmp_path / "all.mp4", pieces, fps)
    frames, times = read_frames(tmp_path / "all.mp4")
    assert np.array_equal(frames, np.concatenate([read_frames(path)[0] for path, _ in pieces]))
    assert times == [i / Fraction(fps) for i in range(34)]
    assert (tmp_path / "all.mp4").stat().st_size < sum(path.stat().st_size for path, _ in pieces)


@pytest.mark.parametrize("codec", [H264, H264_IN_ORDER, AV1, LOSSLESS])
@pytest.mark.parametrize("count", [1, 2, 23])
def test_the_header_tells_when_the_last_frame_ends(tmp_path, codec, count):
    for fps in (50, 12.5, Fraction(30000, 1001)):
        write_video(tmp_path / "a.mp4", moving_disc(count), fps, codec)
        end = video_end(tmp_path / "a.mp4")
        assert end is not None and abs(end - count / Fraction(fps)) < Fraction(1, 10_000)


def test_joining_holds_the_pieces_to_their_counts(tmp_path):
    write_video(tmp_path / "a.mp4", moving_disc(5), 25, H264_IN_ORDER)
    with pytest.raises(ValueError, match=r"expected 6 frames in .*a\.mp4, got 5"):
        join_videos(tmp_path / "all.mp4", [(tmp_path / "a.mp4", 6)], 25)
    write_video(tmp_path / "a.mp4", moving_disc(5), 25)
    with pytest.raises(ValueError, match=r"expected no reordered frames in .*a\.mp4"):
        join_videos(tmp_path / "all.mp4", [(tmp_path / "a.mp4", 5)], 25)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("codec", [H264, LOSSLESS, AV1], ids=["h264", "lossless", "av1"])
def test_decoding_from_the_middle_gives_the_same_frames_from_a_key_frame_on(tmp_path, codec):
    # H.264 reorders its frames, with a key frame every ten here: what a seek finds can lie after what was sought.
    write_video(tmp_path / "a.mp4", moving_disc(45, 64, 96), 10, codec)
    frames, times = read_frames(tmp_path / "a.mp4")
    for index in range(45):
        some = [(time, frame) for frame, time in decode_frames(tmp_path / "a.mp4", times[index])]
        first = times.index(some[0][0])
        assert first <= index < first + (codec.key_frames or 10) + 10
        assert [time for time, _ in some] == times[first:]
        assert np.array_equal(some[index - first][1], frames[index])
