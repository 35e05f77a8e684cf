"""Shards that lie elsewhere, on this machine while they are needed: a cache bounded by bytes.

Every process of a machine shares it. Whoever first asks for a shard fetches it under a lock, the others wait, so no
place is asked twice; a name appears only when its bytes were checked. What was not used for longest goes first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from podium.trainer.builtin.data.manifest import HEADER_BYTES, Shard, default_cache
from podium.trainer.trial.errors import ConfigError, DataError, StorageError
from podium.trainer.trial.process import remove_dead_scratch, scratch_name
from podium.trainer.trial.section import parse_count
from podium.trainer.trial.storage import open_storage, sha256_of

HUB = "hub://"
"""Begins the source of a dataset on the hub: `hub://owner/name@commit`."""
LIMIT_VARIABLE = "PODIUM_SHARD_CACHE"
DEFAULT_LIMIT = "20G"
ATTEMPTS = 5
FIRST_WAIT_SECONDS = 1.0


def cache_limit() -> int:
    """Bytes that the cache may hold: `$PODIUM_SHARD_CACHE` (such as 4G), else 20 GB. Raises ConfigError."""
    given = os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT
    try:
        return int(parse_count(given))
    except ValueError as error:
        raise ConfigError(f"{LIMIT_VARIABLE}: {error}") from None


class ShardCache:
    """The shards of one source."""

    def __init__(self, source: str, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        """`folder` and `limit_bytes` are the user's cache and `cache_limit()` by default."""
        self._source = source
        self._folder = folder or default_cache() / "shards"
        self.limit_bytes = cache_limit() if limit_bytes is None else limit_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="podium-shards")
        self._in_use: dict[str, None] = {}

    def path(self, shard: Shard) -> Path:
        """The shard on this machine, fetched if need be. Raises DataError or StorageError where it can't be had."""
        path = self._folder / self._name(shard)
        self._use(path.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if not path.is_file() or path.stat().st_size != size_of(shard):
                self._fetch(shard, path)
            os.utime(path)
        self._evict()
        return path

    def want(self, shard: Shard) -> None:
        """Begin to fetch a shard that will be needed next, beside whatever goes on."""
        self._use(self._name(shard))
        self._thread.submit(self._quietly, shard)

    def close(self) -> None:
        """End the thread, with the fetch that is under way."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _quietly(self, shard: Shard) -> None:
        try:
            self.path(shard)
        except (DataError, StorageError) as error:
            # whoever needs it will ask again, and is told
            print(f"not fetched ahead: {error}", flush=True)

    def _use(self, name: str) -> None:
        """The last two that were asked for are the one at hand and the next: they stay."""
        self._in_use.pop(name, None)
        self._in_use[name] = None
        while len(self._in_use) > 2:
            self._in_use.pop(next(iter(self._in_use)))

    def _fetch(self, shard: Shard, path: Path) -> None:
        from podium.trainer.builtin.data.shards import open_shard  # it imports NumPy: 0.12 s of CPU

        remove_dead_scratch(path.parent)
        temp = path.with_name(scratch_name(path.name))
        try:
            self._download(shard, temp)
            if temp.stat().st_size != size_of(shard):
                raise DataError(
                    f"{self._source}: {shard.file} must have {size_of(shard)} bytes, as when the dataset was prepared, "
                    f"got {temp.stat().st_size}"
                )
            if shard.sha256 is not None and sha256_of(temp) != shard.sha256:
                raise DataError(f"{self._source}: {shard.file} does not have the sha256 that its place gave for it")
            open_shard(temp)
            temp.rename(path)
        finally:
            temp.unlink(missing_ok=True)

    def _download(self, shard: Shard, temp: Path) -> None:
        if self._source.startswith("s3://") and shard.stamp:
            now = open_storage(self._source).stamp(shard.file)
            if now != shard.stamp:
                raise DataError(f"{self._source}: {shard.file} was replaced since the dataset was prepared")
        wait = FIRST_WAIT_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                fetch_shard(self._source, shard.file, temp)
                return
            except (DataError, StorageError) as error:
                if attempt == ATTEMPTS:
                    raise
                print(f"{error}; trying again in {wait:g} s", flush=True)
            time.sleep(wait)
            wait *= 2

    def _evict(self) -> None:
        with _locked(self._folder / ".lock"):
            held = sorted(self._folder.glob("*.bin"), key=lambda path: path.stat().st_mtime_ns)
            total = sum(path.stat().st_size for path in held)
            for path in held:
                if total <= self.limit_bytes:
                    return
                if path.name not in self._in_use:
                    total -= path.stat().st_size
                    path.unlink()  # a process that has it mapped keeps its bytes

    def _name(self, shard: Shard) -> str:
        identity = repr((self._source, shard.file, shard.sha256 or shard.stamp))
        return f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{Path(shard.file).name}"


def size_of(shard: Shard) -> int:
    """Bytes of the file."""
    return HEADER_BYTES + 2 * shard.tokens


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Shards on the hub.


def fetch_shard(source: str, name: str, path: Path) -> None:
    """Copy a shard from its place to a local file, whole or not at all. Raises DataError or StorageError."""
    if not source.startswith(HUB):
        open_storage(source).download(name, path)
        return
    repository, _, commit = source.removeprefix(HUB).partition("@")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise DataError(needs_hub()) from None
    try:
        with tempfile.TemporaryDirectory(prefix=scratch_name("hub"), dir=path.parent) as place:
            got = hf_hub_download(
                repository, name, repo_type="dataset", revision=commit, local_dir=place, endpoint=hub_endpoint()
            )
            os.replace(got, path)
    except Exception as error:  # noqa: BLE001  the library raises errors of three others', with no common base
        raise DataError(f"{source}: {name} can't be fetched ({first_line(error)})") from None


def hub_endpoint() -> str | None:
    """Read at each call: the library reads its environment once, when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def needs_hub() -> str:
    """What to say where the hub's library is missing."""
    return "corpus 'fineweb' from the hub needs the library huggingface_hub; or give fineweb:PATH or fineweb:s3://…"


def first_line(error: Exception) -> str:
    """The first line of an error of another library."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
