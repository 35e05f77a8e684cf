"""One run from its spec to `result.json`: everything around the loop, in the order it must be taken and left."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from podium.trainer.builtin.allocation import resolve_config
from podium.trainer.builtin.checkpoint import AUTO, find_start, step_of
from podium.trainer.builtin.config import RunSpec, TrainConfig
from podium.trainer.builtin.data.manifest import dataset_folder, load_manifest
from podium.trainer.builtin.distributed import Ranks, joined, launched_ranks
from podium.trainer.builtin.loop import Loop, Recorder, restore_snapshot, take_snapshot
from podium.trainer.builtin.models.build import measured_counts
from podium.trainer.builtin.outcome import base_result, full_result
from podium.trainer.builtin.setup import (
    Parts,
    build_parts,
    choose_device,
    choose_precision,
    compiles,
    is_out_of_memory,
    release_memory,
    set_up,
    warm_up,
)
from podium.trainer.builtin.state import Clock, RunState
from podium.trainer.trial.lease import Lease, StopRequests
from podium.trainer.trial.process import scratch_folder
from podium.trainer.trial.recorder import LogReporter, Reporter
from podium.trainer.trial.result import FALLBACKS, NOTE, RESULT, TrialResult
from podium.trainer.trial.stopping import Ending, ReferenceCurve
from podium.trainer.trial.storage import Storage, open_storage, remove_leftovers

# What gives way where memory runs out: first the forward pass, then the sequence.
#
# One sequence a pass with as many more passes is the same optimisation. Shorter sequences are another one: the run then
# begins again, and its result says so. What was taken is noted in the run's folder, so that a restart begins with it.

SHORT = 256
"""Tokens of the shorter sequence."""


class MemoryFallback:
    """The fallbacks of one run, those that it has taken first."""

    def __init__(self, folder: Storage, config: TrainConfig) -> None:
        self._folder = folder
        self.config = config
        """The config as it stands with what was taken."""
        self.taken: list[str] = []
        """A sentence for each."""
        if not config.batch.fit_memory:
            return
        for _ in range(folder.read_json(FALLBACKS, {"taken": 0})["taken"]):
            self._apply()

    @property
    def can_take(self) -> bool:
        """Whether something is left that can be made smaller."""
        return self.config.batch.fit_memory and _smaller(self.config) is not None

    def take(self, checkpoints: Storage) -> str:
        """Make the next thing smaller, and note it; the sentence that says what.

        `checkpoints` is where those of the run lie: none of another sequence length is left to be gone on from.
        """
        self._apply()
        if self.starts_over:
            for key in checkpoints.list():
                if step_of(key) is not None:
                    checkpoints.delete(key)
        self._folder.write_json(FALLBACKS, {"taken": len(self.taken), "said": self.taken})
        return self.taken[-1]

    @property
    def starts_over(self) -> bool:
        """Whether the last one taken changes the sequences, so that no checkpoint from before fits."""
        return bool(self.taken) and self.taken[-1].startswith("sequences")

    def _apply(self) -> None:
        found = _smaller(self.config)
        if found is not None:
            self.config, said = found
            self.taken.append(said)


def _smaller(config: TrainConfig) -> tuple[TrainConfig, str] | None:
    batch, length = config.batch, config.data.sequence_length
    micro = batch.micro_batch or batch.sequences
    if micro > 1:
        update = {
            "batch": batch.model_copy(update={"micro_batch": 1}),
            "evaluation": config.evaluation.model_copy(update={"batch_sequences": 1}),
        }
        said = f"batch 1 × accumulation {batch.sequences} instead of {micro} × {batch.sequences // micro}"
        return config.model_copy(update=update), said
    if length > SHORT and config.curriculum is None:
        update = {"data": config.data.model_copy(update={"sequence_length": SHORT})}
        return config.model_copy(update=update), f"sequences of {SHORT} tokens instead of {length}"
    return None


# The short note that each run leaves beside its result: question, command, commit, data and outcome.


def experiment_note(spec: RunSpec, result: TrialResult, corpus: str) -> str:
    """Markdown; `corpus` is the dataset's in words."""
    labels = ", ".join(f"{name} {value}" for name, value in spec.labels.items())
    commit = result.versions.commit if result.versions else None
    lines = [
        f"# {result.run_name}",
        "",
        f"- **Question:** {spec.question or labels or 'none was given'}",
        f"- **Command:** `{command()}`",
        f"- **Commit:** {commit or 'unknown (no checkout)'}",
        f"- **Config:** preset {spec.config.preset}, {spec.config.mode}, seed {spec.config.seed}",
        f"- **Data:** {corpus}",
        f"- **Outcome:** {result.status.value}: {result.reason}",
    ]
    if result.final_val_loss is not None:
        lines.append(f"- **Validation loss:** {result.final_val_loss:.4f} at step {result.steps}")
    by_domain = result.final_val_loss_by_domain or {}
    if by_domain:
        lines.append(f"- **By domain:** {', '.join(f'{name} {loss:.4f}' for name, loss in by_domain.items())}")
    lines += [f"- **Memory ran out:** {said}" for said in result.memory_fallbacks]
    return "\n".join(lines) + "\n"


def command() -> str:
    """This process's command, as it could be given again."""
    program, *arguments = sys.argv or [""]
    if program.endswith(("trainer/__main__.py", "podium.trainer")):
        return shlex.join(["python", "-m", "podium.trainer", *arguments])
    return shlex.join([program, *arguments])


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
    reporter = reporter or LogReporter()
    fallback = MemoryFallback(folder, spec.config)
    with ExitStack() as outer:
        outer.callback(reporter.close)
        while True:
            attempt_at = _Attempt(
                spec=spec,
                fallback=fallback,
                folder=folder,
                prefix=checkpoint_prefix,
                run_name=run_name or folder.uri.rpartition("/")[2],
                number=attempt,
                ranks=ranks,
                device=device,
                reporter=reporter,
            )
            with ExitStack() as stack:
                result = attempt_at.train(stack, resume)
            if result is not None:
                return result
            resume = None if fallback.starts_over else AUTO if attempt_at.state.step else resume
            del attempt_at
            release_memory()


class _Attempt:
    def __init__(
        self,
        *,
        spec: RunSpec,
        fallback: MemoryFallback,
        folder: Storage,
        prefix: str,
        run_name: str,
        number: int,
        ranks: Ranks,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        self.config, self.fallback = fallback.config, fallback
        self.spec = spec.model_copy(update={"config": self.config})
        self.folder, self.prefix = folder, prefix
        self.run_name, self.number = run_name, number
        self.ranks, self.device = ranks, device
        self.reporter = reporter
        self.clock = Clock(synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None)
        self.state = RunState()

    def train(self, stack: ExitStack, resume: str | None) -> TrialResult | None:
        """Everything that must be released at the end goes on `stack`, the lease first, so that it is left last.

        None where memory ran out and something else gives way: to be tried again.
        """
        lease = None
        if self.ranks.is_first:
            lease = stack.enter_context(Lease(self.folder, what=f"run {self.run_name}"))
            # each crash would otherwise leave a full checkpoint, until the disk is full; the lease says who may do it
            remove_leftovers(self.folder, self.prefix)
        stack.enter_context(joined(self.ranks, self.device))
        requests = stack.enter_context(StopRequests(lease, self.spec.watch if self.ranks.is_first else None))
        scratch = stack.enter_context(scratch_folder("run"))
        try:
            parts, loop, recorder = self._build(stack, requests, scratch, resume)
            ending = loop.run()
        except Exception as error:
            # Another rank's memory is not this one's to report: torchrun ends all, and the run is tried again.
            if not is_out_of_memory(error) or not self.ranks.is_first:
                raise
            if not self.fallback.can_take:
                return self._out_of_memory()
            self._take_fallback()
            return None
        return self._finish(parts, loop, recorder, ending)

    def _build(
        self, stack: ExitStack, requests: StopRequests, scratch: Path, resume: str | None
    ) -> tuple[Parts, Loop, Recorder | None]:
        config, ranks, spec = self.config, self.ranks, self.spec
        checkpoints = self.folder.child(self.prefix) if self.prefix else self.folder
        start = find_start(checkpoints, spec, resume, scratch)
        precision = choose_precision(config.runtime.precision, self.device)
        parts = build_parts(config, self._data(), precision, ranks, fresh=start is None)
        stack.callback(parts.loader.close)
        if start is not None:
            self.state = restore_snapshot(start, parts, self.clock)
        recorder = None
        if ranks.is_first:
            recorder = stack.enter_context(Recorder(spec, self.folder, checkpoints, scratch, self.clock))
            recorder.start(self.state, start, resume)
            recorder.reserve(take_snapshot(parts, self.state, self.clock))
            whence = f"from step {self.state.step} ({start.name})" if start else "from the start"
            self.reporter.say(f"{self._description(parts)}, {whence}")
        if compiles(config, parts.precision):
            with self.clock.measure("compile"):
                warm_up(parts, ranks)
            self.reporter.say(f"compiled in {self.clock.seconds('compile'):.1f} s")
        judges = ranks.is_first and config.stop.kill is not None
        reference = ReferenceCurve(spec.reference_curves if judges else [], config.tokens)
        saved_step = self.state.step if start is not None and start.own else None
        loop = Loop(parts, self.state, self.clock, ranks, requests, recorder, reference, self.reporter, saved_step)
        return parts, loop, recorder

    def _data(self) -> Path:
        """One process of each machine fetches the dataset, then the others find it there."""
        if self.ranks.local_rank == 0:
            folder = dataset_folder(self.spec.dataset)
        self.ranks.barrier()
        return folder if self.ranks.local_rank == 0 else dataset_folder(self.spec.dataset)

    def _finish(self, parts: Parts, loop: Loop, recorder: Recorder | None, ending: Ending) -> TrialResult:
        if recorder is not None:
            recorder.save_final(loop.state, parts.model.state_dict())
        result = full_result(
            self._base(parts, ending),
            ending,
            loop.state,
            self.clock,
            config=self.config,
            folder=self.folder,
            prefix=self.prefix,
            saved_step=loop.saved_step,
            passes=parts.loader.passes(loop.state.tokens),
            device=self.device,
            world_size=self.ranks.world_size,
        )
        if recorder is not None:
            result = self._write(result)
        self.ranks.barrier()
        return result

    def _base(self, parts: Parts, ending: Ending) -> TrialResult:
        base = base_result(self.spec, self.run_name, ending, self.number)
        if self.config.extension is None:
            return base
        return base.model_copy(update={"parameters": measured_counts(parts.model)})

    def _take_fallback(self) -> None:
        """Note and say what gives way. Under torchrun all ranks end then, and the run is tried again."""
        checkpoints = self.folder.child(self.prefix) if self.prefix else self.folder
        tried = f"{self._micro_batch} × {self.config.data.sequence_length} tokens"
        said = self.fallback.take(checkpoints)
        self.reporter.say(f"warning: out of memory with {tried} in one forward pass: now {said}")
        if self.ranks.world_size > 1:
            raise MemoryError(f"out of memory: the next attempt takes {said}")

    def _out_of_memory(self) -> TrialResult:
        ending = Ending.out_of_memory(
            f"{self._micro_batch} × {self.config.data.sequence_length} tokens in one forward pass "
            f"({self.config.batch.sequences} sequences a step) on {self.device}{self._smaller_pass()}",
            self.state.tokens,
        )
        result = base_result(self.spec, self.run_name, ending, self.number)
        result = result.model_copy(
            update={"steps": self.state.step, "tokens": ending.tokens, "stopped_tokens": ending.tokens}
        )
        return self._write(result)

    def _smaller_pass(self) -> str:
        """What would fit: the same batch in twice as many passes, or what is left to make smaller."""
        micro = self._micro_batch
        fitting = [size for size in range(1, micro // 2 + 1) if micro % size == 0]
        if fitting:
            return f": batch.micro_batch {fitting[-1]} is the same optimisation with half of that at once"
        return ": already one sequence at a time, so only a smaller model or shorter sequences would fit"

    def _write(self, result: TrialResult) -> TrialResult:
        result = result.model_copy(update={"memory_fallbacks": self.fallback.taken})
        corpus = load_manifest(open_storage(self.spec.dataset)).corpus
        self.folder.write_text(NOTE, experiment_note(self.spec, result, corpus))
        self.folder.write_json(RESULT, result.model_dump(mode="json"))
        self.reporter.say(f"{result.status.value}: {result.reason}")
        return result

    @property
    def _micro_batch(self) -> int:
        share = self.config.batch.sequences // self.ranks.world_size
        return share // self.config.batch.accumulation_steps(self.ranks.world_size)

    def _description(self, parts: Parts) -> str:
        return (
            f"{sum(parameter.numel() for parameter in parts.model.parameters()):,} parameters on {self.device}, "
            f"{str(parts.precision.dtype).removeprefix('torch.')}, {torch.get_num_threads()} thread(s), "
            f"{self.ranks.world_size} rank(s); {self.config.steps} steps of {self.config.tokens_per_step} tokens"
        )
