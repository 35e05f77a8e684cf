"""How long a verdict over 10,000 trials (2,000 arms of five seeds) takes, by policy. At most 2 s.

python tests/benchmarks/verdict_scale.py [--arms 2000] [--rounds 3]
"""

import argparse
import json
import statistics
import time

import numpy as np

from podium.components.policies.decide import decide
from podium.components.study.schema import Study
from podium.components.study.verdict import StageResults, TrialOutcome, VariantRef
from podium.trainer.trial.result import Status

SEEDS = [42, 43, 44, 45, 46]
POLICIES: dict[str, dict[str, object]] = {
    "always": {},
    "best_mean": {"alpha": 0.05},
    "within_margin": {"margin": 0.005},
    "beats_baseline": {},
    "reaches_target": {"target": 3.28},
}


def study(policy: str) -> Study:
    """A study of one stage that is a proof by this policy."""
    stage = {"budget": {"steps": 10}, "seeds": SEEDS, "promotion": {"policy": policy, **POLICIES[policy]}}
    return Study.model_validate(
        {
            "name": "scale",
            "question": "How long does a verdict take?",
            "data": {"vocab_size": 512},
            "config": {},
            "stages": {"only": {**stage, "proof": True}},
        }
    )


def results(arms: int) -> StageResults:
    """Five seeds an arm, all completed, with equal means."""
    losses = np.random.default_rng(0).normal(3.0, 0.01, (arms, len(SEEDS)))
    names = ["baseline", *(f"v{i}" for i in range(arms - 1))]
    return StageResults(
        stage="only",
        variants=[VariantRef(name=name) for name in names],
        seeds=SEEDS,
        outcomes=[
            TrialOutcome(variant=name, seed=seed, fingerprint="f", status=Status.COMPLETED, value=float(value))
            for name, row in zip(names, losses, strict=True)
            for seed, value in zip(SEEDS, row, strict=True)
        ],
    )


def main() -> None:
    """Time each policy and print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    given = results(chosen.arms)
    medians = {}
    for policy in POLICIES:
        declared, took = study(policy), []
        for _ in range(chosen.rounds + 1):
            began = time.perf_counter()
            decide(declared, given)
            took.append(time.perf_counter() - began)
        medians[policy] = statistics.median(took[1:])  # the first call also imports
        print(f"{policy:16} {medians[policy]:6.2f} s over {len(given.outcomes):,} trials")
    print(json.dumps({"benchmark": "verdict_scale", "trials": len(given.outcomes), "seconds": medians}))


if __name__ == "__main__":
    main()
