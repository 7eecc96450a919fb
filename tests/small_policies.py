"""A small config of every kind of every policy, for tests that hold for all of them."""

from dataclasses import replace
from typing import Any

from robostack.core.unet import UNetConfig
from robostack.policies.act import ActConfig
from robostack.policies.decision_transformer import DecisionTransformerConfig
from robostack.policies.diffusion import DiffusionConfig, DiTConfig
from robostack.policies.energy import EnergyConfig
from robostack.policies.pi0 import Pi0Config

CAMERAS = {"top": (24, 24)}
PI0 = Pi0Config(chunk_len=6, execute_len=3, actions_per_token=2, expert_width=32, prefix_width=16, depth=2)
ACT = ActConfig(chunk_len=6, execute_len=3, width=32, hidden=48, posterior_depth=1, encoder_depth=1, decoder_depth=1)
DIT = DiffusionConfig(
    chunk_len=6, execute_len=3, dit=DiTConfig(width=32, hidden=48, depth=2, actions_per_token=2), network="dit"
)
UNET = DiffusionConfig(
    chunk_len=7, execute_len=3, observe_len=2, predict_past=1, unet=UNetConfig((16, 32), 3, 4, 16), network="unet"
)
DT = DecisionTransformerConfig(context=3, chunk_len=4, execute_len=2, width=32, depth=1, heads=2, head_dim=16)
ENERGY = EnergyConfig(chunk_len=6, execute_len=3, coefficients=3, width=32, depth=1, encoder_width=16, contrast_rows=3)
SMALL: dict[str, tuple[Any, dict[str, tuple[int, int]]]] = {
    "pi0": (PI0, {}),
    "pi0, camera": (PI0, CAMERAS),
    "act": (ACT, {}),
    "act, post-norm, camera": (replace(ACT, order="post_norm"), CAMERAS),
    "diffusion, dit": (DIT, {}),
    "diffusion, unet, camera": (UNET, CAMERAS),
    "decision_transformer": (DT, {}),
    "decision_transformer, bins": (replace(DT, head="bins"), {}),
    "decision_transformer, hidden actions, camera": (replace(DT, head="l2", hide_actions=0.5), CAMERAS),
    "energy": (ENERGY, {}),
    "energy, camera": (ENERGY, CAMERAS),
}
"""A small config and the cameras of each case; a case is named for its policy."""
