"""Frames to an mp4 that browsers play, and back."""

import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from robostack.extras import require_extra

# H.264 with 4:2:0 colour is what every browser plays. CRF 23 to 28 is where x264's files become small before they
# become ugly; rendered scenes have no noise, so 26 is still clean. One key frame a second makes seeking quick.
_CODEC = "libx264"
# The colour matrix is the one the conversion from RGB uses; untagged, browsers guess, and greens drift.
_OPTIONS = {"crf": "26", "preset": "medium", "colorspace": "smpte170m", "color_range": "tv"}


def write_video(
    path: Path | str, frames: Iterable[UInt8[np.ndarray, "height width 3"]], fps: int | float | Fraction
) -> int:
    """Writes RGB frames as H.264 (yuv420p, index at the front) and returns how many.

    Frame i is shown at exactly i / fps seconds. An odd height or width, which 4:2:0 cannot hold, gains one row or
    column that repeats its neighbour. Frames are consumed one by one: a generator of any length will do.

    Args:
        path: ends in .mp4; written to a temporary name first, so that a failure leaves no half a video.
        fps: frames per second, at least 1; rounded to a thousandth.

    Raises:
        MissingExtraError: PyAV is not installed.
        ValueError: no frames, a frame that is not uint8 (height, width, 3), or one of another size than the first.
    """
    require_extra("av", "report")
    import av  # here, because it is an extra

    path = Path(path)
    if path.suffix != ".mp4" or fps < 1:
        raise ValueError(f"expected a path that ends in .mp4 and fps >= 1, came {path.name} and {fps}")
    rate = Fraction(fps).limit_denominator(1000)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"expected at least one frame for {path.name}, came none")
    _check_frame(first, first.shape)
    height, width = first.shape[:2]
    count = 0
    partial = path.with_name(f".{path.stem}.partial.mp4")
    try:
        with av.open(str(partial), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream(_CODEC, rate=rate, options=_OPTIONS)
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            stream.codec_context.gop_size = round(rate)
            stream.codec_context.time_base = 1 / rate
            for frame in itertools.chain([first], iterator):
                _check_frame(frame, first.shape)
                padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                picture = av.VideoFrame.from_ndarray(padded, format="rgb24")
                picture.pts, picture.time_base = count, 1 / rate
                container.mux(stream.encode(picture))
                count += 1
            container.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def read_frames(path: Path | str) -> tuple[UInt8[np.ndarray, "frames height width 3"], list[Fraction]]:
    """All frames of a video as RGB, and when each is shown, in seconds (exact).

    Raises:
        MissingExtraError: PyAV is not installed.
        ValueError: the file holds no frames.
    """
    require_extra("av", "report")
    import av

    frames, times = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.pts is None or frame.time_base is None:
                raise ValueError(f"expected every frame of {path} to carry its time, frame {len(frames)} has none")
            frames.append(frame.to_ndarray(format="rgb24"))
            times.append(frame.pts * frame.time_base)
    if not frames:
        raise ValueError(f"expected a video with frames, {path} holds none")
    return np.stack(frames), times


def _check_frame(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"expected frames of uint8 (height, width, 3), came {frame.dtype} {frame.shape}")
    if frame.shape != shape:
        raise ValueError(f"expected all frames as large as the first, {shape[:2]}, came {frame.shape[:2]}")
