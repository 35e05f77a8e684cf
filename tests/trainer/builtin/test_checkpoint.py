"""Checkpoint files by themselves: what is refused, in which words, and that saving does not wait for the disk."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from podium.trainer.builtin import checkpoint
from podium.trainer.builtin.checkpoint import (
    BackgroundWriter,
    CheckpointWriter,
    DamagedCheckpoint,
    Snapshot,
    load_model,
    read_full,
    step_of,
)
from podium.trainer.builtin.run import train
from podium.trainer.trial.errors import CheckpointError
from podium.trainer.trial.storage import open_storage


@pytest.fixture
def run_folder(tmp_path, tiny_spec):
    train(tiny_spec(max_steps=3, checkpoint={"every_steps": 3}), open_storage(str(tmp_path / "run")))
    return tmp_path / "run"


def resumed(tiny_spec, tmp_path, path):
    return train(tiny_spec(), open_storage(str(tmp_path / "other")), resume=str(path))


def test_weights_alone_are_refused_for_resume(run_folder, tmp_path, tiny_spec):
    with pytest.raises(CheckpointError, match=r"takes a full checkpoint \(ckpt-step-<n>\.pt\), got model-step-3"):
        resumed(tiny_spec, tmp_path, run_folder / "model-step-3.safetensors")
    assert not (tmp_path / "other").exists() or not list((tmp_path / "other").iterdir())


def test_another_format_version_is_refused(run_folder, tmp_path, tiny_spec):
    path = run_folder / "ckpt-step-3.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "format_version": 2}, path)
    with pytest.raises(CheckpointError, match="format_version must be 1, got 2"):
        resumed(tiny_spec, tmp_path, path)


def test_another_mode_is_refused(run_folder, tmp_path, tiny_spec):
    path = run_folder / "ckpt-step-3.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "mode": "moe"}, path)
    with pytest.raises(CheckpointError, match="mode: must be 'dense', got 'moe'"):
        resumed(tiny_spec, tmp_path, path)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path, tiny_spec):
    with pytest.raises(CheckpointError, match=r"ckpt-step-9\.pt': not there"):
        resumed(tiny_spec, tmp_path, tmp_path / "ckpt-step-9.pt")


def test_a_checkpoint_past_the_end_of_the_run_is_refused(run_folder, tmp_path, tiny_spec):
    spec = tiny_spec(max_steps=2, evaluation={"every_steps": 1}, checkpoint={"every_steps": 1})
    with pytest.raises(CheckpointError, match="must be of a step up to 2, got step 3"):
        train(spec, open_storage(str(tmp_path / "other")), resume=str(run_folder / "ckpt-step-3.pt"))


def test_a_file_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "ckpt-step-1.pt"
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="without format_version"):
        read_full(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "ckpt-step-1.pt"
    torch.save({"format_version": 1, "evil": Path("/")}, path)
    with pytest.raises(DamagedCheckpoint):
        read_full(path)


def test_a_full_checkpoint_lacking_a_part_is_damaged(run_folder):
    path = run_folder / "ckpt-step-3.pt"
    state = torch.load(path, weights_only=True)
    del state["loader_state"]
    torch.save(state, path)
    with pytest.raises(DamagedCheckpoint, match="loader_state"):
        read_full(path)


def test_a_model_is_loaded_with_its_config(run_folder, tiny_config):
    model, config = load_model(run_folder / "final-model.safetensors")
    assert config.model == tiny_config().model
    assert not model.training
    assert model(torch.zeros(1, 4, dtype=torch.int64))[0].shape == (1, 4, 64)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "final-model.json").unlink(), "final-model.json: not there"),
        (lambda folder: (folder / "final-model.safetensors").write_bytes(b"x"), "damaged"),
        (lambda folder: change(folder, format_version=7), "format_version must be 1, got 7"),
        (lambda folder: drop(folder, "config"), "has no config"),
        (lambda folder: misfit(folder), "does not fit its final-model.json"),
    ],
)
def test_a_model_that_can_not_serve_is_refused_in_words(break_it, message, run_folder):
    break_it(run_folder)
    with pytest.raises(CheckpointError, match=message):
        load_model(run_folder / "final-model.safetensors")


def change(folder, **fields):
    path = folder / "final-model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def drop(folder, field):
    path = folder / "final-model.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != field}))


def misfit(folder):
    path = folder / "final-model.safetensors"
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path)


def test_names_carry_the_step():
    assert step_of(checkpoint.full_name(120)) == 120
    assert [step_of(name) for name in ("ckpt-step-x.pt", "model-step-3.safetensors", ".tmp-ckpt-step-3.pt")] == [
        None
    ] * 3


def test_a_snapshot_does_not_follow_the_weights():
    weights = {"a": torch.zeros(3), "b": [torch.ones(2), "text"]}
    snapshot = Snapshot()
    copy = snapshot.take(weights)
    weights["a"] += 5
    assert copy["a"].tolist() == [0, 0, 0]
    assert copy["b"][1] == "text"


def test_a_snapshot_uses_its_memory_again():
    snapshot = Snapshot()
    first = snapshot.take({"a": torch.zeros(3)})["a"].data_ptr()
    assert snapshot.take({"a": torch.ones(3)})["a"].data_ptr() == first


@pytest.fixture
def files(tmp_path, tiny_config):
    writer = BackgroundWriter()
    yield CheckpointWriter(open_storage(str(tmp_path)), tiny_config(), writer, tmp_path, keep_last=2), writer
    writer.close()


def parts(value):
    return {"model_state_dict": {"w": torch.full((2,), float(value))}}


def test_saving_returns_before_the_file_is_there(files, tmp_path):
    checkpoints, writer = files
    gate = threading.Event()
    checkpoints.save(1, parts(1), {}, before=gate.wait)
    assert not (tmp_path / "ckpt-step-1.pt").exists()
    gate.set()
    writer.drain()
    assert (tmp_path / "ckpt-step-1.pt").exists()


def test_the_best_weights_of_an_evaluation_are_written_with_the_next_checkpoint(files, tmp_path):
    checkpoints, writer = files
    weights = torch.zeros(2)
    checkpoints.hold_best(1, {"w": weights}, {"val_loss": 2.0})
    weights += 1  # training goes on
    checkpoints.save(2, parts(1), {}, before=lambda: None)
    weights += 1
    checkpoints.hold_best(3, {"w": weights}, {"val_loss": 1.0})
    weights += 1
    checkpoints.hold_best(4, {"w": weights}, {"val_loss": 0.5})
    writer.drain()
    assert load_file(tmp_path / "best-model.safetensors")["w"].tolist() == [0, 0]
    checkpoints.save_final(5, {"w": weights}, {})
    writer.drain()
    assert load_file(tmp_path / "best-model.safetensors")["w"].tolist() == [3, 3]
    assert json.loads((tmp_path / "best-model.json").read_text())["step"] == 4


def test_old_full_checkpoints_go_and_best_and_final_stay(files, tmp_path):
    checkpoints, writer = files
    checkpoints.hold_best(1, {"w": torch.zeros(1)}, {})
    for step in (1, 2, 3, 10):
        checkpoints.save(step, parts(step), {}, before=lambda: None)
    checkpoints.save_final(10, {"w": torch.zeros(1)}, {})
    writer.drain()
    assert {path.name for path in tmp_path.glob("ckpt-*")} == {"ckpt-step-3.pt", "ckpt-step-10.pt"}
    assert {"best-model.safetensors", "final-model.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_a_write_that_fails_leaves_the_former_file_whole(files, tmp_path, monkeypatch):
    checkpoints, writer = files
    checkpoints.save(1, parts(1), {}, before=lambda: None)
    writer.drain()
    before = (tmp_path / "ckpt-step-1.pt").read_bytes()

    def half(_, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    checkpoints.save(1, parts(2), {}, before=lambda: None)
    with pytest.raises(OSError, match="disk full"):
        writer.drain()
    assert (tmp_path / "ckpt-step-1.pt").read_bytes() == before
    assert not list(tmp_path.glob(".tmp-*"))
