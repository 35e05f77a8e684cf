"""The store is full, or a trial's clock is wrong."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BASELINE, WIDE, EVERY = "baseline/seed-42", "wide/seed-42", 20
LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
SKEWED = """\
import os, sys
from pathlib import Path
from podium.trainer.trial.storage import open_storage
open_storage({store!r}).download("libfaketime.so.1", Path("/tmp/libfaketime.so.1"))
offset = "+1h" if "/wide/" in sys.argv[-1] else "+10m"
os.environ |= {{"LD_PRELOAD": "/tmp/libfaketime.so.1", "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}}
os.execvp("python", ["python", "-c", {command!r}, *sys.argv[1:]])
"""

PATIENT = """\
import time
real = time.sleep
def sleep(seconds):
    try:
        real(seconds)
    except OSError:
        pass
time.sleep = sleep
"""
"""libfaketime refuses (EINVAL) to wait for an instant that has just passed, which the kernel would not."""


@pytest.fixture
def small_disk(scene, cluster, own_cluster, make_namespace, tmp_path):
    """The scene's store on a disk of 64 MB behind an S3 server of its own; the disk's folder."""
    disk = tmp_path / "disk"
    disk.mkdir()
    host = cluster.s3_endpoint.removeprefix("http://").partition(":")[0]
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M,mode=0700", "podium-test", str(disk)], check=True)
    (disk / "buckets").mkdir()
    argv = ["versitygw", "--port", f"{host}:{port}", "--region", cluster.region, "posix", str(disk / "buckets")]
    env = {**os.environ, "ROOT_ACCESS_KEY": cluster.access_key, "ROOT_SECRET_KEY": cluster.secret_key}
    server = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        scene.cluster = replace(cluster, s3_endpoint=f"http://{host}:{port}")
        scene.namespace = make_namespace(config={"AWS_ENDPOINT_URL": scene.cluster.s3_endpoint})
        scene.store = "s3://full/store"

        def serves() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((host, port)) == 0

        scene.wait_for("the S3 server answers", serves, 30)
        scene.cluster.s3.create_bucket(Bucket="full")
        yield disk
    finally:
        server.kill()
        server.wait()
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.core
def test_a_full_store_is_waited_for_and_nothing_is_lost(scene, undisturbed, small_disk):
    conductor = scene.conduct()
    scene.trains(step=EVERY)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as error:
            print(f"the store is full: {error.strerror}")
    time.sleep(15)
    assert scene.result() is None
    filler.unlink()
    began = time.monotonic()
    code = conductor.ends()
    print(f"room again: the conductor ended with {code} after {time.monotonic() - began:.1f} s")
    if code:  # the conductor itself may have been unable to write: the same command goes on
        print(conductor.said().strip().splitlines()[-1])
        again = scene.conduct()
        assert again.ends() == 0, again.said()
    for trial in (BASELINE, WIDE):
        assert scene.picture(trial) == undisturbed[trial]


def test_a_trials_wrong_clock_is_nobodys_business_until_s3_refuses_it(scene, undisturbed):
    """Ten minutes off: nothing here compares clocks. An hour: S3 takes no request, and the result says why."""
    bucket, _, prefix = scene.store.removeprefix("s3://").partition("/")
    scene.cluster.s3.upload_file(str(LIBRARY), bucket, f"{prefix}/libfaketime.so.1")
    code = SKEWED.format(store=scene.store, command=PATIENT + scene.slow)
    scene.env["PODIUM_TRIAL_COMMAND"] = shlex.join(["python", "-c", code, "train", "--run-spec"])
    conductor = scene.conduct()
    pod = scene.trains()
    read = ["exec", pod["metadata"]["name"], "--", "sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'"]
    assert "FAKETIME=+10m" in scene.cluster.kubectl("-n", scene.namespace, *read)
    assert conductor.ends() == 0, conductor.said()
    assert [(attempt["code"], attempt["crashed"]) for attempt in scene.attempts()] == [(0, False)]
    assert scene.picture() == undisturbed[BASELINE]
    refused = scene.result(WIDE)
    print(f"ten minutes off: {scene.result()['status']}; an hour off: {refused['status']}: {refused['log_tail'][-1]}")
    assert refused["status"] == "broken"
    assert "this machine's clock is wrong" in refused["log_tail"][-1]
