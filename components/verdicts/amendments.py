"""What a person's amendments make of a verdict: approved, overridden, extended.

The plan (metric, margins, alpha, seeds) is fixed by the study's hash. Whoever changes it afterwards does so on the
ledger, and what then wins is called exploratory: it was decided with the results in sight. Approval changes nothing of
the plan, so it leaves the claim as it is.
"""

from __future__ import annotations

from typing import Any

from podium.components.study.schema import Stage
from podium.components.verdicts.verdict import StageResults, Verdict


def amended(stage: Stage, results: StageResults, verdict: Verdict) -> Verdict:
    """The verdict with the stage's amendments applied, and `await` where approval is required and was not given."""
    for amendment in results.amendments:
        if amendment.kind == "extend":
            verdict = _exploratory(verdict, f"extended by the seeds {_list(amendment.seeds)}: {amendment.because}")
    overrides = [each for each in results.amendments if each.kind == "override"]
    if overrides:
        last = overrides[-1]
        ref = next(ref for ref in results.variants if ref.name == last.promote)
        update: dict[str, Any] = {
            "decision": "promote",
            "reason": f"promote {ref.name}, by hand: {last.because}; the policy said: {verdict.reason}",
            "promoted": [ref, *(each for each in verdict.promoted if each.name == _baseline(verdict) != ref.name)],
            "winner": ref.name,
            "not_chosen": {name: why for name, why in _passed_over(verdict, results).items() if name != ref.name},
        }
        return _exploratory(verdict.model_copy(update=update), f"overridden: {last.because}")
    if verdict.decision == "promote" and stage.approval == "required":
        approved = next((each for each in results.amendments if each.kind == "approve"), None)
        if approved is None:
            update = {"decision": "await", "reason": f"await approval to {verdict.reason}"}
        else:
            said = f"approved by {approved.by or 'a person'}"
            update = {"notes": [*verdict.notes, said + (f": {approved.because}" if approved.because else "")]}
        return verdict.model_copy(update=update)
    return verdict


def _exploratory(verdict: Verdict, note: str) -> Verdict:
    claim = "exploratory" if verdict.decision == "promote" else verdict.claim
    notes = [*verdict.notes, f"exploratory: {note}"]
    reason = verdict.reason
    if verdict.proven:
        reason = f"{reason.replace('; proven', '; shown')}, but exploratory: {note}"
    return verdict.model_copy(update={"proven": False, "claim": claim, "notes": notes, "reason": reason})


def _baseline(verdict: Verdict) -> str:
    return str(verdict.parameters["baseline"])


def _passed_over(verdict: Verdict, results: StageResults) -> dict[str, str]:
    chosen = {ref.name: "the policy's choice was overridden by hand" for ref in verdict.promoted}
    known = {ref.name: verdict.not_chosen.get(ref.name, "") for ref in results.variants}
    return {name: chosen.get(name) or why for name, why in known.items() if chosen.get(name) or why}


def _list(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
