"""Keys and values that later tokens attend to again, in tensors whose size never changes.

A prefix is written once; each flow step writes its tokens behind it, over those of the step before; decoding appends
token by token. Shapes stay the same throughout, so that one compiled graph serves all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Cache:
    """Rotated keys and values of `capacity` tokens, (batch, kv_heads, capacity, head_dim) for every layer; the first
    `length` of them are kept.

    A call of the transformer writes its own tokens from `length` on. They are kept by `keep`, or written over by the
    next call. What lies behind was never written: a mask must leave it out.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: Int[Tensor, ""]
    """On the device, where reading it costs no synchronisation."""
    copies: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By layer: what the last call would have written where gradients are recorded, which leave what they saw as it
    was."""

    @staticmethod
    def empty(
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Cache:
        """Room for `capacity` tokens, zeros."""
        shape = (batch, kv_heads, capacity, head_dim)
        keys, values = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)] for _ in range(2))
        return Cache(keys, values, torch.zeros((), dtype=torch.int64, device=device))

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def places(self, tokens: int) -> Int[Tensor, " tokens"]:
        """Where the next `tokens` are written."""
        return self.length + torch.arange(tokens, device=self.length.device)

    def write(
        self,
        layer: int,
        places: Int[Tensor, " tokens"],
        key: Float[Tensor, "batch kv_heads tokens head_dim"],
        value: Float[Tensor, "batch kv_heads tokens head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_heads capacity head_dim"], Float[Tensor, "batch kv_heads capacity head_dim"]]:
        """One layer's keys and values with these at their places."""
        keys, values = self.keys[layer], self.values[layer]
        key, value = key.to(keys.dtype), value.to(values.dtype)  # autocast makes them of a smaller one
        if torch.is_grad_enabled():
            self.copies[layer] = keys.index_copy(2, places, key), values.index_copy(2, places, value)
            return self.copies[layer]
        return keys.index_copy_(2, places, key), values.index_copy_(2, places, value)

    def keep(self, tokens: int) -> None:
        """Keeps the `tokens` that the last call wrote: the next call writes behind them."""
        for layer, (keys, values) in self.copies.items():
            self.keys[layer], self.values[layer] = keys, values
        self.copies.clear()
        self.length.add_(tokens)

    def rows(self, index: Int[Tensor, " rows"]) -> Cache:
        """The cache of a batch of these rows of this one."""
        return Cache([key[index] for key in self.keys], [value[index] for value in self.values], self.length)
