"""A small prepared dataset, runs on it that take a second, and stores to keep them in."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from podium.trainer.builtin.config import RunSpec, TrainConfig, load_config
from podium.trainer.builtin.data.manifest import TOKEN_BYTES, FileEntry, Manifest, Split
from podium.trainer.builtin.data.shards import ShardWriter
from podium.trainer.trial.storage import Storage, open_storage, sha256_of

VOCABULARY = 64
T = 16


@pytest.fixture(scope="session")
def markov_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of a Markov chain over 64 states: something that a tiny model learns in a few steps."""
    folder = tmp_path_factory.mktemp("markov")
    rng = np.random.default_rng(0)
    follow = rng.dirichlet(np.full(VOCABULARY, 0.05), size=VOCABULARY).cumsum(axis=1)
    draws = rng.random(16_000)
    tokens = np.empty(len(draws), dtype=np.uint16)
    state = 0
    for index, draw in enumerate(draws):
        state = min(int(np.searchsorted(follow[state], draw)), VOCABULARY - 1)
        tokens[index] = state
    splits = {}
    for name, part in (("train", tokens[:12_000]), ("validation", tokens[12_000:14_000]), ("test", tokens[14_000:])):
        with ShardWriter(folder, name) as writer:
            writer.append(part)
        splits[name] = Split(tokens=len(part), bytes=2 * len(part), documents=1, shards=writer.shards)
    np.save(folder / TOKEN_BYTES, np.full(VOCABULARY, 2))
    files = {
        path.name: FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in sorted(folder.iterdir())
    }
    manifest = Manifest(
        fingerprint="0123456789abcdef",
        corpus="a Markov chain",
        corpus_fingerprint="markov",
        vocab_size=VOCABULARY,
        tokenizer_size=VOCABULARY,
        end_of_text=0,
        splits=splits,
        files=files,
    )
    open_storage(str(folder)).write_json("manifest.json", manifest.model_dump(mode="json"))
    return folder


@pytest.fixture
def tiny_config() -> Callable[..., TrainConfig]:
    """A config of 12 steps; keyword arguments replace whole sections."""

    def make(**changes: Any) -> TrainConfig:
        fields: dict[str, Any] = {
            "model": {
                "family": "transformer",
                "vocab_size": VOCABULARY,
                "d_model": 16,
                "n_layers": 2,
                "n_heads": 2,
                "d_ff": 32,
            },
            "data": {"sequence_length": T},
            "optimizer": {"learning_rate": 0.01},
            "schedule": {"warmup_fraction": 0.2},
            "batch": {"sequences": 8},
            "max_steps": 12,
            "evaluation": {"every_steps": 3, "sequences": 32},
            "checkpoint": {"every_steps": 5},
            "runtime": {"device": "cpu", "threads": 1},
        }
        return load_config({**fields, **changes})

    return make


@pytest.fixture
def tiny_spec(markov_data: Path, tiny_config: Callable[..., TrainConfig]) -> Callable[..., RunSpec]:
    """A RunSpec of `tiny_config`; `spec_fields` are its own, the rest are the config's."""

    def make(spec_fields: dict[str, Any] | None = None, **changes: Any) -> RunSpec:
        return RunSpec(config=tiny_config(**changes), dataset=f"file://{markov_data}", **(spec_fields or {}))

    return make


@pytest.fixture
def run_trainer() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python -m podium.trainer …` to its end."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "podium.trainer", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            timeout=120,
            check=False,
        )

    return run


# Stores: a folder, and S3.


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """S3 as moto serves it over HTTP."""
    from moto.server import ThreadedMotoServer  # it takes a second

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-access-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-access-key")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    return s3_endpoint


@pytest.fixture
def s3(s3_environment: str) -> Storage:
    import boto3

    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=s3_environment, region_name="us-east-1").create_bucket(Bucket=bucket)
    return open_storage(f"s3://{bucket}/some/prefix")


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        found = request.getfixturevalue("s3")
        assert isinstance(found, Storage)
        return found
    return open_storage(str(tmp_path / "store"))


@pytest.fixture
def serve(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[type[BaseHTTPRequestHandler]], str]]:
    """Put a server of one's own behind S3's endpoint."""
    servers: list[ThreadingHTTPServer] = []

    def start(handler: type[BaseHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        return endpoint

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
