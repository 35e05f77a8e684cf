"""The trainer as a process: its exit codes, its log, and kills that no handler sees."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from podium.trainer.builtin.checkpoint import load_model
from podium.trainer.builtin.run import train
from podium.trainer.trial.result import TrialResult, read_lines
from podium.trainer.trial.storage import open_storage


@pytest.fixture(autouse=True)
def one_commit(monkeypatch):
    monkeypatch.setenv("PODIUM_COMMIT", "0" * 40)


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "podium.trainer", "train", "--run-spec", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PODIUM_ATTEMPT": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def trial(folder, spec):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(spec.model_dump_json())
    return folder


LONG = {"max_steps": 400, "evaluation": {"every_steps": 50, "sequences": 16}, "checkpoint": {"every_steps": 10}}


def test_a_trial_killed_at_any_instant_ends_as_if_it_had_not_been(tmp_path, tiny_spec):
    spec = tiny_spec({"fingerprint": "f"}, **LONG)
    train(spec, open_storage(str(tmp_path / "whole")), run_name="x", checkpoint_prefix="checkpoints/")
    folder = trial(tmp_path / "cut", spec)
    instants = random.Random(0)
    for checkpoint in ("ckpt-step-10.pt", "ckpt-step-40.pt"):
        process = start(folder)
        wait_for((folder / "checkpoints" / checkpoint).is_file, process)
        time.sleep(instants.uniform(0.0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    process = start(folder)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "from step" in output
    assert output.splitlines()[0] == f"podium trainer: attempt 2, process {process.pid}"
    for name in ("final-model", "best-model"):
        mine, theirs = (
            load_model(tmp_path / run / "checkpoints" / f"{name}.safetensors")[0].state_dict()
            for run in ("whole", "cut")
        )
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    curves = [
        [{**line, "train_seconds": 0} for line in read_lines((tmp_path / run / "metrics.jsonl").read_text())]
        for run in ("whole", "cut")
    ]
    assert curves[0] == curves[1]
    results = [
        TrialResult.model_validate_json((tmp_path / run / "result.json").read_text()) for run in ("whole", "cut")
    ]
    assert results[0].final_val_loss == results[1].final_val_loss
    assert results[1].attempts == 2
    assert not list((folder / "checkpoints").glob(".tmp-*"))

    again = start(folder)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "already done: completed" in output


def test_sigterm_saves_and_exits_with_75(tmp_path, tiny_spec):
    spec = tiny_spec({"fingerprint": "f"}, **{**LONG, "max_steps": 1_000_000})
    folder = trial(tmp_path / "trial", spec)
    process = start(folder)
    wait_for(lambda: (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size > 0, process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "interrupted: SIGTERM: saved at step" in output
    last = max(int(line["step"]) for line in read_lines((folder / "metrics.jsonl").read_text()))
    assert (folder / "checkpoints" / f"ckpt-step-{last}.pt").is_file()
    assert not (folder / "lease.json").exists()


def invoke(*arguments):
    """The command line in this process."""
    from podium.trainer.builtin import cli

    code = 0
    try:
        sys.argv = ["podium.trainer", *arguments]
        cli.main()
    except SystemExit as ended:
        code = ended.code
    return code


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    return tmp_path


def test_a_run_by_hand_writes_its_folder_and_goes_on_only_when_told(here, markov_data, capsys):
    arguments = ("train", "--preset", "tiny", "--data", str(markov_data), "--run-name", "a", "--max-steps", "4")
    settings = ("--set", "evaluation.every_steps=2", "--set", "checkpoint.every_steps=2", "--device", "cpu")
    assert invoke(*arguments, *settings) == 0
    assert TrialResult.model_validate_json((here / "checkpoints/a/result.json").read_text()).run_name == "a"
    assert json.loads((here / "checkpoints/a/config.json").read_text())["config"]["max_steps"] == 4
    assert (here / "checkpoints/a/ckpt-step-4.pt").is_file()
    capsys.readouterr()
    assert invoke(*arguments, *settings) == 2
    assert "holds a run: --resume auto goes on with it" in capsys.readouterr().err
    assert invoke(*arguments, *settings, "--resume", "auto") == 0
    assert "already done: completed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--preset", "tiny", "--data", "nowhere"), "--run-name: required"),
        (("train", "--preset", "tiny", "--data", "nowhere", "--run-name", "a"), "no prepared dataset at"),
        (("train", "--preset", "tiny", "--data", "DATA", "--run-name", "a", "--device", "tpu"), "runtime.device"),
        (("train", "--preset", "tiny", "--data", "DATA", "--run-name", "a", "--max-steps", "0"), "max_steps"),
        (
            ("train", "--preset", "tiny", "--data", "DATA", "--run-name", "a", "--set", "data.sequence_length=9999"),
            "at least one block of 10000 tokens",
        ),
        (
            ("train", "--preset", "tiny", "--data", "DATA", "--run-name", "a", "--set", "evaluation.sequences=9999"),
            "evaluation.sequences: must be at most the 31",
        ),
        (
            ("train", "--preset", "tiny", "--data", "DATA", "--run-name", "a", "--output-dir", "gopher://x"),
            "got 'gopher://x'",
        ),
        (("train", "--run-spec", "nowhere"), "no such config file"),
        (("generate", "nowhere.safetensors", "--tokenizer", "nowhere/tokenizer.json"), "not there"),
        (("lr-find", "--preset", "tiny", "--data", "DATA", "--low", "1", "--high", "0.1"), "needs 0 < low < high"),
    ],
)
def test_a_mistake_is_one_clear_error_and_writes_nothing(arguments, message, here, markov_data, capsys):
    arguments = tuple(str(markov_data) if argument == "DATA" else argument for argument in arguments)
    assert invoke(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert list(here.iterdir()) == []


def test_another_fingerprint_than_the_results_is_refused(here, tiny_spec, capsys):
    spec = tiny_spec({"fingerprint": "one"})
    train(spec, open_storage("trial"), checkpoint_prefix="checkpoints/")
    (here / "trial/config.json").write_text(spec.model_copy(update={"fingerprint": "two"}).model_dump_json())
    assert invoke("train", "--run-spec", "trial") == 2
    assert "result.json is of fingerprint one, config.json says two" in capsys.readouterr().err


def test_overfit_says_by_its_exit_code_what_it_found(here, markov_data, capsys):
    base = ("overfit", "--preset", "tiny", "--data", str(markov_data), "--device", "cpu")
    assert invoke(*base, "--max-steps", "3") == 1
    assert "failed: loss" in capsys.readouterr().err


def test_lr_find_writes_its_files(here, markov_data, capsys):
    arguments = ("--preset", "tiny", "--data", str(markov_data), "--device", "cpu", "--steps", "25")
    assert invoke("lr-find", *arguments) == 0
    assert {path.name for path in (here / "lr-find").iterdir()} == {"lr_find.csv", "lr_find.json", "lr_find.svg"}
    assert "suggested learning rate" in capsys.readouterr().out


def test_help_names_every_command_with_examples():
    from podium.trainer.builtin.cli import app

    text = CliRunner().invoke(app, ["--help"]).output
    for command in ("train", "prepare", "evaluate", "lr-find", "overfit", "generate"):
        assert command in text
        assert f"podium.trainer {command}" in CliRunner().invoke(app, [command, "--help"]).output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_equals_an_eager_one_and_its_compile_time_is_apart(tmp_path, tiny_spec):
    steps = {"max_steps": 4, "evaluation": {"every_steps": 2, "sequences": 16}, "checkpoint": {"every_steps": 2}}
    eager = train(tiny_spec(**steps), open_storage(str(tmp_path / "eager")))
    runtime = {"device": "cpu", "threads": 1, "compile": "always"}
    compiled = train(tiny_spec(**steps, runtime=runtime), open_storage(str(tmp_path / "compiled")))
    assert compiled.final_val_loss == pytest.approx(eager.final_val_loss, abs=1e-4)
    assert compiled.compile_seconds > 0.5
    assert compiled.training_seconds < compiled.compile_seconds
    assert load_model(tmp_path / "compiled/final-model.safetensors")
