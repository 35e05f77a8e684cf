"""A trainer of milliseconds that reaches its target; notes on which device it ran, from when to when."""

import json
import os
import sys
import time
import zlib
from pathlib import Path

folder = Path(sys.argv[1].removeprefix("file://"))
spec = json.loads((folder / "config.json").read_text())
began = time.monotonic()
time.sleep(0.05)
rule = spec["config"]["stop"]["target"]
name = spec["labels"]["variant"]
# a made-up time that depends on the configuration alone
seconds = 40.0 + zlib.crc32(name.encode()) % 1000 / 25
losses = sorted({rule["loss"], *rule["also"]}, reverse=True)
targets = [{"loss": loss, "step": 100, "tokens": 100, "seconds": seconds} for loss in losses if loss >= rule["loss"]]
targets += [{"loss": loss, "step": None, "tokens": None, "seconds": None} for loss in losses if loss < rule["loss"]]
points = [
    {"step": k, "tokens": 1000 * k, "val_loss": 7.0 - 0.4 * k, "train_seconds": seconds * k / 5} for k in range(1, 6)
]
(folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
span = {"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "began": began, "ended": time.monotonic()}
(folder / "span.json").write_text(json.dumps(span))
result = {
    "run_name": folder.name,
    "fingerprint": spec["fingerprint"],
    "labels": spec["labels"],
    "status": "target_reached",
    "reason": "made up",
    "seed": spec["config"]["seed"],
    "steps": 100,
    "tokens": 5000,
    "final_val_loss": 4.99,
    "target_loss": rule["loss"],
    "reached_target": True,
    "time_to_target_seconds": seconds,
    "targets": targets,
    "training_seconds": seconds,
    "versions": {"podium": "0", "device": "made up"},
}
(folder / ".tmp-result").write_text(json.dumps(result))
(folder / ".tmp-result").replace(folder / "result.json")
