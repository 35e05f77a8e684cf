"""What a command adds to a study: overrides, which change it and are hashed, and a selection, which is not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, Self


@dataclass(frozen=True)
class Overrides:
    """What the command line changes in a study. It makes another study, so another run."""

    seeds: int | None = None
    """Seeds of every stage."""
    gpus: int | None = None
    """GPUs that each stage may use at once: trials in parallel × GPUs of one trial; 0 is the CPU."""
    data: str | None = None
    """The corpus, as `podium.trainer.data.corpora.parse_corpus` reads it."""
    budget_usd: float | None = None
    baseline: Literal["run"] | None = None
    """`run`: train the baseline in every stage, whatever figures are recorded for it."""


@dataclass(frozen=True)
class Selection:
    """Which part of a study runs now and how. It changes no result, so it is no part of any identity."""

    stages: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None
    axis: str | None = None
    """Only this axis's variants, and the baseline."""
    parallel: int | None = None
    """Trials at once, instead of the stage's own number."""
    launcher: Literal["process", "job"] = "process"

    @property
    def is_part(self) -> bool:
        """Whether some trials are left out."""
        return self.stages is not None or self.variants is not None or self.axis is not None

    def to_json(self) -> str:
        """One line of JSON: how a selection travels through a pipeline's input."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The selection of `to_json`; empty text is everything."""
        if not text.strip():
            return cls()
        data = json.loads(text)
        known = {field.name for field in fields(cls)}
        assert set(data) <= known, data
        for name in ("stages", "variants"):
            if data.get(name) is not None:
                data[name] = tuple(data[name])
        return cls(**data)
