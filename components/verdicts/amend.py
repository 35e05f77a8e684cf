"""A person's hand on a run: approve what waits, let another variant go on, add seeds. All of it is on the ledger.

An amendment is written first and its verdict after it, so one that was cut short is finished by giving it again. What
has been registered is registered anew under the new verdict by the next `podium run`; the champion that a proven
verdict made stays the champion, since an exploratory claim only makes a candidate.
"""

from __future__ import annotations

from podium.components.study import layout
from podium.components.study.cost import run_usd
from podium.components.study.run import Run
from podium.components.study.trials import stage_seeds
from podium.components.verdicts.policy import decide
from podium.components.verdicts.verdict import Amendment, MoreTrials, StageResults, Verdict
from podium.trainer.errors import InUseError, Problem, UserError
from podium.trainer.lease import is_live
from podium.trainer.units import format_usd


def approve(run: Run, *, because: str = "", by: str = "") -> Verdict:
    """Let the verdict that awaits approval take effect. Raises UserError where none does, InUseError while it runs."""
    verdict = _last_verdict(run)
    if verdict is None or verdict.decision != "await":
        said = "there is no verdict yet" if verdict is None else f"{verdict.stage} is decided: {verdict.decision}"
        raise UserError(f"run {run.id}: nothing awaits approval; {said} (the run is {run.state()})")
    return _decide_again(run, verdict, Amendment(kind="approve", because=because, by=by))


def override(run: Run, promote: str, *, because: str, by: str = "") -> Verdict:
    """Let another variant go on than the last verdict chose, or one where it stopped.

    Raises UserError for a variant that the stage does not have, or that has no finished trial, and without a reason.
    """
    verdict = _last_verdict(run)
    if verdict is None:
        raise UserError(f"run {run.id}: there is no verdict to override yet (the run is {run.state()})")
    if not because.strip():
        raise UserError(Problem("--because", "must say why, for the ledger; got nothing"))
    able = {row.variant: row for row in verdict.ranking}
    if promote not in able:
        names = ", ".join(sorted(able))
        raise UserError(Problem("--promote", f"must be a variant of stage {verdict.stage} ({names}), got {promote!r}"))
    if able[promote].n == 0:
        raise UserError(
            Problem("--promote", f"{promote} has no finished trial in {verdict.stage}: {able[promote].why}")
        )
    return _decide_again(run, verdict, Amendment(kind="override", because=because, by=by, promote=promote))


def extend(run: Run, seeds: int, *, because: str, by: str = "") -> list[int]:
    """Add fresh seeds to every variant of the last stage that was decided; it is decided again when they have run.

    Returns the seeds. Raises UserError where there is no verdict yet, a later stage has begun, or the budget does not
    pay for them.
    """
    verdict = _last_verdict(run)
    if verdict is None or verdict.results is None:
        raise UserError(
            f"run {run.id}: no stage is decided yet, so there is none to extend; give it more seeds instead"
        )
    stage, problems = verdict.stage, []
    if not because.strip():
        problems.append(Problem("--because", "must say why, for the ledger; got nothing"))
    if seeds < 1:
        problems.append(Problem("--seeds", f"must be at least 1, got {seeds}"))
    later = run.stages[run.stages.index(stage) + 1 :]
    begun = next((name for name in later for trial in run.trials(name) if run.result(trial.key) is not None), None)
    if begun is not None:
        problems.append(
            Problem("", f"stage {begun} has begun with what {stage} promoted, so {stage} can't be extended")
        )
    if problems:
        raise UserError(problems)
    _check_budget(run, stage, verdict.results, seeds)
    fresh = _fresh_seeds(run, verdict.results, seeds)
    _append(run, stage, Amendment(kind="extend", because=because, by=by, seeds=fresh))
    refs, reason = verdict.results.variants, f"extended by hand: {because}"
    asked = MoreTrials(reason=reason, kind="repeat", variants=refs, seeds=fresh).model_dump(mode="json")
    run.ledger.append("more_trials", f"{stage}/extend/{fresh[0]}", stage=stage, reason=reason, asked=asked)
    number = len(run.amendments(stage))
    run.storage.write_json(f"verdicts/superseded/{stage}-{number}.json", verdict.model_dump(mode="json"))
    run.storage.delete(layout.REGISTRATION)
    run.storage.delete(layout.verdict_key(stage))
    return fresh


def _decide_again(run: Run, verdict: Verdict, amendment: Amendment) -> Verdict:
    """The same decision over the same inputs, with one amendment more."""
    assert verdict.results is not None
    _append(run, verdict.stage, amendment)
    results = verdict.results.model_copy(update={"amendments": run.amendments(verdict.stage)})
    answer = decide(run.study, results)
    assert isinstance(answer, Verdict), f"{verdict.stage} was decided, and now asks for more: {answer.reason}"
    run.storage.delete(layout.REGISTRATION)
    run.write_verdict(answer)
    return answer


def _append(run: Run, stage: str, amendment: Amendment) -> None:
    if is_live(run.storage, layout.LEASE):
        raise InUseError(f"run {run.id} is going on; amend it when it has ended (podium cancel ends it)")
    number = len(run.amendments(stage)) + 1
    run.ledger.append(
        "amendment", f"{stage}/{number}/{amendment.kind}", stage=stage, amendment=amendment.model_dump(mode="json")
    )


def _last_verdict(run: Run) -> Verdict | None:
    return next((verdict for stage in reversed(run.stages) if (verdict := run.verdict(stage)) is not None), None)


def _fresh_seeds(run: Run, results: StageResults, count: int) -> list[int]:
    """The next seeds after the stage's own that no stage of the study has."""
    used = {seed for stage in run.stages for seed in stage_seeds(run.study, stage)}
    used |= set(results.seeds) | {outcome.seed for outcome in results.outcomes}
    used |= {seed for stage in run.stages for each in run.amendments(stage) for seed in each.seeds}
    found: list[int] = []
    seed = max(results.seeds)
    while len(found) < count:
        seed += 1
        if seed not in used:
            found.append(seed)
    return found


def _check_budget(run: Run, stage: str, results: StageResults, seeds: int) -> None:
    limit, declared = run.study.budget.usd, run.study.stages[stage]
    each = run_usd(declared.price, max(declared.resources.gpus_per_trial, 1))
    if limit is None or each is None:
        return
    recorded = stage in run.study.baseline.recorded
    arms = [ref for ref in results.variants if not (recorded and ref.name == run.study.baseline.variant)]
    needed = run.spent_usd() + seeds * len(arms) * each
    if needed > limit + 1e-9:
        raise UserError(
            Problem("--seeds", f"{seeds} more of {len(arms)} variants need {format_usd(needed)} with what was spent, "
                               f"the budget is {format_usd(limit)}")
        )  # fmt: skip
