"""Numbers as the report writes them. results.csv and the page call the same functions, so a figure that a reader sees
on the page is found in the CSV letter by letter."""

from __future__ import annotations

import math

MISSING = "—"
"""What the page shows where nothing was measured. The CSV leaves the cell empty."""


def loss(value: float | None) -> str:
    """Nats per token, four decimals: a tenth of the usual spread over seeds."""
    return _fixed(value, 4)


def bits_per_byte(value: float | None) -> str:
    """Bits per UTF-8 byte, four decimals."""
    return _fixed(value, 4)


def perplexity(value: float | None) -> str:
    """Two decimals; scientific from a million on, where only the order of magnitude means anything."""
    if value is not None and math.isfinite(value) and value >= 1e6:
        return f"{value:.2e}"
    return _fixed(value, 2)


def of_metric(metric: str, value: float | None) -> str:
    """A value of a ranking's metric: perplexities by two decimals, losses and bits per byte by four."""
    return perplexity(value) if metric.endswith("perplexity") else loss(value)


def decimals_of(metric: str) -> int:
    """Decimals of the metric's values and differences."""
    return 2 if metric.endswith("perplexity") else 4


def seconds(value: float | None) -> str:
    """Seconds, one decimal, without thousands separators so that the text is the CSV's."""
    return _fixed(value, 1)


def cost(value: float | None) -> str:
    """US dollars without the sign: cents, and four decimals below a dollar (a smoke trial costs less than a cent)."""
    return _fixed(value, 2 if value is not None and (abs(value) >= 1 or value == 0) else 4)


def usd(value: float | None) -> str:
    """A sum of US dollars with the sign: cents, and four decimals where cents would say nothing."""
    decimals = 2 if value is not None and (value == 0 or abs(value) >= 0.095) else 4
    text = _fixed(value, decimals)
    return text and f"${text}"


def count(value: float | None) -> str:
    """A whole number with thousands separators, for the page only."""
    return "" if value is None else f"{value:,.0f}"


def whole(value: float | None) -> str:
    """A whole number as digits."""
    return _fixed(value, 0)


def exact(value: float | None) -> str:
    """Every digit of the float, so that a value can be recomputed."""
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def signed(value: float | None, decimals: int = 4) -> str:
    """A difference with its sign, with a true minus."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:+.{decimals}f}".replace("-", "−")


def interval(bounds: tuple[float, float] | None, decimals: int = 4) -> str:
    """`−0.0210 to −0.0040`."""
    return "" if bounds is None else f"{signed(bounds[0], decimals)} to {signed(bounds[1], decimals)}"


def p_value(value: float | None) -> str:
    """Two significant digits, and a bound where the test is far beyond doubt."""
    if value is None or not math.isfinite(value):
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def axis_value(value: object) -> str:
    """A value of an axis: numbers without trailing noise, everything else as it is written in the study."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def shown(text: str) -> str:
    """The cell on the page for a cell of the CSV."""
    return text or MISSING


def _fixed(value: float | None, decimals: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"
