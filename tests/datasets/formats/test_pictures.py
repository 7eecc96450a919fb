"""Pictures in every form become the same RGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from robostack.datasets.episodes import DataError
from robostack.datasets.formats.pictures import PictureForm, channel_axis, decode, decode_depth, header

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def _encoded(pixels: np.ndarray, mode: str | None = None, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        (RGB, RGB),
        (np.concatenate([RGB, GRAY[..., None]], 2), RGB),
        (RGB.transpose(2, 0, 1), RGB),
        (GRAY, np.stack([GRAY] * 3, 2)),
        (GRAY[..., None], np.stack([GRAY] * 3, 2)),
        (GRAY[None], np.stack([GRAY] * 3, 2)),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(np.float32), RGB),
        (RGB.astype(np.float64) / 255, RGB),
        ((RGB / 255).astype(np.float32).transpose(2, 0, 1), RGB),
    ],
)
def test_arrays_of_every_form_become_rgb(pictures: np.ndarray, expected: np.ndarray) -> None:
    form = PictureForm.of(pictures.shape, pictures.dtype)
    assert form is not None and form.size == (6, 8)
    np.testing.assert_array_equal(form.seen(pictures).rgb(pictures), expected)


@pytest.mark.parametrize("wrong", [np.nan, -1.0, 256.0, np.inf])
def test_floats_that_are_no_colours_are_told(wrong: float) -> None:
    pictures = RGB.astype(np.float32)
    pictures[0, 0, 0] = wrong
    form = PictureForm.of(pictures.shape, pictures.dtype)
    assert form is not None
    with pytest.raises(DataError, match=r"expected colours in 0\.\.255"):
        form.seen(pictures).rgb(pictures)


def test_declared_names_say_where_the_colours_are() -> None:
    assert channel_axis((3, 4, 3), ("channels", "height", "width")) == 0
    assert channel_axis((3, 16, 20), ("rgb", "height", "width")) == 0
    assert channel_axis((3, 4, 3)) == 2
    assert channel_axis((3, 16, 20)) == 0
    assert channel_axis((16, 20, 5)) is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK", "LA"])
def test_encoded_pictures_of_every_mode_become_rgb(mode: str) -> None:
    pixels = np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 4, 1)  # black and white, which every mode holds
    form = "TIFF" if mode == "CMYK" else "PNG"
    data = _encoded(np.stack([pixels] * 3, 2), mode, form)
    np.testing.assert_array_equal(decode(data), np.stack([pixels] * 3, 2))
    assert header(data)[:2] == pixels.shape


def test_sixteen_bits_of_gray_keep_their_upper_half_and_depth_keeps_all() -> None:
    depth = np.array([[0, 300], [4000, 65535]], np.uint16)
    np.testing.assert_array_equal(decode(_encoded(depth))[..., 0], depth >> 8)
    np.testing.assert_array_equal(decode_depth(_encoded(depth))[..., 0], depth)
    with pytest.raises(DataError, match="depth picture of one channel"):
        decode_depth(_encoded(RGB))


def _bomb(size: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("data", [b"", b"no picture", _encoded(RGB)[:50], _bomb(13_000), _bomb(200_000)])
def test_what_is_no_picture_or_unpacks_to_too_much_is_told(data: bytes) -> None:
    with pytest.raises(DataError, match="the picture") as caught:
        decode(data)
    assert "\n" not in str(caught.value)
