"""The one reader and writer of YAML: YAML 1.2's plain scalars, no duplicate keys, every error with its line and column.

PyYAML's own rules (YAML 1.1) read `5e-5` as text, `no` as false, `1:30` as 90 and 010 as 8; none of that happens here.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from podium.trainer.trial.errors import ConfigError, Problem

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(r"[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*\.?(?:[eE][-+]?[0-9]+)?)$")


class _Loader(_SafeLoader):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}


def _resolve(tag: str, pattern: str | re.Pattern[str], first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("null", r"(?:~|null|Null|NULL|)$", "~nN")
_Loader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile(r"$")))
_resolve("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("int", _INTEGER, "-+0123456789")
_resolve("float", _FLOAT, "-+0123456789.")
_resolve("merge", r"<<$", "<")


def _integer(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


def _float(loader: Any, node: Any) -> float:
    return float(loader.construct_scalar(node).replace("_", ""))


def _mapping(loader: Any, node: Any) -> dict[Hashable, Any]:
    first: dict[Any, Any] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"a key must be text, got {key!r}; quote it", key_node.start_mark
            )
        if key in first:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key!r} is given twice, first in line {first[key].line + 1}", key_node.start_mark
            )
        first[key] = key_node.start_mark
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


class _Dumper(_SafeDumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, value: str) -> Any:
    # text that our reader would take for a number, or PyYAML's for something else, is quoted for both
    plain = not (_INTEGER.match(value) or _FLOAT.match(value))
    style = "|" if "\n" in value else None if plain else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _number(dumper: Any, value: float) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _number)


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text. Raises ConfigError with file, line and column for broken YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - derived from the safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        what = " ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None))))
        raise ConfigError(Problem(place, what or str(error))) from None


def dump_yaml(value: Any) -> str:
    """A mapping as YAML text that `parse_yaml` reads back to the same value, keys in the order given."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
