"""The kill rule over several seeds, and after the fact: which arms it ends, from their curves alone.

The trainer applies the rule itself only where an arm has one seed and the baseline's curve is there in time. All
other cases are judged here, by the same pure function (`stopping.kill_point`), and end in the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podium.components.study.layout import TrialKey
from podium.trainer.trial.errors import NotFoundError
from podium.trainer.trial.result import (
    METRICS,
    Curve,
    Point,
    Status,
    TrialResult,
    curve_of,
    mean_curve,
    perplexity_of,
    read_curve,
)
from podium.trainer.trial.stopping import Ending, KillRule, kill_point
from podium.trainer.trial.storage import Storage


@dataclass(frozen=True)
class Judgement:
    """A trial that is over, and where the kill rule met its arm; None where it did not."""

    key: TrialKey
    kill: Ending | None


class Judge:
    """Applies a stage's kill rule to the trials that the trainer could not judge alone.

    It is told which trials are over and reads curves; each trial gets one judgement. Which arms are killed is a
    function of the curves (`arm_kill`); the order in which trials end decides only when a judgement is given.
    """

    def __init__(
        self, rule: KillRule | None, stage: str, baseline: str, seeds: Sequence[int], curve: Callable[[TrialKey], Curve]
    ) -> None:
        """`seeds` are those the stage declares; trials of others (repeats) are not part of an arm's mean.

        `rule` is None where there is none, or no baseline in the stage that it could compare with.
        """
        self._rule, self._stage, self._baseline, self._seeds = rule, stage, baseline, tuple(seeds)
        self._curve = curve
        self._over: dict[str, set[int]] = {}
        """Arm → seeds that are over and have no judgement yet, or are the baseline's."""
        self._reference: dict[int, Curve] = {}
        self._kills: dict[str, Ending] = {}

    def over(self, key: TrialKey) -> list[Judgement]:
        """Note that a trial is over. Returns the judgements that this makes possible."""
        if self._rule is None or key.seed not in self._seeds:
            return [Judgement(key, None)]
        self._over.setdefault(key.variant, set()).add(key.seed)
        if key.variant == self._baseline:
            ready = [arm for arm in self._over if arm != key.variant and self._is_over(arm)]
            return [
                Judgement(key, None),
                *(judgement for arm in ready if self._baseline_over() for judgement in self._rule_on(arm)),
            ]
        if key.variant in self._kills or (self._baseline_over() and self._is_over(key.variant)):
            return self._rule_on(key.variant)
        return []

    def look(self, arms: Iterable[str]) -> dict[str, Ending]:
        """Judge arms that still run, by their curves so far. Returns those that the rule ends now.

        Only for arms with several seeds: the trainer does it itself where an arm has one.
        """
        if self._rule is None or len(self._seeds) < 2:
            return {}
        found = {}
        for arm in sorted(set(arms) - {self._baseline} - set(self._kills)):
            kill = self._kill(arm)
            if kill is not None:
                found[arm] = self._kills[arm] = kill
        return found

    def kill_of(self, key: TrialKey) -> Ending | None:
        """Where the trial's arm was killed, as far as `look` has seen."""
        return self._kills.get(key.variant) if key.seed in self._seeds else None

    def close(self) -> list[Judgement]:
        """The judgements that are left when nothing more will run, though some of the stage's trials never did."""
        return [judgement for arm in sorted(set(self._over) - {self._baseline}) for judgement in self._rule_on(arm)]

    def _rule_on(self, arm: str) -> list[Judgement]:
        kill = self._kills.get(arm) or self._kill(arm)
        return [Judgement(TrialKey(self._stage, arm, seed), kill) for seed in sorted(self._over.pop(arm, set()))]

    def _kill(self, arm: str) -> Ending | None:
        assert self._rule is not None
        reference = self._reference or {seed: self._curve(self._key(self._baseline, seed)) for seed in self._seeds}
        if self._baseline_over():
            self._reference = reference
        curves = {seed: self._curve(self._key(arm, seed)) for seed in self._seeds}
        return arm_kill(curves, reference, self._seeds, self._rule)

    def _key(self, arm: str, seed: int) -> TrialKey:
        return TrialKey(self._stage, arm, seed)

    def _is_over(self, arm: str) -> bool:
        return self._over.get(arm, set()).issuperset(self._seeds)

    def _baseline_over(self) -> bool:
        return self._is_over(self._baseline)


def arm_kill(
    arm: Mapping[int, Curve], baseline: Mapping[int, Curve], seeds: Collection[int], rule: KillRule
) -> Ending | None:
    """Where the rule ends an arm: the mean over its seeds against the mean over the baseline's, or None (yet).

    Both are by seed, as far as they are known. A look is judged once every seed of both sides has reached it, and what
    comes later changes no judgement, so the answer depends on the curves alone: not on who ran first, was queued or
    resumed. A side that lacks a seed altogether has no mean, and nothing is killed without evidence.
    """
    if not all(arm.get(seed) and baseline.get(seed) for seed in seeds):
        return None
    return kill_point(mean_curve([arm[seed] for seed in seeds]), mean_curve([baseline[seed] for seed in seeds]), rule)


def as_killed(result: TrialResult, lines: Sequence[dict[str, Any]], kill: Ending) -> TrialResult:
    """The result of a run as the kill rule leaves it, the same whenever that was noticed, and by whom.

    Every figure is the one at the look or up to it; only `stopped_tokens` says how far the run had come by then.
    `lines` are its metrics. Doing it again changes nothing.
    """
    curve = curve_of(lines)
    finite = [point for point in curve if point.val_loss is not None and point.tokens <= kill.tokens]
    best = min(finite, key=lambda point: (point.val_loss, point.step), default=None)
    last = next(point for point in curve if point.tokens == kill.tokens)
    trained = [line["train_loss"] for line in lines if "train_loss" in line and line["tokens"] <= kill.tokens]
    return result.model_copy(
        update={
            "status": Status.KILLED,
            "reason": kill.reason,
            "steps": last.step,
            "tokens": last.tokens,
            # by the whole number of tokens that one pass has, so that it is the same number from wherever
            "passes": last.tokens / round(result.tokens / result.passes) if result.passes else None,
            "final_train_loss": trained[-1] if trained else None,
            "final_val_loss": last.val_loss,
            "final_val_perplexity": _perplexity(last),
            "final_bits_per_byte": last.bits_per_byte,
            "best_val_loss": best.val_loss if best else None,
            "best_val_perplexity": _perplexity(best),
            "best_step": best.step if best else None,
            # files of after the look are not part of the result, and which those are depends on when it was noticed
            "best_model": None,
            "last_checkpoint": None,
            "kill_tokens": kill.tokens,
            "stopped_tokens": result.stopped_tokens or result.tokens,
            "kill_detail": kill.reason,
        }
    )


def _perplexity(point: Point | None) -> float | None:
    if point is None or point.val_loss is None:
        return None
    perplexity = perplexity_of(point.val_loss)
    return perplexity if math.isfinite(perplexity) else None


class Curves:
    """Reads a trial's curve again only where its metrics have changed."""

    def __init__(self, storage: Storage) -> None:
        """`storage` is the run's."""
        self._storage = storage
        # running arms are looked at every few seconds, and each read is a request on S3
        self._known: dict[TrialKey, tuple[str, list[Point]]] = {}

    def read(self, key: TrialKey) -> list[Point]:
        """The evaluations of a trial so far; none where it has not measured anything yet."""
        try:
            stamp = self._storage.stamp(key.file(METRICS))
        except NotFoundError:
            return []
        known = self._known.get(key)
        if known is None or known[0] != stamp:
            known = self._known[key] = (stamp, read_curve(self._storage, key.folder))
        return known[1]

    def forget(self, key: TrialKey) -> None:
        """Keep nothing of a trial that is judged."""
        self._known.pop(key, None)
