"""What the step train does: open the run, open a launcher, conduct the stage."""

from __future__ import annotations

import signal
from typing import NoReturn

from podium.components.launch.conductor import conduct
from podium.components.launch.open import open_launcher
from podium.components.study.design import Selection
from podium.components.study.run import Run
from podium.trainer.trial.sync import mlflow_uri


def train(run: str, store: str, stage: str, gpus: str, launcher: str, selection: str) -> str:
    """Run a stage's trials until each has a result; `finished/all` of them. A stage with a verdict is left as it is.

    `gpus` is what the step's pod requests; prepare_data has checked it against the study, and a trial takes what the
    study says. Raises UserError where no device serves.
    """
    opened = Run.open(store, run)
    chosen = Selection.from_json(selection).within(stage)
    if opened.verdict(stage) is not None:
        trials = len(opened.trials(stage))
        return f"{trials}/{trials}"
    resources = opened.study.stages[stage].resources
    signal.signal(signal.SIGTERM, _interrupt)
    conducted = conduct(
        opened,
        stage,
        open_launcher(launcher, opened, stage, resources, parallel=chosen.parallel or resources.parallel),
        chosen,
        tracking_uri=mlflow_uri(store),
    )
    if conducted.stopped:
        print(f"stage {stage} stopped: {conducted.stopped}", flush=True)
    return f"{conducted.finished}/{conducted.trials}"


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
