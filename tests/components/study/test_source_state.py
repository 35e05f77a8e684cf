from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from podium.components.study.registration import SourceState, source_state


def git(folder: Path, *arguments: str) -> None:
    named = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "loop.py").write_text("step = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_a_clean_checkout_has_a_commit_and_no_warning(checkout: Path) -> None:
    state = source_state(checkout)
    assert state.commit is not None
    assert len(state.commit) == 40
    assert (state.branch, state.dirty, state.diff, state.warning) == ("main", False, "", "")


def test_a_dirty_one_names_its_files_and_keeps_the_diff(checkout: Path) -> None:
    (checkout / "loop.py").write_text("step = 2\n")
    (checkout / "new.py").write_text("")
    state = source_state(checkout)
    assert state.changed == ["loop.py", "new.py"]
    assert "+step = 2" in state.diff
    assert "2 files (loop.py, new.py)" in state.warning


def test_outside_of_any_checkout_only_the_environment_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODIUM_COMMIT", "abc")
    assert source_state(tmp_path) == SourceState(commit="abc")
