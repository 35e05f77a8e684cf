"""What a writer killed in the middle leaves, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from podium.trainer.trial.process import (
    SCRATCH,
    host_identity,
    remove_dead_scratch,
    scratch_folder,
    scratch_name,
    writer_is_alive,
)
from podium.trainer.trial.storage import Storage, open_storage, remove_leftovers
from podium.trainer.trial.storage.s3 import S3Storage

KILLED = """
import os, signal, sys
from pathlib import Path
from podium.trainer.trial.process import scratch_folder, scratch_name
from podium.trainer.trial.storage import open_storage
store = open_storage(sys.argv[1])
big = Path(sys.argv[2])
with big.open("wb") as file:
    file.truncate(1 << 26)
store.root.mkdir(parents=True, exist_ok=True)
os.replace = Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with scratch_folder("run") as folder:
    (folder / "weights").write_bytes(b"half")
    store.upload(big, "checkpoints/ckpt-step-5.pt")
"""


def run_killed(root: Path, scratch: Path) -> None:
    (scratch / "tmp").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(scratch / "big")],
        env={**os.environ, "TMPDIR": str(scratch / "tmp")},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


def scratch_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.name.startswith(SCRATCH))


def test_a_writer_killed_twenty_times_leaves_nothing_once_the_next_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_storage(str(tmp_path / "store"))
    for _ in range(20):
        run_killed(tmp_path / "store", tmp_path)
    assert len(scratch_below(tmp_path / "store")) == 20
    assert all(item.alive is False for item in store.leftovers())
    remove_leftovers(store, "checkpoints/")
    assert scratch_below(tmp_path / "store") == []
    # the local folder of a remote store's checkpoints: each process cleans up after those before it
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with scratch_folder("run") as folder:
        assert list((tmp_path / "tmp").iterdir()) == [folder]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    store = open_storage(str(tmp_path))
    mine = tmp_path / scratch_name("lease.json")
    mine.write_text("half")
    assert [(item.key, item.alive) for item in store.leftovers()] == [(mine.name, True)]
    remove_leftovers(store)
    assert mine.exists()


def test_a_writer_of_another_host_is_known_by_its_age_alone(tmp_path: Path) -> None:
    store = open_storage(str(tmp_path))
    old, new = tmp_path / "a" / f"{SCRATCH}0badcafe-17-4711-x", tmp_path / "a" / f"{SCRATCH}0badcafe-18-4711-x"
    old.parent.mkdir()
    for path in (old, new):
        path.write_text("half")
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    assert [item.alive for item in store.leftovers()] == [False, None]
    remove_leftovers(store, "b/")
    assert scratch_below(tmp_path) == [new.name]
    remove_leftovers(store, "a/")  # here the caller holds the lease
    assert scratch_below(tmp_path) == []


def test_a_half_copied_folder_is_a_leftover_too(tmp_path: Path) -> None:
    folder = tmp_path / scratch_name()
    folder.mkdir()
    (folder / "part").write_text("half")
    store = open_storage(str(tmp_path))
    (item,) = store.leftovers()
    item.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_is_cleaned_of_what_the_dead_left_and_of_nothing_else(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    host = scratch_name().removeprefix(SCRATCH).split("-")[0]
    dead, living = tmp_path / f"{SCRATCH}{host}-{child.pid}-1-shard.bin", tmp_path / scratch_name("shard.bin")
    for path in (dead, living, tmp_path / "shard.bin"):
        path.write_text("x")
    remove_dead_scratch(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, "shard.bin"])


def test_a_scratch_name_says_whose_it_is() -> None:
    assert host_identity()
    assert writer_is_alive(scratch_name()) is True
    assert writer_is_alive(f"{SCRATCH}123-abc") is None
    assert writer_is_alive(f"{SCRATCH}killed") is None


def test_uploads_in_parts_that_a_killed_writer_began_are_aborted(s3: S3Storage) -> None:
    client = s3._client
    for place in ("trials/a/checkpoints/ckpt-step-5.pt", "trials/b/checkpoints/ckpt-step-5.pt"):
        begun = client.create_multipart_upload(Bucket=s3.bucket, Key=s3._name(place))
        client.upload_part(
            Bucket=s3.bucket, Key=s3._name(place), UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * 100
        )
    assert [item.key for item in s3.leftovers("trials/a")] == ["trials/a/checkpoints/ckpt-step-5.pt"]
    own = s3.child("trials/a")
    remove_leftovers(own, "checkpoints/")
    assert [item.key for item in s3.leftovers()] == ["trials/b/checkpoints/ckpt-step-5.pt"]
    for item in s3.leftovers():
        item.remove()
        item.remove()  # by another at the same time
    assert s3.leftovers() == []


def test_only_what_is_old_is_taken_from_others_on_s3(s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podium.trainer.trial.storage.s3.STALE_SECONDS", 1e12)  # the stand-in dates all uploads to 2010
    s3._client.create_multipart_upload(Bucket=s3.bucket, Key=s3._name("a/b"))
    remove_leftovers(s3, "c/")
    assert [(item.key, item.alive) for item in s3.leftovers()] == [("a/b", None)]


def test_a_store_that_can_not_say_is_no_failure(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from podium.trainer.trial.errors import StorageError

    def away(*_: object) -> None:
        raise StorageError("away")

    monkeypatch.setattr(type(storage), "leftovers", away)
    remove_leftovers(storage)
