"""Numbers as people type them: one reading, or a refusal that says what is allowed."""

import pytest

from podium.trainer.trial.section import parse_count, parse_seconds, parse_usd


@pytest.mark.parametrize(
    ("text", "usd"),
    [("95", 95.0), ("$95", 95.0), (" $1200.50 ", 1200.5), ("95 usd", 95.0), ("1_200", 1200.0), ("-5", -5.0)],
)
def test_an_amount_has_one_reading(text: str, usd: float) -> None:
    assert parse_usd(text) == usd


@pytest.mark.parametrize("text", ["1,5", "$1,5", "1,200", "1.2.3", "", "$", "five", "nan", "inf", "1e3", "95€"])
def test_an_amount_that_could_be_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be an amount such as 95, \$95 or 1200\.50, got"):
        parse_usd(text)


def test_a_comma_is_explained() -> None:
    with pytest.raises(ValueError, match=r"1,5 could be 1\.5 or 15"):
        parse_usd("1,5")


@pytest.mark.parametrize("text", ["1,5", "1,000", "5 million", "0.5", "-1", "nan", "1e-3"])
def test_a_count_is_a_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        parse_count(text)


@pytest.mark.parametrize("text", ["1,5h", "1h30", "nan", "-5s", "soon"])
def test_a_time_is_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time such as"):
        parse_seconds(text)
