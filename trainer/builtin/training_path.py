"""The digest of the code that can change a trial's result: part of every trial's fingerprint.

Only the meaning of the code counts. Each top-level definition of the LISTED modules is brought into a canonical form
(its syntax tree without comments, docstrings, positions and the annotations of functions, with local names numbered),
in which a reference to another such definition is replaced by that definition's label. The labels are refined as in the
Weisfeiler-Lehman test of graphs: at first each is a hash of its form with the references blank, then of its form with
the labels of the round before, until no round tells more definitions apart. The digest is a hash of the sorted labels.

So a comment, the wording of an error, a renamed local variable, a consistently renamed function, class or constant, a
moved definition or file and the order of imports leave the digest as it is; an operator, a constant, a default, the
order of operations or the function that is called change it. Attributes, keywords and parameters count by their names.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from podium.trainer.builtin.data.manifest import default_cache

PACKAGE = "podium.trainer"
METHOD = 1
"""Raised when the same code would have another digest."""
DIGITS = 16

LISTED = (
    "builtin.allocation",
    "builtin.checkpoint",
    "builtin.config",
    "builtin.data.loader",
    "builtin.data.manifest",
    "builtin.data.shards",
    "builtin.distributed",
    "builtin.evaluation.perplexity",
    "builtin.loop",
    "builtin.model_config",
    "builtin.models.build",
    "builtin.models.experts",
    "builtin.models.fused",
    "builtin.models.gpt2",
    "builtin.models.moe",
    "builtin.models.ngpt",
    "builtin.models.speedrun",
    "builtin.models.transformer",
    "builtin.optim.adamw",
    "builtin.optim.build",
    "builtin.optim.muon",
    "builtin.outcome",
    "builtin.pretrained",
    "builtin.routing",
    "builtin.run",
    "builtin.setup",
    "builtin.state",
    "trial.result",
    "trial.routing_metrics",
    "trial.stopping",
)
"""Modules whose code can change a trial's result, its curve included."""

_FLAGS = "makes a config from flags; the config itself is in the fingerprint"
_DATA = "prepares data; what it makes is in the data's fingerprint, with DATA_VERSION and DOCUMENTS_VERSION"
_AFTER = "measures a finished model; no trial's result depends on it"
_STORE = "moves bytes; the bytes are decided elsewhere"
EXEMPT = {
    "": "an empty package",
    "__main__": _FLAGS,
    "builtin": "an empty package",
    "builtin.checks": "refuses configs before anything runs",
    "builtin.cli": _FLAGS,
    "builtin.commands": _FLAGS,
    "builtin.data": "an empty package",
    "builtin.data.corpora": "an empty package",
    "builtin.data.corpora.fineweb": _DATA,
    "builtin.data.corpora.mixture": _DATA,
    "builtin.data.corpora.text": _DATA,
    "builtin.data.corpus": _DATA,
    "builtin.data.encode": _DATA,
    "builtin.data.prepare": _DATA,
    "builtin.data.shard_cache": "fetches shards, which are compared with the size, sum or stamp in the manifest",
    "builtin.data.sources": _DATA,
    "builtin.data.tokenizer": _DATA,
    "builtin.evaluation": "an empty package",
    "builtin.evaluation.metrics": _AFTER,
    "builtin.evaluation.profile": _AFTER,
    "builtin.evaluation.run": _AFTER,
    "builtin.evaluation.smallbench": _AFTER,
    "builtin.evaluation.subject": _AFTER,
    "builtin.inputs": _FLAGS,
    "builtin.models": "an empty package",
    "builtin.optim": "an empty package",
    "builtin.presets": _FLAGS,
    "builtin.tools": "checks by hand (lr-find, overfit, generate); no trial runs them",
    "builtin.training_path": "this digest; METHOD says when it changes",
    "trial": "an empty package",
    "trial.errors": "words of refusals",
    "trial.lease": "who may train in a folder, and requests to stop, after which a run resumes bit for bit",
    "trial.process": "identities of processes on a machine",
    "trial.recorder": "progress lines and the metrics file; the form of its lines is in trial.result",
    "trial.section": "how configs are validated and quantities read; the values are in the fingerprint",
    "trial.storage": _STORE,
    "trial.storage.base": _STORE,
    "trial.storage.file": _STORE,
    "trial.storage.s3": _STORE,
    "trial.sync": "copies metrics to MLflow",
    "trial.yaml_text": "reads and writes YAML; the values are in the fingerprint",
}
"""Every other module of the trainer, with the reason why a change of it leaves finished trials valid."""


@cache
def trainer_digest() -> str:
    """The digest of this installation's training path.

    Computing it takes about 0.5 s of CPU, looking it up by the bytes of the files 0.01 s.
    """
    files = {name: path.read_bytes() for name, path in listed_files(_root()).items()}
    raw = hashlib.sha256(str(METHOD).encode())
    for name, data in files.items():
        raw.update(f"\0{name}\0{len(data)}\0".encode() + data)
    path = default_cache() / "training-path" / raw.hexdigest()
    with suppress(OSError, UnicodeDecodeError):
        known = path.read_text()
        if re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}", known):
            return known
    digest = digest_of({name: data.decode() for name, data in files.items()})
    with suppress(OSError):  # a cache that can't be written costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f"{path.name}.{os.getpid()}")
        temp.write_text(digest)
        temp.replace(path)
    return digest


def listed_files(root: Path) -> dict[str, Path]:
    """The dotted name of every listed module, below the trainer's package, and its file."""
    return {name: root / f"{name.replace('.', '/')}.py" for name in LISTED}


def digest_of(sources: Mapping[str, str]) -> str:
    """The digest of modules, given as texts by their dotted names below the trainer's package."""
    modules = {f"{PACKAGE}.{name}": _Module(f"{PACKAGE}.{name}", text) for name, text in sources.items()}
    definitions = [definition for module in modules.values() for definition in module.definitions]
    for definition in definitions:
        _Canonical(definition, modules).write()
    labels = _refine(definitions)
    # Two classes or caches that look alike are still two: an `except` or a lookup must not take one for the other.
    seen = Counter(labels.values())
    twins = [each for each in definitions if each.has_identity and seen[labels[each]] > 1]
    for twin in twins:
        twin.text += " ".join(twin.names)
    if twins:
        labels = _refine(definitions)
    text = "\n".join([str(METHOD), *sorted(labels.values())])
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _root() -> Path:
    return Path(__file__).resolve().parents[1]


def _refine(definitions: list[_Definition]) -> dict[_Definition, str]:
    bases = {each: hashlib.sha256(each.text.encode()).hexdigest() for each in definitions}
    labels = bases
    while True:
        refined = {
            each: hashlib.sha256("".join([base, *(labels[other] for other in each.references)]).encode()).hexdigest()
            for each, base in bases.items()
        }
        if len(set(refined.values())) == len(set(labels.values())):
            return refined
        labels = refined


# Modules: their top-level definitions and imports.


@dataclass(eq=False)
class _Definition:
    """Statements of a module's top level that bind the same names, or its statements that bind none."""

    module: _Module
    names: list[str]
    statements: list[ast.stmt]
    text: str = ""
    """The canonical form, with references blank."""
    references: list[_Definition] = field(default_factory=list)
    """In the order of the form."""

    @property
    def has_identity(self) -> bool:
        """Whether another definition of the same form could not take its place."""
        plain = (ast.Constant, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop, ast.Tuple, ast.expr_context, ast.Name)
        for statement in self.statements:
            if isinstance(statement, ast.FunctionDef):
                continue
            value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
            if value is None or not all(isinstance(node, plain) for node in ast.walk(value)):
                return True
        return False


class _Module:
    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.imports: dict[str, str] = {}
        self.by_name: dict[str, _Definition] = {}
        rest = _Definition(self, [], [])
        self.definitions: list[_Definition] = []
        for statement in ast.parse(text).body:
            if _is_for_type_checker(statement):
                for each in statement.body:  # type: ignore[attr-defined]
                    self.imports |= _imported(each)
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports |= _imported(statement)
            elif not _is_text(statement):
                self._add(statement, rest)
        if rest.statements:
            self.definitions.append(rest)

    def _add(self, statement: ast.stmt, rest: _Definition) -> None:
        names = list(dict.fromkeys(_bound([statement])))
        if names == ["__all__"]:
            return
        before = list(dict.fromkeys(self.by_name[name] for name in names if name in self.by_name))
        if not names:
            rest.statements.append(statement)
            return
        home = before[0] if before else _Definition(self, [], [])
        for other in before[1:]:
            home.names += other.names
            home.statements += other.statements
            self.definitions.remove(other)
        if not before:
            self.definitions.append(home)
        home.names += [name for name in names if name not in home.names]
        home.statements.append(statement)
        self.by_name |= dict.fromkeys(home.names, home)


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, or the `...` of an empty body."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_for_type_checker(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING"
    )


def _imported(statement: ast.stmt) -> dict[str, str]:
    """Name → full dotted name of what a statement imports."""
    if isinstance(statement, ast.Import):
        return {a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                for a in statement.names}  # fmt: skip
    if isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
        if statement.level:
            raise ValueError("the training path has absolute imports only")
        return {a.asname or a.name: f"{statement.module}.{a.name}" for a in statement.names}
    return {}


_Scoped = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def _bound(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that statements bind in their own scope, imports left out."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            continue
        if isinstance(node, ast.Lambda | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, _Comprehension):  # of what is in there only `:=` binds out here
            yield from (each.target.id for each in ast.walk(node) if isinstance(each, ast.NamedExpr))
            continue
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest
        yield from _bound(ast.iter_child_nodes(node))


def _walk_scope(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in statements:
        yield node
        if not isinstance(node, _Scoped):
            yield from _walk_scope(ast.iter_child_nodes(node))


# The canonical form of a definition.


@dataclass
class _Scope:
    """The names of a function, a comprehension or a class."""

    names: set[str]
    is_class: bool = False
    imports: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)


_SKIPPED = frozenset({"ctx", "type_comment", "kind", "returns", "lineno", "type_params", "simple"})


class _Canonical:
    """Writes a definition's form: names by what they mean, everything else as it is written."""

    def __init__(self, definition: _Definition, modules: Mapping[str, _Module]) -> None:
        self._definition, self._modules = definition, modules
        self._out: list[str] = []
        self._scopes: list[_Scope] = []
        self._locals = 0
        self._is_wording = 0

    def write(self) -> None:
        self._body(self._definition.statements)
        self._definition.text = "".join(self._out)

    def _body(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            if not _is_text(statement) and not isinstance(statement, ast.Pass | ast.Global | ast.Nonlocal):
                self._emit(statement)

    def _emit(self, node: Any) -> None:
        if isinstance(node, ast.AST):
            method = getattr(self, f"_on_{type(node).__name__.lower()}", None)
            if method is not None:
                method(node)
            else:
                self._plain(node)
        elif isinstance(node, list):
            self._out.append("[")
            if node and isinstance(node[0], ast.stmt):
                self._body(node)
            else:
                for each in node:
                    self._emit(each)
            self._out.append("]")
        else:
            self._out.append(f"{node!r},")

    def _plain(self, node: ast.AST, *without: str) -> None:
        self._out.append(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            # what is empty is left out: a later Python's syntax trees have more fields
            if name not in _SKIPPED and name not in without and value is not None and value != []:
                self._out.append(f"{name}=")
                self._emit(value)
        self._out.append(")")

    # Names

    def _on_name(self, node: ast.Name) -> None:
        self._name(node.id)

    def _on_attribute(self, node: ast.Attribute) -> None:
        dotted = self._dotted(node)
        if dotted is None:
            self._emit(node.value)
            self._out.append(f".{node.attr}")
        else:
            self._foreign(dotted)

    def _name(self, name: str) -> None:
        scope = self._scope_of(name)
        if scope is not None and name not in scope.imports:
            if scope.is_class:
                self._out.append(f"own:{name} ")
                return
            if name not in scope.numbers:
                scope.numbers[name] = self._locals
                self._locals += 1
            self._out.append(f"local:{scope.numbers[name]} ")
            return
        dotted = self._target(name)
        if dotted is not None:
            self._foreign(dotted)
            return
        home = self._definition.module.by_name.get(name)
        if home is not None:
            self._reference(home, name)
        else:
            self._out.append(f"builtin:{name} " if hasattr(builtins, name) else f"name:{name} ")

    def _scope_of(self, name: str) -> _Scope | None:
        for depth, scope in enumerate(reversed(self._scopes)):
            # a method does not see the names of its class
            if name in scope.names and (depth == 0 or not scope.is_class):
                return scope
        return None

    def _target(self, name: str) -> str | None:
        """The full dotted name of what was imported under a name."""
        scope = self._scope_of(name)
        if scope is not None:
            return scope.imports.get(name)
        module = self._definition.module
        return module.imports.get(name) if name not in module.by_name else None

    def _dotted(self, node: ast.expr) -> str | None:
        """The full dotted name of attributes of something imported."""
        if isinstance(node, ast.Name):
            return self._target(node.id)
        if isinstance(node, ast.Attribute):
            before = self._dotted(node.value)
            return None if before is None else f"{before}.{node.attr}"
        return None

    def _foreign(self, dotted: str) -> None:
        """Something imported, or an attribute of it: a listed definition is a reference, all else counts by name."""
        parts = dotted.split(".")
        for end in range(len(parts) - 1, 0, -1):
            module = self._modules.get(".".join(parts[:end]))
            if module is None:
                continue
            home = module.by_name.get(parts[end])
            if home is not None:
                self._reference(home, parts[end])
                self._out.extend(f".{part}" for part in parts[end + 1 :])
                return
            if parts[end] in module.imports:
                self._foreign(".".join([module.imports[parts[end]], *parts[end + 1 :]]))
                return
        # of what is ours and not listed only the name counts, not the module: that may move
        ours = dotted.startswith("podium.")
        self._out.append(f"podium:{parts[-1]} " if ours else f"import:{dotted} ")

    def _reference(self, home: _Definition, name: str) -> None:
        place = home.names.index(name)
        if home is self._definition:
            self._out.append(f"self:{place} ")
        else:
            self._definition.references.append(home)
            self._out.append(f"reference:{place} ")

    # Scopes

    def _on_functiondef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._out.append(f"{type(node).__name__} ")
        self._emit(node.decorator_list)
        self._name(node.name)
        self._function(node.args, node.body)

    _on_asyncfunctiondef = _on_functiondef

    def _on_lambda(self, node: ast.Lambda) -> None:
        self._out.append("Lambda ")
        self._function(node.args, [node.body])

    def _function(self, arguments: ast.arguments, body: list[Any]) -> None:
        self._out.append("defaults")
        self._emit(arguments.defaults)
        for default in arguments.kw_defaults:
            self._emit(default)
        named = [*arguments.args, *arguments.kwonlyargs]
        starred = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        scope = self._inner(body, [each.arg for each in (*arguments.posonlyargs, *named, *starred)])
        self._scopes.append(scope)
        by_name = named if body and isinstance(body[0], ast.stmt) else []  # a lambda is not called by keyword
        self._out.append(f"({len(arguments.posonlyargs)},{len(arguments.args)},{len(arguments.kwonlyargs)},")
        self._out.append(f"{arguments.vararg is not None},{arguments.kwarg is not None})")
        self._out.extend(f"{each.arg}," for each in by_name)
        for each in (*arguments.posonlyargs, *named, *starred):
            self._name(each.arg)
        self._emit(body)
        self._scopes.pop()

    def _inner(self, body: list[Any], parameters: list[str]) -> _Scope:
        imports: dict[str, str] = {}
        outer: set[str] = set()
        for node in _walk_scope(body):
            if isinstance(node, ast.Global | ast.Nonlocal):
                outer.update(node.names)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                imports |= _imported(node)
        bound = {*_bound(body), *parameters} - outer
        imports = {name: dotted for name, dotted in imports.items() if name not in bound}
        return _Scope(bound | imports.keys(), imports=imports)

    def _on_classdef(self, node: ast.ClassDef) -> None:
        self._out.append("ClassDef ")
        self._emit(node.decorator_list)
        self._name(node.name)
        self._emit(node.bases)
        self._emit(node.keywords)
        scope = self._inner(node.body, [])
        scope.is_class = True
        self._scopes.append(scope)
        self._emit(node.body)
        self._scopes.pop()

    def _comprehension(self, node: Any) -> None:
        targets = [name for generator in node.generators for name in _bound([generator.target])]
        self._out.append(type(node).__name__)
        self._scopes.append(_Scope(set(targets)))
        self._plain(node)
        self._scopes.pop()

    _on_listcomp = _on_setcomp = _on_dictcomp = _on_generatorexp = _comprehension

    def _on_excepthandler(self, node: ast.ExceptHandler) -> None:
        self._bound_name(node.name)
        self._plain(node, "name")

    def _on_matchas(self, node: ast.MatchAs | ast.MatchStar) -> None:
        self._bound_name(node.name)
        self._plain(node, "name")

    _on_matchstar = _on_matchas

    def _bound_name(self, name: str | None) -> None:
        if name is not None:
            self._name(name)

    # What does not count

    def _on_annassign(self, node: ast.AnnAssign) -> None:
        is_field = bool(self._scopes) and self._scopes[-1].is_class
        if is_field:
            self._plain(node)  # a schema follows from the annotations of its fields
        elif node.value is not None:
            self._on_assign(node)

    def _on_assign(self, node: ast.Assign | ast.AnnAssign) -> None:
        self._out.append("Assign")
        self._emit(node.targets if isinstance(node, ast.Assign) else [node.target])
        self._emit(node.value)

    def _on_import(self, node: ast.Import | ast.ImportFrom) -> None:
        # only where the name may be something else too, as after a failed import
        for name, dotted in _imported(node).items():
            scope = self._scope_of(name)
            known = self._definition.module.by_name if scope is None else scope.names - scope.imports.keys()
            if name in known:
                self._out.append("Import ")
                self._name(name)
                self._foreign(dotted)

    _on_importfrom = _on_import

    def _on_if(self, node: ast.If) -> None:
        if not _is_for_type_checker(node):
            self._plain(node)

    def _on_raise(self, node: ast.Raise) -> None:
        self._is_wording += 1
        self._plain(node)
        self._is_wording -= 1

    def _on_call(self, node: ast.Call) -> None:
        # what a refusal or the log says in words decides no result
        is_wording = isinstance(node.func, ast.Name) and node.func.id in ("print", "Problem")
        self._is_wording += is_wording
        self._plain(node)
        self._is_wording -= is_wording

    def _on_constant(self, node: ast.Constant) -> None:
        is_wording = self._is_wording and isinstance(node.value, str)
        self._out.append("text " if is_wording else f"{node.value!r} ")

    def _on_joinedstr(self, node: ast.JoinedStr) -> None:
        if self._is_wording:
            self._out.append("text ")
            return
        self._out.append("JoinedStr[")
        for value in node.values:
            if not isinstance(value, ast.Constant) or value.value:
                self._emit(value)
        self._out.append("]")
