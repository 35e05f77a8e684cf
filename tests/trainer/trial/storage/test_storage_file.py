"""What only a file system can get wrong."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from podium.trainer.trial.errors import StorageError, UserError
from podium.trainer.trial.storage import open_storage

WRITER = """
import itertools, sys
from pathlib import Path
from podium.trainer.trial.storage import open_storage
store = open_storage(sys.argv[1])
big = Path(sys.argv[1] + "-source")
print("ready", flush=True)
for number in itertools.count():
    body = f"{number}\\n".encode() * 200_000
    store.write_bytes("replaced", body)
    store.create(f"once/{number % 7}", body)
    big.write_bytes(body)
    store.upload(big, "uploaded")
    store.delete(f"once/{(number + 3) % 7}")
"""


def test_a_writer_killed_at_any_instant_leaves_no_half_object(tmp_path: Path) -> None:
    store = open_storage(str(tmp_path / "store"))
    chance = random.Random(5)
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "store")], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.06))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for key in store.list():
            lines = store.read_bytes(key).split(b"\n")
            assert len(lines) == 200_001
            assert len(set(lines[:-1])) == 1


def test_probe_accepts_a_folder_that_is_still_to_be_made_and_makes_nothing(tmp_path: Path) -> None:
    open_storage(str(tmp_path / "new" / "store")).probe()
    assert list(tmp_path.iterdir()) == []


def test_probe_refuses_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        open_storage(str(tmp_path / "file" / "store")).probe()


def test_probe_refuses_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may write anywhere, so the answer of the system is made up
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match="can't be written by this user"):
        open_storage(str(tmp_path / "store")).probe()


def test_errors_of_the_system_are_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        open_storage(str(tmp_path)).write_bytes("file/x", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="is a folder, not an object"):
        open_storage(str(tmp_path)).read_bytes("folder")


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_storage(str(tmp_path))
    store.write_bytes("a", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        store.write_bytes("a", b"new")
    monkeypatch.undo()
    assert store.read_bytes("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
