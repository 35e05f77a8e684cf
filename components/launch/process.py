"""Tasks as child processes of this one: a trial per free GPU, or `parallel` trials on a CPU."""

from __future__ import annotations

import gc
import json
import os
import queue
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from podium.components.launch import child, ranks
from podium.components.launch.launcher import Task, TaskEnd
from podium.trainer.trial.errors import NotFoundError, StorageError, UserError
from podium.trainer.trial.storage import Storage, read_tail

# A fork server: a process that has imported PyTorch once and forks every trial on a CPU.
#
# Importing torch takes 3.2 s of CPU, most of a short trial. Forked, a trial on a CPU reaches its first step after
# 0.25 s instead of 3.4 s; four trials of 6 steps, one after another, took 7.6 s of CPU instead of 27 s. A forked trial
# computes the same, bit for bit: nothing is trained, seeded or threaded before the fork. Only on Linux and without a
# GPU: CUDA does not survive a fork. The server dies with its launcher and its trials die with it, by the kernel's
# parent-death signal. Where it dies alone, the launcher continues without it.

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
        command = [sys.executable, "-m", "podium.components.launch.process", str(theirs.fileno())]
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
    import podium.trainer.builtin.cli
    import podium.trainer.builtin.run  # noqa: F401

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


LOG_INTERVAL_SECONDS = 30.0
"""How often a log that is not in a file system is put to the store."""


@dataclass
class _Running:
    task: Task
    signal: Callable[[int], None]
    gpus: list[str]
    log: Path
    started: float
    deadline: float | None = None
    """When it is ended if it still runs; None while nobody asked it to stop."""


class ProcessLauncher:
    """Starts tasks as children that die with this process. Use it from the main thread (see `child`)."""

    def __init__(self, storage: Storage, *, slots: int, gpus: Sequence[str] = (), warm: bool = True) -> None:
        """`storage` is the run's, for the logs; `gpus` are the ids that CUDA_VISIBLE_DEVICES takes.

        `warm`: fork trials on a CPU from a process that has imported PyTorch (see `WarmProcess`).
        """
        self.slots = slots
        self._storage = storage
        self._free = list(gpus)
        self._running: dict[str, _Running] = {}
        self._over: queue.SimpleQueue[tuple[str, int | None]] = queue.SimpleQueue()
        self._use_warm = warm
        self._warm: WarmProcess | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._logs_put = time.monotonic()

    def start(self, task: Task) -> None:
        """See Launcher. Raises ValueError for more tasks than slots or devices: our own mistake."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("tasks die with the thread that started them, so only the main one may start them")
        if task.name in self._running or len(self._running) >= self.slots or task.devices > len(self._free):
            raise ValueError(f"no room for {task.name}: {len(self._running)} of {self.slots} slots are taken")
        gpus, self._free = self._free[: task.devices], self._free[task.devices :]
        log = self._open_log(task.log)
        argv = task.argv if task.devices < 2 else [sys.executable, ranks.__file__, str(task.devices), *task.argv]
        # A trial on a CPU must not see a GPU: `device: auto` would take it.
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus), **task.env}
        start = self._fork if self._use_warm and not gpus and serves(argv) else self._spawn
        self._running[task.name] = _Running(task, start(task.name, argv, env, log), gpus, log, time.monotonic())

    def poll(self, timeout_seconds: float) -> list[TaskEnd]:
        """See Launcher."""
        deadline = time.monotonic() + timeout_seconds
        ended: list[TaskEnd] = []
        while True:
            self._end_overdue()
            now = time.monotonic()
            wait = 0.0 if ended else max(0.0, min([deadline, *self._deadlines()]) - now)
            try:
                ended.append(self._finish(*(self._over.get(timeout=wait) if wait else self._over.get_nowait())))
            except queue.Empty:
                if ended or time.monotonic() >= deadline:
                    break
        if time.monotonic() - self._logs_put > LOG_INTERVAL_SECONDS:
            self._logs_put = time.monotonic()
            for entry in self._running.values():
                self._put_log(entry)
        return ended

    def running(self) -> dict[str, float]:
        """See Launcher."""
        now = time.monotonic()
        return {name: now - entry.started for name, entry in self._running.items()}

    def waiting(self) -> dict[str, str]:
        """See Launcher. A child runs as soon as it is started."""
        return {}

    def left(self, task: Task) -> None:
        """See Launcher. A child never outlives its launcher."""
        return

    def clear(self) -> None:
        """See Launcher. Likewise."""

    def stop(self, names: list[str] | None = None, *, grace_seconds: float = 30.0) -> None:
        """See Launcher."""
        for name, entry in self._running.items():
            if (names is None or name in names) and entry.deadline is None:
                entry.deadline = time.monotonic() + grace_seconds
                entry.signal(signal.SIGTERM)

    def close(self) -> None:
        """See Launcher."""
        self.stop()
        while self._running:
            self.poll(1.0)
        if self._warm is not None:
            self._warm.close()
            self._warm = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def detach(self) -> None:
        """See Launcher."""

    def _spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Callable[[int], None]:
        """Start a task as a process of its own. Returns what sends it a signal."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        threading.Thread(target=lambda: self._over.put((name, process.wait())), daemon=True).start()
        return process.send_signal

    def _fork(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Callable[[int], None]:
        """Start a task from the process that has imported PyTorch; from scratch where that one has died."""
        if self._warm is None:
            self._warm = WarmProcess(lambda name, code: self._over.put((name, code)))
        elif not self._warm.alive:
            self._use_warm = False
            return self._spawn(name, argv, env, log)
        warm = self._warm
        warm.start(name, argv, env, log)
        return lambda number: warm.signal(name, number)

    def _deadlines(self) -> list[float]:
        return [entry.deadline for entry in self._running.values() if entry.deadline is not None]

    def _end_overdue(self) -> None:
        for entry in self._running.values():
            if entry.deadline is not None and time.monotonic() >= entry.deadline:
                entry.signal(signal.SIGKILL)
                entry.deadline = time.monotonic() + 5.0

    def _finish(self, name: str, code: int | None) -> TaskEnd:
        entry = self._running.pop(name)
        self._free += entry.gpus
        self._put_log(entry)
        seconds = time.monotonic() - entry.started
        return TaskEnd(entry.task, code, seconds, read_tail(entry.log))

    def _open_log(self, key: str) -> Path:
        """The local file behind a log. A store that is not a file system gets a copy of it, over all attempts."""
        path = self._storage.local_path(key)
        if path is None:
            if self._scratch is None:
                self._scratch = tempfile.TemporaryDirectory(prefix="podium-logs-")
            path = Path(self._scratch.name) / key
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(NotFoundError):
                    self._storage.download(key, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _put_log(self, entry: _Running) -> None:
        # A log is worth no trial: a store that is away gets it with the next put.
        if self._storage.local_path(entry.task.log) is None:
            with suppress(StorageError):
                self._storage.upload(entry.log, entry.task.log)


def open_process_launcher(storage: Storage, *, parallel: int, devices_per_task: int) -> ProcessLauncher:
    """A launcher with `parallel` slots, fewer where the GPUs of this machine serve fewer tasks.

    Raises UserError where they don't serve a single one.
    """
    if devices_per_task == 0:
        return ProcessLauncher(storage, slots=parallel)
    gpus = visible_gpus()
    slots = min(parallel, len(gpus) // devices_per_task)
    if slots == 0:
        raise UserError(
            f"a trial takes {devices_per_task} GPU{'s' if devices_per_task > 1 else ''}, and this machine shows "
            f"{len(gpus)}: run it where there are more, or with --gpus 0 on the CPU"
        )
    return ProcessLauncher(storage, slots=slots, gpus=gpus)


def visible_gpus() -> list[str]:
    """The ids of the GPUs that this process may use, without importing torch; none where there is no driver."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part.strip() for part in given.split(",") if part.strip()]
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return asked.stdout.split()


if __name__ == "__main__":
    main()
