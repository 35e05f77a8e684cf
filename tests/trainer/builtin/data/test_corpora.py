"""Corpora: what is read, how it is split, what identifies it, what is refused."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from podium.trainer.builtin.data.corpus import Corpus, CorpusConfig, corpus_fingerprint, open_corpus, parse_corpus
from podium.trainer.builtin.data.sources import Document
from podium.trainer.trial.errors import DataError


def corpus(path: Path | str, **options: Any) -> Corpus:
    return open_corpus(CorpusConfig(source="files", path=str(path), **options))


def by_split(found: Corpus) -> dict[str, list[Document]]:
    splits: dict[str, list[Document]] = {}
    for split, document in found.documents():
        splits.setdefault(split, []).append(document)
    return splits


def write_many(folder: Path, count: int, suffix: str = ".txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04d}{suffix}").write_text(f"document {number}\n" * (1 + number % 7))
    return folder


@pytest.mark.parametrize(
    ("text", "source"),
    [("builtin", "builtin"), ("wikitext-2", "wikitext-2"), ("s3://b-1/x", "s3"), ("a/*.txt", "files")],
)
def test_the_command_lines_form_names_the_source(text: str, source: str) -> None:
    assert parse_corpus(text).source == source


def test_a_path_is_taken_from_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_corpus("notes/*.txt").path == str(tmp_path / "notes/*.txt")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": "files"}, "source 'files' needs a path"),
        ({"source": "s3", "path": "/x"}, "path of source 's3' must be s3://bucket/prefix, got '/x'"),
        ({"source": "builtin", "path": "/x"}, "source 'builtin' takes no path"),
        ({"source": "builtin", "max_bytes": 0}, "greater than 0"),
        ({"source": "builtin", "test_fraction": 0.6}, "less than 0.5"),
        ({"source": "hub"}, "'builtin', 'wikitext-2', 'files', 's3', 'mixture' or 'fineweb'"),
    ],
)
def test_a_corpus_that_can_not_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        CorpusConfig.model_validate(given)


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.txt", "wikitext2"])
def test_a_missing_corpus_is_refused_with_what_can_be_given(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"no such file, folder or match; a corpus must be builtin, wikitext-2, a file"):
        corpus_fingerprint(CorpusConfig(source="files", path=str(tmp_path / path)))


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="is empty: 1 files, 0 bytes"):
        corpus(tmp_path / "a.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no text in this folder"):
        corpus(tmp_path / "folder")
    with pytest.raises(DataError, match="a corpus must be builtin"):
        parse_corpus(" ")


@pytest.mark.parametrize(("data", "words"), [(b"caf\xe9 au lait", "a byte that is not"), (b"a\0b", "binary data")])
def test_what_is_not_text_is_refused_by_name(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.txt: must be UTF-8 text, got {words}"):
        corpus(tmp_path / "a.txt")


def test_files_keep_the_splits_that_their_names_say(tmp_path: Path) -> None:
    for name in ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"):
        (tmp_path / name).write_text(f" = {name} = \n \n Text . \n")
    found = by_split(corpus(tmp_path))
    assert {split: [doc.text for doc in docs] for split, docs in found.items()} == {
        "train": [" = wiki.train.raw = \n \n Text . \n"],
        "validation": [" = wiki.valid.raw = \n \n Text . \n"],
        "test": [" = wiki.test.raw = \n \n Text . \n"],
    }


def test_a_split_without_a_file_is_taken_from_the_training_documents(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {number}"}) for number in range(100)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "dev.jsonl").write_text('{"text": "given"}')
    found = by_split(corpus(tmp_path, test_fraction=0.1))
    assert [document.text for document in found["validation"]] == ["given"]
    assert (len(found["train"]), len(found["test"])) == (90, 10)


def test_names_that_say_no_training_file_are_refused(tmp_path: Path) -> None:
    for name in ("valid.txt", "test.txt"):
        (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=r"no file's name says train, got test\.txt, valid\.txt"):
        corpus(tmp_path)
    assert corpus(tmp_path / "test.txt").sources[0].role is None, "one file alone is split, whatever its name"


def test_a_source_tree_with_tests_in_it_is_no_set_of_splits(tmp_path: Path) -> None:
    for name in ("model.py", "test_model.py"):
        (tmp_path / name).write_text("import this\n" * 500)
    assert {source.role for source in corpus(tmp_path).sources} == {None}


def test_documents_are_dealt_out_whole_and_all_along_the_corpus(tmp_path: Path) -> None:
    found = by_split(corpus(write_many(tmp_path, 200)))
    assert {split: len(documents) for split, documents in found.items()} == {"train": 180, "validation": 10, "test": 10}
    texts = [document.text for documents in found.values() for document in documents]
    assert sorted(texts) == sorted(path.read_text() for path in tmp_path.iterdir())
    places = [int(document.text.split()[1]) for document in found["validation"]]
    assert max(b - a for a, b in itertools.pairwise(places)) <= 25


def test_one_plain_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {number} has some words.\nAnd a second line.\n\n" for number in range(2000))
    (tmp_path / "a.txt").write_text(text)
    found = by_split(corpus(tmp_path / "a.txt"))
    assert set(found) == {"train", "validation", "test"}
    documents = [document for _, document in corpus(tmp_path / "a.txt").documents()]
    assert "".join(document.text for document in documents) == text
    assert all(document.text.endswith("\n\n") for document in documents)
    size = {split: sum(document.bytes for document in documents) for split, documents in found.items()}
    assert size["validation"] / len(text) == pytest.approx(0.05, abs=0.02)


def test_a_file_without_line_ends_is_still_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 400_000)
    assert set(by_split(corpus(tmp_path / "a.txt"))) == {"train", "validation", "test"}


def test_wikitext_is_split_by_articles(wikitext: Path) -> None:
    documents = [document for _, document in corpus(wikitext / "test.txt").documents()]
    assert len(documents) > 50
    for document in documents:
        lines = document.text.splitlines()
        titles = [line for line in lines if line.startswith(" = ") and line.endswith(" = ") and " = = " not in line]
        assert titles == lines[:1]
    assert sum(document.bytes for document in documents) == pytest.approx((wikitext / "test.txt").stat().st_size, abs=5)


def test_a_cap_thins_the_corpus_evenly_and_leaves_named_splits_whole(tmp_path: Path) -> None:
    write_many(tmp_path / "many", 300)
    total = corpus(tmp_path / "many").bytes
    found = corpus(tmp_path / "many", max_bytes=total // 3)
    kept = [document for _, document in found.documents()]
    assert 0.85 * total / 3 < sum(document.bytes for document in kept) <= total // 3
    places = [int(document.text.split()[1]) for document in kept]
    assert max(b - a for a, b in itertools.pairwise(places)) <= 4
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "train.txt").write_text("x\n\n" * 3000)
    (tmp_path / "named" / "test.txt").write_text("y\n\n" * 3000)
    splits = by_split(corpus(tmp_path / "named", max_bytes=10_000))
    assert sum(document.bytes for document in splits["test"]) == 9000


def test_lines_of_json_are_documents_with_their_domains(tmp_path: Path) -> None:
    entries = [{"body": "one\ntwo", "domain": "code"}, {"body": "three"}]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    (tmp_path / "test.jsonl").write_text(json.dumps({"body": "four"}))
    (tmp_path / "dev.jsonl").write_text(json.dumps({"body": "five"}))
    found = by_split(corpus(tmp_path, text_field="body"))
    assert found["train"] == [Document("one\ntwo", "code"), Document("three", None)]


@pytest.mark.parametrize(
    ("line", "words"), [("{", "line 2: not JSON"), ('{"body": 1}', "must be an object with a text in the field 'text'")]
)
def test_a_bad_line_of_json_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(DataError, match=words):
        list(corpus(tmp_path / "a.jsonl").documents())


def test_a_fingerprint_follows_content_and_settings_and_no_path(tmp_path: Path) -> None:
    here, there = write_many(tmp_path / "here", 50), write_many(tmp_path / "there", 50)
    base = corpus(here).fingerprint
    assert corpus(there).fingerprint == base
    assert corpus(f"{there}/*.txt").fingerprint == base
    assert corpus(here, max_bytes=1000).fingerprint != base
    assert corpus(here, validation_fraction=0.1).fingerprint != base
    (there / "0007.txt").write_text("changed")
    assert corpus(there).fingerprint != base


def test_the_builtin_corpus_is_code_and_prose_of_this_python_and_stays_the_same() -> None:
    config = CorpusConfig(source="builtin", max_bytes=2_000_000)
    first, second = list(open_corpus(config).documents()), list(open_corpus(config).documents())
    assert first == second
    domains: Counter[str | None] = Counter()
    for _, document in first:
        domains[document.domain] += document.bytes
    assert domains["code"] > 1_000_000
    assert domains["prose"] > 10_000
    assert 1_800_000 < sum(domains.values()) <= 2_000_000
    assert {split for split, _ in first} == {"train", "validation", "test"}
    assert corpus_fingerprint(CorpusConfig(source="builtin")) != corpus_fingerprint(config)


def test_a_python_without_its_sources_says_what_else_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from podium.trainer.builtin.data import sources

    monkeypatch.setattr(sources.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    sources.builtin_sources.cache_clear()
    try:
        with pytest.raises(DataError, match=r"has only \d+ bytes of library sources .*; give a file"):
            corpus_fingerprint(CorpusConfig(source="builtin"))
    finally:
        sources.builtin_sources.cache_clear()


def test_wikitext_from_the_hub_is_read_at_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    rows = ["", " = Title = \n", "", " Text . \n", " = = Section = = \n", " = Other = \n", " More . \n"]

    def load_dataset(repository: str, name: str, revision: str) -> dict[str, dict[str, list[str]]]:
        asked.append((repository, name, revision))
        return {split: {"text": rows} for split in ("train", "validation", "test")}

    fake = SimpleNamespace(load_dataset=load_dataset, disable_progress_bars=lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    config = parse_corpus("wikitext-2")
    fingerprint = corpus_fingerprint(config)
    assert asked == [], "the pinned revision identifies it; nothing is fetched"
    found = open_corpus(config)
    assert found.fingerprint == fingerprint
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", config.revision)]
    articles = [" = Title = \n \n Text . \n = = Section = = \n", " = Other = \n More . \n"]
    assert {split: [doc.text for doc in docs] for split, docs in by_split(found).items()} == dict.fromkeys(
        ("train", "validation", "test"), articles
    )


def test_without_library_or_hub_it_is_said_what_else_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the 'datasets' extra .* or give a file, a folder"):
        open_corpus(parse_corpus("wikitext-2"))

    def load_dataset(*args: str, **options: str) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand more lines")

    fake = SimpleNamespace(load_dataset=load_dataset, disable_progress_bars=lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(DataError, match=r"can't be fetched from the hub \(Couldn't reach the Hub\); give a file"):
        open_corpus(parse_corpus("wikitext-2"))


def test_wikitext_from_a_folder_needs_its_named_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="no file's name says train"):
        open_corpus(CorpusConfig(source="wikitext-2", path=str(tmp_path)))
