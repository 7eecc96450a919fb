"""Every policy reads its task in order, and nothing hangs on how far a text is padded."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from observations import interface, make_observation, seeded
from small_policies import SMALL

from robostack.core.text.words import Vocabulary
from robostack.policies.protocol import Observation, Text
from robostack.policies.registry import policy_class

HANDOVER = ["from the left arm to the right arm", "from the right arm to the left arm"]


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def encode(*texts: str, length: int = 8) -> Text:
    ids, valid = Vocabulary(Vocabulary.of(HANDOVER).words, length).encode(texts)
    return Text(torch.from_numpy(ids), torch.from_numpy(valid))


def chunks(case: str, text: Text) -> torch.Tensor:
    """Of observations that are alike but for their text."""
    config, cameras = SMALL[case]
    torch.manual_seed(0)
    policy: Any = policy_class(case.split(",")[0])(config, replace(interface(cameras), words=text.ids.shape[1]))
    with torch.no_grad():
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)  # norms that start at zero would hide what passes through them
    one = make_observation(1, cameras, config.history)
    parts = [Observation(**{**vars(one), "text": text[row : row + 1]}) for row in range(len(text.ids))]
    with torch.inference_mode():
        return torch.stack([policy.sample(part, seeded())[0] for part in parts])


@pytest.mark.parametrize("case", SMALL)
def test_the_order_of_words_changes_the_chunk(case: str) -> None:
    there, back, again = chunks(case, encode(*HANDOVER, HANDOVER[0]))
    assert torch.equal(there, again)
    assert (there - back).abs().max() > 1e-4


@pytest.mark.parametrize("case", SMALL)
def test_the_length_to_which_texts_are_padded_changes_nothing(case: str) -> None:
    short, padded = (chunks(case, encode("to the left", length=length)) for length in (3, 12))
    assert (short - padded).abs().max() < 1e-10


def test_each_different_text_is_told_once() -> None:
    text = encode("to the left", "from the left arm", "to the left", "to the right", "")
    distinct, which = text.distinct()
    assert len(distinct.ids) == 4
    assert torch.equal(distinct.ids[which], text.ids) and torch.equal(distinct.valid[which], text.valid)
    nothing, which = encode("", "", length=0).distinct()
    assert nothing.ids.shape == (1, 0) and which.tolist() == [0, 0]
