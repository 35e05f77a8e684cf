"""A corpus that is too small for its study, found before a run is registered."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from podium.components.study.schema import Study
    from podium.trainer.data.prepare import PrepareConfig

PLENTY_BLOCKS = 1000
"""A text of so many bytes for each token of a block has that block in every split, whatever the tokenizer: a twentieth
of it is 50 bytes a token, and ten are many. Only a smaller one is worth tokenising to see."""


def check_corpus(study: Study) -> None:
    """Refuse a missing or empty corpus, and one with a split shorter than one block. Raises DataError.

    A small corpus is tokenised for this, in a scratch folder; of a large one, and of the hub's, nothing is read twice.
    """
    from podium.components.study.design import variants
    from podium.components.study.trials import dataset_config, variant_config
    from podium.trainer.data.corpora import open_corpus
    from podium.trainer.data.manifest import check_lengths
    from podium.trainer.data.prepare import data_fingerprint, prepare
    from podium.trainer.storage import open_storage

    first = next(iter(study.stages))
    lengths: dict[str, tuple[PrepareConfig, int]] = {}
    for variant in variants(study):
        config, length = dataset_config(study, variant), variant_config(study, first, variant).data.sequence_length
        key = config.model_dump_json()
        lengths[key] = (config, max(length, lengths[key][1] if key in lengths else 0))
    for config, length in lengths.values():
        if config.corpus.source == "fineweb":
            data_fingerprint(config)  # finds the shards, and looks into those that lie here
            continue
        on_hub = config.corpus.source == "wikitext-2" and config.corpus.path is None
        if on_hub or open_corpus(config.corpus).bytes > PLENTY_BLOCKS * (length + 1):
            continue
        with tempfile.TemporaryDirectory(prefix="podium-check-") as scratch:
            check_lengths(prepare(config, open_storage(scratch)), length)
