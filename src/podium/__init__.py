"""Podium: staged language-model training experiments on Kubernetes.

    from podium import Study, plan, run, compile, submit, upload, wait, compare

    study = Study.load("param-allocation", profile="smoke")    # a shipped study, a path, or YAML text
    plan(study).usd                                            # what it takes; nothing runs
    finished = run(study, store="runs")                        # again: finishes what is missing, repeats nothing
    finished.verdict("finals").reason
    compile(study, "pipeline.yaml")                            # for Kubeflow Pipelines
    wait(submit(study, store="s3://bucket/prefix"))            # on a cluster
    compare("runs/a", "runs/b")                                # two runs' final losses

Nothing is loaded before it is used: `import podium` takes milliseconds. The types of these names are in
`__init__.pyi`: imported here, even for the type checker alone, they would tie every layer to every other one.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = ["Study", "compare", "compile", "plan", "run", "submit", "upload", "wait"]

_HOMES = {
    "Study": "podium.components.study.load",
    "compare": "podium.components.verdicts.compare",
    "compile": "podium.pipelines.notebook",
    "plan": "podium.components.study.plan",
    "run": "podium.pipelines.notebook",
    "submit": "podium.pipelines.notebook",
    "upload": "podium.pipelines.notebook",
    "wait": "podium.pipelines.notebook",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
