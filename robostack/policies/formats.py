"""The versions of checkpoint.json, and what makes the next one of each (see `robostack.common.formats`)."""

from __future__ import annotations

from robostack.common.formats import Description, Format


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
    """All tokens were words."""
    processor = dict(values["processor"])
    return {**values, "processor": {"tokenizer": processor.pop("vocabulary"), **processor}}


FORMAT = Format("robostack-checkpoint", {4: _from_4, 5: _from_5})
SEALED = 5
"""The version that began to write hashes."""
