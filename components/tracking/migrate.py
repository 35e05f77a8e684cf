"""Bring the database of an MLflow server up to the schema of the MLflow that is installed here, once.

    MLFLOW_BACKEND_STORE_URI=postgresql://… python -m podium.components.tracking.migrate

Every server's pod runs this before the server starts. A lock in PostgreSQL lets one at a time through: the first
migrates, the others find nothing to do. It is held by an open transaction, so that it goes with whoever held it (a
pod that is killed) and works behind a connection pool too. The migrations are one transaction: a kill leaves the schema
as it was. A database that a newer MLflow has migrated is refused: there is no way back but a backup.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from typing import Any

from podium.trainer.trial.errors import PodiumError, Problem, UserError

URI_VARIABLE = "MLFLOW_BACKEND_STORE_URI"
"""MLflow's own name for it. `postgresql://` alone leaves host, user and password to libpq's `PG…` variables."""
SCHEMES = ("postgresql", "postgresql+psycopg")
LOCK = 0x706F_6469_756D
"""`podium` in ASCII: the number of the advisory lock."""
WAIT_SECONDS = 600.0
RETRY_SECONDS = 2.0


def main() -> int:
    """Migrate what the environment names; 0, 1 where the database is not to be had, 2 for a user's mistake."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        print(migrate(os.environ.get(URI_VARIABLE, "")), flush=True)
    except UserError as error:
        print(f"migrate: {error.message}", file=sys.stderr, flush=True)
        return 2
    except PodiumError as error:
        print(f"migrate: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def migrate(uri: str, *, wait_seconds: float = WAIT_SECONDS) -> str:
    """Migrate the PostgreSQL database at `uri`, waiting for it and for whoever migrates it now; says what was done.

    Raises UserError for another kind of database or one with a newer schema, PodiumError where it stays away.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme not in SCHEMES:
        # the scheme only: the rest holds a password
        got = scheme if separator else "no address"
        raise UserError(Problem(URI_VARIABLE, f"must be {'://… or '.join(SCHEMES)}://…, got {got!r}"))
    with warnings.catch_warnings():
        # MLflow 3.17 itself uses what SQLAlchemy 2.1 calls deprecated
        warnings.simplefilter("ignore")
        from mlflow.store.db import utils as mlflow_database

        engine = mlflow_database.create_sqlalchemy_engine(uri)
        try:
            with _connected(engine, wait_seconds) as holder, holder.begin():
                _lock(holder)
                return _upgrade(engine, mlflow_database)
        finally:
            engine.dispose()


def _connected(engine: Any, wait_seconds: float) -> Any:
    """A connection, as soon as the database takes one."""
    from sqlalchemy.exc import OperationalError

    deadline = time.monotonic() + wait_seconds
    said = ""
    while True:
        try:
            return engine.connect()
        except OperationalError as error:
            # the driver's words name host and user, never the password
            reason = " ".join(str(error.orig).split())
        if time.monotonic() > deadline:
            raise PodiumError(f"no database after {wait_seconds:g} s: {reason}")
        if reason != said:
            print(f"waiting for the database: {reason}", flush=True)
            said = reason
        time.sleep(RETRY_SECONDS)


def _lock(holder: Any) -> None:
    from sqlalchemy import text

    # a server's own limits must not take the lock from a migration that runs for an hour
    for limit in ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout"):
        holder.execute(text(f"SET LOCAL {limit} = 0"))
    holder.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


def _upgrade(engine: Any, mlflow_database: Any) -> str:
    """Migrate, if there is something to migrate. The lock is held."""
    import mlflow

    before, newest = mlflow_database._get_schema_version(engine), mlflow_database._get_latest_schema_revision()
    if before == newest:
        return f"the database has the schema of MLflow {mlflow.__version__} ({newest}): nothing to do"
    if before is not None and not _is_known(before, mlflow_database):
        raise UserError(
            f"the database has the schema {before}, which MLflow {mlflow.__version__} does not know: a newer MLflow "
            "migrated it. Run that version, or restore the backup from before"
        )
    # as `mlflow db upgrade` does it; that command wants the address, password included, among its arguments
    if mlflow_database._is_empty_database(engine):
        mlflow_database._initialize_tables(engine)
    else:
        mlflow_database._upgrade_db(engine)
    return f"the database is migrated from {before or 'nothing'} to {newest} (MLflow {mlflow.__version__})"


def _is_known(revision: str, mlflow_database: Any) -> bool:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(mlflow_database._get_alembic_config(db_url=""))
    return any(script.revision == revision for script in scripts.walk_revisions())


if __name__ == "__main__":
    sys.exit(main())
