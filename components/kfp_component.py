"""The one way a step becomes a Kubeflow component: which image it runs on, and nothing installed at its start.

A step's `component.py` is this and no more, so that every rule a step follows lies in its `step.py`:

    @trainer_step
    def train(run: str, store: str, stage: str, gpus: str, launcher: str, selection: str) -> str:
        \"\"\"One line that the Kubeflow UI shows.

        Args:
            run: What the UI shows beside the input; every input has such a line.
        \"\"\"
        from podium.components.step_process import step_process
        from podium.components.train.step import train as conduct_stage

        with step_process("train", store=store, run=run):
            return conduct_stage(run, store, stage, gpus, launcher, selection)

KFP ships the function's source alone, hence the imports inside it; `component.py` must not postpone annotations
(`from __future__ import annotations`), which KFP reads as they are. By default KFP's compiler would add a
`pip install kfp` to each step's command and pods would need a package registry: `install_kfp_package=False`.
"""

import functools
import importlib.metadata

from podium.components.kfp_light import dsl

VERSION = importlib.metadata.version("podium")

STEPS_IMAGE = f"podium/python-steps:{VERSION}"
"""Reads and writes the store and MLflow; no PyTorch. The name has `python` in it since kfp.local warns otherwise."""
TRAINER_IMAGE = f"podium/python-trainer:{VERSION}"
"""The steps' image with PyTorch: for the steps whose trials are child processes."""

step = functools.partial(dsl.component, base_image=STEPS_IMAGE, install_kfp_package=False)
"""Decorator of a step that trains nothing."""
trainer_step = functools.partial(dsl.component, base_image=TRAINER_IMAGE, install_kfp_package=False)
"""Decorator of a step that runs trials, or one process of the trainer."""
