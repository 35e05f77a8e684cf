"""The real conductor and launcher over a stage of times: waves in order, and a device for each trial alone."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

from podium.components.launch.conductor import conduct
from podium.components.launch.open import open_launcher
from podium.components.policies.decide import decide
from podium.components.study.design import Selection, check_selection
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.components.study.verdict import Verdict
from podium.trainer.trial.errors import UserError

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(scope="module")
def on_two_gpus(race_text: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The broad stage conducted to its end where two devices are to be had."""
    text = race_text.replace("stop: &stop", "resources: {gpus_per_trial: 1, parallel: 2}\n    stop: &stop")
    run = Run.create(str(tmp_path_factory.mktemp("gpus")), load_study(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
        conduct_all(run)
    return run


def conduct_all(run: Run) -> None:
    launcher = open_launcher("process", run, "broad", run.study.stages["broad"].resources, parallel=2)
    done = conduct(
        run, "broad", launcher, command=lambda uri: [sys.executable, "-S", str(STAND_IN), uri], beat_seconds=0.1
    )
    assert done.trials == done.finished == 16


def spans(run: Run) -> list[tuple[str, float, float]]:
    found = [json.loads(run.storage.read_text(f"{t.key.folder}/span.json")) for t in run.trials("broad")]
    return sorted((each["device"], each["began"], each["ended"]) for each in found)


def test_two_trials_never_share_a_device(on_two_gpus: Run) -> None:
    found = spans(on_two_gpus)
    assert {device for device, _, _ in found} == {"GPU-a", "GPU-b"}
    for (device, _, ended), (other, began, _) in itertools.pairwise(found):
        assert device != other or began >= ended


def test_a_wave_starts_when_the_one_before_is_over(on_two_gpus: Run) -> None:
    run = on_two_gpus
    times = {t.key: json.loads(run.storage.read_text(f"{t.key.folder}/span.json")) for t in run.trials("broad")}
    groups = {t.key: t.group for t in run.trials("broad")}
    for earlier, later in (("AB", "CD"), ("CD", "E")):
        last = max(times[key]["ended"] for key, group in groups.items() if str(group) in earlier)
        first = min(times[key]["began"] for key, group in groups.items() if str(group) in later)
        assert first >= last


def test_the_stage_is_decided_and_goes_on_from_where_it_stands(on_two_gpus: Run) -> None:
    run = Run.open(on_two_gpus.store_uri)
    assert len(run.trials("broad")) == 16
    verdict = decide(run.study, run.results("broad"))
    assert isinstance(verdict, Verdict)
    assert verdict.decision == "promote"
    kinds = [entry.data["asked"]["kind"] for entry in run.ledger.entries("more_trials")]
    assert kinds == ["wave", "wave"]


def test_trials_side_by_side_on_one_cpu_are_refused_on_the_command_line_too(race_text: str) -> None:
    study = load_study(race_text)
    with pytest.raises(UserError, match="stage broad ranks times, and trials would share the CPU, got 4"):
        check_selection(study, Selection(parallel=4))
    check_selection(study, Selection(parallel=1))


def test_a_study_that_says_so_may_share_its_cpu(race_text: str) -> None:
    shared = race_text.replace("stop: &stop", "resources: {parallel: 2, share_cpu: true}\n    stop: &stop")
    assert load_study(shared).stages["broad"].resources.share_cpu
