"""`python -m podium.trainer`: the trainer by hand. What a study's conductor calls is `train --run-spec FOLDER`."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from podium.trainer.data.command import prepare_command
from podium.trainer.errors import PodiumError, UserError
from podium.trainer.evaluation.command import evaluate_command
from podium.trainer.flags import ConfigFlag, DataFlag, DeviceFlag, PresetFlag, SeedFlag, SetFlag, ThreadsFlag
from podium.trainer.inputs import spec_from_flags
from podium.trainer.tools_command import generate_command, lr_find_command, overfit_command
from podium.trainer.train_command import Tracking, run_alone, run_in_study

USER_ERROR, CRASH = 2, 1

_HELP = """Train, look at and use one language model.

\b
A first run, on text of your own (prepare prints the fingerprint):
  python -m podium.trainer prepare --corpus "notes/*.txt" --vocab-size 4k
  python -m podium.trainer train --preset tiny --data runs/data/FINGERPRINT --run-name first
  python -m podium.trainer generate runs/first/final-model.safetensors --data runs/data/FINGERPRINT
"""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(help=_HELP)
def trainer() -> None:
    """The group of all commands."""


@app.command()
def train(
    run_spec: Annotated[
        str | None, typer.Option(help="A trial's folder with config.json (what a study starts); resumes by itself.")
    ] = None,
    config: ConfigFlag = None,
    preset: PresetFlag = None,
    data: DataFlag = None,
    run_name: Annotated[str | None, typer.Option(help="The run's folder is OUTPUT_DIR/RUN_NAME.")] = None,
    output_dir: Annotated[str, typer.Option(help="Folder or s3:// URI for runs.")] = "runs",
    resume: Annotated[
        str | None, typer.Option(help="auto (the newest whole checkpoint of this run) or a ckpt-step-N.pt.")
    ] = None,
    seed: SeedFlag = None,
    device: DeviceFlag = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32.")] = None,
    compile_: Annotated[str | None, typer.Option("--compile", help="auto, always or never.")] = None,
    threads: ThreadsFlag = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    max_tokens: Annotated[str | None, typer.Option(help="Training tokens instead, such as 5M.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_sequences: Annotated[int | None, typer.Option(help="Sequences of one optimizer step.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Sequences of one forward pass.")] = None,
    target_loss: Annotated[
        list[float] | None,
        typer.Option(help="Stop under this validation loss (repeatable: the lowest stops, each crossing is timed)."),
    ] = None,
    val_freq: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    set_: SetFlag = None,
    mlflow_experiment: Annotated[str | None, typer.Option(help="Send metrics to this MLflow experiment.")] = None,
    mlflow_uri: Annotated[
        str | None, typer.Option(help="MLflow tracking URI; by default $MLFLOW_TRACKING_URI.")
    ] = None,
    mlflow_offline: Annotated[bool, typer.Option(help="Keep metrics in the run's folder only.")] = False,
) -> None:
    """Train one model.

    \b
    podium.trainer train --preset tiny --data DATA --run-name first
    podium.trainer train --config run.yaml --data DATA --run-name a --seed 43 --max-tokens 5M
    podium.trainer train --config run.yaml --data DATA --run-name a --resume auto
    podium.trainer train --config run.yaml --data DATA --run-name t --target-loss 5.0 --target-loss 5.5 --val-freq 50
    torchrun --nproc-per-node 2 -m podium.trainer train --config run.yaml --data DATA --run-name two

    Exit codes: 0 a result was written, 2 something to mend, 75 saved on request (start it again), else a crash.
    """
    if run_spec is not None:
        run_in_study(run_spec)
        return
    if run_name is None:
        raise UserError("--run-name: required (or --run-spec FOLDER)")
    changes = {
        "seed": seed,
        "runtime.device": device,
        "runtime.precision": precision,
        "runtime.compile": compile_,
        "runtime.threads": threads,
        "max_steps": max_steps,
        "max_tokens": max_tokens,
        "optimizer.learning_rate": learning_rate,
        "batch.sequences": batch_sequences,
        "batch.micro_batch": micro_batch,
        "evaluation.every_steps": val_freq,
        "stop.target.loss": min(target_loss) if target_loss else None,
        "stop.target.also": sorted(set(target_loss))[:0:-1] if target_loss else None,
    }
    spec = spec_from_flags(config, preset, data, changes, set_ or [])
    run_alone(spec, output_dir, run_name, resume, _tracking(mlflow_experiment, mlflow_uri, mlflow_offline))


app.command("prepare")(prepare_command)
app.command("evaluate")(evaluate_command)
app.command("lr-find")(lr_find_command)
app.command("overfit")(overfit_command)
app.command("generate")(generate_command)


def main() -> None:
    """Run the command line; errors that a user can mend end in words and exit code 2, never in a traceback."""
    try:
        app(prog_name="python -m podium.trainer")
    except UserError as error:
        _fail(error, USER_ERROR)
    except PodiumError as error:
        from podium.trainer.interruption import EX_TEMPFAIL, Interrupted

        _fail(error, EX_TEMPFAIL if isinstance(error, Interrupted) else CRASH)


def _tracking(experiment: str | None, uri: str | None, offline: bool) -> Tracking | None:
    if offline or (experiment is None and uri is None):
        return None
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        raise UserError("--mlflow-uri: required with --mlflow-experiment where MLFLOW_TRACKING_URI is not set")
    return Tracking(uri, experiment or "podium")


def _fail(error: PodiumError, code: int) -> NoReturn:
    print(f"{'interrupted' if code == 75 else 'error'}: {error}", file=sys.stderr, flush=True)
    sys.exit(code)
