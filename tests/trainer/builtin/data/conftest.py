"""Small datasets and the real text beside the project."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from podium.trainer.builtin.data.manifest import Manifest, Split
from podium.trainer.builtin.data.shards import ShardWriter

MakeDataset = Callable[..., Path]


@pytest.fixture(scope="session")
def wikitext() -> Path:
    root = Path(__file__).parents[4] / os.environ.get("PODIUM_TEST_DATA", "../shared/data")
    if not (root / "wikitext-2" / "test.txt").is_file():
        pytest.skip(f"no wikitext-2 in PODIUM_TEST_DATA ({root})")
    return root / "wikitext-2"


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    def make(tokens: int, *, shard_tokens: int = 1000, split: str = "train", name: str = "dataset") -> Path:
        """A dataset whose token at place i is i, so that a window shows where it was cut."""
        folder = tmp_path / name
        folder.mkdir()
        with ShardWriter(folder, split, shard_tokens=shard_tokens) as writer:
            writer.append(np.arange(tokens, dtype=np.uint16))
        manifest = Manifest(
            fingerprint=f"{name}-{tokens}",
            corpus="numbers",
            corpus_fingerprint="0",
            vocab_size=65536,
            tokenizer_size=65536,
            end_of_text=0,
            splits={split: Split(tokens=tokens, bytes=tokens, documents=1, shards=writer.shards)},
            files={},
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        return folder

    return make
