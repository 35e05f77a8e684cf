"""What needs no PostgreSQL; `tests/cluster/chart/test_chart_mlflow.py` has the rest."""

import pytest

from podium.components.tracking.migrate import main, migrate
from podium.trainer.trial.errors import PodiumError, UserError


@pytest.mark.parametrize(
    ("uri", "got"),
    [
        ("", "'no address'"),
        ("host/database", "'no address'"),
        ("postgres://user:hidden@host/database", "'postgres'"),
        ("postgresql+psycopg2://user:hidden@host/database", "'postgresql+psycopg2'"),
        ("mysql://user:hidden@host/database", "'mysql'"),
    ],
)
def test_another_kind_of_address_is_refused_without_showing_it(uri, got):
    with pytest.raises(UserError) as error:
        migrate(uri)
    assert "MLFLOW_BACKEND_STORE_URI: must be postgresql://… or postgresql+psycopg://…, got " + got in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_database_that_stays_away_is_told_in_one_line_without_the_password(capsys):
    with pytest.raises(PodiumError, match="no database after 0 s") as error:
        migrate("postgresql://someone:hidden@127.0.0.1:1/database", wait_seconds=0)
    told = str(error.value) + "".join(capsys.readouterr())
    assert "127.0.0.1" in told
    assert "\n" not in str(error.value)
    assert "hidden" not in told


def test_a_users_mistake_ends_with_2_and_a_sentence(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "sqlite:///x")
    assert main() == 2
    assert capsys.readouterr().err.startswith("migrate: MLFLOW_BACKEND_STORE_URI: must be postgresql://…")
