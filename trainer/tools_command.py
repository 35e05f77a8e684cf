"""`lr-find`, `overfit` and `generate` on the command line. Torch is imported once a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podium.trainer.errors import ConfigError, DataError, UserError
from podium.trainer.flags import ConfigFlag, DataFlag, DeviceFlag, PresetFlag, SeedFlag, SetFlag, ThreadsFlag
from podium.trainer.inputs import spec_from_flags
from podium.trainer.storage import open_storage, split_uri

if TYPE_CHECKING:
    from podium.trainer.config import TrainConfig
    from podium.trainer.precision import Precision

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
    from podium.trainer.distributed import Ranks
    from podium.trainer.lr_find import find_learning_rate, write_range_test
    from podium.trainer.setup import build_parts

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
    from podium.trainer.overfit import MAX_LOSS, overfit

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
    from podium.trainer.checkpoint import load_model
    from podium.trainer.fetch import local_model
    from podium.trainer.generate import generate

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
    from podium.trainer.data.manifest import dataset_folder
    from podium.trainer.precision import choose_device, choose_precision, set_up

    folder = dataset_folder(spec.dataset)
    runtime = spec.config.runtime
    torch_device = choose_device(runtime.device)
    set_up(runtime, torch_device)
    return spec.config, folder, choose_precision(runtime.precision, torch_device)


def _tokenizer(
    data: str | None, path: str | None
) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str], int]:
    from podium.trainer.data.manifest import TOKENIZER, dataset_folder
    from podium.trainer.data.tokenizer import end_of_text, load_tokenizer

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
