"""A corpus kind is one class: a toy kind defined here works everywhere. The shipped kinds keep their identities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from podium.components.study.design import Overrides
from podium.components.study.load import load_study
from podium.pipelines.cli.run import check_corpus
from podium.trainer.builtin.data import corpus as corpora
from podium.trainer.builtin.data.corpus import (
    Corpus,
    CorpusConfig,
    CorpusKind,
    corpus_fingerprint,
    corpus_kinds,
    parse_corpus,
)
from podium.trainer.builtin.data.prepare import PrepareConfig, data_fingerprint, prepare
from podium.trainer.builtin.data.sources import Document, Source
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.storage import open_storage


@pytest.fixture
def countdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy kind, registered while the test runs."""
    corpus_kinds()
    monkeypatch.setattr(corpora, "_KINDS", dict(corpora._KINDS))

    class Countdown(CorpusKind):
        source = "countdown"

        def parse(self, text: str) -> CorpusConfig | None:
            return CorpusConfig(source="countdown", path=text) if text.startswith("countdown://") else None

        def check(self, config: CorpusConfig) -> None:
            super().check(config)
            if not self.number(config).isdigit():
                raise ValueError(f"source 'countdown' needs a number, got {config.path!r}")

        def describe(self, config: CorpusConfig) -> str:
            return f"counting down from {self.number(config)}"

        def open(self, config: CorpusConfig) -> Corpus:
            number = int(self.number(config))

            def documents() -> Iterator[Document]:
                yield from (Document(f"{left} bottles, and one falls.\n") for left in range(number, 0, -1))

            return Corpus(config, [Source(None, 30 * number, f"countdown {number}", documents)])

        def number(self, config: CorpusConfig) -> str:
            return str(config.path).removeprefix("countdown://")


@pytest.mark.usefixtures("countdown")
def test_a_kind_is_added_by_one_class(tmp_path: Path) -> None:
    config = parse_corpus("countdown://400")
    assert (config.source, config.description) == ("countdown", "counting down from 400")
    manifest = prepare(PrepareConfig(corpus=config, vocab_size=300), open_storage(str(tmp_path)))
    assert manifest.corpus == "counting down from 400"
    assert sum(split.documents or 0 for split in manifest.splits.values()) == 400
    study = load_study("param-allocation", profile="smoke", overrides=Overrides(data="countdown://9999"))
    check_corpus(study)
    assert study.data.corpus.description == "counting down from 9999"


@pytest.mark.usefixtures("countdown")
def test_a_kind_checks_its_own_fields_and_is_named_where_another_is_not_known() -> None:
    with pytest.raises(ValidationError, match="needs a number, got 'x'"):
        CorpusConfig(source="countdown", path="x")
    with pytest.raises(ValidationError) as caught:
        CorpusConfig(source="nope")
    assert str(ConfigError.from_validation(caught.value)) == (
        "source: must be 'builtin', 'wikitext-2', 'files', 's3', 'mixture', 'fineweb' or 'countdown', got 'nope'"
    )


def test_messages_name_the_kinds_in_their_order() -> None:
    with pytest.raises(ValidationError) as caught:
        CorpusConfig.model_validate({"source": 3})
    assert str(ConfigError.from_validation(caught.value)) == (
        "source: must be 'builtin', 'wikitext-2', 'files', 's3', 'mixture' or 'fineweb', got 3"
    )


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Texts of which the identities below are known from before the kinds had classes of their own."""
    (tmp_path / "a.txt").write_text("".join(f"Line {i} of the text, with some words.\n\n" for i in range(300)))
    for folder, names in (("mix", ("code", "prose")), ("wiki", ("train", "valid", "test"))):
        (tmp_path / folder).mkdir()
        for name in names:
            text = {
                "code": "def f{i}(x): return x + {i}\n\n",
                "prose": "Sentence {i} is here.\n\n",
            }.get(name, " = Title {i} = \n\n Text " + name + " number {i} . \n\n")
            file = f"wiki.{name}.raw" if folder == "wiki" else f"{name}.txt"
            lines = range(30 if folder == "wiki" else 300)
            (tmp_path / folder / file).write_text("".join(text.replace("{i}", str(i)) for i in lines))
    (tmp_path / "few").mkdir()
    for name, count in (("train_000001", 1000), ("train_000002", 900), ("val_000000", 700)):
        head = np.zeros(256, dtype="<i4")
        head[:3] = 20240520, 1, count
        tokens = np.arange(count).astype("<u2")
        (tmp_path / "few" / f"fineweb_{name}.bin").write_bytes(head.tobytes() + tokens.tobytes())
    return tmp_path


@pytest.mark.parametrize(
    ("text", "fingerprint", "data"),
    [
        ("wikitext-2", "e2beb821967dc33f311641df87eb840b", "f60e8dc9b8dc24e1"),
        ("HERE/a.txt", "340ea3ba9d072f497d7b6ecdc18c86fd", "a27f43d48e9b46cb"),
        ("mixture:HERE/mix", "d4f39dfb26d14f8f877524e570a7fa0f", "e309023d1c206dd5"),
        ("fineweb:HERE/few", "f01e1b5bb272c0149b4a1f5656b47cc0", "3754b9263c6f914e"),
    ],
)
def test_identities_of_corpora_are_as_they_were(text: str, fingerprint: str, data: str, texts: Path) -> None:
    config = parse_corpus(text.replace("HERE", str(texts)))
    assert corpus_fingerprint(config) == fingerprint
    vocabulary = 50304 if config.kind.is_tokenised else 400
    assert data_fingerprint(PrepareConfig(corpus=config, vocab_size=vocabulary)) == data


def test_identities_of_corpora_with_other_fields_are_as_they_were(texts: Path) -> None:
    known = {
        "f4a6fcbd84c4e1c600eb06629a784c5f": CorpusConfig(source="wikitext-2", path=str(texts / "wiki")),
        "f782cc0d4d92735a1107df4ffd0a8215": CorpusConfig(source="fineweb", path=str(texts / "few"), shards=1),
        "5c54c7ee960f975b19ef7489971544e3": CorpusConfig(source="files", path=str(texts / "a.txt"), max_bytes=3000),
    }
    assert {corpus_fingerprint(config): config for config in known.values()} == known


def test_the_fields_that_a_study_hashes_are_as_they_were() -> None:
    assert parse_corpus("s3://b/p").model_dump(mode="json") == {
        "source": "s3",
        "path": "s3://b/p",
        "shards": None,
        "text_field": "text",
        "validation_fraction": 0.05,
        "test_fraction": 0.05,
        "max_bytes": None,
        "domains": None,
        "size_mb": 10.0,
        "revision": "b08601e04326c79dfdd32d625aee71d232d685c3",
    }
