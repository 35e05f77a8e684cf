"""What a trial's attempts cost: `attempts.json` in its folder, kept by the conductor.

Device time is money whether or not an attempt ended well, so it is written down while the attempt runs: a conductor
that is killed loses at most `BEAT_SECONDS` of it. A result's cost is always computed from this file, so filling it in
twice gives the same.
"""

from __future__ import annotations

from podium.trainer.errors import NotFoundError
from podium.trainer.section import Section
from podium.trainer.storage import Storage

ATTEMPTS = "attempts.json"
BEAT_SECONDS = 30.0


class Attempt(Section):
    """One start of a trial."""

    seconds: float
    """Wall-clock seconds over which it held its devices, as far as known."""
    ended: bool = False
    """False while it runs, and for ever where its conductor was killed."""
    code: int | None = None
    """Its exit code; None where nobody saw it end."""
    crashed: bool = False
    """Whether it counts as a failure of its own."""


class Attempts(Section):
    """All starts of a trial, in order."""

    attempts: list[Attempt] = []

    @property
    def seconds(self) -> float:
        """Seconds over all attempts, lost ones included."""
        return sum(attempt.seconds for attempt in self.attempts)

    @property
    def crashes(self) -> int:
        """Attempts that failed by themselves; an interruption is none."""
        return sum(attempt.crashed for attempt in self.attempts)

    def begin(self) -> Attempts:
        """With one more attempt, which has just started."""
        return Attempts(attempts=[*self.attempts, Attempt(seconds=0.0)])

    def last(self, attempt: Attempt) -> Attempts:
        """With the last attempt as it now stands."""
        return Attempts(attempts=[*self.attempts[:-1], attempt])


def read_attempts(storage: Storage, folder: str) -> Attempts:
    """The attempts at the trial in `folder` of the run; none where it was never started."""
    try:
        return Attempts.model_validate_json(storage.read_bytes(f"{folder}/{ATTEMPTS}"))
    except NotFoundError:
        return Attempts()


def write_attempts(storage: Storage, folder: str, attempts: Attempts) -> None:
    """Replace the file."""
    storage.write_text(f"{folder}/{ATTEMPTS}", attempts.model_dump_json() + "\n")
