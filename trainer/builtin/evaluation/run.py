"""The evaluation of one checkpoint: every part that was asked for, and the files that say what it found."""

from __future__ import annotations

import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from podium.trainer.builtin.allocation import count_parameters
from podium.trainer.builtin.data.loader import evaluation_batches
from podium.trainer.builtin.data.manifest import TEST, TOKEN_BYTES, TRAIN
from podium.trainer.builtin.data.tokenizer import end_of_text, token_bytes
from podium.trainer.builtin.evaluation import profile
from podium.trainer.builtin.evaluation.metrics import (
    LATENCY_FIELDS,
    EvaluationRequest,
    Metrics,
    forward_flops_per_token,
    summary,
)
from podium.trainer.builtin.evaluation.perplexity import Evaluation, evaluate_loss
from podium.trainer.builtin.evaluation.smallbench import (
    TASKS,
    Row,
    harness_version,
    mean_accuracy,
    read_task,
    run_smallbench,
)
from podium.trainer.builtin.evaluation.subject import Subject, open_subject
from podium.trainer.builtin.models.build import measured_counts
from podium.trainer.builtin.outcome import versions
from podium.trainer.trial.errors import DataError
from podium.trainer.trial.process import scratch_folder
from podium.trainer.trial.storage import Storage, open_storage, sha256_of

if TYPE_CHECKING:
    from podium.trainer.builtin.evaluation.subject import PodiumLM


# The fields of `metrics.json` that say what was evaluated, where, and by which code.


def put_identity(metrics: Metrics, subject: Subject) -> None:
    """Checkpoint, sizes by part, training, data, device and versions."""
    config, about, manifest = subject.config, subject.about, subject.manifest
    model = config.model
    counts = count_parameters(model) if config.extension is None else measured_counts(subject.model)
    d_model, n_layers, n_heads, d_ff = model.dimensions
    length = config.data.sequence_length
    metrics.put("format_version", 1)
    metrics.put("checkpoint", subject.located.uri)
    metrics.put("checkpoint_sha256", sha256_of(subject.located.path))
    metrics.put("run", subject.located.run, "the weights do not lie in a run's folder")
    metrics.put_all({name: about[name] for name in ("step", "preset", "mode")})
    metrics.put_all(
        {
            "parameters_total": counts.total,
            "parameters_embedding": counts.embedding,
            "parameters_attention": counts.attention,
            "parameters_feed_forward": counts.feed_forward,
            "parameters_norm": counts.norm,
            "parameters_output": counts.output,
            "parameters_non_embedding": counts.total - counts.embedding - counts.output,
            "embedding_share": (counts.embedding + counts.output) / counts.total,
            "glu_expansion": d_ff / d_model,
            "d_model": d_model,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "head_size": d_model // n_heads,
            "d_ff": d_ff,
            "vocab_size": model.vocab_size,
            "tied_embeddings": model.tied_embeddings,
            "sequence_length": length,
            "forward_flops_per_token": forward_flops_per_token(counts, model.vocab_size, d_model, n_layers, length),
            "weights_mb": sum(p.numel() * p.element_size() for p in subject.model.parameters()) / 1e6,
            "checkpoint_mb": subject.located.path.stat().st_size / 1e6,
        }
    )
    tokens = about["metrics_summary"].get("tokens")
    metrics.put("training_tokens", tokens, "the checkpoint does not say")
    train = manifest.splits[TRAIN].tokens if manifest else None
    metrics.put("training_passes", tokens / train if tokens and train else None, "no dataset was read")
    metrics.put("training_val_loss", about["metrics_summary"].get("val_loss"), "not evaluated at this step in training")
    for name, value in (
        ("data_fingerprint", manifest.fingerprint if manifest else None),
        ("corpus", manifest.corpus if manifest else None),
        ("tokenizer_sha256", manifest.tokenizer_sha256 if manifest else None),
    ):
        metrics.put(name, value, "the dataset has no tokenizer" if manifest else "no dataset was read")
    ran = versions(subject.device, 1)
    metrics.put("device", subject.device.type)
    metrics.put("device_name", ran.device, "unknown")
    metrics.put("dtype", str(subject.dtype).removeprefix("torch."))
    metrics.put("threads", ran.threads, "unknown")
    metrics.put("cuda_version", ran.cuda, f"the device is {subject.device.type}")
    metrics.put("torch_version", ran.torch, "unknown")
    metrics.put("python_version", ran.python, "unknown")
    metrics.put("podium_version", ran.podium)
    metrics.put("commit", ran.commit, "no checkout, and PODIUM_COMMIT is not set")
    metrics.put("image", ran.image, "PODIUM_IMAGE is not set")


# Perplexity and SmallBench of a subject, into `metrics.json` and the latter's own file.

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
    from podium.trainer.builtin.evaluation.subject import PodiumLM

    assert subject.tokenizer is not None
    return PodiumLM(
        subject.model,
        subject.tokenizer,
        end_of_text=end_of_text(subject.tokenizer),
        max_length=subject.config.data.sequence_length,
        device=subject.device,
        autocast=subject.autocast,
    )


# Latency, throughput and memory of a subject, into `metrics.json` and their own files.

LATENCY, THROUGHPUT = "latency_results.json", "throughput_results.json"


def put_cost(metrics: Metrics, subject: Subject, request: EvaluationRequest, output: Storage) -> None:
    """Measure what the request asks for and write the files of it."""
    no_latency, no_throughput = request.why_not("latency"), request.why_not("throughput")
    profile.reset_peak_memory(subject.device)
    if no_latency is None:
        _measure_latency(metrics, subject, output)
    else:
        metrics.miss(
            [f"latency_{length}_{name}" for length in profile.LATENCY_LENGTHS for name in LATENCY_FIELDS], no_latency
        )
    if no_throughput is None:
        _measure_throughput(metrics, subject, output)
    else:
        metrics.miss(_throughput_fields(), no_throughput)
    peak, what = profile.peak_memory(subject.device)
    measured = no_latency is None or no_throughput is None
    metrics.put("peak_memory_mb", peak if measured else None, what if measured else str(no_latency))
    metrics.put("peak_memory_is", what)


def _measure_latency(metrics: Metrics, subject: Subject, output: Storage) -> None:
    positions = subject.config.model.most_positions
    measured = [
        profile.measure_latency(
            subject.model,
            length,
            vocab_size=subject.config.model.vocab_size,
            trained_length=subject.config.data.sequence_length,
            device=subject.device,
            autocast=subject.autocast,
        )
        for length in profile.LATENCY_LENGTHS
        if positions is None or length <= positions
    ]
    for length in profile.LATENCY_LENGTHS:
        if positions is not None and length > positions:
            why = f"the model has {positions} positions"
            metrics.miss([f"latency_{length}_{name}" for name in LATENCY_FIELDS], why)
    for one in measured:
        figures = asdict(one)
        metrics.put_all({f"latency_{one.sequence_length}_{name}": figures[name] for name in LATENCY_FIELDS})
    output.write_json(
        LATENCY,
        {
            "what": "one eager forward pass, batch 1, logits of every position",
            **_circumstances(metrics),
            "trained_sequence_length": subject.config.data.sequence_length,
            "results": profile.rows(measured),
        },
    )


def _throughput_fields() -> list[str]:
    by_batch = [f"throughput_batch_{batch}_tokens_per_second" for batch in profile.THROUGHPUT_BATCHES]
    return [*by_batch, "throughput_tokens_per_second", "throughput_best_batch"]


def _measure_throughput(metrics: Metrics, subject: Subject, output: Storage) -> None:
    length = subject.config.data.sequence_length
    measured, unmeasured = [], {}
    for batch in profile.THROUGHPUT_BATCHES:
        name = f"throughput_batch_{batch}_tokens_per_second"
        if subject.device.type == "cpu" and batch > profile.CPU_LARGEST_BATCH:
            unmeasured[name] = f"on a CPU only batches up to {profile.CPU_LARGEST_BATCH} are timed"
            metrics.put(name, None, unmeasured[name])
            continue
        found = profile.measure_throughput(
            subject.model,
            batch,
            length,
            vocab_size=subject.config.model.vocab_size,
            device=subject.device,
            autocast=subject.autocast,
        )
        if found is None:
            unmeasured[name] = f"out of memory at batch {batch} × {length}"
            metrics.put(name, None, unmeasured[name])
            continue
        measured.append(found)
        metrics.put(name, found.tokens_per_second)
    best = max(measured, key=lambda one: one.tokens_per_second, default=None)
    nothing = "no batch fits into memory"
    metrics.put("throughput_tokens_per_second", best.tokens_per_second if best else None, nothing)
    metrics.put("throughput_best_batch", best.batch if best else None, nothing)
    output.write_json(
        THROUGHPUT,
        {
            "what": "eager forward passes, logits of every position, by the median pass",
            **_circumstances(metrics),
            "results": profile.rows(measured),
            "unmeasured": unmeasured,
        },
    )


def _circumstances(metrics: Metrics) -> dict[str, Any]:
    return {name: metrics.values[name] for name in ("device", "device_name", "dtype", "threads", "torch_version")}


METRICS, SUMMARY = "metrics.json", "summary.md"


def evaluate_checkpoint(request: EvaluationRequest) -> dict[str, Any]:
    """Measure, write the files into `request.output` (`metrics.json` last) and return the metrics.

    Raises UserError for a checkpoint, dataset, tokenizer, task file or output that can't serve, before anything is
    measured.
    """
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    output = open_storage(request.output)
    began = time.perf_counter()
    with scratch_folder("evaluate") as scratch:
        subject = open_subject(request, scratch)
        examples = read_examples(request, scratch)
        output.probe()
        metrics = Metrics()
        put_identity(metrics, subject)
        # first what is timed, in a process that has done nothing else
        put_cost(metrics, subject, request, output)
        put_perplexity(metrics, subject, request)
        put_smallbench(metrics, subject, request, output, examples)
    metrics.put("evaluation_seconds", time.perf_counter() - began)
    found = metrics.to_json()
    output.write_text(SUMMARY, summary(found))
    output.write_json(METRICS, found)
    return found
