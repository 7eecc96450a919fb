"""The convolution as matrix products of contiguous rows, and a single chunk from weights laid out for oneDNN."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def conv1d(
    x: Float[Tensor, "steps batch before"],
    weight: Float[Tensor, "kernel before after"],
    bias: Float[Tensor, " after"],
    stride: int = 1,
) -> Float[Tensor, "fewer batch after"]:
    """Stride 1 by taps; or stride 2 of three taps over an even number of steps, which is one matrix product."""
    if stride == 1:
        return cast(Tensor, _Taps.apply(x, weight, bias))
    even, odd = x.unflatten(0, (-1, 2)).unbind(1)
    before = F.pad(odd, (0, 0, 0, 0, 1, 0))[:-1]
    return F.linear(torch.cat([before, even, odd], dim=-1), weight.flatten(0, 1).t(), bias)


class _Taps(torch.autograd.Function):
    """The convolution of stride 1, a matrix product for each tap k: y[i] += x[i + k − K//2] W_k where that exists."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows = x.flatten(0, 1)
        middle = len(weight) // 2
        y = torch.addmm(bias, rows, weight[middle])
        for k, into, out_of in _other_taps(x, middle):
            y[into].addmm_(rows[out_of], weight[k])
        return y.unflatten(0, x.shape[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows, gradient = x.flatten(0, 1), gradients[0].reshape(-1, weight.shape[2])
        middle = len(weight) // 2
        of_weight = torch.empty_like(weight)
        torch.mm(rows.t(), gradient, out=of_weight[middle])
        of_x = gradient @ weight[middle].t() if ctx.needs_input_grad[0] else None
        present = {middle}
        for k, into, out_of in _other_taps(x, middle):
            present.add(k)
            torch.mm(rows[out_of].t(), gradient[into], out=of_weight[k])
            if of_x is not None:
                of_x[out_of].addmm_(gradient[into], weight[k].t())
        for k in set(range(len(weight))) - present:
            of_weight[k] = 0.0  # taps that only ever meet the padding
        return None if of_x is None else of_x.unflatten(0, x.shape[:2]), of_weight, gradient.sum(0)


def _other_taps(x: Tensor, middle: int) -> Iterator[tuple[int, slice, slice]]:
    """(k, rows of the output, rows of the input they take) for every tap but the middle one."""
    steps, batch = x.shape[:2]
    for distance in range(-min(middle, steps - 1), min(middle, steps - 1) + 1):
        if distance:
            first, end = max(0, -distance) * batch, (steps - max(0, distance)) * batch
            yield distance + middle, slice(first, end), slice(first + distance * batch, end + distance * batch)


class WeightLayout:
    """A convolution's weight in oneDNN's own layout, kept for the next single chunk.

    Without gradients a single chunk is bound by reading W. oneDNN reads its layout at the memory's full speed (4 ms for
    100 MB, where its plain convolution takes 20 and a matrix product 10), but making it takes as long as several calls.
    So it is made once for each state of the weight. `_version` shows its changes, except those that fused optimisers
    make: so some of the numbers are compared too. Both calls are private to torch and may be gone in another release:
    the usual way is as right, and slower.
    """

    available: ClassVar[bool] = True
    """Whether this torch makes and takes such a layout, as far as is known."""

    def __init__(self) -> None:
        self.kept: tuple[Any, Tensor, Tensor] | None = None
        """State of the weight, some of its numbers, and all of them laid out."""

    def __reduce__(self) -> tuple[type[WeightLayout], tuple[()]]:
        return WeightLayout, ()  # a copy of the module makes its own

    def conv1d(self, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor | None:
        """The convolution of a single chunk; None where the usual way is to be taken."""
        fits = x.shape[1] == 1 and x.dtype == torch.float32 and not weight.is_inference()
        there = WeightLayout.available and torch.backends.mkldnn.is_available()
        if torch.is_grad_enabled() or not there or not fits:
            return None
        try:
            return self._conv1d(x, weight, bias, stride)
        except (AttributeError, TypeError, RuntimeError) as error:
            # RuntimeError too: torch raises it where it knows the name, but not these arguments.
            WeightLayout.available = False
            told = " ".join(str(error).split())[:100]
            warnings.warn(f"single chunks take longer: this torch lays no weights out ({told})", stacklevel=2)
            return None

    def _conv1d(self, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        padding, strides = (0, len(weight) // 2), (1, stride)
        image = x.permute(1, 2, 0)[:, :, None]  # one row of pixels
        state = (weight.data_ptr(), weight._version, image.shape)
        some = weight.detach().view(-1)[:: max(1, weight.numel() // 64)]
        kept, ops = self.kept, torch.ops.mkldnn
        if kept is None or kept[0] != state or not torch.equal(kept[1], some):
            kernel = weight.detach().permute(2, 1, 0)[:, :, None]
            kernel = ops._reorder_convolution_weight(kernel, padding, strides, (1, 1), 1, list(image.shape))
            self.kept = kept = state, some.clone(), kernel
        found = ops._convolution_pointwise(image, kept[2], bias, padding, strides, (1, 1), 1, "none", [], "")
        return found[:, :, 0].permute(2, 0, 1)
