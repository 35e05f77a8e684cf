"""The study's question answered from its runs, in sentences that state their numbers and what they leave open."""

from __future__ import annotations

from podium.components.reporting import numbers
from podium.components.reporting.emergence.runs import MixtureRun, figures_of
from podium.components.reporting.model import ReportData
from podium.trainer.data.corpora import CorpusConfig
from podium.trainer.result import Status

SPECIALISED = 0.1
"""Of 1: from here on an expert says more of a token's domain than a glance at a heat map could miss."""


def answers(data: ReportData, runs: list[MixtureRun]) -> tuple[str, ...]:
    """What the runs say, one question a sentence or two."""
    routed = [run for run in runs if run.routing]
    told = [_corpus(data.study.data.corpus)]
    told += [_specialisation(run) for run in routed]
    told += [_against(routed)] if len(routed) > 1 else []
    told += [sentence for run in runs if (sentence := _collapse(run))]
    told += [sentence for sentence in (_losses(runs),) if sentence]
    return tuple(told)


def headline_of(data: ReportData, runs: list[MixtureRun]) -> str:
    """The study's question answered in a sentence by the run whose model is registered; empty while it has not run."""
    stage = data.study.champion.stage
    run = next((run for run in runs if run.routing and stage in (None, run.stage)), None)
    last = figures_of(run.routing[-1]) if run is not None else None
    if run is None or last is None or last.specialisation is None:
        return ""
    does = "specialise" if last.specialisation >= SPECIALISED else "hardly specialise"
    return f"In {run.label} experts {does} by domain: {last.specialisation:.0%} of what there is to know of it."


def _corpus(corpus: CorpusConfig) -> str:
    return f"Text: {corpus.description}."


def _specialisation(run: MixtureRun) -> str:
    first, last = figures_of(run.routing[0]), figures_of(run.routing[-1])
    if last.specialisation is None or first.specialisation is None:
        return f"{run.label}: the data has one domain, so specialisation can't be told."
    verdict = "its experts specialise by domain" if last.specialisation >= SPECIALISED else "hardly any specialisation"
    return (
        f"{run.label}: {verdict}. A token's expert tells {last.specialisation:.0%} of what there is to know of its "
        f"domain at step {last.step} (mean over layers; {first.specialisation:.0%} at step {first.step}), and the load "
        f"has {last.load_entropy:.0%} of an even load's entropy."
    )


def _against(runs: list[MixtureRun]) -> str:
    """The runs at the last step that all of them reached: at their own ends they have seen different amounts."""
    step = min(run.routing[-1].step for run in runs)
    parts = []
    for run in runs:
        at = [routing for routing in run.routing if routing.step <= step][-1]
        found = figures_of(at)
        told = "unknown" if found.specialisation is None else f"{found.specialisation:.0%}"
        parts.append(f"{run.label} specialisation {told}, largest share {found.largest_share:.0%}")
    return f"At equal steps (step {step}): {'; '.join(parts)}."


def _collapse(run: MixtureRun) -> str:
    result, config = run.trial.result, run.trial.config
    if result is None or config is None or config.stop.collapse is None:
        return ""
    if result.status is Status.COLLAPSED:
        return f"{run.label}: {result.reason}."
    rule = config.stop.collapse
    what = f"more than {rule.share:.0%} at {rule.checks} looks in a row"
    return f"{run.label}: no collapse in {result.steps} steps ({what})."


def _losses(runs: list[MixtureRun]) -> str:
    known = [(run, run.trial.result.final_val_loss) for run in runs if run.trial.result]
    parts = [f"{run.label} {numbers.loss(loss)}" for run, loss in known if loss is not None]
    return f"Last validation losses, after different numbers of steps: {', '.join(parts)}." if len(parts) > 1 else ""
