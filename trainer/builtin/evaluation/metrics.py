"""`metrics.json`: flat, named fields, and for every null among them the reason in `unmeasured`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from podium.trainer.trial.result import ParameterCounts
from podium.trainer.trial.section import Section

Value = str | int | float | bool | None

LATENCY_FIELDS = ("median_ms", "p95_ms", "mean_ms", "min_ms")

_TITLES = {"dev": "dev", "test": "test", "declared_dev": "dev, as declared for training"}
_TASKS = ("sst2", "rte", "mrpc", "boolq")


class Metrics:
    """Collects fields. A value that is missing or not finite becomes null, with the reason why."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.unmeasured: dict[str, str] = {}

    def put(self, name: str, value: Value, why_not: str = "") -> None:
        """Set a field; `why_not` is said where `value` is None."""
        if isinstance(value, float) and not math.isfinite(value):
            self.values[name], self.unmeasured[name] = None, f"not finite: {value}"
        elif value is None:
            assert why_not, f"{name}: a null needs a reason"
            self.values[name], self.unmeasured[name] = None, why_not
        else:
            self.values[name] = value

    def put_all(self, values: Mapping[str, Value], why_not: str = "") -> None:
        """Set several fields."""
        for name, value in values.items():
            self.put(name, value, why_not)

    def miss(self, names: Iterable[str], why_not: str) -> None:
        """Fields that were not measured, all for one reason."""
        for name in names:
            self.put(name, None, why_not)

    def to_json(self) -> dict[str, Any]:
        """The fields in the order they were set, then `unmeasured`."""
        return {**self.values, "unmeasured": self.unmeasured}


def forward_flops_per_token(
    counts: ParameterCounts, vocab_size: int, d_model: int, n_layers: int, sequence_length: int
) -> int:
    """2 for every weight of a matrix product (the output's too, tied or not), and attention's 4·L·d·T.

    Attention is counted over all T positions, as nanoGPT's estimate does; causal kernels do half of that.
    """
    matrices = counts.attention + counts.feed_forward + vocab_size * d_model
    return 2 * matrices + 4 * n_layers * d_model * sequence_length


def summary(metrics: Mapping[str, Any]) -> str:
    """`summary.md`: what metrics.json says, for reading."""
    lines = [
        f"# Evaluation of {metrics['run'] or metrics['checkpoint']}",
        "",
        f"{metrics['parameters_total']:,} parameters ({metrics['embedding_share']:.1%} embedding): "
        f"{metrics['n_layers']} layers, d_model {metrics['d_model']}, {metrics['n_heads']} heads, "
        f"d_ff {metrics['d_ff']}; step {metrics['step']:,}. "
        f"{metrics['device_name']}, {metrics['dtype']}, {metrics['threads']} threads.",
        "",
        "| data | loss (nats) | perplexity | bits per byte | tokens |",
        "|---|---|---|---|---|",
    ]
    for split, title in _TITLES.items():
        cells = [metrics[f"{split}_{name}"] for name in ("loss", "perplexity", "bits_per_byte", "tokens")]
        lines.append(f"| {title} | {' | '.join(map(_cell, cells))} |")
    lines += ["", "| SmallBench | accuracy | ± | commonest label | examples |", "|---|---|---|---|---|"]
    for task in _TASKS:
        cells = [metrics[f"smallbench_{task}_{name}"] for name in ("accuracy", "stderr", "majority", "n")]
        lines.append(f"| {task} | {' | '.join(map(_cell, cells))} |")
    lines += ["", "| cost | |", "|---|---|"]
    lines += [
        f"| {title} | {_cell(metrics[name])} |"
        for title, name in (
            ("latency, 128 tokens, median (ms)", "latency_128_median_ms"),
            ("latency, 128 tokens, p95 (ms)", "latency_128_p95_ms"),
            ("latency, 512 tokens, median (ms)", "latency_512_median_ms"),
            ("latency, 512 tokens, p95 (ms)", "latency_512_p95_ms"),
            ("throughput (tokens/s)", "throughput_tokens_per_second"),
            ("peak memory (MB)", "peak_memory_mb"),
            ("weights (MB)", "weights_mb"),
        )
    ]
    if metrics["unmeasured"]:
        lines += ["", "Not measured:", ""]
        lines += [f"- {', '.join(names)}: {why}" for why, names in _by_reason(metrics["unmeasured"]).items()]
    return "\n".join(lines) + "\n"


def _by_reason(unmeasured: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, why in unmeasured.items():
        grouped.setdefault(why, []).append(name)
    return grouped


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.0f}"


# What an evaluation is asked for, checked before anything is loaded. Without torch.

Part = Literal["perplexity", "smallbench", "latency", "throughput"]
PARTS: tuple[Part, ...] = get_args(Part)


class EvaluationRequest(Section):
    """Which model, on what, and which parts."""

    checkpoint: str
    """`model-*.safetensors`, a run's folder, `<run folder>/best` or `/final`, or `models:/name/version`."""
    output: str
    """Folder or URI for the files."""
    data: str | None = None
    """Prepared dataset; by default the one that the run was trained on, where its folder is given."""
    tokenizer: str | None = None
    """tokenizer.json; by default the dataset's."""
    only: Part | None = None
    smallbench: str = "hub"
    """`hub`, `off`, or a folder or URI with the tasks' files."""
    smallbench_limit: int | None = Field(default=None, gt=0)
    """Examples of each task that are read, from the start; all by default."""
    skip: tuple[Part, ...] = ()
    max_eval_batches: int | None = Field(default=None, gt=0)
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    threads: int | None = Field(default=None, gt=0)

    def why_not(self, part: Part) -> str | None:
        """The reason why a part is not run; None where it is."""
        if self.only is not None and part != self.only:
            return f"not asked for (--only {self.only})"
        if part in self.skip:
            return f"not asked for (--skip-{part})"
        if part == "smallbench" and self.smallbench == "off":
            return "not asked for (--smallbench off)"
        return None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if all(self.why_not(part) for part in PARTS):
            raise ValueError(f"nothing is left to measure of {', '.join(PARTS)}")
        return self
