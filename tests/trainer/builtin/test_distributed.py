"""Two gloo processes train what one trains."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from podium.trainer.builtin.checkpoint import load_model
from podium.trainer.builtin.distributed import Ranks, launched_ranks
from podium.trainer.builtin.run import train
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.result import read_lines
from podium.trainer.trial.storage import open_storage


def write_spec(folder, spec):
    folder.mkdir()
    (folder / "config.json").write_text(spec.model_dump_json())


def start(command, folder, env):
    return subprocess.Popen(
        [*command, "-m", "podium.trainer", "train", "--run-spec", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_losses(folder):
    lines = read_lines((folder / "metrics.jsonl").read_text())
    return [line["train_loss"] for line in lines if "train_loss" in line]


def test_two_ranks_equal_one_with_accumulation(tmp_path, tiny_spec):
    write_spec(tmp_path / "two", tiny_spec({"fingerprint": "x"}, batch={"sequences": 8, "micro_batch": 2}))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        start([sys.executable], tmp_path / "two", {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    spec = tiny_spec({"fingerprint": "x"}, batch={"sequences": 8, "micro_batch": 4})
    train(spec, open_storage(str(tmp_path / "one")), checkpoint_prefix="checkpoints/")
    for process in ranks:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert train_losses(tmp_path / "two") == pytest.approx(train_losses(tmp_path / "one"), abs=1e-6)
    mine, theirs = (
        load_model(tmp_path / name / "checkpoints" / "final-model.safetensors")[0].state_dict()
        for name in ("one", "two")
    )
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-4, atol=1e-6)
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert (result["status"], result["versions"]["world_size"]) == ("completed", 2)


SPEEDRUN = {
    "model": {"family": "speedrun", "vocab_size": 64, "d_model": 16, "n_layers": 3, "n_heads": 2},
    "optimizer": {"name": "muon", "learning_rate": 0.01},
    "schedule": {"name": "warmdown", "warmup_fraction": 0.0, "final_fraction": 0.0, "warmdown_steps": 4},
    "data": {"sequence_length": 16, "order": "sequential"},
    "max_steps": 10,
    "max_grad_norm": None,
    "evaluation": {"every_steps": 5, "sequences": 32},
}
DEPTH_WARM = {"start_layers": 1, "fraction": 0.6, "drop": 0.4}
CURRICULUM = {"lengths": [4, 12, 16], "mode": "reshape", "window": 1, "min_improvement": 10.0}


@pytest.mark.parametrize(
    ("model", "changes"),
    [({}, {}), ({"block": "palm", "depth_warm": DEPTH_WARM}, {"curriculum": CURRICULUM})],
    ids=["baseline", "palm-depth-warm-curriculum"],
)
def test_a_speedrun_on_two_ranks_is_that_on_one_with_accumulation(tmp_path, tiny_spec, model, changes):
    fields = {**SPEEDRUN, "model": {**SPEEDRUN["model"], **model}, **changes}
    write_spec(tmp_path / "two", tiny_spec({"fingerprint": "x"}, **fields, batch={"sequences": 8, "micro_batch": 2}))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        start([sys.executable], tmp_path / "two", {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    spec = tiny_spec({"fingerprint": "x"}, **fields, batch={"sequences": 8, "micro_batch": 2})
    train(spec, open_storage(str(tmp_path / "one")), checkpoint_prefix="checkpoints/")
    for process in ranks:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    one, two = (train_losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 10
    assert two == pytest.approx(one, abs=1e-5)


def test_sigterm_ends_both_ranks_at_one_step(tmp_path, tiny_spec):
    spec = tiny_spec({"fingerprint": "x"}, max_steps=100_000, evaluation={"every_steps": 50_000})
    write_spec(tmp_path / "two", spec)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(torchrun, tmp_path / "two", {})
    metrics = tmp_path / "two" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.is_file() or metrics.stat().st_size < 1000:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on
    output, _ = process.communicate(timeout=60)
    saved = list((tmp_path / "two" / "checkpoints").glob("ckpt-step-*.pt"))
    assert saved, output
    last_step = max(int(line["step"]) for line in read_lines(metrics.read_text()))
    assert last_step == max(int(path.stem.removeprefix("ckpt-step-")) for path in saved)
    assert not (tmp_path / "two" / "result.json").exists()


def test_without_torchrun_there_is_one_rank_and_no_process_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = launched_ranks()
    assert ranks == Ranks(0, 0, 1)
    assert ranks.broadcast("x") == "x"
    assert ranks.largest([1.0, 2.0], torch.device("cpu")) == [1.0, 2.0]
    assert ranks.mean(torch.tensor([3.0])).item() == 3.0


def test_torchrun_says_which_rank_this_is(monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert launched_ranks() == Ranks(3, 1, 4)


def test_ranks_that_torchrun_did_not_start_are_told_how(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2, so RANK must be set: start the ranks with `torchrun"):
        launched_ranks()
