"""The emergence report from made-up runs: answers, table, heat maps, and every figure of the table in results.csv."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from podium.components.reporting.build import render
from podium.components.reporting.model import ReportData, StageData, TrialData
from podium.components.reporting.results_csv import read_csv
from podium.components.reporting.studies.moe_emergence import figures_of, mixture_runs
from podium.components.study.design import variants
from podium.components.study.layout import TrialKey
from podium.components.study.load import load_study
from podium.components.study.trials import trial_config
from podium.trainer.trial.result import Status, TrialResult
from podium.trainer.trial.routing_metrics import Routing

DOMAINS = ("code", "math", "prose")


def routing(step: int, special: float) -> Routing:
    """Two layers of eight experts; `special` of each domain's tokens go to an expert of its own, the rest evenly."""
    layer = []
    for domain in range(3):
        row = [round(1000 * (1 - special) / 8)] * 8
        row[domain] += round(1000 * special)
        layer.append(row)
    return Routing(
        step=step, tokens=step * 512, layers=(2, 3), domains=DOMAINS, noise=0.0, assigned=[layer, layer],
        entropy=[[1.0] * 3] * 2, load_balance=[1.1, 1.2], z=[2.0, 2.0], dropped=[[0] * 3] * 2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> ReportData:
    study = load_study("moe-emergence", profile="smoke")
    control = variants(study)[0]
    ends: dict[str, tuple[Status, list[Routing]]] = {
        "dense": (Status.COMPLETED, []),
        "moe-main": (Status.COMPLETED, [routing(10 * n, 0.012 * n) for n in range(1, 61)]),
        "no-lb": (Status.COLLAPSED, [routing(10 * n, 0.0) for n in range(1, 4)]),
    }
    stages = []
    for name, stage in study.stages.items():
        trials: tuple[TrialData, ...] = ()
        if name in ends:
            status, records = ends[name]
            losses = dict(zip(DOMAINS, (5.25, 4.5, 6.125), strict=True))
            result = TrialResult(
                run_name="seed-42", status=status, seed=42, steps=80, tokens=80 * 512, final_val_loss=5.375,
                reason="experts collapsed: block 2 sent 71.0% of its tokens to expert 5" if name == "no-lb" else "done",
                final_val_loss_by_domain=losses,
            )  # fmt: skip
            config = trial_config(study, name, control, 42)
            trials = (TrialData(TrialKey(name, "gpt2", 42), control, result, config=config, routing=tuple(records)),)
        stages.append(StageData(name, stage, (control,), trials))
    return ReportData(study=study, run_id="moe-emergence-1", study_hash="0", stages=tuple(stages))


def test_the_answers_say_who_specialises_what_collapsed_and_on_which_text(data: ReportData) -> None:
    page = render(data).files["summary.md"].replace("\\", "")
    assert "demo: generated arithmetic and algebra" in page
    assert "moe-main: its experts specialise by domain." in page
    assert "no-lb: hardly any specialisation." in page
    assert "no-lb: experts collapsed: block 2 sent 71.0% of its tokens to expert 5" in page
    assert "At equal steps (step 30): moe-main specialisation" in page
    assert "nothing is ranked" in page


def test_a_heat_map_for_every_layer_of_every_mixture(data: ReportData) -> None:
    files = render(data).files
    maps = {name for name in files if "-block-" in name}
    assert maps == {f"figures/emergence-{run}-block-{block}.svg" for run in ("moe-main", "no-lb") for block in (2, 3)}
    svg = files["figures/emergence-moe-main-block-2.svg"]
    assert all(word in svg for word in (*DOMAINS, ">600<", ">step<"))
    assert len(svg) < 60_000
    assert {"figures/emergence-specialisation.svg", "figures/emergence-largest-share.svg"} <= set(files)


def test_every_figure_of_the_table_is_a_cell_of_the_results(data: ReportData) -> None:
    files = render(data).files
    columns, rows = read_csv(files["results.csv"])
    by_stage = {row["stage"]: row for row in rows}
    assert by_stage["dense"]["val_loss_math"] == "4.5000"
    assert by_stage["dense"]["router_specialisation"] == ""
    last = figures_of(routing(600, 0.72))
    assert by_stage["moe-main"]["router_specialisation"] == f"{last.specialisation:.3f}"
    assert by_stage["moe-main"]["router_largest_share"] == f"{last.largest_share:.3f}"
    assert "val_loss_prose" in columns
    for row in by_stage.values():
        for name in ("val_loss_code", "router_load_entropy"):
            assert row[name] in files["summary.md"]


def test_specialisation_is_0_where_routing_knows_no_domain_and_1_where_each_has_its_expert() -> None:
    assert figures_of(routing(1, 0.0)).specialisation == pytest.approx(0.0, abs=1e-9)
    apart: Any = routing(1, 1.0)
    assert figures_of(apart).specialisation == pytest.approx(1.0)
    assert figures_of(apart).largest_share == pytest.approx(1 / 3)
    alone = replace(
        apart, domains=("all",), assigned=[[[1, 2, 3, 4, 5, 6, 7, 8]]] * 2, entropy=[[1.0]] * 2, dropped=[[4]] * 2
    )
    assert figures_of(alone).specialisation is None
    assert figures_of(alone).dropped == 8


def test_without_a_result_nothing_is_added(data: ReportData) -> None:
    empty = replace(data, stages=tuple(replace(stage, trials=()) for stage in data.stages))
    assert mixture_runs(empty) == []
    assert "Do experts emerge?</h2>" not in render(empty).html


def test_the_headline_is_the_answer_once_every_run_has_ended(data: ReportData) -> None:
    from podium.components.policies.decide import decide
    from podium.components.study.verdict import StageResults, TrialOutcome

    def decided(stage: StageData) -> StageData:
        outcome = TrialOutcome(variant="gpt2", seed=42, fingerprint="f", status=Status.COMPLETED, value=5.0)
        assert stage.variants
        results = StageResults(stage=stage.name, variants=list(stage.variants), seeds=[42], outcomes=[outcome])
        verdict = decide(data.study, results)
        assert verdict.decision == "promote"
        return replace(stage, verdict=verdict)

    ended = replace(data, stages=tuple(decided(stage) for stage in data.stages))
    assert "<h1>In moe-main experts specialise by domain: " in render(ended).html
    assert "specialise by domain: " not in render(data).html.partition("</h1>")[0]
