"""A verdict as Markdown: what the select step shows in the Kubeflow UI, and what `podium status` prints of it."""

from __future__ import annotations

from collections.abc import Iterator

from podium.components.verdicts.verdict import ArmSummary, Verdict

_MOST_ROWS = 40
"""Rows of the table; the verdict's JSON has all of them."""


def to_markdown(verdict: Verdict) -> str:
    """The decision first, then the arms with every seed, the test, who was not chosen and why."""
    return "\n".join(_lines(verdict)) + "\n"


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"## {verdict.stage}: {verdict.decision}"
    yield ""
    yield f"{_cell(verdict.reason)}."
    yield ""
    if verdict.winner is not None:
        yield f"Best: **{_cell(verdict.winner)}**. Claim: **{verdict.claim}**."
        yield ""
    compared = any(row.difference is not None for row in verdict.ranking)
    tested = any(row.p is not None for row in verdict.ranking)
    heads = ["rank", "variant", f"mean {verdict.metric}", "SD", "n", "by seed"]
    heads += [f"difference to {verdict.opponent.removeprefix('the ')}"] * compared + ["interval", "p"] * tested
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in verdict.ranking[:_MOST_ROWS]:
        cells = [str(row.rank or "–"), row.variant, _number(row.mean), _number(row.sd), str(row.n), _seeds(row)]
        cells += [_number(row.difference, "+.4f")] * compared
        cells += [_interval(row), _number(row.p, ".3g")] * tested
        yield "| " + " | ".join(map(_cell, cells)) + " |"
    if len(verdict.ranking) > _MOST_ROWS:
        yield ""
        yield f"{len(verdict.ranking) - _MOST_ROWS} more arms are in the verdict's file."
    yield ""
    if verdict.test.get("name", "none") != "none":
        yield _test(verdict)
        yield ""
    if verdict.tops:
        yield "Best value by axis: " + ", ".join(f"{axis}: {_cell(name)}" for axis, name in verdict.tops.items()) + "."
        yield ""
    if verdict.promoted:
        yield "Goes on: " + ", ".join(_cell(ref.name) for ref in verdict.promoted) + "."
        yield ""
    shown = list(verdict.not_chosen.items())[:_MOST_ROWS]
    yield from (f"- not {_cell(name)}: {_cell(why)}" for name, why in shown)
    yield from (f"- {_cell(note)}" for note in verdict.notes)
    yield ""
    yield (
        "Trials: " + ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in verdict.counts.items()) + "."
    )


def _test(verdict: Verdict) -> str:
    test = verdict.test
    text = f"Test: {test['name']} against {test['control']}, alpha {test['alpha']:g}, {test['comparisons']} compared"
    if test["pooled_sd"] is not None:
        text += f", pooled SD {test['pooled_sd']:.4f} on {test['degrees_of_freedom']} degrees of freedom"
    if "p" in test:
        text += f"; t = {test['statistic']:.3f}, p = {test['p']:.3g}"
    return f"{text}."


def _seeds(row: ArmSummary) -> str:
    parts = [
        f"{seed}: {row.statuses[seed].replace('_', ' ') if value is None else f'{value:.4f}'}"
        for seed, value in row.values.items()
    ]
    return ", ".join(parts)


def _interval(row: ArmSummary) -> str:
    return "–" if row.interval is None else f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}"


def _number(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)


def _cell(text: str) -> str:
    """Text that can't break a table or become markup."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
