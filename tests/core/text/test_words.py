"""Words become ids, and no unknown word passes."""

import pytest

from robostack.core.text.words import Vocabulary


def test_texts_that_say_the_same_get_the_same_ids() -> None:
    vocabulary = Vocabulary.of(["Pick up the cube.", "Insert the peg"])
    one, two = vocabulary.encode(["pick up the cube", "Pick up the cube!"]).ids
    assert (one == two).all() and vocabulary.length == 4 and vocabulary.size == 7


def test_words_are_in_order_and_what_is_behind_them_is_not_valid() -> None:
    ids, valid = Vocabulary.of(["insert the peg now"]).encode(["the peg", "peg the"])
    assert valid.tolist() == [[True, True, False, False]] * 2
    assert ids[0, :2].tolist() == ids[1, 1::-1].tolist() and not ids[:, 2:].any()


def test_an_unknown_word_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="spatula"):
        Vocabulary.of(["pick up the cube"]).encode(["pick up the spatula"])
    with pytest.raises(ValueError, match="at most 2"):
        Vocabulary.of(["the cube"]).encode(["the the cube"])
