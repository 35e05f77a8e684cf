"""A process that has imported PyTorch once and forks a trial for every one that is asked for.

Importing torch takes about 3.5 s of a core, which is most of a short trial on a CPU; a forked trial starts in 0.1 s and
computes the same, bit for bit: nothing is trained, seeded or threaded before the fork. Only for trials on a CPU under
Linux: CUDA does not outlive a fork. The process dies with its launcher and its trials die with it, by the kernel's
parent-death signal. Where it dies by itself, the launcher goes on without it.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from podium.components.launch import child

MODULE = "podium.trainer"


def serves(argv: Sequence[str]) -> bool:
    """Whether a command is one that can be forked: training by the trainer itself, and the system can."""
    return sys.platform == "linux" and list(argv[:4]) == [sys.executable, "-m", MODULE, "train"]


class WarmProcess:
    """The launcher's side. Start it from the main thread, as it dies with the thread that starts it."""

    def __init__(self, over: Callable[[str, int | None], None]) -> None:
        """`over` is called from a thread with a task's name and exit code; None where it was lost with the process."""
        self._over = over
        self._tasks: set[str] = set()
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "podium.components.launch.warm", str(theirs.fileno())]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # numpy's threads must not be there at a fork; and a trial on a CPU must not see a GPU
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        threading.Thread(target=self._listen, daemon=True, name="warm process").start()

    @property
    def alive(self) -> bool:
        """Whether it can start tasks."""
        return self._process.poll() is None

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Start a task; it is reported to `over` when it ends, also where it could not be started any more."""
        with self._lock:
            self._tasks.add(name)
        self._say({"start": name, "argv": list(argv[2:]), "env": dict(env), "log": str(log)})

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a task, if it still runs."""
        self._say({"signal": number, "task": name})

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _say(self, message: dict[str, object]) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # it is gone, and the listener reports what was lost
            return

    def _listen(self) -> None:
        try:
            with self._socket.makefile("rb") as messages:
                for line in messages:
                    if line.endswith(b"\n"):
                        message = json.loads(line)
                        self._end(message["task"], message["code"])
        except OSError:
            pass
        self._process.wait()
        with self._lock:
            lost = list(self._tasks)
        for name in lost:
            self._end(name, None)

    def _end(self, name: str, code: int | None) -> None:
        with self._lock:
            known = name in self._tasks
            self._tasks.discard(name)
        if known:
            self._over(name, code)


def main() -> None:
    """Import, then fork for every task that is asked for; in the fork, become the trainer."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher, which tells the tasks
    import podium.trainer.cli
    import podium.trainer.run  # noqa: F401

    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page that it looks at
    argv = _serve(requests)
    if argv is not None:
        sys.argv = [MODULE, *argv]
        runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def _serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request. Returns a task's arguments in its own process, None in this one when nobody asks more."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    tasks: dict[int, str] = {}
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if woken in ready:
                os.read(woken, 4096)
                _report(requests, tasks)
            if requests.fileno() not in ready:
                continue
            received = requests.recv(1 << 16)
            if not received:
                return None
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "signal" in message:
                    for pid in [pid for pid, name in tasks.items() if name == message["task"]]:
                        os.kill(pid, message["signal"])
                    continue
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    _become(message, parent, (requests.detach(), woken, wake))
                    argv: list[str] = message["argv"]
                    return argv[1:]
                tasks[pid] = message["start"]


def _report(requests: socket.socket, tasks: dict[int, str]) -> None:
    while tasks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        answer = {"task": tasks.pop(pid), "code": os.waitstatus_to_exitcode(status)}
        requests.sendall(json.dumps(answer).encode() + b"\n")


def _become(message: dict[str, object], parent: int, inherited: Sequence[int]) -> None:
    """Leave nothing of the parent's but what it has imported."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    child.die_with_parent(parent)
    os.setsid()
    for descriptor in inherited:
        os.close(descriptor)
    log = os.open(str(message["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    environment = message["env"]
    assert isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)


if __name__ == "__main__":
    main()
