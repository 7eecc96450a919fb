"""Words become ids and no unknown word passes; keypoints follow what they look at."""

import pytest
import torch

from robostack.core.text import Vocabulary
from robostack.core.vision import KeypointEncoder, spatial_softmax


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


def test_every_pixel_is_seen() -> None:
    torch.manual_seed(0)
    encoder = KeypointEncoder(16)
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    before = encoder(image)
    for row, column in ((1, 1), (30, 30), (60, 60)):
        changed = image.clone()
        changed[0, row, column] ^= 255
        assert not torch.equal(encoder(changed), before)
