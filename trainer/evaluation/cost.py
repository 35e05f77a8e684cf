"""Latency, throughput and memory of a subject, into `metrics.json` and their own files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from podium.trainer.evaluation import profile
from podium.trainer.evaluation.metrics import LATENCY_FIELDS, Metrics
from podium.trainer.evaluation.request import EvaluationRequest
from podium.trainer.evaluation.subject import Subject
from podium.trainer.gpt2_config import GPT2Config
from podium.trainer.storage import Storage

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
    model = subject.config.model
    positions = model.n_positions if isinstance(model, GPT2Config) else None
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
