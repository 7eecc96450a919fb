"""LeRobot's ACT as ours: the same network, other names.

LeRobot's robot state and environment state become one state vector, in this order, with a token for each part. Its
posterior sees the robot state alone: for ours the columns of the environment state are zero. The first self-attention
of its decoder is among zeros; ours starts with what it makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robostack.policies.act import ActConfig
from robostack.policies.protocol import Interface

_POST_NORM = {"norm1": "attention_norm", "self_attn.out_proj": "projections.output"}
_FEED_FORWARD = {"linear1": "feed_forward.up", "linear2": "feed_forward.down"}
_ENCODER_LAYER = {**_POST_NORM, **_FEED_FORWARD, "norm2": "feed_forward_norm"}
_DECODER_LAYER = {
    **_POST_NORM,
    **_FEED_FORWARD,
    "norm2": "cross_norm",
    "multihead_attn.out_proj": "cross.output",
    "norm3": "feed_forward_norm",
}


def act_from_lerobot(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[ActConfig, Interface, dict[str, Tensor]]:
    """Our config, interface and state dict for the fields of LeRobot's `ACTConfig` (its config.json) and the state
    dict of its `ACTPolicy`.

    Statistics are not in it: LeRobot's processors keep them. Raises ValueError where there is a camera, or an
    activation that ours does not have, and when a tensor is missing or left over.
    """
    features = {name: feature["shape"][0] for name, feature in config["input_features"].items()}
    if cameras := [name for name in features if name.startswith("observation.image")]:
        raise ValueError(f"expected an ACT without cameras, got {', '.join(cameras)}: our vision is no ResNet")
    if config["feedforward_activation"] != "relu":
        raise ValueError(f"expected the activation relu, got {config['feedforward_activation']!r}")
    robot, environment = features.get("observation.state", 0), features["observation.environment_state"]
    ours = ActConfig(
        chunk_len=config["chunk_size"],
        execute_len=config["n_action_steps"],
        width=config["dim_model"],
        hidden=config["dim_feedforward"],
        heads=config["n_heads"],
        posterior_depth=config["n_vae_encoder_layers"] if config["use_vae"] else 0,
        encoder_depth=config["n_encoder_layers"],
        decoder_depth=config["n_decoder_layers"],
        latent=config["latent_dim"],
        kl_weight=config["kl_weight"],
        order="pre_norm" if config["pre_norm"] else "post_norm",
        state_parts=(robot, environment) if robot else (environment,),
    )
    if not robot and ours.posterior_depth:
        raise ValueError("expected observation.state among the inputs: our posterior has a token for the robot's state")
    action_dim = config["output_features"]["action"]["shape"][0]
    interface = Interface(robot + environment, action_dim, words=1, vocabulary=1, cameras={})
    return ours, interface, _state_dict(ours, environment, tensors)


def _start(state: dict[str, Tensor], pre_norm: bool) -> Tensor:
    """What the first self-attention of the decoder makes of its zeros, whose tensors are taken out of `state`.

    The values of tokens that are alike are one vector, and so is any mean of them, whatever queries and keys are.
    """
    block = "decoder.layers.0"
    norm, bias = (state.pop(f"{block}.attention_norm.{kind}") for kind in ("weight", "bias"))
    heads, heads_bias = (state.pop(f"{block}.projections.query_key_value.{kind}") for kind in ("weight", "bias"))
    output, output_bias = (state.pop(f"{block}.projections.output.{kind}") for kind in ("weight", "bias"))
    zero = bias if pre_norm else torch.zeros_like(bias)  # the norm of a zero token is its bias
    start = F.linear(F.linear(zero, heads.chunk(3)[2], heads_bias.chunk(3)[2]), output, output_bias)
    return (start if pre_norm else F.layer_norm(start, norm.shape, norm, bias))[None, None]


def _state_dict(config: ActConfig, environment: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    left = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    left.pop("vae_encoder_pos_enc", None)  # fixed; ours computes it
    state: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        if name not in left:
            raise ValueError(f"expected the tensor {name} of LeRobot's ACT, which is missing")
        return left.pop(name)

    def move(theirs: str, ours: str) -> None:
        for kind in ("weight", "bias"):
            state[f"{ours}.{kind}"] = take(f"{theirs}.{kind}")

    def move_stack(theirs: str, ours: str, depth: int, names: Mapping[str, str], normed: bool) -> None:
        for index in range(depth):
            layer, block = f"{theirs}.layers.{index}", f"{ours}.layers.{index}"
            for kind in ("weight", "bias"):
                state[f"{block}.projections.query_key_value.{kind}"] = take(f"{layer}.self_attn.in_proj_{kind}")
                if "norm3" in names:
                    query, key, value = take(f"{layer}.multihead_attn.in_proj_{kind}").chunk(3)
                    state[f"{block}.cross.query.{kind}"] = query
                    state[f"{block}.cross.key_value.{kind}"] = torch.cat([key, value])
            for theirs_part, ours_part in names.items():
                move(f"{layer}.{theirs_part}", f"{block}.{ours_part}")
        if normed:
            move(f"{theirs}.norm", f"{ours}.norm")

    pre_norm = config.order == "pre_norm"
    if config.posterior_depth:
        move_stack("vae_encoder", "posterior.transformer", config.posterior_depth, _ENCODER_LAYER, pre_norm)
        state["posterior.class_token"] = take("vae_encoder_cls_embed.weight")[None]
        move("vae_encoder_robot_state_input_proj", "posterior.state_in")
        unseen = state["posterior.state_in.weight"].new_zeros(config.width, environment)
        state["posterior.state_in.weight"] = torch.cat([state["posterior.state_in.weight"], unseen], dim=1)
        move("vae_encoder_action_input_proj", "posterior.action_in")
        move("vae_encoder_latent_output_proj", "posterior.out")
    move_stack("encoder", "encoder", config.encoder_depth, _ENCODER_LAYER, pre_norm)
    move_stack("decoder", "decoder", config.decoder_depth, _DECODER_LAYER, pre_norm)
    if not pre_norm:
        move("decoder.norm", "decoder_norm")
    parts = ("robot_state", "env_state")[-len(config.state_parts) :]
    for index, part in enumerate(parts):
        move(f"encoder_{part}_input_proj", f"observe.state_in.{index}")
    move("encoder_latent_input_proj", "latent_in")
    state["places"] = take("encoder_1d_feature_pos_embed.weight")[None]
    state["queries"] = take("decoder_pos_embed.weight")[None]
    state["start"] = _start(state, pre_norm)
    move("action_head", "action_out")
    if left:
        raise ValueError(f"these tensors of LeRobot's ACT have no place in ours: {', '.join(sorted(left))}")
    return state
