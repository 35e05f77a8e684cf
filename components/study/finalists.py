"""The finalists of a run: the arms of its last verdict that ran to the end, each with the model that stands for it."""

from __future__ import annotations

from dataclasses import dataclass

from podium.components.study.outcomes import RANKED
from podium.components.study.run import Run, Trial
from podium.components.verdicts.verdict import Verdict
from podium.trainer.result import TrialResult
from podium.trainer.storage import join_uri


@dataclass(frozen=True)
class Finalist:
    """A variant, and its first seed that ran to the end: the model that is evaluated and registered."""

    variant: str
    trial: Trial
    result: TrialResult
    model_key: str
    """The weights (`….safetensors`, its `.json` beside it), relative to the trial's folder."""

    @property
    def loss(self) -> float | None:
        """The declared evaluation of these very weights, in nats."""
        is_final = self.model_key == self.result.final_model
        return self.result.final_val_loss if is_final else self.result.best_val_loss

    def model_uri(self, run: Run) -> str:
        """URI of the weights."""
        return join_uri(run.uri, self.trial.key.folder, self.model_key)


def _model(run: Run, result: TrialResult) -> str | None:
    return result.best_model if run.study.champion.model == "best" else result.final_model


def last_verdict(run: Run) -> Verdict | None:
    """The verdict of the last stage, or of the one that the study's champion is of; None while there is none."""
    return run.verdict(run.study.champion.stage or run.stages[-1])


def finalists(run: Run) -> list[Finalist]:
    """The ranked arms of the last verdict, best first; empty while there is none. Of a race to a target, the winners.

    A baseline whose figure was recorded elsewhere has no model and is left out.
    """
    verdict = last_verdict(run)
    if verdict is None:
        return []
    found: dict[str, Finalist] = {}
    for trial in run.trials(verdict.stage):
        result = run.result(trial.key)
        name = trial.variant.name
        # the one that went on from the first seed's stands for it
        wanted = name not in found or (trial.key.fallback is not None and trial.seed == found[name].trial.seed)
        if wanted and result is not None and result.status in RANKED and result.final_model is not None:
            found[name] = Finalist(name, trial, result, _model(run, result) or result.final_model)
    ranked = sorted((row for row in verdict.ranking if row.rank is not None), key=lambda row: row.rank or 0)
    if verdict.policy == "fastest_to_target":
        # the others are points of a design around the winner: nobody would use them
        won = {ref.name for ref in verdict.promoted}
        ranked = [row for row in ranked if row.variant in won]
    return [found[row.variant] for row in ranked if row.variant in found]
