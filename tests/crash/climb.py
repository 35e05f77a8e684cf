"""A run's steps one after another in this process, as the pipeline would call them: `climb.py STUDY STORE`.

Data, shakedown, then each stage's training and verdict. Without KFP, evaluation and registration a life costs seconds,
so that it can be ended many times.
"""

import os
import sys

from podium.components.prepare_data.step import prepare
from podium.components.select.step import select
from podium.components.shakedown.step import shakedown
from podium.components.study.run import Run
from podium.components.train.step import train
from podium.trainer.trial.lease import TOKEN_VARIABLE, Lease
from podium.trainer.trial.storage import open_storage


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        text = file.read()
    store = sys.argv[2]
    run = prepare(text, "full", store, "", "", "process", "")
    opened = Run.open(store, run)
    with Lease(open_storage(opened.uri), what=f"run {run}") as lease:
        os.environ[TOKEN_VARIABLE] = lease.token
        if shakedown(run, store, "process", "0") != "pass":
            sys.exit(4)
        for stage in opened.stages:
            train(run, store, stage, "0", "process", "")
            if select(run, store, stage, "").decision != "promote":
                break
    print("climbed", flush=True)


main()
