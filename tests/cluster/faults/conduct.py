"""A run's data and first stage on a cluster, as the pipeline's steps would do it: `conduct.py STUDY STORE [select]`.

No gate, evaluation and report, so that what a fault does to the trials is seen in seconds. Exit codes as `podium run`.
"""

import sys

from podium.components.prepare_data.step import prepare
from podium.components.select.step import select
from podium.components.study.run import Run
from podium.components.train.step import train
from podium.trainer.trial.errors import PodiumError, UserError


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        text = file.read()
    store = sys.argv[2]
    try:
        run = prepare(text, "full", store, "", "", "job", "")
        print(f"run {run}", flush=True)
        stage = Run.open(store, run).stages[0]
        finished, _, trials = train(run, store, stage, "0", "job", "").partition("/")
        print(f"{finished} of {trials} trials have a result", flush=True)
        if finished != trials:
            return 5
        print(f"verdict: {select(run, store, stage, '').decision}", flush=True)
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except PodiumError as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
