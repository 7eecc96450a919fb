"""Noise, shift and colour reach what they are for, and nothing where their strength is 0."""

import pytest
import torch

from robostack.policies.augment import Augmentation, augment
from robostack.policies.protocol import Observation


def observe(batch: int = 64) -> Observation:
    g = torch.Generator().manual_seed(1)
    images = {
        name: torch.randint(0, 256, (batch, 2, 8, 8, 3), generator=g, dtype=torch.uint8) for name in ("top", "wrist")
    }
    images["wrist"] = images["top"].clone()
    present = {name: torch.ones(batch, dtype=torch.bool) for name in images}
    seen, past = torch.ones(batch, 2, dtype=torch.bool), torch.zeros(batch, 1, 3)
    return Observation(torch.zeros(batch, 2, 50), torch.ones(batch, 4, dtype=torch.long), images, present, seen, past)


def test_no_strength_draws_nothing_and_changes_nothing() -> None:
    observation, generator = observe(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    same = augment(observation, Augmentation(0.0, 0, 0.0), generator)
    assert torch.equal(generator.get_state(), before) and same.state is observation.state
    assert all(same.images[name] is frames for name, frames in observation.images.items())


def test_noise_on_the_state_has_its_deviation() -> None:
    noisy = augment(observe(), Augmentation(state_noise=0.1), torch.Generator().manual_seed(0))
    assert noisy.state.std().item() == pytest.approx(0.1, rel=0.05) and abs(noisy.state.mean()) < 0.01


@pytest.mark.parametrize("kind", [{"shift": 3}, {"colour": 0.3}])
def test_cameras_vary_apart_and_the_task_stays(kind: dict) -> None:
    observation = observe()
    one, two = (augment(observation, Augmentation(**kind), torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one.images["top"], two.images["top"]) and torch.equal(one.state, two.state)
    assert not torch.equal(one.images["top"], observation.images["top"])
    assert not torch.equal(one.images["top"], one.images["wrist"])
    assert one.text is observation.text


@pytest.mark.parametrize("kind", [{"state_noise": -0.1}, {"shift": -1}, {"colour": 1.0}, {"colour": -0.1}])
def test_strengths_out_of_range_are_refused(kind: dict) -> None:
    with pytest.raises(ValueError, match="expected state_noise"):
        Augmentation(**kind)
