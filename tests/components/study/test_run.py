from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from podium.components.policies.decide import decide
from podium.components.study import layout
from podium.components.study.design import Selection, check_selection
from podium.components.study.fingerprint import canonical_hash
from podium.components.study.layout import TrialKey
from podium.components.study.load import load_study
from podium.components.study.run import Run, exit_code
from podium.components.study.schema import Study
from podium.components.study.verdict import Verdict
from podium.trainer.builtin.training_path import trainer_digest
from podium.trainer.trial.errors import DataError, StorageError, UserError
from podium.trainer.trial.lease import Lease
from podium.trainer.trial.result import Status
from podium.trainer.trial.yaml_text import dump_yaml, parse_yaml

Text = Callable[..., str]
Finish = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def run(store: str, tiny: Study) -> Run:
    return Run.create(store, tiny, submitted_text="as submitted\n")


def judge(run: Run, stage: str) -> Verdict:
    verdict = decide(run.study, run.results(stage))
    assert isinstance(verdict, Verdict)
    run.write_verdict(verdict)
    return verdict


def test_the_same_study_again_is_the_same_run(run: Run, store: str, tiny: Study) -> None:
    before = {key: run.store.read_bytes(key) for key in run.store.list()}
    again = Run.create(store, tiny)
    assert again.id == run.id
    assert {key: run.store.read_bytes(key) for key in run.store.list()} == before


def test_what_was_submitted_and_resolved_is_kept_and_reads_back(run: Run, store: str, tiny: Study) -> None:
    opened = Run.open(store)
    assert opened.study == tiny
    assert opened.registered.submitted == "as submitted\n"
    assert opened.registered.trainer == trainer_digest()


def test_a_changed_pre_registration_is_refused(run: Run, store: str) -> None:
    key = f"runs/{run.id}/study.yaml"
    run.store.write_text(key, run.store.read_text(key).replace("alpha: 0.05", "alpha: 0.2"))
    with pytest.raises(StorageError, match="changed after the run began"):
        Run.open(store)


def test_a_run_that_an_earlier_version_registered_still_opens(run: Run, store: str) -> None:
    key = f"runs/{run.id}/study.yaml"
    record = parse_yaml(run.store.read_text(key), key)
    del record["study"]["title"]  # a field that this version has and that one had not
    record["sha256"] = canonical_hash(record["study"])
    run.store.write_text(key, dump_yaml(record))
    assert Run.open(store).id == run.id


def test_new_makes_another_run_and_later_commands_continue_that_one(run: Run, store: str, tiny: Study) -> None:
    second = Run.create(store, tiny, new=True)
    third = Run.create(store, tiny, new=True)
    assert len({run.id, second.id, third.id}) == 3
    assert Run.create(store, tiny).id == third.id
    assert Run.open(store).id == third.id
    assert Run.open(store, second.id).id == second.id


def test_a_run_is_opened_by_its_own_folder(run: Run) -> None:
    assert Run.open(run.uri).id == run.id
    assert Run.open(run.uri).store_uri == run.store.uri


def test_opening_where_there_is_no_run_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        Run.open(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UserError, match="a store must be"):
        Run.open("gopher://x")


def test_an_unknown_run_names_those_there_are(run: Run, store: str) -> None:
    with pytest.raises(UserError, match=run.id):
        Run.open(store, "tiny-00000000")


def test_a_missing_corpus_is_refused_before_anything_is_written(tiny_text: Text, tmp_path: Path) -> None:
    study = load_study(tiny_text({"data.corpus.path": str(tmp_path / "gone.txt")}))
    with pytest.raises(DataError):
        Run.create(str(tmp_path / "store"), study)
    assert not (tmp_path / "store" / "runs").exists()


def test_trials_go_seed_by_seed_with_the_baseline_first(run: Run, finish: Finish) -> None:
    assert [trial.key.name for trial in run.trials("ranking")][:2] == [
        "ranking/baseline/seed-42",
        "ranking/emb25/seed-42",
    ]
    assert run.stage_variants("finals") is None
    assert run.trials("finals") == []
    finish(run, run.trials("ranking"), lambda trial: 4.0 if trial.variant.name == "emb25" else 5.0)
    judge(run, "ranking")
    names = [trial.key.name for trial in run.trials("finals")]
    assert names[:2] == ["finals/baseline/seed-52", "finals/emb25/seed-52"]
    assert len(names) == 6


def test_a_stage_after_a_stop_has_no_variants(run: Run, finish: Finish) -> None:
    finish(run, run.trials("ranking"), lambda _: Status.DIVERGED)
    assert judge(run, "ranking").decision == "stop"
    assert run.stage_variants("finals") == []
    assert run.state() == "stopped"


def test_proof_trials_of_two_runs_differ_and_screening_trials_do_not(
    run: Run, store: str, tiny: Study, finish: Finish
) -> None:
    other = Run.create(store, tiny, new=True)
    assert [t.fingerprint for t in other.trials("ranking")] == [t.fingerprint for t in run.trials("ranking")]
    for each in (run, other):
        finish(each, each.trials("ranking"), lambda _: 5.0)
        judge(each, "ranking")
    assert not {t.fingerprint for t in other.trials("finals")} & {t.fingerprint for t in run.trials("finals")}


def test_the_kill_rules_reference_is_the_baseline_and_part_of_the_fingerprint(tiny_text: Text, store: str) -> None:
    kill = {"criteria": [{"metric": "perplexity", "threshold": 9}], "span_tokens": 5120, "min_tokens": 5120}
    run = Run.create(store, load_study(tiny_text({"stages.ranking.stop": {"kill": kill}})))
    baseline, arm, *_ = run.trials("ranking")
    assert baseline.references == ()
    assert run.run_spec(baseline).reference_curves == []
    assert arm.references == (TrialKey("ranking", "baseline", 42),)
    assert run.run_spec(arm).reference_curves == [f"{run.uri}/trials/ranking/baseline/seed-42"]
    several = Run.create(
        store, load_study(tiny_text({"stages.ranking.stop": {"kill": kill}, "stages.ranking.seeds": 2}))
    )
    arm = several.trials("ranking")[1]
    assert len(arm.references) == 2
    assert several.run_spec(arm).reference_curves == [], "with several seeds the conductor judges the arm's mean"


def test_a_recorded_baseline_is_not_trained(tiny_text: Text, store: str) -> None:
    recorded = {"recorded": {"ranking": {"mean": 5.0, "source": "earlier work"}}}
    run = Run.create(store, load_study(tiny_text({"baseline": recorded})))
    assert "baseline" not in {trial.variant.name for trial in run.trials("ranking")}


def test_a_selection_leaves_out_variants_but_never_the_baseline(run: Run) -> None:
    def names(selection: Selection) -> list[str]:
        return [trial.variant.name for trial in run.trials("ranking", selection)]

    assert names(Selection(axis="embedding")) == ["baseline", "emb25", "emb45"]
    assert names(Selection(variants=("glu4x",))) == ["baseline", "glu4x"]
    assert names(Selection(stages=("finals",))) == []
    assert [ref.name for ref in run.results("ranking", Selection(axis="glu")).variants] == [
        "baseline",
        "glu2x",
        "glu3x",
        "glu4x",
    ]


def test_a_selection_survives_its_trip_through_a_pipeline() -> None:
    for selection in [Selection(), Selection(("a",), ("b", "c"), "d", 3, "job")]:
        assert Selection.from_json(selection.to_json()) == selection
    assert Selection.from_json("") == Selection()


def test_a_selection_that_the_study_does_not_have_is_refused_at_once(tiny: Study) -> None:
    with pytest.raises(UserError) as caught:
        check_selection(tiny, Selection(stages=("rankin",), variants=("emb26",), axis="gluu", parallel=0))
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 4
    assert "did you mean 'ranking'?" in told[0]


@pytest.mark.parametrize("kind", ["config", "trainer", "data"])
def test_a_trial_made_from_something_else_is_refused_by_what_changed(
    kind: str, run: Run, store: str, tiny: Study, finish: Finish
) -> None:
    finish(run, run.trials("ranking"), lambda _: 5.0)
    key = f"{run.trials('ranking')[1].key.folder}/config.json"
    spec = run.storage.read_json(key)
    spec["fingerprint"] = "another"
    if kind == "config":
        spec["config"]["optimizer"]["eps"] = 1e-6
    if kind == "data":
        spec["dataset"] = "file:///data/another"
    run.storage.write_json(key, spec)
    if kind == "trainer":
        record = f"runs/{run.id}/study.yaml"
        run.store.write_text(record, run.store.read_text(record).replace(trainer_digest(), "0" * 16))
    told = {
        "config": r"ranking/emb25/seed-42: its config changed: optimizer\.eps was 1e-06, is 1e-08",
        "trainer": "the trainer's sources changed",
        "data": "its data changed",
    }
    with pytest.raises(UserError, match=told[kind]) as caught:
        Run.create(store, tiny)
    assert "--new" in str(caught.value)
    assert Run.create(store, tiny, new=True).id != run.id


def test_status_has_the_declared_fields_and_follows_the_run(run: Run, finish: Finish) -> None:
    empty = {"finished": 0, "killed": 0, "broken": 0, "decision": None}
    assert run.status() == {
        "study": "tiny",
        "run_id": run.id,
        "state": "incomplete",
        "stages": [{"name": "ranking", "trials": 6, **empty}, {"name": "finals", "trials": 0, **empty}],
        "waiting": {},
        "champion": None,
    }
    ends = {"emb25": Status.KILLED, "glu2x": 4.0}
    finish(run, run.trials("ranking"), lambda trial: ends.get(trial.variant.name, 5.0))
    judge(run, "ranking")
    ranking, finals = run.status()["stages"]
    expected = {"trials": 6, "finished": 6, "killed": 1, "broken": 0, "decision": "promote"}
    assert ranking == {"name": "ranking", **expected}
    assert finals["trials"] == 6
    waiting = {"finals/emb35/seed-52": "queued by Kueue in research"}
    run.storage.write_json("waiting.json", waiting)
    assert run.status()["waiting"] == {}, "nobody conducts it: what was written down is old"
    with Lease(run.storage, "lease.json", what="run"):
        assert run.status()["waiting"] == waiting
    champion = {"variant": "glu2x", "proven": True, "alias": "champion", "metric": "final_val_loss", "value": 4.0}
    run.storage.write_json(layout.REGISTRATION, champion | {"version": 3})
    assert run.status()["champion"] == champion
    assert run.status()["state"] == "succeeded"


def test_states_and_their_exit_codes(run: Run, tiny_text: Text, store: str, finish: Finish) -> None:
    assert (run.state(), exit_code(run.state())) == ("incomplete", 5)
    with Lease(run.storage, layout.LEASE):
        assert Run.open(store, run.id).state() == "running"
    run.storage.write_json(layout.SHAKEDOWN, {"passed": False})
    assert (run.state(), exit_code(run.state())) == ("gate_failed", 4)
    run.storage.write_json(layout.SHAKEDOWN, {"passed": True})
    run.storage.write_json(layout.CANCEL, {})
    assert (run.state(), exit_code(run.state())) == ("cancelled", 130)
    asking = Run.create(store, load_study(tiny_text({"stages.ranking.approval": "required"})))
    finish(asking, asking.trials("ranking"), lambda _: 5.0)
    assert judge(asking, "ranking").decision == "await"
    assert (asking.state(), exit_code(asking.state())) == ("awaiting_approval", 5)
    assert exit_code("succeeded") == 0
    assert exit_code("stopped") == 3


def test_money_is_that_of_every_trial_and_of_the_gates_but_not_of_reused_results(run: Run, finish: Finish) -> None:
    trials = run.trials("ranking")
    finish(run, trials[:4], lambda _: 5.0)
    assert run.spent_usd() == 1.0
    run.ledger.append("gate", "shakedown", cost_usd=0.5)
    run.ledger.append("reuse", trials[0].key.name, run="tiny-other")
    assert run.spent_usd() == 1.25
    assert {o.variant: o.reused_from for o in run.results("ranking").outcomes}["baseline"] == "tiny-other"


def test_a_result_that_is_rewritten_is_read_again(run: Run, finish: Finish) -> None:
    trial = run.trials("ranking")[0]
    assert run.result(trial.key) is None
    finish(run, [trial], lambda _: 5.0)
    first = run.result(trial.key)
    assert first is not None
    assert run.result(trial.key) is first
    run.storage.write_json(
        f"{trial.key.folder}/result.json", first.model_copy(update={"cost_usd": 9.0}).model_dump(mode="json")
    )
    again = run.result(trial.key)
    assert again is not None
    assert again.cost_usd == 9.0


def test_progress_is_the_last_whole_line_of_the_metrics(run: Run) -> None:
    key = run.trials("ranking")[0].key
    assert run.trial_progress(key) is None
    lines = [json.dumps({"step": step, "tokens": step * 512, "train_loss": 7.0 / step}) for step in range(1, 200)]
    run.storage.write_text(f"{key.folder}/metrics.jsonl", "\n".join(lines) + '\n{"step": 200, "tok')
    progress = run.trial_progress(key)
    assert progress is not None
    assert progress["step"] == 199
    assert math.isclose(progress["train_loss"], 7.0 / 199)


def test_a_stage_is_complete_when_every_trial_has_a_result(run: Run, finish: Finish) -> None:
    trials = run.trials("ranking")
    finish(run, trials[:-1], lambda _: 5.0)
    assert not run.is_complete("ranking")
    finish(run, trials[-1:], lambda _: Status.BROKEN)
    assert run.is_complete("ranking")
    assert not run.is_complete("finals")


def test_a_thousand_trials_are_read_twice_alike(tiny_text: Text, store: str, finish: Finish) -> None:
    rates = {f"v{i:03d}": {"overrides": {"optimizer.learning_rate": 1.1e-5 * (1 + i)}} for i in range(1000)}
    changes = {"axes": {}, "design": "list", "variants": rates, "stages.ranking.promotion": {"policy": "best_mean"}}
    run = Run.create(store, load_study(tiny_text(changes)))
    trials = run.trials("ranking")
    assert len({trial.fingerprint for trial in trials}) == 1001
    finish(run, trials[:300], lambda _: 5.0)
    first, second = run.results("ranking"), run.results("ranking")
    assert len(first.outcomes) == 300
    assert second == first
