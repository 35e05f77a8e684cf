"""`podium run STUDY --stages data`: the corpus of a study, tokenised into the store, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from podium.pipelines.cli.console import result, result_json, say

if TYPE_CHECKING:
    from podium.components.study.schema import Study


def prepare_data(study: Study, store: str, *, as_json: bool, dry_run: bool) -> None:
    """Prepare every dataset of the study. What is there already is not made again. Raises UserError, StorageError."""
    from podium.components.study import layout
    from podium.components.study.trials import datasets
    from podium.trainer.data.prepare import data_fingerprint, prepare
    from podium.trainer.storage import join_uri, normalise_uri, open_storage

    uri = normalise_uri(store)
    configs = {data_fingerprint(config): config for config in datasets(study).values()}
    places = {fingerprint: join_uri(uri, layout.data_key(fingerprint)) for fingerprint in configs}
    if not dry_run:
        storage = open_storage(uri)
        storage.probe()
        for fingerprint, config in configs.items():
            manifest = prepare(config, storage)
            counts = ", ".join(f"{name} {split.tokens:,} tokens" for name, split in manifest.splits.items())
            say(f"{fingerprint}: {counts}")
    if as_json:
        result_json({"datasets": places})
    else:
        for place in places.values():
            result(place)
