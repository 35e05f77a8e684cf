"""A verdict recomputed from its own JSON: the same study and inputs through `decide`, every number compared.

The study comes from the run that the file lies in (`study.yaml` beside `verdicts/`), whose hash fixed metric, margins,
alpha and seeds before the first trial. Beside the decision, the inputs themselves are held against the trials'
`result.json` where these are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from podium.components.study.run import Run
from podium.components.verdicts.policy import decide
from podium.components.verdicts.verdict import Verdict
from podium.trainer.errors import PodiumError, Problem, UserError

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
