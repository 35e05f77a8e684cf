"""compare: published claims recomputed, files of every form, and what must not be compared."""

import json
import math
import os
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

DATA = Path(os.environ.get("PODIUM_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
CLAIMS_FILE = DATA / "speedrun_pvalues.json"
CLAIMS = json.loads(CLAIMS_FILE.read_text()) if CLAIMS_FILE.is_file() else []
FLOAT32_STD = "track_2_medium/2025-12-31_BulkSmallTrackTransfer"
"""Its standard deviation was printed from float32 numbers."""

needs_claims = pytest.mark.skipif(not CLAIMS, reason=f"{CLAIMS_FILE} is not there: set PODIUM_TEST_DATA")


def as_json(values):
    return json.dumps(values)


def as_lines(values):
    return "\n".join(map(str, values)) + "\n"


def as_csv(values):
    return "run,final_val_loss,seconds\n" + "".join(f"r{i},{v},{i}.5\n" for i, v in enumerate(values))


def as_jsonl(values):
    return "".join(json.dumps({"run_id": i, "final_val_loss": v, "success": True}) + "\n" for i, v in enumerate(values))


FORMS = {"a.json": as_json, "a.txt": as_lines, "a.csv": as_csv, "a.jsonl": as_jsonl}


def agrees(found, claimed):
    """Whether a number is the claimed one to the digits that were printed: half a unit of the last one."""
    mantissa, _, exponent = repr(claimed).partition("e")
    digits = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return abs(found - claimed) <= 0.5000001 * 10.0**-digits


@needs_claims
def test_all_published_claims_are_there():
    assert len(CLAIMS) == 22


@needs_claims
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CLAIMS, ids=[case["record"].replace(" ", "_") for case in CLAIMS])
def test_a_published_claim_is_recomputed(podium, case, form):
    Path(form).write_text(FORMS[form](case["losses"]))
    known = ["--sigma", "0.0013"] if "assumed sigma" in case["test"] else []
    ended = podium("compare", form, "--target", case["target"], *known, "--json")
    assert ended.exit_code == 0, ended.output
    found, claimed, computed = json.loads(ended.stdout), case["claimed"], case["computed"]
    assert found["n"] == case["n"] == len(case["losses"])
    assert agrees(found["mean"], claimed["mean"])
    assert found["mean"] == pytest.approx(computed["mean"], abs=1e-9)
    assert found["p"] == pytest.approx(computed["p"], rel=1e-5)
    if known:
        assert found["statistic"] == pytest.approx(computed["statistic"], abs=1e-8)
        assert found["z"] == pytest.approx(computed["z"], abs=1e-6)
        assert found["passed"] is case["passes_rule"] is claimed["passes"]
        return
    assert found["statistic"] == pytest.approx(computed["t"], rel=1e-5)
    assert found["std"] == pytest.approx(computed["std"], rel=1e-5)
    assert agrees(found["p"], claimed["p"])
    assert found["passed"] is case["passes_p_lt_0_01"]
    if case["record"] == FLOAT32_STD:
        assert agrees(float(np.std(np.array(case["losses"], dtype=np.float32), ddof=1)), claimed["std"])
    else:
        assert agrees(found["std"], claimed["std"])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_figures(podium, form):
    values = [3.27, 3.281, 3.2755]
    Path(form).write_text(FORMS[form](values))
    found = json.loads(podium("compare", form, "--json").stdout)
    assert (found["n"], found["mean"], found["std"]) == (3, statistics.fmean(values), statistics.stdev(values))


def test_a_column_is_taken_by_name_and_a_wrong_one_is_refused(podium):
    Path("a.csv").write_text("seed,first,second\n1,2.0,3.0\n2,2.5,3.5\n")
    assert json.loads(podium("compare", "a.csv", "--column", "second", "--json").stdout)["mean"] == 3.25
    for arguments, said in ((["--column", "third"], "first, second"), ([], "name one by --column")):
        refused = podium("compare", "a.csv", *arguments)
        assert refused.exit_code == 2
        assert said in refused.stderr


def test_two_samples_are_tested_by_welch_and_by_the_pooled_variance(podium):
    a, b = [3.281, 3.280, 3.283, 3.282], [3.279, 3.277, 3.280]
    Path("a.json").write_text(as_json(a))
    Path("b.csv").write_text(as_csv(b))
    found = json.loads(podium("compare", "a.json", "b.csv", "--json").stdout)
    welch = stats.ttest_ind(b, a, equal_var=False)
    pooled = stats.ttest_ind(b, a)
    assert (found["statistic"], found["p"]) == (pytest.approx(welch.statistic), pytest.approx(welch.pvalue))
    assert found["passed"] is bool(welch.pvalue < 0.01)
    assert (found["n"], found["mean"][1]) == ([4, 3], pytest.approx(statistics.fmean(b)))
    moderated = found["comparison"]["moderated"]
    assert (moderated["t"], moderated["p"]) == (pytest.approx(pooled.statistic), pytest.approx(pooled.pvalue))
    assert found["comparison"]["interval"] == pytest.approx(list(welch.confidence_interval(0.95)))
    text = podium("compare", "a.json", "b.csv").stdout
    assert "moderated t" in text
    assert "95 % interval" in text


def speedrun_folder(path, losses, rate):
    path.mkdir()
    results, metrics = [], []
    for run, loss in enumerate(losses):
        results.append({"run_id": run, "seed": 62 + run, "final_val_loss": loss, "success": loss is not None})
        if loss is not None:
            metrics += [
                {"run_id": run, "step": step, "val_loss": loss + rate * (400 - step), "train_time_ms": step * 50.0}
                for step in range(0, 401, 100)
            ]
            metrics.append({"run_id": run, "step": 50, "train_loss": 5.0})
    for name, rows in (("results.jsonl", results), ("metrics.jsonl", metrics)):
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_speedrun_folders_are_compared_with_their_curves(podium):
    speedrun_folder(Path("one"), [3.30, 3.31, None], 0.01)
    speedrun_folder(Path("two"), [3.20, 3.21], 0.01)
    found = json.loads(podium("compare", "one", "two", "--json").stdout)
    assert found["comparison"]["a"]["excluded"] == 1
    effect = found["comparison"]["effect"]
    # 0.1 nats at 0.01 nats a step and 20 steps a second
    assert (effect["steps_saved"], effect["seconds_saved"]) == (pytest.approx(10), pytest.approx(0.5))
    assert effect["better"] == "two"
    text = podium("compare", "one", "two").stdout
    assert "10 steps, 0.5 s sooner" in text
    assert "1 left out" in text


def test_a_run_is_tested_against_a_target(podium, make_run):
    run = make_run()
    found = json.loads(podium("compare", run.uri, "--target", "1.6", "--json").stdout)
    assert (found["n"], found["target"], found["passed"]) == (2, 1.6, True)
    assert found["runs"][0]["run"] == run.id
    told = podium("compare", run.uri, "--target", "1.6").stdout
    assert "passes at alpha 0.01" in told


def test_one_figure_has_a_p_by_a_known_sd_only(podium):
    Path("a.json").write_text("[3.27523]")
    without = json.loads(podium("compare", "a.json", "--target", "3.28", "--json").stdout)
    assert (without["p"], without["passed"], without["std"]) == (None, False, None)
    found = json.loads(podium("compare", "a.json", "--target", "3.28", "--sigma", "0.0013", "--json").stdout)
    assert found["p"] == pytest.approx(stats.norm.sf(0.00477 / 0.0013), rel=1e-3)
    assert not math.isnan(found["statistic"])


def test_losses_over_two_texts_are_not_compared(podium, make_run, study, text, tmp_path):
    first = make_run()
    other = tmp_path / "other.txt"
    other.write_text("Quite another text, with other words in it.\n" * 3000, encoding="utf-8")
    study.write_text(text.replace("corpus.txt", "other.txt"))
    second = make_run(losses={"baseline": 2.0, "rate-0.01": 1.9})
    refused = podium("compare", first.uri, second.uri)
    assert refused.exit_code == 2
    assert "final_bits_per_byte" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sigma", "0.1"], "give --target too"),
        (["--target", "3", "--sigma", "0"], "--sigma: must be more than 0"),
        (["--target", "3", "--alpha", "0.7"], "--alpha: must be between"),
        (["--metric", "speed", "--target", "3"], "no column 'speed'"),
    ],
)
def test_a_wrong_question_is_refused(podium, arguments, said):
    Path("a.csv").write_text("x,y\n1,2\n3,4\n")
    refused = podium("compare", "a.csv", *arguments)
    assert refused.exit_code == 2
    assert said in refused.stderr


@pytest.mark.parametrize("text", ["", "[]", "[null, NaN]", "name\nfoo\nbar\n", '{"a": "b"}', "[1, [2]]", "[true]"])
def test_a_file_without_figures_is_refused(podium, text):
    Path("a.json").write_text(text)
    refused = podium("compare", "a.json", "--target", "3")
    assert refused.exit_code == 2, refused.output
    assert "a.json" in refused.stderr
