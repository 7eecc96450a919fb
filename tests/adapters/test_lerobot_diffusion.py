"""LeRobot's diffusion policy, with random weights, computes the same under our names: network, samples, loss."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from observations import as_text
from safetensors.torch import load_file

from robostack.adapters.lerobot_diffusion import diffusion_from_lerobot
from robostack.policies.diffusion import Diffusion
from robostack.policies.protocol import Observation
from robostack.policies.weights import load_strictly


def lerobots(folder: Path, **changes: Any) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    """LeRobot's policy, and the config and tensors that it saves."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "input_features": {
            "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (3,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (4,))},
        "n_obs_steps": 2,
        "horizon": 16,
        "n_action_steps": 8,
        "down_dims": (16, 32, 64),
        "n_groups": 4,
        "diffusion_step_embed_dim": 16,
        "device": "cpu",
        "push_to_hub": False,
    }
    policy = DiffusionPolicy(DiffusionConfig(**{**settings, **changes}))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))  # norms too, or they would go untested
    policy.eval().save_pretrained(folder)
    return policy, json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def ours(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Diffusion:
    diffusion_config, interface, state = diffusion_from_lerobot(config, tensors)
    policy = Diffusion(diffusion_config, interface)
    load_strictly(policy, state, Path("LeRobot's"))
    return policy.eval()


def moments(batch: int, looks: int = 2) -> tuple[dict[str, torch.Tensor], Observation]:
    """The same moments as LeRobot and as ours take them."""
    g = torch.Generator().manual_seed(1)
    robot, environment = torch.randn(batch, looks, 5, generator=g), torch.randn(batch, looks, 3, generator=g)
    theirs = {"observation.state": robot, "observation.environment_state": environment}
    observation = Observation(
        state=torch.cat([robot, environment], dim=-1),
        text=as_text(torch.zeros(batch, 1, dtype=torch.long)),
        images={},
        present={},
        valid=torch.ones(batch, looks, dtype=torch.bool),
        past_actions=torch.randn(batch, looks - 1, 4, generator=g),
    )
    return theirs, observation


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("down_dims", [(16, 32, 64), (32, 32), (16,)])
def test_the_network_puts_out_the_same(tmp_path: Path, batch: int, down_dims: tuple[int, ...]) -> None:
    theirs, config, tensors = lerobots(tmp_path, down_dims=down_dims)
    policy, (_, observation) = ours(config, tensors), moments(batch)
    x = torch.randn(batch, 16, 4)
    for k in (0, 37, 99):
        step, t = torch.full((batch,), k), torch.full((batch,), 1.0 - (k + 1) / 100)
        condition = policy.encode(observation)
        for mode in (torch.enable_grad, torch.no_grad):  # the second lays a single chunk's weights out
            with mode():
                expected = theirs.diffusion.unet(x, step, global_cond=condition)
                torch.testing.assert_close(policy.network(x, t, condition), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_sample_range": 3.0},
        {"clip_sample": False, "prediction_type": "sample"},
        {"num_inference_steps": 20, "prediction_type": "sample"},
        {"noise_scheduler_type": "DDIM", "num_inference_steps": 10},
        {"noise_scheduler_type": "DDIM", "num_inference_steps": 10, "clip_sample_range": 3.0},
        {"noise_scheduler_type": "DDIM", "clip_sample": False, "prediction_type": "sample"},
        {"n_obs_steps": 1},
        {"n_obs_steps": 3, "num_inference_steps": 5},
    ],
)
def test_samples_are_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs, config, tensors = lerobots(tmp_path, **changes)
    policy, looks = ours(config, tensors), config["n_obs_steps"]
    batch, observation = moments(2, looks)
    noise = torch.randn(2, 16, 4)
    with torch.no_grad():
        condition = theirs.diffusion._prepare_global_conditioning(batch)
        generator = torch.Generator().manual_seed(3)
        expected = theirs.diffusion.conditional_sample(2, condition, generator, noise)
        whole = policy.denoise(policy.encode(observation), noise, torch.Generator().manual_seed(3))
        torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)

        # The chunk that is run starts at the present, the last of the looks.
        generator = torch.Generator().manual_seed(4)
        drawn = torch.randn(2, 16, 4, generator=generator)
        expected = theirs.diffusion.conditional_sample(2, condition, generator, drawn)
        chunk = policy.sample(observation, torch.Generator().manual_seed(4))
        torch.testing.assert_close(chunk, expected[:, looks - 1 :], atol=1e-5, rtol=1e-5)
        assert policy.config.execute_len == 8


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_the_loss_is_the_same(tmp_path: Path, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, config, tensors = lerobots(tmp_path, prediction_type=prediction)
    policy, (batch, observation) = ours(config, tensors), moments(6)
    actions = torch.randn(6, 15, 4)
    loss = policy.loss(
        observation, actions, torch.ones_like(actions, dtype=torch.bool), torch.Generator().manual_seed(5)
    )
    # What ours drew: noise and times.
    g = torch.Generator().manual_seed(5)
    noise = torch.randn(6, 16, 4, generator=g)
    step = 99 - torch.randint(100, (6,), generator=g)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: step)
    chunk = torch.cat([observation.past_actions, actions], dim=1)
    expected, _ = theirs({**batch, "action": chunk, "action_is_pad": torch.zeros(6, 16, dtype=torch.bool)})
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    _, config, tensors = lerobots(tmp_path)
    name = "diffusion.unet.mid_modules.0.conv1.block.0.weight"
    film = "diffusion.unet.up_modules.1.0.cond_encoder.1.bias"
    for key in (name, film):
        with pytest.raises(ValueError, match=f"{key.removeprefix('diffusion.unet.')} .*missing"):
            diffusion_from_lerobot(config, {k: v for k, v in tensors.items() if k != key})
        with pytest.raises(ValueError, match=f"{key.removeprefix('diffusion.unet.')} .*expected"):
            diffusion_from_lerobot(config, {**tensors, key: tensors[key][:-1]})
    with pytest.raises(ValueError, match=r"no place in ours: diffusion.rgb_encoder.weight"):
        diffusion_from_lerobot(config, {**tensors, "diffusion.rgb_encoder.weight": tensors[name]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_schedule": "linear"}, "expected beta_schedule 'squaredcos_cap_v2', got 'linear'"),
        ({"use_film_scale_modulation": False}, "use_film_scale_modulation"),
        ({"input_features": {"observation.image": {"shape": [3, 96, 96]}}}, "without cameras"),
        ({"input_features": {"observation.state": {"shape": [5]}}}, "observation.environment_state"),
    ],
)
def test_settings_that_ours_has_not_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _, config, tensors = lerobots(tmp_path)
    with pytest.raises(ValueError, match=message):
        diffusion_from_lerobot({**config, **change}, tensors)
