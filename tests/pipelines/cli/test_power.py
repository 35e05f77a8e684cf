"""power: seeds, gaps and dollars; and the warning that a plan gives."""

import json

import pytest

from podium.components.verdicts.power import Proof, power
from podium.components.verdicts.samples import DEFAULT_SIGMA


def asked(podium, *arguments):
    ended = podium("power", *arguments, "--json")
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def test_seeds_for_a_gap_with_their_price(podium):
    found = asked(
        podium, "--gap", "0.002", "--sigma", "0.0012", "--against", "baseline", "--alpha", "0.05", "--usd-per-run", "10"
    )
    assert (found["seeds_needed"], found["usd_needed"]) == (6, 120)
    assert found["sigma_source"] == "given by --sigma"
    row = next(row for row in found["table"] if row["seeds"] == 5)
    assert row["power"] == pytest.approx(power(Proof("baseline", 0.05), 0.002, 5, 0.0012))
    text = podium("power", "--gap", "0.002", "--sigma", "0.0012", "--usd-per-run", "10").stdout
    assert "seeds a variant show a gap of 0.002 with power 0.8, $" in text


def test_the_sd_comes_from_a_file_a_run_or_a_default_that_says_its_source(podium, make_run, tmp_path):
    (tmp_path / "figures.csv").write_text("final_val_loss\n3.0\n3.1\n3.2\n")
    found = asked(podium, "--from", tmp_path / "figures.csv", "--gap", "0.1")
    assert found["sigma"] == pytest.approx(0.1)
    assert "3 figures" in found["sigma_source"]
    run = make_run()
    found = asked(podium, "--from", run.uri, "--gap", "0.1")
    assert found["sigma"] == pytest.approx(0.001 / 2**0.5)  # the seeds of each arm differ by 0.001
    assert f"{run.id}/proof" in found["sigma_source"]
    found = asked(podium, "--gap", "0.1")
    assert found["sigma"] == DEFAULT_SIGMA
    assert "NanoGPT speedrun" in found["sigma_source"]


def test_a_study_gives_test_seeds_and_price(podium):
    found = asked(podium, "param-allocation", "--sigma", "0.005", "--gap", "0.01")
    assert (found["against"], found["alpha"], found["arms"], found["seeds"]) == ("baseline", 0.05, 3, 3)
    assert found["usd"] == pytest.approx(4.8)  # four arms of three seeds at $0.40
    assert found["power"] == pytest.approx(power(Proof("baseline", 0.05, 3), 0.01, 3, 0.005))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gap", "-1"], "--gap: must be more than 0"),
        (["--alpha", "0.7"], "--alpha: must be between"),
        (["--power", "1"], "--power: must be between"),
        (["--sigma", "1", "--from", "x"], "give one"),
        (["--stage", "finals"], "name the study too"),
        (["param-allocation", "--stage", "ranking"], "must be a stage that tests (finals)"),
    ],
)
def test_a_wrong_question_is_refused(podium, arguments, said):
    refused = podium("power", *arguments)
    assert refused.exit_code == 2
    assert said in refused.stderr


def test_a_run_without_two_seeds_of_a_variant_has_no_sd(podium, make_run):
    refused = podium("power", "--from", make_run("ranking").uri)
    assert refused.exit_code == 2
    assert "two finished seeds" in refused.stderr


EXPECTED = "    expected: {gap: 0.002, sigma: 0.0013, source: a past run}\n"


def test_a_plan_warns_of_a_proof_that_can_hardly_succeed(podium, study, text):
    def warnings(more="", policy="best_mean"):
        changed = text.replace("    proof: true\n", "    proof: true\n" + more)
        study.write_text(changed.replace("policy: best_mean", f"policy: {policy}"))
        planned = podium("plan", study, "--json")
        assert planned.exit_code == 0, planned.output
        return [line for line in json.loads(planned.stdout)["warnings"] if "hardly" in line]

    found = warnings(EXPECTED)
    chance = power(Proof("baseline", 0.05), 0.002, 2, 0.0013)
    assert len(found) == 1
    assert f"a gap of 0.002 with a power of {chance:.2f}" in found[0]
    assert warnings(EXPECTED.replace("gap: 0.002", "gap: 0.02")) == []
    # without an expected gap: two seeds at 0.01 show even three SDs with little power
    assert "3 SDs" in warnings(policy="reaches_target, target: 2.0")[0]


def test_a_plan_counts_the_pivot_and_says_that_it_can_not_be_paid(podium, study, text):
    first = text.replace(
        "promotion: {policy: top_per_axis, combine: false}", "promotion: {policy: within_margin, most: 1}"
    )
    study.write_text(
        first.replace("{policy: best_mean}", "{policy: beats_baseline, pivot: {}}") + "budget: {usd: 0.11}\n"
    )
    planned = json.loads(podium("plan", study, "--json").stdout)
    assert planned["usd_worst"] == pytest.approx(planned["usd"] + 2 / 60, abs=1e-5)
    branch = next(branch for branch in planned["branches"] if branch["name"] == "pivot in proof")
    assert not branch["affordable"]
    assert any("a pivot is not affordable" in line for line in planned["warnings"])
