"""The evaluation of one checkpoint: every part that was asked for, and the files that say what it found."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from podium.trainer.evaluation.cost import put_cost
from podium.trainer.evaluation.identity import put_identity
from podium.trainer.evaluation.metrics import Metrics, summary
from podium.trainer.evaluation.quality import put_perplexity, put_smallbench, read_examples
from podium.trainer.evaluation.request import EvaluationRequest
from podium.trainer.evaluation.subject import open_subject
from podium.trainer.storage import open_storage

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
    with TemporaryDirectory() as scratch:
        subject = open_subject(request, Path(scratch))
        examples = read_examples(request, Path(scratch))
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
