"""`train` on the command line. Its flags and their defaults are the MoE-emergence study's contract, and more."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from podium.trainer.contract_flags import ContractFlags
from podium.trainer.errors import UserError
from podium.trainer.flags import ConfigFlag, DeviceFlag, PresetFlag, SetFlag, ThreadsFlag
from podium.trainer.inputs import preset_mapping, read_mapping, spec_from_flags
from podium.trainer.mixture_dataset import dataset_of
from podium.trainer.moe_presets import MOE_PRESETS, QUESTIONS, SIZE_MB
from podium.trainer.storage import open_storage
from podium.trainer.train_command import CONFIG_FILE, Tracking, run_alone, run_in_study

BY_PRESET = "preset"


class TrainCommand(TyperCommand):
    """Takes `--moe-layers 8 9 10 11` as it is written: its numbers are one value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the numbers that follow the flag."""
        joined: list[str] = []
        for argument in args:
            if argument.isdigit() and len(joined) > 1 and joined[-2] == "--moe-layers":
                joined[-1] = f"{joined[-1]} {argument}"
            else:
                joined.append(argument)
        return super().parse_args(ctx, joined)


def train(
    run_spec: Annotated[
        str | None, typer.Option(help="A trial's folder with config.json (what a study starts); resumes by itself.")
    ] = None,
    config: ConfigFlag = None,
    preset: PresetFlag = None,
    mode: Annotated[str | None, typer.Option(help="dense or moe, for the shakedown.", show_default=BY_PRESET)] = None,
    model: Annotated[
        str | None,
        typer.Option(help="First weights: gpt2 (hub), a folder, s3://… or tiny (random).", show_default="gpt2"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder or URI of a prepared dataset (see prepare); for the MoE presets also mixture (hub), "
            "mixture:FOLDER (a file or folder a domain) or demo.",
        ),
    ] = None,
    size_mb: Annotated[
        float | None, typer.Option(help="MB of text a domain, before the split.", show_default="10.0")
    ] = None,
    run_name: Annotated[str | None, typer.Option(help="The run's folder is OUTPUT_DIR/RUN_NAME. Required.")] = None,
    output_dir: Annotated[str, typer.Option(help="Folder or s3:// URI for runs.")] = "checkpoints",
    resume: Annotated[
        str | None,
        typer.Option(help="auto (the newest whole checkpoint of this run) or a ckpt-step-N.pt.", show_default="none"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and data order.", show_default="42")] = None,
    device: DeviceFlag = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32.")] = None,
    compile_: Annotated[str | None, typer.Option("--compile", help="auto, always or never.")] = None,
    threads: ThreadsFlag = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens of a sequence.", show_default="512")] = None,
    balance_tokens: Annotated[
        bool | None,
        typer.Option(
            "--balance-tokens/--no-balance-tokens",
            help="Train on as much of every domain; evaluation is never balanced.",
            show_default=BY_PRESET,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences of one forward pass on one device.", show_default="2")
    ] = None,
    grad_accum_steps: Annotated[
        int | None, typer.Option(help="Forward passes of one optimizer step.", show_default="4")
    ] = None,
    batch_sequences: Annotated[int | None, typer.Option(help="Instead: sequences of one optimizer step.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Instead: sequences of one forward pass.")] = None,
    fit_memory: Annotated[
        bool | None,
        typer.Option(
            "--fit-memory/--no-fit-memory",
            help="Out of memory: batch 1 with as many more passes, then blocks of 256.",
            show_default="on in the MoE presets",
        ),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default=BY_PRESET)] = None,
    max_tokens: Annotated[str | None, typer.Option(help="Training tokens instead, such as 5M.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations.", show_default="200")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.", show_default="500")] = None,
    keep_last_k: Annotated[int | None, typer.Option(help="Full checkpoints that are kept.", show_default="3")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate (AdamW).", show_default="5e-5")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of matrices.", show_default="0.01")] = None,
    warmup_fraction: Annotated[
        float | None, typer.Option(help="Share of all steps in warm-up; then cosine.", show_default="0.1")
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Gradients are clipped to it.", show_default="1.0")
    ] = None,
    num_experts: Annotated[int | None, typer.Option(help="Experts of a layer.", show_default="8")] = None,
    topk: Annotated[int | None, typer.Option(help="Experts of a token, 1 or 2.", show_default=BY_PRESET)] = None,
    moe_layers: Annotated[
        str | None, typer.Option(help="Blocks that get experts, counted from 0.", show_default="8 9 10 11")
    ] = None,
    lb_coef: Annotated[
        float | None, typer.Option(help="Weight of the load-balance loss.", show_default=BY_PRESET)
    ] = None,
    z_coef: Annotated[float | None, typer.Option(help="Weight of the router z-loss.", show_default="0.001")] = None,
    log_router_every: Annotated[
        int | None, typer.Option(help="Steps between records of the routing.", show_default="100")
    ] = None,
    target_loss: Annotated[
        list[float] | None,
        typer.Option(help="Stop under this validation loss (repeatable: the lowest stops, each crossing is timed)."),
    ] = None,
    val_freq: Annotated[int | None, typer.Option(help="Another name of --eval-every.")] = None,
    set_: SetFlag = None,
    mlflow_experiment: Annotated[
        str | None, typer.Option(help="MLflow experiment that metrics are sent to.", show_default="podium")
    ] = None,
    mlflow_uri: Annotated[
        str | None, typer.Option(help="MLflow tracking URI.", show_default="environment: MLFLOW_TRACKING_URI")
    ] = None,
    mlflow_offline: Annotated[
        bool, typer.Option("--mlflow-offline", help="Keep metrics in the run's folder only.", show_default="false")
    ] = False,
) -> None:
    """Train one model. Defaults are those of the MoE presets; --config and other presets keep their own.

    \b
    podium.trainer train --preset tiny --data DATA --run-name first
    podium.trainer train --preset shakedown --mode moe --run-name gate
    podium.trainer train --preset moe-main --run-name main --model s3://bucket/gpt2 --data mixture:texts/
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
    contract = ContractFlags(
        mode=mode,
        model=model,
        size_mb=size_mb,
        block_size=block_size,
        balance_tokens=balance_tokens,
        batch_size=batch_size,
        grad_accum_steps=grad_accum_steps,
        eval_every=eval_every,
        save_every=save_every,
        keep_last_k=keep_last_k,
        weight_decay=weight_decay,
        warmup_fraction=warmup_fraction,
        max_grad_norm=max_grad_norm,
        lb_coef=lb_coef,
        z_coef=z_coef,
        log_router_every=log_router_every,
        num_experts=num_experts,
        topk=topk,
        moe_layers=moe_layers,
        fit_memory=fit_memory,
    )
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
    if preset in MOE_PRESETS and config is None:
        contract.adjust(preset_mapping(preset, None), preset)  # what is wrong is said before anything is prepared
        data = _mixture_data(preset, data, contract, output_dir, run_name, resume)
    spec = spec_from_flags(config, preset, data, changes, set_ or [], contract=contract)
    if preset in QUESTIONS:
        spec = spec.model_copy(update={"question": QUESTIONS[preset]})
    run_alone(spec, output_dir, run_name, resume, _tracking(mlflow_experiment, mlflow_uri, mlflow_offline))


def _mixture_data(
    preset: str, data: str | None, flags: ContractFlags, output_dir: str, run_name: str, resume: str | None
) -> str:
    """The dataset's URI; of a run that goes on its own, whatever the hub says today."""
    folder = open_storage(output_dir).child(run_name)
    if data is None and resume is not None and folder.exists(CONFIG_FILE):
        return str(read_mapping(f"{folder.uri}/{CONFIG_FILE}")["dataset"])
    model = flags.model or "gpt2"
    source = None if model == "tiny" else model
    return dataset_of(data, flags.size_mb, SIZE_MB.get(preset, 10.0), source, open_storage(output_dir))


def _tracking(experiment: str | None, uri: str | None, offline: bool) -> Tracking | None:
    if offline:
        return None
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None and experiment is not None:
        raise UserError("--mlflow-uri: required with --mlflow-experiment where MLFLOW_TRACKING_URI is not set")
    return None if uri is None else Tracking(uri, experiment or "podium")
