"""Tokenizers of pretrained language models, from the file that comes with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from robostack.common.extras import require_extra
from robostack.common.files import check_regular
from robostack.common.tensors import Seal
from robostack.common.text import one_line
from robostack.core.text.tokenizer import Tokens

LARGEST_FILE = 256 << 20
"""Bytes; those of PaliGemma and Llama have 1 to 20 million."""


@dataclass(frozen=True)
class FileTokenizer:
    """A SentencePiece model or a Hugging Face tokenizer.json, whose pieces alone are taken from it: what is put before
    and after them is told here, and a text that is too long is an error. `at` says where the file is."""

    file: Literal["tokenizer.model", "tokenizer.json"]
    """Of SentencePiece, of Hugging Face; its name in a checkpoint's folder."""
    seal: Seal
    """What the file is: another one is refused."""
    size: int
    length: int
    before: tuple[int, ...] = ()
    """Ids put before each text, such as that of <bos>."""
    after: tuple[int, ...] = ()
    """Ids put after it."""
    content: bytes = field(default=b"", init=False, repr=False, compare=False)
    """The file's, no part of the description."""

    def __post_init__(self) -> None:
        if len(self.before) + len(self.after) > self.length:
            raise ValueError(f"expected a text to be longer than what is put around it, got {self.length} tokens")
        if not all(0 <= token < self.size for token in (*self.before, *self.after)):
            raise ValueError(f"expected ids in 0..{self.size - 1} before and after a text")

    @staticmethod
    def of(path: Path, length: int, before: Sequence[str] = (), after: Sequence[str] = ()) -> FileTokenizer:
        """That of a file, with these of its tokens before and after each text.

        Raises OSError or ValueError where it is no such file or does not have the tokens, MissingExtraError without
        the library that reads it.
        """
        if (size := check_regular(path).st_size) > LARGEST_FILE:
            raise ValueError(f"{path} has {size:,} bytes, expected a tokenizer's file of at most {LARGEST_FILE:,}")
        name = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
        library = _read(name, path.read_bytes(), path)

        def ids(tokens: Sequence[str]) -> tuple[int, ...]:
            if unknown := [token for token in tokens if token not in library.ids]:
                raise ValueError(f"{path} does not have the token {unknown[0]!r}")
            return tuple(library.ids[token] for token in tokens)

        described = FileTokenizer(name, Seal.of(path), library.size, length, ids(before), ids(after))
        return described.at(path)

    def at(self, path: Path) -> FileTokenizer:
        """The same with the content of its file. Raises OSError or ValueError where that is not the one described."""
        self.seal.check(path)
        bound = replace(self)
        object.__setattr__(bound, "content", path.read_bytes())
        return bound

    @cached_property
    def _library(self) -> _Library:
        if not self.content:
            raise ValueError(f"the file {self.file} of the tokenizer is not at hand")
        library = _read(self.file, self.content, self.file)
        if library.size > self.size:
            raise ValueError(f"{self.file} has {library.size:,} ids, expected at most {self.size:,}")
        return library

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Raises ValueError for a text of more than `length` tokens, those around it included."""
        ids = np.zeros((len(texts), self.length), np.int64)
        valid = np.zeros(ids.shape, bool)
        for row, (text, pieces) in enumerate(zip(texts, self._library.encode(list(texts)), strict=True)):
            tokens = [*self.before, *pieces, *self.after]
            if len(tokens) > self.length:
                raise ValueError(f"{one_line(ValueError(repr(text)), 60)} has {len(tokens)} tokens, expected at most "
                                 f"{self.length}")  # fmt: skip
            ids[row, : len(tokens)], valid[row, : len(tokens)] = tokens, True
        return Tokens(ids, valid)


class _Library(NamedTuple):
    """What is asked of sentencepiece and tokenizers."""

    encode: Callable[[list[str]], list[list[int]]]
    ids: dict[str, int]
    size: int


def _read(name: str, content: bytes, told: Path | str) -> _Library:
    require_extra("sentencepiece" if name == "tokenizer.model" else "tokenizers", "text")
    try:
        return _sentencepiece(content) if name == "tokenizer.model" else _hugging_face(content)
    except Exception as error:  # the libraries raise their own, and bare ones
        raise ValueError(f"{told} is no {_KINDS[name]} ({one_line(error)})") from error


_KINDS = {"tokenizer.model": "SentencePiece model", "tokenizer.json": "tokenizer.json of Hugging Face"}


def _sentencepiece(content: bytes) -> _Library:
    from sentencepiece import SentencePieceProcessor

    model: Any = SentencePieceProcessor(model_proto=content)
    size = model.get_piece_size()
    return _Library(model.encode, {model.id_to_piece(token): token for token in range(size)}, size)


def _hugging_face(content: bytes) -> _Library:
    from tokenizers import Tokenizer

    model = Tokenizer.from_str(content.decode())
    model.no_padding()
    model.no_truncation()
    ids = model.get_vocab(with_added_tokens=True)

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoded.ids for encoded in model.encode_batch(texts, add_special_tokens=False)]

    return _Library(encode, ids, max(ids.values(), default=-1) + 1)
