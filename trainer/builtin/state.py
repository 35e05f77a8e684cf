"""What a run knows of itself besides weights: the part of a checkpoint from which its future decisions follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from podium.trainer.trial.result import Point, finite


@dataclass
class RunState:
    """Where the run stands. Everything that a stop rule or a result needs is here or follows from it."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens of these steps."""
    untimed_tokens: int = 0
    """Those of them that the training clock left out."""
    train_loss: float | None = None
    """Of the last step; nats per token, the mean over the global batch."""
    points: list[Point] = field(default_factory=list)
    """Every evaluation so far: the state of all stop rules, which are functions of it."""
    gradient_norms: list[float | None] = field(default_factory=list)
    """Of the steps since the last evaluation."""

    def note_step(self, loss: float, gradient_norm: float, tokens: int) -> None:
        """Count one optimizer step, of so many tokens."""
        self.step += 1
        self.tokens += tokens
        self.train_loss = finite(loss)
        self.gradient_norms.append(finite(gradient_norm))

    def mean_gradient_norm(self) -> float | None:
        """Mean since the last evaluation; None where one of them was not finite."""
        known = [norm for norm in self.gradient_norms if norm is not None]
        return sum(known) / len(known) if known and len(known) == len(self.gradient_norms) else None

    def note_evaluation(self, point: Point) -> None:
        """Add an evaluation."""
        self.points.append(point)
        self.gradient_norms = []

    def state_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "untimed_tokens": self.untimed_tokens,
            "train_loss": self.train_loss,
            "points": [asdict(point) for point in self.points],
            "gradient_norms": list(self.gradient_norms),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RunState:
        """The reverse of `state_dict`."""
        return cls(
            step=state["step"],
            tokens=state["tokens"],
            untimed_tokens=state["untimed_tokens"],
            train_loss=state["train_loss"],
            points=[Point(**point) for point in state["points"]],
            gradient_norms=list(state["gradient_norms"]),
        )


# The training clock: seconds of training, with evaluation, compilation and checkpoints apart from it.
#
# What has no asynchronous device can use `time.perf_counter` as it is; on a GPU `synchronize` makes a reading mean that
# the work up to it is done.

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
