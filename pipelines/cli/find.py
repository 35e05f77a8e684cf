"""From what a user types for a run to the run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from podium.pipelines.cli.kubeflow_run import find_run, is_kubeflow_id

if TYPE_CHECKING:
    from podium.components.study.run import Run


def open_run(target: str | None, store: str) -> Run:
    """The run that `target` names: an id in `store`, a run's folder, or a store, which means its newest run.

    The id may be ours or that of Kubeflow's run. Without a target it is the newest run of `store`. Raises UserError
    where there is none.
    """
    from podium.components.study.run import Run

    if target is None:
        return Run.open(store)
    if is_kubeflow_id(target):
        found = find_run(target, store)
        if found is None:
            from podium.trainer.errors import UserError

            raise UserError(
                f"Kubeflow's run {target} is no run of ours yet: its step prepare_data has not got so far, or it is in "
                f"another store than {store} (--store); podium status {target} says what Kubeflow knows"
            )
        return found
    if "/" in target or os.path.isdir(target):
        return Run.open(target)
    return Run.open(store, target)


def all_runs(store: str) -> list[Run]:
    """Every run of a store, the one registered last at the end. Raises UserError where there is none."""
    from podium.components.study.registration import run_ids
    from podium.components.study.run import Run
    from podium.trainer.storage import normalise_uri, open_storage

    uri = normalise_uri(store)
    ids = run_ids(open_storage(uri))
    return [Run.open(uri, identity) for identity in ids] if ids else [Run.open(uri)]
