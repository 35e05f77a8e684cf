"""Killed at random instants and started again, a run's steps leave what an undisturbed run leaves.

Compared are configs, metrics, results, verdicts, the gate, the ledger and the final weights; times, costs, attempts,
logs, the lease and the ledger's restart entries may differ. `PODIUM_CRASH_INSTANTS` is how many kills the random
part makes (20 by default), `PODIUM_CRASH_SEED` another draw of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.core, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
INSTANTS = int(os.environ.get("PODIUM_CRASH_INSTANTS", "20"))
SEED = os.environ.get("PODIUM_CRASH_SEED", "0")
KILLS_A_RUN = 5

STUDY = """
name: crash
question: Does a run that is killed again and again end like any other?
data:
  corpus: {source: builtin, max_bytes: 1M}
  vocab_size: 512
config:
  model: {family: transformer, d_model: 32, n_layers: 2, n_heads: 2, d_ff: 64}
  data: {sequence_length: 32}
  optimizer: {learning_rate: 1.0e-3}
  batch: {sequences: 8}
  evaluation: {every_steps: 20, sequences: 16}
  checkpoint: {every_steps: 20}
  runtime: {device: cpu, precision: fp32, compile: never, threads: 1}
design: one_at_a_time
axes:
  rate: {field: optimizer.learning_rate, values: [3.0e-4, 1.0e-3, 3.0e-3]}
stages:
  ranking:
    budget: {steps: 200}
    resources: {parallel: 2}
    price: {usd_per_gpu_hour: 1.0}
    retries: 5
    stop: {kill: {criteria: [{metric: loss, threshold: 0.3}], span_tokens: 5120, min_tokens: 5120}}
    promotion: {policy: top_per_axis, combine: false}
  proof:
    budget: {steps: 160}
    seeds: 2
    proof: true
    min_seeds: 2
    retries: 5
    resources: {parallel: 2}
    promotion: {policy: best_mean}
shakedown: {steps: 8}
"""

TIMES = {
    "attempts",
    "checkpoint_seconds",
    "compile_seconds",
    "cost_usd",
    "device_seconds",
    "evaluation_seconds",
    "peak_memory_bytes",
    "spent_usd",
    "tokens_per_second",
    "train_seconds",
    "training_seconds",
}


@dataclass
class Report:
    """What the harness did, printed at the end."""

    kills: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    finished_kept: int = 0
    resumed: int = 0


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    found = Report()
    yield found
    print(f"\ncrash harness: {found}")


class Climb:
    """A process that climbs the study's ladder in a store."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.store = folder, folder / "store"
        (folder / "study.yaml").write_text(STUDY)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PODIUM_"))}
        with (folder / "output.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "climb.py"), str(folder / "study.yaml"), str(self.store)],
                env={**kept, "OMP_NUM_THREADS": "1", **env},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, *, group: bool) -> None:
        if group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()

    def wait(self) -> None:
        assert self.process.wait(600) == 0, (self.folder / "output.log").read_text()[-4000:]

    def nobody_is_left(self) -> None:
        deadline = time.monotonic() + 15
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, left

    def _left(self) -> list[str]:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (place / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(self.store) in command and state != "Z":
                found.append(f"{place.name}: {command[:200]}")
        return found


def picture(store: Path) -> dict[str, Any]:
    """Everything of the store's run that must not depend on how often it was killed."""
    (run,) = [path for path in (store / "runs").iterdir() if path.is_dir()]
    found: dict[str, Any] = {"run": run.name}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if (
            not path.is_file()
            or path.name.startswith(".tmp-")
            or not name.startswith(("trials/", "verdicts/", "shakedown"))
        ):
            continue
        if path.name in ("config.json", "result.json", "shakedown.json") or name.startswith("verdicts/"):
            found[name] = _plain(json.loads(path.read_text().replace(str(store), "STORE")))
        elif path.name == "metrics.jsonl":
            lines = [_plain(json.loads(line)) for line in path.read_text().splitlines()]
            steps = [(line["step"], "val_loss" in line) for line in lines]
            assert len(set(steps)) == len(steps), f"{name} has a step twice"
            found[name] = lines
        elif path.name == "final-model.safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    entries = [json.loads(path.read_text()) for path in sorted((run / "ledger").glob("*.json"))]
    keys = [(entry["kind"], entry["key"]) for entry in entries]
    assert len(set(keys)) == len(keys), "the ledger has an entry twice"
    found["ledger"] = sorted(key for key in keys if key[0] != "trial_restarted")
    late = [
        name
        for name, value in found.items()
        if name.endswith("result.json") and isinstance(value, dict) and value["kill_tokens"] is not None
    ]
    for name in late:
        # How far it had come when that was noticed depends on when the baseline's curve was there, and so do what lies
        # behind the look in its metrics, and its last weights.
        del found[name]["stopped_tokens"]
        folder = name.removesuffix("result.json")
        last = found[name]["kill_tokens"]
        found[f"{folder}metrics.jsonl"] = [line for line in found[f"{folder}metrics.jsonl"] if line["tokens"] <= last]
        del found[f"{folder}checkpoints/final-model.safetensors"], found[name]["last_checkpoint"]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key not in TIMES and key != "commit"}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    # a check's detail names MLflow's run
    return value.partition("MLflow run")[0] if isinstance(value, str) else value


def finished(store: Path) -> dict[str, int]:
    """Trials that have a result → when their final weights were written."""
    models = store.glob("runs/*/trials/*/*/*/checkpoints/final-model.safetensors")
    return {
        str(path.parents[1]): path.stat().st_mtime_ns for path in models if (path.parents[1] / "result.json").exists()
    }


def interrupted(store: Path) -> list[str]:
    """Trials that have a checkpoint and no result: they must go on from it."""
    found = {path.parents[1] for path in store.glob("runs/*/trials/*/*/*/checkpoints/ckpt-step-*.pt")}
    return [str(path) for path in found if not (path / "result.json").exists()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The picture of a run that nobody disturbed, and its seconds."""
    started = time.monotonic()
    climb = Climb(tmp_path_factory.mktemp("undisturbed"))
    climb.wait()
    seconds = time.monotonic() - started
    found = picture(climb.store)
    assert sum(name.endswith("result.json") for name in found) == 9
    assert found["trials/ranking/rate-0.0003/seed-42/result.json"]["status"] == "killed"
    return found, seconds


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    different = {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]}
    for name, (here, there) in different.items():
        if isinstance(here, dict) and isinstance(there, dict):
            keys = [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
            different[name] = ({key: here.get(key) for key in keys}, {key: there.get(key) for key in keys})
    assert different == {}


@pytest.mark.parametrize("number", range(-(-INSTANTS // KILLS_A_RUN)))
def test_a_run_killed_at_random_instants_ends_as_if_it_had_not_been(
    number: int, undisturbed: tuple[dict[str, Any], float], tmp_path: Path, report: Report
) -> None:
    expected, seconds = undisturbed
    chance = random.Random(f"{SEED} {number}")
    done: dict[str, int] = {}
    kills = 0
    while True:
        before = interrupted(tmp_path / "store")
        climb = Climb(tmp_path)
        try:
            code = climb.process.wait(chance.uniform(0.2, seconds / 3) if kills < KILLS_A_RUN else 600)
        except subprocess.TimeoutExpired:
            group = chance.random() < 0.5
            climb.kill(group=group)
            climb.nobody_is_left()
            kills += 1
            kind = "process group" if group else "parent alone"
            report.kills[kind] = report.kills.get(kind, 0) + 1
        else:
            assert code == 0, (tmp_path / "output.log").read_text()[-4000:]
            break
        now = finished(climb.store)
        assert {name: now[name] for name in done} == done, "a finished trial was run again"
        done = now
        report.resumed += len([name for name in before if _went_on(Path(name))])
    now = finished(tmp_path / "store")
    assert {name: now[name] for name in done} == done, "a finished trial was run again"
    report.finished_kept += len(done)
    report.runs += 1
    same(picture(tmp_path / "store"), expected)


def _went_on(trial: Path) -> bool:
    """Whether the trial's last attempt that got to train started from a checkpoint."""
    run = trial.parents[3]
    stage, variant, seed = trial.parts[-3:]
    log = (run / "logs" / stage / f"{variant}-{seed}.log").read_text()
    starts = [line for line in log.splitlines() if " parameters on " in line]
    assert not starts[1:] or "from step" in starts[-1], f"{trial} began again: {starts[-1]}"
    return len(starts) > 1


@pytest.mark.parametrize("also", [True, False], ids=["and the parent", "the writer alone"])
@pytest.mark.parametrize(
    ("pattern", "after"),
    [
        ("checkpoints/ckpt-step-", 9),
        ("manifest.json", 0),
        ("ledger/", 4),
        ("result.json", 5),
        ("attempts.json", 2),
        ("verdicts/", 0),
        ("best-model.safetensors", 1),
        ("shakedown.json", 0),
    ],
)
def test_a_run_killed_inside_a_write_ends_as_if_it_had_not_been(
    pattern: str,
    after: int,
    also: bool,
    undisturbed: tuple[dict[str, Any], float],
    tmp_path: Path,
    report: Report,
) -> None:
    marker, parent = tmp_path / "marker", tmp_path / "parent"
    climb = Climb(
        tmp_path,
        PYTHONPATH=os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        CRASH_PATTERN=pattern,
        CRASH_MARKER=str(marker),
        CRASH_AFTER=str(after),
        CRASH_ALSO=str(parent) if also else "",
    )
    parent.write_text(str(climb.process.pid))
    code = climb.process.wait(600)
    assert pattern in marker.read_text(), "nothing was killed"
    if also:
        assert code == -signal.SIGKILL
    if code != 0:
        climb.nobody_is_left()
        Climb(tmp_path).wait()
    report.kills[f"in {pattern}"] = report.kills.get(f"in {pattern}", 0) + 1
    report.runs += 1
    same(picture(climb.store), undisturbed[0])
