"""Noise, shift and colour reach what they are for, and nothing where their strength is 0."""

from dataclasses import replace

import pytest
import torch
from observations import make_observation, seeded

from robostack.datasets.moments import History
from robostack.policies.protocol import Observation
from robostack.policies.settings import Augmentation
from robostack.training.augmentation import augment


def observe(batch: int = 64) -> Observation:
    """Both cameras see the same, and the state is zero."""
    observation = make_observation(batch, {"top": (8, 8), "wrist": (8, 8)}, History(2))
    images = {"top": observation.images["top"], "wrist": observation.images["top"].clone()}
    return replace(observation, state=torch.zeros(batch, 2, 50), images=images)


def test_no_strength_draws_nothing_and_changes_nothing() -> None:
    observation, generator = observe(), seeded()
    before = generator.get_state()
    same = augment(observation, Augmentation(0.0, 0, 0.0), generator)
    assert torch.equal(generator.get_state(), before) and same.state is observation.state
    assert all(same.images[name] is frames for name, frames in observation.images.items())


def test_noise_on_the_state_has_its_deviation() -> None:
    noisy = augment(observe(), Augmentation(state_noise=0.1), seeded())
    assert noisy.state.std().item() == pytest.approx(0.1, rel=0.05) and abs(noisy.state.mean()) < 0.01


@pytest.mark.parametrize("kind", [{"shift": 3}, {"colour": 0.3}])
def test_cameras_vary_apart_and_the_task_stays(kind: dict) -> None:
    observation = observe()
    one, two = (augment(observation, Augmentation(**kind), seeded()) for _ in range(2))
    assert torch.equal(one.images["top"], two.images["top"]) and torch.equal(one.state, two.state)
    assert not torch.equal(one.images["top"], observation.images["top"])
    assert not torch.equal(one.images["top"], one.images["wrist"])
    assert one.text is observation.text


@pytest.mark.parametrize("kind", [{"state_noise": -0.1}, {"shift": -1}, {"colour": 1.0}, {"colour": -0.1}])
def test_strengths_out_of_range_are_refused(kind: dict) -> None:
    with pytest.raises(ValueError, match="expected state_noise"):
        Augmentation(**kind)
