"""The parts that a study of times to a target adds to a report: sections, figures and files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure as Canvas

from podium.components.reporting.effects import (
    Contrast,
    Estimate,
    TimedRun,
    contrast,
    design_table,
    effects_table,
    level_name,
    ratio,
    ratio_interval,
    target_of,
    timed_runs,
)
from podium.components.reporting.figures.style import FAINT, FONT, INK, MUTED, SERIES, draw, plane, short
from podium.components.reporting.model import ReportData, TrialData
from podium.components.reporting.studies import StudyReport
from podium.components.reporting.table import Bullets, Code, Figure, Gallery, Section
from podium.components.study.fields import with_overrides
from podium.components.study.layout import data_key
from podium.components.study.schema import Study
from podium.components.study.trials import variant_config
from podium.components.study.verdict import to_markdown
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.trial.section import format_count
from podium.trainer.trial.storage import join_uri
from podium.trainer.trial.yaml_text import dump_yaml

# The study's four questions: does Polar Express's quality pay for its speed? Do variance reduction and cautious decay
# together win by the clock, or only by steps? Which learning rate is fastest? How lazy can the projection be? A
# question whose parameters the study does not vary is left out. A difference counts as shown where its 95 % interval
# excludes no difference.

ORTHOGONALIZATION = "optimizer.orthogonalization"
VARIANCE, CAUTIOUS = "optimizer.variance_reduction", "optimizer.cautious_weight_decay"
RATE, LAZY = "optimizer.learning_rate", "model.projection_every"


@dataclass(frozen=True)
class Answer:
    """A question and what the data say."""

    question: str
    answer: str


def answers(data: ReportData, runs: Sequence[TimedRun]) -> list[Answer]:
    """Every question of which there are trials, answered."""
    axes = {axis.field: name for name, axis in data.study.axes.items()}
    found = []
    if ORTHOGONALIZATION in axes:
        change: dict[str, tuple[Any, Any]] = {axes[ORTHOGONALIZATION]: ("newton_schulz", "polar_express")}
        said = _changed(data.study, runs, change, "Polar Express")
        found.append(Answer("Does Polar Express's quality pay for its speed?", said))
    if VARIANCE in axes and CAUTIOUS in axes:
        change = {axes[VARIANCE]: (False, True), axes[CAUTIOUS]: (False, True)}
        said = _changed(data.study, runs, change, "VR with CWD")
        found.append(Answer("Do variance reduction and cautious decay win by the clock, or only by steps?", said))
    if RATE in axes:
        found.append(Answer("Which learning rate is fastest?", _fastest(data.study, runs, axes[RATE])))
    if LAZY in axes:
        found.append(Answer("How lazy can the projection be?", _laziest(data.study, runs, axes[LAZY])))
    return found


def _changed(study: Study, runs: Sequence[TimedRun], change: dict[str, tuple[Any, Any]], what: str) -> str:
    found = contrast(runs, list(study.axes), change)
    if found is None:
        return "Not answered: no two trials differ in this alone."
    return f"{_verdict(found, what)} {_figures(found)}"


def _verdict(found: Contrast, what: str) -> str:
    faster, fewer = found.seconds.value < 0, found.steps.value < 0
    if found.is_faster:
        return f"{what} pays: it is faster by the clock{' and needs fewer steps' if fewer else ''}."
    if found.is_slower:
        saved = "it saves steps, but they cost more than they save" if fewer else "it saves neither steps nor time"
        return f"{what} does not pay: {saved}."
    if found.seconds.error is None:
        looks = "faster" if faster else "slower"
        return f"{what} looks {looks}, but nothing reached the target twice, so the noise is unknown."
    if found.missed_before or found.missed_after:
        return f"Not shown: too many runs missed the target to tell what {what} does."
    by_steps = " Fewer steps are shown, so it wins by steps only." if found.steps.sure and fewer else ""
    return f"Not shown: the difference that {what} makes by the clock is within the noise.{by_steps}"


def _figures(found: Contrast) -> str:
    interval = ratio_interval(found.seconds)
    told = f" (95 %: {interval})" if interval else ""
    misses = found.missed_before + found.missed_after
    bound = f"; {misses} {'run' if misses == 1 else 'runs'} missed the target" if misses else ""
    loss = "" if found.loss is None else f", {found.loss.value:+.4f} nats at equal tokens".replace("-", "−")
    return (
        f"Time {found.bound}{ratio(found.seconds)}{told}, steps {ratio(found.steps)}, "
        f"time a step {ratio(found.step_seconds)}{loss}; {_pairs(found.pairs)}{bound}."
    )


def _levels(study: Study, runs: Sequence[TimedRun], axis: str) -> list[tuple[Any, Contrast | None]]:
    """Each level with its contrast to the level that compares with most others, fastest first; that one has none."""
    axes, place = list(study.axes), list(study.axes).index(axis)
    values = sorted({run.values[place] for run in runs})
    tables = {}
    for base in values:
        found = {value: contrast(runs, axes, {axis: (base, value)}) for value in values if value != base}
        tables[base] = {value: each for value, each in found.items() if each is not None}
    base = max(values, key=lambda value: (len(tables[value]), sum(c.pairs for c in tables[value].values())))
    levels: list[tuple[Any, Contrast | None]] = [(base, None), *tables[base].items()]
    return sorted(levels, key=lambda level: 0.0 if level[1] is None else level[1].seconds.value)


def _between(level: Contrast | None, best: Contrast | None) -> Estimate:
    """The log time of a level over that of the best, both known against the same third."""
    value = (0.0 if level is None else level.seconds.value) - (0.0 if best is None else best.seconds.value)
    known = [each.seconds for each in (level, best) if each is not None]
    errors = [each.error for each in known if each.error is not None]
    if not known or len(errors) < len(known):
        return Estimate(value, None, 0)
    return Estimate(value, math.sqrt(math.fsum(error**2 for error in errors)), min(each.degrees for each in known))


def _fastest(study: Study, runs: Sequence[TimedRun], axis: str) -> str:
    if len({run.values[list(study.axes).index(axis)] for run in runs}) < 2:
        return "Not answered: one value was tried."
    levels = _levels(study, runs, axis)
    if len(levels) < 2:
        return "Not answered: no two trials differ in this alone."
    (best, first), *others = levels
    told = [f"{level_name(study, axis, value)} takes {ratio(_between(each, first))}" for value, each in others[:4]]
    open_ = [level_name(study, axis, value) for value, each in others if not _slower(each, first)]
    said = f"{level_name(study, axis, best)} in matched comparisons: {', '.join(told)} the time."
    if any(_between(each, first).error is None for _, each in others):
        return f"{said} Nothing reached the target twice, so the noise is unknown."
    if open_:
        return f"{said} Within the noise of it: {', '.join(open_)}."
    return f"{said} All others are slower beyond the noise."


def _laziest(study: Study, runs: Sequence[TimedRun], axis: str) -> str:
    if len({run.values[list(study.axes).index(axis)] for run in runs}) < 2:
        return "Not answered: one value was tried."
    levels = _levels(study, runs, axis)
    if len(levels) < 2:
        return "Not answered: no two trials differ in this alone."
    (best, first), *_ = levels
    apart = {value: _between(each, first) for value, each in levels}
    shown = ", ".join(
        f"every {level_name(study, axis, value)} {ratio(estimate)}" + _told(estimate)
        for value, estimate in sorted(apart.items())
    )
    if any(estimate.error is None for value, estimate in apart.items() if value != best):
        return f"Fastest every {best} steps; nothing reached the target twice, so the noise is unknown. Time: {shown}."
    fine = [value for value, each in levels if not _slower(each, first)]
    return f"Up to every {max(fine)} steps nothing slower than the fastest (every {best}) is shown. Time: {shown}."


def _slower(level: Contrast | None, best: Contrast | None) -> bool:
    """Whether a level is shown to be slower than the best one; not where the best one's misses hide how slow it is."""
    apart = _between(level, best)
    hidden = (best is not None and best.missed_after > 0) or (level is not None and level.missed_before > 0)
    return apart.sure and apart.value > 0 and not hidden


def _told(estimate: Estimate) -> str:
    return f" ({ratio_interval(estimate)})" if estimate.error else ""


def _pairs(count: int) -> str:
    return f"{count} matched pair{'s' if count != 1 else ''}"


# The winner's configuration for the training at full scale.

FILE = "production.yaml"


def production_yaml(data: ReportData) -> str | None:
    """The file's text; None where the study declares no such training, or has no winner yet.

    Stop rules are the race's, so there are none; everything else is the winner's, under the declared overrides.
    """
    declared, verdict = data.study.production, data.last_verdict
    if declared is None or verdict is None or verdict.winner is None or verdict.stage != data.stages[-1].name:
        return None
    winner = next(ref for ref in verdict.promoted if ref.name == verdict.winner)
    config = variant_config(data.study, verdict.stage, winner)
    plain = config.model_dump(mode="json", exclude={"stop", "max_steps", "max_tokens"})
    tree = with_overrides(plain, declared.overrides) | {"max_tokens": declared.tokens, "preset": "custom"}
    checked = TrainConfig.model_validate(tree)
    dataset = next(each for each in data.datasets if winner.name in each.variants or not winner.overrides)
    spec = {
        "config": checked.model_dump(mode="json"),
        "dataset": join_uri(data.store_uri, data_key(dataset.fingerprint)),
    }
    head = [
        f"The winner of run {data.run_id}: {verdict.winner} ({winner.description or 'the base config'}).",
        f"{verdict.reason}.",
        f"{format_count(checked.tokens)} tokens in {checked.steps} steps. Run it as it is:",
        f"  python -m podium.trainer train --config {FILE} --run-name production",
        "The dataset is the study's, read again and again; --data FOLDER takes a larger one with the same tokens.",
    ]
    return "".join(f"# {line}\n" for line in head) + dump_yaml(spec)


# Figures: when trials arrive, and which values the fastest have.

MOST_LINES = 200


def target_figures(data: ReportData, runs: Sequence[TimedRun]) -> list[Figure]:
    """Every plot that has something to show."""
    found = [arrivals_figure(data, runs), parallel_figure(data, runs)]
    return [figure for figure in found if figure is not None]


def arrivals(runs: Sequence[TimedRun]) -> list[tuple[float, float]]:
    """Kaplan and Meier's estimate of the share that has arrived: (seconds, share) at which it rises."""
    steps, left, share = [], len(runs), 1.0
    for run in sorted(runs, key=lambda run: (run.seconds, not run.reached)):
        if run.reached:
            share *= (left - 1) / left
            steps.append((run.seconds, 1 - share))
        left -= 1
    return steps


def arrivals_figure(data: ReportData, runs: Sequence[TimedRun]) -> Figure | None:
    """The distribution of times to the target, a line a stage; None where nobody arrived."""
    stages = [stage for stage in data.stages if any(run.reached for run in runs if run.stage == stage.name)]
    if not stages:
        return None
    longest = max(run.seconds for run in runs)

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=44, right=14, title="share of the trials at the target", below="seconds of training")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, longest * 1.03)
        for index, stage in enumerate(stages):
            own = [run for run in runs if run.stage == stage.name]
            points = [(0.0, 0.0), *arrivals(own)]
            last = max(run.seconds for run in own)
            xs, ys = [x for x, _ in points] + [last], [y for _, y in points] + [points[-1][1]]
            axes.step(xs, ys, where="post", color=SERIES[index % len(SERIES)], linewidth=1.8)
            missed = [run.seconds for run in own if not run.reached]
            heights = [max((y for x, y in points if x <= seconds), default=0.0) for seconds in missed]
            axes.plot(missed, heights, "|", color=SERIES[index % len(SERIES)], markersize=8)
            axes.text(last, ys[-1] - 0.03, stage.name, color=INK, fontsize=FONT, ha="right", va="top")

    told = "; ".join(
        f"{stage.name}: {sum(r.reached for r in runs if r.stage == stage.name)} of "
        f"{sum(r.stage == stage.name for r in runs)} reached {target_of(stage):g}"
        for stage in stages
    )
    caption = f"{told}. A tick is a trial that missed: it would have taken longer (Kaplan–Meier)."
    svg = draw(250, paint, describe="Share of trials at the target by seconds of training")
    return Figure("time-to-target", "Time to target", caption, svg)


def parallel_figure(data: ReportData, runs: Sequence[TimedRun]) -> Figure | None:
    """Parallel coordinates: an axis a parameter, its levels evenly spaced, and the time; None for fewer than 2 runs."""
    names = list(data.study.axes)
    varied = [place for place in range(len(names)) if len({repr(run.values[place]) for run in runs}) > 1]
    chosen = sorted(runs, key=lambda run: (not run.reached, run.seconds))[:MOST_LINES]
    if len(chosen) < 2 or not varied:
        return None
    levels = {
        place: sorted({run.values[place] for run in chosen}, key=lambda value: (str(type(value)), value))
        for place in varied
    }
    least, most = math.log(min(r.seconds for r in chosen)), math.log(max(r.seconds for r in chosen))
    shades = colormaps["viridis"]

    def height(place: int, run: TimedRun) -> float:
        known = levels[place]
        return known.index(run.values[place]) / (len(known) - 1) if len(known) > 1 else 0.5

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=22, right=46, top=56, bottom=16)
        axes.grid(visible=False)
        axes.set_axis_off()
        axes.set_xlim(0, len(varied))
        axes.set_ylim(-0.08, 1.08)
        for run in reversed(chosen):  # the fastest on top
            share = (math.log(run.seconds) - least) / (most - least) if most > least else 0.0
            ys = [*(height(place, run) for place in varied), 1 - share]
            colour = shades(0.9 * share) if run.reached else FAINT
            axes.plot(range(len(varied) + 1), ys, color=colour, linewidth=1.3, alpha=0.8)
        for x, place in enumerate(varied):
            axes.axvline(x, color=MUTED, linewidth=1)
            title = data.study.axes[names[place]].title or names[place]
            canvas_top = 1.1 if x % 2 else 1.2
            axes.text(x, canvas_top, short(title, 16), color=INK, fontsize=9, ha="center", va="bottom", clip_on=False)
            shown = levels[place] if len(levels[place]) <= 8 else [levels[place][0], levels[place][-1]]
            for value in shown:
                at = levels[place].index(value) / max(1, len(levels[place]) - 1)
                words = short(level_name(data.study, names[place], value), 9)
                axes.text(x + 0.04, at, words, color=MUTED, fontsize=8, ha="left", va="center", clip_on=False)
        axes.axvline(len(varied), color=MUTED, linewidth=1)
        axes.text(len(varied), 1.1, "time", color=INK, fontsize=9, ha="center", va="bottom", clip_on=False)
        for at, seconds in ((1.0, math.exp(least)), (0.0, math.exp(most))):
            axes.text(len(varied) + 0.06, at, f"{seconds:.3g} s", color=MUTED, fontsize=8, va="center", clip_on=False)

    left_out = f" The fastest {MOST_LINES} of {len(runs)} trials." if len(runs) > MOST_LINES else ""
    caption = f"A line a trial, dark is fast, grey missed the target; levels evenly spaced, time logarithmic.{left_out}"
    svg = draw(300, paint, describe="Parallel coordinates of all trials")
    return Figure("parallel-coordinates", "Which values the fastest have", caption, svg)


TRIALS, ANSWERS = "trials.jsonl", "answers.md"


class TimeToTarget(StudyReport):
    """Answers to the study's questions, their figures, all trials as JSON lines and the production config."""

    of_any_study = False

    @cached_property
    def runs(self) -> list[TimedRun]:
        """The trials with a time."""
        return timed_runs(self.data)

    @cached_property
    def own_figures(self) -> list[Figure]:
        """Times to the target and the parallel coordinates."""
        return target_figures(self.data, self.runs)

    def figures(self, common: Sequence[Figure]) -> list[Figure]:
        """Own ones first. A figure of one axis says little where combinations were tried."""
        return [*self.own_figures, *(each for each in common if not each.name.startswith("axis-"))]

    def sections(self) -> list[Section]:
        """The answers with what they rest on, and the production config."""
        data, runs = self.data, self.runs
        told = tuple(f"{each.question} {each.answer}" for each in answers(data, runs)) if runs else ()
        tables = (effects_table(data, runs), design_table(data, runs)) if runs else ()
        blocks = (Bullets(told), Gallery(tuple(self.own_figures)), *tables)
        found = [Section("answers", "Answers", "From matched trials, with the noise that replicates show.", blocks)]
        production = production_yaml(data)
        if production is not None:
            code = Code(f"report/{FILE}", production, fold=True)
            found.append(Section("production", "Training at full scale", "The winner's configuration.", (code,)))
        return found

    def files(self) -> dict[str, str]:
        """All trials as JSON lines, a summary of each decided stage, the answers and the production config."""
        data, runs = self.data, self.runs
        files = {TRIALS: "".join(json.dumps(_line(trial)) + "\n" for trial in data.trials)}
        for stage in data.decided:
            assert stage.verdict is not None
            files[f"summary-{stage.name}.md"] = to_markdown(stage.verdict)
        if runs:
            text = "\n".join(f"- **{each.question}** {each.answer}" for each in answers(data, runs))
            files[ANSWERS] = f"# {data.study.title or data.study.name}\n\n{text}\n"
        production = production_yaml(data)
        return files if production is None else files | {FILE: production}


MEASURED = (
    "reason", "target_loss", "reached_target", "time_to_target_seconds", "targets", "steps", "tokens",
    "final_val_loss", "best_val_loss", "training_seconds", "evaluation_seconds", "compile_seconds",
    "checkpoint_seconds", "tokens_per_second", "peak_memory_bytes", "device_seconds", "cost_usd",
)  # fmt: skip
"""Fields of a result that a line repeats."""


def _line(trial: TrialData) -> dict[str, object]:
    line: dict[str, object] = {
        "trial": trial.key.name,
        "stage": trial.key.stage,
        "group": trial.group,
        "variant": trial.variant.name,
        "seed": trial.key.seed,
        "fallback": trial.key.fallback,
        "overrides": trial.variant.overrides,
        "status": trial.status,
    }
    if trial.result is None:
        return line
    result = trial.result.model_dump(mode="json")
    return line | {name: result[name] for name in MEASURED} | {"device": (result["versions"] or {}).get("device")}
