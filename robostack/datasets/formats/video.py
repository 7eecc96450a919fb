"""Frames to an mp4, and back.

Encoding and decoding are PyAV's, whose wheel brings its own FFmpeg. torchcodec is left out on purpose: it loads only
where a system FFmpeg is, its colour conversion need not round as PyAV's does, and what a data set holds after a
conversion must not depend on the machine that converted it.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from robostack.common.extras import require_extra
from robostack.datasets.formats.pictures import LARGEST_PICTURE


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg's and its settings; every `key_frames`-th frame is a key frame, by default one a second."""

    encoder: str
    pixel_format: str
    options: Mapping[str, str]
    key_frames: int | None = None

    @property
    def halves_colour(self) -> bool:
        """Whether two rows and two columns share their colour, so that a picture needs an even height and width."""
        return self.pixel_format == "yuv420p"


# The colour matrix is the one the conversion from RGB uses; untagged, browsers guess, and greens drift.
COLOURS = {"colorspace": "smpte170m", "color_range": "tv"}
# What every browser plays. CRF 23 to 28 is where x264's files become small before they become ugly; rendered scenes
# have no noise, so 26 is still clean. One key frame a second makes seeking quick.
H264 = Codec("libx264", "yuv420p", {"crf": "26", "preset": "medium", **COLOURS})


def write_video(
    path: Path | str,
    frames: Iterable[UInt8[np.ndarray, "height width 3"]],
    fps: int | float | Fraction,
    codec: Codec = H264,
) -> int:
    """Writes RGB frames as an mp4 (index at the front) and returns how many.

    Frame i is shown at exactly i / fps seconds, fps being at least 1 and rounded by `exact_rate`. An odd height or
    width, which 4:2:0 colour cannot hold, gains one row or column that repeats its neighbour. Frames are consumed one
    by one: a generator of any length will do. `path` ends in .mp4 and is written to a temporary name first, so that a
    failure leaves no half a video.

    Raises MissingExtraError without PyAV; ValueError for no frames, a frame that is not uint8 (height, width, 3), or
    one of another size than the first.
    """
    require_extra("av", "report")
    import av  # here, because it is an extra

    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder writes its settings to the terminal unless told not to
    path = Path(path)
    if path.suffix != ".mp4" or fps < 1:
        raise ValueError(f"expected a path that ends in .mp4 and fps >= 1, got {path.name} and {fps}")
    rate = exact_rate(fps)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"expected at least one frame for {path.name}, got none")
    _check_frame(first, first.shape)
    height, width = first.shape[:2]
    rows, columns = (height % 2, width % 2) if codec.halves_colour else (0, 0)
    count = 0
    partial = path.with_name(f".{path.stem}.partial.mp4")
    try:
        with av.open(str(partial), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream(codec.encoder, rate=rate, options=dict(codec.options))
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = width + columns, height + rows
            stream.pix_fmt = codec.pixel_format
            stream.codec_context.gop_size = codec.key_frames or round(rate)
            stream.codec_context.time_base = 1 / rate
            for frame in itertools.chain([first], iterator):
                _check_frame(frame, first.shape)
                padded = np.pad(frame, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else frame
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
                picture.pts, picture.time_base = count, 1 / rate
                container.mux(stream.encode(picture))
                count += 1
            container.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def join_videos(path: Path | str, pieces: Sequence[tuple[Path, int]], fps: int | float | Fraction) -> None:
    """Writes videos of one codec and size one after the other, without encoding anew, to a temporary name first.

    `pieces` are videos by `write_video` at `fps`, each with its count of frames, by a codec that does not reorder
    frames (bf 0 for H.264). Frame k of the whole is shown at exactly k / fps. Raises ValueError where a piece holds
    another count of frames than is said, or reorders them.
    """
    require_extra("av", "report")
    import av

    path, rate = Path(path), exact_rate(fps)
    partial = path.with_name(f".{path.stem}.partial.mp4")
    before = 0
    try:
        with av.open(str(partial), "w", options={"movflags": "+faststart"}) as whole:
            out = None
            for piece, count in pieces:
                packets = 0
                with av.open(str(piece)) as container:
                    stream = container.streams.video[0]
                    if out is None:
                        out = whole.add_stream_from_template(stream, opaque=True)
                        out.time_base = stream.time_base
                    for packet in container.demux(stream):
                        if packet.pts is None or packet.dts is None:  # the empty packet that ends a stream
                            continue
                        if packet.pts != packet.dts:
                            raise ValueError(f"expected no reordered frames in {piece}, to join it: encode with bf 0")
                        shift = before / rate / packet.time_base
                        assert shift.denominator == 1, f"{piece}: a frame of {1 / rate} s is no multiple of its ticks"
                        packet.pts = packet.dts = packet.pts + int(shift)
                        packet.stream = out
                        whole.mux(packet)
                        packets += 1
                if packets != count:
                    raise ValueError(f"expected {count} frames in {piece}, got {packets}")
                before += count
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def decode_frames(
    path: Path | str, start: float | Fraction = 0
) -> Iterator[tuple[UInt8[np.ndarray, "height width 3"], Fraction]]:
    """Frames in order as RGB, each with the time it is shown, in seconds (exact). Decoding begins at a key frame at or
    before `start`, so the first frames may lie before it. Only one frame at a time is in memory.

    A damaged file can end the process: what others wrote is decoded by `video_process`.

    Raises MissingExtraError without PyAV; ValueError where the file is no video, is damaged, has more than
    `LARGEST_PICTURE` pixels, or a frame carries no time; OSError where it cannot be read.
    """
    for frame, time in _decoded(path, start):
        yield frame.to_ndarray(format="rgb24"), time


def frames_at(
    path: Path | str, due: Sequence[float], tolerance: float, form: str = "rgb24"
) -> Iterator[Shaped[np.ndarray, "height width *channels"]]:
    """The frame of each moment of `due`, rising, in seconds: the one shown nearest to it, which must be no further off
    than `tolerance`. Raises as `decode_frames`, and ValueError where there is no such frame."""
    decoded = _decoded(path, max(0.0, due[0] - tolerance)) if len(due) else iter(())
    now = later = None
    for index, moment in enumerate(due):
        while now is None or now[1] < moment - _EXACT:
            later = later or next(decoded, None)
            if later is None or (now is not None and abs(now[1] - moment) <= abs(later[1] - moment)):
                break
            now, later = later, None
        if now is None or (later is None and now[1] < moment - tolerance):
            what = f"the video ends before frame {index}, due at {moment:.4f} s; the table has {len(due)} frames"
            raise ValueError(f"{what}: restore it from a copy")
        if not abs(now[1] - moment) <= tolerance:
            nearest = f"the nearest is shown at {float(now[1]):.4f} s"
            raise ValueError(f"frame {index} of the video is missing: due at {moment:.4f} s, {nearest}")
        yield now[0].to_ndarray(format=form)


_EXACT = 1e-4
"""Seconds within which a frame is taken without a look at the next one."""


def _decoded(path: Path | str, start: float | Fraction) -> Iterator[tuple[Any, Fraction]]:
    """PyAV's frames from a key frame at or before `start` on, and their times."""
    require_extra("av", "report")
    import av

    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(LARGEST_PICTURE)}  # before it takes memory for them
        # Seeking goes by decoding times, which are earlier than the times shown where frames are reordered: what it
        # finds can lie after `start`, and then the search begins further back.
        for margin in (0, 1, 10, math.inf) if start > 0 else ():
            position = max(0, start - margin) / _time_base(stream.time_base, path)
            container.seek(math.floor(position), stream=stream)
            first = next(container.decode(stream), None)
            container.seek(math.floor(position), stream=stream)
            if first is not None and first.pts is not None and first.pts * _time_base(first.time_base, path) <= start:
                break
        for index, frame in enumerate(container.decode(stream)):
            if frame.pts is None:
                raise ValueError(f"expected every frame of {path} to carry its time, frame {index} has none")
            time = frame.pts * _time_base(frame.time_base, path)
            if frame.is_corrupt:
                raise ValueError(f"{path} is damaged at {float(time):.3f} s")
            if frame.width * frame.height > LARGEST_PICTURE:
                raise ValueError(f"{path} has frames of {frame.width}×{frame.height} pixels: too large")
            yield frame, time


def video_end(path: Path | str) -> Fraction | None:
    """When the last frame of a video ends, in seconds, as its header says it; None where it does not. Decodes nothing.

    Raises MissingExtraError without PyAV, ValueError where the file is no video, OSError where it cannot be read.
    """
    return video_header(path).end


class VideoHeader(NamedTuple):
    """What a video says of itself."""

    height: int
    width: int
    end: Fraction | None
    """Seconds at which the last frame ends; None where it is not said."""
    start: Fraction = Fraction(0)
    """Seconds at which the first frame is shown."""
    rate: Fraction | None = None
    """Frames a second on average; None where it is not said."""


def video_header(path: Path | str) -> VideoHeader:
    """The header of a video. Decodes nothing. Raises as `video_end`."""
    require_extra("av", "report")
    import av

    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        height, width, ticks = stream.height, stream.width, stream.duration
        start = Fraction(0) if ticks is None else (stream.start_time or 0) * _time_base(stream.time_base, path)
        end = None if ticks is None else start + ticks * _time_base(stream.time_base, path)
        rate = stream.average_rate
    return VideoHeader(height, width, end, start, Fraction(rate) if rate else None)


def read_frames(path: Path | str) -> tuple[UInt8[np.ndarray, "frames height width 3"], list[Fraction]]:
    """All frames of a video as RGB, and when each is shown, in seconds (exact).

    Raises as `decode_frames`, and ValueError where the file holds no frames.
    """
    decoded = list(decode_frames(path))
    if not decoded:
        raise ValueError(f"expected a video with frames, {path} holds none")
    return np.stack([frame for frame, _ in decoded]), [time for _, time in decoded]


def exact_rate(fps: int | float | Fraction) -> Fraction:
    """Frames a second as the fraction that is meant: 29.97002997 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def _video_stream(container: Any, path: Path | str) -> Any:
    if not container.streams.video:
        raise ValueError(f"expected a video, {path} holds none")
    stream = container.streams.video[0]
    if stream.codec_context is None:  # of which PyAV would take anything that is asked for from nowhere
        raise ValueError(f"{path} does not say by which codec it can be decoded")
    return stream


def _time_base(time_base: Fraction | None, path: Path | str) -> Fraction:
    if time_base is None:
        raise ValueError(f"expected {path} to say how long a tick is, it does not")
    return time_base


def _check_frame(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"expected frames of uint8 (height, width, 3), got {frame.dtype} {frame.shape}")
    if frame.shape != shape:
        raise ValueError(f"expected all frames as large as the first, {shape[:2]}, got {frame.shape[:2]}")
