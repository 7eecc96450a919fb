"""A prompt is what the published models were trained with, and a state in it is in openpi's bins."""

import numpy as np
import pytest
from published_prompts import PI0, PI05

from robostack.core.text.prompt import Prompt, state_words
from robostack.core.text.words import Vocabulary


def test_the_published_prompts() -> None:
    """As openpi's PaligemmaTokenizer and OpenVLA's processor write them."""
    assert PI0.write(" pick_up the\ncube ") == "pick up the cube\n"
    state = np.array([-1.5, -1.0, -0.9921876, 0.0, 0.999, 1.0, 3.0], np.float32)
    assert PI05.write("fold", state) == "Task: fold, State: -1 0 0 128 255 255 255;\nAction: "
    openvla = Prompt("In: What action should the robot take to {task}?\nOut:", lower_task=True)
    assert openvla.write("Open It") == "In: What action should the robot take to open it?\nOut:"


def test_a_bin_is_where_openpi_digitizes() -> None:
    state = np.random.default_rng(0).uniform(-1.2, 1.2, 300)
    expected = np.digitize(state, bins=np.linspace(-1, 1, 256 + 1)[:-1]) - 1
    written = PI05.write("x", state).removeprefix("Task: x, State: ").removesuffix(";\nAction: ")
    assert written == " ".join(map(str, expected))


def test_a_task_is_no_template() -> None:
    assert Prompt("{task}: {task} {{}").write("{state} {task}") == "{state} {task}: {state} {task} {{}"


def test_a_prompt_without_task_or_without_its_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have \{task\} in it"):
        Prompt("Out:")
    with pytest.raises(ValueError, match="tells the state, and got none"):
        PI05.write("fold")


def test_words_can_say_every_state() -> None:
    states = [np.full(2, value) for value in np.linspace(-1.1, 1.1, 1000)]
    prompts = [PI05.write("fold it", state) for state in states]
    vocabulary = Vocabulary.of(prompts[:1], state_words())
    ids, valid = vocabulary.encode(prompts)
    assert valid.all() and len(np.unique(ids[:, 4])) == 257  # a sign is part of its number
