"""The training loop: steps, evaluations, checkpoints and stop rules, until a run ends.

A run may be killed at any instant and goes on from its newest checkpoint when started again; all that it writes after
that is the same, bit for bit, but for times.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from podium.trainer.builtin.checkpoint import AUTO, BackgroundWriter, CheckpointWriter, Start, adopt_best
from podium.trainer.builtin.config import RunSpec
from podium.trainer.builtin.data.loader import evaluation_batches
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.evaluation.perplexity import evaluate_loss
from podium.trainer.builtin.optim.build import learning_rate
from podium.trainer.builtin.setup import Parts, after_step, begin_step, random_state, restore_random_state
from podium.trainer.builtin.state import Clock, RunState
from podium.trainer.trial.errors import CheckpointError
from podium.trainer.trial.lease import Interrupted, StopRequests
from podium.trainer.trial.recorder import MetricsLog, Progress, Reporter
from podium.trainer.trial.result import Point, Status, best_point, evaluation_line, finite, perplexity_of, train_line
from podium.trainer.trial.routing_metrics import Routing
from podium.trainer.trial.stopping import Ending, ReferenceCurve, first_stop, is_near
from podium.trainer.trial.storage import Storage

# A whole run's state as the parts of a full checkpoint, and back.


def take_snapshot(parts: Parts, state: RunState, clock: Clock) -> dict[str, Any]:
    """All keys of a full checkpoint but its header; tensors are the living ones."""
    scaler = parts.stepper.scaler
    return {
        "model_state_dict": parts.model.state_dict(),
        "optimizer_state_dict": parts.optimizer.state_dict(),
        "scheduler_state_dict": {
            "step": state.step,
            "learning_rate": parts.optimizer.param_groups[0]["lr"],
            "run": state.state_dict(),
            "clock": clock.state_dict(),
            "curriculum": parts.curriculum.state_dict(),
            "routing": None if parts.routing is None else parts.routing.state_dict(),
            "loss_scale": None if scaler is None else scaler.state_dict(),
        },
        **random_state(),
        "loader_state": parts.loader.state_dict(),
    }


def restore_snapshot(start: Start, parts: Parts, clock: Clock) -> RunState:
    """Put a checkpoint into `parts` and `clock`. Raises CheckpointError where it is past the run's end."""
    held, schedule = start.state, start.state["scheduler_state_dict"]
    if held["step"] > parts.config.steps:
        raise CheckpointError(f"{start.name}: must be of a step up to {parts.config.steps}, got step {held['step']}")
    parts.model.load_state_dict(held["model_state_dict"])
    parts.optimizer.load_state_dict(held["optimizer_state_dict"])
    parts.loader.load_state_dict(held["loader_state"])
    if parts.stepper.scaler is not None and schedule["loss_scale"] is not None:
        parts.stepper.scaler.load_state_dict(schedule["loss_scale"])
    clock.load_state_dict(schedule["clock"])
    parts.curriculum.load_state_dict(schedule["curriculum"])
    if parts.routing is not None:
        parts.routing.load_state_dict(schedule["routing"])
    restore_random_state(held)
    return RunState.from_state_dict(schedule["run"])


# What a run leaves in its folder while it trains: metric lines and checkpoints, by the first rank alone.

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


STEPS_BETWEEN_READS = 10
"""On a GPU losses are read in groups: asking for every one would make the device wait."""
SLOW_STEP_SECONDS = 0.5
"""Steps that take longer are read one by one even there, so that a request to stop is seen in time."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A step whose loss and gradient norm are still on the device."""

    rate: float
    loss: Tensor
    norm: Tensor
    seconds: float
    """The training clock's after it was issued."""
    tokens: int


class Loop:
    """One attempt at a run, from where `state` stands to its end."""

    def __init__(
        self,
        parts: Parts,
        state: RunState,
        clock: Clock,
        ranks: Ranks,
        requests: StopRequests,
        recorder: Recorder | None,
        reference: ReferenceCurve,
        reporter: Reporter,
        saved_step: int | None,
    ) -> None:
        """`recorder` is the first rank's; `saved_step` that of the checkpoint which the run goes on from, if any."""
        self._parts, self._config = parts, parts.config
        self.state, self._clock = state, clock
        self._ranks, self._requests = ranks, requests
        self._recorder, self._reference, self._reporter = recorder, reference, reporter
        self.saved_step = saved_step
        self._on_gpu = parts.precision.device.type == "cuda"
        self._read_every = STEPS_BETWEEN_READS if self._on_gpu else 1
        self._unread: list[_Taken] = []
        self._began_step, self._began_tokens, self._began_seconds = state.step, state.tokens, self._seconds
        self._ending: Ending | None = None

    def run(self) -> Ending:
        """Train until the last step is done or a rule is met. Raises Interrupted where the run is asked to end."""
        config = self._config
        # A rule may have been met before the checkpoint, or the reference's curve have come since.
        self._judge()
        if config.runtime.untimed_steps:
            with self._clock.measure("untimed"):
                self._train_until(min(config.runtime.untimed_steps, config.steps))
        with self._clock.measure("training"):
            self._train_until(config.steps)
        assert self._ending is not None
        if self.saved_step != self.state.step:
            self._save()
        return self._ending

    def _train_until(self, last: int) -> None:
        config, curriculum, target = self._config, self._parts.curriculum, self._config.stop.target
        while self._ending is None and (step := self.state.step + len(self._unread) + 1) <= last:
            self._step(step)
            evaluates = step % config.evaluation.every_steps == 0 or step == config.steps
            saves = step % config.checkpoint.every_steps == 0 or step == config.steps
            grows = curriculum.judges_at(step)
            routes = self._parts.routing is not None and self._parts.routing.is_due(step)
            looks = target is not None and step % (target.near_every_steps or last) == 0
            if evaluates or saves or grows or looks or routes or step == last or step % self._read_every == 0:
                self._read_steps()
                if looks and target is not None and is_near(self.state.points, self.state.train_loss, target):
                    evaluates = True
                # before anything can be saved at this step: who goes on from it does not decide or evaluate it again
                if grows and self._ending is None and curriculum.judge(step):
                    self._reporter.say(f"step {step}: sequences of {curriculum.shape.length} tokens from here on")
                if routes and self._ending is None:
                    self._look_at_routing()
                if evaluates and self._ending is None:
                    self._evaluate()
                self._obey()
            if saves:
                self._save()

    def _step(self, step: int) -> None:
        config, parts = self._config, self._parts
        shape = parts.curriculum.shape
        begin_step(parts.model, step, config.steps, config.seed)
        rate = learning_rate(step, config.steps, config.optimizer.learning_rate, config.schedule)
        batch = parts.loader.next_batch(shape)
        if parts.routing is not None:
            parts.routing.expect(parts.loader.domains_B)
        loss, norm = parts.stepper.step(rate, *batch, sequences=shape.sequences)
        after_step(parts.model, step)
        self._unread.append(_Taken(rate, loss, norm, self._clock.seconds("training"), shape.tokens))

    def _read_steps(self) -> None:
        """Fetch the losses of the steps taken since the last time."""
        losses = self._ranks.mean(torch.stack([taken.loss for taken in self._unread])).tolist()
        norms = torch.stack([taken.norm for taken in self._unread]).tolist()
        for taken, loss, norm in zip(self._unread, losses, norms, strict=True):
            self.state.note_step(loss, norm, taken.tokens)
            if self.state.step <= self._config.runtime.untimed_steps:
                self.state.untimed_tokens += taken.tokens
            self._parts.curriculum.note(loss)
            if self._recorder is not None:
                self._recorder.add_step(self.state, loss, taken.rate, norm, taken.seconds)
            if finite(loss) is None:
                self._ending = Ending.diverged(self.state.step, self._tokens)
                break
        self._unread.clear()

    def _obey(self) -> None:
        """Look whether anything asks the run to end, on any rank, and say where it is."""
        limit = self._config.stop.timeout_seconds
        seconds = self._clock.seconds("training")
        asked, late, seconds_per_step = self._ranks.largest(
            [
                float(self._requests.reason is not None),
                float(limit is not None and seconds >= limit),
                (self._seconds - self._began_seconds) / (self.state.step - self._began_step),
            ],
            self._parts.precision.device,
        )
        if self._on_gpu:
            self._read_every = 1 if seconds_per_step > SLOW_STEP_SECONDS else STEPS_BETWEEN_READS
        steps, left = self._config.steps, self._config.steps - self.state.step
        speed = (self._tokens - self._began_tokens) / (self.state.step - self._began_step) / seconds_per_step
        self._reporter.progress(
            Progress(self.state.step, steps, self._tokens, self.state.train_loss, speed, left * seconds_per_step)
        )
        if self._ending is not None:
            return
        if asked:
            self._interrupt()
        if late and left:
            assert limit is not None
            if not self.state.points or self.state.points[-1].step != self.state.step:
                self._evaluate()
            self._ending = self._ending or self._without_stop(f"{limit:g} s of training were allowed", late=limit)

    def _look_at_routing(self) -> None:
        """Record what the routers did since the last time, and end the run where the experts have collapsed."""
        assert self._parts.routing is not None
        routing, collapsed = self._parts.routing.look(self.state.step, self._tokens, self._ranks)
        if routing is not None and self._recorder is not None:
            self._recorder.add_routing(routing)
        if collapsed:
            self._evaluate()
            self._ending = Ending.collapsed(collapsed, self._tokens)

    def _interrupt(self) -> None:
        reason = self._ranks.broadcast(self._requests.reason) or "another rank was asked to end"
        if self._requests.lease_lost:
            raise Interrupted(f"{reason}: not saved, at step {self.state.step}")
        self._save()
        if self._recorder is not None:
            self._recorder.drain()
        raise Interrupted(f"{reason}: saved at step {self.state.step}")

    def _evaluate(self) -> None:
        """The declared evaluation, by the first rank; then every rank knows it and what follows from it."""
        with self._clock.measure("evaluation"):
            point = self._ranks.broadcast(self._measure() if self._ranks.is_first else None)
            assert point is not None
            self.state.note_evaluation(point)
            if self._recorder is not None:
                self._recorder.add_evaluation(self.state, point, self._parts.model)
                self._reporter.evaluated(point)
            self._judge()

    def _measure(self) -> Point:
        config, parts = self._config, self._parts
        found = evaluate_loss(
            parts.model,
            evaluation_batches(
                parts.data,
                config.data.validation_split,
                sequence_length=config.data.sequence_length,
                batch_sequences=config.evaluation.batch_sequences,
                sequences=config.evaluation.sequences,
            ),
            device=parts.precision.device,
            autocast=parts.precision.autocast(),
            token_bytes=parts.token_bytes,
            domains=parts.evaluation_domains,
        )
        by_domain = found.by_domain
        return Point(
            step=self.state.step,
            tokens=self._tokens,
            val_loss=finite(found.loss),
            gradient_norm=self.state.mean_gradient_norm(),
            train_seconds=round(self._clock.seconds("training"), 4),
            bits_per_byte=None if found.bits_per_byte is None else finite(found.bits_per_byte),
            by_domain=None if by_domain is None else {name: finite(loss) for name, loss in by_domain.items()},
        )

    def _judge(self) -> None:
        """Apply the stop rules to the curve so far, and see whether all steps are done."""
        stop = None
        if self._ranks.is_first:
            stop = first_stop(self.state.points, self._reference.read(), self._config.stop)
        stop = self._ranks.broadcast(stop)
        if stop is not None:
            self._ending = stop
        elif self.state.step >= self._config.steps:
            self._ending = self._without_stop(f"all {self.state.step} steps done")

    def _without_stop(self, how: str, *, late: float | None = None) -> Ending:
        """How a run ends that no rule stopped: by its last step, or after `late` seconds."""
        if self._config.stop.target is not None:
            return Ending.missed(self._config.stop.target, how, self.state.points, self._tokens)
        if late is not None:
            return Ending.timed_out(late, self._tokens)
        return Ending.completed(self.state.step, self._tokens)

    def _save(self) -> None:
        """A full checkpoint, unless the weights are not numbers any more: those can serve nobody."""
        if self._ending is not None and self._ending.status is Status.DIVERGED:
            return
        self.saved_step = self.state.step
        if self._recorder is not None:
            self._recorder.save(self.state, take_snapshot(self._parts, self.state, self._clock))

    @property
    def _tokens(self) -> int:
        return self.state.tokens

    @property
    def _seconds(self) -> float:
        """Of all steps, on the training clock or before it."""
        return self._clock.seconds("training") + self._clock.seconds("untimed")
