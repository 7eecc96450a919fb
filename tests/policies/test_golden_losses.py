"""A refactor keeps the loss: for fixed seeds every policy's first training steps lose what they lost before.

In float64, so that another processor's order of summation and its sines do not show, and any other change of the
mathematics, of the initial weights or of the order in which random numbers are drawn does. What is float32 all the
same, the angles of rotary embeddings, moves the losses by up to 2e-8 where all of them are rounded otherwise: hence a
tolerance of 1e-7. A change that is meant is recorded with

    PYTHONPATH=tests .venv/bin/python tests/policies/test_golden_losses.py

which rewrites golden_losses.json: say in the commit why the losses changed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observations import as_text
from small_policies import SMALL

from robostack.policies.protocol import Interface, Observation
from robostack.policies.registry import POLICIES, policy_class
from robostack.policies.settings import Augmentation
from robostack.training.augmentation import augment

GOLDEN = Path(__file__).with_name("golden_losses.json")
TOLERANCE = 1e-7


def losses(name: str, steps: int = 3) -> list[float]:
    torch.set_default_dtype(torch.float64)
    try:
        return _losses(name, steps)
    finally:
        torch.set_default_dtype(torch.float32)


def _losses(name: str, steps: int) -> list[float]:
    config, cameras = SMALL[name]
    module = policy_class(name.split(",")[0])
    torch.manual_seed(0)
    policy: Any = module(config, Interface(state_dim=5, action_dim=3, words=4, vocabulary=9, cameras=cameras))
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-2)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    result = []
    for _ in range(steps):
        observation = augment(draw(config, cameras, rng), Augmentation(shift=1, colour=0.1), generator)
        actions = torch.from_numpy(rng.normal(size=(4, config.chunk_len, 3)))
        valid = torch.from_numpy(rng.random((4, config.chunk_len, 3)) < 0.9)
        loss = policy.loss(observation, actions, valid, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        result.append(loss.item())
    return result


def draw(config: Any, cameras: dict[str, tuple[int, int]], rng: np.random.Generator) -> Observation:
    history, batch = config.history, 4
    images = {
        name: torch.from_numpy(rng.integers(0, 256, (batch, history.length, *size, 3), dtype=np.uint8))
        for name, size in cameras.items()
    }
    seen = torch.ones(batch, history.length, dtype=torch.bool)
    seen[0, :-1] = False
    returns = torch.from_numpy(rng.random((batch, history.length))) if history.returns else None
    return Observation(
        state=torch.from_numpy(rng.normal(size=(batch, history.length, 5))),
        text=as_text(torch.from_numpy(rng.integers(0, 9, (batch, 4)))),
        images=images,
        present={name: torch.ones(batch, dtype=torch.bool) for name in images},
        valid=seen,
        past_actions=torch.from_numpy(rng.normal(size=(batch, history.steps, 3))),
        returns_to_go=returns,
    )


def test_every_policy_has_a_case() -> None:
    assert {name.split(",")[0] for name in SMALL} == set(POLICIES)


@pytest.mark.parametrize("name", SMALL)
def test_the_first_losses_are_what_they_were(name: str) -> None:
    assert losses(name) == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=TOLERANCE)


@pytest.mark.parametrize(
    "environment", [{"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}, {"THREADS": "3"}]
)
def test_no_golden_number_hangs_on_the_processor(environment: dict[str, str]) -> None:
    """Nor on the number of threads: other kernels of torch and MKL, in a process of their own."""
    tests = Path(__file__).parents[1]
    paths = {"PYTHONPATH": os.pathsep.join([str(tests), str(tests / "policies")])}
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env={**os.environ, **paths, **environment}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


ELSEWHERE = """
import os, torch
torch.set_num_threads(int(os.environ.get("THREADS", "1")))
import test_golden_losses, test_energy
for name in test_golden_losses.SMALL:
    test_golden_losses.test_the_first_losses_are_what_they_were(name)
test_energy.test_a_refactor_keeps_the_energy()
"""


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: losses(name) for name in SMALL}, indent=1) + "\n")
