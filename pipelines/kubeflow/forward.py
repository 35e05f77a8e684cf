"""Kubeflow through `kubectl port-forward`: for a laptop with a kubeconfig and no address of Kubeflow."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from podium.trainer.errors import Problem, UserError

SERVICE = "svc/ml-pipeline"
PORT = 8888
START_SECONDS = 30.0


@contextmanager
def port_forward(namespace: str, context: str | None = None) -> Iterator[str]:
    """A local address of Kubeflow's API for as long as the block runs.

    kubectl chooses the port, so that two commands at once don't meet. Raises UserError where there is no kubectl, no
    such service, or no cluster.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise UserError(Problem("--port-forward", "needs kubectl, which is not on the PATH; give --host instead"))
    command = [kubectl, "port-forward", "--namespace", namespace, SERVICE, f":{PORT}", "--address", "127.0.0.1"]
    command += ["--context", context] if context else []
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield f"http://127.0.0.1:{_port(process, said)}"
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(process: subprocess.Popen[bytes], said: object) -> int:
    deadline = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        text = _read(said)
        found = re.search(r"Forwarding from 127\.0\.0\.1:(\d+)", text)
        if found is not None and not ended:
            return int(found[1])
        if ended or time.monotonic() > deadline:
            reason = text.strip().splitlines()[-1] if text.strip() else f"nothing within {START_SECONDS:.0f} s"
            raise UserError(Problem("--port-forward", f"kubectl could not forward to {SERVICE}: {reason}"))
        time.sleep(0.05)


def _read(said: object) -> str:
    said.seek(0)  # type: ignore[attr-defined]
    return said.read().decode(errors="replace")  # type: ignore[attr-defined, no-any-return]
