"""The speedrun folders: every file and field of the original scripts, failures counted, and read back by `compare`."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from podium.components.reporting.build import export
from podium.components.reporting.studies.speedrun import spoken, statistics_of
from podium.components.study import layout
from podium.components.study.run import Run
from podium.components.verdicts.compare import compare
from podium.trainer.trial.result import Point, Status, evaluation_line, train_line

LOSSES = {52: 3.2774, 53: 3.2791, 54: 3.2786}


def line(loss: float, seed: int) -> dict[str, Any]:
    return {
        "run_id": seed,
        "seed": seed,
        "final_val_loss": loss,
        "time_seconds": 10.0,
        "success": True,
    }


@pytest.fixture
def exported(two_stage_run: Run, finish: Callable[..., None], tmp_path: Path) -> Path:
    """Two variants with two seeds each in the first stage, one of them failed, with metrics and logs."""
    run = two_stage_run
    stage = run.stages[0]
    names = [ref.name for ref in run.stage_variants(stage) or []]
    finish(run, stage, **{name: [3.3 + i / 100, 3.31 + i / 100] for i, name in enumerate(names)})
    for trial in run.trials(stage):
        lines = [train_line(1, 64, 5.0, 1e-3, 1.0, 0.5), evaluation_line(Point(2, 128, 4.5, train_seconds=1.0))]
        text = "".join(json.dumps(each) + "\n" for each in lines)
        run.storage.write_text(f"{trial.key.folder}/metrics.jsonl", text)
        run.storage.write_text(trial.key.log, f"log of {trial.key.name}\n")
    last = run.trials(stage)[-1]
    result = run.result(last.key)
    assert result is not None
    failed = result.model_copy(update={"status": Status.DIVERGED, "final_val_loss": None})
    run.storage.write_json(f"{last.key.folder}/result.json", failed.model_dump(mode="json"))
    export(run, "speedrun", tmp_path / "out")
    return tmp_path / "out"


def folders(exported: Path) -> list[Path]:
    return sorted(exported.iterdir())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_every_file_and_field_of_the_original_is_there(exported: Path) -> None:
    assert len(folders(exported)) >= 2
    for folder in folders(exported):
        name, moment = folder.name[:-16], folder.name[-15:]
        assert re.fullmatch(r"\d{8}_\d{6}", moment)
        results = rows(folder / "results.jsonl")
        assert all(
            set(each)
            == {"run_id", "seed", "final_val_loss", "final_train_loss", "time_seconds", "final_step", "success"}
            for each in results
        )
        summary = json.loads((folder / "summary.json").read_text())
        assert set(summary) == {"experiment_name", "end_time", "statistics", "git_info", "gpu_info"}
        assert summary["experiment_name"] == name
        assert set(summary["statistics"]) == {"n_runs", "successful_runs", "val_loss", "time"}
        assert set(summary["statistics"]["val_loss"]) == {"mean", "std", "min", "max", "median", "ci_95"}
        assert set(summary["statistics"]["time"]) == {"mean", "std", "total"}
        assert json.loads((folder / "config.json").read_text())["experiment_name"] == name
        assert spoken(name, summary["statistics"]) in (folder / "experiment.log").read_text()
        for each in results:
            log = folder / f"runs/run_{each['run_id']}_seed_{each['seed']}/stdout.log"
            assert log.read_text().startswith("log of ")


def test_metrics_have_the_clock_in_milliseconds_and_its_mean_a_step(exported: Path) -> None:
    lines = rows(folders(exported)[0] / "metrics.jsonl")
    train, evaluation = lines[0], lines[1]
    assert (train["run_id"], train["step"], train["train_loss"]) == (0, 1, 5.0)
    assert (train["train_time_ms"], train["step_avg_ms"]) == (500.0, 500.0)
    assert (evaluation["step"], evaluation["val_loss"], evaluation["step_avg_ms"]) == (2, 4.5, 500.0)


def test_a_failed_run_has_nulls_and_is_counted(exported: Path) -> None:
    failed = [each for folder in folders(exported) for each in rows(folder / "results.jsonl") if not each["success"]]
    assert len(failed) == 1
    assert {failed[0][name] for name in ("final_val_loss", "final_train_loss", "time_seconds", "final_step")} == {None}
    counts = [json.loads((folder / "summary.json").read_text())["statistics"] for folder in folders(exported)]
    assert sorted(each["n_runs"] - each["successful_runs"] for each in counts)[-1] == 1


def test_two_exported_folders_compare_as_their_runs_do(exported: Path) -> None:
    a, b = [each for each in folders(exported) if all(row["success"] for row in rows(each / "results.jsonl"))][:2]
    found = compare(str(a), str(b))
    figures = [[r["final_val_loss"] for r in rows(folder / "results.jsonl") if r["success"]] for folder in (a, b)]
    assert found.difference == pytest.approx(statistics.fmean(figures[1]) - statistics.fmean(figures[0]))
    assert len(found.a.curves) == len(figures[0])


def test_a_dirty_checkout_leaves_its_diff(two_stage_run: Run, finish: Callable[..., None], tmp_path: Path) -> None:
    run = two_stage_run
    names = [ref.name for ref in run.stage_variants(run.stages[0]) or []]
    finish(run, run.stages[0], **{name: [3.3, 3.31] for name in names})
    run.storage.write_json(layout.SOURCE, {"commit": "c" * 40, "branch": "main", "changed": ["trainer/loop.py"]})
    run.storage.write_text(layout.SOURCE_DIFF, "--- a/trainer/loop.py\n")
    export(run, "speedrun", tmp_path / "dirty")
    for folder in (tmp_path / "dirty").iterdir():
        assert (folder / "git_diff.patch").read_text() == "--- a/trainer/loop.py\n"
        assert json.loads((folder / "summary.json").read_text())["git_info"]["dirty"] is True


def test_statistics_are_those_of_the_textbook() -> None:
    found = statistics_of([line(loss, seed) for seed, loss in LOSSES.items()])
    values = list(LOSSES.values())
    low, high = stats.t.interval(0.95, 2, loc=statistics.fmean(values), scale=stats.sem(values))
    assert found["val_loss"]["ci_95"] == pytest.approx([low, high])
    assert found["val_loss"]["std"] == pytest.approx(statistics.stdev(values))
    assert found["time"] == {"mean": 10.0, "std": 0.0, "total": 30.0}


def test_one_run_has_no_spread_and_none_has_nothing() -> None:
    one = statistics_of([line(3.28, 1)])
    assert one["val_loss"]["mean"] == 3.28
    assert one["val_loss"]["std"] is None
    assert one["val_loss"]["ci_95"] is None
    none = statistics_of([{**line(3.28, 1), "success": False}])
    assert none["successful_runs"] == 0
    assert none["val_loss"]["mean"] is None
    assert none["time"]["total"] is None
    assert spoken("x", none) == "x: Runs: 0/1"
