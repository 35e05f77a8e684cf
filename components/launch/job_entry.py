"""What runs first in a trial's pod: `python -m podium.components.launch.job_entry OPTIONS -- ARGV…`.

It starts the pod's ranks, passes SIGTERM on to them and their exit code to Kubernetes, and puts what they print into
the run's store, where `podium logs` reads it. The pod does that itself, every half minute and at its end, because then
it costs no call to the API server, it works with no conductor alive, and no line of a pod that is deleted is lost.
It imports nothing before the ranks have been started: a trial does not wait for its log.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from podium.components.launch.ranks import Group, run_ranks
from podium.trainer.trial.errors import ExitCode

FIRST_SECONDS, INTERVAL_SECONDS, LAST_SECONDS = 5.0, 30.0, 30.0
"""When the log is put for the first time, how often after that, and how long the end waits for the last time."""
INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
"""Which of an Indexed Job's pods this is; set by the Job controller."""


def main() -> None:
    """Run the ranks of this pod and exit as they did."""
    # The kernel keeps signals that nobody handles from a pod's first process; the ranks' start sets another handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.RUN_AGAIN))
    options = _parser().parse_args()
    node = int(os.environ.get(INDEX_VARIABLE, "0"))
    if options.sources:
        _check_sources(options.sources)
    if options.nodes > 1 and not _find_peers(options.first, options.nodes, options.patience):
        print(f"not all {options.nodes} pods had an address within {options.patience:g} s", flush=True)
        sys.exit(ExitCode.RUN_AGAIN)
    group = Group(options.ranks, options.nodes, node, options.first, options.port)
    if node != 0:
        sys.exit(run_ranks(group, options.argv))
    with TemporaryDirectory(prefix="podium-log-") as folder:
        log = LogToStore(options.log, Path(folder) / "log")
        code = run_ranks(group, options.argv, log.descriptor)
        log.close()
    sys.exit(code)


class LogToStore:
    """Passes on what is written to a pipe, and puts it into the store behind what earlier attempts wrote."""

    def __init__(self, uri: str, path: Path) -> None:
        self._uri, self._path = uri, path
        self._end, self._changed = threading.Event(), False
        read, self.descriptor = os.pipe()
        self._copier = threading.Thread(target=self._copy, args=(read,), daemon=True)
        self._putter = threading.Thread(target=self._put_now_and_then, daemon=True)
        self._copier.start()
        self._putter.start()

    def close(self) -> None:
        """Put the rest. Call it when every writer has ended."""
        os.close(self.descriptor)
        self._copier.join(LAST_SECONDS)
        self._end.set()
        self._putter.join(LAST_SECONDS)

    def _copy(self, read: int) -> None:
        with self._path.open("ab", buffering=0) as log, os.fdopen(read, "rb", buffering=0) as pipe:
            while chunk := pipe.read(1 << 16):
                log.write(chunk)
                self._changed = True
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()

    def _put_now_and_then(self) -> None:
        from podium.trainer.trial.errors import NotFoundError, StorageError
        from podium.trainer.trial.storage import open_storage, split_uri

        folder, name = split_uri(self._uri)
        ended = self._end.wait(FIRST_SECONDS)
        storage, before = open_storage(folder), None
        while True:
            try:
                if before is None:
                    try:
                        before = storage.read_bytes(name)
                    except NotFoundError:
                        before = b""
                if self._changed:
                    self._changed = False
                    storage.write_bytes(name, before + self._path.read_bytes())
            except StorageError:
                self._changed = True  # a log is worth no trial: a store that is away gets it with the next put
            if ended and self._changed:
                time.sleep(1.0)  # nobody puts it after this: try again for as long as `close` waits
            elif ended:
                return
            ended = self._end.wait(INTERVAL_SECONDS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=__spec__.name if __spec__ else None, description=__doc__)
    parser.add_argument("--log", required=True, help="URI of the task's log")
    parser.add_argument("--ranks", type=int, default=1, help="processes in this pod")
    parser.add_argument("--nodes", type=int, default=1, help="pods of the trial")
    parser.add_argument("--first", default="127.0.0.1", help="host name of the first pod")
    parser.add_argument("--port", type=int, help="where its first rank listens")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for all pods")
    parser.add_argument("--sources", help="digest of the trainer's sources that this image must have")
    parser.add_argument("argv", nargs="+", help="what each rank runs")
    return parser


def _check_sources(wanted: str) -> None:
    from podium.trainer.builtin.training_path import trainer_digest

    if trainer_digest() != wanted:
        print(
            f"this image's trainer (sources {trainer_digest()}) is not the one that the trial's fingerprint was made "
            f"from ({wanted}): build the image from the conductor's commit, or set check_sources: false in PODIUM_JOBS",
            flush=True,
        )
        sys.exit(ExitCode.USER_ERROR)


def _find_peers(first: str, nodes: int, patience_seconds: float) -> bool:
    """Wait until every pod of the trial has an address: a pod that waits for its image must not cost the others' try.

    The pods' names differ by their index alone: the first's is `<job>-0.<service>`.
    """
    host, _, domain = first.partition(".")
    names = [f"{host.removesuffix('-0')}-{index}.{domain}" for index in range(nodes)]
    deadline = time.monotonic() + patience_seconds
    while names and time.monotonic() < deadline:
        names = [name for name in names if not _resolves(name)]
        if names:
            time.sleep(0.5)
    return not names


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        return False
    return True


if __name__ == "__main__":
    main()
