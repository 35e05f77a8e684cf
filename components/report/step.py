"""The report of a whole run, in its store and beside its metrics in MLflow."""

from __future__ import annotations

import logging

from podium.components.launch.tracker import catch_up
from podium.components.reporting.build import FOLDER, build_report
from podium.components.study.layout import mlflow_tags
from podium.components.study.run import Run
from podium.trainer.trial.sync import artifact_root, client, ensure_parent, mlflow_uri

MAILED = ("index.html", "summary.md", "results.csv")
"""The files that MLflow shows with the run; figures are in the page."""

_log = logging.getLogger("podium.report")


def report(run: str, store: str) -> str:
    """Build the report of a run, note it in the ledger, put it into MLflow, and return the page's HTML.

    A server that is down is logged and no failure: the report lies in the store. Raises UserError, StorageError.
    """
    opened = Run.open(store, run)
    # the entry comes first, so that the report which it is about shows the ledger as it stays
    opened.ledger.append("report", "final", index=f"{FOLDER}/index.html")
    html = build_report(opened)
    catch_up(opened)
    _log_to_mlflow(opened)
    return html


def _log_to_mlflow(run: Run) -> None:
    uri = mlflow_uri(run.store_uri)
    try:
        parent = ensure_parent(
            uri,
            run.study.name,
            key=run.id,
            name=run.id,
            tags={"study": run.study.name, "run": run.id, **mlflow_tags(run.storage)},
            artifacts=artifact_root(run.store_uri),
        )
        for name in MAILED:
            client(uri).log_text(parent, run.storage.read_text(f"{FOLDER}/{name}"), f"{FOLDER}/{name}")
    except Exception as error:  # noqa: BLE001  MLflow raises what its transport and database raise
        _log.warning("MLflow at %s has no copy of the report: %s", uri, error)
