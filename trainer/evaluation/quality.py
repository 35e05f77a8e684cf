"""Perplexity and SmallBench of a subject, into `metrics.json` and the latter's own file."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from podium.trainer.data.loader import evaluation_batches
from podium.trainer.data.manifest import TEST, TOKEN_BYTES
from podium.trainer.data.tokenizer import end_of_text, token_bytes
from podium.trainer.errors import DataError
from podium.trainer.evaluation.local_tasks import Row, read_task
from podium.trainer.evaluation.metrics import Metrics
from podium.trainer.evaluation.perplexity import Evaluation, evaluate_loss
from podium.trainer.evaluation.request import EvaluationRequest
from podium.trainer.evaluation.smallbench import TASKS, harness_version, mean_accuracy, run_smallbench
from podium.trainer.evaluation.subject import Subject
from podium.trainer.storage import Storage, open_storage

if TYPE_CHECKING:
    from podium.trainer.evaluation.language_model import PodiumLM

SMALLBENCH = "smallbench_results.json"
Examples = dict[str, list[Row] | None]
_SPLIT_FIELDS = ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")
_TASK_FIELDS = {"accuracy": "accuracy", "stderr": "standard_error", "majority": "majority", "n": "n"}


def put_perplexity(metrics: Metrics, subject: Subject, request: EvaluationRequest) -> None:
    """Dev and test over the whole split, and dev as it was declared for training (the number that verdicts use)."""
    why_not = request.why_not("perplexity")
    if why_not is not None:
        metrics.miss(
            [f"{split}_{name}" for split in ("dev", "test", "declared_dev") for name in _SPLIT_FIELDS], why_not
        )
        return
    config = subject.config
    batches = request.max_eval_batches
    dev = _evaluate(subject, config.data.validation_split, batches)
    _put_split(metrics, "dev", dev)
    _put_split(metrics, "test", *_test(subject, batches))
    declared = config.evaluation.sequences
    if batches is not None:
        _put_split(metrics, "declared_dev", None, "not measured whole (--max-eval-batches)")
    else:
        found = dev if declared is None else _evaluate(subject, config.data.validation_split, None, declared)
        _put_split(metrics, "declared_dev", found)


def _test(subject: Subject, batches: int | None) -> tuple[Evaluation | None, str]:
    assert subject.manifest is not None
    if TEST not in subject.manifest.splits:
        return None, f"the dataset has no split {TEST!r}"
    try:
        return _evaluate(subject, TEST, batches), ""
    except DataError as error:
        return None, error.message


def _evaluate(subject: Subject, split: str, batches: int | None, sequences: int | None = None) -> Evaluation:
    assert subject.data is not None
    config = subject.config
    read = evaluation_batches(
        subject.data,
        split,
        sequence_length=config.data.sequence_length,
        batch_sequences=config.evaluation.batch_sequences,
        sequences=sequences,
    )
    return evaluate_loss(
        subject.model,
        islice(read, batches),
        device=subject.device,
        autocast=subject.autocast,
        token_bytes=token_bytes(subject.data) if (subject.data / TOKEN_BYTES).is_file() else None,
    )


def _put_split(metrics: Metrics, name: str, found: Evaluation | None, why_not: str = "") -> None:
    if found is None:
        metrics.miss([f"{name}_{field}" for field in _SPLIT_FIELDS], why_not)
        return
    for field, value in asdict(found).items():
        metrics.put(f"{name}_{field}", value, "the dataset has no tokenizer, or no predicted token stands for any byte")


def read_examples(request: EvaluationRequest, scratch: Path) -> Examples | None:
    """SmallBench's local examples by task (None: no file of it); None where they come from the hub or are not needed.

    Raises DataError for a folder without any task's files, and for a file that is not in its task's format.
    """
    if request.why_not("smallbench") is not None or request.smallbench == "hub":
        return None
    folder = _task_folder(request.smallbench, scratch)
    examples = {task: read_task(folder, task) for task in TASKS}
    if not any(examples.values()):
        raise DataError(
            f"--smallbench: must be hub, off, or a folder with files of {', '.join(TASKS)}, got {request.smallbench}"
        )
    return examples


def put_smallbench(
    metrics: Metrics, subject: Subject, request: EvaluationRequest, output: Storage, examples: Examples | None
) -> None:
    """Accuracy of every task with its standard error; each example's outcome goes into the file."""
    fields = [f"smallbench_{task}_{name}" for task in TASKS for name in _TASK_FIELDS]
    why_not = request.why_not("smallbench")
    if why_not is None and subject.tokenizer is None:
        why_not = "the dataset has no tokenizer (--tokenizer gives one)"
    if why_not is not None:
        metrics.miss([*fields, "smallbench_mean_accuracy"], why_not)
        return
    results = run_smallbench(lambda: _language_model(subject), examples=examples, limit=request.smallbench_limit)
    for task, result in results.items():
        for name, field in _TASK_FIELDS.items():
            metrics.put(f"smallbench_{task}_{name}", getattr(result, field), result.reason or "only one example")
    mean = mean_accuracy(results)
    metrics.put("smallbench_mean_accuracy", mean, "not every task was measured")
    output.write_json(
        SMALLBENCH,
        {
            "tasks": {task: asdict(result) for task, result in results.items()},
            "mean_accuracy": mean,
            "source": request.smallbench,
            "limit": request.smallbench_limit,
            "harness": harness_version(),
            "zero_shot": True,
            "unmeasured": {task: result.reason for task, result in results.items() if result.reason},
        },
    )


def _task_folder(uri: str, scratch: Path) -> Path:
    """A local folder with what lies at `uri`, fetched where it is remote."""
    storage = open_storage(uri)
    keys = storage.list()
    if not keys or storage.local_path(keys[0]) is not None:
        return Path(storage.uri.removeprefix("file://"))
    folder = scratch / "smallbench"
    for key in keys:
        storage.download(key, folder / key)
    return folder


def _language_model(subject: Subject) -> PodiumLM:
    from podium.trainer.evaluation.language_model import PodiumLM

    assert subject.tokenizer is not None
    return PodiumLM(
        subject.model,
        subject.tokenizer,
        end_of_text=end_of_text(subject.tokenizer),
        max_length=subject.config.data.sequence_length,
        device=subject.device,
        autocast=subject.autocast,
    )
