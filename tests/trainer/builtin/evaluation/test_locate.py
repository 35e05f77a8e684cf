from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from podium.trainer.builtin.evaluation.subject import locate_model
from podium.trainer.trial.errors import CheckpointError


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("", "final-model"),
        ("/final", "final-model"),
        ("/best", "best-model"),
        ("/checkpoints/best-model.safetensors", "best-model"),
    ],
)
def test_a_trials_models_are_found_with_its_dataset(run_folder: Path, tmp_path: Path, named: str, file: str) -> None:
    for prefix in ("", "file://"):
        found = locate_model(f"{prefix}{run_folder}{named}", tmp_path)
        assert found.path == run_folder / "checkpoints" / f"{file}.safetensors"
        assert found.uri == found.path.as_uri()
        assert found.run == "seed-42"
        assert found.dataset is not None
        assert found.dataset.startswith("file:///")


def test_a_run_used_alone_has_its_models_beside_its_config(run_folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run_folder / "checkpoints", alone)
    shutil.copy(run_folder / "config.json", alone)
    found = locate_model(str(alone), tmp_path)
    assert found.path == alone / "final-model.safetensors"
    assert found.run == "alone"


def test_weights_outside_any_run_have_no_dataset(run_folder: Path, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy(run_folder / "checkpoints" / f"best-model{suffix}", tmp_path)
    found = locate_model(str(tmp_path / "best-model.safetensors"), tmp_path)
    assert (found.dataset, found.run) == (None, None)


def test_remote_weights_come_with_their_sidecar(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from podium.trainer.trial.storage.file import FileStorage

    monkeypatch.setattr(FileStorage, "local_path", lambda *_: None)  # a store that is no file system
    found = locate_model(str(run_folder), tmp_path)
    assert found.path == tmp_path / "final-model.safetensors"
    assert found.path.with_suffix(".json").exists()


def test_what_can_not_be_evaluated_is_refused_by_name(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"takes model weights .* got a full checkpoint: .*ckpt-step-5\.pt"):
        locate_model(str(run_folder / "ckpt-step-5.pt"), tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors is not there"):
        locate_model(str(tmp_path / "nowhere.safetensors"), tmp_path)
    with pytest.raises(CheckpointError, match=r"must be a run's folder with final-model\.safetensors, but it has no"):
        locate_model(str(tmp_path), tmp_path)
    (tmp_path / "half.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"half\.json is not there"):
        locate_model(str(tmp_path / "half.safetensors"), tmp_path)
    with pytest.raises(CheckpointError, match=r"but it has half\.safetensors"):
        locate_model(str(tmp_path / "best"), tmp_path)


def test_a_registered_model_is_found_among_its_artifacts(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    artifacts = tmp_path / "artifacts"
    asked = {}

    def download(**arguments: str) -> str:
        asked.update(arguments)
        shutil.copytree(run_folder / "checkpoints", artifacts / "data", dirs_exist_ok=True)
        return str(artifacts)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    monkeypatch.setenv("PODIUM_MLFLOW_URI", "http://mlflow:5000")
    with pytest.raises(CheckpointError, match=r"must hold one model .*, got best-model\.safetensors, final-model"):
        locate_model("models:/study/1", tmp_path)
    assert (asked["artifact_uri"], asked["tracking_uri"]) == ("models:/study/1", "http://mlflow:5000")
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda **_: str(artifacts / "one"))
    (artifacts / "one").mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(run_folder / "checkpoints" / f"final-model{suffix}", artifacts / "one")
    assert locate_model("models:/study/1", tmp_path).path == artifacts / "one" / "final-model.safetensors"
