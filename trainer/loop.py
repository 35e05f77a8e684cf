"""The training loop: steps, evaluations, checkpoints and stop rules, until a run ends.

A run may be killed at any instant and goes on from its newest checkpoint when started again; all that it writes after
that is the same, bit for bit, but for times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from podium.trainer import snapshot
from podium.trainer.clock import Clock
from podium.trainer.curve import Point
from podium.trainer.data.loader import evaluation_batches
from podium.trainer.distributed import Ranks
from podium.trainer.evaluation.perplexity import evaluate_loss
from podium.trainer.interruption import Interrupted, StopRequests
from podium.trainer.optim.schedules import learning_rate
from podium.trainer.outcome import Ending
from podium.trainer.recorder import Recorder
from podium.trainer.reference import ReferenceCurve
from podium.trainer.reporting import Progress, Reporter
from podium.trainer.result import Status
from podium.trainer.setup import Parts
from podium.trainer.state import RunState, finite
from podium.trainer.step_aware import after_step, begin_step
from podium.trainer.stopping import first_stop
from podium.trainer.target import is_near

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
            self._ending = Ending.stopped(stop)
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
            self._recorder.save(self.state, snapshot.take(self._parts, self.state, self._clock))

    @property
    def _tokens(self) -> int:
        return self.state.tokens

    @property
    def _seconds(self) -> float:
        """Of all steps, on the training clock or before it."""
        return self._clock.seconds("training") + self._clock.seconds("untimed")
