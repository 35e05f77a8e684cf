"""What the pipeline adds to a step beyond imports and its own work: at most 0.5 s.

    python tests/benchmarks/step_overhead.py [--steps 8] [--rounds 5]

Paired rounds: a pipeline of steps that do nothing, through `kfp.local` as `podium run` uses it, beside the same number
of bare processes that import what a step's process imports. The difference per step is the shell, KFP's placeholders,
its executor and its log.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

from podium.components.kfp_components import step
from podium.components.kfp_light import dsl, local

LIMIT_SECONDS = 0.5
IMPORTS = "import kfp.dsl.executor_main, podium.components.step_process"


@step
def nothing(run: str, store: str) -> str:
    """A step without work of its own."""
    from podium.components.step_process import step_process

    with step_process("nothing"):
        return run


def pipeline_of(steps):
    """A chain of so many steps, each waiting for the one before."""

    @dsl.pipeline(name="overhead")
    def chain(run: str = "demo-0a1b2c3d", store: str = "file:///nowhere"):
        for _ in range(steps):
            task = nothing(run=run, store=store)
            task.set_caching_options(False)
            run = task.output

    return chain


def seconds_of_pipeline(chain):
    """Wall-clock seconds of the whole chain, its log thrown away."""
    with open(os.devnull, "w") as sink:
        before, sys.stdout = sys.stdout, sink
        began = time.perf_counter()
        try:
            chain()
        finally:
            sys.stdout = before
    return time.perf_counter() - began


def seconds_of_processes(steps):
    """Wall-clock seconds of as many processes, one after the other, that import and end."""
    began = time.perf_counter()
    for _ in range(steps):
        subprocess.run([sys.executable, "-c", IMPORTS], check=True, env={**os.environ, "_KFP_RUNTIME": "true"})
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner")
    chain = pipeline_of(options.steps)
    added = []
    with tempfile.TemporaryDirectory() as root:
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=root, workspace_root=root)
        for number in range(options.rounds):
            whole, bare = seconds_of_pipeline(chain), seconds_of_processes(options.steps)
            added.append((whole - bare) / options.steps)
            print(
                f"round {number + 1}: a step {whole / options.steps:.3f} s, imports {bare / options.steps:.3f} s, "
                f"added {added[-1]:.3f} s"
            )
    median = statistics.median(added)
    print(f"the pipeline adds {median:.3f} s a step (median of {options.rounds}; at most {LIMIT_SECONDS} s)")
    return 0 if median <= LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
