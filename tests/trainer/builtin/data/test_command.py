"""`prepare` on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from podium.trainer.builtin.commands import prepare_command
from podium.trainer.builtin.data.manifest import load_manifest
from podium.trainer.trial.errors import UserError
from podium.trainer.trial.storage import open_storage, split_uri

app = typer.Typer()
app.command("prepare")(prepare_command)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Line {number} of the text.\n\n" for number in range(3000)))
    return path


def test_it_prints_where_the_dataset_is_and_what_is_in_it(text: Path, tmp_path: Path) -> None:
    arguments = ["--corpus", str(text), "--vocab-size", "300", "--store", str(tmp_path / "store")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = re.search(r"^manifest +(\S+)$", result.stdout, re.MULTILINE)
    assert found
    manifest = load_manifest(open_storage(split_uri(found[1])[0]))
    assert f"fingerprint  {manifest.fingerprint}" in result.stdout
    assert manifest.vocab_size == 300
    for name in ("train", "validation", "test"):
        assert re.search(rf"^{name} +\S+ tokens, .* {manifest.splits[name].documents} documents", result.stdout, re.M)
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_options_reach_the_corpus(text: Path, tmp_path: Path) -> None:
    arguments = ["--corpus", str(text), "--store", str(tmp_path / "s"), "--max-bytes", "20k", "--vocab-size", "257"]
    result = CliRunner().invoke(app, [*arguments, "--validation-fraction", "0.2"], catch_exceptions=False)
    found = re.search(r"^manifest +(\S+)$", result.stdout, re.MULTILINE)
    assert found
    manifest = load_manifest(open_storage(split_uri(found[1])[0]))
    assert sum(split.bytes for split in manifest.splits.values()) <= 20_000
    assert manifest.splits["validation"].documents > 2 * manifest.splits["test"].documents


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vocab-size", "100"], r"vocab_size: .*greater than or equal to 257, got 100"),
        (["--vocab-size", "many"], r"vocab_size: must be a whole number .* got 'many'"),
        (["--corpus", "/no/such/file"], "no such file, folder or match"),
        (["--store", "gs://bucket"], r"a store must be a path, .* got 'gs://bucket'"),
        (["--max-bytes", "0"], "max_bytes"),
    ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(
    text: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    arguments = ["--corpus", str(text), "--store", str(tmp_path / "store"), *options]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert re.search(words, str(result.exception))
    assert not (tmp_path / "store").exists()
