from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from podium.components.study.verdict import squared_deviations
from podium.components.verdicts.stats import better_than_control, interval


def test_one_arm_is_students_t_with_pooled_variance() -> None:
    rng = np.random.default_rng(0)
    control, arm = rng.normal(5.0, 0.1, 5), rng.normal(4.95, 0.1, 4)
    expected = stats.ttest_ind(arm, control, alternative="less")
    pooled = math.sqrt((4 * control.var(ddof=1) + 3 * arm.var(ddof=1)) / 7)
    statistic = (control.mean() - arm.mean()) / (pooled * math.sqrt(1 / 5 + 1 / 4))
    assert better_than_control(statistic, [4], 5, 7) == pytest.approx(expected.pvalue, rel=1e-12)
    low, high = interval(arm.mean() - control.mean(), pooled * math.sqrt(1 / 5 + 1 / 4), 7, 0.05)
    expected_interval = stats.ttest_ind(arm, control).confidence_interval(0.90)
    assert (low, high) == pytest.approx((expected_interval.low, expected_interval.high))


@pytest.mark.parametrize(
    ("arms", "degrees", "critical"),
    # Dunnett (1955), table 1a: one-sided 5 % points, equal sizes
    [
        (1, 10, 1.81),
        (2, 10, 2.15),
        (3, 10, 2.34),
        (5, 10, 2.56),
        (9, 10, 2.81),
        (2, 5, 2.44),
        (3, 20, 2.19),
        (4, 60, 2.21),
    ],
)
def test_published_critical_values_of_dunnett_have_their_level(arms: int, degrees: int, critical: float) -> None:
    assert better_than_control(critical, [6] * arms, 6, degrees) == pytest.approx(0.05, abs=0.0006)


@pytest.mark.parametrize("sizes", [(3, 3, 3), (5, 4, 3, 2)])
def test_scipys_randomised_dunnett_agrees(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    control = rng.normal(5.0, 0.1, 4)
    arms = [rng.normal(4.9 + 0.05 * i, 0.1, n) for i, n in enumerate(sizes)]
    expected = stats.dunnett(*arms, control=control, alternative="less", rng=np.random.default_rng(2)).pvalue
    groups = [control, *arms]
    degrees = sum(len(group) - 1 for group in groups)
    pooled = math.sqrt(sum((len(g) - 1) * g.var(ddof=1) for g in groups) / degrees)
    for arm, p in zip(arms, expected, strict=True):
        statistic = (control.mean() - arm.mean()) / (pooled * math.sqrt(1 / len(arm) + 1 / 4))
        assert better_than_control(statistic, sizes, 4, degrees) == pytest.approx(p, abs=2e-4)


def test_the_adjusted_p_keeps_its_digits_far_out() -> None:
    one = better_than_control(20.0, [3], 3, 8)
    three = better_than_control(20.0, [3, 3, 3], 3, 8)
    assert one < three < 3 * one
    assert one == pytest.approx(stats.t.sf(20.0, 8))


@given(
    statistic=st.floats(-6, 6),
    sizes=st.lists(st.integers(2, 10), min_size=1, max_size=5),
    control=st.integers(2, 10),
    degrees=st.integers(1, 60),
)
def test_more_comparisons_never_make_a_p_smaller_than_one_alone_nor_larger_than_bonferroni(
    statistic: float, sizes: list[int], control: int, degrees: int
) -> None:
    alone = float(stats.t.sf(statistic, degrees))
    adjusted = better_than_control(statistic, sizes, control, degrees)
    assert alone - 1e-6 <= adjusted <= min(1.0, len(sizes) * alone) + 1e-6


def test_the_level_holds_under_the_null_by_simulation() -> None:
    """20,000 draws of 4 equal arms × 3 seeds: the share of the best arm's p under 0.05 is 0.05 ± 0.005."""
    rng = np.random.default_rng(3)
    draws = rng.normal(size=(20_000, 5, 3))
    means = draws.mean(axis=2)
    pooled = np.sqrt(draws.var(axis=2, ddof=1).mean(axis=1))
    best = (means[:, 0] - means[:, 1:].min(axis=1)) / (pooled * math.sqrt(2 / 3))
    # p falls with the statistic, so its 5 % point is found once instead of 20,000 integrals
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if better_than_control(middle, [3] * 4, 3, 10) > 0.05 else (low, middle)
    assert np.mean(best > low) == pytest.approx(0.05, abs=0.005)


@given(st.floats(-1e6, 1e6), st.integers(1, 10))
def test_equal_values_have_no_spread_at_all(value: float, n: int) -> None:
    assert squared_deviations([value] * n) == 0.0


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=10))
def test_the_spread_is_the_textbooks_in_any_order(values: list[float]) -> None:
    expected = float(np.var(values)) * len(values)
    assert squared_deviations(values) == pytest.approx(expected, rel=1e-9, abs=1e-12 * max(map(abs, values)) ** 2)
    assert squared_deviations(values) == squared_deviations(values[::-1])
