"""Lengths of chunks: a default gives way to a shorter chunk, what a user gives does not, and errors say what fits."""

import dataclasses
import json
from typing import Any

import pytest
import tyro

from robostack.common.serialize import from_json, to_json
from robostack.policies.act import ActConfig
from robostack.policies.diffusion import DiffusionConfig, DiTConfig
from robostack.policies.energy import EnergyConfig
from robostack.policies.pi0 import Pi0Config
from robostack.policies.registry import POLICIES, config_class

SHORT: dict[str, dict[str, Any]] = {
    "pi0": {"actions_per_token": 1},
    "diffusion": {"dit": DiTConfig(actions_per_token=1)},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_shorter_chunk_is_executed_whole(policy: str) -> None:
    make = config_class(policy)
    assert make().execute_len == 20
    config = make(chunk_len=3, **SHORT.get(policy, {}))
    assert config.execute_len == 3 and type(config.execute_len) is int
    assert from_json(make, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_given_is_not_changed(policy: str) -> None:
    make = config_class(policy)
    with pytest.raises(ValueError, match=r"execute_len must lie in 1\.\.chunk_len = 3, got 20"):
        make(chunk_len=3, execute_len=20, **SHORT.get(policy, {}))
    with pytest.raises(ValueError, match="got 20"):
        dataclasses.replace(make(), chunk_len=3, **SHORT.get(policy, {}))


def test_the_command_line_keeps_what_is_a_default() -> None:
    assert tyro.cli(ActConfig, args=["--chunk-len", "16"]).execute_len == 16
    assert tyro.cli(EnergyConfig, args=["--chunk-len", "5"]).coefficients == 5
    assert tyro.cli(ActConfig, args=["--chunk-len", "60"]).execute_len == 20


def test_an_error_says_which_lengths_fit() -> None:
    with pytest.raises(ValueError, match=r"chunk_len 15 .* take 10 or 20, or actions_per_token of 1, 3, 5, 15"):
        Pi0Config(chunk_len=15)
    with pytest.raises(ValueError, match=r"chunk_len 16 .* take 10 or 20, or dit.actions_per_token of 1, 2, 4, 8, 16"):
        DiffusionConfig(chunk_len=16)
    with pytest.raises(ValueError, match=r"chunk_len 18 .* 4: take 16 or 20$"):
        DiffusionConfig(chunk_len=18, network="unet")
    with pytest.raises(ValueError, match=r"chunk_len 3 .* 10: take 10, or"):
        Pi0Config(chunk_len=3)
