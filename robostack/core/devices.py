"""Where tensors live, by the names of the command line."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where torch sees one, else the CPU.

    Raises ValueError for a name that torch does not know and for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"{torch.cuda.device_count()} GPU(s)" if torch.cuda.device_count() else "no GPU"
        raise ValueError(f"device {name!r} was asked for, but torch sees {seen}: take --device auto")
    return device
