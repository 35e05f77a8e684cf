"""Studies and stage results in the product's own types, so that every decision is made by `decide`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from podium.components.policies.decide import decide
from podium.components.study.schema import Study
from podium.components.study.verdict import MoreTrials, StageResults, TrialOutcome, VariantRef, Verdict
from podium.trainer.trial.result import Status

BASELINE = "baseline"
FIRST_SEED = {"screen": 1_000, "proof": 2_000}
"""Seeds of the two stages, which so never meet."""


def names(arms: int) -> list[str]:
    """Variants' names by number, the baseline first."""
    return [BASELINE, *(f"arm-{index:02d}" for index in range(1, arms))]


def seeds_of(stage: str, count: int) -> list[int]:
    """The declared seeds of a stage."""
    return [FIRST_SEED[stage] + index for index in range(count)]


@cache
def study_of(screen: str, screen_seeds: int, proof: str, proof_seeds: int, **policy: Any) -> Study:
    """Two stages with a policy each, whose fields are `<stage>_<field>`; `proof_seeds` 0 leaves the second out.

    Raises pydantic's ValidationError for what no study may declare.
    """
    given: dict[str, dict[str, Any]] = {"screen": {"policy": screen}, "proof": {"policy": proof}}
    stage_fields: dict[str, dict[str, Any]] = {"screen": {}, "proof": {"proof": True}}
    for key, value in policy.items():
        stage, field = key.split("_", 1)
        if field in ("min_seeds", "max_broken"):
            stage_fields[stage][field] = value
        else:
            given[stage][field] = dict(value) if isinstance(value, tuple) else value
    counts = {"screen": screen_seeds, "proof": proof_seeds}
    stages = {
        stage: {
            "budget": {"steps": 1000},
            "seeds": seeds_of(stage, counts[stage]),
            "promotion": given[stage],
            **stage_fields[stage],
        }
        for stage in ("screen", "proof")
        if counts[stage]
    }
    return Study.model_validate(
        {
            "name": "replay",
            "question": "Which of the recorded variants is the best?",
            "data": {"vocab_size": 1024},
            "config": {},
            "baseline": {"variant": BASELINE},
            "stages": stages,
        }
    )


Figures = Mapping[str, Mapping[int, float | Status]]
"""Variant → seed → the final value, or how the trial ended without one."""


def results_of(stage: str, figures: Figures, seeds: Sequence[int], previous: Sequence[Verdict] = ()) -> StageResults:
    """The stage's results as a conductor would hand them to `decide`."""
    return StageResults(
        stage=stage,
        variants=[VariantRef(name=name) for name in figures],
        seeds=list(seeds),
        outcomes=[
            TrialOutcome(
                variant=name,
                seed=seed,
                fingerprint=f"{name}/{seed}",
                status=figure if isinstance(figure, Status) else Status.COMPLETED,
                value=None if isinstance(figure, Status) else figure,
                tokenizer="one",
            )
            for name, row in figures.items()
            for seed, figure in row.items()
        ],
        previous=list(previous),
    )


def answer(
    study: Study, stage: str, figures: Figures, seeds: Sequence[int], previous: Sequence[Verdict] = ()
) -> Verdict | MoreTrials:
    """`decide` on such results."""
    return decide(study, results_of(stage, figures, seeds, previous))
