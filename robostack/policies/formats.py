"""The versions of checkpoint.json, and what makes the next one of each (see `robostack.common.formats`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from robostack.common.formats import Description, Format
from robostack.common.tensors import Kind


def _from_4(values: Description) -> Description:
    """All cameras were of colour, all entries had one smallest scale, nothing had a hash, and who resumed a training
    was not recorded."""
    least = values["processor"]["scaling"]["smallest_scale"]
    robots = {
        name: {
            "smallest": {key: [least] * len(known["mean"]) for key, known in robot["statistics"].items()},
            **robot,
            "depth": {},
        }
        for name, robot in values["processor"]["robots"].items()
    }
    data = [{**one, "actions_sha256": ""} for one in values["training"]["data"]]
    return {
        **values,
        "processor": {**values["processor"], "robots": robots},
        "training": {**values["training"], "data": data, "resumed": []},
        "files": {},
    }


def _from_5(values: Description) -> Description:
    """All tokens were words. π0's feed-forwards were as many times as wide as their streams, and its loss and solver
    had other names."""
    processor = dict(values["processor"])
    values = {**values, "processor": {"tokenizer": processor.pop("vocabulary"), **processor}}
    if values["policy"] != "pi0":
        return values
    config = dict(values["config"])
    multiple, smallest = config.pop("hidden_multiple", 2), config.pop("smallest_sigma", 0.05)
    for stream, width in (("expert", 128), ("prefix", 64)):
        config[f"{stream}_hidden"] = multiple * config.get(f"{stream}_width", width)
    config["weighting"] = config.pop("loss", "data")
    config["largest_weight"] = smallest**-2
    # Euler's steps are DDIM's on straight lines, but for the bound near their end.
    config["solver"] = {"euler": "ddim"}.get(method := config.pop("method", "euler"), method)
    return {**values, "config": config}


def current_tensors[Held: (Tensor, Kind)](
    policy: str, version: int, config: Any, tensors: Mapping[str, Held]
) -> dict[str, Held]:
    """A policy's tensors, or their kinds, as this version names them. Up to version 5 the last block of π0's prefix had
    weights whose results nothing read: of its projections the keys and values are left, and the rest goes."""
    if policy != "pi0" or version > 5:
        return dict(tensors)
    block = f"transformer.layers.{config.depth - 1}"
    unread = ("projections.0.output.", "feed_forward_norms.0.", "feed_forwards.0.")
    gone = tuple(f"{block}.{part}" for part in unread)
    read = {name: held for name, held in tensors.items() if not name.startswith((*gone, "transformer.norms.0."))}
    name, rows = f"{block}.projections.0.query_key_value.weight", 2 * config.kv_heads * config.head_dim
    if name in read:
        read[name] = _last(read[name], rows)
    return read


def _last[Held: (Tensor, Kind)](held: Held, rows: int) -> Held:
    if isinstance(held, Kind):
        return replace(held, shape=(rows, *held.shape[1:]))
    return held[-rows:].clone()


FORMAT = Format("robostack-checkpoint", {4: _from_4, 5: _from_5})
SEALED = 5
"""The version that began to write hashes."""
