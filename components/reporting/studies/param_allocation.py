"""The files of the parameter-allocation study: its first phase as one table, the best of each axis, and how each
training ended. Their names and fields are those of the hand-run study, so that its notebooks go on working."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

from podium.components.reporting import table
from podium.components.reporting.model import ReportData, StageData, TrialData
from podium.components.reporting.results_csv import Row, axis_keys, elapsed_seconds, to_csv, training_flops
from podium.components.reporting.studies import StudyReport, evaluation_files
from podium.components.study.design import Experiment
from podium.components.study.policy import policy_of
from podium.components.study.run import Run
from podium.components.study.trials import RANKED

PREFIX = "phase1_"


class ParamAllocation(StudyReport):
    """The files of the first phase; the export has them under the names of the hand-run study."""

    of_any_study = False
    reads_logs = True

    def files(self) -> dict[str, str]:
        """See `phase1_files`."""
        return phase1_files(self.data)

    def exported(self, run: Run, report: Callable[[], Mapping[str, str]]) -> dict[str, bytes]:
        """The report with results.csv as analysis.csv and its figures in plots/, and the finalists' evaluations."""
        names = {"results.csv": "analysis.csv"}
        files = {names.get(name, name.replace("figures/", "plots/")): text for name, text in report().items()}
        return {name: text.encode() for name, text in files.items()} | evaluation_files(run)


def phase1_files(data: ReportData) -> dict[str, str]:
    """File name → content; empty while the ranking has no verdict, and for a profile that has no ranking."""
    stage = next((stage for stage in data.stages if policy_of(data.study, stage.name).ranks_axes), None)
    if stage is None or stage.verdict is None:
        return {}
    rows = [_row(data, stage, experiment) for experiment in data.experiments]
    files = {"phase1_summary.csv": to_csv(rows, list(rows[0]))} if rows else {}
    files["phase1_top1.json"] = _json(_tops(data, stage))
    moment = _moment(data, stage.name)
    ends = {experiment: _end(experiment, stage) for experiment in data.experiments}
    for axis in data.study.axes:
        files[f"{axis}_results_{moment}.json"] = _json([end for row, end in ends.items() if row.axis == axis])
    files[f"all_results_{moment}.json"] = _json(list(ends.values()))
    return files


def _row(data: ReportData, stage: StageData, experiment: Experiment) -> Row:
    trial = _trial(stage, experiment.variant)
    row: Row = {"run_id": data.run_id, "experiment_name": f"{PREFIX}{experiment.name}", "axis": experiment.axis}
    row["trial"] = trial.key.name if trial else ""
    values = trial.variant.axis_values if trial else {experiment.axis: experiment.value}
    row |= {
        key: table.axis_value(values[axis]) if axis in values else "" for axis, key in axis_keys(data.study).items()
    }
    result = trial.result if trial else None
    length = trial.config.data.sequence_length if trial and trial.config else None
    fields: dict[str, Any] = {
        "val_perplexity": result and result.final_val_perplexity,
        "val_loss": result and result.final_val_loss,
        "bits_per_byte": result and result.final_bits_per_byte,
        "n_layers": result and result.n_layers,
        "d_model": result and result.d_model,
        "n_heads": result and result.n_heads,
        "d_ff": result and result.d_ff,
        "parameters": result and result.parameters and result.parameters.total,
        "embedding_parameters": result and result.parameters and result.parameters.embedding,
        "training_flops": result and training_flops(result, length),
        "tokens": result and result.tokens,
        "passes": result and result.passes,
        "seed": trial.key.seed if trial else None,
        "status": trial.status if trial else "pending",
        "reason": result and result.reason,
        "elapsed_seconds": table.seconds(elapsed_seconds(result)) if result else None,
        "training_seconds": table.seconds(result.training_seconds) if result else None,
        "tokens_per_second": table.whole(result.tokens_per_second) if result else None,
        "cost_usd": table.cost(result.cost_usd) if result else None,
        "attempts": result and result.attempts,
    }
    return row | {name: "" if value is None else str(value) for name, value in fields.items()}


def _tops(data: ReportData, stage: StageData) -> dict[str, Any]:
    assert stage.verdict is not None
    keys = axis_keys(data.study)
    tops: dict[str, Any] = {}
    for axis, variant in stage.verdict.tops.items():
        experiment = next((row for row in data.experiments if row.axis == axis and row.variant == variant), None)
        trial = _trial(stage, variant)
        result = trial.result if trial else None
        tops[axis] = {
            "experiment_name": f"{PREFIX}{experiment.name if experiment else variant}",
            keys[axis]: experiment.value if experiment else None,
            "val_perplexity": result and result.final_val_perplexity,
            "val_loss": result and result.final_val_loss,
            "bits_per_byte": result and result.final_bits_per_byte,
            "d_model": result and result.d_model,
            "n_layers": result and result.n_layers,
            "d_ff": result and result.d_ff,
            "trial": trial.key.name if trial else None,
        }
    return tops


def _end(experiment: Experiment, stage: StageData) -> dict[str, Any]:
    trial = _trial(stage, experiment.variant)
    result = trial.result if trial else None
    return {
        "exp_name": f"{PREFIX}{experiment.name}",
        "status": trial.status if trial else "pending",
        "elapsed_seconds": elapsed_seconds(result) if result else None,
        "stdout": trial.log if trial else "",
        # a trial has one log; what ended a broken one is in its last lines
        "stderr": "\n".join(result.log_tail) if result else "",
    }


def _trial(stage: StageData, variant: str) -> TrialData | None:
    """The variant's trial: its first finished seed, else its first."""
    trials = stage.trials_of(variant)
    return next((trial for trial in trials if trial.status in RANKED), trials[0] if trials else None)


def _moment(data: ReportData, stage: str) -> str:
    """When the verdict was written, from its ledger entry: the same names however often the report is built."""
    times = [
        e.time for e in data.ledger if e.kind == "verdict" and e.key.partition("/")[0] == stage and e.time is not None
    ]
    moment = datetime.datetime.fromtimestamp(times[-1] if times else 0, datetime.UTC)
    return moment.strftime("%Y%m%d_%H%M%S")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
