"""A person's hand on a run: approve what waits, let another variant go on, add seeds. All of it is on the ledger.

An amendment is written first and its verdict after it, so one that was cut short is finished by giving it again. What
has been registered is registered anew under the new verdict by the next `podium run`; the champion that a proven
verdict made stays the champion, since an exploratory claim only makes a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from podium.components.policies.decide import decide
from podium.components.study import layout
from podium.components.study.run import Run
from podium.components.study.trials import run_usd, stage_seeds
from podium.components.study.verdict import Amendment, MoreTrials, StageResults, Verdict
from podium.trainer.trial.errors import InUseError, PodiumError, Problem, UserError
from podium.trainer.trial.lease import is_live
from podium.trainer.trial.section import format_usd


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


# A verdict recomputed from its own JSON: the same study and inputs through `decide`, every number compared.
#
# The study comes from the run that the file lies in (`study.yaml` beside `verdicts/`), whose hash fixed metric,
# margins, alpha and seeds before the first trial. Beside the decision, the inputs themselves are held against the
# trials' `result.json` where these are there.

TOLERANCE = 1e-9
"""Relative: another machine's mathematics may differ in the last digits."""
MOST_SHOWN = 20


@dataclass(frozen=True)
class Verified:
    """What recomputing a verdict gave."""

    stage: str
    decision: str
    numbers: int
    """Numbers that were compared."""
    differences: list[str]
    """Field: what the file says, what comes out; empty if all agree."""
    trials: int
    """Trials whose result was found and compared with the verdict's inputs."""

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        return not self.differences


def verify(path: str) -> Verified:
    """Recompute the verdict in a file of a run's folder. Raises UserError for what is no verdict or has no study."""
    file = Path(path)
    if not file.is_file():
        raise UserError(Problem(path, "must be a verdict's JSON file, as a run keeps it in verdicts/"))
    try:
        verdict = Verdict.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(Problem(path, f"is no verdict: {where}: {first['msg']}")) from None
    if verdict.results is None:
        raise UserError(Problem(path, "does not hold its inputs, so it can't be recomputed"))
    run = _run_of(file)
    if verdict.stage not in run.study.stages:
        raise UserError(Problem(path, f"is of stage {verdict.stage!r}, which the run's study does not have"))
    found = list(_differences("", decide(run.study, verdict.results).model_dump(mode="json"), _plain(verdict)))
    compared, off = _against_trials(run, verdict)
    return Verified(verdict.stage, verdict.decision, _numbers(_plain(verdict)), [*found, *off], compared)


def _run_of(file: Path) -> Run:
    for folder in file.resolve().parents:
        if (folder / "study.yaml").is_file():
            return Run.open(str(folder))
    raise UserError(Problem(str(file), "lies in no run's folder: the study.yaml that it was decided by is not there"))


def _against_trials(run: Run, verdict: Verdict) -> tuple[int, list[str]]:
    assert verdict.results is not None
    trials = {(trial.variant.name, trial.seed): trial for trial in run.trials(verdict.stage)}
    compared, off = 0, []
    for outcome in verdict.results.outcomes:
        trial = trials.get((outcome.variant, outcome.seed))
        try:
            result = run.result(trial.key) if trial is not None else None
        except (PodiumError, ValidationError):
            result = None
        if trial is None or result is None:
            continue
        compared += 1
        now = run.outcome(trial, result)
        if (now.status, now.value, now.fingerprint) != (outcome.status, outcome.value, outcome.fingerprint):
            off.append(
                f"inputs: {trial.key.name}: the verdict has {outcome.status} {outcome.value}, "
                f"its result says {now.status} {now.value}"
            )
    return compared, off


def _plain(verdict: Verdict) -> dict[str, Any]:
    return verdict.model_dump(mode="json")


def _differences(where: str, now: Any, then: Any) -> Iterator[str]:
    if isinstance(now, dict) and isinstance(then, dict):
        for key in sorted(now.keys() | then.keys()):
            yield from _differences(f"{where}.{key}".lstrip("."), now.get(key), then.get(key))
    elif isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        for index, (a, b) in enumerate(zip(now, then, strict=True)):
            yield from _differences(f"{where}.{index}", a, b)
    elif isinstance(now, float) and isinstance(then, int | float) and not isinstance(then, bool):
        if not math.isclose(now, then, rel_tol=TOLERANCE, abs_tol=1e-12):
            yield f"{where}: the file says {then!r}, recomputed {now!r}"
    elif now != then:
        yield f"{where}: the file says {then!r}, recomputed {now!r}"


def _numbers(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_numbers, value.values()))
    if isinstance(value, list):
        return sum(map(_numbers, value))
    return int(isinstance(value, int | float) and not isinstance(value, bool))
