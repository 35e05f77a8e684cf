"""results.csv: a row a trial, every figure as the page shows it and, beside it, with every digit."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podium.components.reporting.model import ReportData
from podium.components.reporting.results_csv import (
    COLUMNS,
    axis_key,
    curve_cell,
    parse_curve,
    read_csv,
    result_rows,
    results_csv,
    training_flops,
)
from podium.components.study.schema import Axis
from podium.trainer.trial.result import Point


def whole_file(data: ReportData) -> str:
    return results_csv(data, result_rows(data))


def test_there_is_a_row_for_every_trial_with_or_without_a_result(make_report: Callable[..., ReportData]) -> None:
    data = make_report(stages=1, strange=True)
    pending = replace(data.stages[0].trials[0], result=None, curve=())
    stage = replace(data.stages[0], trials=(pending, *data.stages[0].trials[1:]))
    columns, rows = read_csv(whole_file(replace(data, stages=(stage, data.stages[1]))))
    assert [row["status"] for row in rows] == ["pending", "killed", "completed", "diverged", "completed", "broken"]
    assert rows[0]["final_val_loss"] == ""
    assert columns[columns.index("seed") + 1 : columns.index("trial")] == ["embedding_ratio", "glu_expansion"]


def test_exact_columns_hold_every_digit(make_report: Callable[..., ReportData]) -> None:
    data = make_report()
    _, rows = read_csv(whole_file(data))
    for row, trial in zip(rows, data.trials, strict=True):
        assert trial.result is not None
        assert float(row["final_val_loss_exact"]) == trial.result.final_val_loss
        assert row["final_val_loss"] == f"{trial.result.final_val_loss:.4f}"


def test_only_the_evaluated_trial_carries_its_evaluation(make_report: Callable[..., ReportData]) -> None:
    _, rows = read_csv(whole_file(make_report()))
    carriers = [row["trial"] for row in rows if row["evaluation_test_loss"]]
    assert carriers == [f"finals/{name}/seed-52" for name in ("emb45-glu3x", "emb45", "glu3x", "baseline")]


def test_no_column_is_there_twice() -> None:
    assert len(COLUMNS) == len(set(COLUMNS))


def test_an_axis_on_a_columns_name_gets_its_own() -> None:
    assert axis_key("width", Axis(field="model.d_model", values=[1])) == "axis_width"
    assert axis_key("lr", Axis(field="optimizer.learning_rate", values=[1])) == "learning_rate"


@given(st.lists(st.floats(0, 20), max_size=300))
def test_a_curve_survives_its_cell_with_both_its_ends(losses: list[float]) -> None:
    points = [Point(step=index, tokens=1000 * index, val_loss=loss) for index, loss in enumerate(losses)]
    pairs = parse_curve(curve_cell(points))
    assert len(pairs) == min(len(points), 100)
    for tokens, loss in pairs:
        assert loss == pytest.approx(losses[tokens // 1000], abs=1e-4)
    if points:
        assert (pairs[0][0], pairs[-1][0]) == (points[0].tokens, points[-1].tokens)


def test_training_compute_is_six_per_matrix_parameter_and_token_plus_attention(
    make_report: Callable[..., ReportData],
) -> None:
    result = make_report().trials[0].result
    assert result is not None
    assert result.parameters is not None
    assert result.d_model is not None
    assert result.n_layers is not None
    matrices = result.parameters.total - result.parameters.norm  # tied: the embedding is the output's matrix too
    attention = 12 * result.n_layers * result.d_model * 256
    assert training_flops(result, 256) == (6 * matrices + attention) * result.tokens
