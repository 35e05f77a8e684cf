"""A study-specific report is one file: a toy from this folder is found, takes part in a report and is exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from podium.components.reporting import studies
from podium.components.reporting.build import build_report, export
from podium.components.reporting.results_csv import read_csv
from podium.components.reporting.studies import StudyReport, export_layouts, study_report
from podium.components.study.run import Run
from podium.components.study.schema import Study, layouts
from podium.trainer.trial.errors import UserError

REPORTING = Path(studies.__file__).parent.parent
SHIPPED = ["generic", "moe-emergence", "param-allocation", "speedrun", "time-to-target"]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(Path(__file__).parent / "toy")])
    spec = studies.__spec__
    assert spec is not None
    monkeypatch.setattr(spec, "submodule_search_locations", studies.__path__)


@pytest.fixture
def toy_run(toy: None, two_stage_run: Run) -> Run:
    content = two_stage_run.study.model_dump(mode="json") | {"layout": "toy-layout", "name": "with-toy"}
    run = Run.create(two_stage_run.store_uri, Study.model_validate(content))
    for trial in run.trials(run.stages[0]):
        run.storage.write_text(trial.key.log, f"beginning\nlast of {trial.key.name}\n")
    return run


def test_every_shipped_layout_is_a_file_with_one_class() -> None:
    assert layouts() == SHIPPED
    assert study_report("generic") is StudyReport
    for layout in SHIPPED[1:]:
        assert study_report(layout).__module__ == f"{studies.__name__}.{layout.replace('-', '_')}"
    assert export_layouts() == ["generic", "param-allocation", "speedrun", "time-to-target"]


def test_a_report_has_every_part_that_a_layout_adds(toy_run: Run) -> None:
    page = build_report(toy_run)
    assert "<h1>A toy: No verdict yet.</h1>" in page
    assert "What the toy says</h2>" in page
    trials = toy_run.trials(toy_run.stages[0])
    assert all(f"last of {trial.key.name}" in page for trial in trials)
    read = toy_run.storage.read_text
    assert read("report/toy.txt") == "a toy\n"
    assert read("report/figures/toy.svg") == "<svg></svg>\n"
    _, rows = read_csv(read("report/results.csv"))
    assert [row["toy_cell"] for row in rows] == [str(trial.seed) for trial in trials]
    order = [line for line in read("report/summary.md").splitlines() if line.startswith("## ")]
    assert order.index("## What the toy says") == order.index("## Stages") + 1


def test_its_export_is_its_own_and_of_its_study_alone(toy_run: Run, two_stage_run: Run, tmp_path: Path) -> None:
    written = export(toy_run, "toy-layout", tmp_path / "out")
    assert [path.name for path in written] == ["only.txt"]
    assert study_report("toy-layout").printed(toy_run) == [f"toy {toy_run.id}"]
    with pytest.raises(UserError, match="'toy-layout' is not that of study"):
        export(two_stage_run, "toy-layout", tmp_path / "other")


def test_without_its_file_a_layout_is_refused_with_those_there_are(two_stage_run: Run) -> None:
    content = two_stage_run.study.model_dump(mode="json") | {"layout": "toy-layout"}
    with pytest.raises(ValueError, match="'generic', 'moe-emergence', 'param-allocation', 'speedrun' or 'time-to-ta"):
        Study.model_validate(content)


def test_no_module_but_its_own_names_a_layout() -> None:
    names = [f'"{layout}"' for layout in SHIPPED[1:]]
    for path in (*REPORTING.glob("*.py"), *(REPORTING / "figures").glob("*.py"), REPORTING / "studies/__init__.py"):
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if name in text], path
