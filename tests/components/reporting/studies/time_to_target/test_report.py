"""What the report of a study of times says: effects, answers with uncertainty, plots, files, production config."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podium.components.reporting.build import export, render
from podium.components.reporting.effects import (
    MEASURES,
    TimedRun,
    contrast,
    effects_table,
    loss_at,
    noise_of,
    timed_runs,
)
from podium.components.reporting.model import collect
from podium.components.reporting.studies.time_to_target import answers, arrivals
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.components.study.trials import dataset_config
from podium.trainer.builtin.config import RunSpec
from podium.trainer.builtin.data.prepare import prepare
from podium.trainer.trial.result import Point
from podium.trainer.trial.yaml_text import parse_yaml

AXES = ["o", "lr"]


def timed(
    o: str, lr: float, seconds: float, *, steps: int = 100, reached: bool = True, loss: float | None = 5.0
) -> TimedRun:
    return TimedRun("broad", "x", f"{o}-{lr}", None, (o, lr), seconds, reached, steps, loss)


def test_a_contrast_compares_what_differs_in_nothing_else() -> None:
    runs = [
        timed("ns", 0.1, 100, steps=100), timed("pe", 0.1, 90, steps=80),
        timed("ns", 0.2, 50), timed("pe", 0.2, 50, steps=100),
        timed("ns", 0.4, 1000),  # without a partner
    ]  # fmt: skip
    found = contrast(runs, AXES, {"o": ("ns", "pe")})
    assert found is not None
    assert found.pairs == 2
    assert math.exp(found.seconds.value) == pytest.approx(math.sqrt(0.9))
    assert math.exp(found.steps.value) == pytest.approx(math.sqrt(0.8))
    assert math.exp(found.step_seconds.value) == pytest.approx(math.sqrt(0.9 / 0.8))
    assert found.seconds.error is None  # nothing was repeated
    assert not found.is_faster


def test_the_interval_is_that_of_replicates_pooled() -> None:
    runs = [timed("ns", 0.1, 100), timed("ns", 0.1, 110), timed("pe", 0.1, 90), timed("pe", 0.1, 99)]
    found = contrast(runs, AXES, {"o": ("ns", "pe")})
    assert found is not None
    # each cell has SD ln(1.1)/√2 of logs; 2 degrees of freedom; standard error SD · √(1/2 + 1/2)
    sd = math.log(1.1) / math.sqrt(2)
    assert found.seconds.error == pytest.approx(sd)
    assert found.seconds.interval is not None
    low, high = found.seconds.interval
    assert (high - low) / 2 == pytest.approx(4.302653 * sd, rel=1e-5)
    assert found.seconds.value == pytest.approx(math.log(0.9))
    assert not found.is_faster


def test_a_miss_is_a_bound_and_no_noise() -> None:
    runs = [
        timed("ns", 0.1, 100), timed("ns", 0.1, 101), timed("pe", 0.1, 600, reached=False),
        timed("pe", 0.1, 600, reached=False),
    ]  # fmt: skip
    found = contrast(runs, AXES, {"o": ("ns", "pe")})
    assert found is not None
    assert (found.missed_before, found.missed_after, found.bound) == (0, 2, "≥ ")
    assert found.is_slower
    noise = noise_of(runs, MEASURES["seconds"])
    assert noise.degrees_of_freedom == 1
    back = contrast(runs, AXES, {"o": ("pe", "ns")})
    assert back is not None
    assert back.bound == "≤ "
    assert back.is_faster


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    draws = random.Random(5)
    covered = 0
    for _ in range(400):
        runs = [
            timed(o, lr, 60 * lr * (0.9 if o == "pe" else 1) * math.exp(draws.gauss(0, 0.05)))
            for o in ("ns", "pe") for lr in (1.0, 2.0, 3.0) for _ in range(2)
        ]  # fmt: skip
        found = contrast(runs, AXES, {"o": ("ns", "pe")})
        assert found is not None
        assert found.seconds.interval is not None
        covered += found.seconds.interval[0] <= math.log(0.9) <= found.seconds.interval[1]
    assert 0.91 <= covered / 400 <= 0.985


def test_losses_are_compared_at_equal_tokens() -> None:
    curve = [Point(1, 100, 6.0), Point(2, 200, 5.0), Point(3, 300, 4.0)]
    assert loss_at(curve, 150) == pytest.approx(5.5)
    assert loss_at(curve, 300) == pytest.approx(4.0)
    assert loss_at(curve, 301) is None
    assert loss_at(curve, 99) is None


def test_arrivals_are_kaplan_and_meiers() -> None:
    runs = [timed("a", 1, 10), timed("a", 1, 20, reached=False), timed("a", 1, 30), timed("a", 1, 40)]
    assert arrivals(runs) == [(10, pytest.approx(0.25)), (30, pytest.approx(0.625)), (40, pytest.approx(1.0))]


@pytest.fixture(scope="module")
def concluded(
    race_text: str, tmp_path_factory: pytest.TempPathFactory, play: Callable[..., Any], usual_world: Any
) -> Run:
    """Both stages, played in a world where the truth is known."""
    run = Run.create(str(tmp_path_factory.mktemp("concluded")), load_study(race_text))
    play(run, "broad", usual_world)
    play(run, "fine", usual_world)
    return run


def test_the_four_questions_are_answered_with_their_uncertainty(concluded: Run) -> None:
    data = collect(concluded)
    found = answers(data, timed_runs(data))
    assert [each.question[:12] for each in found] == ["Does Polar E", "Do variance ", "Which learni", "How lazy can"]
    polar, both, rate, lazy = (each.answer for each in found)
    assert polar.startswith("Polar Express pays: it is faster by the clock and needs fewer steps.")
    assert "95 %:" in polar
    assert "matched pairs" in polar
    assert "Time 0.9" in polar
    # VR is worth 3 % here, near what the noise lets be seen from one pair
    assert "Time 0.9" in both
    assert rate.startswith("0.01 in matched comparisons")
    assert "every 10 1.000×" in lazy


def test_effects_have_pairs_ratios_intervals_and_the_loss(concluded: Run) -> None:
    data = collect(concluded)
    table = effects_table(data, timed_runs(data))
    rows = {(line.cells[0], line.cells[1]): line.cells for line in table.lines}
    cells = rows["lr", "0.01"]
    assert float(cells[4].rstrip("×")) == pytest.approx(1 / (1 + 0.3 * math.log(10 / 3)), rel=0.05)
    assert " to " in cells[5]
    assert {axis for axis, _ in rows} >= {"lr", "lazy", "orthogonalization", "vr", "cwd", "batch"}


def test_the_report_has_answers_plots_and_files(concluded: Run) -> None:
    files = render(collect(concluded)).files
    assert {"trials.jsonl", "summary-broad.md", "summary-fine.md", "answers.md", "production.yaml"} <= files.keys()
    assert {"figures/time-to-target.svg", "figures/parallel-coordinates.svg"} <= files.keys()
    page = files["index.html"]
    for heading in ("Answers", "Effect of each parameter on time and quality", "Main effects over the design of fine"):
        assert heading in page
    assert "is the fastest to a validation loss under 5" in page
    lines = [json.loads(line) for line in files["trials.jsonl"].splitlines()]
    assert len(lines) == len(concluded.trials("broad")) + len(concluded.trials("fine"))
    assert {line["group"] for line in lines if line["stage"] == "broad"} == set("ABCDE")
    assert all(line["targets"] for line in lines)
    assert files == render(collect(concluded)).files


def test_a_run_that_has_just_begun_has_a_report_too(race_run: Callable[..., Run]) -> None:
    files = render(collect(race_run())).files
    assert "production.yaml" not in files
    assert "No verdict yet" in files["index.html"]


def test_export_writes_the_same_files(concluded: Run, tmp_path: Path) -> None:
    written = {
        path.relative_to(tmp_path / "out").as_posix() for path in export(concluded, "time-to-target", tmp_path / "out")
    }
    assert {"trials.jsonl", "answers.md", "production.yaml", "verdicts/broad.json", "verdicts/fine.md"} <= written


def test_the_production_config_is_the_winners_and_the_trainer_runs_it(concluded: Run, tmp_path: Path) -> None:
    run = concluded
    verdict = run.verdict("fine")
    assert verdict is not None
    winner = next(ref for ref in verdict.promoted if ref.name == verdict.winner)
    text = render(collect(run)).files["production.yaml"]
    spec = RunSpec.model_validate(parse_yaml(text, "production.yaml"))
    assert spec.config.optimizer.learning_rate == winner.overrides["optimizer.learning_rate"]
    assert spec.config.batch.sequences == winner.overrides["batch.sequences"]
    assert spec.config.schedule.name == "warmdown"
    assert spec.config.max_tokens == 40_000
    assert spec.config.stop.target is None
    assert spec.config.stop.timeout_seconds is None
    prepare(dataset_config(run.study, winner), run.store)
    (tmp_path / "production.yaml").write_text(text)
    done = subprocess.run(
        [
            sys.executable, "-m", "podium.trainer", "train", "--config", "production.yaml", "--run-name", "production",
            "--output-dir", str(tmp_path / "out"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "production" / "result.json").read_text())
    assert result["status"] == "completed"
    assert 37_000 < result["tokens"] <= 40_000
