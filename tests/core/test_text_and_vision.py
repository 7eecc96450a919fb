"""Words become ids and no unknown word passes; image points follow what they look at."""

import pytest
import torch

from robostack.core.text.words import Vocabulary
from robostack.core.vision.images import centre_crop, patchify
from robostack.core.vision.keypoints import KeypointEncoder, spatial_softmax
from robostack.core.vision.vit import PatchEncoder, grid_centres, grid_embedding
from robostack.envs.aloha.cameras import Camera
from robostack.envs.aloha.env import AlohaEnv


def test_texts_that_say_the_same_get_the_same_ids() -> None:
    vocabulary = Vocabulary.of(["Pick up the cube.", "Insert the peg"])
    one, two = vocabulary.encode(["pick up the cube", "Pick up the cube!"])
    assert (one == two).all() and vocabulary.length == 4 and vocabulary.size == 7
    assert (vocabulary.encode(["the peg"])[0] > 0).tolist() == [True, True, False, False]


def test_an_unknown_word_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="spatula"):
        Vocabulary.of(["pick up the cube"]).encode(["pick up the spatula"])
    with pytest.raises(ValueError, match="at most 2"):
        Vocabulary.of(["the cube"]).encode(["the the cube"])


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


def test_the_cells_of_a_grid_are_told_apart_and_lie_where_they_do() -> None:
    centres = torch.tensor([[-0.5, -2 / 3], [0.5, -2 / 3], [-0.5, 0], [0.5, 0], [-0.5, 2 / 3], [0.5, 2 / 3]])
    torch.testing.assert_close(grid_centres(3, 2), centres)
    embedding = grid_embedding(17, 8, 16)
    assert embedding.shape == (17 * 8, 16)
    assert torch.cdist(embedding, embedding).fill_diagonal_(1.0).min() > 0.1
    torch.testing.assert_close(embedding[3, :8], embedding[5, :8])  # one row
    torch.testing.assert_close(embedding[3, 8:], embedding[8 + 3, 8:])  # one column


def test_pictures_that_patches_do_not_fill_are_refused() -> None:
    with pytest.raises(ValueError, match="set a crop"):
        PatchEncoder((64, 60), 16)
    assert PatchEncoder((67, 60), 16, crop=(64, 56))(torch.zeros(1, 67, 60, 3, dtype=torch.uint8)).isfinite().all()


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
