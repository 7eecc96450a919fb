"""Which policies there are. Imports none of them: names, flags and descriptions answer before torch is imported."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Named(NamedTuple):
    """Where a policy is found: a module, and in it the class of its settings and that of the policy itself, which is
    made of settings and an `Interface`."""

    module: str
    config: str
    policy: str


POLICIES: dict[str, Named] = {
    "pi0": Named("robostack.policies.pi0", "Pi0Config", "Pi0"),
    "act": Named("robostack.policies.act", "ActConfig", "Act"),
    "diffusion": Named("robostack.policies.diffusion", "DiffusionConfig", "Diffusion"),
    "decision_transformer": Named(
        "robostack.policies.decision_transformer", "DecisionTransformerConfig", "DecisionTransformer"
    ),
    "energy": Named("robostack.policies.energy", "EnergyConfig", "Energy"),
}
"""By the name on the command line and in checkpoints. A policy is added here and nowhere else."""


def config_class(name: str) -> type[Any]:
    """The class of a policy's settings. Raises KeyError for a name that is not in POLICIES."""
    named = POLICIES[name]
    return getattr(importlib.import_module(named.module), named.config)


def policy_class(name: str) -> type[Any]:
    """The class of a policy. Raises KeyError for a name that is not in POLICIES."""
    named = POLICIES[name]
    return getattr(importlib.import_module(named.module), named.policy)
