"""The time-to-target study's smoke profile from the command line to the production run, and a real tightening."""

import json
import re
import time

import pytest

from podium.components.study.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_the_smoke_study_goes_from_groups_to_a_production_run(podium, tmp_path):
    began = time.monotonic()
    ran = podium("run", "time-to-target", "--profile", "smoke", "--store", "store", timeout=1200)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    print(f"time-to-target smoke: {time.monotonic() - began:.0f} s")  # for RESULTS.md; a busy machine must not fail it
    last = ran.stdout.splitlines()[-1]
    found = re.fullmatch(r"winner: (\S+) · candidate: .* · report: (\S+)", last)
    assert found, last
    run = Run.open(str(tmp_path / "store"))
    assert {trial.group for trial in run.trials("broad")} >= set("ABCDEFG")
    asked = [entry.data["asked"]["kind"] for entry in run.ledger.entries("more_trials")]
    assert asked[0] == "wave"
    fine = run.trials("fine")
    assert sum(trial.key.fallback is None for trial in fine) >= 8
    for trial in [*run.trials("broad"), *fine]:
        result = run.result(trial.key)
        assert result is not None
        assert result.status.value in ("target_reached", "missed_target"), result.reason
        assert (result.time_to_target_seconds is None) == (not result.reached_target)
    report = (tmp_path / found[2]).parent
    for name in ("trials.jsonl", "answers.md", "summary-broad.md", "summary-fine.md", "results.csv"):
        assert (report / name).stat().st_size > 0
    assert (report / "answers.md").read_text().count("\n- ") >= 4
    exported = podium("export", "store", "--layout", "time-to-target", "--to", "out")
    assert exported.returncode == 0, exported.stderr
    produced = (tmp_path / "out" / "production.yaml").read_text()
    assert produced == (report / "production.yaml").read_text()
    again = podium("run", "time-to-target", "--profile", "smoke", "--store", "store", timeout=600)
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1] == last


TIGHT = """\
name: tight
question: Which is faster?
layout: time-to-target
data: {corpus: {source: builtin, max_bytes: 1M}, vocab_size: 512}
config:
  model: {family: ngpt, d_model: 32, n_layers: 1, n_heads: 2, d_ff: 64}
  data: {sequence_length: 32}
  optimizer: {name: muon, learning_rate: 0.02}
  schedule: {name: constant, warmup_fraction: 0}
  batch: {sequences: 16}
  evaluation: {every_steps: 10, sequences: 32, batch_sequences: 32}
  checkpoint: {every_steps: 300}
  runtime: {device: cpu, precision: fp32, compile: never, threads: 1}
design: groups
axes:
  momentum: {field: optimizer.momentum, values: [0.9, 0.95]}
stages:
  only:
    budget: {steps: 300}
    stop: {target: {loss: 5.6, also: [5.4]}}
    groups: {A: {rows: [{momentum: 0.9}, {momentum: 0.95}]}}
    promotion:
      policy: fastest_to_target
      # whatever the times are, they are alike enough for this
      fallbacks: {tighten: {below_spread: 1000, target: 5.4}}
shakedown: {steps: 8}
evaluation: {smallbench: null, latency: false, throughput: false, max_batches: 4}
"""


def test_stopped_trials_go_on_to_a_tighter_target_from_their_checkpoints(podium, tmp_path):
    (tmp_path / "tight.yaml").write_text(TIGHT)
    ran = podium("run", "tight.yaml", "--store", "store", timeout=1200)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    run = Run.open(str(tmp_path / "store"))
    on = [trial for trial in run.trials("only") if trial.key.fallback is not None]
    assert [trial.key.folder.rpartition("/")[2] for trial in on] == ["seed-42-to-5.4"] * 2
    for trial in on:
        first, second = run.result(trial.continues.key), run.result(trial.key)
        spec = json.loads((tmp_path / "store" / "runs" / run.id / trial.key.folder / "config.json").read_text())
        assert spec["start_checkpoint"].endswith(first.last_checkpoint)
        assert spec["continues"] == first.fingerprint
        assert (first.target_loss, second.target_loss) == (5.6, 5.4)
        assert second.steps > first.steps
        # the clock and the crossing of 5.6 are the first trial's own
        assert second.training_seconds > first.training_seconds
        assert second.targets[0].step == first.targets[0].step
        assert second.device_seconds is not None
    verdict = run.verdict("only")
    assert verdict.fallbacks[0].name == "tighten"
    assert verdict.test["target_loss"] == 5.4
