"""What an evaluation is asked for, checked before anything is loaded. Without torch."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from podium.trainer.section import Section

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
