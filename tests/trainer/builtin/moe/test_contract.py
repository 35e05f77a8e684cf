"""`train` by the study's contract: every flag with its default, the presets, and shakedowns end to end."""

from __future__ import annotations

import json
import re
import sys

import pytest
from typer.testing import CliRunner

from podium.trainer.builtin import cli
from podium.trainer.builtin.inputs import ContractFlags, preset_mapping, spec_from_flags
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.result import Status, TrialResult

FLAGS = {
    "--preset": "", "--run-name": "", "--output-dir": "checkpoints", "--resume": "none", "--seed": "42",
    "--size-mb": "10.0", "--block-size": "512", "--balance-tokens": "preset", "--batch-size": "2",
    "--grad-accum-steps": "4", "--max-steps": "preset", "--eval-every": "200", "--save-every": "500",
    "--keep-last-k": "3", "--learning-rate": "5e-5", "--weight-decay": "0.01", "--warmup-fraction": "0.1",
    "--max-grad-norm": "1.0", "--lb-coef": "preset", "--z-coef": "0.001", "--log-router-every": "100",
    "--num-experts": "8", "--topk": "preset", "--moe-layers": "8 9 10 11", "--mlflow-experiment": "podium",
    "--mlflow-uri": "environment: MLFLOW_TRACKING_URI", "--mlflow-offline": "false", "--mode": "preset",
}  # fmt: skip


@pytest.fixture(scope="module")
def shown():
    """Flag → what --help says of it, in one line each."""
    text = CliRunner(env={"COLUMNS": "240", "TERMINAL_WIDTH": "240"}).invoke(cli.app, ["train", "--help"]).output
    found, last = {}, None
    for line in text.splitlines():
        line = line.strip("│ ")
        match = re.match(r"(--[a-z-]+)", line)
        if match:
            last = match[1]
            found[last] = line
        elif last and line and not line.startswith("╰"):
            found[last] += " " + line
    return found


@pytest.mark.parametrize(("flag", "default"), FLAGS.items())
def test_help_shows_every_flag_of_the_contract_with_its_default(shown, flag, default):
    assert flag in shown
    given = re.search(r"\[default: \(?(.*?)\)?\]", shown[flag])
    assert (given[1] if given else "") == default


def test_help_names_devices_modes_and_presets(shown):
    assert "auto, cuda, mps or cpu" in shown["--device"]
    assert "[default: (auto)]" in shown["--device"]
    assert "dense or moe" in shown["--mode"]
    for preset in ("shakedown", "dense", "moe-main", "no-lb", "top2"):
        assert preset in shown["--preset"]


def config_of(preset, *, mode=None, **flags):
    contract = ContractFlags(mode=mode, **flags)
    return spec_from_flags(None, preset, "file:///nowhere", {}, [], contract=contract).config


@pytest.fixture
def no_data(monkeypatch):
    """Presets without a dataset: its vocabulary is GPT-2's."""

    class Manifest:
        vocab_size = 50257

    monkeypatch.setattr("podium.trainer.builtin.data.manifest.load_manifest", lambda storage: Manifest)


def test_what_the_flags_default_to_is_what_the_presets_have(no_data):
    for preset in ("dense", "moe-main", "no-lb", "top2"):
        config = config_of(preset)
        assert config.seed == 42
        assert config.runtime.device == "auto"
        assert config.data.sequence_length == 512
        assert config.batch.micro_batch == 2
        assert config.batch.accumulation_steps() == 4
        assert (config.evaluation.every_steps, config.checkpoint.every_steps) == (200, 500)
        assert config.checkpoint.keep_last == 3
        assert config.optimizer.name == "adamw"
        assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (5e-5, 0.01)
        assert (config.schedule.name, config.schedule.warmup_fraction) == ("cosine", 0.1)
        assert config.max_grad_norm == 1.0
        assert config.batch.fit_memory
        assert config.data.balance_tokens
        assert config.model.source == "gpt2"
        assert config.preset == preset


def test_presets_are_those_of_the_contract(no_data):
    shakedown = config_of("shakedown")
    assert (shakedown.max_steps, shakedown.mode) == (100, "dense")
    assert (shakedown.evaluation.every_steps, shakedown.checkpoint.every_steps) == (50, 50)
    assert not shakedown.data.balance_tokens
    assert config_of("shakedown", mode="moe").mode == "moe"
    dense = config_of("dense")
    assert (dense.max_steps, dense.mode, dense.router, dense.stop.collapse) == (5000, "dense", None, None)
    main, no_lb, top2 = (config_of(name) for name in ("moe-main", "no-lb", "top2"))
    for config, steps, topk, lb, noise in (
        (main, 10_000, 1, 0.01, 0.1),
        (no_lb, 2000, 1, 0.0, 0.0),
        (top2, 3000, 2, 0.01, 0.1),
    ):
        assert (config.max_steps, config.mode) == (steps, "moe")
        assert (config.model.moe.layers, config.model.moe.num_experts) == ([8, 9, 10, 11], 8)
        assert config.model.moe.topk == topk
        assert config.model.moe.capacity_factor is None
        assert (config.router.lb_coef, config.router.z_coef, config.router.noise) == (lb, 0.001, noise)
        assert (config.router.noise_fraction, config.router.log_every_steps) == (0.25, 100)
    assert (main.stop.collapse, top2.stop.collapse) == (None, None)
    assert (no_lb.stop.collapse.share, no_lb.stop.collapse.checks, no_lb.stop.collapse.every_steps) == (0.6, 3, 100)


def test_every_flag_reaches_its_field(no_data):
    config = config_of(
        "moe-main", block_size=256, balance_tokens=False, batch_size=4, grad_accum_steps=3, eval_every=7, save_every=9,
        keep_last_k=5, weight_decay=0.2, warmup_fraction=0.3, max_grad_norm=0.5, lb_coef=0.02, z_coef=0.03,
        log_router_every=11, num_experts=6, topk=2, moe_layers="1,3 5", fit_memory=False, model="tiny",
    )  # fmt: skip
    assert (config.data.sequence_length, config.data.balance_tokens) == (256, False)
    assert (config.batch.micro_batch, config.batch.sequences, config.batch.fit_memory) == (4, 12, False)
    assert (config.evaluation.every_steps, config.checkpoint.every_steps, config.checkpoint.keep_last) == (7, 9, 5)
    assert (config.optimizer.weight_decay, config.schedule.warmup_fraction, config.max_grad_norm) == (0.2, 0.3, 0.5)
    assert (config.router.lb_coef, config.router.z_coef, config.router.log_every_steps) == (0.02, 0.03, 11)
    assert (config.model.moe.num_experts, config.model.moe.topk, config.model.moe.layers) == (6, 2, [1, 3, 5])
    assert (config.model.source, config.model.n_layers) == (None, 12)


@pytest.mark.parametrize(
    ("preset", "flags", "message"),
    [
        (
            "dense",
            {"topk": 2, "lb_coef": 0.1},
            "--topk: needs a mixture of experts, got a dense model\n  - --lb-coef: needs",
        ),
        ("dense", {"mode": "moe"}, "--mode: must be dense for --preset dense, got moe"),
        ("top2", {"mode": "both"}, "--mode: must be dense or moe, got 'both'"),
        ("top2", {"moe_layers": "eight"}, "--moe-layers: must be numbers of blocks such as 8 9 10 11, got 'eight'"),
        ("tiny", {"mode": "moe", "size_mb": 2.0}, "--mode: is for --preset shakedown"),
    ],
)
def test_flags_without_a_place_are_refused(preset, flags, message):
    with pytest.raises(ConfigError) as error:
        ContractFlags(**flags).adjust(preset_mapping(preset, None), preset)
    assert message in str(error.value)


# ---- end to end ----


def invoke(*arguments):
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
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "argv", [])
    return tmp_path


SMALL = (
    "--model", "tiny", "--data", "demo", "--size-mb", "0.05", "--block-size", "16", "--batch-size", "1",
    "--grad-accum-steps", "2", "--max-steps", "4", "--eval-every", "2", "--save-every", "2", "--device", "cpu",
    "--set", "runtime.threads=1", "--set", "evaluation.sequences=8",
)  # fmt: skip


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", ["dense", "moe"])
def test_a_shakedown_end_to_end(mode, here, capsys):
    arguments = ["train", "--preset", "shakedown", "--mode", mode, "--run-name", "gate", *SMALL]
    if mode == "moe":
        arguments += ["--moe-layers", "8", "9", "10", "11", "--log-router-every", "2"]
    assert invoke(*arguments) == 0, capsys.readouterr().err
    folder = here / "checkpoints/gate"
    result = TrialResult.model_validate_json((folder / "result.json").read_text())
    assert result.status is Status.COMPLETED
    assert result.steps == 4
    lines = lines_of(folder)
    assert all(line["train_loss"] is not None for line in lines if "train_loss" in line)
    assert [line["step"] for line in lines if "val_loss" in line] == [2, 4]
    assert [line["step"] for line in lines if "router" in line] == ([2, 4] if mode == "moe" else [])
    assert {"ckpt-step-2.pt", "ckpt-step-4.pt"} <= {path.name for path in folder.iterdir()}
    assert "demo: Python's documentation topics" in (folder / "note.md").read_text()
    config = json.loads((folder / "config.json").read_text())["config"]
    assert (config["preset"], config["data"]["balance_tokens"]) == ("shakedown", False)
    assert (config["model"]["moe"] or {}).get("layers") == ([8, 9, 10, 11] if mode == "moe" else None)
    # resume goes on counting, and the snapshot of weights alone writes but does not train on
    more = [value if value != "4" else "6" for value in arguments[:-4]] + list(arguments[-4:])
    assert invoke(*more, "--resume", "auto") == 0, capsys.readouterr().err
    assert [line["step"] for line in lines_of(folder) if "train_loss" in line] == [1, 2, 3, 4, 5, 6]
    data = next((here / "checkpoints/data").iterdir())
    capsys.readouterr()
    weights = str(folder / "final-model.safetensors")
    assert invoke("generate", weights, "--data", str(data), "--prompt", "def ", "--tokens", "3") == 0
    assert capsys.readouterr().out.startswith("def ")
    assert invoke(*more, "--resume", weights) == 2
    assert "--resume takes a full checkpoint" in capsys.readouterr().err


def test_no_hub_means_the_demo_corpus_and_is_said(here, capsys, monkeypatch):
    from podium.trainer.builtin.data.corpora import mixture
    from podium.trainer.trial.errors import DataError

    def away(domain, size):
        raise DataError("the hub is away")

    monkeypatch.setattr(mixture, "fetch_hub_texts", away)
    arguments = [value for value in SMALL if value not in ("--data", "demo")]
    assert invoke("train", "--preset", "shakedown", "--run-name", "a", *arguments) == 0
    said = capsys.readouterr().out
    assert "warning: the hub is away" in said
    assert "the demo corpus is used instead" in said
    assert "demo: " in (here / "checkpoints/a/note.md").read_text()


def test_mlflow_is_used_where_the_environment_names_it_and_not_offline(here, monkeypatch):
    from podium.trainer.builtin.cli import _tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    tracking = _tracking(None, None, False)
    assert (tracking.uri, tracking.experiment) == ("sqlite:///x.db", "podium")
    assert _tracking("mine", "sqlite:///y.db", False).uri == "sqlite:///y.db"
    assert _tracking(None, None, True) is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert _tracking(None, None, False) is None
