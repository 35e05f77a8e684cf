"""Screening results that another run of the same store has already paid for."""

from __future__ import annotations

import tempfile
from pathlib import Path

from podium.components.study.layout import RUNS, run_key
from podium.components.study.run import Run, Trial
from podium.trainer.errors import NotFoundError
from podium.trainer.result import Status, TrialResult
from podium.trainer.storage import Storage

RESULT = "result.json"
_OWN = ("config.json", "lease.json", "attempts.json", "sync.json", RESULT)
"""What belongs to the run that trained, or is written here anew."""
_REUSABLE = (
    Status.COMPLETED,
    Status.TARGET_REACHED,
    Status.MISSED_TARGET,
    Status.KILLED,
    Status.DIVERGED,
    Status.COLLAPSED,
)
"""Ends that the config decides; a lack of memory, money or luck is not one."""


class Reuse:
    """Looks for finished trials of other runs with the same fingerprint: config, data, sources and kill reference."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run = run
        self._others: dict[str, set[str]] = {}
        # Proof trials are never another run's; their fingerprints say so as well.
        if not run.study.stages[stage].proof:
            for key in run.store.list(RUNS):
                other, _, path = key.removeprefix(f"{RUNS}/").partition("/")
                if other != run.id and path.startswith("trials/") and path.endswith(f"/{RESULT}"):
                    self._others.setdefault(other, set()).add(path.removesuffix(f"/{RESULT}"))

    def take(self, trial: Trial) -> TrialResult | None:
        """Copy the trial's files from another run, its result last, with a ledger entry. None where no run has it."""
        for other in sorted(other for other, folders in self._others.items() if trial.key.folder in folders):
            source = self._run.store.child(run_key(other)).child(trial.key.folder)
            try:
                result = TrialResult.model_validate_json(source.read_bytes(RESULT))
            except NotFoundError:  # a run that is being removed
                continue
            if result.fingerprint == trial.fingerprint and result.status in _REUSABLE:
                # The entry goes first: a copy that is cut off is begun again, and never counted as trained here.
                self._run.ledger.append("reuse", trial.key.name, run=other, fingerprint=trial.fingerprint)
                target = self._run.storage.child(trial.key.folder)
                for key in source.list():
                    if key not in _OWN:
                        copy_object(source, target, key)
                labels = self._run.run_spec(trial).labels
                result = result.model_copy(update={"labels": labels})
                target.write_json(RESULT, result.model_dump(mode="json"))
                return result
        return None


def copy_object(source: Storage, target: Storage, key: str) -> None:
    """Copy one object between storages under the same key, by way of this machine where both are remote."""
    path = source.local_path(key)
    if path is not None:
        target.upload(path, key)
        return
    with tempfile.TemporaryDirectory(prefix="podium-copy-") as scratch:
        path = Path(scratch) / "object"
        source.download(key, path)
        target.upload(path, key)
