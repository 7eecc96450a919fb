"""Devices by name."""

import pytest
import torch

from robostack.core.devices import pick_device


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device("auto").type == expected
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("name", "gpus", "said"),
    [
        ("cuda", 0, "torch sees no GPU: take --device auto"),
        ("cuda:1", 1, "torch sees 1 GPU"),
        ("gpu", 0, "unknown device 'gpu'"),
    ],
)
def test_a_device_that_is_not_there_is_told(name: str, gpus: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=said):
        pick_device(name)
