"""The dataset of a run by hand on several domains: one that is prepared already, or a corpus made ready on the spot."""

from __future__ import annotations

from podium.trainer.data.corpora import CorpusConfig, parse_corpus
from podium.trainer.data.prepare import PrepareConfig, dataset_key, prepare
from podium.trainer.errors import ConfigError, DataError, Problem
from podium.trainer.moe_presets import TINY_VOCABULARY
from podium.trainer.storage import MANIFEST, Storage, join_uri, open_storage

GPT2_VOCABULARY = 50257


def dataset_of(data: str | None, size_mb: float | None, default_mb: float, source: str | None, store: Storage) -> str:
    """URI of the dataset that `--data` means: a prepared one, or a corpus that is prepared below `store`.

    Without `data` it is CodeParrot, MathQA and C4 from the hub, or the demo corpus where there is no hub; what is used
    is said. `source` is the model's: GPT-2's tokens for pretrained weights (None: a small vocabulary of the corpus's
    own). Raises DataError and ConfigError for what can't be had.
    """
    if data is not None and open_storage(data).exists(MANIFEST):
        if size_mb is not None:
            raise ConfigError(Problem("--size-mb", f"is for a corpus; {data} is a prepared dataset"))
        return data
    corpora = [parse_corpus("mixture" if data is None else data)]
    if corpora[0].source != "mixture":
        raise ConfigError(
            Problem("--data", f"must be a prepared dataset, mixture, mixture:FOLDER or demo here, got {data!r}")
        )
    if data is None:
        corpora.append(parse_corpus("demo"))
    for index, corpus in enumerate(corpora):
        try:
            return _prepared(corpus.model_copy(update={"size_mb": size_mb or default_mb}), source, store)
        except DataError as error:
            if index + 1 == len(corpora):
                raise
            print(f"warning: {error}\nwarning: the demo corpus is used instead (--data demo)", flush=True)
    raise AssertionError("unreachable")


def _prepared(corpus: CorpusConfig, source: str | None, store: Storage) -> str:
    config = (
        PrepareConfig(corpus=corpus, vocab_size=TINY_VOCABULARY)
        if source is None
        else PrepareConfig(corpus=corpus, vocab_size=GPT2_VOCABULARY, tokenizer=source)
    )
    store.probe()
    manifest = prepare(config, store)
    print(f"data {manifest.fingerprint}: {manifest.corpus}", flush=True)
    return join_uri(store.uri, dataset_key(manifest.fingerprint))
