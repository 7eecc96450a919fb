"""The weights of a module and those of a file: of which types and shapes they are, before either takes memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from robostack.common.tensors import LARGEST_WEIGHT, Kind, differences

OVERHEAD = 1024
"""Bytes that a tensor of a module takes in Python, roughly; so many empty ones have a size too."""


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message says what was expected, what was got and what to do."""


def memory_bytes() -> int:
    """Of this machine, as far as it says."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def kinds_of(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """Types and shapes by name."""
    return {name: Kind(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()}


def kinds_of_made(make: Callable[[], nn.Module], most_bytes: int) -> dict[str, Kind]:
    """The state of the module that `make` would make, on torch's meta device, where tensors have no memory.

    Raises ValueError as soon as it has more than `most_bytes`: a module of 10⁹ layers has an end too.
    """
    size = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal size
        size += OVERHEAD + (0 if parameter is None else parameter.numel() * parameter.element_size())
        if size > most_bytes:
            raise ValueError(f"its weights have more than {most_bytes:,} bytes")

    with torch.device("meta"), _registering(count):
        return kinds_of(make().state_dict())


def without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """The module that `make` would make, its parameters on the meta device and drawn from nothing: a file has them.

    What else it holds is real: buffers that no file has, such as places and angles, and tables that are no buffers.
    """

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    with _registering(emptied):
        return make()


@contextmanager
def _registering(hook: Callable[[nn.Module, str, nn.Parameter | None], nn.Parameter | None]) -> Iterator[None]:
    """Within, modules register what `hook` makes of their parameters, and no parameter is drawn."""
    watch = register_module_parameter_registration_hook(hook)  # pyright: ignore[reportArgumentType] (it may replace)
    try:
        with _NothingDrawn():
            yield
    finally:
        watch.remove()


class _NothingDrawn(TorchFunctionMode):
    """Leaves out the random numbers of initial weights that nobody will see. torch has the meta functions for them in
    Python, whose import takes seconds."""

    _fills = (torch.Tensor.normal_, torch.Tensor.uniform_)
    _makes = (torch.randn, torch.rand)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._fills or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if func in self._makes:
            kwargs.pop("generator", None)
            func = torch.empty
        return func(*args, **kwargs)


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: Path, assign: bool = False) -> None:
    """Loads `tensors` into `module`; with `assign` they become its own, and nothing is copied. Raises CheckpointError,
    before anything is changed, if one is missing, left over, of another shape or type, or holds what is no weight."""
    check_fits(kinds_of(module.state_dict()), tensors, source)
    module.load_state_dict(dict(tensors), assign=assign)


def check_fits(expected: Mapping[str, Kind], tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raises CheckpointError unless the tensors are those that are expected, and weights."""
    if told := differences(expected, kinds_of(tensors)):
        raise CheckpointError(f"{source} does not fit: {told}")
    if told := what_is_no_weight(tensors):
        raise CheckpointError(f"{source}: {told}: use another checkpoint")


def what_is_no_weight(tensors: Mapping[str, Tensor]) -> str:
    """In words, the first tensor that holds NaN, infinity or a number beyond LARGEST_WEIGHT; "" where none does."""
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.is_floating_point():
            low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
            if not (low >= -LARGEST_WEIGHT and high <= LARGEST_WEIGHT):
                return f"{name} holds {low if not low >= -LARGEST_WEIGHT else high:.3g}"
    return ""
