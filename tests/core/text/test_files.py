"""A tokenizer's file gives what its own library gives, and no text is cut."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from token_files import TEXTS, hugging_face, sentencepiece_model

from robostack.common.serialize import from_json, to_json
from robostack.core.text.files import FileTokenizer


@pytest.fixture(params=["tokenizer.model", "tokenizer.json"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A file, and what its library makes of a text alone."""
    path = tmp_path / f"named-otherwise{Path(request.param).suffix}"
    if request.param == "tokenizer.model":
        return path, sentencepiece_model(path).encode
    library = hugging_face(path)
    return path, lambda text: library.encode(text, add_special_tokens=False).ids


def test_ids_are_the_librarys(trained: tuple[Path, Any]) -> None:
    path, encode = trained
    tokenizer = FileTokenizer.of(path, 50, before=["<bos>"], after=["<eos>"])
    ids, valid = tokenizer.encode(TEXTS)
    assert ids.shape == valid.shape == (4, 50) and ids.dtype == np.int64
    for text, row, has in zip(TEXTS, ids, valid, strict=True):
        expected = [*tokenizer.before, *encode(text), *tokenizer.after]
        assert row[has].tolist() == expected and not has[len(expected) :].any() and not row[~has].any()
    assert FileTokenizer.of(path, 50).encode(TEXTS).ids[0, :3].tolist() == encode(TEXTS[0])[:3]
    assert ids.max() < tokenizer.size


def test_it_comes_back_from_its_description_and_its_file_and_from_no_other(
    trained: tuple[Path, Any], tmp_path: Path
) -> None:
    path, _ = trained
    tokenizer = FileTokenizer.of(path, 50, before=["<bos>"])
    described = from_json(FileTokenizer, json.loads(json.dumps(to_json(tokenizer))))
    assert described == tokenizer and "content" not in to_json(tokenizer)
    with pytest.raises(ValueError, match="is not at hand"):
        described.encode(TEXTS)
    assert np.array_equal(described.at(path).encode(TEXTS).ids, tokenizer.encode(TEXTS).ids)
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(ValueError, match="is damaged"):
        described.at(other)
    with pytest.raises(ValueError, match=r"has \d+ ids, expected at most 9"):
        dataclasses.replace(described, size=9, before=()).at(path).encode(TEXTS)


def test_what_cannot_be_is_refused(trained: tuple[Path, Any], tmp_path: Path) -> None:
    path, encode = trained
    length = len(encode(TEXTS[1]))
    FileTokenizer.of(path, length).encode(TEXTS[1:2])
    with pytest.raises(ValueError, match=rf"has {length} tokens, expected at most {length - 1}"):
        FileTokenizer.of(path, length - 1).encode(TEXTS[1:2])
    with pytest.raises(ValueError, match="does not have the token '<mask>'"):
        FileTokenizer.of(path, 9, before=["<mask>"])
    with pytest.raises(ValueError, match="longer than what is put around it"):
        FileTokenizer.of(path, 1, before=["<bos>", "<bos>"])
    with pytest.raises(OSError, match="nowhere"):
        FileTokenizer.of(tmp_path / "nowhere.json", 9)
    broken = tmp_path / path.name.replace("named", "broken")
    broken.write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match=r"is no (SentencePiece model|tokenizer\.json of Hugging Face)") as told:
        FileTokenizer.of(broken, 9)
    assert "\n" not in str(told.value)
