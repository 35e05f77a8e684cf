"""Optuna's pruners as opponents, driven by ask and tell: ASHA and Hyperband, η = 3.

Optuna is an extra of the benchmarks and imported here only. One trial per arm, one seed; trials report at every rung,
and a pruned one can't be resumed (Optuna's own limit). Trials are run in turns, each as far as the next rung, as a pool
of workers with one arm each would do it.
"""

from __future__ import annotations

import numpy as np

from .opponents import ETA, RUNGS, Choice, Opponent
from .reader import World

RESOURCES = tuple(round(share * 9) for share in RUNGS)
"""1, 3, 9 ninths of an arm's own schedule, as Optuna counts resources."""


def schedulers() -> dict[str, Opponent]:
    """The opponents; raises SystemExit where Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise SystemExit(
            "ASHA and Hyperband need Optuna (pip install optuna), or leave them out by --no-optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def asha(world: World, rng: np.random.Generator) -> Choice:
        """`SuccessiveHalvingPruner`: Li et al. 2018."""
        del rng
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=RESOURCES[0], reduction_factor=ETA)
        return _drive(optuna, world, pruner)

    def hyperband(world: World, rng: np.random.Generator) -> Choice:
        """`HyperbandPruner`: brackets of successive halving, Li et al. 2016."""
        del rng
        pruner = optuna.pruners.HyperbandPruner(
            min_resource=RESOURCES[0], max_resource=RESOURCES[-1], reduction_factor=ETA
        )
        return _drive(optuna, world, pruner)

    return {"ASHA (Optuna)": asha, "Hyperband (Optuna)": hyperband}


def _drive(optuna, world: World, pruner) -> Choice:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner, study_name="replay")
    running = [(arm, study.ask()) for arm in range(world.arms)]
    for share, resource in zip(RUNGS, RESOURCES, strict=True):
        left = []
        for arm, trial in running:
            trial.report(world.trial(arm, 0).train_to(share).value(share), resource)
            if resource < RESOURCES[-1] and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                left.append((arm, trial))
        running = left
    for arm, trial in running:
        study.tell(trial, world.final(arm, 0))
    best = study.best_trial.number
    return Choice(next(arm for arm, trial in running if trial.number == best))
