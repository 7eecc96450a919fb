"""One compilation serves a whole text and a whole flow: shapes never change from step to step.

In a process of its own: the checks of shapes that every other test runs under cannot be compiled.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import dataclasses, json, sys
import torch
from robostack.core.attention import Mask
from robostack.core.language import LLAMA2_7B, LanguageModel
from robostack.core.transformer import TransformerConfig
from robostack.policies.pi0 import Pi0, Pi0Config
from observations import interface, make_observation, seeded

torch.set_num_threads(1)
graphs = []

def count(graph, inputs):
    graphs.append(graph)
    return graph.forward

def compiled(function):
    graphs.clear()
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False, backend=count)

def decoding():
    stream = dataclasses.replace(LLAMA2_7B.stream, width=16, hidden=24)
    config = dataclasses.replace(LLAMA2_7B, vocabulary=13, transformer=TransformerConfig((stream,), 3, 4, 4, 8))
    torch.manual_seed(0)
    model = LanguageModel(config).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.5)

    def step(token, cache):
        mask = Mask(causal=True, offset=cache.length)
        return model(model.embed(token), mask, cache.length[None, None], cache)[:, -1:].argmax(-1)

    def text(step):
        cache, token, words = model.transformer.empty_cache(model.words.weight, 1, 64), torch.zeros(1, 1).long(), []
        for _ in range(64):
            token = step(token, cache)
            cache.keep(1)
            words.append(token.item())
        return words

    plain, graph = text(step), text(compiled(step))
    return {"graphs": len(graphs), "same": plain == graph, "words": len(set(plain))}

def flow():
    torch.manual_seed(0)
    cameras = {"top": (32, 32)}
    policy = Pi0(Pi0Config(chunk_len=6, execute_len=3, actions_per_token=2, depth=2), interface(cameras)).eval()
    observation = make_observation(2, cameras)
    plain = policy.sample(observation, seeded())
    policy.predict = compiled(policy.predict)
    graph = policy.sample(observation, seeded())
    again = policy.sample(make_observation(2, cameras), seeded())
    return {"graphs": len(graphs), "same": bool(torch.allclose(plain, graph, atol=1e-6))}

with torch.no_grad():
    print(json.dumps({"decoding": decoding(), "flow": flow()}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, int]]:
    tests = Path(__file__).parents[1]
    paths = f"{tests}:{tests.parent}"
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_64_steps_of_decoding_are_one_graph(found: dict[str, dict[str, int]]) -> None:
    assert found["decoding"]["graphs"] == 1 and found["decoding"]["same"] and found["decoding"]["words"] > 1


def test_every_step_of_every_flow_is_one_graph(found: dict[str, dict[str, int]]) -> None:
    assert found["flow"]["graphs"] == 1 and found["flow"]["same"]
