"""The first page is quick and light, and every command teaches by an example."""

import resource
import subprocess
import sys

import pytest

import podium as package
from podium.pipelines.cli.main import by_panel

COMMANDS = [command.name for commands in by_panel().values() for command in commands]
HEAVY = ("kfp", "torch", "kubernetes", "mlflow", "boto3", "pandas", "scipy", "pydantic")

PROBE = """
import sys
sys.argv = ["podium", "--help"]
from podium.pipelines.cli.main import main
try:
    main()
except SystemExit:
    pass
print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""


def test_help_imports_no_framework():
    found = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY)], capture_output=True, text=True, check=True
    )
    assert found.stderr.strip() == "[]"
    assert all(f"  {command} " in found.stdout for command in COMMANDS)


def test_help_costs_little():
    """Under half a second of processor time when nothing else runs; the limit here is one that a busy machine keeps."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", PROBE.format(heavy=())], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 1.5, spent


def test_the_commands_are_those_that_the_issue_names():
    named = "new validate plan run compile status list logs report export sync cancel gc studies compare submit"
    assert set(COMMANDS) == {*named.split(), *["power", "verify", "approve", "override", "extend", "upload", "doctor"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_an_example(podium, command):
    page = podium(command, "--help")
    assert page.exit_code == 0
    assert f"podium {command}" in page.output.split("Example:")[1]


def test_without_arguments_the_first_page_is_shown(podium):
    assert podium().output == podium("--help").output
    assert podium().exit_code == 0


def test_version(podium):
    assert podium("--version").output == f"podium {package.__version__}\n"


def test_an_unknown_command_is_the_users_error(podium):
    assert podium("rnu").exit_code == 2


def test_a_module_with_a_command_is_all_that_a_new_command_takes(tmp_path):
    (tmp_path / "greet.py").write_text(
        "from podium.pipelines.cli.options import command, result\n"
        "@command('Look', 1)\n"
        "def greet(name: str) -> None:\n"
        '    """Greet somebody: a toy."""\n'
        "    result(f'hello {name}')\n"
    )
    start = f"import podium.pipelines.cli as cli; cli.__path__.append({str(tmp_path)!r})\n"
    start += "from podium.pipelines.cli.main import main; main()"

    def podium(*arguments):
        return subprocess.run([sys.executable, "-c", start, *arguments], capture_output=True, text=True, check=True)

    assert podium("greet", "Ada").stdout == "hello Ada\n"
    assert "  greet    Greet somebody\n" in podium("--help").stdout.partition("Look:")[2].partition("Results:")[0]
