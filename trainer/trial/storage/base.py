"""The store: objects named by relative keys, on a file system or in S3, with the same promises on both.

An object is whole or absent at every instant. `create` writes an object once: of any number of writers exactly one is
told True. Names that begin with `.tmp-` are a writer's scratch and are never listed. Folders of files travel with a
manifest of sha256 sums that is written last, so a folder without one does not exist yet.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podium.trainer.trial.errors import NotFoundError, StorageError, UserError
from podium.trainer.trial.process import remove_dead_scratch, scratch_name

MANIFEST = "manifest.json"
TAIL_LINES, TAIL_BYTES = 20, 1 << 16
"""Of a log: what is shown where something failed, and how much of a file's end is read for it."""


_REQUIRED: Any = object()


@dataclass(frozen=True)
class Leftover:
    """What a writer has begun and not finished: a scratch file, or an upload in parts."""

    key: str
    bytes: int | None
    """None where the store does not say."""
    alive: bool | None
    """Whether its writer lives: False too where nothing has touched it for longer than any write takes, None where that
    can't be told."""
    remove: Callable[[], None]


class Storage(ABC):
    """A place for objects, bound to a root. Keys are relative and "/"-separated. Every failure is a StorageError."""

    uri: str
    """The root: `file:///…` or `s3://bucket/prefix`, without a slash at the end."""

    @abstractmethod
    def read_bytes(self, key: str) -> bytes:
        """The whole object. Raises NotFoundError."""

    @abstractmethod
    def write_bytes(self, key: str, data: bytes) -> None:
        """Write or replace the whole object; a reader sees the old one or the new one, nothing between."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists. True for exactly one of any number of racing writers."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Every key in the folder `prefix` and below it, sorted. Empty where there is no such folder."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; no error where it is absent."""

    @abstractmethod
    def delete_folder(self, prefix: str) -> None:
        """Remove every key in the folder `prefix`, scratch included; no error where it is absent."""

    @abstractmethod
    def leftovers(self, prefix: str = "") -> Sequence[Leftover]:
        """Every unfinished write in the folder `prefix` and below it.

        Those of living writers are among them. What can't be told may be removed by who holds the folder's lease.
        """

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Write a local file as an object, whole or not at all."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file, whole or not at all. Raises NotFoundError."""

    @abstractmethod
    def stamp(self, key: str) -> str:
        """A text that changes when the object does, read without its bytes. Raises NotFoundError."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes of the object. Raises NotFoundError."""

    @abstractmethod
    def local_path(self, key: str) -> Path | None:
        """The path of the object on this machine, or None where it is not in a file system."""

    @abstractmethod
    def child(self, prefix: str) -> Storage:
        """The same store with a root further down."""

    @abstractmethod
    def probe(self) -> None:
        """Refuse a store that can't serve before anything is written to it. Raises UserError with the reason."""

    def read_text(self, key: str) -> str:
        """The object as UTF-8 text. Raises NotFoundError."""
        return self.read_bytes(key).decode()

    def read_json(self, key: str, default: Any = _REQUIRED) -> Any:
        """The object as JSON; `default` where it does not exist. Without one raises NotFoundError.

        Raises StorageError where it is not JSON.
        """
        try:
            return json.loads(self.read_bytes(key))
        except NotFoundError:
            if default is _REQUIRED:
                raise
            return default
        except ValueError as error:
            raise StorageError(f"{join_uri(self.uri, key)}: not JSON: {error}") from None

    def read_end(self, key: str, most_bytes: int = TAIL_BYTES) -> bytes:
        """The last bytes of the object, `most_bytes` of them or more. Raises NotFoundError."""
        return self.read_bytes(key)

    def read_tail(self, key: str, lines: int = TAIL_LINES) -> builtins.list[str]:
        """The last lines of a log; none where it was never written."""
        try:
            return _last_lines(self.read_end(key), lines)
        except NotFoundError:
            return []

    def write_text(self, key: str, text: str) -> None:
        """Write UTF-8 text."""
        self.write_bytes(key, text.encode())

    def write_json(self, key: str, value: Any) -> None:
        """Write JSON, indented by 2, with a newline at the end, keys in the order given."""
        self.write_bytes(key, to_json(value))


def read_end(path: Path, most_bytes: int = TAIL_BYTES) -> bytes:
    """The last bytes of a file on this machine. Raises FileNotFoundError."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
        return file.read()


def read_tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log on this machine; none where it was never written."""
    try:
        return _last_lines(read_end(path), lines)
    except FileNotFoundError:
        return []


def _last_lines(log: bytes, lines: int) -> list[str]:
    # the end of a file may begin in the middle of a character
    return log.decode(errors="replace").splitlines()[-lines:]


def remove_leftovers(folder: Storage, own: str = "") -> None:
    """Remove what dead writers left in `folder`, and below the prefix `own` also what can't be told.

    The caller holds the lease of what is below `own`, so a writer there that is not known to live is dead. Best effort:
    a store that can't list or remove it now is cleaned by the next attempt, or by `podium gc`.
    """
    with suppress(StorageError):
        for item in folder.leftovers():
            if item.alive is False or (item.alive is None and item.key.startswith(own)):
                item.remove()


def to_json(value: Any) -> bytes:
    """The bytes that `write_json` writes. Raises ValueError for a value that is not finite: JSON has no word for it."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def check_key(key: str) -> str:
    """A key that stays below its root; anything else is our own mistake."""
    parts = key.split("/")
    if not key or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"key must be relative, without empty, '.' or '..' parts, got {key!r}")
    return key


def normalise_uri(uri: str) -> str:
    """A plain path as an absolute `file://` URI; `s3://` stays, without a slash at the end. Raises UserError.

    Paths are taken as they are, without percent-encoding, so that normalising twice changes nothing.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if not uri.strip():
        raise UserError(f"a store must be a path, file:///path or s3://bucket/prefix, got {uri!r}")
    if scheme is None:
        return "file://" + os.path.abspath(os.path.expanduser(uri))
    if scheme[1] == "s3":
        bucket, _, prefix = uri[len("s3://") :].partition("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):
            raise UserError(f"an S3 store must be s3://bucket/prefix, got {uri!r}")
        return "/".join(["s3:/", bucket, *(part for part in prefix.split("/") if part)])
    if scheme[1] == "file":
        path = uri[len("file://") :]
        if not path.startswith("/"):
            raise UserError(f"a file URI must be file:///absolute/path, got {uri!r}")
        return "file://" + os.path.abspath(path)
    raise UserError(f"a store must be a path, file:///path or s3://bucket/prefix, got {uri!r}")


def join_uri(uri: str, *parts: str) -> str:
    """`s3://b/p` and `x/y` as `s3://b/p/x/y`; plain paths become `file://` URIs."""
    return "/".join([normalise_uri(uri).rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def split_uri(uri: str) -> tuple[str, str]:
    """The folder of an object's URI and its name: `file:///a/b.json` as (`file:///a`, `b.json`)."""
    folder, _, name = normalise_uri(uri).rpartition("/")
    return folder, name


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_files(storage: Storage, folder: Path, prefix: str) -> dict[str, dict[str, Any]]:
    """Upload every file of a local folder but a manifest; returns `{name: {"bytes", "sha256"}}` for one."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != MANIFEST]
    target = storage.child(prefix) if prefix else storage
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: target.upload(folder / name, name), names))
        sums = list(pool.map(lambda name: sha256_of(folder / name), names))
    sizes = [(folder / name).stat().st_size for name in names]
    return {name: {"bytes": size, "sha256": sha} for name, size, sha in zip(names, sizes, sums, strict=True)}


def put_folder(storage: Storage, folder: Path, prefix: str) -> None:
    """Upload a local folder; its manifest goes last, so that an upload cut off half way does not exist."""
    files = put_files(storage, folder, prefix)
    storage.write_json(f"{prefix}/{MANIFEST}" if prefix else MANIFEST, {"files": files})


def get_folder(storage: Storage, prefix: str, cache: Path) -> Path:
    """A local folder with what `put_folder` stored, its sums verified: the folder itself, or a copy in `cache`.

    The copy is named by the manifest's content, so it is fetched once. Raises NotFoundError where there is no manifest
    (never stored, or cut off half way), StorageError where a file is not what the manifest says.
    """
    source = storage.child(prefix) if prefix else storage
    manifest = source.read_bytes(MANIFEST)
    files: dict[str, dict[str, Any]] = json.loads(manifest)["files"]
    local = source.local_path(MANIFEST)
    if local is not None:
        _verify(local.parent, files, source.uri)
        return local.parent
    target = cache / hashlib.sha256(manifest).hexdigest()[:16]
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    remove_dead_scratch(cache)
    scratch = cache / scratch_name()
    scratch.mkdir()
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: source.download(name, scratch / check_key(name)), files))
        _verify(scratch, files, source.uri)
        (scratch / MANIFEST).write_bytes(manifest)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # another process fetched the same content first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _verify(folder: Path, files: dict[str, dict[str, Any]], uri: str) -> None:
    def check(name: str) -> str | None:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != files[name]["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, the manifest says {files[name]['bytes']}"
        return None if sha256_of(path) == files[name]["sha256"] else f"{name} does not have the manifest's sha256"

    with ThreadPoolExecutor(4) as pool:
        wrong = [what for what in pool.map(check, sorted(files)) if what]
    if wrong:
        raise StorageError(f"{uri}: damaged: {'; '.join(wrong)}")
