"""What becomes of a task's text, and of the state where it is told in words, before both are tokenized."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

STATE_BINS = 256


@dataclass(frozen=True)
class Prompt:
    """A template and how the task is written into it."""

    template: str = "{task}"
    """{task} stands for the task's text, and {state}, if it is there, for the state as whole numbers."""
    lower_task: bool = False
    """Whether the task is written in lower case."""
    clean_task: bool = False
    """Whether the task's underscores and line ends become spaces, and spaces around it go (openpi)."""

    def __post_init__(self) -> None:
        if "{task}" not in self.template:
            raise ValueError(f"a prompt's template must have {{task}} in it, got {self.template!r}")

    @property
    def tells_state(self) -> bool:
        """Whether it needs the state."""
        return "{state}" in self.template

    def write(self, task: str, state: Float[np.ndarray, " numbers"] | None = None) -> str:
        """The text to tokenize; `state` is normalised to −1..1."""
        task = task.lower() if self.lower_task else task
        task = task.strip().replace("_", " ").replace("\n", " ") if self.clean_task else task
        values: dict[str, Callable[[], str]] = {"{task}": lambda: task, "{state}": lambda: _binned(state)}
        return re.sub(r"\{task\}|\{state\}", lambda found: values[found[0]](), self.template)


def state_words() -> list[str]:
    """All that a number of a state can be written as."""
    return [str(bin) for bin in range(-1, STATE_BINS)]


def _binned(state: np.ndarray | None) -> str:
    """Each number's bin of 256 equal ones over −1..1, −1 for what lies below and 255 for what lies above (openpi)."""
    if state is None:
        raise ValueError("the prompt tells the state, and got none")
    edges = np.linspace(-1.0, 1.0, STATE_BINS + 1)[:-1]
    return " ".join(map(str, np.digitize(state, edges) - 1))
