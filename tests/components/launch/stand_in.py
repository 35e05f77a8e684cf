"""A trainer that takes milliseconds: reads the trial's config.json, writes the curve it is told to, then the result.

What a trial does is in `script.json` of the run's folder: variant (or `variant/seed`) → a mapping with
  losses     val losses, one an evaluation of `every` tokens each (default: 4 falling ones)
  status     of the result (default completed)
  exits      exit codes of the first attempts, which end without a result
  seconds    time it takes, most of it before its last evaluation
It starts without pydantic or torch, and notes each start in `starts/` of its folder.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1].removeprefix("file://"))
    spec = json.loads((folder / "config.json").read_text())
    labels = spec["labels"]
    script_file = folder.parents[3] / "script.json"
    script = json.loads(script_file.read_text()) if script_file.exists() else {}
    told = {
        **script.get("*", {}),
        **script.get(labels["variant"], {}),
        **script.get(f"{labels['variant']}/{labels['seed']}", {}),
    }
    starts = folder / "starts"
    starts.mkdir(exist_ok=True)
    attempt = len(list(starts.iterdir())) + 1
    (starts / f"{attempt}").write_text(os.environ["PODIUM_ATTEMPT"])
    print(f"attempt {attempt} of {labels['variant']}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    exits = told.get("exits", [])
    if attempt <= len(exits):
        if exits[attempt - 1] < 0:
            os.kill(os.getpid(), -exits[attempt - 1])
        sys.exit(exits[attempt - 1])
    losses = told.get("losses", [3.0, 2.5, 2.2, 2.0])
    every = told.get("every", 1000)
    lines = []
    metrics = folder / "metrics.jsonl"
    for index, loss in enumerate(losses, 1):
        if index == len(losses):
            time.sleep(told.get("seconds", 0.0))
        lines.append(json.dumps({"step": index, "tokens": index * every, "val_loss": loss, "bits_per_byte": loss}))
        temp = metrics.with_name(".tmp-metrics")
        temp.write_text("\n".join(lines) + "\n")
        temp.replace(metrics)
    final = losses[-1] if losses else None
    result = {
        "run_name": folder.name,
        "fingerprint": spec["fingerprint"],
        "labels": labels,
        "status": told.get("status", "completed"),
        "reason": "all steps done",
        "seed": spec["config"]["seed"],
        "steps": len(losses),
        "tokens": len(losses) * every,
        "final_val_loss": final,
        "best_val_loss": min([loss for loss in losses if loss is not None], default=None),
        "training_seconds": 0.001,
        "best_model": "checkpoints/best-model.safetensors",
    }
    temp = folder / ".tmp-result"
    temp.write_text(json.dumps(result))
    temp.replace(folder / "result.json")


main()
