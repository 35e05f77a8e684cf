"""The layout is the architecture: import layers hold, and what the README says about the tree is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.benchmarks.structure import circles, import_graph

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainer", "components", "pipelines")
LAYER = {name: height for height, name in enumerate(PACKAGES)}
FRAMEWORKS = {"kfp", "torch", "kubernetes", "mlflow"}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def imports(path: Path, *, top_level: bool = False) -> list[str]:
    """Names that a module imports; with `top_level`, only what importing the module itself imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(_top_level(tree.body)) if top_level else list(ast.walk(tree))
    found = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return found + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def _top_level(body):
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from _top_level(getattr(node, block, []))


def tree_lines() -> list[str]:
    """Paths that the README's tree names, each relative to the repository."""
    block = re.search(r"```text tree\n(.*?)```", README, re.DOTALL)
    assert block, "README.md has no tree (```text tree)"
    paths, folders = [], []
    for line in block[1].splitlines():
        match = re.match(r"( *)(\S+)  ", line + "  ")
        assert match, line
        depth = len(match[1]) // 2
        name = match[2]
        folders[depth:] = [name.rstrip("/")]
        paths.append("/".join(folders[: depth + 1]))
    return paths


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_flow_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            layer = name.removeprefix("podium.").split(".")[0] if name.startswith("podium.") else None
            if layer in LAYER:
                assert LAYER[layer] <= LAYER[package], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", ["study", "policies", "verdicts"])
def test_a_study_and_its_verdicts_need_no_framework(package):
    for path in (ROOT / "components" / package).rglob("*.py"):
        assert not FRAMEWORKS & {name.split(".")[0] for name in imports(path)}, path


def test_no_module_imports_itself_by_way_of_others():
    assert circles(import_graph(ROOT)) == []


def test_the_circle_finder_finds_circles():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("package", "unknown"),
    [
        ("podium.components.study", ("podium.components.policies", "podium.components.verdicts")),
        ("podium.components.verdicts", ("podium.components.policies",)),
        ("podium.trainer.trial", ("podium.trainer.builtin",)),
    ],
)
def test_what_a_package_does_not_import(package, unknown):
    for name, targets in import_graph(ROOT).items():
        if name.startswith(package):
            assert not [target for target in targets if target.startswith(unknown)], name


def test_the_command_line_imports_no_framework_at_module_level():
    for path in (ROOT / "pipelines" / "cli").rglob("*.py"):
        assert not FRAMEWORKS & {name.split(".")[0] for name in imports(path, top_level=True)}, path


def test_the_layers_that_import_linter_checks_hold_too():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr


def test_packages_are_reached_by_links_that_a_clone_keeps():
    for package in PACKAGES:
        link = ROOT / "src" / "podium" / package
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == (ROOT / package).resolve()


def test_every_path_in_the_readmes_tree_exists():
    missing = [path for path in tree_lines() if not (ROOT / path).exists()]
    assert not missing


def test_every_folder_and_top_level_file_is_in_the_readmes_tree():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    files = [Path(line) for line in tracked.stdout.splitlines()]
    expected = {file.parts[0] for file in files}
    for package in PACKAGES:
        expected |= {str(file.parent) for file in files if file.parts[0] == package and file.suffix == ".py"}
    assert not expected - set(tree_lines())


def test_every_link_and_command_in_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z][a-z-]*)", README)) <= targets


def test_make_lists_every_command_with_what_it_does():
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    named = "setup demo test smoke lint data train-embedding-sweep train-glu-sweep aggregate plots reports help"
    for target in named.split():
        assert re.search(rf"^  {target} +\S+ \S+", listed, re.MULTILINE), target


def test_the_lock_has_hashes_and_no_address():
    for name in ("requirements.txt", "uv.txt"):
        text = (ROOT / "locks" / name).read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index-url" not in text
        requirements = re.findall(
            r"^[A-Za-z0-9._\[\]-]+==\S+(?: ;[^\\\n]*)? \\\n    --hash=sha256:", text, re.MULTILINE
        )
        assert len(requirements) == len(re.findall(r"^[A-Za-z0-9]", text, re.MULTILINE)) > 0
