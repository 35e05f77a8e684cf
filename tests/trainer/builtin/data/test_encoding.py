"""Tokenising: the tokenizer's own ids, faster, on any number of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from podium.trainer.builtin.data.encode import Encoder, encode_batches
from podium.trainer.builtin.data.manifest import END_OF_TEXT
from podium.trainer.builtin.data.tokenizer import (
    bytes_per_token,
    end_of_text,
    load_tokenizer,
    save_tokenizer,
    token_bytes,
    train_tokenizer,
)
from podium.trainer.trial.errors import DataError

TEXT = [
    "The quick brown fox's den isn't far; they've 1234 foxes, we'll see.\n\n\tdef fox(a, b):\n        return a_b[1:]\n",
    "Ça coûte 12€ à l’hôtel – “naïve” café — 東京タワー 😀👍🏽 e\u0301 x\u00a0y\u2003z\x1c\x85 end  \n",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, 400)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer, end_of_text(tokenizer))


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids as the library gives them for the text in one piece, special tokens read as text."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    return list(plain.encode(text, add_special_tokens=False).ids)


LETTERS = "ab'sStTdlrevm 019_-.\n\t\r  \x1c\x85\u00a0\u2003\u200b\u3000é東´²Ⅷ٣😀"
_awkward = st.text(st.one_of(st.sampled_from(LETTERS), st.characters(codec="utf-8")))


@given(text=_awkward)
def test_ids_are_those_of_the_whole_text(tokenizer: Tokenizer, encoder: Encoder, text: str) -> None:
    assert encoder.encode([text]).tolist() == [*whole(tokenizer, text), end_of_text(tokenizer)]


@given(text=_awkward)
def test_bytes_of_the_ids_are_bytes_of_the_text(tokenizer: Tokenizer, encoder: Encoder, text: str) -> None:
    ids = encoder.encode([text])
    assert int(bytes_per_token(tokenizer)[ids].sum()) == len(text.encode())
    assert tokenizer.decode(ids[:-1].tolist(), skip_special_tokens=False) == text


def test_every_character_is_cut_as_the_tokenizer_cuts_it(tokenizer: Tokenizer, encoder: Encoder) -> None:
    """Each code point between letters, digits, punctuation and spaces: the classes of two Unicode tables must agree."""
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    chosen = [*points[:0x3100], *points[0x3100::97]]
    text = "".join(f"a{c}1{c}.{c} {c}{c}b " for c in chosen)
    assert encoder.encode([text])[:-1].tolist() == whole(tokenizer, text)


def test_a_special_token_in_the_text_is_text(tokenizer: Tokenizer, encoder: Encoder) -> None:
    end = end_of_text(tokenizer)
    ids = encoder.encode([f"a {END_OF_TEXT} b"]).tolist()
    assert ids.count(end) == 1
    assert ids[-1] == end


def test_real_text_has_the_same_ids_on_any_number_of_processes(wikitext: Path) -> None:
    text = (wikitext / "valid.txt").read_text()[:300_000]
    documents = [text[first : first + 5000] for first in range(0, len(text), 5000)]
    tokenizer = train_tokenizer(documents, 2000)
    end = end_of_text(tokenizer)
    wanted = [token for document in documents for token in (*whole(tokenizer, document), end)]
    for workers in (1, 2):
        batches = [documents[first : first + 9] for first in range(0, len(documents), 9)]
        got = list(encode_batches(tokenizer, end, batches, workers=workers))
        assert len(got) == len(batches)
        assert np.concatenate(got).tolist() == wanted


def test_an_encoder_that_forgets_gives_the_same(
    tokenizer: Tokenizer, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [encoder.encode([text]).tolist() for text in TEXT]
    monkeypatch.setattr("podium.trainer.builtin.data.encode.MAX_PIECES", 3)
    forgetful = Encoder(tokenizer, end_of_text(tokenizer))
    assert [forgetful.encode([text]).tolist() for text in TEXT] == wanted


def test_training_gives_the_same_tokenizer_every_time_on_any_number_of_threads(wikitext: Path, tmp_path: Path) -> None:
    code = (
        "import sys, hashlib; from podium.trainer.builtin.data.tokenizer import train_tokenizer\n"
        "text = open(sys.argv[1]).read()[:400_000]\n"
        "texts = [text[i:i + 4000] for i in range(0, len(text), 4000)]\n"
        "print(hashlib.sha256(train_tokenizer(texts, 3000).to_str().encode()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, str(wikitext / "valid.txt")],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(seen) == 1


@pytest.mark.parametrize("size", [0, 256, 65537])
def test_a_vocabulary_that_can_not_be_is_refused(size: int) -> None:
    with pytest.raises(DataError, match=f"vocab_size: must be between 257 and 65536, got {size}"):
        train_tokenizer(TEXT, size)


def test_the_smallest_vocabulary_is_bytes_and_the_end_of_text() -> None:
    tokenizer = train_tokenizer(TEXT, 257)
    assert tokenizer.get_vocab_size() == 257
    assert end_of_text(tokenizer) == 0
    assert sorted(bytes_per_token(tokenizer).tolist()) == [0] + [1] * 256


def test_a_saved_tokenizer_is_loaded_with_its_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).to_str() == tokenizer.to_str()
    assert np.array_equal(token_bytes(tmp_path), bytes_per_token(tokenizer))


def test_a_missing_or_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: not there"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)
