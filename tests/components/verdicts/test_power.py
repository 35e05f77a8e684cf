"""Power: against statsmodels, against simulated draws, and what a plan warns of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import NormalIndPower, TTestIndPower, TTestPower

from podium.components.verdicts.power import Proof, gap_for, power, seeds_for

DRAWS = 20_000
SIGMA = 0.0012
CASES = [(gap, n, alpha) for gap in (0.0006, 0.001, 0.002, 0.004) for n in (2, 3, 5, 10) for alpha in (0.01, 0.05)]


@pytest.mark.parametrize(("gap", "n", "alpha"), CASES)
def test_power_agrees_with_statsmodels(gap: float, n: int, alpha: float) -> None:
    target = TTestPower().power(gap / SIGMA, n, alpha, alternative="larger")
    assert power(Proof("target", alpha), gap, n, SIGMA) == pytest.approx(target, abs=0.01)
    two = TTestIndPower().power(gap / SIGMA, n, alpha, alternative="larger")
    assert power(Proof("baseline", alpha), gap, n, SIGMA) == pytest.approx(two, abs=0.01)
    known = NormalIndPower(ddof=0).power(gap / SIGMA, n, alpha, ratio=0, alternative="larger")
    assert power(Proof("target", alpha, known_sigma=True), gap, n, SIGMA) == pytest.approx(known, abs=0.01)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("gap", [0.0, 0.001, 0.002, 0.004])
def test_power_agrees_with_simulated_proofs(gap: float, n: int, alpha: float) -> None:
    random = np.random.default_rng([int(gap * 1e4), n, int(alpha * 100)])
    arm = random.normal(-gap, SIGMA, (DRAWS, n))
    base = random.normal(0.0, SIGMA, (DRAWS, n))
    target = stats.ttest_1samp(arm, 0.0, axis=1, alternative="less").pvalue < alpha
    assert power(Proof("target", alpha), gap, n, SIGMA) == pytest.approx(target.mean(), abs=0.015)
    two = stats.ttest_ind(arm, base, axis=1, alternative="less").pvalue < alpha
    assert power(Proof("baseline", alpha), gap, n, SIGMA) == pytest.approx(two.mean(), abs=0.015)
    z = stats.norm.cdf(arm.mean(axis=1) * math.sqrt(n) / SIGMA) < alpha
    assert power(Proof("target", alpha, known_sigma=True), gap, n, SIGMA) == pytest.approx(z.mean(), abs=0.015)


@pytest.mark.parametrize("arms", [2, 4])
def test_power_over_several_arms_agrees_with_simulated_dunnett_tests(arms: int) -> None:
    n, gap, alpha = 4, 0.0025, 0.05
    proof = Proof("baseline", alpha, arms)
    random = np.random.default_rng(arms)
    noise = random.normal(0.0, SIGMA, (DRAWS, arms + 1, n))
    noise[:, 1] -= gap
    pooled = np.sqrt(noise.var(axis=2, ddof=1).mean(axis=1))
    statistic = (noise[:, 0].mean(axis=1) - noise[:, 1].mean(axis=1)) / (pooled * math.sqrt(2 / n))
    assert power(proof, gap, n, SIGMA) == pytest.approx((statistic > proof.critical(n)).mean(), abs=0.015)
    # of all arms equal, the best passes in alpha of cases
    noise[:, 1] += gap
    best = (noise[:, :1].mean(axis=2) - noise[:, 1:].mean(axis=2)).max(axis=1) / (pooled * math.sqrt(2 / n))
    assert (best > proof.critical(n)).mean() == pytest.approx(alpha, abs=0.005)


def test_the_figures_of_the_facts() -> None:
    # 0.001 takes about 18 seeds an arm for 80 % at alpha 0.05, 0.002 about 5 or 6
    assert seeds_for(Proof("baseline", 0.05), 0.001, SIGMA, 0.8) in (18, 19)
    assert seeds_for(Proof("baseline", 0.05), 0.002, SIGMA, 0.8) in (5, 6)


PROOFS = [
    Proof("target", 0.01),
    Proof("baseline", 0.05, 3),
    Proof("target", 0.01, margin=0.001),
    Proof("baseline", 0.05, paired=True, correlation=0.5),
]


@pytest.mark.parametrize("proof", PROOFS)
def test_seeds_and_gaps_are_the_inverse_of_power(proof: Proof) -> None:
    n = seeds_for(proof, 0.003, SIGMA, 0.8)
    assert n is not None
    assert power(proof, 0.003, n, SIGMA) >= 0.8 > power(proof, 0.003, n - 1, SIGMA)
    gap = gap_for(proof, n, SIGMA, 0.8)
    assert gap is not None
    assert power(proof, gap, n, SIGMA) == pytest.approx(0.8, abs=1e-6)
    assert gap <= 0.003


def test_what_no_number_of_seeds_shows() -> None:
    assert seeds_for(Proof("target", 0.01, margin=0.01), 0.01, SIGMA, 0.8) is None
    assert power(Proof("target", 0.01), 0.1, 1, SIGMA) == 0.0
    assert gap_for(Proof("baseline", 0.01), 1, SIGMA, 0.8) is None
    assert seeds_for(Proof("target", 0.01), 1e-6, SIGMA, 0.8) is None
