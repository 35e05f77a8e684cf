"""The three domains' texts from the Hugging Face hub: as much as is asked for, fetched once into the user's cache.

What is fetched becomes a file of JSON lines, so that from then on the corpus is known by its content and needs no hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podium.trainer.data.manifest import default_cache
from podium.trainer.errors import DataError
from podium.trainer.storage import SCRATCH


@dataclass(frozen=True)
class HubText:
    """A dataset of the hub, and which of its fields make a document."""

    repository: str
    fields: tuple[str, ...]
    """Joined by line breaks, each under its name where there are several."""
    name: str | None = None
    revision: str | None = None
    """Branch or commit; None: the default branch as it is when it is fetched."""


HUB_TEXTS = {
    "code": HubText("codeparrot/codeparrot-clean", ("content",)),
    # the dataset itself is a script, which `datasets` does not run any more; the hub converts it to tables
    "math": HubText("allenai/math_qa", ("Problem", "Rationale"), revision="refs/convert/parquet"),
    "prose": HubText("allenai/c4", ("text",), name="en"),
}
"""Domain → its text: CodeParrot, MathQA and C4."""


def fetch(domain: str, size: int) -> Path:
    """A .jsonl of the first `size` bytes of a domain's documents. Raises DataError where they can't be had."""
    wanted = HUB_TEXTS[domain]
    folder = default_cache() / "corpora" / "hub"
    path = folder / f"{wanted.repository.replace('/', '--')}-{size}.jsonl"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    temp = folder / f"{SCRATCH}{os.getpid()}-{path.name}"
    try:
        with temp.open("w", encoding="utf-8") as file:
            for text in _documents(domain, wanted, size):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    return path


def _documents(domain: str, wanted: HubText, size: int) -> Iterator[str]:
    instead = f"give a file, a folder or s3://… for {domain}, or demo"
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"domain {domain!r} from the hub needs the 'datasets' extra (podium[datasets]); {instead}"
        ) from None
    datasets.disable_progress_bars()
    fetched = 0
    try:
        rows = datasets.load_dataset(
            wanted.repository, wanted.name, split="train", streaming=True, revision=wanted.revision
        )
        for row in rows:
            text = _text(row, wanted.fields)
            fetched += len(text.encode())
            yield text
            if fetched >= size:
                return
    except Exception as error:  # noqa: BLE001  the library raises errors of five others', none with a common base
        first = str(error).strip().partition("\n")[0]
        raise DataError(
            f"domain {domain!r}: {wanted.repository} can't be fetched from the hub ({first}); {instead}"
        ) from None


def _text(row: Mapping[str, Any], fields: tuple[str, ...]) -> str:
    if len(fields) == 1:
        return str(row[fields[0]])
    return "\n".join(f"{field}: {row[field]}" for field in fields)
