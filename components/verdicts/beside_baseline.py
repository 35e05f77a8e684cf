"""An arm beside the baseline where the verdict is about something else, such as a target: said, and decided by nothing.

By the test of `beats_baseline` for one arm: variance pooled over the stage's arms where the baseline ran in it, the
arm's own spread against a figure recorded elsewhere, which is descriptive (its seeds, code and machine are not ours).
"""

from __future__ import annotations

from typing import Any

from podium.components.study.promotion import BeatsBaseline
from podium.components.study.schema import Recorded, Study
from podium.components.verdicts.differences import compare_arms
from podium.components.verdicts.ranking import Arm
from podium.components.verdicts.verdict import StageResults


def beside_baseline(study: Study, results: StageResults, arm: Arm, order: list[Arm], alpha: float) -> dict[str, Any]:
    """Mean, SD, n and source of the baseline's figure, with difference, interval and p; empty where there is none."""
    control = next((each for each in order if each.is_baseline), None)
    recorded = study.baseline.recorded.get(results.stage)
    if arm.is_baseline or (control is None and recorded is None):
        return {}
    if control is not None:
        mark = Recorded(mean=control.mean, sd=control.sd, n=control.n, source="run in this stage")
    else:
        assert recorded is not None
        mark = recorded
    (found,) = compare_arms([arm], control, order, mark, BeatsBaseline(alpha=alpha))
    return {
        **mark.model_dump(),
        "difference": found.difference,
        "interval": found.interval,
        "p": found.p,
        "method": found.method,
    }


def in_words(arm: Arm, found: dict[str, Any]) -> str:
    """One sentence."""
    spread = "" if found["sd"] is None else f" ± {found['sd']:g}"
    number = "" if found["n"] is None else f", n = {found['n']}"
    said = f"{arm.name} is {found['difference']:+.4f} against the baseline's {found['mean']:.4f}{spread}{number}"
    if found["p"] is not None:
        said += f" (one-sided p = {found['p']:.2g})"
    descriptive = "; descriptive, since it was not run here" if found["method"] == "descriptive" else ""
    return f"{said}, {found['source']}{descriptive}"
