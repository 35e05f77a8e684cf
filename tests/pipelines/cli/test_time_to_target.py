"""The time-to-target study on the command line: its plan, and its trials before anything runs."""

from __future__ import annotations

import json


def test_the_plan_has_48_trials_then_36_of_a_range(podium):
    planned = json.loads(podium("plan", "time-to-target", "--json").stdout)
    broad, fine = planned["stages"]
    assert (broad["name"], broad["trials"], broad["trials_range"]) == ("broad", 48, None)
    assert (fine["name"], fine["trials"], fine["trials_range"]) == ("fine", 36, [32, 40])


def test_a_dry_run_names_the_first_waves_trials_and_the_rows_that_wait(podium):
    shown = json.loads(podium("run", "time-to-target", "--profile", "smoke", "--dry-run", "--json").stdout)
    broad, fine = shown["stages"]
    assert broad["trials"] == len(broad["commands"]) + len(broad["waiting"]) == 16
    assert broad["waiting"][0] == "group C, after A: lazy 7; orthogonalization of A's best"
    assert len({each["trial"] for each in broad["commands"]}) == 12
    assert fine["commands"] == []
