"""Task texts as tokens for models trained from scratch: whole words, numbered as the training data names them.

A word that the training data did not have is an error and not an unknown token: a policy that is asked for another
task than it learned, or for the same in other words, would act at random without telling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from robostack.core.text.tokenizer import Tokens


@dataclass(frozen=True)
class Vocabulary:
    """`words` in order of their ids, which start at 1; every text becomes `length` ids, padded with 0."""

    words: tuple[str, ...]
    length: int

    @staticmethod
    def of(texts: Iterable[str], more: Iterable[str] = ()) -> Vocabulary:
        """The vocabulary of these texts, as long as the longest of them, and of `more` words."""
        split = [_words(text) for text in texts]
        known = {word for words in split for word in words} | {*more}
        return Vocabulary(tuple(sorted(known)), max(map(len, split), default=0))

    @property
    def size(self) -> int:
        """How many ids there are, padding included."""
        return len(self.words) + 1

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Raises ValueError for unknown words and for texts that are too long."""
        numbers = {word: index for index, word in enumerate(self.words, start=1)}
        ids = np.zeros((len(texts), self.length), dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            words = _words(text)
            if unknown := [word for word in words if word not in numbers]:
                raise ValueError(
                    f"task {text!r} has words that the training data did not: {', '.join(unknown)}; "
                    f"it knows: {' '.join(self.words)}"
                )
            if len(words) > self.length:
                raise ValueError(f"task {text!r} has {len(words)} words, expected at most {self.length}")
            row[: len(words)] = [numbers[word] for word in words]
        return Tokens(ids, ids > 0)


def _words(text: str) -> list[str]:
    return re.findall(r"(?:(?<!\S)-(?=\d))?\w+", text.lower())  # a number has its sign
