"""The parts that a study of times to a target adds to a report: sections, figures and files."""

from __future__ import annotations

import json
from collections.abc import Sequence

from podium.components.reporting.document import Bullets, Code, Gallery, Section
from podium.components.reporting.figures.style import Figure
from podium.components.reporting.model import ReportData
from podium.components.reporting.to_target.answers import answers
from podium.components.reporting.to_target.effects import design_table, effects_table
from podium.components.reporting.to_target.figures import target_figures
from podium.components.reporting.to_target.production import FILE, production_yaml
from podium.components.reporting.to_target.runs import TimedRun, timed_runs
from podium.components.verdicts.markdown import to_markdown

LAYOUT = "time-to-target"
TRIALS, ANSWERS = "trials.jsonl", "answers.md"


class TargetReport:
    """What is added, from the run's data alone."""

    def __init__(self, data: ReportData) -> None:
        self._data = data
        self._runs: list[TimedRun] = timed_runs(data)
        self.figures: list[Figure] = target_figures(data, self._runs)

    def sections(self) -> list[Section]:
        """The answers with what they rest on, and the production config."""
        data, runs = self._data, self._runs
        told = tuple(f"{each.question} {each.answer}" for each in answers(data, runs)) if runs else ()
        tables = (effects_table(data, runs), design_table(data, runs)) if runs else ()
        blocks = (Bullets(told), Gallery(tuple(self.figures)), *tables)
        found = [
            Section("answers", "Answers", "From matched trials, with the noise that replicates show.", blocks),
        ]
        production = production_yaml(data)
        if production is not None:
            code = Code(f"report/{FILE}", production, fold=True)
            found.append(Section("production", "Training at full scale", "The winner's configuration.", (code,)))
        kept = [block for block in blocks if _says(block)]
        return [*([Section(found[0].name, found[0].title, found[0].lead, tuple(kept))] if kept else []), *found[1:]]

    def files(self) -> dict[str, str]:
        """All trials as JSON lines, a summary of each decided stage, the answers and the production config."""
        data, runs = self._data, self._runs
        files = {TRIALS: "".join(json.dumps(line) + "\n" for line in self._lines())}
        for stage in data.decided:
            assert stage.verdict is not None
            files[f"summary-{stage.name}.md"] = to_markdown(stage.verdict)
        if runs:
            text = "\n".join(f"- **{each.question}** {each.answer}" for each in answers(data, runs))
            files[ANSWERS] = f"# {data.study.title or data.study.name}\n\n{text}\n"
        production = production_yaml(data)
        return files if production is None else files | {FILE: production}

    def _lines(self) -> list[dict[str, object]]:
        lines: list[dict[str, object]] = []
        for trial in self._data.trials:
            result = trial.result
            lines.append(
                {
                    "trial": trial.key.name,
                    "stage": trial.key.stage,
                    "group": trial.group,
                    "variant": trial.variant.name,
                    "seed": trial.key.seed,
                    "fallback": trial.key.fallback,
                    "overrides": trial.variant.overrides,
                    "status": trial.status,
                    **({} if result is None else _measured(result.model_dump(mode="json"))),
                }
            )
        return lines


MEASURED = (
    "reason", "target_loss", "reached_target", "time_to_target_seconds", "targets", "steps", "tokens",
    "final_val_loss", "best_val_loss", "training_seconds", "evaluation_seconds", "compile_seconds",
    "checkpoint_seconds", "tokens_per_second", "peak_memory_bytes", "device_seconds", "cost_usd",
)  # fmt: skip
"""Fields of a result that a line repeats."""


def _measured(result: dict[str, object]) -> dict[str, object]:
    versions = result.get("versions")
    device = versions.get("device") if isinstance(versions, dict) else None
    return {name: result[name] for name in MEASURED} | {"device": device}


def _says(block: object) -> bool:
    if isinstance(block, Gallery):
        return bool(block.figures)
    return bool(block.items) if isinstance(block, Bullets) else bool(block)


def with_target_sections(sections: Sequence[Section], added: Sequence[Section]) -> list[Section]:
    """The report's sections with the added ones after its overview, where a reader looks for the answer."""
    place = next((i + 1 for i, section in enumerate(sections) if section.name == "overview"), len(sections))
    return [*sections[:place], *added, *sections[place:]]
