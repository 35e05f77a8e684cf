"""The commands `prepare` and `evaluate` of `python -m podium.trainer`."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from podium.trainer.builtin.data.corpus import parse_corpus
from podium.trainer.builtin.data.prepare import PrepareConfig, dataset_key, prepare
from podium.trainer.builtin.evaluation.metrics import EvaluationRequest, Part
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.section import format_count
from podium.trainer.trial.storage import MANIFEST, join_uri, open_storage


def prepare_command(
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus", "--data", help="builtin, wikitext-2, fineweb, s3://bucket/prefix, a file, folder or glob."
        ),
    ] = "builtin",
    vocab_size: Annotated[str, typer.Option(help="Entries of the tokenizer: 257 to 65536, such as 16k.")] = "16k",
    store: Annotated[str, typer.Option("--store", "--output-dir", help="Folder or s3:// URI.")] = "runs",
    max_bytes: Annotated[str | None, typer.Option(help="Take this much text only, thinned evenly, such as 8M.")] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share for validation, where no file's name says what it is.")
    ] = 0.05,
    test_fraction: Annotated[float, typer.Option(help="Share for testing, likewise.")] = 0.05,
    text_field: Annotated[str, typer.Option(help="Field of a .jsonl file that holds a document's text.")] = "text",
    workers: Annotated[
        int | None, typer.Option(help="Processes that tokenise; by default one a processor if there is much text.")
    ] = None,
) -> None:
    """Train a tokenizer on a corpus and write its tokens as shards to STORE/data/<fingerprint>/.

    \b
    podium.trainer prepare --corpus builtin --vocab-size 4k --store runs
    podium.trainer prepare --corpus "notes/**/*.txt" --vocab-size 8k --store runs
    podium.trainer prepare --corpus wikitext-2 --store s3://bucket/podium
    podium.trainer prepare --corpus s3://bucket/texts --max-bytes 100M

    \b
    builtin     code and documentation of this Python installation: no download
    wikitext-2  from the Hugging Face hub, at a pinned revision
    files       .txt .md .rst .raw .tokens .py, or .jsonl with a document
                a line. Names that say train, valid or test keep those splits;
                else whole documents are dealt out.

    The same text and settings give the same fingerprint, and what is there already is not made again.
    """

    given = {
        **parse_corpus(corpus).model_dump(),
        "max_bytes": max_bytes,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "text_field": text_field,
    }
    try:
        config = PrepareConfig.model_validate({"corpus": given, "vocab_size": vocab_size, "workers": workers})
    except ValidationError as error:
        raise ConfigError.from_validation(error, source="prepare") from None
    storage = open_storage(store)
    storage.probe()
    progress = ProgressLine()
    manifest = prepare(config, storage, progress)
    progress.end()
    folder = join_uri(store, dataset_key(manifest.fingerprint))
    print(f"corpus       {manifest.corpus}")
    print(f"fingerprint  {manifest.fingerprint}")
    print(f"vocabulary   {manifest.tokenizer_size}{_shortfall(manifest.tokenizer_size, manifest.vocab_size)}")
    for name, split in manifest.splits.items():
        text = f"{name:<12} {format_count(split.tokens)} tokens"
        if split.bytes is not None:
            ratio = split.bytes / split.tokens
            text += f", {format_count(split.bytes)} bytes, {split.documents} documents, {ratio:.2f} bytes a token"
        print(text)
    print(f"manifest     {join_uri(folder, MANIFEST)}")
    print(
        f"\nNext: python -m podium.trainer train --preset tiny --data {folder.removeprefix('file://')} --run-name first"
    )


class ProgressLine:
    """One line on a terminal, drawn over; elsewhere a line whenever something new begins."""

    def __init__(self) -> None:
        self._what = ""
        self._drawn = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far `what` is, ten times a second at most."""
        if not self._terminal:
            if what != self._what:
                print(f"{what}: {total / 1e6:.1f} MB", file=sys.stderr, flush=True)
            self._what = what
            return
        now = time.monotonic()
        if now - self._drawn < 0.1 and what == self._what and done < total:
            return
        self._what, self._drawn = what, now
        share = min(1.0, done / max(1, total))
        bar = "━" * int(30 * share)
        print(f"\r\x1b[K{what:<22} {bar:<30} {share:4.0%}  {done / 1e6:.1f} MB", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the terminal's line clean."""
        if self._terminal and self._what:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _shortfall(size: int, asked: int) -> str:
    return "" if size == asked else f" of {asked}: the corpus has no more pairs that occur twice"


# `python -m podium.trainer evaluate`. Importable without torch, which loads only when something is measured.


def evaluate_command(
    checkpoint: Annotated[
        str,
        typer.Option(help="model-*.safetensors, a run's folder (or FOLDER/best, FOLDER/final), models:/NAME/VERSION."),
    ],
    output: Annotated[str, typer.Option(help="Folder or URI for metrics.json, summary.md and the parts' files.")],
    data: Annotated[
        str | None, typer.Option(help="Prepared dataset; by default the one the run was trained on.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer.json; by default the dataset's.")] = None,
    only: Annotated[str | None, typer.Option(help="One part: perplexity, smallbench, latency or throughput.")] = None,
    smallbench: Annotated[str, typer.Option(help="hub, off, or a folder or URI with the tasks' files.")] = "hub",
    smallbench_limit: Annotated[int | None, typer.Option(help="Examples a task; all by default.")] = None,
    skip_smallbench: Annotated[bool, typer.Option("--skip-smallbench", help="Leave SmallBench out.")] = False,
    skip_latency: Annotated[bool, typer.Option("--skip-latency", help="Leave latency out.")] = False,
    skip_throughput: Annotated[bool, typer.Option("--skip-throughput", help="Leave throughput out.")] = False,
    max_eval_batches: Annotated[int | None, typer.Option(help="Batches a split for a quick look.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of PyTorch.")] = None,
) -> None:
    """Measure a trained model: perplexity, bits per byte, SmallBench, latency, throughput, memory.

    \b
    podium.trainer evaluate --checkpoint runs/first --output runs/first/evaluation
    podium.trainer evaluate --checkpoint runs/first/best --output OUT --skip-smallbench --max-eval-batches 20
    podium.trainer evaluate --checkpoint model-step-900.safetensors --data DATA --output OUT --only smallbench

    What can't be measured is null in metrics.json, with the reason under `unmeasured`.
    """
    skips: dict[Part, bool] = {"smallbench": skip_smallbench, "latency": skip_latency, "throughput": skip_throughput}
    request = build_request(
        {
            "checkpoint": checkpoint,
            "output": output,
            "data": data,
            "tokenizer": tokenizer,
            "only": only,
            "smallbench": smallbench,
            "smallbench_limit": smallbench_limit,
            "skip": tuple(part for part, skipped in skips.items() if skipped),
            "max_eval_batches": max_eval_batches,
            "device": device,
            "precision": precision,
            "threads": threads,
        }
    )
    from podium.trainer.builtin.evaluation.metrics import summary
    from podium.trainer.builtin.evaluation.run import evaluate_checkpoint

    typer.echo(summary(evaluate_checkpoint(request)), nl=False)


def build_request(fields: dict[str, Any]) -> EvaluationRequest:
    """The request that the flags say. Raises ConfigError listing every flag that is wrong."""
    try:
        return EvaluationRequest.model_validate(fields)
    except ValidationError as error:
        raise ConfigError.from_validation(error, source="evaluate") from None
