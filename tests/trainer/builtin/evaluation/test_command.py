from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from podium.trainer.builtin.commands import build_request, evaluate_command
from podium.trainer.builtin.data.manifest import load_manifest
from podium.trainer.builtin.evaluation import run, smallbench
from podium.trainer.builtin.evaluation.run import evaluate_checkpoint, read_examples
from podium.trainer.trial.errors import CheckpointError, ConfigError, DataError, UserError
from podium.trainer.trial.storage import open_storage
from podium.trainer.trial.storage.file import FileStorage


def flags(run_folder: Path, output: Path) -> dict[str, Any]:
    return {
        "checkpoint": str(run_folder),
        "output": str(output),
        "device": "cpu",
        "threads": 1,
        "smallbench": "off",
    }


def measure(run_folder: Path, output: Path, **fields: Any) -> dict[str, Any]:
    return evaluate_checkpoint(build_request(flags(run_folder, output) | fields))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(run_folder: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an evaluation of every part."""
    output = tmp_path_factory.mktemp("output")
    measure(run_folder, output, smallbench=str(task_files))
    return output


def metrics(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def test_every_file_is_written_and_metrics_has_more_than_40_measured_fields(whole: Path) -> None:
    assert files(whole) == {
        "metrics.json",
        "summary.md",
        "smallbench_results.json",
        "latency_results.json",
        "throughput_results.json",
    }
    found = metrics(whole)
    measured = {name for name, value in found.items() if value is not None and name != "unmeasured"}
    assert len(measured) >= 60
    assert measured >= {
        *("dev_loss", "dev_perplexity", "dev_bits_per_byte", "test_loss", "test_perplexity", "test_bits_per_byte"),
        *("parameters_total", "parameters_embedding", "d_model", "n_layers", "n_heads", "d_ff", "vocab_size"),
        *(f"smallbench_{task}_{name}" for task in smallbench.TASKS for name in ("accuracy", "n", "stderr")),
        *(f"latency_{n}_{name}_ms" for n in (128, 512) for name in ("median", "p95", "mean", "min")),
        *("throughput_tokens_per_second", "peak_memory_mb", "weights_mb", "training_passes", "device", "torch_version"),
    }


def test_every_null_has_its_reason_and_nothing_else_has_one(whole: Path) -> None:
    found = metrics(whole)
    nulls = {name for name, value in found.items() if value is None}
    assert nulls == set(found["unmeasured"])
    assert all(found["unmeasured"].values())
    assert "cuda_version" in nulls


def test_figures_agree_with_each_other(whole: Path, dataset: Path) -> None:
    found = metrics(whole)
    assert found["parameters_total"] == 320 * 16 + 2 * (4 * 256 + 3 * 16 * 40 + 32) + 16
    assert found["weights_mb"] == pytest.approx(4 * found["parameters_total"] / 1e6)
    assert found["checkpoint_mb"] == pytest.approx(found["weights_mb"], rel=0.2)
    split = load_manifest(open_storage(str(dataset))).splits["validation"]
    assert found["dev_tokens"] == (split.tokens - 1) // 32 * 32
    assert found["dev_bits_per_byte"] < found["dev_loss"] / 0.69
    # an untrained model knows nothing: ln V
    assert found["dev_loss"] == pytest.approx(5.77, abs=0.1)
    assert found["declared_dev_tokens"] == 4 * 32
    assert found["latency_512_median_ms"] > found["latency_128_median_ms"]
    latencies = json.loads((whole / "latency_results.json").read_text())
    assert [row["beyond_training"] for row in latencies["results"]] == [True, True]
    assert latencies["results"][0]["median_ms"] == found["latency_128_median_ms"]
    throughputs = json.loads((whole / "throughput_results.json").read_text())
    best = max(throughputs["results"], key=lambda row: row["tokens_per_second"])
    assert found["throughput_tokens_per_second"] == best["tokens_per_second"]
    assert found["throughput_best_batch"] == best["batch"]


def test_each_examples_outcome_is_kept_for_paired_tests(whole: Path) -> None:
    results = json.loads((whole / "smallbench_results.json").read_text())
    assert results["harness"].startswith("lm-eval ")
    for task, result in results["tasks"].items():
        assert len(result["correct"]) == result["n"] == metrics(whole)[f"smallbench_{task}_n"]
        assert result["examples_sha256"]


def test_the_summary_says_what_was_measured_and_what_not(whole: Path) -> None:
    text = (whole / "summary.md").read_text()
    found = metrics(whole)
    assert "# Evaluation of seed-42" in text
    assert f"| dev | {found['dev_loss']:.4f} |" in text
    assert "| sst2 |" in text
    assert "- cuda_version: the device is cpu" in text


def test_smallbench_alone_needs_no_dataset(run_folder: Path, dataset: Path, task_files: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "weights"
    lonely.mkdir()
    for suffix in (".safetensors", ".json"):
        os.link(run_folder / "checkpoints" / f"final-model{suffix}", lonely / f"m{suffix}")
    found = measure(
        lonely / "m.safetensors",
        tmp_path / "out",
        tokenizer=str(dataset / "tokenizer.json"),
        only="smallbench",
        smallbench=str(task_files),
    )
    assert files(tmp_path / "out") == {"metrics.json", "summary.md", "smallbench_results.json"}
    assert found["smallbench_sst2_n"] == 6
    assert found["dev_loss"] is None
    assert found["unmeasured"]["dev_loss"] == "not asked for (--only smallbench)"
    assert found["unmeasured"]["corpus"] == "no dataset was read"


def test_task_files_in_a_remote_store_are_fetched(
    run_folder: Path, task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = build_request(flags(run_folder, tmp_path / "out") | {"smallbench": str(task_files)})
    here = read_examples(request, tmp_path)
    monkeypatch.setattr(FileStorage, "local_path", lambda *_: None)  # a store that is no file system
    assert read_examples(request, tmp_path) == here
    assert (tmp_path / "smallbench" / "SST-2" / "dev.tsv").exists()


def test_parts_that_are_skipped_are_null_and_say_so(run_folder: Path, tmp_path: Path) -> None:
    found = measure(run_folder, tmp_path, skip=("latency", "throughput"), max_eval_batches=1)
    assert files(tmp_path) == {"metrics.json", "summary.md"}
    assert found["unmeasured"]["latency_128_p95_ms"] == "not asked for (--skip-latency)"
    assert found["unmeasured"]["peak_memory_mb"].startswith("not asked for")
    assert found["unmeasured"]["smallbench_mean_accuracy"] == "not asked for (--smallbench off)"
    assert found["unmeasured"]["declared_dev_loss"] == "not measured whole (--max-eval-batches)"
    assert found["dev_tokens"] == 16 * 32


def test_a_dataset_without_a_test_split_has_no_test_loss(run_folder: Path, tmp_path: Path, dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    del manifest["splits"]["test"]
    copy = tmp_path / "data"
    copy.mkdir()
    for path in dataset.iterdir():
        os.link(path, copy / path.name)
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    found = measure(run_folder, tmp_path / "out", data=str(copy), only="perplexity")
    assert found["test_loss"] is None
    assert found["unmeasured"]["test_loss"] == "the dataset has no split 'test'"
    assert found["dev_loss"] is not None


def test_weights_that_are_not_finite_give_null_and_no_number(run_folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "weights"
    folder.mkdir()
    weights = load_file(run_folder / "checkpoints" / "final-model.safetensors")
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, folder / "m.safetensors")
    (folder / "m.json").write_text((run_folder / "checkpoints" / "final-model.json").read_text())
    data = json.loads((run_folder / "config.json").read_text())["dataset"]
    found = measure(folder / "m.safetensors", tmp_path / "out", data=data, only="perplexity")
    assert found["dev_loss"] is None
    assert found["unmeasured"]["dev_loss"] == "not finite: nan"


def test_without_the_harness_smallbench_is_null_with_the_reason(
    run_folder: Path, task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    found = measure(run_folder, tmp_path, only="smallbench", smallbench=str(task_files))
    assert found["smallbench_rte_accuracy"] is None
    assert "lm-eval is not installed" in found["unmeasured"]["smallbench_rte_accuracy"]


@pytest.mark.parametrize(
    ("fields", "error", "what"),
    [
        ({"checkpoint": "/nowhere"}, CheckpointError, "it has no .safetensors file"),
        ({"data": "/nowhere"}, DataError, "no prepared dataset at file:///nowhere"),
        ({"tokenizer": "/nowhere", "smallbench": "hub"}, DataError, "must be a tokenizer.json on this machine"),
        ({"smallbench": "/nowhere"}, DataError, "--smallbench: must be hub, off, or a folder with files of sst2"),
        ({"output": "/dev/null/nowhere"}, UserError, "/dev/null is not a folder"),
        ({"device": "cuda"}, ConfigError, "must be one that is here"),
    ],
)
def test_what_can_not_serve_is_refused_before_anything_is_measured(
    run_folder: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    error: type[UserError],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(run, "put_cost", lambda *_: pytest.fail("something was measured"))
    with pytest.raises(error, match=what):
        evaluate_checkpoint(build_request(flags(run_folder, tmp_path / "out") | fields))
    assert not (tmp_path / "out").exists()


def test_another_vocabulary_is_refused(run_folder: Path, tmp_path: Path, dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    copy = tmp_path / "data"
    copy.mkdir()
    for path in dataset.iterdir():
        os.link(path, copy / path.name)
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(json.dumps(manifest | {"vocab_size": 400, "tokenizer_size": 400}))
    with pytest.raises(DataError, match="must fit the model's vocabulary of 320, got 400"):
        measure(run_folder, tmp_path / "out", data=str(copy), only="perplexity")


def test_every_wrong_flag_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_request({"checkpoint": "a", "output": "b", "only": "speed", "device": "tpu", "threads": 0})
    assert [problem.where for problem in caught.value.problems] == ["only", "device", "threads"]
    with pytest.raises(ConfigError, match="nothing is left to measure"):
        build_request({"checkpoint": "a", "output": "b", "only": "latency", "skip": ("latency",)})


def test_the_command_prints_the_summary(run_folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(evaluate_command)
    given = ["--checkpoint", str(run_folder), "--output", str(tmp_path), "--device", "cpu", "--only", "perplexity"]
    outcome = CliRunner().invoke(app, [*given, "--max-eval-batches", "1"])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout == (tmp_path / "summary.md").read_text()
    assert "| dev |" in outcome.stdout


def test_the_command_loads_no_torch() -> None:
    code = "import sys, podium.trainer.builtin.commands\n"
    code += "print([m for m in ('torch', 'lm_eval') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
