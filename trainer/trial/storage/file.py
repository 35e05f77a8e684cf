"""The store on a file system. Crash-safe by link(2) and rename(2): a name appears only when its bytes are on disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from podium.trainer.trial.errors import NotFoundError, StorageError, UserError
from podium.trainer.trial.process import SCRATCH, scratch_name, writer_is_alive
from podium.trainer.trial.storage.base import TAIL_BYTES, Leftover, Storage, check_key, read_end

STALE_SECONDS = 600.0
"""Age after which a scratch file of another host counts as abandoned. No write takes that long."""


class FileStorage(Storage):
    """Objects as files below `root`, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = f"file://{root}"

    def read_bytes(self, key: str) -> bytes:
        """See Storage."""
        path = self._path(key)
        with _in_words(path):
            return path.read_bytes()

    def read_end(self, key: str, most_bytes: int = TAIL_BYTES) -> bytes:
        """See Storage."""
        path = self._path(key)
        with _in_words(path):
            return read_end(path, most_bytes)

    def write_bytes(self, key: str, data: bytes) -> None:
        """See Storage."""
        path = self._path(key)
        with _in_words(path), _scratch(path, lambda temp: _write(temp, data)) as temp:
            _replace(temp, path)

    def create(self, key: str, data: bytes) -> bool:
        """See Storage. link(2) refuses an existing name, and what it links is complete: no half object is visible."""
        path = self._path(key)
        if path.exists():
            return False
        with _in_words(path), _scratch(path, lambda temp: _write(temp, data)) as temp:
            try:
                os.link(temp, path)
            except FileExistsError:
                return False
            _sync_folder(path.parent)
        return True

    def exists(self, key: str) -> bool:
        """See Storage."""
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> list[str]:
        """See Storage."""
        top = self._path(prefix.rstrip("/")) if prefix.rstrip("/") else self.root
        keys = []
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(SCRATCH)]
            place = Path(folder).relative_to(self.root)
            keys += [(place / name).as_posix() for name in names if not name.startswith(SCRATCH)]
        return sorted(keys)

    def delete(self, key: str) -> None:
        """See Storage."""
        path = self._path(key)
        with _in_words(path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def delete_folder(self, prefix: str) -> None:
        """See Storage."""
        path = self._path(prefix.rstrip("/"))
        with _in_words(path), suppress(FileNotFoundError):
            shutil.rmtree(path)

    def leftovers(self, prefix: str = "") -> Sequence[Leftover]:
        """See Storage. A writer on another host is taken for dead by the file system's own clock alone."""
        top = self._path(prefix.rstrip("/")) if prefix.rstrip("/") else self.root
        found: list[Leftover] = []
        now: float | None = None
        for folder, folders, names in os.walk(top):
            whole = [name for name in folders if name.startswith(SCRATCH)]
            folders[:] = [name for name in folders if name not in whole]
            for path in (Path(folder, name) for name in (*whole, *names) if name.startswith(SCRATCH)):
                with suppress(FileNotFoundError):  # its writer has finished meanwhile
                    status, alive = path.lstat(), writer_is_alive(path.name)
                    if alive is None:
                        now = now if now is not None else _now_of(top)
                        alive = False if now is not None and now - status.st_mtime > STALE_SECONDS else None
                    key = path.relative_to(self.root).as_posix()
                    found.append(Leftover(key, status.st_size, alive, _remover(path)))
        return sorted(found, key=lambda item: item.key)

    def upload(self, path: Path, key: str) -> None:
        """See Storage."""
        target = self._path(key)
        with _in_words(target), _scratch(target, lambda temp: _copy(path, temp)) as temp:
            _replace(temp, target)

    def download(self, key: str, path: Path) -> None:
        """See Storage."""
        source = self._path(key)
        if not source.is_file():
            raise NotFoundError(f"{source}: not there")
        with _in_words(source), _scratch(path, lambda temp: _copy(source, temp)) as temp:
            _replace(temp, path)

    def stamp(self, key: str) -> str:
        """See Storage."""
        path = self._path(key)
        with _in_words(path):
            status = path.stat()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def size(self, key: str) -> int:
        """See Storage."""
        path = self._path(key)
        with _in_words(path):
            return path.stat().st_size

    def local_path(self, key: str) -> Path:
        """See Storage."""
        return self._path(key)

    def child(self, prefix: str) -> FileStorage:
        """See Storage."""
        return FileStorage(self._path(prefix.rstrip("/")))

    def probe(self) -> None:
        """See Storage. The folder itself is made by the first write."""
        place = self.root
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise UserError(f"store {self.uri}: {place} is not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"store {self.uri}: {place} can't be written by this user")

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)


@contextmanager
def _scratch(target: Path, fill: Callable[[Path], None]) -> Iterator[Path]:
    """A filled and synced file beside `target`, removed at the end unless it was renamed."""
    temp = target.parent / scratch_name()
    try:
        try:
            fill(temp)
        except FileNotFoundError:  # the first object of its folder
            target.parent.mkdir(parents=True, exist_ok=True)
            fill(temp)
        yield temp
    finally:
        with suppress(OSError):
            temp.unlink()


def _now_of(folder: Path) -> float | None:
    """The time by the clock that stamps the folder's files, which on a network share is not this machine's."""
    path = folder / scratch_name()
    try:
        path.touch()
        return path.stat().st_mtime
    except OSError:
        return None
    finally:
        path.unlink(missing_ok=True)


def _remover(path: Path) -> Callable[[], None]:
    def remove() -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    return remove


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def _replace(temp: Path, path: Path) -> None:
    temp.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"{path}: not there") from None
    except OSError as error:
        reason = {
            errno.EACCES: "permission denied",
            errno.EROFS: "the file system is read-only",
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EISDIR: "is a folder, not an object",
            errno.ENOTDIR: "a part of the path is a file, not a folder",
        }.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
        raise StorageError(f"{path}: {reason}") from None
