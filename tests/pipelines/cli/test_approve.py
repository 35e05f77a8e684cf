"""approve, override and extend: what a person changes is on the ledger, and the claim says so."""

import json

import pytest

from podium.components.policies.decide import decide
from podium.components.study import layout
from podium.components.study.run import Run, exit_code
from podium.components.study.verdict import Verdict
from podium.trainer.trial.errors import ExitCode
from podium.trainer.trial.lease import Lease
from podium.trainer.trial.result import Status, TrialResult


def reopened(run):
    return Run.open(run.store_uri, run.id)


def amendments(run):
    return [entry.data["amendment"] for entry in run.ledger.entries("amendment")]


@pytest.fixture
def waiting(make_run, study, text):
    """A run whose first stage waits for approval."""
    study.write_text(text.replace("combine: false}", "combine: false}\n    approval: required", 1))
    run = make_run("ranking")
    assert run.verdict("ranking").decision == "await"
    return run


def test_what_requires_approval_waits_with_its_own_exit_code(waiting):
    assert waiting.state() == "awaiting_approval"
    assert exit_code("awaiting_approval") == ExitCode.INCOMPLETE == 5
    assert waiting.stage_variants("proof") is None


def test_an_approved_verdict_takes_effect_and_the_claim_stays(podium, waiting):
    promoted = [ref.name for ref in waiting.verdict("ranking").promoted]
    told = podium("approve", waiting.uri, "--because", "money agreed", "--by", "ada", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["promoted"] == promoted
    run = reopened(waiting)
    verdict = run.verdict("ranking")
    assert (verdict.decision, verdict.claim) == ("promote", "none")
    assert "approved by ada: money agreed" in verdict.notes
    assert [ref.name for ref in run.stage_variants("proof")] == promoted
    assert run.state() == "incomplete"
    assert amendments(run) == [
        {"kind": "approve", "because": "money agreed", "by": "ada", "promote": None, "seeds": []}
    ]
    assert [entry.data["decision"] for entry in run.ledger.entries("verdict")] == ["await", "promote"]
    # the run's own conductor and select come to the same verdict
    assert decide(run.study, run.results("ranking")) == verdict.model_copy(update={"results": run.results("ranking")})
    again = podium("approve", waiting.uri)
    assert again.exit_code == 2
    assert "nothing awaits approval" in again.stderr


def test_another_variant_goes_on_by_hand_and_what_it_wins_is_exploratory(podium, make_run):
    run = make_run()
    assert (run.verdict("proof").winner, run.state()) == ("rate-0.01", "succeeded")
    told = podium("override", run.uri, "--promote", "baseline", "--because", "it is cheaper to serve")
    assert told.exit_code == 0, told.output
    verdict = reopened(run).verdict("proof")
    assert (verdict.decision, verdict.winner, verdict.proven) == ("promote", "baseline", False)
    assert verdict.claim == "exploratory"
    assert [ref.name for ref in verdict.promoted] == ["baseline"]
    assert "it is cheaper to serve" in verdict.reason
    assert "by hand" in verdict.not_chosen["rate-0.01"]
    # the next podium run registers under the new verdict
    assert reopened(run).state() == "incomplete"
    assert podium("verify", run.storage.local_path("verdicts/proof.json")).exit_code == 0


def test_a_stopped_run_goes_on_by_hand(podium, make_run, study, text):
    study.write_text(text.replace("promotion: {policy: top_per_axis, combine: false}",
                                  "promotion: {policy: within_margin}"))  # fmt: skip
    run = make_run("ranking", losses={"baseline": 1.0, "rate-0.01": 1.5})
    assert run.state() == "stopped"
    assert podium("override", run.uri, "--promote", "rate-0.01", "--because", "look").exit_code == 0
    run = reopened(run)
    assert run.stage_variants("proof")[0].name == "rate-0.01"
    assert run.state() == "incomplete"


def finish_trial(run, trial, loss):
    result = TrialResult(
        run_name=trial.key.name, fingerprint=trial.fingerprint, status=Status.COMPLETED, reason="done", seed=trial.seed,
        steps=8, tokens=trial.config.tokens, final_val_loss=loss, cost_usd=0.01,
    )  # fmt: skip
    run.storage.write_text(f"{trial.key.folder}/result.json", result.model_dump_json())


def test_an_extended_stage_has_fresh_seeds_and_is_decided_again(podium, make_run):
    run = make_run()
    assert run.verdict("proof").claim == "proven"
    told = podium("extend", run.uri, "--seeds", "2", "--because", "surer", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["seeds"] == [54, 55]
    run = reopened(run)
    assert run.verdict("proof") is None
    assert run.state() == "incomplete"
    assert run.storage.exists("verdicts/superseded/proof-1.json")
    assert not run.storage.exists(layout.REGISTRATION)
    missing = [trial for trial in run.trials("proof") if run.result(trial.key) is None]
    assert {trial.seed for trial in missing} == {54, 55}
    assert len(missing) == 4
    early = decide(run.study, run.results("proof"))
    assert isinstance(early, Verdict)
    assert early.counts["missing"] == 4
    for trial in missing:
        finish_trial(run, trial, 1.5 + 0.001 * trial.seed if trial.variant.name != "baseline" else 2.0)
    verdict = decide(run.study, run.results("proof"))
    assert (verdict.winner, verdict.proven, verdict.claim) == ("rate-0.01", False, "exploratory")
    assert verdict.ranking[0].n == 4
    assert "proven" not in verdict.reason
    assert "exploratory" in verdict.reason
    assert any("extended by the seeds 54, 55" in note for note in verdict.notes)
    run.write_verdict(verdict)
    assert json.loads(podium("extend", run.uri, "--seeds", "1", "--because", "more", "--json").stdout)["seeds"] == [56]


@pytest.mark.parametrize(
    ("until", "command", "said"),
    [
        ("start", ["approve"], "there is no verdict yet"),
        ("registered", ["approve"], "proof is decided: promote"),
        ("start", ["override", "--promote", "baseline", "--because", "x"], "no verdict to override"),
        (
            "registered",
            ["override", "--promote", "palm", "--because", "x"],
            "a variant of stage proof (baseline",
        ),
        ("registered", ["override", "--promote", "baseline", "--because", " "], "--because: must say why"),
        ("start", ["extend", "--seeds", "2", "--because", "x"], "no stage is decided yet"),
        ("registered", ["extend", "--seeds", "0", "--because", " "], "2 problems"),
    ],
)
def test_what_cannot_be_amended_is_refused_and_nothing_written(podium, make_run, until, command, said):
    run = make_run(until)
    refused = podium(command[0], run.uri, *command[1:])
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert amendments(reopened(run)) == []
    assert reopened(run).state() == run.state()


def test_a_stage_that_another_was_built_on_is_not_extended(podium, make_run):
    run = make_run("ranking")
    finish_trial(run, run.trials("proof")[0], 2.0)
    refused = podium("extend", run.uri, "--seeds", "1", "--because", "x")
    assert refused.exit_code == 2
    assert "stage proof has begun" in refused.stderr


def test_seeds_that_the_budget_does_not_pay_are_refused(podium, make_run, study, text):
    study.write_text(text + "budget: {usd: 0.14}\n")
    run = make_run()
    refused = podium("extend", run.uri, "--seeds", "3", "--because", "x")
    assert refused.exit_code == 2
    assert "the budget is $0.14" in refused.stderr


def test_a_run_that_is_going_on_is_not_amended(podium, make_run):
    run = make_run("ranking")
    with Lease(run.storage, layout.LEASE, what="test"):
        refused = podium("override", run.uri, "--promote", "baseline", "--because", "x")
    assert refused.exit_code == 2
    assert "going on" in refused.stderr


@pytest.mark.slow
def test_the_same_command_goes_on_after_approval_and_after_an_extension(podium, study, text):
    study.write_text(text.replace("combine: false}", "combine: false}\n    approval: required", 1))
    assert podium("run", study, "--store", "s").exit_code == 5
    assert podium("approve", "s").exit_code == 0
    ended = podium("run", study, "--store", "s")
    assert ended.exit_code == 0, ended.output
    first = json.loads(podium("status", "s", "--json").stdout)["champion"]
    assert podium("extend", "s", "--seeds", "1", "--because", "surer").exit_code == 0
    ended = podium("run", study, "--store", "s")
    assert ended.exit_code == 0, ended.output
    run = Run.open("s")
    verdict = run.verdict("proof")
    assert verdict.results.seeds == [52, 53, 54]
    assert verdict.claim == "exploratory"
    champion = json.loads(podium("status", "s", "--json").stdout)["champion"]
    assert (champion["alias"], first["alias"]) == ("candidate", "champion" if first["proven"] else "candidate")
    for stage in run.stages:
        verified = podium("verify", run.storage.local_path(f"verdicts/{stage}.json"))
        assert verified.exit_code == 0, verified.output
