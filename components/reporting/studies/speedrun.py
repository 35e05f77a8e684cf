"""The folders of the hand-run speedruns: one experiment (a variant at a stage) a folder, with a run for each seed.

<study>-<stage>-<variant>_<YYYYMMDD_HHMMSS>/
    experiment.log  config.json  results.jsonl  metrics.jsonl  summary.json  git_diff.patch (of a dirty checkout)
    runs/run_<i>_seed_<s>/stdout.log

Their names and fields are those of the original scripts, so that their notebooks and `podium compare` read them. A
failed run has nulls and `success: false`; it is counted and never a number.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from scipy.special import stdtrit

from podium.components.reporting.model import ReportData, StageData, TrialData
from podium.components.reporting.studies import StudyReport
from podium.components.study import layout
from podium.components.study.registration import SourceState, read_source
from podium.components.study.run import Run
from podium.components.study.trials import RANKED
from podium.trainer.trial.errors import NotFoundError
from podium.trainer.trial.result import TrialResult, read_lines

CONFIDENCE = 0.95


class Speedrun(StudyReport):
    """The folders of the hand-run speedruns, and a line for each of them on the console."""

    def exported(self, run: Run, report: Callable[[], Mapping[str, str]]) -> dict[str, bytes]:
        """The folders; nothing of the report."""
        return {name: text.encode() for name, text in speedrun_files(run, self.data).items()}

    @staticmethod
    def printed(run: Run) -> list[str]:
        """A line for every variant of every stage that has a run to count, as `spoken`."""
        arms: dict[str, list[dict[str, Any]]] = {}
        for stage in run.stages:
            for trial in run.trials(stage):
                result = run.result(trial.key)
                if result is not None:
                    lines = arms.setdefault(f"{stage} {trial.variant.name}", [])
                    lines.append(_result(len(lines), trial.key.seed, result))
        return [spoken(name, statistics_of(lines)) for name, lines in arms.items()]


def speedrun_files(run: Run, data: ReportData) -> dict[str, str]:
    """Path → content of a folder for every variant of every stage that has a finished or failed run."""
    source = read_source(run.storage)
    diff = _text(run, layout.SOURCE_DIFF)
    files: dict[str, str] = {}
    for stage in data.stages:
        for variant in dict.fromkeys(trial.variant.name for trial in stage.trials):
            ended = [trial for trial in stage.trials_of(variant) if trial.result is not None]
            if not ended:
                continue
            name = f"{data.study.name}-{stage.name}-{variant}"
            folder = f"{name}_{_moment(data, stage, '%Y%m%d_%H%M%S')}"
            made = _experiment(run, data, stage, name, ended, source)
            if source.dirty:
                made["git_diff.patch"] = diff
            files |= {f"{folder}/{key}": content for key, content in made.items()}
    return files


def statistics_of(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`statistics` of summary.json from lines of results.jsonl; what fewer than two runs can't say is null.

    `ci_95` is the interval of the mean by Student's t.
    """
    results = list(results)
    good = [line for line in results if line["success"]]
    losses = [line["final_val_loss"] for line in good]
    seconds = [line["time_seconds"] for line in good if line["time_seconds"] is not None]
    return {
        "n_runs": len(results),
        "successful_runs": len(good),
        "val_loss": {
            "mean": statistics.fmean(losses) if losses else None,
            "std": statistics.stdev(losses) if len(losses) > 1 else None,
            "min": min(losses, default=None),
            "max": max(losses, default=None),
            "median": statistics.median(losses) if losses else None,
            "ci_95": _interval(losses),
        },
        "time": {
            "mean": statistics.fmean(seconds) if seconds else None,
            "std": statistics.stdev(seconds) if len(seconds) > 1 else None,
            "total": math.fsum(seconds) if seconds else None,
        },
    }


def spoken(name: str, found: dict[str, Any]) -> str:
    """One line of an experiment's statistics: `Runs: 5/5`, mean ± std, interval, best."""
    loss = found["val_loss"]
    words = [f"{name}: Runs: {found['successful_runs']}/{found['n_runs']}"]
    if loss["mean"] is not None:
        spread = "" if loss["std"] is None else f" ± {loss['std']:.4f}"
        words.append(f"val_loss {loss['mean']:.4f}{spread}")
        if loss["ci_95"] is not None:
            words.append("95 % CI [{:.4f}, {:.4f}]".format(*loss["ci_95"]))
        words.append(f"best {loss['min']:.4f}")
    return ", ".join(words)


def _experiment(
    run: Run, data: ReportData, stage: StageData, name: str, trials: list[TrialData], source: SourceState
) -> dict[str, str]:
    ended = [(trial.key.seed, trial.result) for trial in trials if trial.result is not None]
    results = [_result(index, seed, result) for index, (seed, result) in enumerate(ended)]
    found = statistics_of(results)
    files = {f"runs/run_{i}_seed_{t.key.seed}/stdout.log": _text(run, t.key.log) for i, t in enumerate(trials)}
    lines = [line for index, trial in enumerate(trials) for line in _metrics(run, index, trial)]
    return files | {
        "config.json": _json(_config(data, stage, name, trials)),
        "results.jsonl": _jsonl(results),
        "metrics.jsonl": _jsonl(lines),
        "summary.json": _json(
            {
                "experiment_name": name,
                "end_time": _moment(data, stage, "%Y-%m-%dT%H:%M:%SZ"),
                "statistics": found,
                "git_info": {"commit": source.commit, "branch": source.branch, "dirty": source.dirty},
                "gpu_info": _device(trials),
            }
        ),
        "experiment.log": _log(data, stage, name, trials, spoken(name, found)),
    }


def _result(index: int, seed: int, result: TrialResult) -> dict[str, Any]:
    good = result.status.value in RANKED and result.final_val_loss is not None
    return {
        "run_id": index,
        "seed": seed,
        "final_val_loss": result.final_val_loss if good else None,
        "final_train_loss": result.final_train_loss if good else None,
        "time_seconds": result.training_seconds if good else None,
        "final_step": result.steps if good else None,
        "success": good,
    }


def _metrics(run: Run, index: int, trial: TrialData) -> list[dict[str, Any]]:
    """Each line of the run's metrics; the clock in milliseconds, evaluation and compilation apart from it."""
    found = []
    for line in read_lines(_text(run, f"{trial.key.folder}/metrics.jsonl")):
        kind = "val_loss" if "val_loss" in line else "train_loss"
        if kind not in line:
            continue  # a line of another kind, such as a router's
        step, seconds = line["step"], line.get("train_seconds")
        milliseconds = None if seconds is None else round(1000 * seconds, 3)
        average = None if milliseconds is None or not step else round(milliseconds / step, 3)
        found.append(
            {
                "run_id": index,
                "step": step,
                kind: line[kind],
                "train_time_ms": milliseconds,
                "step_avg_ms": average,
                "tokens": line["tokens"],
            }
        )
    return found


def _config(data: ReportData, stage: StageData, name: str, trials: list[TrialData]) -> dict[str, Any]:
    first = trials[0]
    declared = data.study.variants.get(first.variant.name)
    return {
        "experiment_name": name,
        "study": data.study.name,
        "profile": data.study.profile,
        "run": data.run_id,
        "stage": stage.name,
        "variant": first.variant.name,
        "description": declared.description if declared else "",
        "modification_type": declared.modification if declared else "none",
        "modification_details": declared.details if declared else "",
        "overrides": first.variant.overrides,
        "seeds": [trial.key.seed for trial in trials],
        "resources": stage.stage.resources.model_dump(mode="json"),
        "price": stage.stage.price.model_dump(mode="json"),
        "config": first.config.model_dump(mode="json") if first.config else None,
    }


def _device(trials: list[TrialData]) -> dict[str, Any]:
    ran = next((t.result.versions for t in trials if t.result and t.result.versions), None)
    if ran is None:
        return {"name": None, "count": None, "cuda": None, "torch": None}
    return {"name": ran.device, "count": ran.world_size, "cuda": ran.cuda, "torch": ran.torch}


def _log(data: ReportData, stage: StageData, name: str, trials: list[TrialData], summary: str) -> str:
    lines = [
        f"experiment {name}",
        f"study {data.study.name} ({data.study.profile}), run {data.run_id}, stage {stage.name}: {stage.stage.purpose}",
    ]
    for index, trial in enumerate(trials):
        result = trial.result
        assert result is not None
        took = "" if result.training_seconds is None else f", {result.training_seconds:.1f} s of training"
        loss = "" if result.final_val_loss is None else f", val_loss {result.final_val_loss:.4f}"
        lines.append(
            f"run {index}, seed {trial.key.seed}: {trial.status} at step {result.steps}{loss}{took}: {result.reason}"
        )
    if stage.verdict is not None:
        lines.append(f"verdict: {stage.verdict.reason}")
    return "\n".join([*lines, summary]) + "\n"


def _interval(values: list[float]) -> list[float] | None:
    if len(values) < 2:
        return None
    mean, n = statistics.fmean(values), len(values)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(n)
    return [mean - half, mean + half]


def _moment(data: ReportData, stage: StageData, form: str) -> str:
    """When the stage's last entry in the ledger was written: the same however often the run is exported."""
    own = [e.time for e in data.ledger if e.time is not None and e.key.split("/")[0] == stage.name]
    times = own or [e.time for e in data.ledger if e.time is not None] or [0.0]
    return datetime.datetime.fromtimestamp(times[-1], datetime.UTC).strftime(form)


def _text(run: Run, key: str) -> str:
    try:
        return run.storage.read_bytes(key).decode(errors="replace")
    except NotFoundError:
        return ""


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _jsonl(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)
