"""What changes the digest of the training path, and what does not: edits of the real sources, in a copy."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import podium.trainer
from podium.trainer.builtin import training_path
from podium.trainer.builtin.model_config import FamilyConfig
from podium.trainer.builtin.training_path import EXEMPT, LISTED, digest_of, listed_files, trainer_digest

ROOT = Path(podium.trainer.__path__[0])
Sources = dict[str, str]

SCHEDULE = "builtin.optim.build"
MUON = "builtin.optim.muon"
SETUP = "builtin.setup"
STATE = "builtin.state"


@pytest.fixture(scope="module")
def sources() -> Sources:
    return {name: path.read_text() for name, path in listed_files(ROOT).items()}


@pytest.fixture(scope="module")
def digest(sources: Sources) -> str:
    return digest_of(sources)


def edited(sources: Sources, name: str, old: str, new: str) -> Sources:
    assert sources[name].count(old) >= 1, f"{name} has no {old!r}: take another example"
    return {**sources, name: sources[name].replace(old, new, 1)}


def renamed(sources: Sources, old: str, new: str) -> Sources:
    """Every mention of a name as a whole word, in all modules."""
    assert any(re.search(rf"\b{old}\b", text) for text in sources.values())
    assert not any(re.search(rf"\b{new}\b", text) for text in sources.values())
    return {name: re.sub(rf"\b{old}\b", new, text) for name, text in sources.items()}


# The lists


def test_every_module_of_the_trainer_is_listed_or_exempt_for_a_reason() -> None:
    modules = set()
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert {*LISTED, *EXEMPT} == modules
    assert not {*LISTED} & {*EXEMPT}
    assert all(len(reason) > 10 for reason in EXEMPT.values())


def test_what_a_run_imports_and_is_not_listed_is_exempt_on_purpose() -> None:
    def imports(name: str) -> Iterator[str]:
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        tree = ast.parse((path if path.is_file() else path.with_suffix("") / "__init__.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("podium.trainer."):
                module = str(node.module).removeprefix("podium.trainer.")
                inner = [f"{module}.{each.name}" for each in node.names]
                yield from ([each for each in inner if each in known] or [module])

    known = {*LISTED, *EXEMPT}
    # a family's model is imported by the name in its config
    models = [f"builtin.models.{family.implementation.split('.')[0]}" for family in FamilyConfig.__subclasses__()]
    reached, ahead = set(), ["builtin.run", *models]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += imports(name)
    assert {*LISTED} <= reached
    assert reached - {*LISTED} == {
        "builtin.checks",
        "builtin.data.shard_cache",
        "trial.errors",
        "trial.lease",
        "trial.process",
        "trial.recorder",
        "trial.section",
        "trial.storage",
        "trial.storage.base",
        "trial.storage.file",
        "trial.storage.s3",
    }


# What leaves it as it is


def test_comments_docstrings_and_formatting_do_not_count(sources: Sources, digest: str) -> None:
    class WithoutDocstrings(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
            return None if isinstance(node.value, ast.Constant) else node

    assert digest_of({name: ast.unparse(ast.parse(text)) for name, text in sources.items()}) == digest
    commented = {name: f"# a comment\n{text}\n# another\n" for name, text in sources.items()}
    assert digest_of(commented) == digest
    bare = {}
    for name, text in sources.items():
        tree = WithoutDocstrings().visit(ast.parse(text))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.body:
                node.body = [ast.Pass()]
        bare[name] = ast.unparse(ast.fix_missing_locations(tree))
    assert digest_of(bare) == digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Stepper", "StepTaker"),
        ("rank_slice", "share_of_rank"),
        ("COMPILE_PAYS_STEPS", "STEPS_WORTH_COMPILING"),
        ("_Attempt", "_Try"),
    ],
)
def test_a_consistently_renamed_definition_does_not_count(old: str, new: str, sources: Sources, digest: str) -> None:
    assert digest_of(renamed(sources, old, new)) == digest


def test_renamed_local_variables_do_not_count(sources: Sources, digest: str) -> None:
    def rename(function: ast.FunctionDef) -> None:
        names = [each for each in ast.walk(function) if isinstance(each, ast.Name)]
        kept = {each.arg for each in ast.walk(function) if isinstance(each, ast.arg)}
        for each in ast.walk(function):
            if isinstance(each, ast.Global | ast.Nonlocal):
                kept.update(each.names)
        stored = {each.id for each in names if isinstance(each.ctx, ast.Store)}
        for each in names:
            if each.id in stored - kept:
                each.id += "_anew"

    changed = {}
    for name, text in sources.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef):
                for each in node.body:
                    if isinstance(each, ast.FunctionDef):
                        rename(each)
        changed[name] = ast.unparse(tree)
    assert sum(text.count("_anew") for text in changed.values()) > 500
    assert digest_of(changed) == digest


def test_annotations_of_functions_do_not_count(sources: Sources, digest: str) -> None:
    changed = {}
    for name, text in sources.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.returns = None
                for each in (*node.args.args, *node.args.kwonlyargs):
                    each.annotation = ast.Name("object", ast.Load())
        changed[name] = ast.unparse(ast.fix_missing_locations(tree))
    assert digest_of(changed) == digest


def test_the_order_of_imports_and_of_definitions_does_not_count(sources: Sources, digest: str) -> None:
    changed = {}
    for name, text in sources.items():
        tree = ast.parse(text)
        imports = [each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)]
        future, imports = imports[:1], imports[1:]
        rest = [each for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef)]
        other = [each for each in tree.body if each not in {*future, *imports, *rest}]
        tree.body = [*future, *reversed(imports), *other, *reversed(rest)]
        changed[name] = ast.unparse(tree)
    assert digest_of(changed) == digest


def test_an_import_inside_a_function_is_the_same_at_the_top(sources: Sources, digest: str) -> None:
    inside = "        from torch.nn.parallel import DistributedDataParallel\n"
    name = "builtin.distributed"
    text = edited(sources, name, inside, "")[name].replace(
        "import torch\n", "import torch\nfrom torch.nn import parallel\n", 1
    )
    text = text.replace("return DistributedDataParallel(", "return parallel.DistributedDataParallel(")
    assert digest_of({**sources, name: text}) == digest


def test_a_definition_may_move_to_another_module(sources: Sources, digest: str) -> None:
    tree = ast.parse(sources[SETUP])
    moved = next(each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "passes")
    text = ast.get_source_segment(sources[SETUP], moved)
    assert text is not None
    changed = edited(sources, SETUP, text, "")
    changed[STATE] += f"\n\n{text}\n"
    changed[SETUP] = changed[SETUP].replace(
        "import torch\n", "import torch\nfrom podium.trainer.builtin.state import passes\n", 1
    )
    assert digest_of(changed) == digest


def test_a_file_may_be_renamed(sources: Sources, digest: str) -> None:
    old, new = "podium.trainer.builtin.setup", "podium.trainer.builtin.parts.made"
    changed = {name: text.replace(old, new) for name, text in sources.items()}
    changed["builtin.parts.made"] = changed.pop(SETUP)
    assert digest_of(changed) == digest


def test_the_wording_of_a_refusal_does_not_count(sources: Sources, digest: str) -> None:
    assert digest_of(edited(sources, SETUP, "must be one that is here", "must be available")) == digest


# What changes it


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (SETUP, "loss / (share / len(x_bT))", "loss * (share / len(x_bT))"),  # an operator
        (SETUP, "self._optimizer.zero_grad()", "self._optimizer.zero_grad() if loss else None"),
        (SETUP, "model = build_run_model(config)", "model = build_run_model(config).half()"),
        (SETUP, "COMPILE_PAYS_STEPS = 1000", "COMPILE_PAYS_STEPS = 1001"),  # a constant
        (SETUP, ".clamp(min=1.0)", ".clamp(min=1)"),
        ("builtin.config", "weight_decay: float = Field(default=0.1", "weight_decay: float = Field(default=0.2"),
        ("builtin.config", "beta2: float = Field(default=0.95", "beta2: int = Field(default=0.95"),  # a field's type
        ("builtin.model_config", "norm_eps: float = Field(default=1e-6", "norm_eps: float = Field(default=1e-5"),
        ("builtin.loop", "rate = learning_rate(step, ", "rate = learning_rate(step + 1, "),
        ("builtin.loop", "after_step(parts.model, step)", "begin_step(parts.model, step)"),  # another function of ours
        ("builtin.evaluation.perplexity", "dtype=torch.float64", "dtype=torch.float32"),  # another name of theirs
        ("trial.stopping", "tokens - worse_since >= rule.span_tokens", "tokens - worse_since > rule.span_tokens"),
        ("trial.result", "sum(known) / len(known)", "max(known) / len(known)"),  # another builtin
        ("builtin.state", "self.tokens += tokens", "self.tokens += self.step"),
    ],
)  # fmt: skip
def test_a_change_of_arithmetic_counts(name: str, old: str, new: str, sources: Sources) -> None:
    # a module alone is digested as it is within all of them, in a thirtieth of the time
    assert digest_of({name: edited(sources, name, old, new)[name]}) != digest_of({name: sources[name]})


def test_the_order_of_statements_counts(sources: Sources) -> None:
    first, second = "        self._index += 1\n", "        self._since = step\n"
    changed = edited(sources, SETUP, first + second, second + first)[SETUP]
    assert digest_of({SETUP: changed}) != digest_of({SETUP: sources[SETUP]})


def test_a_change_far_away_counts_where_it_is_used(sources: Sources) -> None:
    """A caller's label follows what it calls: one function in place of another of the same text but other callees."""
    functions = ("def a(x):", " return x + 1", "def b(x):", " return x + 2")
    callers = ("def f(x):", " return a(x)", "def g(x):", " return b(x)", "def h(x):", " return f(x)")
    text = "\n".join([*functions, *callers])
    assert digest_of({"m": text}) != digest_of({"m": text.replace("return f(x)", "return g(x)")})


def test_parameters_that_change_places_count() -> None:
    call = "def g():\n    return f(a=1, b=2)\n"
    assert digest_of({"m": "def f(a, b):\n    return a - b\n" + call}) != digest_of(
        {"m": "def f(b, a):\n    return b - a\n" + call}
    )


def test_two_variables_that_change_roles_count() -> None:
    one = "def f(x):\n    a = x + 1\n    b = x * 2\n    return a - b\n"
    assert digest_of({"m": one}) == digest_of({"m": one.replace("a", "c").replace("def f", "def q")})
    assert digest_of({"m": one}) != digest_of({"m": one.replace("a - b", "b - a")})


def test_a_local_name_is_not_taken_for_a_definition_of_the_same_name() -> None:
    head = "def a(x):\n    return x\n"
    assert digest_of({"m": head + "def f(x):\n    return a(x)\n"}) != digest_of(
        {"m": head + "def f(x):\n    a = x\n    return a(x)\n"}
    )


def test_classes_that_look_alike_are_not_taken_for_each_other() -> None:
    classes = ("class A(Exception):", " pass", "class B(Exception):", " pass")
    text = "\n".join([*classes, "def f():", " try:", "  g()", " except A:", "  pass"])
    assert digest_of({"m": text}) != digest_of({"m": text.replace("except A", "except B")})


OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def test_any_operator_or_number_anywhere_counts(sources: Sources) -> None:
    """Fifty places drawn at random: an operator is replaced, or a number is raised by one."""
    draw = random.Random(12)
    places = []
    for name, text in sources.items():
        for index, node in enumerate(ast.walk(ast.parse(text))):
            number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
            if number or (isinstance(node, ast.BinOp | ast.Compare) and type(_operator(node)) in OPERATORS):
                places.append((name, index))
    assert len(places) > 1000
    for name, place in draw.sample(places, 50):
        tree = ast.parse(sources[name])
        node = list(ast.walk(tree))[place]
        where = f"{name}, line {node.lineno}"
        if isinstance(node, ast.Constant):
            node.value += 1
        elif isinstance(node, ast.BinOp):
            node.op = OPERATORS[type(node.op)]()
        else:
            node.ops[0] = OPERATORS[type(node.ops[0])]()
        changed = ast.unparse(tree)
        assert digest_of({name: changed}) != digest_of({name: sources[name]}), where


def _operator(node: ast.BinOp | ast.Compare) -> ast.AST:
    return node.op if isinstance(node, ast.BinOp) else node.ops[0]


# The cache


def test_the_digest_is_looked_up_by_the_bytes_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    monkeypatch.setenv("PODIUM_CACHE", str(tmp_path))
    trainer_digest.cache_clear()
    assert trainer_digest() == digest
    (kept,) = (tmp_path / "training-path").iterdir()
    assert kept.read_text() == digest
    trainer_digest.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(training_path, "digest_of", lambda _: pytest.fail("computed again"))
        assert trainer_digest() == digest
    for damage in (b"", b"\xff\xfe", b"not a digest, 16"):
        kept.write_bytes(damage)
        trainer_digest.cache_clear()
        assert trainer_digest() == digest
        assert kept.read_text() == digest


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PODIUM_CACHE", str(tmp_path / "file"))
    trainer_digest.cache_clear()
    assert trainer_digest() == digest
