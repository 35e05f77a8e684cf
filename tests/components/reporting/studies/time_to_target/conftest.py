"""A study of times whose trials are made up: a world says how long each takes; everything else is the real thing."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podium.components.launch.records import Records
from podium.components.policies.decide import decide
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.components.study.trials import Trial
from podium.components.study.verdict import MoreTrials, Verdict
from podium.trainer.trial.result import Crossing, Point, Status, TrialResult, Versions, evaluation_line

STUDY = """
name: race
question: Which is the fastest?
layout: time-to-target
data: {corpus: {source: files, path: CORPUS}, vocab_size: 300}
config:
  model: {family: ngpt, d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32, projection_every: 7}
  data: {sequence_length: 32}
  optimizer: {name: muon, learning_rate: 0.003, momentum: 0.95, orthogonalization: polar_express}
  schedule: {name: constant, warmup_fraction: 0}
  batch: {sequences: 32}
  evaluation: {every_steps: 50, sequences: 8}
  checkpoint: {every_steps: 100}
  runtime: {device: cpu, threads: 1}
design: groups
axes:
  orthogonalization:
    {field: optimizer.orthogonalization, values: [newton_schulz, polar_express], names: [ns, pe]}
  vr: {field: optimizer.variance_reduction, values: [false, true], names: [no-vr, vr]}
  cwd: {field: optimizer.cautious_weight_decay, values: [false, true], names: [no-cwd, cwd]}
  lr: {field: optimizer.learning_rate, key: lr, values: [0.001, 0.003, 0.01]}
  lazy: {field: model.projection_every, key: lazy, values: [3, 7, 10, 15]}
  batch: {field: batch.sequences, key: batch, values: [16, 32, 64]}
stages:
  broad:
    budget: {steps: 5000}
    stop: &stop {target: {loss: 5.0, also: [5.5, 4.8]}, timeout_seconds: 600}
    groups:
      A:
        rows:
          - {orthogonalization: newton_schulz}
          - {orthogonalization: polar_express}
          - {orthogonalization: newton_schulz, lr: 0.01, lazy: 10}
          - {orthogonalization: polar_express, lr: 0.01, lazy: 10}
      B: {rows: [{vr: true}, {cwd: true}, {vr: true, cwd: true}]}
      C: {takes: {orthogonalization: A}, rows: [{lazy: 3}, {lazy: 7}, {lazy: 15}]}
      D: {takes: {orthogonalization: A}, rows: [{lr: 0.001}, {lr: 0.003}, {lr: 0.01}]}
      E: {after: [D], rows: [{batch: 16, lr: 0.003}, {batch: 32}, {batch: 64, lr: 0.01}]}
    promotion:
      policy: refine_region
      metric: time_to_target_seconds
      top: 5
      trials: 36
      fields: [optimizer.learning_rate, model.projection_every, batch.sequences, optimizer.orthogonalization]
      log: [optimizer.learning_rate]
      multiple_of: {batch.sequences: 8}
      fallbacks: &fallbacks
        relax: 5.5
        repeat: {above_cv: 0.10, leaders: 3, runs: 3}
        tighten: {below_spread: 0.10, target: 4.8}
  fine:
    budget: {steps: 5000}
    stop: *stop
    promotion: {policy: fastest_to_target, fallbacks: *fallbacks}
evaluation: {smallbench: null, latency: false, throughput: false}
production:
  tokens: 40k
  overrides:
    schedule: {name: warmdown, warmup_fraction: 0, warmdown_fraction: 0.4}
    evaluation: {every_steps: 10, sequences: 8}
    checkpoint: {every_steps: 10}
"""

World = Callable[[dict[str, Any], int], float]
"""Values of the axes and a seed → seconds to 5.0."""
SHARES = {5.5: 0.6, 5.0: 1.0, 4.8: 1.3}
"""Time to a loss as a share of that to 5.0."""


@pytest.fixture(scope="session")
def race_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("race") / "corpus.txt"
    path.write_text("\n\n".join(f"Paragraph {n} of a text with {n * n} words." for n in range(400)))
    return path


@pytest.fixture(scope="session")
def race_text(race_corpus: Path) -> str:
    """The study's text."""
    return STUDY.replace("CORPUS", str(race_corpus))


@pytest.fixture
def race_run(tmp_path: Path, race_text: str) -> Callable[..., Run]:
    """A run of the study, with pieces of its text exchanged."""

    def make(**changes: str) -> Run:
        text = race_text
        for old, new in changes.pop("replace", {}).items():  # type: ignore[attr-defined]
            assert old in text
            text = text.replace(old, new)
        return Run.create(str(tmp_path / "store"), load_study(text))

    return make


def usual(values: dict[str, Any], seed: int, noise: float = 0.01) -> float:
    """60 s at rate 0.01 and every 10 steps, Polar Express 5 % faster, and a little noise of the seed."""
    seconds = 60.0
    seconds *= 1 + 0.3 * abs(math.log(values["lr"] / 0.01))
    seconds *= 1 + 0.2 * abs(math.log(values["lazy"] / 10))
    seconds *= 1.05 if values["orthogonalization"] == "newton_schulz" else 1.0
    seconds *= 0.97 if values["vr"] else 1.0
    seconds *= 1 + 0.1 * abs(math.log(values["batch"] / 64))
    draw = random.Random(f"{sorted(values.items(), key=str)} {seed}").gauss(0, noise)
    return seconds * math.exp(draw)


@pytest.fixture(scope="session")
def usual_world() -> World:
    """See `usual`."""
    return usual


def values_of(trial: Trial) -> dict[str, Any]:
    """What the axes are in a trial of either stage."""
    config = trial.config
    return {
        "orthogonalization": config.optimizer.orthogonalization,  # type: ignore[union-attr]
        "vr": config.optimizer.variance_reduction,  # type: ignore[union-attr]
        "cwd": config.optimizer.cautious_weight_decay,  # type: ignore[union-attr]
        "lr": config.optimizer.learning_rate,
        "lazy": config.model.projection_every,  # type: ignore[union-attr]
        "batch": config.batch.sequences,
    }


@pytest.fixture(scope="session")
def write_result() -> Callable[..., None]:
    """The result and the curve that a trial of these seconds to 5.0 leaves; it gives up after `limit` of them."""

    def write(run: Run, trial: Trial, seconds: float, *, limit: float = 600.0, device: str = "H100") -> None:
        rule = trial.config.stop.target
        assert rule is not None
        times = {loss: seconds * SHARES[loss] for loss in rule.losses}
        end = min(times[rule.loss], limit)
        reached = times[rule.loss] <= limit
        step_seconds = 0.2 * (1.01 if values_of(trial)["orthogonalization"] == "polar_express" else 1.0)
        crossings = [
            Crossing(loss=loss, step=round(at / step_seconds), tokens=1, seconds=at)
            if at <= end
            else Crossing(loss=loss)
            for loss, at in times.items()
        ]
        steps = round(end / step_seconds)
        result = TrialResult(
            run_name=trial.key.name,
            fingerprint=trial.fingerprint,
            status=Status.TARGET_REACHED if reached else Status.MISSED_TARGET,
            reason="as the world says",
            seed=trial.seed,
            steps=steps,
            tokens=steps * trial.config.tokens_per_step,
            final_val_loss=rule.loss - 0.01 if reached else rule.loss + 0.1,
            target_loss=rule.loss,
            reached_target=reached,
            time_to_target_seconds=end if reached else None,
            targets=crossings,
            training_seconds=end,
            final_model="checkpoints/final-model.safetensors",
            last_checkpoint=f"checkpoints/ckpt-step-{steps}.pt",
            versions=Versions(podium="0", device=device),
        )
        run.storage.write_text(f"{trial.key.folder}/{result.last_checkpoint}", "weights")
        points = [
            Point(step=k, tokens=k * 1000, val_loss=11 - 6 * k / 10 * (60 / seconds), train_seconds=end * k / 10)
            for k in range(1, 11)
        ]
        run.storage.write_text(
            f"{trial.key.folder}/metrics.jsonl", "".join(json.dumps(evaluation_line(p)) + "\n" for p in points)
        )
        run.storage.write_json(f"{trial.key.folder}/config.json", run.run_spec(trial).model_dump(mode="json"))
        run.storage.write_json(f"{trial.key.folder}/result.json", result.model_dump(mode="json"))

    return write


@pytest.fixture(scope="session")
def play(write_result: Callable[..., None]) -> Callable[..., tuple[Verdict, list[MoreTrials]]]:
    """Run a stage as its conductor would, by a world, to its verdict, which is written; and what was asked for."""

    def go(run: Run, stage: str, world: World, **options: Any) -> tuple[Verdict, list[MoreTrials]]:
        asked: list[MoreTrials] = []
        records = Records(run, stage)
        for _ in range(20):
            for trial in run.trials(stage):
                if run.result(trial.key) is None:
                    write_result(run, trial, world(values_of(trial), trial.seed), **options)
            answer = decide(run.study, run.results(stage))
            if isinstance(answer, Verdict):
                run.write_verdict(answer)
                return answer, asked
            asked.append(answer)
            records.more_trials(answer)
        raise AssertionError("the policy never comes to an end")

    return go
