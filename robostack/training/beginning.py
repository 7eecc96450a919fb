"""Where a training begins: weights of another checkpoint, and what of them stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn

from robostack.common.tensors import differences
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.processor import Processor
from robostack.policies.weights import CheckpointError, kinds_of


def with_tokens_of(base: Checkpoint, processor: Processor, tasks: Iterable[str]) -> Processor:
    """The processor with the tokenizer and prompt of `base`, where that knows all of the tasks; a word then has the
    number that it had."""
    known = base.processor
    if known.prompt.tells_state:
        return processor
    try:
        known.tokenizer.encode([known.prompt.write(task) for task in tasks])
    except ValueError:  # other words: the tensors that differ are told
        return processor
    return replace(processor, tokenizer=known.tokenizer, prompt=known.prompt)


def begin_from(base: Checkpoint, policy: nn.Module, processor: Processor, drawn: Sequence[str]) -> None:
    """Gives the policy the weights that evaluation would take of `base`, by name; those that a pattern of `drawn`
    matches stay as they were drawn.

    Raises CheckpointError where tensors differ in shape, or in the words that they are of, and no pattern names them.
    """
    state, stored = policy.state_dict(), base.load().state_dict()
    left = {name for pattern in drawn for name in matching(pattern, [*state, *stored], "--init-except")}
    told = differences(
        kinds_of({name: value for name, value in state.items() if name not in left}),
        kinds_of({name: value for name, value in stored.items() if name not in left}),
    )
    if not told and processor.tokenizer != base.processor.tokenizer:
        size = processor.tokenizer.size
        words = [
            f"{path}.weight" for path, part in policy.named_modules()
            if isinstance(part, nn.Embedding) and part.num_embeddings == size and f"{path}.weight" not in left
        ]  # fmt: skip
        told = f"{', '.join(words)} of other words than those of the data" if words else ""
    if told:
        raise CheckpointError(
            f"{base.path} does not fit the policy of this data and these settings: {told}; what should be drawn anew "
            "is named by --init-except PATTERN, such as 'action_out.*'"
        )
    with torch.no_grad():
        for name, value in state.items():
            if name not in left:
                value.copy_(stored[name])


def freeze(policy: nn.Module, patterns: Sequence[str]) -> None:
    """Takes the parameters that a pattern matches out of the training: no gradient, no state of an optimiser. Raises
    ValueError for a pattern that matches none, and where nothing is left."""
    parameters = dict(policy.named_parameters())
    for pattern in patterns:
        for name in matching(pattern, parameters, "--freeze"):
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError("--freeze leaves nothing to train")


def matching(pattern: str, names: Iterable[str], flag: str) -> list[str]:
    """The names that a shell pattern such as 'encoder.*' matches. Raises ValueError where there is none."""
    names = [*names]
    if not (found := [name for name in names if fnmatchcase(name, pattern)]):
        known = ", ".join(dict.fromkeys(f"{name.partition('.')[0]}*" for name in names))
        raise ValueError(f"{flag} {pattern!r} matches no parameter of the policy: they are {known}")
    return found
