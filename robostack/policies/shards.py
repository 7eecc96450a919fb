"""Named tensors in a folder: one safetensors file or, where they are large, several and an index as Hugging Face does.

model.safetensors

model-00001-of-00002.safetensors    tensors in the order of their module, as many as fit
model-00002-of-00002.safetensors
model.safetensors.index.json        {"metadata": {"total_size": BYTES}, "weight_map": {tensor: file}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from robostack.common.files import check_regular, read_json
from robostack.common.tensors import Kind, Seal, read_kinds

SHARD_BYTES = 5 * 10**9
"""Of a file, as Hugging Face writes them; a single tensor may be larger."""
LARGEST_INDEX = 64 << 20


def write_tensors(
    folder: Path, name: str, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES
) -> dict[str, Seal]:
    """Writes the tensors called `name`, in files of up to `shard_bytes`; gives size and hash of each file."""
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for key, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][key] = tensor
        room -= tensor.nbytes
    files, count = [f"{name}.safetensors"], len(shards)
    if count > 1:
        files = [f"{name}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        weight_map = {key: file for file, shard in zip(files, shards, strict=True) for key in shard}
        (folder / index_of(name)).write_text(json.dumps({"metadata": total, "weight_map": weight_map}, indent=2) + "\n")
    for file, shard in zip(files, shards, strict=True):
        save_file({key: tensor.contiguous() for key, tensor in shard.items()}, folder / file)
    return {file: Seal.of(folder / file) for file in (*files, *([index_of(name)] if count > 1 else []))}


def index_of(name: str) -> str:
    """The file that says where the tensors called `name` are, if they are in several files."""
    return f"{name}.safetensors.index.json"


@dataclass(frozen=True)
class Shards:
    """The files of the tensors called `name` in a folder; `seals` of its files, or None where nothing has a hash."""

    folder: Path
    name: str
    seals: Mapping[str, Seal] | None

    @property
    def path(self) -> Path:
        """What is named to the user: the file, or the index of several."""
        split = self.seals is not None and index_of(self.name) in self.seals
        return self.folder / (index_of(self.name) if split else f"{self.name}.safetensors")

    def kinds(self) -> dict[str, Kind]:
        """Types and shapes by the headers of the files, in their order. Raises OSError or ValueError where there is no
        such file, it is damaged, or it does not hold what the index says."""
        return {key: kind for _, kinds in self._files() for key, kind in kinds.items()}

    def read(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors, fractions in `dtype`. Raises as `kinds`, SafetensorError, and ValueError for a file that is not
        what was written."""
        tensors = {}
        for file, kinds in self._files():
            self._check(file)
            # Read, not mapped: whoever copies a new checkpoint over this one would change, or end, a policy at work.
            with safe_open(file, "pt", backend="pread") as opened:
                for key in kinds:
                    tensor = opened.get_tensor(key)
                    tensors[key] = tensor.to(device, dtype if tensor.is_floating_point() else None)
        return tensors

    def _files(self) -> list[tuple[Path, dict[str, Kind]]]:
        path = self.path
        if path.suffix != ".json":
            return [(path, read_kinds(path))]
        self._check(path)
        values = read_json(path, LARGEST_INDEX)
        weight_map = values.get("weight_map") if isinstance(values, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError("expected a weight_map of tensors to files")
        found = []
        for file in dict.fromkeys(weight_map.values()):
            if Path(file).name != file:
                raise ValueError(f"expected files beside the index, got {ascii(file)[:60]}")
            kinds = read_kinds(self.folder / file)
            if kinds.keys() != {key for key, of in weight_map.items() if of == file}:
                raise ValueError(f"{file} does not hold the tensors that the index says")
            found.append((self.folder / file, kinds))
        return found

    def _check(self, file: Path) -> None:
        check_regular(file)
        if self.seals is not None:
            if file.name not in self.seals:
                raise ValueError("checkpoint.json says no hash of it")
            self.seals[file.name].check(file)
