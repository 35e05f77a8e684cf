from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from podium.components.study.design import variants
from podium.components.study.load import load_study
from podium.components.study.schema import Study
from podium.components.study.trials import stage_seeds
from podium.components.study.verdict import StageResults, TrialOutcome, VariantRef
from podium.trainer.trial.result import Status

Figure = float | Status | None


@pytest.fixture(scope="session")
def allocation() -> Study:
    """The shipped study: a ranking by top_per_axis with one seed, then finals by best_mean with three."""
    return load_study("param-allocation", profile="smoke")


@pytest.fixture(scope="session")
def outcome() -> Callable[..., TrialOutcome]:
    def make(variant: str, seed: int, figure: float | Status, **more: Any) -> TrialOutcome:
        value = figure if isinstance(figure, float) else None
        status = Status.COMPLETED if isinstance(figure, float) else figure
        given = {"fingerprint": f"{variant}-{seed}", "tokenizer": "one", "status": status, "value": value}
        return TrialOutcome(variant=variant, seed=seed, **(given | more))

    return make


@pytest.fixture(scope="session")
def stage_of(outcome: Callable[..., TrialOutcome]) -> Callable[..., StageResults]:
    """Results of a stage from `{variant: [figure a seed]}`; a figure is a value, a status, or None."""

    def make(study: Study, stage: str, figures: dict[str, list[Figure]], **more: Any) -> StageResults:
        seeds = stage_seeds(study, stage)
        known = {ref.name: ref for ref in variants(study)}
        outcomes = [
            outcome(name, seed, figure)
            for name, row in figures.items()
            for seed, figure in zip(seeds, row, strict=True)
            if figure is not None
        ]
        refs = [known.get(name, VariantRef(name=name)) for name in figures]
        return StageResults(stage=stage, variants=refs, seeds=seeds, outcomes=outcomes, **more)

    return make
