"""What the conductor writes about a trial: its spec, its cost, and how it ended, each so that twice is as once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podium.components.launch.launcher import NOT_STARTED, TAIL_LINES, USER_ERROR, Attempts, Ended, read_attempts
from podium.components.study.cost import run_usd, usd_of_seconds
from podium.components.study.fingerprint import canonical_hash
from podium.components.study.layout import LEASE, TrialKey
from podium.components.study.ledger import Kind
from podium.components.study.run import Run
from podium.components.study.trials import Trial
from podium.components.study.verdict import MoreTrials
from podium.trainer.builtin.allocation import count_parameters
from podium.trainer.trial.errors import NotFoundError
from podium.trainer.trial.result import Curve, Point, Status, TrialResult, curve_of, mean_curve, read_lines
from podium.trainer.trial.stopping import Kill, KillRule, kill_point, perplexity_of
from podium.trainer.trial.storage import Storage, join_uri, to_json
from podium.trainer.trial.units import format_usd

# The kill rule after the fact and over seeds: which arms it ends, from curves, whatever order they came in.
#
# The trainer applies the rule itself only where an arm has one seed and the baseline's curve is there in time. All
# other cases are judged here, by the same pure function (`stopping.kill_point`), and end in the same result.

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Ruling:
    """A trial that is over, and where the kill rule met its arm; None where it did not."""

    key: TrialKey
    kill: Kill | None


class Judge:
    """Applies a stage's kill rule to the trials that the trainer could not judge alone.

    It is told which trials are over and reads curves; each trial gets one ruling. Which arms are killed is a function
    of the curves (`arm_kill`); the order in which trials end decides only when a ruling is given.
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
        """Arm → seeds that are over and have no ruling yet, or are the baseline's."""
        self._reference: dict[int, Curve] = {}
        self._kills: dict[str, Kill] = {}

    def over(self, key: TrialKey) -> list[Ruling]:
        """Note that a trial is over. Returns the rulings that this makes possible."""
        if self._rule is None or key.seed not in self._seeds:
            return [Ruling(key, None)]
        self._over.setdefault(key.variant, set()).add(key.seed)
        if key.variant == self._baseline:
            ready = [arm for arm in self._over if arm != key.variant and self._is_over(arm)]
            return [
                Ruling(key, None),
                *(ruling for arm in ready if self._baseline_over() for ruling in self._rule_on(arm)),
            ]
        if key.variant in self._kills or (self._baseline_over() and self._is_over(key.variant)):
            return self._rule_on(key.variant)
        return []

    def look(self, arms: Iterable[str]) -> dict[str, Kill]:
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

    def kill_of(self, key: TrialKey) -> Kill | None:
        """Where the trial's arm was killed, as far as `look` has seen."""
        return self._kills.get(key.variant) if key.seed in self._seeds else None

    def close(self) -> list[Ruling]:
        """The rulings that are left when nothing more will run, though some of the stage's trials never did."""
        return [ruling for arm in sorted(set(self._over) - {self._baseline}) for ruling in self._rule_on(arm)]

    def _rule_on(self, arm: str) -> list[Ruling]:
        kill = self._kills.get(arm) or self._kill(arm)
        return [Ruling(TrialKey(self._stage, arm, seed), kill) for seed in sorted(self._over.pop(arm, set()))]

    def _kill(self, arm: str) -> Kill | None:
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
) -> Kill | None:
    """Where the rule ends an arm: the mean over its seeds against the mean over the baseline's, or None (yet).

    Both are by seed, as far as they are known. A look is judged once every seed of both sides has reached it, and what
    comes later changes no judgement, so the answer depends on the curves alone: not on who ran first, was queued or
    resumed. A side that lacks a seed altogether has no mean, and nothing is killed without evidence.
    """
    if not all(arm.get(seed) and baseline.get(seed) for seed in seeds):
        return None
    return kill_point(mean_curve([arm[seed] for seed in seeds]), mean_curve([baseline[seed] for seed in seeds]), rule)


def read_curve(storage: Storage, folder: str) -> list[Point]:
    """The evaluations in a trial's metrics; none where it has not measured anything yet."""
    # a long run has few evaluations among many steps, and only they are parsed
    return curve_of(read_metrics(storage, folder, only='"val_loss"'))


def read_metrics(storage: Storage, folder: str, *, only: str = "") -> list[dict[str, Any]]:
    """The whole lines of a trial's metrics that contain the text `only`."""
    try:
        text = storage.read_text(f"{folder}/{METRICS}")
    except NotFoundError:
        return []
    return read_lines("".join(f"{line}\n" for line in text.split("\n")[:-1] if only in line))


def as_killed(result: TrialResult, lines: Sequence[dict[str, Any]], kill: Kill) -> TrialResult:
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


RESULT = "result.json"


def read_result(storage: Storage, key: TrialKey) -> TrialResult | None:
    """A trial's result as it lies in the run's storage, or None. Kept nowhere: a stage may have thousands."""
    try:
        return TrialResult.model_validate_json(storage.read_bytes(f"{key.folder}/{RESULT}"))
    except NotFoundError:
        return None


class Records:
    """Writes for the trials of one stage."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run, self._stage = run, stage
        self._declared = run.study.stages[stage]
        self._devices = self._declared.resources.devices
        self._written = {(entry.kind, entry.key) for entry in run.ledger.entries()}

    def spec(self, trial: Trial) -> None:
        """Write the trial's config.json, unless the same is there already."""
        key = f"{trial.key.folder}/config.json"
        spec = self._run.run_spec(trial, watch=join_uri(self._run.uri, LEASE))
        data = to_json(spec.model_dump(mode="json"))
        try:
            there = self._run.storage.read_bytes(key)
        except NotFoundError:
            there = b""
        if there != data:
            self._run.storage.write_bytes(key, data)

    def restarted(self, trial: Trial, before: Attempts) -> None:
        """Note that a trial is started again, and how its last attempt ended."""
        last = before.attempts[-1]
        number = len(before.attempts) + 1
        self._append("trial_restarted", f"{trial.key.name}#{number}", crashed=last.crashed, code=last.code)

    def with_cost(self, trial: Trial, result: TrialResult) -> tuple[TrialResult, float]:
        """The result with its device time and cost, and the dollars that were not in it before."""
        if result.device_seconds is not None:
            return result, 0.0
        attempts = read_attempts(self._run.storage, trial.key.folder)
        # An attempt whose end nobody saw still trained: its own clocks say how long at least.
        clocks = result.clocks
        seconds = max(attempts.seconds, sum(clock for clock in clocks if clock is not None))
        cost = self.cost(seconds * self._devices)
        result = result.model_copy(
            update={
                "device_seconds": round(seconds * self._devices, 3),
                "cost_usd": cost,
                "attempts": max(len(attempts.attempts), 1),
            }
        )
        self._write(trial.key, result)
        return result, cost

    def cost(self, device_seconds: float) -> float:
        """Dollars of a trial that was started: for the time on its devices, or the price of a run, whatever it took."""
        usd = usd_of_seconds(self._declared.price, device_seconds)
        return round(usd if usd is not None else run_usd(self._declared.price, self._devices) or 0.0, 6)

    def broken(self, trial: Trial, attempts: Attempts, ended: Ended) -> TrialResult:
        """The result of a trial that can't be run, or has failed as often as it may."""
        how = f"signal {-ended.code}" if ended.code is not None and ended.code < 0 else f"exit code {ended.code}"
        if ended.code == 0:
            how = "exit code 0, but no result"
        why = "its config can't be run" if ended.code == USER_ERROR else f"crashed {attempts.crashes} times"
        if ended.code == NOT_STARTED:
            reason = f"could not be started, tried {attempts.crashes} times: {ended.reason}"
        elif ended.reason:
            reason = f"{why}; the last attempt ended with {how}: {ended.reason}"
        else:
            reason = f"{why}; the last attempt ended with {how}"
        status = Status.OUT_OF_MEMORY if ended.out_of_memory else Status.BROKEN
        return self._make(trial, status, reason, log_tail=ended.tail or self._tail(trial))

    def with_image(self, trial: Trial, result: TrialResult, image: str | None) -> TrialResult:
        """The result with the image that made it, by digest: the trainer knows only the tag that it was started by."""
        if image is None or result.versions is None or result.versions.image == image:
            return result
        result = result.model_copy(update={"versions": result.versions.model_copy(update={"image": image})})
        self._write(trial.key, result)
        return result

    def not_affordable(self, trial: Trial, spent: float) -> TrialResult:
        """The result of a trial that would have taken the run over its budget."""
        limit = self._run.study.budget.usd
        assert limit is not None
        expected = run_usd(self._declared.price, self._devices) or 0.0
        reason = (
            f"not started: {format_usd(spent)} are spent, it would take {format_usd(expected)} more, "
            f"and the budget is {format_usd(limit)}"
        )
        return self._make(trial, Status.NOT_RUN_BUDGET, reason, device_seconds=0.0, cost_usd=0.0, attempts=0)

    def killed(self, trial: Trial, result: TrialResult | None, kill: Kill) -> TrialResult:
        """The result as the kill rule leaves it: of a trial that had finished, or that was stopped for it."""
        lines = read_metrics(self._run.storage, trial.key.folder)
        if result is None:
            came = max(line["tokens"] for line in lines)
            result = self._make(trial, Status.KILLED, kill.reason, write=False, tokens=came)
        killed = as_killed(result, lines, kill)
        if killed != result:
            self._write(trial.key, killed)
        return killed

    def ended(self, trial: Trial, result: TrialResult) -> None:
        """The ledger's entries about a trial that is over and judged."""
        name = trial.key.name
        if result.status is Status.KILLED:
            self._append("kill", name, tokens=result.kill_tokens, reason=result.reason)
        if result.status is Status.BROKEN:
            self._append("broken", name, reason=result.reason, log_tail=result.log_tail)
        if result.status is Status.NOT_RUN_BUDGET:
            self._append("budget", name, reason=result.reason)
        self._append(
            "trial_ended",
            name,
            status=result.status.value,
            reason=result.reason,
            final_val_loss=result.final_val_loss,
            tokens=result.tokens,
            cost_usd=result.cost_usd,
        )

    def more_trials(self, answer: MoreTrials) -> None:
        """What `decide` asked for besides."""
        data = answer.model_dump(mode="json")
        self._append(
            "more_trials",
            f"{self._stage}/{canonical_hash(data, 12)}",
            stage=self._stage,
            reason=answer.reason,
            asked=data,
        )

    def cancelled(self, request: object) -> None:
        """Somebody cancelled the run."""
        self._append("cancelled", f"{self._stage}/{canonical_hash(request, 12)}", stage=self._stage)

    def _tail(self, trial: Trial) -> list[str]:
        try:
            return self._run.storage.read_text(trial.key.log).splitlines()[-TAIL_LINES:]
        except (NotFoundError, UnicodeDecodeError):
            return []

    def _make(self, trial: Trial, status: Status, reason: str, *, write: bool = True, **fields: object) -> TrialResult:
        d_model, n_layers, n_heads, d_ff = trial.config.model.dimensions
        result = TrialResult.model_validate(
            {
                "run_name": trial.key.folder.rpartition("/")[2],
                "fingerprint": trial.fingerprint,
                "labels": self._run.run_spec(trial).labels,
                "parameters": count_parameters(trial.config.model) if trial.config.extension is None else None,
                "d_model": d_model,
                "n_layers": n_layers,
                "n_heads": n_heads,
                "d_ff": d_ff,
                "status": status,
                "reason": reason,
                "seed": trial.seed,
                **fields,
            }
        )
        if write:
            self._write(trial.key, result)
        return result

    def _write(self, key: TrialKey, result: TrialResult) -> None:
        self._run.storage.write_json(f"{key.folder}/{RESULT}", result.model_dump(mode="json"))

    def _append(self, kind: Kind, key: str, **data: object) -> None:
        if (kind, key) not in self._written:
            self._run.ledger.append(kind, key, **data)
            self._written.add((kind, key))
