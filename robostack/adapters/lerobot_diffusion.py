"""LeRobot's diffusion policy as ours: the same U-Net, other names and layouts.

LeRobot counts noising steps down, k = N − 1 … 0, where our time rises: step k is t = 1 − (k + 1)/N. It predicts from
the first of its observations on, and runs what it predicts from the last on: ours predicts past actions too and drops
them.
Robot state and environment state become one state vector, in this order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robostack.core.unet import UNet, UNetConfig
from robostack.policies.diffusion import DiffusionConfig
from robostack.policies.protocol import Interface

_BLOCK = {
    "conv1.block.0": "first",
    "conv1.block.1": "first_norm",
    "conv2.block.0": "second",
    "conv2.block.1": "second_norm",
    "residual_conv": "around",
}
_ENDS = {
    "diffusion_step_encoder.1": "time_in.0",
    "diffusion_step_encoder.3": "time_in.2",
    "final_conv.0.block.0": "last",
    "final_conv.0.block.1": "last_norm",
    "final_conv.1": "out",
}
_ONLY = {
    "beta_schedule": "squaredcos_cap_v2",
    "use_film_scale_modulation": True,
}
"""What ours has no choice of."""


def diffusion_from_lerobot(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[DiffusionConfig, Interface, dict[str, Tensor]]:
    """Our config, interface and state dict for the fields of LeRobot's `DiffusionConfig` (its config.json) and the
    state dict of its `DiffusionPolicy`.

    Statistics are not in it: LeRobot's processors keep them. Raises ValueError where there is a camera or a setting
    that ours does not have, and when tensors are missing, left over or of another shape.
    """
    features = {name: feature["shape"][0] for name, feature in config["input_features"].items()}
    if cameras := [name for name in features if name.startswith("observation.image")]:
        raise ValueError(
            f"expected a diffusion policy without cameras, got {', '.join(cameras)}: our vision is no ResNet"
        )
    for name in ("observation.state", "observation.environment_state"):
        if name not in features:
            raise ValueError(f"expected {name} among the inputs, got {', '.join(features)}")
    for name, value in _ONLY.items():
        if config[name] != value:
            raise ValueError(f"expected {name} {value!r}, got {config[name]!r}")
    prediction = "noise" if config["prediction_type"] == "epsilon" else "data"
    obs_steps, ancestral = config["n_obs_steps"], config["noise_scheduler_type"] == "DDPM"
    ours = DiffusionConfig(
        chunk_len=config["horizon"] - (obs_steps - 1),
        execute_len=config["n_action_steps"],
        observe_len=obs_steps,
        predict_past=obs_steps - 1,
        condition="state",
        network="unet",
        unet=UNetConfig(
            widths=tuple(config["down_dims"]),
            kernel=config["kernel_size"],
            groups=config["n_groups"],
            time_width=config["diffusion_step_embed_dim"],
        ),
        prediction=prediction,
        weighting=prediction,
        noising_steps=config["num_train_timesteps"],
        solver="ddpm" if ancestral else "ddim",
        sample_steps=config["num_inference_steps"] or config["num_train_timesteps"],
        spacing="leading",
        clip=config["clip_sample_range"] if config["clip_sample"] else 0.0,
        clip_noise="along" if ancestral else "apart",
    )
    state_dim = features["observation.state"] + features["observation.environment_state"]
    action_dim = config["output_features"]["action"]["shape"][0]
    interface = Interface(state_dim, action_dim, words=1, vocabulary=1, cameras={})
    with torch.device("meta"):
        net = UNet(ours.unet, action_dim, obs_steps * state_dim)
    return ours, interface, {f"network.{name}": tensor for name, tensor in _state_dict(net, tensors).items()}


def _state_dict(net: UNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    left = {name.removeprefix("diffusion.unet."): tensor for name, tensor in tensors.items()}
    expected = {name: tensor.shape for name, tensor in net.state_dict().items()}
    state: dict[str, Tensor] = {}

    def take(name: str, shape: Sequence[int]) -> Tensor:
        if name not in left:
            raise ValueError(f"expected the tensor {name} of LeRobot's diffusion policy, which is missing")
        if left[name].shape != torch.Size(shape):
            raise ValueError(
                f"{name} of LeRobot's diffusion policy is {tuple(left[name].shape)}, expected {tuple(shape)}"
            )
        return left.pop(name)

    def move(theirs: str, ours: str) -> None:
        weight, bias = f"{ours}.weight", f"{ours}.bias"
        shape = expected[weight]
        if len(shape) == 3:  # a convolution: (after, before, taps) becomes (taps, before, after)
            state[weight] = take(f"{theirs}.weight", shape[::-1]).permute(2, 1, 0).contiguous()
        elif shape[0] * 4 == shape[-1] and theirs.startswith("up_modules"):  # (before, after, taps), transposed
            kernel = take(f"{theirs}.weight", (shape[0], shape[0], 4))
            state[weight] = kernel.transpose(1, 2).flatten(1)
        else:
            state[weight] = take(f"{theirs}.weight", shape)
        state[bias] = take(f"{theirs}.bias", expected[bias])

    films: list[tuple[Tensor, Tensor]] = []
    time_width, rows = net.config.time_width, iter(net.sizes[::2])
    film_width = time_width + net.film_condition.in_features

    def move_block(theirs: str, ours: str) -> None:
        for theirs_part, ours_part in _BLOCK.items():
            if f"{ours}.{ours_part}.weight" in expected:  # not every block has a convolution around it
                move(f"{theirs}.{theirs_part}", f"{ours}.{ours_part}")
        film, count = f"{theirs}.cond_encoder.1", 2 * next(rows)
        films.append((take(f"{film}.weight", (count, film_width)), take(f"{film}.bias", (count,))))

    def move_level(theirs: str, ours: str) -> None:
        move_block(f"{theirs}.0", f"{ours}.0")
        move_block(f"{theirs}.1", f"{ours}.1")
        if f"{ours}.2.weight" in expected:  # the lowest level resizes nothing
            move(f"{theirs}.2", f"{ours}.2")

    # In the order in which blocks run, which is that of FiLM's entries.
    for level in range(len(net.down)):
        move_level(f"down_modules.{level}", f"down.{level}")
    move_level("mid_modules", "middle")
    for level in range(len(net.up)):
        move_level(f"up_modules.{level}", f"up.{level}")
    for theirs, ours in _ENDS.items():
        move(theirs, ours)
    weight, bias = (torch.cat(parts) for parts in zip(*films, strict=True))
    of_time, of_condition = weight.split([time_width, film_width - time_width], dim=1)
    state |= {"film_time.weight": of_time.contiguous(), "film_time.bias": bias}
    state["film_condition.weight"] = of_condition.contiguous()
    if left:
        raise ValueError(
            f"these tensors of LeRobot's diffusion policy have no place in ours: {', '.join(sorted(left))}"
        )
    return state
