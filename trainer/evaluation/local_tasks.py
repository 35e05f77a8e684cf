"""SmallBench from local files: the four tasks in the formats in which they are handed out, read into the hub's columns.

Of each task the validation examples are read, since the test labels are not public. Formats: `.tsv` and `.csv` with a
header, `.jsonl`, `.json` (a list), `.parquet`; the hub's columns, and those of the GLUE, SuperGLUE and BoolQ downloads.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podium.trainer.errors import DataError, Problem

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """The hub's columns of a task, what they are called elsewhere, and its labels in words."""

    columns: tuple[str, ...]
    aliases: Mapping[str, str]
    labels: Mapping[str, int]


_YES_NO = {"false": 0, "true": 1, "no": 0, "yes": 1}
FORMATS = {
    "sst2": Format(("sentence",), {}, {"negative": 0, "positive": 1}),
    "rte": Format(
        ("sentence1", "sentence2"),
        {"premise": "sentence1", "hypothesis": "sentence2"},
        {"entailment": 0, "not_entailment": 1},
    ),
    "mrpc": Format(
        ("sentence1", "sentence2"),
        {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
        {"not_equivalent": 0, "equivalent": 1},
    ),
    "boolq": Format(("question", "passage"), {"answer": "label"}, _YES_NO),
}
_VALIDATION = re.compile(r"(^|[^a-z])(dev|val|valid|validation)([^a-z]|$)")
_OTHER_SPLIT = re.compile(r"(^|[^a-z])(train|test)([^a-z]|$)")


def read_task(folder: Path, task: str) -> list[Row] | None:
    """The task's validation examples as the hub has them: text columns, integer `label`, `idx`. None: no such file.

    A task's files have its name (`sst2.tsv`, `SST-2/dev.tsv`, `super_glue/boolq/validation-00000-of-00001.parquet`);
    those named train or test are left alone. Raises DataError for a file that can't be read as the task.
    """
    paths = _files_of(folder, task)
    if not paths:
        return None
    rows = [row for path in paths for row in _read_rows(path, FORMATS[task])]
    return [{**row, "idx": index} for index, row in enumerate(rows)]


def _files_of(folder: Path, task: str) -> list[Path]:
    candidates = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in _READERS and any(_is_named(part, task) for part in path.relative_to(folder).parts)
    ]
    validation = [path for path in candidates if _VALIDATION.search(path.stem.lower())]
    return validation or [path for path in candidates if not _OTHER_SPLIT.search(path.stem.lower())]


def _is_named(part: str, task: str) -> bool:
    return re.sub(r"[^a-z0-9]", "", part.lower()).startswith(task)


def _read_rows(path: Path, form: Format) -> list[Row]:
    try:
        raw = _READERS[path.suffix](path)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise DataError(Problem(str(path), f"can't be read: {error}")) from None
    if not raw:
        raise DataError(Problem(str(path), "has no examples"))
    wanted = {*form.columns, "label"}
    found = []
    for number, row in enumerate(raw, 1):
        if not isinstance(row, Mapping):
            raise DataError(Problem(f"{path}:{number}", f"must be an object, got {row!r}"))
        renamed = {form.aliases.get(name, name): value for name, value in row.items()}
        missing = sorted(wanted - {name for name, value in renamed.items() if value is not None})
        if missing:
            had = ", ".join(str(name) for name in row)
            raise DataError(Problem(f"{path}:{number}", f"must have {', '.join(sorted(wanted))}, got {had}"))
        texts = {name: str(renamed[name]) for name in form.columns}
        found.append({**texts, "label": _label(renamed["label"], form, f"{path}:{number}")})
    return found


def _label(value: Any, form: Format, where: str) -> int:
    text = str(value).strip().lower()
    if text in ("0", "1"):
        return int(text)
    if text in form.labels:
        return form.labels[text]
    allowed = ", ".join(["0", "1", *form.labels])
    raise DataError(Problem(where, f"label must be one of {allowed}, got {value!r}"))


def _tab_separated(path: Path) -> list[Row]:
    # GLUE's files hold bare quotation marks: there they are text like any other
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _comma_separated(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _json_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _json(path: Path) -> list[Row]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, list):
        raise ValueError("must be a list of objects")
    return content


def _parquet(path: Path) -> list[Row]:
    import pandas

    return [{str(name): value for name, value in row.items()} for row in pandas.read_parquet(path).to_dict("records")]


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".tsv": _tab_separated,
    ".csv": _comma_separated,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
