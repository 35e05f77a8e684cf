"""Trials that a conductor need not start: another process trains them, or another run has paid for them."""

from __future__ import annotations

from collections.abc import Iterator

from podium.components.launch.records import read_result
from podium.components.launch.reuse import Reuse
from podium.components.study.layout import LEASE
from podium.components.study.run import Run, Trial
from podium.trainer.lease import is_live
from podium.trainer.result import TrialResult


class Elsewhere:
    """Knows which of a stage's trials are trained by a process that outlived its conductor."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run, self._stage = run, stage
        self._reuse: Reuse | None = None
        self._begun: set[str] = set()
        self.trials: dict[str, Trial] = {}
        """Those that another process is training."""

    def started_here(self, trial: Trial) -> None:
        """Note that whoever holds the trial's folder from now on is ours, and has ended when we are told so."""
        self._begun.add(trial.key.name)

    def add(self, trial: Trial) -> None:
        """Note that another process trains it."""
        self.trials[trial.key.name] = trial

    def trains(self, trial: Trial) -> bool:
        """Whether another process is training it; then `over` says when it no longer does."""
        if trial.key.name not in self._begun and self._is_held(trial):
            self.add(trial)
            return True
        return False

    def take_result(self, trial: Trial) -> TrialResult | None:
        """The result that another run of the store has of the same trial, copied; None where none has."""
        self._reuse = self._reuse or Reuse(self._run, self._stage)
        return self._reuse.take(trial)

    def over(self, *, stopped: bool) -> Iterator[tuple[Trial, TrialResult | None]]:
        """Those that nobody trains any more, with their results as far as they have one; all where we have stopped."""
        for name, trial in list(self.trials.items()):
            result = read_result(self._run.storage, trial.key)
            if result is not None or stopped or not self._is_held(trial):
                del self.trials[name]
                yield trial, result

    def _is_held(self, trial: Trial) -> bool:
        lease = f"{trial.key.folder}/{LEASE}"
        return self._run.storage.exists(lease) and is_live(self._run.storage, lease)
