"""The store against a real S3 server: what is cut off, raced for or refused leaves nothing wrong and says so once."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from podium.components.study.ledger import Ledger
from podium.trainer.trial.errors import StorageError, UserError
from podium.trainer.trial.storage import MANIFEST, open_storage, put_folder

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _environment(cluster, monkeypatch):
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)


class Cutter:
    """A way to the S3 server that breaks off every connection once `limit` bytes of requests went through it."""

    def __init__(self, host: str, port: int, limit: int) -> None:
        self._target, self.left = (host, port), limit
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                threading.Thread(target=self._copy, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._copy, args=(server, client, False), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if counts:
                    self.left -= len(data)
                    if self.left < 0:
                        break
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        self._listener.close()


def test_an_upload_cut_off_half_way_leaves_no_manifest_and_the_next_one_completes(
    cluster, store, tmp_path, monkeypatch
):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(4):
        (folder / f"shard-{number}.bin").write_bytes(os.urandom(3 << 20))
    host, _, port = cluster.s3_endpoint.removeprefix("http://").partition(":")
    cutter = Cutter(host, int(port), limit=5 << 20)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cutter.port}")
    monkeypatch.setattr("podium.trainer.trial.storage.s3.ATTEMPTS", 2)
    with pytest.raises(StorageError) as cut:
        put_folder(open_storage(f"{store}/data"), folder, "")
    cutter.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", cluster.s3_endpoint)
    left = open_storage(f"{store}/data").list()
    print(f"cut off after 5 of 12 MB: {cut.value}; there: {left}")
    assert MANIFEST not in left
    put_folder(open_storage(f"{store}/data"), folder, "")
    there = open_storage(f"{store}/data")
    assert MANIFEST in there.list()
    for path in folder.iterdir():
        assert there.read_bytes(path.name) == path.read_bytes()


def append(uri: str) -> bool:
    return Ledger(open_storage(uri)).append("verdict", "ranking", decision="promote", writer=uuid.uuid4().hex)


def test_of_eight_racing_writers_of_one_ledger_entry_one_writes_it(store):
    rounds = 10
    with ThreadPoolExecutor(8) as pool:
        for number in range(rounds):
            uri = f"{store}/run-{number}"
            wrote = list(pool.map(append, [uri] * 8))
            assert len(Ledger(open_storage(uri)).entries("verdict")) == 1
            assert sum(wrote) == 1
            assert len(open_storage(uri).list("ledger")) == 1
    print(f"{rounds} rounds of 8 writers: one entry each")


def refusal(uri: str) -> str:
    with pytest.raises(UserError) as refused:
        open_storage(uri).probe()
    print(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)
    return str(refused.value)


def test_a_wrong_secret_key_is_one_clear_error(store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-key")
    assert "the secret key is wrong" in refusal(store)


def test_an_unknown_access_key_is_one_clear_error(store, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    assert "the access key is not known to the server" in refusal(store)


def test_a_missing_bucket_is_one_clear_error():
    assert "the bucket does not exist" in refusal("s3://podium-t-never-made/store")


@pytest.fixture
def read_only(cluster, tmp_path) -> Iterator[str]:
    """The endpoint of a second server, which writes nothing, with the bucket `kept`."""
    (tmp_path / "buckets" / "kept").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    keys = {"ROOT_ACCESS_KEY": cluster.access_key, "ROOT_SECRET_KEY": cluster.secret_key}
    options = ["--port", f"127.0.0.1:{port}", "--region", cluster.region, "--readonly"]
    server = subprocess.Popen(
        ["versitygw", *options, "posix", str(tmp_path / "buckets")],
        env={**os.environ, **keys},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


def test_a_read_only_bucket_is_one_clear_error(read_only, wait_for, monkeypatch):
    def serves() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(read_only.rpartition(":")[2]))) == 0

    wait_for("the read-only server answers", serves, 30)
    monkeypatch.setenv("AWS_ENDPOINT_URL", read_only)
    assert "access denied" in refusal("s3://kept/store")


def test_an_endpoint_where_nobody_listens_is_one_clear_error(store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "can't be reached" in refusal(store)


def test_a_downloaded_file_is_whole(store, tmp_path: Path):
    there = open_storage(store)
    data = os.urandom(40 << 20)  # three parts
    (tmp_path / "sent").write_bytes(data)
    there.upload(tmp_path / "sent", "big")
    there.download("big", tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == data
