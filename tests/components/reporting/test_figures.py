"""Figures: legible, the same for the same rows, and drawn from any results table."""

import re
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from podium.components.reporting.build import Report, render
from podium.components.reporting.figures.gallery import ParetoPoint, along, frontier, spearman
from podium.components.reporting.figures.seeds import differences
from podium.components.reporting.figures.style import short, spread
from podium.components.reporting.from_csv import from_rows, main, plots_from_csv
from podium.components.reporting.model import ReportData
from podium.components.reporting.results_csv import read_csv
from podium.components.verdicts.stats import PooledVariance
from podium.trainer.trial.errors import UserError

PLOTS = [
    "axis-embedding_ratio-ranking", "axis-glu_expansion-ranking", "pareto-ranking", "pareto-finals", "curves-ranking",
    "curves-finals", "gaps-ranking", "gaps-finals", "seeds-finals", "differences-finals", "smallbench", "funnel",
    "money",
    "ranks-ranking-finals",
]  # fmt: skip


def svgs(files: dict[str, str]) -> dict[str, str]:
    return {
        name.removeprefix("figures/").removesuffix(".svg"): text for name, text in files.items() if "figures/" in name
    }


def test_a_finished_run_has_every_plot(rendered: Callable[..., Report]) -> None:
    assert set(svgs(rendered().files)) == set(PLOTS)


@pytest.mark.parametrize("strange", [False, True])
def test_text_is_text_of_twelve_pixels_or_more_in_a_picture_of_a_telephones_width(
    rendered: Callable[..., Report], strange: bool
) -> None:
    for name, svg in svgs(rendered(strange=strange).files).items():
        assert '<svg xmlns="http://www.w3.org/2000/svg" width="350"' in svg, name
        sizes = [float(size) for size in re.findall(r"font-size: ([0-9.]+)px", svg)]
        assert sizes, name
        assert min(sizes) >= 12, name
        assert len(sizes) == svg.count("<text"), name


def test_the_same_rows_give_the_same_bytes(
    make_report: Callable[..., ReportData], rendered: Callable[..., Report]
) -> None:
    assert svgs(render(make_report(strange=True)).files) == svgs(rendered(strange=True).files)


@pytest.mark.parametrize("source", ["results.csv", "phase1_summary.csv"])
def test_plots_come_from_any_results_table(rendered: Callable[..., Report], tmp_path: Path, source: str) -> None:
    files = rendered().files
    table = tmp_path / source
    table.write_text(files[source])
    names = {path.stem for path in plots_from_csv(table, tmp_path / "plots")}
    if source == "results.csv":
        assert names == set(PLOTS)
        again = {path.stem: path.read_text() for path in (tmp_path / "plots").iterdir()}
        assert again["curves-finals"] == files["figures/curves-finals.svg"]
        assert again["smallbench"] == files["figures/smallbench.svg"]
    else:
        assert names == {
            "axis-embedding_ratio-results",
            "axis-glu_expansion-results",
            "pareto-results",
            "funnel",
            "money",
        }


def test_an_axis_has_its_own_values_alone_where_a_table_names_no_baseline(rendered: Callable[..., Report]) -> None:
    columns, rows = read_csv(rendered().files["phase1_summary.csv"])
    data = from_rows(rows, columns)
    (results,) = data.stages
    assert [value for value, _ in along(data, results, "embedding_ratio")] == ["0.25", "0.35", "0.45"]
    assert [value for value, _ in along(data, results, "glu_expansion")] == ["2", "2.66", "3", "4"]


def test_runs_in_one_table_are_drawn_apart(rendered: Callable[..., Report], tmp_path: Path) -> None:
    text = rendered().files["results.csv"]
    rows = text.split("\n", 1)[1].replace("param-allocation-0badcafe", "param-allocation-12345678")
    (tmp_path / "merged.csv").write_text(text + rows)
    names = {path.stem for path in plots_from_csv(tmp_path / "merged.csv", tmp_path / "plots")}
    assert {"curves-finals 0badcafe", "curves-finals 12345678"} <= names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("a,b\n1,2\n", "must have a column"),
        ("val_loss,status\n1,completed\n2,great\n", "row 2: status must be one of pending, completed, .*, got 'great'"),
    ],
)
def test_a_file_that_is_no_results_table_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        plots_from_csv(tmp_path / "x.csv", tmp_path / "plots")


def test_a_table_without_seeds_has_a_trial_per_row(tmp_path: Path) -> None:
    rows = [{"variant": name, "val_loss": value} for name, value in (("a", "2.0"), ("a", "2.2"), ("b", "1.9"))]
    (stage,) = from_rows(rows, ["variant", "val_loss"]).stages
    assert {arm.name: list(arm.values.values()) for arm in stage.ranked()} == {"b": [1.9], "a": [2.0, 2.2]}


def test_the_command_line_prints_what_it_drew_and_refuses_with_2(
    rendered: Callable[..., Report], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.csv").write_text(rendered(stages=1).files["results.csv"])
    assert main([str(tmp_path / "results.csv"), "--to", str(tmp_path / "plots")]) == 0
    assert f"{tmp_path}/plots/curves-ranking.svg" in capsys.readouterr().out
    assert main([str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err.startswith("no such file")


def test_intervals_are_those_of_a_pooled_t(rendered: Callable[..., Report]) -> None:
    columns, rows = read_csv(rendered().files["results.csv"])
    finals = next(stage for stage in from_rows(rows, columns).stages if stage.name == "finals")
    arms = {arm.name: list(arm.values.values()) for arm in finals.arms("final_val_loss")}
    within = [value - statistics.fmean(values) for values in arms.values() for value in values]
    sd = (sum(value**2 for value in within) / 8) ** 0.5
    for found in differences(finals):
        low, high = stats.t(8, found.value, sd * (2 / 3) ** 0.5).interval(0.9)
        assert (found.low, found.high) == pytest.approx((low, high))


@given(st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=5), min_size=2, max_size=5))
def test_pooled_variance_is_the_within_group_mean_square(arms: list[list[float]]) -> None:
    found = PooledVariance.of(arms)
    variance, freedom = found.variance, found.degrees_of_freedom
    assert freedom == sum(len(arm) - 1 for arm in arms)
    if freedom:
        parts = sum((len(arm) - 1) * statistics.variance(arm) for arm in arms if len(arm) > 1)
        assert variance == pytest.approx(parts / freedom, abs=1e-9)


@given(st.permutations(range(1, 8)))
def test_spearman_is_scipys(ranks: list[int]) -> None:
    pairs = [(index + 1, rank) for index, rank in enumerate(ranks)]
    assert spearman(pairs) == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(1, 100)), min_size=1, max_size=30))
def test_a_frontier_dominates_the_rest_and_nothing_dominates_it(coordinates: list[tuple[float, float]]) -> None:
    points = [ParetoPoint(SimpleNamespace(), flops, value) for flops, value in coordinates]  # type: ignore[arg-type]
    edge = frontier(points)
    for point in points:
        beaten = any(e.flops <= point.flops and e.value <= point.value for e in edge)
        assert beaten
    for a in edge:
        assert not any(b.flops <= a.flops and b.value < a.value for b in points)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_labels_are_spread_in_order_without_touching(wanted: list[float]) -> None:
    placed = spread(wanted, 10, 0, 100)
    ordered = sorted(placed)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(ordered))
    assert sorted(range(len(wanted)), key=lambda i: (wanted[i], i)) == sorted(
        range(len(wanted)), key=lambda i: placed[i]
    )


@given(st.text(min_size=1, max_size=60), st.integers(5, 30))
def test_a_shortened_name_fits_and_keeps_its_ends(name: str, limit: int) -> None:
    shown = short(name, limit)
    assert len(shown) <= limit
    assert shown == name or (shown[0], shown[-1]) == (name[0], name[-1])
