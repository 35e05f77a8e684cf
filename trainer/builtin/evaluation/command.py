"""`python -m podium.trainer evaluate`. Importable without torch, which loads only when something is measured."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from podium.trainer.builtin.evaluation.metrics import EvaluationRequest, Part
from podium.trainer.trial.errors import ConfigError


def evaluate_command(
    checkpoint: Annotated[
        str,
        typer.Option(help="model-*.safetensors, a run's folder (or FOLDER/best, FOLDER/final), models:/NAME/VERSION."),
    ],
    output: Annotated[str, typer.Option(help="Folder or URI for metrics.json, summary.md and the parts' files.")],
    data: Annotated[
        str | None, typer.Option(help="Prepared dataset; by default the one the run was trained on.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer.json; by default the dataset's.")] = None,
    only: Annotated[str | None, typer.Option(help="One part: perplexity, smallbench, latency or throughput.")] = None,
    smallbench: Annotated[str, typer.Option(help="hub, off, or a folder or URI with the tasks' files.")] = "hub",
    smallbench_limit: Annotated[int | None, typer.Option(help="Examples a task; all by default.")] = None,
    skip_smallbench: Annotated[bool, typer.Option("--skip-smallbench", help="Leave SmallBench out.")] = False,
    skip_latency: Annotated[bool, typer.Option("--skip-latency", help="Leave latency out.")] = False,
    skip_throughput: Annotated[bool, typer.Option("--skip-throughput", help="Leave throughput out.")] = False,
    max_eval_batches: Annotated[int | None, typer.Option(help="Batches a split for a quick look.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of PyTorch.")] = None,
) -> None:
    """Measure a trained model: perplexity, bits per byte, SmallBench, latency, throughput, memory.

    \b
    podium.trainer evaluate --checkpoint runs/first --output runs/first/evaluation
    podium.trainer evaluate --checkpoint runs/first/best --output OUT --skip-smallbench --max-eval-batches 20
    podium.trainer evaluate --checkpoint model-step-900.safetensors --data DATA --output OUT --only smallbench

    What can't be measured is null in metrics.json, with the reason under `unmeasured`.
    """
    skips: dict[Part, bool] = {"smallbench": skip_smallbench, "latency": skip_latency, "throughput": skip_throughput}
    request = build_request(
        {
            "checkpoint": checkpoint,
            "output": output,
            "data": data,
            "tokenizer": tokenizer,
            "only": only,
            "smallbench": smallbench,
            "smallbench_limit": smallbench_limit,
            "skip": tuple(part for part, skipped in skips.items() if skipped),
            "max_eval_batches": max_eval_batches,
            "device": device,
            "precision": precision,
            "threads": threads,
        }
    )
    from podium.trainer.builtin.evaluation.metrics import summary
    from podium.trainer.builtin.evaluation.run import evaluate_checkpoint

    typer.echo(summary(evaluate_checkpoint(request)), nl=False)


def build_request(fields: dict[str, Any]) -> EvaluationRequest:
    """The request that the flags say. Raises ConfigError listing every flag that is wrong."""
    try:
        return EvaluationRequest.model_validate(fields)
    except ValidationError as error:
        raise ConfigError.from_validation(error, source="evaluate") from None
