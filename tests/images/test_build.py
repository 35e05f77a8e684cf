"""How `make images` asks an engine, and what it tells it about this machine: secrets, never arguments."""

import importlib.util
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INDEX = "https://someone:word@index.invalid/simple"


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("images_build", ROOT / "images" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engine(tmp_path):
    """A stand-in for docker: it notes its arguments and the secrets it was given."""
    program = tmp_path / "engine"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys\n"
        f"out = pathlib.Path({str(tmp_path)!r})\n"
        "if sys.argv[1] == 'image':\n"
        "    print(1500000000)\n"
        "    sys.exit()\n"
        "with (out / 'calls.txt').open('a') as file:\n"
        "    file.write(' '.join(sys.argv[1:]) + ' BUILDKIT=' + os.environ['DOCKER_BUILDKIT'] + '\\n')\n"
        "for each in sys.argv:\n"
        "    if each.startswith('--secret=id=fetch'):\n"
        "        (out / 'fetch').write_text(pathlib.Path(each.partition('src=')[2]).read_text())\n"
        "sys.exit(int(os.environ.get('ENGINE_ENDS_WITH', 0)))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def make_images(engine, *variables, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    # A configuration file of this machine's pip must not decide what the test sees.
    clean |= {"PIP_CONFIG_FILE": os.devnull, **environment}
    command = ["make", "--no-print-directory", "images", f"ENGINE={engine}", f"PYTHON={sys.executable}", *variables]
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)


def test_make_images_builds_both_targets_with_the_packages_version(build, engine, tmp_path):
    done = make_images(engine)
    assert done.returncode == 0, done.stderr
    steps, trainer = (tmp_path / "calls.txt").read_text().splitlines()
    version = build.package_version()
    assert f"--target steps --tag podium/python-steps:{version} " in steps
    assert f"--target trainer --tag podium/python-trainer:{version} " in trainer
    assert f"--build-arg=VERSION={version} " in steps
    assert "PYTHON_IMAGE" not in steps, "the default is the Dockerfile's"
    assert "--secret" not in steps
    assert "--network" not in steps
    assert steps.endswith(f"{ROOT} BUILDKIT=1")
    assert f"images: podium/python-trainer:{version}, 1.50 GB" in done.stdout


def test_base_image_torch_build_and_network_are_arguments(engine, tmp_path):
    done = make_images(engine, "PYTHON_IMAGE=mine/python:1", "TORCH=torch-cpu.txt", "NETWORK=host")
    assert done.returncode == 0, done.stderr
    for call in (tmp_path / "calls.txt").read_text().splitlines():
        assert "--build-arg=PYTHON_IMAGE=mine/python:1 --build-arg=TORCH=torch-cpu.txt" in call
        assert "--network=host" in call


def test_an_address_of_this_machine_is_a_secret_and_in_no_argument(engine, tmp_path):
    certificate = tmp_path / "ca.pem"
    certificate.write_text("a certificate")
    sources = tmp_path / "sources.list"
    sources.write_text("deb http://debian.invalid bookworm main\n")
    done = make_images(engine, f"APT_SOURCES={sources}", PIP_INDEX_URL=INDEX, PIP_CERT=str(certificate))
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls.txt").read_text()
    assert "index.invalid" not in calls
    assert "debian.invalid" not in calls
    assert f"--secret=id=ca,src={certificate}" in calls
    assert f"--secret=id=apt,src={sources}" in calls
    asked = subprocess.run(
        ["sh", "-c", f". {tmp_path}/fetch; echo $UV_DEFAULT_INDEX $PIP_INDEX_URL $SSL_CERT_FILE"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.split() == [INDEX, INDEX, "/run/secrets/ca"]
    given = re.search(r"--secret=id=fetch,src=(\S+)", calls)
    assert not Path(given[1]).exists(), "what the secrets were written to is gone"


def test_an_engine_that_fails_ends_it_with_a_message(engine, tmp_path):
    done = make_images(engine, ENGINE_ENDS_WITH="7")
    assert done.returncode != 0
    assert "images: podium/python-steps was not built: see above" in done.stderr
    assert len((tmp_path / "calls.txt").read_text().splitlines()) == 1


def test_a_commit_with_changes_says_so(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert build.checkout_commit() == "unknown"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    clean = build.checkout_commit()
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    (tmp_path / "file").write_text("2")
    assert build.checkout_commit() == f"{clean}-dirty"
