"""Many trials as Jobs on simulated nodes: all end, for about a call each, and a conductor's memory stays small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "jobs_scale.py"


def test_ten_and_a_hundred_trials_all_end_for_few_calls_each(cluster: Any) -> None:
    environment = {**os.environ, **cluster.environment, "PODIUM_TEST_S3": cluster.s3_endpoint}
    command = [sys.executable, str(BENCHMARK), "--trials", "10", "100", "--hold", "20"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    ten, hundred = json.loads(done.stdout.splitlines()[-1])
    for row in (ten, hundred):
        # the script itself holds every trial to its result, and the one without a result to `broken`
        assert row["all_calls"] <= 20 * row["trials"]
        assert row["calls"]["POST jobs"] == row["trials"]
    assert hundred["held_calls_per_second"] < 2
    assert hundred["peak_mb"] < 250
