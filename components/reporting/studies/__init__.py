"""What a kind of study adds to its report: one class per file of this package, found by the file's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import ClassVar

from podium.components.reporting.model import ReportData
from podium.components.reporting.table import Figure, Headline, Section
from podium.components.study.run import Run
from podium.components.study.schema import GENERIC, layouts
from podium.components.study.verdict import to_markdown


class StudyReport:
    """The report of a study of the layout `generic`, which adds nothing.

    The layout `my-study` is the subclass in `my_study.py`; a study names it in its field `layout`. Nothing else has to
    be registered.
    """

    has_export: ClassVar[bool] = True
    """Whether `podium export --layout` takes it."""
    of_any_study: ClassVar[bool] = True
    """Whether its export makes sense for a study of another layout."""
    reads_logs: ClassVar[bool] = False
    """Whether the trials of the first stage come with the last lines of their logs."""

    def __init__(self, data: ReportData) -> None:
        self.data = data

    def headline(self, head: Headline) -> Headline:
        """The headline, given the common one."""
        return head

    def sections(self) -> list[Section]:
        """Sections that follow the overview."""
        return []

    def figures(self, common: Sequence[Figure]) -> list[Figure]:
        """All figures of the report in their order, given the common ones."""
        return list(common)

    def cells(self) -> dict[str, dict[str, str]]:
        """Trial → further cells of its row in results.csv."""
        return {}

    def files(self) -> dict[str, str]:
        """Further files of the report."""
        return {}

    def exported(self, run: Run, report: Callable[[], Mapping[str, str]]) -> dict[str, bytes]:
        """The files of `podium export`; `report` renders those of the report."""
        files = dict(report())
        for stage in self.data.decided:
            assert stage.verdict is not None
            files[f"verdicts/{stage.name}.json"] = json.dumps(stage.verdict.model_dump(mode="json"), indent=2) + "\n"
            files[f"verdicts/{stage.name}.md"] = to_markdown(stage.verdict)
        return {name: text.encode() for name, text in files.items()} | evaluation_files(run)

    @staticmethod
    def printed(run: Run) -> list[str]:
        """Lines that the command line prints once the run or its export has ended."""
        return []


def evaluation_files(run: Run) -> dict[str, bytes]:
    """Every file of the finalists' evaluations, as it is."""
    return {key: run.storage.read_bytes(key) for key in run.storage.list("evaluation")}


def study_report(layout: str) -> type[StudyReport]:
    """The class of a layout; its file alone is imported."""
    if layout == GENERIC:
        return StudyReport
    module = import_module(f"{__name__}.{layout.replace('-', '_')}")
    return next(
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, StudyReport) and each.__module__ == module.__name__
    )


def export_layouts() -> list[str]:
    """The layouts of `podium export`."""
    return [layout for layout in layouts() if study_report(layout).has_export]
