"""The page: nothing remote, every figure of a trial in results.csv, whatever state the run is in."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from podium.components.reporting.build import Report, render
from podium.components.reporting.model import ReportData
from podium.components.reporting.results_csv import read_csv
from podium.components.study.schema import Study

STATES = [
    {"stages": 0},
    {"stages": 1},
    {"stages": 1, "strange": True},
    {"stages": 2},
    {"stages": 2, "strange": True},
    {"stages": 2, "proven": False},
    {"stages": 2, "proven": False, "winner": "baseline"},
]


class Cells(HTMLParser):
    """The texts of table cells by the table's id, and every tag and attribute met."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self._table = ""
        self._cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self._table = dict(attrs)["id"] or ""
            self.tables[self._table] = []
        if tag in ("td", "th"):
            self._cell = []
        self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[self._table].append("".join(self._cell))
            self._cell = None


def parsed(html: str) -> Cells:
    cells = Cells()
    cells.feed(html)
    return cells


@pytest.mark.parametrize("state", STATES, ids=str)
def test_nothing_is_loaded_from_anywhere_and_no_script_runs(rendered: Callable[..., Report], state: dict) -> None:
    html = rendered(**state).html
    cells = parsed(html)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(cells.open)
    assert not re.search(r"https?:|//cdn|@import", html)
    for tag, name, value in cells.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "action"), (tag, value)
        assert name not in ("href", "xlink:href") or value.startswith("#"), (tag, value)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


@pytest.mark.parametrize("state", STATES, ids=str)
def test_every_number_of_a_trial_on_the_page_is_in_results_csv(rendered: Callable[..., Report], state: dict) -> None:
    report = rendered(**state)
    _, rows = read_csv(report.files["results.csv"])
    cells = parsed(report.html).tables
    known = {number for row in rows for cell in row.values() for number in numbers_of(cell)}
    shown = {
        number
        for name, texts in cells.items()
        if name.startswith(("trials-", "evaluation-quality", "evaluation-cost", "champion"))
        for text in texts
        for number in numbers_of(text)
    }
    headings = numbers_of("latency 128 latency 512 95")
    assert shown - headings <= known | numbers_of("1")
    assert bool(shown) == (state["stages"] > 0)


def numbers_of(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", text))


@pytest.mark.parametrize("state", STATES, ids=str)
def test_the_figures_of_a_ranking_with_one_seed_are_those_of_its_trials(
    rendered: Callable[..., Report], state: dict
) -> None:
    report = rendered(**state)
    _, rows = read_csv(report.files["results.csv"])
    known = {row[column] for row in rows for column in ("final_val_loss", "final_val_perplexity")}
    html = report.html
    for name in ("axis-embedding", "axis-glu", "arms-ranking"):
        for line in re.findall(rf'<table id="{name}">.*?</table>', html, re.DOTALL):
            for cell in re.findall(r">(\d+\.\d{4}|\d{3}\.\d{2})<", line):
                assert cell in known, (name, cell)


def test_ids_are_used_once(rendered: Callable[..., Report]) -> None:
    ids = [value for _, name, value in parsed(rendered(strange=True).html).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_words_of_a_study_are_text_and_never_markup(make_report: Callable[..., ReportData]) -> None:
    data = make_report(strange=True)
    evil = "<script>alert('x')</script> & \"quoted\""
    data = replace(data, study=data.study.model_copy(update={"title": evil, "question": evil, "confounds": [evil]}))
    html = render(data).html
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 4  # title, heading, question, confound
    assert "&lt;kernel &amp; co&gt;" in html  # the log of the broken trial


def test_failures_stand_in_the_tables_with_their_reason(rendered: Callable[..., Report]) -> None:
    report = rendered(stages=1, strange=True)
    trials = parsed(report.html).tables["trials-ranking"]
    for words in ("killed", "diverged", "broken", "broken after 3 attempts: exit code 1"):
        assert words in trials
    assert "RuntimeError: CUDA error" in report.html
    assert "Not ranked in ranking: emb25 (killed), glu2x (diverged), glu4x (broken)" in report.html


def test_the_verdict_comes_first_and_the_confounds_beside_it(rendered: Callable[..., Report]) -> None:
    files = rendered().files
    for text in (re.sub(r"<nav.*?</nav>", "", files["index.html"]).partition("<body>")[2], files["summary.md"]):
        order = ["beats the baseline, proven", "confounded with depth", "Registered beforehand", "Every trial"]
        places = [text.index(words) for words in [*order, "Evaluation of the finalists", "Reproduction", "Limitations"]]
        assert places == sorted(places)


def test_what_was_not_measured_says_so_and_why(rendered: Callable[..., Report]) -> None:
    html = rendered().html
    assert "not measured" in parsed(html).tables["evaluation-cost"]
    assert "Not measured: peak memory, MB (no CUDA device)." in html


def test_long_tables_are_folded_and_a_thousand_trials_stay_a_page(make_report: Callable[..., ReportData]) -> None:
    data = make_report(stages=1)
    stage = data.stages[0]
    trials = tuple(
        replace(trial, key=replace(trial.key, seed=seed), curve=trial.curve if seed < 60 else ())
        for seed in range(167)
        for trial in stage.trials
    )
    html = render(replace(data, stages=(replace(stage, trials=trials), data.stages[1]))).html
    assert len(trials) == 1002
    assert len(html) < 1_500_000
    assert "<summary>Every trial, 1002 rows</summary>" in html


def test_the_summary_reads_as_markdown(rendered: Callable[..., Report]) -> None:
    text = rendered(strange=True).files["summary.md"]
    assert text.startswith("# Parameter allocation\n\n**emb45-glu3x beats the baseline, proven")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    assert "podium run param-allocation" in text


def test_what_each_variant_changes_is_told_where_the_study_describes_it(
    make_report: Callable[..., ReportData], study: Callable[..., Study]
) -> None:
    data = make_report(stages=1)
    assert "variants" not in parsed(render(data).html).tables
    palm = {"description": "side by side", "modification": "architecture", "details": "after PaLM"}
    described = study(variants={"palm": {**palm, "overrides": {"model.d_ff": 256}}})
    cells = parsed(render(replace(data, study=described)).html).tables["variants"]
    assert {"palm", "architecture", "side by side", "after PaLM", "model.d_ff = 256"} <= set(cells)
