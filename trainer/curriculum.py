"""Which sequence length an optimizer step has: moved up when the training loss stands still. Without torch.

A function of the steps' losses alone, and decided only at steps that are known beforehand: so every rank decides alike,
and a resumed run decides as one that was never interrupted.
"""

from __future__ import annotations

from typing import Any

from podium.trainer.config import TrainConfig
from podium.trainer.curriculum_config import StepShape


class Curriculum:
    """The shape of each step of a run; without a curriculum in the config, always the same."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config.curriculum
        self._steps = config.steps
        self._sequences, self._full = config.batch.sequences, config.data.sequence_length
        self._index = 0
        self._since = 0
        self._losses: list[float] = []

    @property
    def shape(self) -> StepShape:
        """Of the next step."""
        return self.shapes[self._index]

    @property
    def shapes(self) -> list[StepShape]:
        """Of the whole run, in the order in which they come."""
        if self._config is None:
            return [StepShape(self._sequences, self._full)]
        return [self._config.shape(self._sequences, self._full, length) for length in self._config.lengths]

    def judges_at(self, step: int) -> bool:
        """Whether the length of what follows is decided once `step` is done, for which its loss must be known."""
        if self._config is None or self._index == len(self._config.lengths) - 1:
            return False
        at_length = step - self._since
        return step >= self._deadline or (at_length >= 2 * self._config.window and at_length % self._config.window == 0)

    def note(self, loss: float) -> None:
        """The training loss of the next step, in nats."""
        if self._config is not None:
            self._losses = [*self._losses, loss][-2 * self._config.window :]

    def judge(self, step: int) -> bool:
        """Decide after `step`, whose loss was noted; returns whether the length changed. Only where `judges_at`."""
        assert self._config is not None
        if step < self._deadline and not self._stands_still():
            return False
        self._index += 1
        self._since = step
        self._losses = []
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that future decisions depend on."""
        return {"index": self._index, "since": self._since, "losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self._index, self._since, self._losses = state["index"], state["since"], list(state["losses"])

    @property
    def _deadline(self) -> float:
        assert self._config is not None
        if self._config.latest_fraction is None:
            return float("inf")
        moves = len(self._config.lengths) - 1
        return round(self._config.latest_fraction * self._steps * (self._index + 1) / moves)

    def _stands_still(self) -> bool:
        assert self._config is not None
        window = self._config.window
        before, last = self._losses[-2 * window : -window], self._losses[-window:]
        return sum(before) / window - sum(last) / window < self._config.min_improvement
