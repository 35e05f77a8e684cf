"""The training clock: seconds of training, with evaluation, compilation and checkpoints apart from it.

What has no asynchronous device can use `time.perf_counter` as it is; on a GPU `synchronize` makes a reading mean that
the work up to it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Kind = Literal["training", "evaluation", "compile", "checkpoint", "untimed"]


class Clock:
    """Seconds by kind, one kind at a time. `load` adds those of earlier attempts."""

    def __init__(
        self, synchronize: Callable[[], None] = lambda: None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._synchronize = synchronize
        self._now = now
        self._seconds: dict[Kind, float] = dict.fromkeys(get_args(Kind), 0.0)
        self._kind: Kind | None = None
        self._since = 0.0

    @contextmanager
    def measure(self, kind: Kind) -> Iterator[None]:
        """Count the block as `kind`; a block inside another interrupts it."""
        outer = self._switch(kind)
        try:
            yield
        finally:
            self._switch(outer)

    def seconds(self, kind: Kind) -> float:
        """Seconds of `kind` up to now, without waiting for the device."""
        running = self._now() - self._since if self._kind == kind else 0.0
        return self._seconds[kind] + running

    def state_dict(self) -> dict[str, float]:
        """Seconds by kind."""
        return {kind: self.seconds(kind) for kind in self._seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from these seconds."""
        for kind in self._seconds:
            self._seconds[kind] = state.get(kind, 0.0)

    def _switch(self, kind: Kind | None) -> Kind | None:
        self._synchronize()
        now, outer = self._now(), self._kind
        if outer is not None:
            self._seconds[outer] += now - self._since
        self._kind, self._since = kind, now
        return outer
