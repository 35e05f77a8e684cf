"""cancel and gc touch only what they may."""

import json
import threading
import time
from pathlib import Path

from podium.components.study import layout
from podium.trainer.trial.lease import Lease


def keys(run):
    return set(run.store.list())


def test_cancel_asks_the_run_and_waits_for_its_end(podium, make_run):
    run = make_run("start")

    def conduct():
        with Lease(run.storage, layout.LEASE, what="run"):
            while not run.storage.exists(layout.CANCEL):
                time.sleep(0.02)

    conductor = threading.Thread(target=conduct)
    conductor.start()
    while not run.storage.exists(layout.LEASE):
        time.sleep(0.01)
    cancelled = podium("cancel", run.uri)
    conductor.join()
    assert cancelled.stdout == f"{run.id}: cancelled\n"
    assert json.loads(podium("status", run.uri, "--json").stdout)["state"] == "cancelled"


def test_a_run_that_has_ended_can_not_be_cancelled(podium, make_run):
    run = make_run()
    before = keys(run)
    refused = podium("cancel", run.uri)
    assert refused.exit_code == 2
    assert "succeeded" in refused.stderr
    assert keys(run) == before


def test_gc_removes_what_no_run_needs_and_nothing_else(podium, make_run):
    run = make_run()
    root = Path(run.store_uri.removeprefix("file://"))
    used = next(iter(run.registered.datasets.values()))
    for fingerprint in (used, "0" * 16):
        run.store.write_text(f"{layout.DATA}/{fingerprint}/manifest.json", "{}")
    (root / "runs" / ".tmp-killed").write_text("half")
    before = keys(run)

    dry = json.loads(podium("gc", "--store", root, "--dry-run", "--json").stdout)
    assert keys(run) == before
    assert not dry["removed"]

    removed = json.loads(podium("gc", "--store", root, "--yes", "--json").stdout)
    assert removed["items"] == dry["items"]
    gone = before - keys(run)
    assert gone == {item["place"] for item in removed["items"] if item["place"] in before} | {
        f"{layout.DATA}/{'0' * 16}/manifest.json"
    }
    assert not (root / "runs" / ".tmp-killed").exists()
    full = {key for key in gone if key.endswith("/ckpt-step-4.pt")}
    kept = {ref.name for ref in run.verdict("proof").promoted}
    assert full
    assert not [key for key in full if "/proof/" in key and key.split("/")[4] in kept]
    between = {key for key in before if key.endswith("/model-step-4.safetensors")}
    gate = {key for key in before if "/shakedown/" in key and "/checkpoints/" in key}
    assert len(gate) == 1
    assert gone == full | between | gate | {f"{layout.DATA}/{'0' * 16}/manifest.json"}
    assert json.loads(podium("gc", "--store", root, "--yes", "--json").stdout)["items"] == []


def test_gc_asks_before_it_removes(podium, make_run):
    run = make_run()
    before = keys(run)
    assert podium("gc", "--store", run.store_uri).exit_code != 0
    assert keys(run) == before


def test_gc_leaves_a_run_that_is_going_alone(podium, make_run):
    run = make_run("ranking")
    with Lease(run.storage, layout.LEASE, what="run"):
        assert json.loads(podium("gc", "--store", run.store_uri, "--dry-run", "--json").stdout)["items"] == []
