"""The training loop: steps, evaluations, checkpoints, stop rules, and the result at the end.

A run may be killed at any instant and goes on from its newest checkpoint when started again; all that it writes after
that is the same, bit for bit, but for times.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from podium.trainer.allocation import count_parameters, resolve_config
from podium.trainer.background import BackgroundWriter
from podium.trainer.checkpoint import BEST
from podium.trainer.checkpoint_writer import CheckpointWriter
from podium.trainer.clock import Clock
from podium.trainer.config import RunSpec
from podium.trainer.curve import Point
from podium.trainer.data.loader import evaluation_batches
from podium.trainer.data.manifest import dataset_folder
from podium.trainer.distributed import Ranks, joined, launched_ranks
from podium.trainer.evaluation.perplexity import evaluate_loss
from podium.trainer.interruption import Interrupted, StopRequests
from podium.trainer.lease import Lease
from podium.trainer.metrics import MetricsLog, evaluation_line, train_line
from podium.trainer.optim.schedules import learning_rate
from podium.trainer.outcome import Ending, base_result, clock_result, curve_result, file_names, peak_memory_bytes
from podium.trainer.precision import choose_device, choose_precision, is_out_of_memory, set_up
from podium.trainer.reference import ReferenceCurve
from podium.trainer.reporting import LogReporter, Progress, Reporter
from podium.trainer.result import Status, TrialResult
from podium.trainer.resume import AUTO, Start, adopt_best, find_start
from podium.trainer.seeding import random_state, restore_random_state
from podium.trainer.setup import build_parts, compiles, warm_up
from podium.trainer.state import RunState, best_point, finite
from podium.trainer.stopping import first_stop, perplexity_of
from podium.trainer.storage import Storage, join_uri
from podium.trainer.versions import versions

RESULT = "result.json"

PUT_SECONDS = 30.0
"""How old the metrics in a remote store may become between evaluations."""
BEST_SECONDS = 60.0
"""How long a best model may wait in memory. A checkpoint writes it first, so a resumed run never lacks it."""
SLOW_STEP_SECONDS = 0.5
"""Steps on a GPU that are shorter are read in groups: asking for every loss would make the device wait."""
STEPS_BETWEEN_READS = 10


def train(
    spec: RunSpec,
    folder: Storage,
    *,
    run_name: str = "",
    checkpoint_prefix: str = "",
    resume: str | None = AUTO,
    attempt: int = 1,
    reporter: Reporter | None = None,
) -> TrialResult:
    """Run `spec` in `folder` to its end and write `result.json` last.

    `checkpoint_prefix` is empty or ends with "/"; `resume` is `auto`, a full checkpoint's path or URI, or None.
    Under torchrun every rank calls this; the first writes. Raises Interrupted where the run was asked to end and can
    go on later, UserError for what does not fit, InUseError where another process trains in this folder.
    """
    spec = spec.model_copy(update={"config": resolve_config(spec.config)})
    ranks = launched_ranks()
    device = choose_device(spec.config.runtime.device, ranks.local_rank)
    set_up(spec.config.runtime, device)
    run_name = run_name or folder.uri.rstrip("/").rpartition("/")[2]
    with ExitStack() as stack:
        lease = None
        if ranks.is_first:
            lease = stack.enter_context(Lease(folder, what=f"run {run_name}"))
        stack.enter_context(joined(ranks, device))
        requests = stack.enter_context(StopRequests(lease, spec.watch if ranks.is_first else None))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podium-run-")))
        writer = stack.enter_context(BackgroundWriter())
        run = _Run(spec, folder, checkpoint_prefix, run_name, attempt, ranks, device)
        run.reporter = reporter or LogReporter()
        stack.callback(run.reporter.close)
        try:
            run.build(writer, scratch, requests, resume)
            ending = run.loop()
        except Exception as error:
            # another rank's memory is not this one's to report: torchrun ends all, and the conductor tries again
            if not is_out_of_memory(error) or not ranks.is_first:
                raise
            return run.write_out_of_memory()
        return run.finish(ending)


class _Run:
    """One attempt at a run."""

    reporter: Reporter

    def __init__(
        self,
        spec: RunSpec,
        folder: Storage,
        prefix: str,
        run_name: str,
        attempt: int,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.spec, self.config = spec, spec.config
        self.folder, self.prefix = folder, prefix
        self.run_name, self.attempt = run_name, attempt
        self.ranks, self.device = ranks, device
        self.checkpoints_folder = folder.child(prefix) if prefix else folder
        on_gpu = device.type == "cuda"
        self.clock = Clock(synchronize=torch.cuda.synchronize if on_gpu else lambda: None)
        self.state = RunState()
        self.unread: list[tuple[float, Tensor, Tensor, float]] = []
        self.read_every = STEPS_BETWEEN_READS if on_gpu else 1
        self.ending: Ending | None = None
        self.last_checkpoint: int | None = None
        self.metrics: MetricsLog | None = None

    def build(self, writer: BackgroundWriter, scratch: Path, requests: StopRequests, resume: str | None) -> None:
        """Data, model and optimizer, at the checkpoint's step where there is one."""
        config, ranks = self.config, self.ranks
        self.writer, self.requests = writer, requests
        # one process of each machine fetches the data, then the others find it there
        if ranks.local_rank == 0:
            data = dataset_folder(self.spec.dataset)
        ranks.barrier()
        if ranks.local_rank != 0:
            data = dataset_folder(self.spec.dataset)
        start = find_start(self.checkpoints_folder, self.spec, resume, scratch)
        precision = choose_precision(config.runtime.precision, self.device)
        self.parts = build_parts(config, data, precision, ranks)
        keep_last = None if self.spec.fingerprint else config.checkpoint.keep_last
        if start is not None:
            self._restore(start)
        if ranks.is_first:
            self.metrics = MetricsLog(self.folder, scratch)
            self.checkpoints = CheckpointWriter(self.checkpoints_folder, config, writer, scratch, keep_last=keep_last)
            self.checkpoints.discard_after(self.state.step)
            if start is not None and not start.own:
                adopt_best(start, self._start_uri(resume), self.checkpoints_folder)
            self.metrics.start(self.state.step, self.state.points)
        self.reference = ReferenceCurve(
            self.spec.reference_curves if config.stop.kill and ranks.is_first else [], config.tokens
        )
        self.reporter.say(self._description(start))
        if compiles(config, precision):
            with self.clock.measure("compile"):
                warm_up(self.parts, config.batch.sequences // ranks.world_size // self._passes())
            self.reporter.say(f"compiled in {self.clock.seconds('compile'):.1f} s")

    def loop(self) -> Ending:
        """Train until the last step or until a rule is met."""
        config, state = self.config, self.state
        self._judge()  # a rule may have been met before the checkpoint, or the reference's curve have come since
        session = (state.step, self.clock.seconds("training"))
        with self.clock.measure("training"):
            while self.ending is None:
                step = state.step + len(self.unread) + 1
                rate = learning_rate(step, config.steps, config.optimizer.learning_rate, config.schedule)
                loss, norm = self.parts.stepper.step(rate, *self.parts.loader.next_batch())
                self.unread.append((rate, loss, norm, self.clock.seconds("training")))
                evaluates = step % config.evaluation.every_steps == 0 or step == config.steps
                saves = step % config.checkpoint.every_steps == 0 or step == config.steps
                if evaluates or saves or step % self.read_every == 0:
                    self._read_steps(session)
                if evaluates and self.ending is None:
                    self._evaluate()
                if saves and not self._diverged:
                    self._save()
        return self.ending

    def finish(self, ending: Ending) -> TrialResult:
        """Write the last models and, when everything else is on disk, the result."""
        if self.ranks.is_first:
            assert self.metrics is not None
            if not self._diverged and self.last_checkpoint != self.state.step:
                self._save()
            with self.clock.measure("checkpoint"):
                self.checkpoints.save_final(self.state.step, self.parts.model.state_dict(), self._summary())
                self.writer.submit(self.metrics.put)
                self.writer.drain()
            self.metrics.close()
        result = self._result(ending)
        if self.ranks.is_first:
            self.folder.write_json(RESULT, result.model_dump(mode="json"))
            self.reporter.say(f"{result.status.value}: {result.reason}")
        self.ranks.barrier()
        return result

    def write_out_of_memory(self) -> TrialResult:
        """The result of a run that did not fit."""
        micro = self.config.batch.sequences // self.ranks.world_size // self._passes()
        ending = Ending(
            Status.OUT_OF_MEMORY,
            f"out of memory on {self.device} with {micro} × {self.config.data.sequence_length} tokens in one forward "
            f"pass ({self.config.batch.sequences} sequences a step)",
            self.state.step * self.config.tokens_per_step,
        )
        result = base_result(self.spec, self.run_name, ending, self.attempt).model_copy(
            update={
                "steps": self.state.step,
                "tokens": self.state.step * self.config.tokens_per_step,
                "parameters": count_parameters(self.config.model),
                "versions": versions(self.device, self.ranks.world_size),
                **clock_result(self.clock, self.state.step * self.config.tokens_per_step),
            }
        )
        self.folder.write_json(RESULT, result.model_dump(mode="json"))
        self.reporter.say(result.reason)
        return result

    def _read_steps(self, session: tuple[int, float]) -> None:
        """Fetch the losses of the steps taken since the last time, and look whether something ends the run."""
        state, per_step = self.state, self.config.tokens_per_step
        losses = self.ranks.mean(torch.stack([loss.float() for _, loss, _, _ in self.unread])).tolist()
        norms = torch.stack([norm for _, _, norm, _ in self.unread]).tolist()
        for (rate, _, _, seconds), loss, norm in zip(self.unread, losses, norms, strict=True):
            state.note_step(loss, norm)
            if self.metrics is not None:
                self.metrics.add(train_line(state.step, state.step * per_step, loss, rate, norm, seconds))
            if finite(loss) is None:
                self.ending = Ending.diverged(state.step, state.step * per_step)
                break
        self.unread.clear()
        first, first_seconds = session
        seconds = self.clock.seconds("training") - first_seconds
        limit = self.config.stop.timeout_seconds
        asked, late, seconds_per_step = self.ranks.largest(
            [
                float(self.requests.reason is not None),
                float(limit is not None and self.clock.seconds("training") >= limit),
                seconds / (state.step - first),
            ],
            self.device,
        )
        if self.device.type == "cuda":
            self.read_every = 1 if seconds_per_step > SLOW_STEP_SECONDS else STEPS_BETWEEN_READS
        left = self.config.steps - state.step
        speed = per_step / seconds_per_step if seconds_per_step > 0 else None
        self.reporter.progress(
            Progress(
                state.step, self.config.steps, state.step * per_step, state.train_loss, speed, left * seconds_per_step
            )
        )
        self._put_now_and_then()
        if self.ending is None and asked:
            self._interrupt()
        if self.ending is None and late and left:
            assert limit is not None
            self._evaluate()
            self.ending = self.ending or Ending.timed_out(limit, state.step * per_step)

    def _evaluate(self) -> None:
        """The declared evaluation, by the first rank; then every rank knows it and what follows from it."""
        config, state, parts = self.config, self.state, self.parts
        point = None
        with self.clock.measure("evaluation"):
            if self.ranks.is_first:
                found = evaluate_loss(
                    parts.model,
                    evaluation_batches(
                        parts.data,
                        config.data.validation_split,
                        sequence_length=config.data.sequence_length,
                        batch_sequences=config.evaluation.batch_sequences,
                        sequences=config.evaluation.sequences,
                    ),
                    device=self.device,
                    autocast=parts.precision.autocast(),
                    token_bytes=parts.token_bytes,
                )
                point = Point(
                    step=state.step,
                    tokens=state.step * config.tokens_per_step,
                    val_loss=finite(found.loss),
                    gradient_norm=state.mean_gradient_norm(),
                    train_seconds=round(self.clock.seconds("training"), 4),
                    bits_per_byte=finite(found.bits_per_byte) if found.bits_per_byte is not None else None,
                )
            point = self.ranks.broadcast(point)
            assert point is not None
            state.note_evaluation(point)
            if self.metrics is not None:
                self.metrics.add(evaluation_line(point))
                self.reporter.evaluated(point)
                self._put_metrics()
            self._judge()
        if self.ranks.is_first and best_point(state.points) == point:
            with self.clock.measure("checkpoint"):
                self.checkpoints.hold_best(state.step, parts.model.state_dict(), self._summary())

    def _judge(self) -> None:
        """Apply the stop rules to the curve so far, and see whether all steps are done."""
        stop = None
        if self.ranks.is_first:
            stop = first_stop(self.state.points, self.reference.read(), self.config.stop)
        stop = self.ranks.broadcast(stop)
        if stop is not None:
            self.ending = Ending.stopped(stop)
        elif self.state.step >= self.config.steps:
            self.ending = Ending.completed(self.config)

    def _save(self) -> None:
        """A full checkpoint at this step; returns once the state is copied."""
        self.last_checkpoint = self.state.step
        if not self.ranks.is_first:
            return
        assert self.metrics is not None
        with self.clock.measure("checkpoint"):
            state = {
                "model_state_dict": self.parts.model.state_dict(),
                "optimizer_state_dict": self.parts.optimizer.state_dict(),
                "scheduler_state_dict": self._scheduler_state(),
                **random_state(),
                "loader_state": self.parts.loader.state_dict(),
            }
            # lines first: a run that goes on from this step must find the metrics up to it
            self.checkpoints.save(self.state.step, state, self._summary(), before=self.metrics.put)

    def _scheduler_state(self) -> dict[str, Any]:
        scaler = self.parts.stepper.scaler
        return {
            "step": self.state.step,
            "learning_rate": self.parts.optimizer.param_groups[0]["lr"],
            "run": self.state.state_dict(),
            "clock": self.clock.state_dict(),
            "loss_scale": None if scaler is None else scaler.state_dict(),
        }

    def _restore(self, start: Start) -> None:
        state, schedule = start.state, start.state["scheduler_state_dict"]
        if state["step"] > self.config.steps:
            from podium.trainer.errors import CheckpointError

            raise CheckpointError(f"{start.name}: the run has {self.config.steps} steps, got one at {state['step']}")
        self.parts.model.load_state_dict(state["model_state_dict"])
        self.parts.optimizer.load_state_dict(state["optimizer_state_dict"])
        self.parts.loader.load_state_dict(state["loader_state"])
        if self.parts.stepper.scaler is not None and schedule["loss_scale"] is not None:
            self.parts.stepper.scaler.load_state_dict(schedule["loss_scale"])
        self.clock.load_state_dict(schedule["clock"])
        self.state = RunState.from_state_dict(schedule["run"])
        self.last_checkpoint = self.state.step if start.own else None
        restore_random_state(state)

    def _interrupt(self) -> None:
        reason = self.ranks.broadcast(self.requests.reason) or "another rank was asked to end"
        if not self.requests.lease_lost:
            self._save()
            self.writer.drain()
        raise Interrupted(f"{reason}: saved at step {self.state.step}")

    def _put_metrics(self) -> None:
        assert self.metrics is not None
        if self.metrics.remote:
            self.writer.submit(self.metrics.put)
            self.last_put = time.monotonic()

    last_put = 0.0

    def _put_now_and_then(self) -> None:
        if not self.ranks.is_first:
            return
        if time.monotonic() - self.last_put > PUT_SECONDS:
            self._put_metrics()

    def _summary(self) -> dict[str, Any]:
        """`metrics_summary` of a model's sidecar."""
        point = self.state.points[-1] if self.state.points else None
        same = point is not None and point.step == self.state.step
        loss = point.val_loss if point is not None and same else None
        return {
            "tokens": self.state.step * self.config.tokens_per_step,
            "train_loss": self.state.train_loss,
            "val_loss": loss,
            "val_perplexity": None if loss is None else finite(perplexity_of(loss)),
            "bits_per_byte": point.bits_per_byte if point is not None and same else None,
        }

    def _result(self, ending: Ending) -> TrialResult:
        tokens = self.state.step * self.config.tokens_per_step
        names = file_names(self.prefix, ending, self.state, self.last_checkpoint)
        if names["best_model"] and not self.checkpoints_folder.exists(f"{BEST}.safetensors"):
            names["best_model"] = None
        return base_result(self.spec, self.run_name, ending, self.attempt).model_copy(
            update={
                "steps": self.state.step,
                "tokens": tokens,
                "stopped_tokens": tokens if ending.status is not Status.COMPLETED else None,
                "passes": self.parts.loader.passes(tokens),
                "final_train_loss": self.state.train_loss,
                **curve_result(ending, self.state.points),
                **clock_result(self.clock, tokens),
                "peak_memory_bytes": peak_memory_bytes(self.device),
                "parameters": count_parameters(self.config.model),
                **names,
                "versions": versions(self.device, self.ranks.world_size),
            }
        )

    @property
    def _diverged(self) -> bool:
        return self.ending is not None and self.ending.status is Status.DIVERGED

    def _passes(self) -> int:
        return self.config.batch.accumulation_steps(self.ranks.world_size)

    def _start_uri(self, resume: str | None) -> str:
        uri = self.spec.start_checkpoint if resume == AUTO else resume
        assert uri is not None
        return join_uri(uri)

    def _description(self, start: Start | None) -> str:
        counts = count_parameters(self.config.model)
        where = f"from step {self.state.step} ({start.name})" if start else "from the start"
        return (
            f"{counts.total:,} parameters on {self.device}, {str(self.parts.precision.dtype).removeprefix('torch.')}, "
            f"{torch.get_num_threads()} threads, {self.ranks.world_size} rank(s); "
            f"{self.config.steps} steps of {self.config.tokens_per_step} tokens, {where}"
        )
