"""Image points follow what they look at, whichever encoder finds them."""

import pytest
import torch

from robostack.core.vision.keypoints import KeypointEncoder, spatial_softmax
from robostack.core.vision.vit import PatchEncoder, grid_centres


def test_spatial_softmax_finds_a_peak() -> None:
    maps = torch.zeros(1, 2, 5, 9)
    maps[0, 0, 0, 8] = maps[0, 1, 4, 2] = 50.0
    torch.testing.assert_close(spatial_softmax(maps)[0], torch.tensor([[1.0, -1.0], [-0.5, 1.0]]))


ENCODERS = {"keypoints": KeypointEncoder, "patches": lambda width, **more: PatchEncoder((64, 64), width, **more)}


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_pixel_is_seen(kind: str) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS[kind](16)
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    before = encoder(image)
    for row, column in ((1, 1), (30, 30), (60, 60)):
        changed = image.clone()
        changed[0, row, column] ^= 255
        assert not torch.equal(encoder(changed), before)


@pytest.mark.parametrize("kind", ENCODERS)
def test_only_the_middle_that_is_cut_out_is_seen(kind: str) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS[kind](16, crop=(32, 48))
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    before, outside, corner = encoder(image), 255 - image, image.clone()
    outside[:, 16:48, 8:56] = image[:, 16:48, 8:56]
    corner[0, 17, 9] ^= 255
    assert torch.equal(encoder(outside), before) and not torch.equal(encoder(corner), before)


@pytest.mark.parametrize("kind", ENCODERS)
def test_pictures_of_a_batch_do_not_touch_each_other(kind: str) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS[kind](16).double()
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    together = encoder(images)
    assert together.shape == (3, encoder.tokens, 16)
    for i in range(3):
        torch.testing.assert_close(encoder(images[i : i + 1])[0], together[i])


@pytest.mark.parametrize(("kind", "steps"), [("keypoints", 40), ("patches", 120)])
def test_it_learns_where_a_square_is(kind: str, steps: int) -> None:
    """To less than its size, among noise and beside a square of another colour."""
    torch.manual_seed(0)
    encoder = KeypointEncoder(32) if kind == "keypoints" else PatchEncoder((32, 32), 32)
    head = torch.nn.Linear(32, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images, at = squares(32, generator)
        (head(encoder(images)[:, 0]) - at).abs().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    images, at = squares(64, generator)
    with torch.inference_mode():
        pixels = 16.0 * (head(encoder(images)[:, 0]) - at).abs().mean()
    assert pixels < 2.0  # guessing the middle gives 7


def squares(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of 32 × 32 with a green and a red square of 4 pixels, and the red one's (row, column) in about −1..1."""
    images = torch.randint(0, 80, (batch, 32, 32, 3), generator=generator, dtype=torch.uint8)
    corners = torch.randint(0, 29, (batch, 2, 2), generator=generator)
    colours = torch.tensor([[40, 200, 40], [200, 40, 40]], dtype=torch.uint8)
    for image, pair in zip(images, corners.tolist(), strict=True):
        for (row, column), colour in zip(pair, colours, strict=True):
            image[row : row + 4, column : column + 4] = colour
    return images, (corners[:, 1] - 14) / 16.0


def test_the_cells_of_a_grid_lie_where_they_do() -> None:
    centres = torch.tensor([[-0.5, -2 / 3], [0.5, -2 / 3], [-0.5, 0], [0.5, 0], [-0.5, 2 / 3], [0.5, 2 / 3]])
    torch.testing.assert_close(grid_centres(3, 2), centres)


def test_pictures_that_patches_do_not_fill_are_refused() -> None:
    with pytest.raises(ValueError, match="set a crop"):
        PatchEncoder((64, 60), 16)
    assert PatchEncoder((67, 60), 16, crop=(64, 56))(torch.zeros(1, 67, 60, 3, dtype=torch.uint8)).isfinite().all()
