"""Data of several domains: split before packing, labels through shards into batches, balance of the training set."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from podium.trainer.builtin.data.corpora import mixture
from podium.trainer.builtin.data.corpus import corpus_fingerprint, open_corpus, parse_corpus
from podium.trainer.builtin.data.loader import SequenceLoader, evaluation_batches, evaluation_domains
from podium.trainer.builtin.data.manifest import load_manifest
from podium.trainer.builtin.data.prepare import PrepareConfig, data_fingerprint, prepare
from podium.trainer.builtin.data.shards import open_shard
from podium.trainer.builtin.data.tokenizer import load_tokenizer
from podium.trainer.trial.errors import ConfigError, DataError
from podium.trainer.trial.storage import open_storage

THIRD = 16
DOMAINS = ("down", "noise", "up")


def domain_of_tokens(x_BT):
    return np.unique(x_BT // THIRD, axis=1)


def test_no_sequence_is_of_two_domains_and_each_knows_its_own(domain_data):
    loader = SequenceLoader(domain_data, "train", sequence_length=16, batch_sequences=8, seed=1)
    assert loader.names == DOMAINS
    assert loader.sequences == sum((size - 1) // 16 for size in (1700, 1300, 900))
    for _ in range(2 * loader.sequences // 8):
        x_BT, y_BT = loader.next_batch()
        for batch in (x_BT, y_BT):
            assert domain_of_tokens(batch).shape == (8, 1)
        assert (x_BT[:, 0] // THIRD == loader.domains_B).all()
        assert (x_BT[:, 1:] == y_BT[:, :-1]).all()
    loader.close()


def test_balance_evens_the_domains_of_training_and_leaves_evaluation_alone(domain_data):
    loader = SequenceLoader(domain_data, "train", sequence_length=16, batch_sequences=8, seed=1, balance=True)
    smallest = (900 - 1) // 16
    assert loader.sequences == 3 * smallest
    counts = np.zeros(3, dtype=int)
    for _ in range(loader.sequences // 8):
        loader.next_batch()
        counts += np.bincount(loader.domains_B, minlength=3)
    loader.close()
    assert counts.sum() == loader.sequences
    assert (counts == smallest).all()
    read = evaluation_domains(domain_data, "validation", sequence_length=16)
    assert [read.count(name) for name in DOMAINS] == [(size - 1) // 16 for size in (330, 230, 180)]


def test_any_first_sequences_of_an_evaluation_have_the_domains_in_proportion(domain_data):
    names = evaluation_domains(domain_data, "validation", sequence_length=16, sequences=9)
    assert [names.count(name) for name in DOMAINS] == [4, 3, 2]
    batches = evaluation_batches(domain_data, "validation", sequence_length=16, batch_sequences=4, sequences=9)
    read = np.concatenate([x_BT[:, 0] // THIRD for x_BT, _ in batches])
    assert [DOMAINS[number] for number in read] == list(names)


def test_a_loader_of_domains_resumes_and_refuses_another_balance(domain_data):
    def make(**options):
        return SequenceLoader(domain_data, "train", sequence_length=16, batch_sequences=4, seed=3, **options)

    first, second, other = make(balance=True), make(balance=True), make()
    for _ in range(7):
        first.next_batch()
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(first.next_batch(), second.next_batch(), strict=True):
        assert (ours == theirs).all()
    assert (first.domains_B == second.domains_B).all()
    with pytest.raises(Exception, match="balance must be False, got True"):
        other.load_state_dict(first.state_dict())
    for loader in (first, second, other):
        loader.close()


# ---- from text ----


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    (folder / "prose").mkdir(parents=True)
    for number in range(40):
        (folder / "prose" / f"{number:02}.txt").write_text(
            f"Prose number {number} says: the cat sat on mat {number}.\n"
        )
    lines = [json.dumps({"text": f"def f{n}(x):\n    return x + {n}\n"}) for n in range(60)]
    (folder / "code.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "math.txt").write_text("\n\n".join(f"{n} + {n} = {2 * n}. " * 30 for n in range(120)))
    return folder


def test_local_files_become_domains_split_before_packing(texts, tmp_path):
    corpus = parse_corpus(f"mixture:{texts}")
    assert list(corpus.domains) == ["code", "math", "prose"]
    by_split: dict[str, dict[str, list[str]]] = {}
    for split, document in open_corpus(corpus).documents():
        by_split.setdefault(split, {}).setdefault(document.domain, []).append(document.text)
    assert all(set(domains) == {"code", "math", "prose"} for domains in by_split.values())
    every = [text for domains in by_split.values() for documents in domains.values() for text in documents]
    assert len(set(every)) == len(every), "no document is in two splits"
    store = open_storage(str(tmp_path / "store"))
    manifest = prepare(PrepareConfig(corpus=corpus, vocab_size=400), store)
    assert manifest.domains == ("code", "math", "prose")
    folder = tmp_path / "store/data" / manifest.fingerprint
    tokenizer = load_tokenizer(folder)
    for split, domains in by_split.items():
        for name, documents in domains.items():
            files = [shard.file for shard in manifest.split(split).shards if shard.domain == name]
            tokens = np.concatenate([open_shard(folder / file) for file in files])
            assert tokenizer.decode(tokens.tolist(), skip_special_tokens=True) == "".join(documents), (split, name)
    assert {path.name for path in folder.glob("train-*.bin")} == {
        f"train-{name}-00000.bin" for name in manifest.domains
    }
    assert load_manifest(open_storage(str(folder))).corpus.startswith("mixture of code ")


def test_size_mb_caps_every_domain_before_the_split(texts):
    corpus = parse_corpus(f"mixture:{texts}").model_copy(update={"size_mb": 0.01})
    sizes: dict[str, int] = {}
    for _, document in open_corpus(corpus).documents():
        sizes[document.domain] = sizes.get(document.domain, 0) + document.bytes
    assert set(sizes) == {"code", "math", "prose"}
    assert all(0 < size <= 10_000 for size in sizes.values())


def test_a_mixture_is_known_by_its_content(texts, tmp_path):
    corpus = parse_corpus(f"mixture:{texts}")
    before = corpus_fingerprint(corpus)
    moved = texts.rename(tmp_path / "moved")
    assert corpus_fingerprint(parse_corpus(f"mixture:{moved}")) == before
    (moved / "code.jsonl").write_text(json.dumps({"text": "x = 1"}) + "\n")
    assert corpus_fingerprint(parse_corpus(f"mixture:{moved}")) != before


@pytest.mark.parametrize("text", ["mixture:nowhere", "mixture:."])
def test_a_folder_without_domains_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="must be a folder with a file or a folder of texts for each domain"):
        parse_corpus(text)


def test_the_demo_is_code_prose_and_worked_mathematics():
    corpus = parse_corpus("demo").model_copy(update={"size_mb": 0.05})
    found: dict[str, str] = {}
    for split, document in open_corpus(corpus).documents():
        if split == "train":
            found[document.domain] = found.get(document.domain, "") + document.text
    assert set(found) == {"code", "math", "prose"}
    assert "import " in found["code"]
    assert "Answer: " in found["math"]
    assert all(30_000 < len(text.encode()) <= 50_000 for text in found.values())
    assert "demo: generated arithmetic and algebra" in corpus.description


def test_worked_mathematics_is_the_same_everywhere_and_right():
    texts = [document.text for document in mixture.worksheets(60_000)]
    assert texts == [document.text for document in mixture.worksheets(60_000)]
    assert texts[0].splitlines()[2] == "Problem 1. Solve 4x + 16 = -28 for x."
    sums = products = 0
    for line in "\n".join(texts).splitlines():
        left, _, right = line.removesuffix(".").partition(" = ")
        if left.replace(" ", "").replace("+", "").isdigit() and right.isdigit():
            sums += 1
            assert sum(int(part) for part in left.split(" + ")) == int(right), line
        elif left.replace(" ", "").replace("*", "").isdigit() and right.isdigit():
            products += 1
            a, b = left.split(" * ")
            assert int(a) * int(b) == int(right), line
    assert sums > 20
    assert products > 50


class _Hub:
    """A stand-in for the `datasets` library: rows by repository."""

    def __init__(self, rows: dict[str, list[dict[str, Any]]]) -> None:
        self.rows, self.calls = rows, []

    def load_dataset(self, repository, name, *, split, streaming, revision):
        self.calls.append((repository, name, split, streaming, revision))
        if repository not in self.rows:
            raise ConnectionError("Couldn't reach the Hub\nat length")
        return iter(self.rows[repository])

    def disable_progress_bars(self):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("PODIUM_CACHE", str(tmp_path / "cache"))
    stand_in = _Hub(
        {
            "codeparrot/codeparrot-clean": [{"content": f"x = {n}\n" * 20} for n in range(500)],
            "allenai/math_qa": [{"Problem": f"what is {n} ?", "Rationale": f"it is {n}"} for n in range(500)],
            "allenai/c4": [{"text": f"Once upon a time {n}. " * 5} for n in range(500)],
        }
    )
    monkeypatch.setattr(datasets, "load_dataset", stand_in.load_dataset)
    return stand_in


def test_the_hubs_texts_are_fetched_once_as_far_as_asked_for(hub):
    corpus = parse_corpus("mixture").model_copy(update={"size_mb": 0.004})
    documents = list(open_corpus(corpus).documents())
    assert {call[:2] for call in hub.calls} == {
        ("codeparrot/codeparrot-clean", None),
        ("allenai/math_qa", None),
        ("allenai/c4", "en"),
    }
    assert all(call[3] for call in hub.calls), "streamed: C4 has 300 GB"
    texts = {document.domain: document.text for _, document in documents}
    assert texts["math"].startswith("Problem: what is ")
    assert "\nRationale: it is " in texts["math"]
    assert "CodeParrot" in corpus.description
    calls = len(hub.calls)
    again = parse_corpus("mixture").model_copy(update={"size_mb": 0.004})
    assert corpus_fingerprint(again) == corpus_fingerprint(corpus)
    assert len(hub.calls) == calls


def test_a_hub_that_is_away_is_said_with_what_else_serves(hub):
    hub.rows = {}
    with pytest.raises(DataError, match=r"domain 'code': codeparrot/codeparrot-clean can't be fetched .* or demo"):
        open_corpus(parse_corpus("mixture"))


def test_half_a_fetch_is_none(hub, tmp_path):
    def broken():
        yield {"text": "one"}
        raise ConnectionError("gone")

    hub.rows["allenai/c4"] = broken()
    with pytest.raises(DataError, match="gone"):
        mixture.fetch_hub_texts("prose", 1000)
    assert list((tmp_path / "cache/corpora/hub").iterdir()) == []


# ---- a tokenizer that is given ----


@pytest.fixture
def tokenizer_folder(texts, tmp_path):
    manifest = prepare(
        PrepareConfig(corpus=parse_corpus(f"mixture:{texts}"), vocab_size=300), open_storage(str(tmp_path))
    )
    return tmp_path / "data" / manifest.fingerprint


def test_a_given_tokenizer_is_taken_as_it_is(texts, tokenizer_folder, tmp_path):
    corpus = parse_corpus(f"mixture:{texts}")
    given = PrepareConfig(corpus=corpus, vocab_size=400, tokenizer=str(tokenizer_folder))
    manifest = prepare(given, open_storage(str(tmp_path)))
    assert manifest.tokenizer_size == load_tokenizer(tokenizer_folder).get_vocab_size()
    assert data_fingerprint(given) != data_fingerprint(PrepareConfig(corpus=corpus, vocab_size=400))
    with pytest.raises(DataError, match="vocab_size: must be at least the tokenizer's 300, got 260"):
        prepare(given.model_copy(update={"vocab_size": 260}), open_storage(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"data.tokenizer: .* no tokenizer.json there"):
        data_fingerprint(given.model_copy(update={"tokenizer": str(texts)}))


def test_the_hubs_tokenizer_is_known_by_its_commit_without_a_fetch(texts):
    config = PrepareConfig(corpus=parse_corpus(f"mixture:{texts}"), vocab_size=50257, tokenizer="gpt2")
    assert len(data_fingerprint(config)) == 16
