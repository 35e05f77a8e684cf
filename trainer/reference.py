"""The reference run's curve, as far as it is known by now."""

from __future__ import annotations

from collections.abc import Sequence

from podium.trainer.curve import Curve, curve_of, mean_curve, read_lines
from podium.trainer.errors import NotFoundError, StorageError
from podium.trainer.metrics import METRICS
from podium.trainer.storage import open_storage


class ReferenceCurve:
    """The mean curve of some runs, read from their folders each time until it is complete.

    A run that has not started, or can't be read for the moment, delays what depends on the curve and nothing else.
    """

    def __init__(self, uris: Sequence[str], last_tokens: int) -> None:
        """`uris` are the runs' folders; a curve that reaches `last_tokens` is not read again."""
        self._folders = [open_storage(uri) for uri in uris]
        self._last_tokens = last_tokens
        self._known: Curve | None = None

    def read(self) -> Curve | None:
        """The mean of the curves at the token counts that all have; None while one of them is missing."""
        if not self._folders:
            return None
        if self._known and self._known[-1].tokens >= self._last_tokens:
            return self._known
        try:
            self._known = mean_curve([curve_of(read_lines(folder.read_text(METRICS))) for folder in self._folders])
        except NotFoundError:
            return None
        except StorageError as error:
            print(f"reference curve not read now: {error}", flush=True)
        return self._known
