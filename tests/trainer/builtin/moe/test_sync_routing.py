"""Routing on its way to MLflow: every record once, under names that say layer, expert and domain."""

from __future__ import annotations

import json

from podium.trainer.trial.storage import open_storage
from podium.trainer.trial.sync import sync_run

ROUTER = {
    "layers": [8, 9], "domains": ["code", "math"], "noise": 0.05, "assigned": [[[6, 2], [1, 7]], [[4, 4], [4, 4]]],
    "entropy": [[0.5, 0.6], [0.7, 0.6]], "load_balance": [1.1, 1.0], "z": [2.0, 2.5], "dropped": [[0, 1], [0, 0]],
}  # fmt: skip


def lines(*steps):
    found = []
    for step in range(1, max(steps) + 1):
        found.append({"step": step, "tokens": step, "train_loss": 3.0, "learning_rate": 0.1, "train_seconds": step})
        if step in steps:
            found.append({"step": step, "tokens": step, "train_seconds": step, "router": ROUTER})
    return "".join(json.dumps(line) + "\n" for line in found)


def test_each_record_is_sent_once_beside_the_steps(tmp_path):
    from podium.trainer.trial.sync import client

    folder, uri = open_storage(str(tmp_path / "run")), f"sqlite:///{tmp_path}/mlflow.db"
    folder.write_json("config.json", {"config": {"seed": 42}})
    folder.write_text("metrics.jsonl", lines(2))
    run_id = sync_run(folder, uri, "experiment", run_name="a")
    folder.write_text("metrics.jsonl", lines(2, 4))
    assert sync_run(folder, uri, "experiment", run_name="a") == run_id
    tracking = client(uri)

    def sent(name):
        return [(point.step, point.value) for point in tracking.get_metric_history(run_id, name)]

    assert sent("router/noise") == [(2, 0.05), (4, 0.05)]
    assert sent("router/layer8/expert0/share") == [(2, 7 / 16), (4, 7 / 16)]
    assert sent("router/layer8/math/expert1/share") == [(2, 7 / 8), (4, 7 / 8)]
    assert sent("router/layer9/specialisation") == [(2, 0.0), (4, 0.0)]
    assert sent("router/layer8/dropped") == [(2, 1.0), (4, 1.0)]
    assert [step for step, _ in sent("train_loss")] == [1, 2, 3, 4]
