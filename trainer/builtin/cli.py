"""`python -m podium.trainer`: the trainer by hand. What a study's conductor calls is `train --run-spec FOLDER`.

What needs torch is imported inside the commands: that takes 3 s of CPU more than the 0.8 s of `--help`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from typer.core import TyperCommand

from podium.trainer.builtin.checks import check_data
from podium.trainer.builtin.commands import evaluate_command, prepare_command
from podium.trainer.builtin.config import RunSpec
from podium.trainer.builtin.data.corpus import CorpusConfig, parse_corpus
from podium.trainer.builtin.data.manifest import TOKENIZER, dataset_folder, load_manifest
from podium.trainer.builtin.data.prepare import PrepareConfig, dataset_key, prepare
from podium.trainer.builtin.inputs import (
    ContractFlags,
    preset_mapping,
    read_mapping,
    read_run_spec,
    same_training,
    spec_from_flags,
)
from podium.trainer.builtin.presets import MOE_PRESETS, PRESETS, QUESTIONS, SIZE_MB, TINY_VOCABULARY
from podium.trainer.trial.errors import ConfigError, DataError, ExitCode, NotFoundError, PodiumError, Problem, UserError
from podium.trainer.trial.lease import Interrupted
from podium.trainer.trial.recorder import BarReporter, LogReporter, Reporter
from podium.trainer.trial.result import CONFIG, RESULT, TrialResult
from podium.trainer.trial.storage import MANIFEST, Storage, join_uri, open_storage, split_uri
from podium.trainer.trial.sync import SyncThread

if TYPE_CHECKING:
    from podium.trainer.builtin.config import TrainConfig
    from podium.trainer.builtin.setup import Precision


# `train`: starts a run in its folder, from a study's run spec or from flags, and says by its exit code how it went.

STUDY_CHECKPOINTS = "checkpoints/"


@dataclass(frozen=True)
class Tracking:
    """Where a run that is used alone sends its metrics."""

    uri: str
    experiment: str


def run_in_study(folder_uri: str) -> TrialResult:
    """The trial whose folder holds `config.json`; goes on by itself from where an earlier attempt came."""
    folder = open_storage(folder_uri)
    spec = read_run_spec(folder_uri)
    done = _finished(folder)
    if done is not None:
        if done.fingerprint != spec.fingerprint:
            raise UserError(
                f"{folder.uri}: result.json is of fingerprint {done.fingerprint}, config.json says {spec.fingerprint}"
            )
        print(f"already done: {done.status.value}: {done.reason}", flush=True)
        return done
    from podium.trainer.builtin.run import train

    return train(spec, folder, checkpoint_prefix=STUDY_CHECKPOINTS, attempt=int(os.environ.get("PODIUM_ATTEMPT", "1")))


def run_alone(
    spec: RunSpec, output_dir: str, run_name: str, resume: str | None, tracking: Tracking | None
) -> TrialResult:
    """A run in `<output_dir>/<run_name>/`. Raises UserError where that folder holds a run and `resume` is not given."""
    check_data(spec.config, load_manifest(open_storage(spec.dataset)))
    folder = open_storage(output_dir)
    folder.probe()
    folder = folder.child(run_name)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        _take_folder(folder, spec, resume)
    done = _finished(folder)
    if done is not None and resume == "auto" and done.steps == spec.config.steps:
        print(f"already done: {done.status.value}: {done.reason}", flush=True)
        return done
    from podium.trainer.builtin.run import train

    reporter: Reporter = BarReporter() if sys.stdout.isatty() and first else LogReporter()
    with _synced(folder, tracking if first else None, run_name):
        return train(spec, folder, run_name=run_name, resume=resume, reporter=reporter)


def _take_folder(folder: Storage, spec: RunSpec, resume: str | None) -> None:
    """Write config.json, unless the folder holds another run's."""
    try:
        former = read_run_spec(folder.uri)
    except ConfigError:
        former = None
    if former is not None and resume is None:
        raise UserError(f"{folder.uri} holds a run: --resume auto goes on with it, another --run-name starts a new one")
    if former is None or not same_training(former.config, spec.config) or former != spec:
        folder.write_json(CONFIG, spec.model_dump(mode="json"))


def _finished(folder: Storage) -> TrialResult | None:
    try:
        return TrialResult.model_validate_json(folder.read_bytes(RESULT))
    except NotFoundError:
        return None
    except ValidationError as error:
        raise ConfigError.from_validation(error, source=f"{folder.uri}/{RESULT}") from None


@contextmanager
def _synced(folder: Storage, tracking: Tracking | None, run_name: str) -> Iterator[None]:
    if tracking is None:
        yield
        return
    with SyncThread(folder, tracking.uri, tracking.experiment, run_name):
        yield


# Flags that several commands share.

ConfigFlag = Annotated[str | None, typer.Option("--config", help="TrainConfig or RunSpec, YAML or JSON, path or URI.")]
PresetFlag = Annotated[str | None, typer.Option("--preset", help=f"A named config instead: {', '.join(PRESETS)}.")]
DataFlag = Annotated[str | None, typer.Option("--data", help="Folder or URI of a prepared dataset (see prepare).")]
SeedFlag = Annotated[int | None, typer.Option("--seed", help="Of weights and data order.")]
DeviceFlag = Annotated[str | None, typer.Option("--device", help="auto, cuda, mps or cpu.", show_default="auto")]
ThreadsFlag = Annotated[int | None, typer.Option("--threads", help="CPU threads; the same number resumes bit for bit.")]
SetFlag = Annotated[
    list[str] | None, typer.Option("--set", help="Any other field: --set optimizer.weight_decay=0.05 (repeatable).")
]


# `lr-find`, `overfit` and `generate` on the command line. Torch is imported once a command runs.

FAILED = 1
"""Exit code of a check that was not passed."""


def lr_find_command(
    config: ConfigFlag = None,
    preset: PresetFlag = None,
    data: DataFlag = None,
    output_dir: Annotated[str, typer.Option(help="Where lr_find.csv, lr_find.json and lr_find.svg go.")] = "lr-find",
    low: Annotated[float, typer.Option(help="First rate.")] = 1e-8,
    high: Annotated[float, typer.Option(help="Last rate.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Optimizer steps between them, rising exponentially.")] = 100,
    seed: SeedFlag = None,
    device: DeviceFlag = None,
    threads: ThreadsFlag = None,
    set_: SetFlag = None,
) -> None:
    """Find a learning rate: raise it step by step, and suggest the one where the loss falls fastest.

    \b
    podium.trainer lr-find --preset tiny --data DATA
    podium.trainer lr-find --config run.yaml --data DATA --low 1e-6 --high 0.3 --output-dir found

    The test ends when the loss is four times its best. Nothing of a run is read or changed.
    """
    if not 0 < low < high or steps < 3:
        raise UserError(f"needs 0 < low < high and at least 3 steps, got --low {low} --high {high} --steps {steps}")
    resolved, folder, precision = _prepare(config, preset, data, seed, device, threads, set_)
    from podium.trainer.builtin.distributed import Ranks
    from podium.trainer.builtin.setup import build_parts
    from podium.trainer.builtin.tools import find_learning_rate, write_range_test

    target = open_storage(output_dir)
    target.probe()
    test = find_learning_rate(build_parts(resolved, folder, precision, Ranks()), low=low, high=high, steps=steps)
    if not test.rates:
        raise ConfigError(f"no curve: {test.ended}")
    write_range_test(test, target)
    found = "none: the loss never fell" if test.suggested is None else f"{test.suggested:.3g}"
    print(f"{len(test.rates)} steps from rate {low:g}; {test.ended}\nsuggested learning rate: {found}\n{target.uri}")


def overfit_command(
    config: ConfigFlag = None,
    preset: PresetFlag = None,
    data: DataFlag = None,
    max_steps: Annotated[int, typer.Option(help="Optimizer steps before the check counts as failed.")] = 500,
    seed: SeedFlag = None,
    device: DeviceFlag = None,
    threads: ThreadsFlag = None,
    set_: SetFlag = None,
) -> None:
    """Check that the model can learn the first 1,024 tokens by heart: the loss must fall under 0.1 (else exit code 1).

    \b
    podium.trainer overfit --preset tiny --data DATA
    podium.trainer overfit --config run.yaml --data DATA --max-steps 1000
    """
    resolved, folder, precision = _prepare(config, preset, data, seed, device, threads, set_)
    from podium.trainer.builtin.tools import MAX_LOSS, overfit

    found = overfit(resolved, folder, precision, max_steps=max_steps)
    where = f"loss {found.loss:.4f} on the first {found.tokens} tokens after {found.steps} steps"
    if found.passed:
        print(f"passed: {where}, under {MAX_LOSS}")
        return
    print(
        f"failed: {where}, not under {MAX_LOSS}: the model, its gradients or the learning rate "
        f"({resolved.optimizer.learning_rate:g}) are not right",
        file=sys.stderr,
    )
    raise typer.Exit(FAILED)


def generate_command(
    model: Annotated[str, typer.Argument(help="A .safetensors of a run, with its .json beside it; path or URI.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from; by default a document's beginning.")] = "",
    data: DataFlag = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer.json, where there is no dataset.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to make, at most.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token always.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest only.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 42,
) -> None:
    """Let a trained model write.

    \b
    podium.trainer generate checkpoints/first/final-model.safetensors --data DATA --prompt "In the"
    podium.trainer generate checkpoints/first/best-model.safetensors --tokenizer tokenizer.json --temperature 0
    """
    if temperature < 0 or tokens < 1 or (top_k is not None and top_k < 1):
        raise UserError(f"needs temperature ≥ 0, tokens ≥ 1 and top-k ≥ 1, got {temperature:g}, {tokens} and {top_k}")
    encode, decode, end = _tokenizer(data, tokenizer)
    from podium.trainer.builtin.checkpoint import load_model
    from podium.trainer.builtin.tools import generate, local_model

    with local_model(model) as path:
        net, config = load_model(path)
    ids = encode(prompt) or [end]
    made = generate(
        net,
        ids,
        tokens=tokens,
        context=config.data.sequence_length,
        temperature=temperature,
        top_k=top_k,
        end=end,
        seed=seed,
    )
    print(prompt + decode(list(made)))


def _prepare(
    config: str | None,
    preset: str | None,
    data: str | None,
    seed: int | None,
    device: str | None,
    threads: int | None,
    settings: list[str] | None,
) -> tuple[TrainConfig, Path, Precision]:
    changes = {"seed": seed, "runtime.device": device, "runtime.threads": threads}
    spec = spec_from_flags(config, preset, data, changes, settings or [])
    from podium.trainer.builtin.setup import choose_device, choose_precision, set_up

    folder = dataset_folder(spec.dataset)
    runtime = spec.config.runtime
    torch_device = choose_device(runtime.device)
    set_up(runtime, torch_device)
    return spec.config, folder, choose_precision(runtime.precision, torch_device)


def _tokenizer(
    data: str | None, path: str | None
) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str], int]:
    from podium.trainer.builtin.data.tokenizer import end_of_text, load_tokenizer

    if (data is None) == (path is None):
        raise UserError("give --data (a prepared dataset) or --tokenizer (its tokenizer.json)")
    if data is not None:
        folder = dataset_folder(data)
    else:
        assert path is not None
        place, name = split_uri(path)
        if name != TOKENIZER:
            raise DataError(f"--tokenizer: must be a {TOKENIZER}, got {path!r}")
        folder = Path(place.removeprefix("file://"))
    tokenizer = load_tokenizer(folder)
    return lambda text: tokenizer.encode(text).ids, tokenizer.decode, end_of_text(tokenizer)


# The dataset of a run by hand on several domains: one that is prepared already, or a corpus made ready on the spot.

GPT2_VOCABULARY = 50257


def dataset_of(data: str | None, size_mb: float | None, default_mb: float, source: str | None, store: Storage) -> str:
    """URI of the dataset that `--data` means: a prepared one, or a corpus that is prepared below `store`.

    Without `data` it is CodeParrot, MathQA and C4 from the hub, or the demo corpus where there is no hub; what is used
    is said. `source` is the model's: GPT-2's tokens for pretrained weights (None: a small vocabulary of the corpus's
    own). Raises DataError and ConfigError for what can't be had.
    """
    if data is not None and open_storage(data).exists(MANIFEST):
        if size_mb is not None:
            raise ConfigError(Problem("--size-mb", f"is for a corpus; {data} is a prepared dataset"))
        return data
    corpora = [parse_corpus("mixture" if data is None else data)]
    if not corpora[0].domains:
        raise ConfigError(
            Problem("--data", f"must be a prepared dataset, mixture, mixture:FOLDER or demo here, got {data!r}")
        )
    if data is None:
        corpora.append(parse_corpus("demo"))
    for index, corpus in enumerate(corpora):
        try:
            return _prepared(corpus.model_copy(update={"size_mb": size_mb or default_mb}), source, store)
        except DataError as error:
            if index + 1 == len(corpora):
                raise
            print(f"warning: {error}\nwarning: the demo corpus is used instead (--data demo)", flush=True)
    raise AssertionError("unreachable")


def _prepared(corpus: CorpusConfig, source: str | None, store: Storage) -> str:
    config = (
        PrepareConfig(corpus=corpus, vocab_size=TINY_VOCABULARY)
        if source is None
        else PrepareConfig(corpus=corpus, vocab_size=GPT2_VOCABULARY, tokenizer=source)
    )
    store.probe()
    manifest = prepare(config, store)
    print(f"data {manifest.fingerprint}: {manifest.corpus}", flush=True)
    return join_uri(store.uri, dataset_key(manifest.fingerprint))


# `train` on the command line. Its flags and their defaults are the MoE-emergence study's contract, and more.

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
    if data is None and resume is not None and folder.exists(CONFIG):
        return str(read_mapping(f"{folder.uri}/{CONFIG}")["dataset"])
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


_HELP = """Train, look at and use one language model.

\b
A first run, on text of your own (prepare prints the fingerprint):
  python -m podium.trainer prepare --corpus "notes/*.txt" --vocab-size 4k
  python -m podium.trainer train --preset tiny --data runs/data/FINGERPRINT --run-name first
  python -m podium.trainer generate checkpoints/first/final-model.safetensors --data runs/data/FINGERPRINT
"""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(help=_HELP)
def trainer() -> None:
    """The group of all commands."""


app.command("train", cls=TrainCommand)(train)
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
        _fail(error, ExitCode.USER_ERROR)
    except PodiumError as error:
        _fail(error, ExitCode.RUN_AGAIN if isinstance(error, Interrupted) else ExitCode.CRASH)


def _fail(error: PodiumError, code: ExitCode) -> NoReturn:
    print(f"{'interrupted' if code is ExitCode.RUN_AGAIN else 'error'}: {error}", file=sys.stderr, flush=True)
    sys.exit(code)
