"""What ships is listed, what `new` writes validates and plans, and validation lists every problem once."""

import json

from podium.components.study.load import load_study, shipped_studies


def test_every_shipped_study_is_listed_with_its_question_and_profiles(podium):
    listed = {study["name"]: study for study in json.loads(podium("studies", "--json").stdout)["studies"]}
    assert set(listed) == set(shipped_studies())
    for name, study in listed.items():
        assert study["question"].endswith("?")
        assert {"full", "smoke"} <= set(study["profiles"])
        assert name in podium("studies").stdout


def test_a_new_study_validates_and_plans_in_each_profile(podium):
    assert podium("new", "width-sweep").exit_code == 0
    checked = json.loads(podium("validate", "width-sweep.yaml", "--json").stdout)
    assert checked == {"study": "width-sweep.yaml", "valid": True, "profiles": ["full", "smoke"]}
    assert load_study("width-sweep.yaml").name == "width-sweep"
    for profile in checked["profiles"]:
        assert podium("plan", "width-sweep.yaml", "--profile", profile).exit_code == 0


def test_a_new_study_never_replaces_a_file(podium, tmp_path):
    podium("new", "mine")
    before = (tmp_path / "work" / "mine.yaml").read_text()
    again = podium("new", "mine")
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    assert (tmp_path / "work" / "mine.yaml").read_text() == before


def test_a_new_study_needs_a_name_that_a_run_can_have(podium, tmp_path):
    refused = podium("new", "No Good")
    assert refused.exit_code == 2
    assert "name" in refused.stderr
    assert not list((tmp_path / "work").iterdir())


def test_validate_lists_every_problem_once(podium, study, text):
    study.write_text(text.replace("d_ff: 32", "d_fff: 32").replace("seeds: 2", "seeds: 0") + "profiles: {smoke: {}}\n")
    refused = podium("validate", study)
    assert refused.exit_code == 2
    assert refused.stderr.count("d_fff") == 1
    assert refused.stderr.count("seeds") >= 1
    assert "Traceback" not in refused.output
