"""What is cut out of a picture, what it is resized to, and the order of its patches."""

from typing import Any

import numpy as np
import pytest
import torch

from robostack.core.vision.images import centre_crop, normalized, patchify, resize
from robostack.envs.aloha.cameras import Camera
from robostack.envs.aloha.env import AlohaEnv


def test_the_middle_of_an_odd_margin_leaves_the_larger_part_below_and_right() -> None:
    rows = torch.arange(7, dtype=torch.uint8)[:, None].expand(7, 6)
    image = torch.stack([rows, torch.arange(6, dtype=torch.uint8).expand(7, 6), rows], dim=-1)[None]
    middle = centre_crop(image, (4, 3))[0]
    assert middle[:, 0, 0].tolist() == [1, 2, 3, 4] and middle[0, :, 1].tolist() == [1, 2, 3]
    assert centre_crop(image, None) is image


def test_patches_lie_row_by_row_and_hold_their_pixels() -> None:
    image = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    for index, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        assert torch.equal(patches[:, index], image[:, row : row + 2, column : column + 2].flatten(1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 14), (25, 40), (36, 21)])
def test_a_gradient_stays_a_gradient(interpolation: Any, size: tuple[int, int]) -> None:
    """Pixel centres stay where they are in the picture: (i + ½) / N. Near the edge there is less to average."""
    rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (18, 28))
    depth = (0.2 + 0.3 * rows[:, None] + 0.4 * columns)[None, :, :, None]
    there = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in size]
    expected = 0.2 + 0.3 * there[0][:, None] + 0.4 * there[1]
    found = resize(depth, size, "stretch", interpolation)[0, :, :, 0]
    assert found.dtype == torch.float64
    rim = [slice(-(-3 * n // 18), n - -(-3 * n // 18)) for n in size]
    torch.testing.assert_close(found[rim[0], rim[1]], expected[rim[0], rim[1]], rtol=0, atol=0.003)


def test_bars_are_where_they_should_be() -> None:
    """Those of openpi: an odd margin's larger part at the bottom and right, and of the picture nothing is lost."""
    white = torch.full((2, 30, 40, 3), 255, dtype=torch.uint8)
    for size, rows, columns in (
        ((20, 20), (2, 17), (0, 20)),
        ((31, 80), (0, 31), (19, 60)),
        ((33, 40), (1, 31), (0, 40)),
    ):
        padded = resize(white, size)
        assert padded.shape == (2, *size, 3) and padded.dtype == torch.uint8
        expected = torch.zeros(size, dtype=torch.uint8)
        expected[slice(*rows), slice(*columns)] = 255
        assert torch.equal(padded, expected[None, :, :, None].expand_as(padded))
    assert resize(white, (30, 40)) is white
    assert bool((resize(white, (20, 20), "stretch") == 255).all())
    exact = torch.randint(0, 256, (1, 30, 40, 3), dtype=torch.uint8)
    assert torch.equal(resize(exact, (33, 40))[:, 1:31], exact)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(17, 23), (224, 224), (33, 100)])
def test_a_stretched_picture_is_pils(interpolation: Any, size: tuple[int, int]) -> None:
    """To one level of 255: what lies half between two is rounded either way. Of noise, whose overshoots are cut off."""
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    how = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    expected = np.asarray(Image.fromarray(picture).resize(size[::-1], how)).astype(int)
    found = resize(torch.from_numpy(picture)[None], size, "stretch", interpolation)[0].numpy().astype(int)
    assert np.abs(found - expected).max() <= 1 and (found != expected).mean() < 0.05


def test_colours_are_normalized_and_depth_is_grey() -> None:
    mean, deviation = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    colours = torch.tensor([51, 102, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    expected = torch.tensor([0.2, 0.8, 0.35], dtype=torch.float64).expand(1, 2, 2, 3)
    torch.testing.assert_close(normalized(colours, mean, deviation, torch.float64), expected)
    depth = torch.full((1, 2, 2, 1), 0.6)
    torch.testing.assert_close(
        normalized(depth, mean, deviation, torch.float32), torch.tensor([1.0, 1.6, 0.15]).expand(1, 2, 2, 3)
    )
    half = normalized(colours, mean, deviation, torch.bfloat16)
    assert torch.equal(half, expected.float().bfloat16())


def test_the_middle_of_the_stock_camera_is_the_narrowed_one() -> None:
    """n of N pixels of a view φ show 2 atan(n/N · tan(φ/2)): 64 of 136 make 41.7 degrees of the top camera's 78."""
    env = AlohaEnv(cameras=[Camera("wide", "top", 136, 136), Camera("narrow", "top", 64, 64, fovy=41.725)])
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        wide, narrow = (
            torch.from_numpy(observation[f"observation.images.{name}"])[None] for name in ("wide", "narrow")
        )
        middle = centre_crop(wide, (64, 64))
        beside = wide[:, 35:99, 36:100]  # one pixel off
        assert difference(middle, narrow) < 0.2 < 0.5 < difference(beside, narrow)
    env.close()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The mean, in levels of 255."""
    return float((one.float() - other.float()).abs().mean())
