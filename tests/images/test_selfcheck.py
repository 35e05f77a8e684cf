"""The images' self-check tells what is wrong: here it runs where nearly everything is, outside of any image."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SELFCHECK = Path(__file__).parents[2] / "images" / "selfcheck.py"


@pytest.fixture
def selfcheck():
    spec = importlib.util.spec_from_file_location("images_selfcheck", SELFCHECK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_another_version_than_the_tags_is_a_problem(selfcheck):
    import importlib.metadata

    installed = importlib.metadata.version("podium")
    assert list(selfcheck.check_version(installed)) == []
    assert list(selfcheck.check_version("9.9")) == [f"podium {installed} is installed, the image's tag says 9.9"]


def test_a_cache_outside_the_scratch_is_a_problem(selfcheck, monkeypatch, tmp_path):
    for name in selfcheck.FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(selfcheck.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(selfcheck, "SCRATCH", str(tmp_path))
    assert list(selfcheck.check_scratch()) == []
    monkeypatch.setenv("HOME", "/home/someone")
    assert list(selfcheck.check_scratch()) == [f"HOME is /home/someone, outside {tmp_path}"]


def test_a_compiler_in_the_steps_and_none_in_the_trainer_are_problems(selfcheck, monkeypatch):
    def there(*tools):
        monkeypatch.setattr(selfcheck.shutil, "which", lambda tool: f"/bin/{tool}" if tool in tools else None)

    there("sh", "mktemp", "podium", "gcc")
    assert list(selfcheck.check_tools(trainer=False)) == ["/bin/gcc has no business here"]
    assert list(selfcheck.check_tools(trainer=True)) == ["g++ is missing"]


def test_code_that_its_own_process_could_change_is_a_problem(selfcheck, monkeypatch, tmp_path):
    (tmp_path / "module.py").touch()
    monkeypatch.setattr(selfcheck.sys, "prefix", str(tmp_path))
    assert f"{tmp_path / 'module.py'} can be written" in list(selfcheck.check_code_is_read_only())


def test_it_reports_every_problem_and_ends_with_1(tmp_path):
    environment = {**os.environ, "PODIUM_IMAGE": "podium/python-steps:9.9", "PODIUM_COMMIT": "abc"}
    # Imports are the slow part, and the images' cluster test is where they matter.
    code = f"import runpy, sys; m = runpy.run_path({str(SELFCHECK)!r}); m['main'].__globals__['check_imports'] = lambda t: iter(()); sys.exit(m['main']())"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["image"] == "podium/python-steps:9.9"
    assert report["commit"] == "abc"
    assert {"version", "code is read-only"} <= report["problems"].keys()
