"""SmallBench: SST-2, RTE, MRPC and BoolQ, zero-shot, through lm-eval, from the hub or from local files.

Prompts, answers and metrics are those of lm-eval's own tasks (a test compares them), so that figures compare with
published ones. Each answer is scored by its log-likelihood; accuracy is the share of examples where the right one wins.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from podium.trainer.trial.errors import DataError, Problem

if TYPE_CHECKING:
    from podium.trainer.builtin.evaluation.subject import PodiumLM


# SmallBench from local files: the four tasks in the formats in which they are handed out, read into the hub's
# columns.
#
# Of each task the validation examples are read, since the test labels are not public. Formats: `.tsv` and `.csv` with
# a header, `.jsonl`, `.json` (a list), `.parquet`; the hub's columns, and those of the GLUE, SuperGLUE and BoolQ
# downloads.

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


Task = dict[str, Any]

TASKS: dict[str, Task] = {
    "sst2": {
        "dataset_path": "nyu-mll/glue",
        "dataset_name": "sst2",
        "doc_to_text": "{{sentence}}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        "doc_to_choice": ["negative", "positive"],
        "metadata": {"version": 1.0},
    },
    "rte": {
        "dataset_path": "nyu-mll/glue",
        "dataset_name": "rte",
        "doc_to_text": "{{sentence1}}\nQuestion: {{sentence2}} True or False?\nAnswer:",
        "doc_to_choice": ["True", "False"],
        "metadata": {"version": 1.0},
    },
    "mrpc": {
        "dataset_path": "nyu-mll/glue",
        "dataset_name": "mrpc",
        "doc_to_text": "Sentence 1: {{sentence1}}\nSentence 2: {{sentence2}}\n"
        "Question: Do both sentences mean the same thing?\nAnswer:",
        "doc_to_choice": ["no", "yes"],
        "metadata": {"version": 1.0},
    },
    "boolq": {
        "dataset_path": "aps/super_glue",
        "dataset_name": "boolq",
        "doc_to_text": "{{passage}}\nQuestion: {{question}}?\nAnswer:",
        "doc_to_choice": ["no", "yes"],
        "metadata": {"version": 2.0},
    },
}


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task: either measured, or the reason why not."""

    accuracy: float | None = None
    standard_error: float | None = None
    """Sample standard deviation of the examples' correctness / √n; None for one example."""
    n: int | None = None
    majority: float | None = None
    """Accuracy of always giving the commonest label of these examples: what chance is worth here."""
    truncated: int | None = None
    """Prompts of which the beginning was cut off, since they were longer than the model's training sequences."""
    correct: tuple[int, ...] = ()
    """1 or 0 for each example, in order: two models are compared by pairs (McNemar)."""
    examples_sha256: str | None = None
    """Of the examples: pairs are pairs only where it is the same."""
    reason: str | None = None


def run_smallbench(
    make_model: Callable[[], PodiumLM], *, examples: Mapping[str, list[Row] | None] | None, limit: int | None = None
) -> dict[str, TaskResult]:
    """Every task's result, on local `examples` (see `local_tasks.read_task`), or with None on the hub's.

    A task that can't be measured (no file, no network, no harness) has a reason instead of numbers.
    """
    if examples is None and not _hub_answers():
        # read by the library when it is imported: what is in the cache serves, and nothing is retried for minutes
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        _be_quiet()
        import lm_eval  # noqa: F401
    except ImportError:
        return {task: TaskResult(reason="lm-eval is not installed (the extra smallbench)") for task in TASKS}
    model = make_model()
    results = {}
    for task in TASKS:
        rows = None if examples is None else examples[task]
        if examples is not None and rows is None:
            results[task] = TaskResult(reason="no file of its validation examples was given")
            continue
        try:
            samples = _evaluate(model, task, rows, limit)
        except Exception as error:  # noqa: BLE001 - one task that the hub does not give must not cost the others
            results[task] = TaskResult(reason=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        results[task] = _result(samples, model.truncated)
    return results


def harness_version() -> str | None:
    """`lm-eval 0.4.13`, or None where it is not installed."""
    try:
        return f"lm-eval {version('lm_eval')}"
    except PackageNotFoundError:
        return None


def mean_accuracy(results: Mapping[str, TaskResult]) -> float | None:
    """The mean over tasks; None unless every task was measured."""
    found = [result.accuracy for result in results.values() if result.accuracy is not None]
    return sum(found) / len(found) if found and len(found) == len(results) else None


def _evaluate(model: PodiumLM, task: str, rows: list[Row] | None, limit: int | None) -> list[dict[str, Any]]:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    config = {
        "task": task,
        **TASKS[task],
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    if rows is not None:
        from datasets import Dataset

        config["custom_dataset"] = lambda **_: {"validation": Dataset.from_list(rows)}
    loaded = ConfigurableTask(config=config)
    # its progress bars can't be switched off otherwise
    with contextlib.redirect_stderr(io.StringIO()):
        outcome = evaluate(lm=model, task_dict={task: loaded}, limit=limit, bootstrap_iters=0, log_samples=True)
    samples: list[dict[str, Any]] = outcome["samples"][task]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def _result(samples: Sequence[Mapping[str, Any]], truncated: int) -> TaskResult:
    correct = np.array([sample["acc"] for sample in samples], dtype=np.float64)
    labels = [sample["target"] for sample in samples]
    n = len(correct)
    return TaskResult(
        accuracy=float(correct.mean()),
        standard_error=float(correct.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
        n=n,
        majority=max(labels.count(label) for label in set(labels)) / n,
        truncated=truncated,
        correct=tuple(int(value) for value in correct),
        examples_sha256=hashlib.sha256("\n".join(sample["doc_hash"] for sample in samples).encode()).hexdigest(),
    )


def _hub_answers() -> bool:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=10).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _be_quiet() -> None:
    """Keep the harness's advice off the log of a step."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
