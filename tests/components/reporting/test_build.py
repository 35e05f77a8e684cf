"""The report of a run in a real store."""

import json
import random
from pathlib import Path

import pytest

from podium.components.policies.decide import decide
from podium.components.reporting.build import aggregate, axis_tables, build_report, export
from podium.components.reporting.results_csv import read_csv
from podium.components.study.run import Run
from podium.components.study.verdict import Verdict
from podium.trainer.trial.errors import UserError
from podium.trainer.trial.result import Status, TrialResult, Versions


@pytest.fixture
def run(tmp_path: Path, study) -> Run:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one document of text\n\n" * 500)
    chosen = study(data={"corpus": {"source": "files", "path": str(corpus)}, "vocab_size": 16000})
    return Run.create(str(tmp_path / "store"), chosen)


def finish(run: Run, stage: str, *, only: int | None = None) -> None:
    """Write results and metrics of the stage's trials as the trainer would."""
    noise = random.Random(3)
    for trial in run.trials(stage)[:only]:
        loss = (
            5.0 + 0.02 * run.trials(stage)[0:9].index(trial) / 9 if stage == "ranking" else 4.0 + noise.gauss(0, 0.01)
        )
        lines = [
            {"step": 100 * i, "tokens": 1000 * i, "val_loss": loss + 1 / i, "val_perplexity": 2.0, "train_seconds": 1.0}
            for i in range(1, 11)
        ]
        train = {"step": 1, "tokens": 10, "train_loss": 9.0, "learning_rate": 0.1, "gradient_norm": 1.0}
        text = "".join(json.dumps(line) + "\n" for line in [train, *lines])
        result = TrialResult(
            run_name=trial.key.name, fingerprint=trial.fingerprint, status=Status.COMPLETED, reason="all steps done",
            seed=trial.seed, steps=1000, tokens=10_000, final_val_loss=loss, final_val_perplexity=2.718**loss,
            training_seconds=12.25, cost_usd=0.0123, device_seconds=20.0,
            versions=Versions(podium="0.1.0", device="cpu"),
        )  # fmt: skip
        run.storage.write_text(f"{trial.key.folder}/metrics.jsonl", text)
        run.storage.write_text(trial.key.log, f"starting {trial.key.name}\nstep 1000\n")
        run.storage.write_json(f"{trial.key.folder}/result.json", result.model_dump(mode="json"))


def conclude(run: Run, stage: str) -> None:
    verdict = decide(run.study, run.results(stage))
    assert isinstance(verdict, Verdict)
    run.write_verdict(verdict)


def test_a_report_can_be_built_at_every_stage_of_a_run(run: Run) -> None:
    assert "No verdict yet" in build_report(run)
    finish(run, "ranking", only=2)
    assert "2 of 6 trials" in build_report(run)
    finish(run, "ranking")
    conclude(run, "ranking")
    assert "from ranking to finals" in build_report(run)
    finish(run, "finals")
    conclude(run, "finals")
    html = build_report(run)
    assert run.storage.read_text("report/index.html") == html
    for name in ("summary.md", "results.csv", "figures/curves-finals.svg", "figures/axis-embedding_ratio-ranking.svg"):
        assert run.storage.exists(f"report/{name}")


def test_building_again_changes_no_byte(run: Run) -> None:
    finish(run, "ranking")
    conclude(run, "ranking")
    build_report(run)
    before = {key: run.storage.read_bytes(key) for key in run.storage.list("report")}
    build_report(Run.open(run.store_uri, run.id))
    assert {key: run.storage.read_bytes(key) for key in run.storage.list("report")} == before


def test_a_figure_that_is_gone_is_removed(run: Run) -> None:
    build_report(run)
    run.storage.write_text("report/figures/old.svg", "<svg/>")
    build_report(run)
    assert not run.storage.exists("report/figures/old.svg")


def test_the_files_of_phase_1_lie_in_the_report_once_the_ranking_is_decided(run: Run) -> None:
    finish(run, "ranking")
    build_report(run)
    assert not [key for key in run.storage.list("report") if "phase1" in key]
    conclude(run, "ranking")
    build_report(run)
    columns, rows = read_csv(run.storage.read_text("report/phase1_summary.csv"))
    assert [row["experiment_name"] for row in rows] == [
        f"phase1_{name}" for name in ("emb25", "emb35", "emb45", "glu2x", "glu266x", "glu3x", "glu4x")
    ]
    assert rows[1]["trial"] == rows[4]["trial"]
    assert len({row["trial"] for row in rows}) == 6
    needed = "run_id experiment_name trial embedding_ratio glu_expansion val_perplexity val_loss n_layers d_model d_ff "
    assert set((needed + "parameters tokens status elapsed_seconds").split()) <= set(columns)
    assert all(row["elapsed_seconds"] == "20.0" and row["status"] == "completed" for row in rows)
    tops = run.storage.read_json("report/phase1_top1.json")
    verdict = run.verdict("ranking")
    assert verdict is not None
    assert {axis: f"phase1_{name}" for axis, name in verdict.tops.items() if name != "baseline"}.items() <= {
        axis: top["experiment_name"] for axis, top in tops.items()
    }.items()
    fields = {"experiment_name", "embedding_ratio", "val_perplexity", "val_loss", "d_model", "n_layers", "d_ff"}
    assert fields <= set(tops["embedding"])
    ends = [key for key in run.storage.list("report") if "_results_" in key]
    assert sorted(key.split("/")[1].split("_")[0] for key in ends) == ["all", "embedding", "glu"]
    everything = run.storage.read_json(next(key for key in ends if "all_" in key))
    assert len(everything) == 7
    assert set(everything[0]) == {"exp_name", "status", "elapsed_seconds", "stdout", "stderr"}
    assert everything[0]["stdout"].endswith("step 1000")


def test_axis_tables_have_a_row_a_value(run: Run) -> None:
    finish(run, "ranking")
    tables = axis_tables(run)
    assert [len(table.lines) for table in tables] == [3, 4]
    assert [column.title for column in tables[1].columns][:4] == ["experiment", "GLU expansion", "PPL", "loss"]


def test_export_refuses_an_unknown_layout_and_says_which_there_are(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one of generic, param-allocation, speedrun, time-to-target, got 'paper'"):
        export(run, "paper", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_refuses_the_layout_of_another_study(run: Run, tmp_path: Path, study) -> None:
    other = Run.create(run.store_uri, run.study.model_copy(update={"layout": "generic", "name": "other"}))
    with pytest.raises(UserError, match="not that of study 'other'"):
        export(other, "param-allocation", tmp_path / "out")


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            "generic",
            {"results.csv", "summary.md", "verdicts/ranking.json", "verdicts/ranking.md", "figures/funnel.svg"},
        ),
        (
            "param-allocation",
            {"analysis.csv", "phase1_summary.csv", "phase1_top1.json", "plots/funnel.svg", "summary.md"},
        ),
    ],
)
def test_export_writes_a_folder_of_its_own(run: Run, tmp_path: Path, layout: str, expected: set[str]) -> None:
    finish(run, "ranking")
    conclude(run, "ranking")
    run.storage.write_json("evaluation/baseline/metrics.json", {"test_loss": 4.0})
    written = export(run, layout, tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in written}
    assert expected | {"evaluation/baseline/metrics.json"} <= names
    assert all(path.stat().st_size for path in written)


def test_aggregate_joins_runs_and_tables(run: Run, tmp_path: Path) -> None:
    finish(run, "ranking")
    build_report(run)
    table = tmp_path / "results.csv"
    table.write_bytes(run.storage.read_bytes("report/results.csv"))
    columns, rows = read_csv(aggregate([run, table]))
    assert len(rows) == 12
    assert rows[:6] == rows[6:]
    assert columns[columns.index("seed") + 1 : columns.index("trial")] == ["embedding_ratio", "glu_expansion"]
