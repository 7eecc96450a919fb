"""LeRobot's ACT, with random weights, computes the same under our names: chunk and training loss."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from observations import as_text
from safetensors.torch import load_file

from robostack.adapters.lerobot_act import act_from_lerobot
from robostack.policies.act import Act
from robostack.policies.protocol import Observation
from robostack.policies.weights import load_strictly


def lerobots(folder: Path, **changes: Any) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    """LeRobot's policy, and the config and tensors that it saves."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    torch.manual_seed(0)
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (3,)),
    }
    settings: dict[str, Any] = {
        "input_features": inputs,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (4,))},
        "chunk_size": 7,
        "n_action_steps": 6,
        "dim_model": 32,
        "n_heads": 4,
        "dim_feedforward": 48,
        "n_encoder_layers": 2,
        "n_decoder_layers": 2,
        "n_vae_encoder_layers": 2,
        "latent_dim": 6,
        "dropout": 0.0,
        "device": "cpu",
        "push_to_hub": False,
    }
    policy = ACTPolicy(ACTConfig(**{**settings, **changes}))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))  # biases and norms too, or they would go untested
    policy.save_pretrained(folder)
    return policy, json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def ours(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Act:
    act_config, interface, state = act_from_lerobot(config, tensors)
    act = Act(act_config, interface)
    load_strictly(act, state, Path("LeRobot's"))
    return act.eval()


def moments(batch: int) -> tuple[dict[str, torch.Tensor], Observation, torch.Tensor]:
    """The same batch for LeRobot and for us, and what counts in it."""
    robot, environment, actions = torch.randn(batch, 5), torch.randn(batch, 3), torch.randn(batch, 7, 4)
    padded = torch.arange(7) >= torch.tensor([7, 4, 1])[:batch, None]
    theirs = {
        "observation.state": robot,
        "observation.environment_state": environment,
        "action": actions,
        "action_is_pad": padded,
    }
    observation = Observation(
        state=torch.cat([robot, environment], dim=1)[:, None],
        text=as_text(torch.zeros(batch, 1, dtype=torch.int64)),
        images={},
        present={},
        valid=torch.ones(batch, 1, dtype=torch.bool),
        past_actions=torch.zeros(batch, 0, 4),
    )
    return theirs, observation, ~padded[..., None].expand(-1, -1, 4)


@pytest.mark.parametrize("changes", [{}, {"pre_norm": True}, {"n_decoder_layers": 1, "n_vae_encoder_layers": 1}])
def test_chunk_and_loss_are_lerobots(tmp_path: Path, changes: dict[str, Any]) -> None:
    policy, config, tensors = lerobots(tmp_path, **changes)
    act = ours(config, tensors)
    batch, observation, valid = moments(3)
    torch.testing.assert_close(
        act.sample(observation, torch.Generator()), policy.predict_action_chunk(dict(batch)), rtol=1e-5, atol=1e-5
    )
    policy.train()
    torch.manual_seed(3)
    expected, _ = policy(dict(batch))
    loss = act.loss(observation, batch["action"], valid, torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(act.action_out.weight.grad, policy.model.action_head.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        act.posterior.action_in.weight.grad,
        policy.model.vae_encoder_action_input_proj.weight.grad,
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_act_without_a_posterior_is_lerobots_without_vae(tmp_path: Path) -> None:
    policy, config, tensors = lerobots(tmp_path, use_vae=False)
    batch, observation, valid = moments(2)
    loss = ours(config, tensors).loss(observation, batch["action"], valid, torch.Generator())
    torch.testing.assert_close(loss, policy(dict(batch))[0], rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    _, config, tensors = lerobots(tmp_path)
    with pytest.raises(ValueError, match="missing"):
        act_from_lerobot(config, {name: x for name, x in tensors.items() if "action_head.bias" not in name})
    with pytest.raises(ValueError, match=r"no place in ours: something.else"):
        act_from_lerobot(config, {**tensors, "model.something.else": torch.zeros(1)})
    with pytest.raises(ValueError, match="activation relu"):
        act_from_lerobot({**config, "feedforward_activation": "gelu"}, tensors)
    camera = {"observation.images.top": {"type": "VISUAL", "shape": [3, 64, 64]}}
    with pytest.raises(ValueError, match="without cameras"):
        act_from_lerobot({**config, "input_features": {**config["input_features"], **camera}}, tensors)
