"""False proofs through the whole ladder by simulation, and the kill rule on recorded curves.

    python -m tests.benchmarks.calibration [--draws 20000] [--only TEXT] [--out FILE]

Ten equal arms of two seeds each, the leader promoted, five fresh seeds for the proof at alpha 0.01: every proof is
false. Exits with 1 where a rate is outside what its line allows.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats
from tests.benchmarks.calibration.kill import KillRates, kill_rates, noise_at_looks
from tests.benchmarks.calibration.simulate import Rate, scenarios, simulate
from tests.benchmarks.replay.data import DEFAULT, halves, load

KILL_SEEDS = (1, 2, 3, 5)
MOST_FALSE_KILLS = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.calibration",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--draws", type=int, default=20_000, help="of each scenario (default: %(default)s)")
    parser.add_argument("--kill-draws", type=int, default=4_000, help="null arms of each row (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=DEFAULT, help="recorded curves (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="scenarios whose name has this text; `kill rates` for the kill rule")
    parser.add_argument("--out", type=Path, help="JSON file of the rates; rows are added to what it has")
    given = parser.parse_args()

    arms = load(given.data)
    fixed_on, reported = halves(arms)
    ok = True
    print("| scenario | draws | false proofs | 95 % interval | allowed | |\n|---|---|---|---|---|---|")
    for number, scenario in enumerate(scenarios(arms)):
        if given.only not in scenario.name:
            continue
        rate = simulate(scenario, given.draws, np.random.default_rng([given.seed, number]), arms, _tell)
        ok &= _print_rate(rate)
        _keep(given.out, scenario.name, {"draws": rate.draws, "false": rate.false, "rate": rate.rate})
    if given.only in "kill rates":
        sigma = noise_at_looks(fixed_on)
        print(f"\nsigma at the noisiest look, from half of the arms: {sigma:.5f} nats\n")
        print("| seeds | null arms | false kills | 95 % interval | power at 3σ worse | |\n|---|---|---|---|---|---|")
        for seeds in KILL_SEEDS:
            rates = kill_rates(reported, seeds, given.kill_draws, sigma, np.random.default_rng([given.seed, 99, seeds]))
            ok &= _print_kill(rates)
            _keep(given.out, f"kill, {seeds} seeds", vars(rates))
    return 0 if ok else 1


def _print_rate(rate: Rate) -> bool:
    low, high = rate.interval
    scenario = rate.scenario
    good = scenario.least <= rate.rate <= scenario.limit
    allowed = f"{scenario.least:.1%} to {scenario.limit:.1%}" if scenario.least else f"at most {scenario.limit:.1%}"
    print(
        f"| {scenario.name} | {rate.draws:,} | {rate.rate:.2%} | {low:.2%} to {high:.2%} | {allowed} "
        f"| {'holds' if good else 'FAILS'} |",
        flush=True,
    )
    return good


def _print_kill(rates: KillRates) -> bool:
    low, high = stats.binomtest(rates.false_kills, rates.arms).proportion_ci(0.95)
    good = rates.false_kills / rates.arms <= MOST_FALSE_KILLS
    print(
        f"| {rates.seeds} | {rates.arms:,} of {rates.recorded} recorded | {rates.false_kills / rates.arms:.2%} "
        f"| {low:.2%} to {high:.2%} | {rates.hits / rates.arms:.1%} | {'holds' if good else 'FAILS'} |",
        flush=True,
    )
    return good


def _keep(path: Path | None, name: str, row: dict) -> None:
    if path is None:
        return
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {name: row}, indent=2) + "\n")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
