"""From what a user types for a run to the run."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from podium.components.study.layout import failure_of, run_of
from podium.pipelines.kubeflow.address import Address, is_given
from podium.pipelines.kubeflow.api import KubeflowRun, open_kubeflow
from podium.trainer.trial.errors import UserError
from podium.trainer.trial.storage import normalise_uri, open_storage

if TYPE_CHECKING:
    from podium.components.study.run import Run


# Runs as Kubeflow calls them: found in the store by their id, described and ended where none of ours is there yet.

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_kubeflow_id(target: str | None) -> bool:
    """Whether a target is the id of a run of Kubeflow's: ours end with eight digits, and have no such form."""
    return target is not None and ID.fullmatch(target) is not None


def find_run(kubeflow_run: str, store: str, address: Address | None = None) -> Run | None:
    """Our run that a run of Kubeflow's executes: in `store`, else in the store that Kubeflow says it was given.

    None where there is none yet: the step prepare_data has not got so far.
    """
    from podium.components.study.run import Run

    for place in _stores(kubeflow_run, store, address):
        found = run_of(open_storage(place), kubeflow_run)
        if found is not None:
            return Run.open(place, found)
    return None


def look_up(kubeflow_run: str, address: Address | None = None) -> KubeflowRun | None:
    """What Kubeflow says of its run; None where nothing says where Kubeflow is."""

    address = address or Address()
    if not is_given(address):
        return None
    with open_kubeflow(address) as kubeflow:
        return kubeflow.run(kubeflow_run)


def describe(kubeflow_run: str, store: str, address: Address | None = None) -> dict[str, Any]:
    """The status of a run of Kubeflow's that is none of ours yet. Raises UserError where nobody knows of it."""

    known = look_up(kubeflow_run, address)
    stores = _stores(kubeflow_run, store, address)
    failure = next((each for place in stores if (each := failure_of(open_storage(place), kubeflow_run))), None)
    if known is None and failure is None:
        raise UserError(
            f"no run of Kubeflow's with the id {kubeflow_run} in {store}: give the store that it was submitted with "
            "(--store), or Kubeflow's address (KF_PIPELINES_ENDPOINT)"
        )
    return {
        "kubeflow_run": kubeflow_run,
        "run_id": None,
        "state": known.state.lower() if known is not None else "failed",
        "steps": {each.name: each.state.lower() for each in known.tasks} if known is not None else {},
        "reason": f"{failure.step}: {failure.message}" if failure is not None else (known.said if known else ""),
    }


def end_run(kubeflow_run: str, address: Address | None = None) -> bool | None:
    """End a run of Kubeflow's. True if it still went on, False if it had ended, None where Kubeflow is not known.

    Its pods are killed without a signal, so trials are asked to save before.
    """

    address = address or Address()
    if not is_given(address):
        return None
    with open_kubeflow(address) as kubeflow:
        if kubeflow.run(kubeflow_run).has_ended:
            return False
        kubeflow.terminate(kubeflow_run)
        return True


def _stores(kubeflow_run: str, store: str, address: Address | None) -> list[str]:
    """Where to look: the store that was named, then the one that Kubeflow's run was given."""

    try:
        known = look_up(kubeflow_run, address)
    except UserError:  # the store alone may do
        known = None
    told = known.store if known is not None else None
    return list(dict.fromkeys([store, *([told] if told else [])]))


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

    uri = normalise_uri(store)
    ids = run_ids(open_storage(uri))
    return [Run.open(uri, identity) for identity in ids] if ids else [Run.open(uri)]
