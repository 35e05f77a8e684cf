"""What a command adds to a study: overrides, which change it and are hashed, and a selection, which is not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, Self

from podium.components.study.design import variants
from podium.components.study.fields import nearest
from podium.components.study.promotion import TIME
from podium.components.study.schema import Study
from podium.components.verdicts.verdict import VariantRef
from podium.trainer.errors import Problem, UserError


@dataclass(frozen=True)
class Overrides:
    """What the command line changes in a study. It makes another study, so another run."""

    seeds: int | None = None
    """Seeds of every stage; what a stage asks at least (`min_seeds`) goes down to it."""
    gpus: int | None = None
    """GPUs that each stage may use at once: trials in parallel × GPUs of one trial, which has fewer where these are not
    enough for it; 0 is the CPU."""
    data: str | None = None
    """The corpus, as `podium.trainer.data.corpora.parse_corpus` reads it."""
    budget_usd: float | None = None
    baseline: Literal["run"] | None = None
    """`run`: train the baseline in every stage, whatever figures are recorded or thresholds declared in its place."""


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

    def within(self, stage: str) -> Selection:
        """The selection as a stage sees it: of a stage that is named whole, no trial is left out."""
        named = self.stages is not None and stage in self.stages
        return replace(self, stages=None) if named else self

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


def check_selection(study: Study, selection: Selection) -> None:
    """Raise UserError for stages, variants or an axis that the study does not have, all at once."""
    problems = []
    stages = list(study.stages)
    for flag, chosen, known in (
        ("--stages", selection.stages or (), stages),
        ("--axis", (selection.axis,) if selection.axis is not None else (), list(study.axes)),
    ):
        problems += [Problem(flag, _unknown(name, known)) for name in chosen if name not in known]
    if selection.variants is not None:
        names = [ref.name for ref in variants(study)]
        # a later stage's variants are made by a verdict, so their names are not known before
        later = set(selection.stages or stages) <= set(stages[1:])
        problems += [
            Problem("--variants", _unknown(name, names))
            for name in selection.variants
            if name not in names and not later
        ]
    if selection.parallel is not None and selection.parallel < 1:
        problems.append(Problem("--parallel", f"must be 1 or more, got {selection.parallel}"))
    for name, stage in study.stages.items():
        alone = stage.promotion.metric == TIME and not stage.resources.gpus_per_trial and not stage.resources.share_cpu
        if alone and (selection.parallel or 1) > 1 and (selection.stages is None or name in selection.stages):
            words = f"must be 1: stage {name} ranks times, and trials would share the CPU, got {selection.parallel}"
            problems.append(Problem("--parallel", words))
    if problems:
        raise UserError(problems)


def is_selected(study: Study, ref: VariantRef, selection: Selection, base: VariantRef) -> bool:
    """Whether a variant is part of the selection. The baseline always is: the others are compared with it."""
    if ref.name == study.baseline.variant:
        return True
    if selection.variants is not None and ref.name not in selection.variants:
        return False
    if selection.axis is None:
        return True
    return bool(ref.axis_values.get(selection.axis) != base.axis_values.get(selection.axis))


def _unknown(name: str, known: list[str]) -> str:
    return f"the study has no {name!r}{nearest(name, known)}; it has: {', '.join(known) or 'none'}"
