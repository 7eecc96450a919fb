"""Pictures move by whole pixels and keep within their colours, a draw for each sample."""

import pytest
import torch

from robostack.training.augmentation import LUMA, jitter_colour, random_shift


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int = 8, looks: int = 2, size: tuple[int, int] = (12, 9)) -> torch.Tensor:
    return torch.randint(0, 256, (batch, looks, *size, 3), generator=seeded(7), dtype=torch.uint8)


def moved(picture: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Pixel by pixel what a shift is, the edge repeated; (looks, height, width, 3)."""
    _, height, width, _ = picture.shape
    result = torch.empty_like(picture)
    for y in range(height):
        for x in range(width):
            result[:, y, x] = picture[:, min(max(y - down, 0), height - 1), min(max(x - right, 0), width - 1)]
    return result


def shift_of(before: torch.Tensor, after: torch.Tensor, most: int) -> tuple[int, int]:
    """The (down, right) that makes one of the other; fails when none does."""
    span = range(-most, most + 1)
    (found,) = [(y, x) for y in span for x in span if torch.equal(moved(before, y, x), after)]
    return found


def test_every_sample_is_moved_by_whole_pixels_of_its_own_and_its_looks_together() -> None:
    before = pictures(batch=24)
    after = random_shift(before, 2, seeded())
    shifts = [shift_of(one, other, most=2) for one, other in zip(before, after, strict=True)]
    assert {y for y, _ in shifts} == {x for _, x in shifts} == {-2, -1, 0, 1, 2}
    assert len(set(shifts)) > 10


def test_a_known_picture_moves_down_and_right_with_its_edge_repeated() -> None:
    row = torch.arange(5, dtype=torch.uint8)
    picture = (10 * row[:, None] + row)[None, None, :, :, None].expand(1, 1, 5, 5, 3)
    seen = set()
    for seed in range(40):
        after = random_shift(picture, 1, seeded(seed))[0, 0, :, :, 0]
        down, right = 2 - int(after[2, 2]) // 10, 2 - int(after[2, 2]) % 10
        rows, columns = (row.int() - down).clamp(0, 4), (row.int() - right).clamp(0, 4)
        assert torch.equal(after.int(), 10 * rows[:, None] + columns)
        seen.add((down, right))
    assert len(seen) == 9


def test_pictures_that_are_not_contiguous_are_moved_alike() -> None:
    before = pictures()
    strange = before.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(random_shift(strange, 3, seeded()), random_shift(before, 3, seeded()))
    assert torch.equal(jitter_colour(strange, 0.3, seeded()), jitter_colour(before, 0.3, seeded()))


@pytest.mark.parametrize(("vary", "strength"), [(random_shift, 2), (jitter_colour, 0.5)])
def test_the_same_generator_gives_the_same_pictures_and_another_others(vary, strength) -> None:
    before = pictures()
    one, two, other = (vary(before, strength, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.dtype == torch.uint8 and one.shape == before.shape
    assert torch.equal(before, pictures()), "the pictures given must stay as they were"


@pytest.mark.parametrize("vary", [random_shift, jitter_colour])
def test_no_strength_draws_nothing_and_gives_the_tensor_back(vary) -> None:
    before, generator = pictures(), seeded()
    state = generator.get_state()
    assert vary(before, 0, generator) is before and torch.equal(generator.get_state(), state)


def test_colours_are_brightness_contrast_and_saturation_in_their_order() -> None:
    """Against the three steps one after the other, each with what it was drawn."""
    before, strength = pictures(batch=16), 0.3
    after = jitter_colour(before, strength, seeded())
    drawn = 1.0 + strength * (2.0 * torch.rand((3, 16, 1, 1), generator=seeded()) - 1.0)
    luma = torch.tensor(LUMA)
    for sample in range(16):
        brightness, contrast, saturation = drawn[:, sample, 0, 0]
        x = before[sample].float()
        grey = (x @ luma)[..., None]
        x = grey + saturation * (x - grey)
        mean = (x @ luma).mean()
        x = mean + contrast * (x - mean)
        expected = (brightness * x).clamp(0, 255)
        assert (after[sample].float() - expected).abs().max() <= 0.51


def test_colours_change_by_no_more_than_was_asked() -> None:
    grey = torch.full((64, 1, 4, 4, 3), 100, dtype=torch.uint8)  # without contrast or saturation: brightness alone
    after = jitter_colour(grey, 0.2, seeded())
    assert (after == after[:, :1, :1, :1, :1]).all()
    levels = after[:, 0, 0, 0, 0].int()
    assert 80 <= levels.min() < 85 and 115 < levels.max() <= 120


def test_black_stays_black_and_white_does_not_wrap_round() -> None:
    # An absent camera's frame is black: it must not come to life.
    black = torch.zeros(4, 1, 4, 4, 3, dtype=torch.uint8)
    assert not jitter_colour(black, 0.9, seeded()).any()
    bright = jitter_colour(torch.full((32, 1, 4, 4, 3), 255, dtype=torch.uint8), 0.5, seeded())
    assert bright.min() >= 127 and (bright == 255).all(-1).flatten(1).all(1).sum() > 8


def test_samples_do_not_touch_each_other() -> None:
    one, other = pictures(), pictures()
    other[1:] = 255 - other[1:]
    for vary, strength in ((random_shift, 2), (jitter_colour, 0.5)):
        assert torch.equal(vary(one, strength, seeded())[0], vary(other, strength, seeded())[0])
