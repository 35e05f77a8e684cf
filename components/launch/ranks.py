"""One trial over several devices of one machine: a process each, `ranks.py COUNT ARGV…`.

It sets what torchrun sets (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and does what
torchrun does not: it passes a rank's exit code on (torchrun ends with 1 whatever it was, and 75 and 2 mean something to
the conductor), its ranks die with it, and it needs no import of torch. The loss of one rank ends all of them: the
others would wait for it for ever.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 20.0
"""Time for the other ranks to save after one has ended on its own."""
RUN_AGAIN = 75
"""`errors.ExitCode.RUN_AGAIN`, repeated: this file also runs as a script, without the package."""


@dataclass(frozen=True)
class Group:
    """The ranks of a trial, and which of them run here."""

    local: int
    """Ranks on each machine."""
    nodes: int = 1
    node: int = 0
    """Index of this machine."""
    address: str = "127.0.0.1"
    """Where the first rank listens."""
    port: int | None = None
    """By default a free one of this machine."""


def main() -> None:
    """Run the ranks; exit with the first code that is not 0."""
    count, *argv = sys.argv[1:]
    sys.exit(run_ranks(Group(int(count)), argv))


def run_ranks(group: Group, argv: list[str], output: int | None = None) -> int:
    """Start this machine's ranks of argv and wait for them. Returns the first exit code that is not 0, else 0.

    `output` is the descriptor that they write to; by default this process's own.
    """
    child = Path(__file__).with_name("child.py")
    world = group.local * group.nodes
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(group.local)}
    shared["MASTER_ADDR"], shared["MASTER_PORT"] = group.address, str(group.port or _free_port())
    ranks: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        _signal_all(ranks, signal.SIGTERM)

    # Each rank is told to save: a signal that reached only this process would leave the ranks training.
    signal.signal(signal.SIGTERM, pass_on)
    for local_rank in range(group.local):
        own = {"RANK": str(group.node * group.local + local_rank), "LOCAL_RANK": str(local_rank)}
        env = {**os.environ, **(shared | own if world > 1 else {})}
        command = [sys.executable, "-I", "-S", str(child), str(os.getpid()), *argv]
        ranks.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))
    if told:  # while they were being started
        _signal_all(ranks, signal.SIGTERM)

    codes: queue.SimpleQueue[int] = queue.SimpleQueue()
    for rank_process in ranks:
        threading.Thread(target=lambda process=rank_process: codes.put(process.wait()), daemon=True).start()
    first = 0
    for _ in ranks:
        code = codes.get()
        if code != 0 and first == 0:
            first = code
            _signal_all(ranks, signal.SIGTERM)
            timer = threading.Timer(GRACE_SECONDS, _signal_all, (ranks, signal.SIGKILL))
            timer.daemon = True
            timer.start()
    if told and first == -signal.SIGTERM:
        return RUN_AGAIN  # it was told to end before it could listen: nothing was lost, and nothing is wrong with it
    # A rank that a signal ended: as a shell reports it, since an exit code can't be negative.
    return first if first >= 0 else 128 - first


def _signal_all(ranks: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for rank in ranks:
        rank.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
