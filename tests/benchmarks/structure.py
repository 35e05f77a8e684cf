"""How the code is cut: modules, their length, functions, imports, comments and circles, of one or more checkouts.

    python tests/benchmarks/structure.py [CHECKOUT …]       a column per checkout, as a Markdown table

Modules are the source files but `__init__.py`; a line of code is one that is neither blank nor comment nor docstring;
an import line is a line of an import statement; a comment is a line with a comment and nothing else. Circles are
counted over all imports, those inside functions and under TYPE_CHECKING included.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from pathlib import Path

PACKAGES = ("trainer", "components", "pipelines")


def main(checkouts: list[Path]) -> None:
    """Print the table."""
    columns = [measure(checkout) for checkout in checkouts]
    print("| | " + " | ".join(checkout.resolve().name for checkout in checkouts) + " |")
    print("|---|" + "---|" * len(columns))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")


def measure(checkout: Path) -> dict[str, str]:
    """Every figure of a checkout, by its name."""
    sources = [path for package in PACKAGES for path in sorted((checkout / package).rglob("*.py"))]
    modules = [path for path in sources if path.name != "__init__.py"]
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in modules)
    functions: list[int] = []
    code = imports = comments = 0
    for path in modules:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        functions += [
            node.end_lineno - node.lineno + 1
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
        ]
        imported = {
            line
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = lines_of_code(text, tree)
        code += len(lines)
        imports += len(imported & lines)
        comments += sum(line.strip().startswith("#") for line in text.splitlines())
    tests = list((checkout / "tests").rglob("*.py"))
    return {
        "modules": f"{len(modules)}",
        "module length, median / p90 / most lines": (
            f"{statistics.median(lengths):.0f} / {lengths[int(0.9 * len(lengths))]} / {lengths[-1]}"
        ),
        "functions": f"{len(functions):,}",
        "function length, median / p90 lines": (
            f"{statistics.median(functions):.0f} / {sorted(functions)[int(0.9 * len(functions))]}"
        ),
        "import lines, % of code": f"{100 * imports / code:.1f}",
        "comments per 100 lines of code": f"{100 * comments / code:.1f}",
        "import circles": f"{len(circles(import_graph(checkout)))}",
        "lines of source": f"{sum(len(path.read_text(encoding='utf-8').splitlines()) for path in sources):,}",
        "lines of tests": f"{sum(len(path.read_text(encoding='utf-8').splitlines()) for path in tests):,}",
        "test modules": f"{len(tests)}",
    }


def lines_of_code(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that are neither blank nor comment nor docstring."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        for child in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if isinstance(child, ast.Expr) and isinstance(getattr(child.value, "value", None), str):
                lines -= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def import_graph(checkout: Path) -> dict[str, set[str]]:
    """Module → the modules of Podium that it imports, wherever in the file."""
    files = {
        "podium." + ".".join(path.relative_to(checkout).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (checkout / package).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = graph.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                found.update(each if each in files else node.module for each in full)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        graph[name] = {each for each in found if each in files and each != name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one module (R. Tarjan, SIAM J. Comput. 1, 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in order:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], order[target])
        if lowest[name] == order[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(part) > 1:
                found.append(sorted(part))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]] or [Path(__file__).resolve().parents[2]])
