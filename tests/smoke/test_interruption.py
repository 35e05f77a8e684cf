"""A whole run through the real command, interrupted and started again, ends as one that nobody disturbed.

Compared are configs, metrics, results, verdicts, ledger and final weights; times, costs, attempts, logs, the lease and
the ledger's entries about restarts may differ. Killed are the command's process group, or the command alone (its
children must then end by themselves). Kills inside a write are in `tests/crash`.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KILLS = 5
"""Kills of one run; the next start goes to its end."""
TIMES = {
    "time", "train_seconds", "training_seconds", "evaluation_seconds", "compile_seconds", "checkpoint_seconds",
    "tokens_per_second", "device_seconds", "cost_usd", "spent_usd", "attempts", "attempt", "seconds",
    "peak_memory_bytes", "created", "watch",
}  # fmt: skip
RESTARTS = {"restart", "trial_restarted", "run_started"}


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def picture(store: Path) -> dict[str, object]:
    """Everything of a run that must not depend on how often it was interrupted."""
    (run,) = [path for path in (store / "runs").iterdir() if path.is_dir()]
    found: dict[str, object] = {"run": run.name}
    for path in sorted(run.rglob("*")):
        name, parts = str(path.relative_to(run)), path.relative_to(run).parts
        if parts[0] not in ("trials", "verdicts") or not path.is_file():
            continue
        if path.name in ("config.json", "result.json") or parts[0] == "verdicts":
            # URIs name the store's folder, which differs
            text = path.read_text(encoding="utf-8").replace(str(store), "STORE")
            found[name] = without_times(json.loads(text))
        elif path.name == "metrics.jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            found[name] = [without_times(json.loads(line)) for line in lines]
            steps = [(line.get("step"), "val_loss" in line) for line in found[name]]
            assert len(set(steps)) == len(steps), f"{name} has a step twice"
        elif path.name == "final-model.safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / "ledger").glob("*.json"))]
    keys = [(entry["kind"], entry["key"]) for entry in entries]
    assert len(set(keys)) == len(keys), "an entry of the ledger is there twice"
    found["ledger"] = sorted(key for key in keys if key[0] not in RESTARTS)
    return found


def finished(store: Path) -> dict[str, int]:
    """The trials that have a result, with when their final weights were written."""
    models = store.glob("runs/*/trials/*/*/*/checkpoints/final-model.safetensors")
    return {
        str(path.parents[1].relative_to(store)): path.stat().st_mtime_ns
        for path in models
        if (path.parents[1] / "result.json").exists()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run leaves that nobody interrupts; made once by the first test that asks."""
    return {"folder": tmp_path_factory.mktemp("undisturbed")}


@pytest.fixture
def reference(undisturbed, start, seconds_study):
    """The picture of that run, and the seconds it took."""
    if "picture" not in undisturbed:
        store = undisturbed["folder"] / "store"
        began = time.monotonic()
        process = start("run", seconds_study, "--store", store)
        assert process.wait(600) == 0, (seconds_study.parent / "output.log").read_text()[-3000:]
        undisturbed.update(picture=picture(store), seconds=time.monotonic() - began)
    return undisturbed


def kill(process, *, group: bool) -> None:
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def check_children_are_gone(store: Path) -> None:
    """Nobody who works in the store outlives the command by more than a few seconds."""
    deadline = time.monotonic() + 10
    while (left := processes_of(store)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, left


def processes_of(store: Path) -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (place / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(store) in command and state != "Z" and int(place.name) != os.getpid():
            found.append(f"{place.name}: {command[:200]}")
    return found


@pytest.mark.parametrize("group", [True, False], ids=["the process group", "the command alone"])
def test_a_run_killed_at_random_instants_ends_the_same(start, seconds_study, tmp_path, reference, group):
    chance = random.Random(int(group))
    store = tmp_path / "store"
    done: dict[str, int] = {}
    for kills in range(KILLS + 1):
        process = start("run", seconds_study, "--store", store)
        try:
            code = process.wait(chance.uniform(0.5, reference["seconds"] / 3) if kills < KILLS else 600)
        except subprocess.TimeoutExpired:
            kill(process, group=group)
            check_children_are_gone(store)
        else:
            assert code == 0, (tmp_path / "output.log").read_text()[-3000:]
        now = finished(store)
        assert {name: now[name] for name in done} == done, "a finished trial was run again"
        done = now
    assert picture(store) == reference["picture"]


def test_an_interrupted_run_saves_and_the_same_command_goes_on(start, seconds_study, tmp_path, reference):
    store = tmp_path / "store"
    process = start("run", seconds_study, "--store", store)
    while not list(store.glob("runs/*/trials/*/*/*/metrics.jsonl")):
        assert process.poll() is None, (tmp_path / "output.log").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert "the same command goes on" in (tmp_path / "output.log").read_text()
    check_children_are_gone(store)
    again = start("run", seconds_study, "--store", store)
    assert again.wait(600) == 0, (tmp_path / "output.log").read_text()[-3000:]
    assert picture(store) == reference["picture"]
