"""A layout of a study that is in no file of Podium: `test_layouts.py` puts this folder on the package's path."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from podium.components.reporting.studies import StudyReport
from podium.components.reporting.table import Bullets, Figure, Headline, Section
from podium.components.study.run import Run


class ToyLayout(StudyReport):
    of_any_study = False
    reads_logs = True

    def headline(self, head: Headline) -> Headline:
        return replace(head, sentence=f"A toy: {head.sentence}")

    def sections(self) -> list[Section]:
        logs = tuple(trial.log.splitlines()[-1] for trial in self.data.trials if trial.log)
        return [Section("toy", "What the toy says", "Read from the logs.", (Bullets(logs),))]

    def figures(self, common: Sequence[Figure]) -> list[Figure]:
        return [Figure("toy", "A toy's figure", "Nothing to see.", "<svg></svg>\n"), *common]

    def cells(self) -> dict[str, dict[str, str]]:
        return {trial.key.name: {"toy_cell": f"{trial.key.seed}"} for trial in self.data.trials}

    def files(self) -> dict[str, str]:
        return {"toy.txt": "a toy\n"}

    def exported(self, run: Run, report: Callable[[], Mapping[str, str]]) -> dict[str, bytes]:
        return {"only.txt": report()["toy.txt"].encode()}

    @staticmethod
    def printed(run: Run) -> list[str]:
        return [f"toy {run.id}"]
