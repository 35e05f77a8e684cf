"""What a run leaves in its folder while it trains: metric lines and checkpoints, by the first rank alone."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from podium.trainer.background import BackgroundWriter
from podium.trainer.checkpoint_writer import CheckpointWriter
from podium.trainer.clock import Clock
from podium.trainer.config import RunSpec
from podium.trainer.curve import Point
from podium.trainer.metrics import MetricsLog, evaluation_line, train_line
from podium.trainer.resume import AUTO, Start, adopt_best
from podium.trainer.routing_metrics import Routing
from podium.trainer.state import RunState, best_point, finite
from podium.trainer.stopping import perplexity_of
from podium.trainer.storage import Storage

PUT_SECONDS = 30.0
"""How old the metrics in a remote store may become between evaluations."""
BEST_SECONDS = 60.0
"""How long a best model may wait in memory. Every checkpoint writes it before itself, so a resumed run has it."""


class Recorder:
    """Metrics and checkpoints of one attempt, written beside training; a context, at whose end nothing is open.

    Time that training waits here counts as `checkpoint` on the clock.
    """

    def __init__(
        self,
        spec: RunSpec,
        folder: Storage,
        checkpoints: Storage,
        scratch: Path,
        clock: Clock,
    ) -> None:
        """`checkpoints` is the folder of the checkpoints, `scratch` a local one for what goes to a remote store."""
        self._spec = spec
        self._checkpoints = checkpoints
        self._writer = BackgroundWriter()
        self._clock = clock
        self._metrics = MetricsLog(folder, scratch)
        # in a study the conductor removes full checkpoints, once the stage's last verdict is written
        keep_last = None if spec.fingerprint else spec.config.checkpoint.keep_last
        self._files = CheckpointWriter(checkpoints, spec.config, self._writer, scratch, keep_last=keep_last)
        self._last_put = self._last_best = time.monotonic()

    def start(self, state: RunState, start: Start | None, resume: str | None) -> None:
        """Make the folder that of a run which has done `state.step` steps; what came later will be made again."""
        self._files.discard_after(state.step)
        if start is not None and not start.own:
            uri = self._spec.start_checkpoint if resume == AUTO else resume
            assert uri is not None
            adopt_best(start, uri, self._checkpoints)
        self._metrics.start(state.step, state.points)

    def reserve(self, parts: dict[str, Any]) -> None:
        """Take the memory for checkpoints of these parts."""
        self._files.reserve(parts)

    def add_step(self, state: RunState, loss: float, rate: float, norm: float, seconds: float) -> None:
        """The line of the step that `state` has just noted."""
        self._metrics.add(train_line(state.step, state.tokens, loss, rate, norm, seconds))
        if time.monotonic() - self._last_put > PUT_SECONDS:
            self._put()

    def add_routing(self, routing: Routing) -> None:
        """The line of what a mixture's routers did since the one before."""
        self._metrics.add(routing.to_line(self._clock.seconds("training")))

    def add_evaluation(self, state: RunState, point: Point, model: nn.Module) -> None:
        """The line of an evaluation; its weights are held where they are the best so far."""
        self._metrics.add(evaluation_line(point))
        self._put()
        if best_point(state.points) != point:
            return
        with self._clock.measure("checkpoint"):
            self._files.hold_best(state.step, model.state_dict(), self._summary(state))
            if time.monotonic() - self._last_best > BEST_SECONDS:
                self._last_best = time.monotonic()
                self._files.write_best()

    def save(self, state: RunState, parts: dict[str, Any]) -> None:
        """A full checkpoint of these parts; returns once they are copied."""
        with self._clock.measure("checkpoint"):
            # lines first: a run that goes on from this step must find the metrics up to it
            self._files.save(state.step, parts, self._summary(state), before=self._metrics.put)

    def save_final(self, state: RunState, weights: dict[str, Tensor]) -> None:
        """The last weights; returns when everything is where it belongs."""
        with self._clock.measure("checkpoint"):
            self._files.save_final(state.step, weights, self._summary(state))
            self._writer.submit(self._metrics.put)
            self._writer.drain()

    def drain(self) -> None:
        """Wait until everything is where it belongs."""
        with self._clock.measure("checkpoint"):
            self._writer.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close(give_up=error is not None)  # its jobs put metrics
        self._metrics.close()

    def _put(self) -> None:
        self._last_put = time.monotonic()
        if self._metrics.remote:
            self._writer.submit(self._metrics.put)

    def _summary(self, state: RunState) -> dict[str, Any]:
        """`metrics_summary` of a model's sidecar: what is known of these very weights."""
        point = state.points[-1] if state.points and state.points[-1].step == state.step else None
        loss = point.val_loss if point else None
        return {
            "tokens": state.tokens,
            "train_loss": state.train_loss,
            "val_loss": loss,
            "val_perplexity": None if loss is None else finite(perplexity_of(loss)),
            "bits_per_byte": point.bits_per_byte if point else None,
        }
