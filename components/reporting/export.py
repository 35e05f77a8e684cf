"""Export a run's results into a folder of its own, in the files that another tool or a paper expects; and one table of
all trials of many runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from podium.components.reporting.build import render
from podium.components.reporting.model import ReportData, collect
from podium.components.reporting.results_csv import Row, axis_keys, columns_of, read_csv, result_rows, to_csv
from podium.components.reporting.studies.speedrun import speedrun_files
from podium.components.study.run import Run
from podium.components.study.verdict import to_markdown
from podium.trainer.trial.errors import UserError

LAYOUTS = ("generic", "param-allocation", "speedrun", "time-to-target")
_OF_ONE_STUDY = ("param-allocation", "time-to-target")
"""Layouts whose files make no sense for another study."""


def export(run: Run, layout: str, to: Path) -> list[Path]:
    """Write the run's results into the folder `to`, which is made; returns the files.

    generic: results.csv, summary.md, figures, verdicts (JSON and Markdown) and every finalist's evaluation.
    param-allocation: the files of phase 1, analysis.csv (all trials), plots, the finalists' evaluations and summary.md.
    time-to-target: those of generic, with trials.jsonl, a summary of each stage, answers.md and production.yaml.
    speedrun: a folder for each variant at each stage, named as `layouts.speedrun` says; of any study.
    Raises UserError for another layout, and for one that is not the study's.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout in _OF_ONE_STUDY and layout != run.study.layout:
        raise UserError(f"layout {layout!r} is not that of study {run.study.name!r}, which has {run.study.layout!r}")
    data = collect(run)
    if layout == "speedrun":
        contents = {name: text.encode() for name, text in speedrun_files(run, data).items()}
    else:
        files = _param_allocation(data) if layout == "param-allocation" else _generic(data)
        contents = {name: text.encode() for name, text in files.items()} | _evaluations(run)
    written = []
    for name, content in sorted(contents.items()):
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
    return written


def aggregate(sources: Iterable[Run | Path]) -> str:
    """One CSV with a row for every trial of all runs and results.csv files, their axes side by side."""
    rows: list[Row] = []
    axes: dict[str, None] = {}
    for source in sources:
        if isinstance(source, Path):
            columns, found = read_csv(source.read_text(encoding="utf-8"))
            # a results.csv has its axes between these two columns
            between = columns[columns.index("seed") + 1 : columns.index("trial")] if "trial" in columns else []
        else:
            data = collect(source)
            found, between = result_rows(data), list(axis_keys(data.study).values())
        rows += found
        axes.update(dict.fromkeys(between))
    return to_csv(rows, columns_of(rows, axes))


def _generic(data: ReportData) -> dict[str, str]:
    files = dict(render(data).files)
    for stage in data.decided:
        assert stage.verdict is not None
        files[f"verdicts/{stage.name}.json"] = json.dumps(stage.verdict.model_dump(mode="json"), indent=2) + "\n"
        files[f"verdicts/{stage.name}.md"] = to_markdown(stage.verdict)
    return files


def _param_allocation(data: ReportData) -> dict[str, str]:
    named = {"results.csv": "analysis.csv"}
    return {named.get(name, name.replace("figures/", "plots/")): text for name, text in render(data).files.items()}


def _evaluations(run: Run) -> dict[str, bytes]:
    """Every file of the finalists' evaluations, as it is."""
    return {key: run.storage.read_bytes(key) for key in run.storage.list("evaluation")}
