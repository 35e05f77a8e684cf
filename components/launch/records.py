"""Everything the conductor writes about a trial: its spec, its cost, and how it ended. All writes are idempotent."""

from __future__ import annotations

from podium.components.launch.judge import as_killed
from podium.components.launch.launcher import Attempts, TaskEnd, read_attempts
from podium.components.study.fingerprint import canonical_hash
from podium.components.study.layout import LEASE, TrialKey
from podium.components.study.ledger import Kind
from podium.components.study.run import Run
from podium.components.study.trials import Trial, run_usd, usd_of_seconds
from podium.components.study.verdict import MoreTrials
from podium.trainer.builtin.allocation import count_parameters
from podium.trainer.trial.errors import ExitCode, NotFoundError
from podium.trainer.trial.result import (
    CONFIG,
    RESULT,
    Status,
    TrialResult,
    read_metrics,
)
from podium.trainer.trial.section import format_usd
from podium.trainer.trial.stopping import Ending
from podium.trainer.trial.storage import join_uri, to_json


class Records:
    """Writes for the trials of one stage."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run, self._stage = run, stage
        self._declared = run.study.stages[stage]
        self._devices = self._declared.resources.devices
        self._written = {(entry.kind, entry.key) for entry in run.ledger.entries()}

    def spec(self, trial: Trial) -> None:
        """Write the trial's config.json, unless the same is there already."""
        key = trial.key.file(CONFIG)
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

    def broken(self, trial: Trial, attempts: Attempts, ended: TaskEnd) -> TrialResult:
        """The result of a trial that can't be run, or has failed as often as it may."""
        how = f"signal {-ended.code}" if ended.code is not None and ended.code < 0 else f"exit code {ended.code}"
        if ended.code == 0:
            how = "exit code 0, but no result"
        why = "its config can't be run" if ended.code == ExitCode.USER_ERROR else f"crashed {attempts.crashes} times"
        if ended.code == ExitCode.NOT_STARTED:
            reason = f"could not be started, tried {attempts.crashes} times: {ended.reason}"
        elif ended.reason:
            reason = f"{why}; the last attempt ended with {how}: {ended.reason}"
        else:
            reason = f"{why}; the last attempt ended with {how}"
        status = Status.OUT_OF_MEMORY if ended.out_of_memory else Status.BROKEN
        return self._make(trial, status, reason, log_tail=ended.tail or self._run.storage.read_tail(trial.key.log))

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

    def killed(self, trial: Trial, result: TrialResult | None, kill: Ending) -> TrialResult:
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
        self._run.storage.write_json(key.file(RESULT), result.model_dump(mode="json"))

    def _append(self, kind: Kind, key: str, **data: object) -> None:
        if (kind, key) not in self._written:
            self._run.ledger.append(kind, key, **data)
            self._written.add((kind, key))
