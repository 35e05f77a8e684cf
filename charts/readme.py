"""Write what follows from values.yaml: missing entries of values.schema.json, and the README's table of values.

python charts/readme.py            # write both
python charts/readme.py --check    # exit code 1 where one of them is not what the values say

A new value is edited in two files: values.yaml and the template that uses it. Its entry in the schema is made with the
type of its default; a pattern or a choice is added there by hand and stays. A value's documentation is the comment
above it that begins with `# --`; a mapping that has one is documented whole.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "podium"
BEGIN, END = "<!-- values: written by charts/readme.py -->", "<!-- end of values -->"


def main() -> int:
    """Write or check the README. Returns the exit code."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = completed(json.loads((CHART / "values.schema.json").read_text(encoding="utf-8")), values)
    readme = with_table((CHART / "README.md").read_text(encoding="utf-8"), table(schema))
    outdated = 0
    for name, text in (("values.schema.json", json.dumps(schema, indent=2) + "\n"), ("README.md", readme)):
        path = CHART / name
        if path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in sys.argv[1:]:
            print(f"{path} does not say what values.yaml says: run python charts/readme.py", file=sys.stderr)
            outdated = 1
        else:
            path.write_text(text, encoding="utf-8")
    return outdated


def completed(schema: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The schema with an entry for every value; one that is there stays as it is written."""

    def complete(node: dict[str, Any], mapping: dict[str, Any], prefix: str) -> None:
        node = _resolved(node, schema)
        for key, default in mapping.items():
            place = f"{prefix}{key}"
            known = node.get("properties", {})
            if key not in known and "additionalProperties" in node and node["additionalProperties"] is not False:
                continue  # a mapping of any keys, with a default for one of them
            if key not in known:
                node.setdefault("properties", {})[key] = _entry(default, place)
            if isinstance(default, dict) and default:
                complete(node["properties"][key], default, f"{place}.")

    schema = copy.deepcopy(schema)
    complete(schema, values, "")
    return schema


def _entry(default: Any, place: str) -> dict[str, Any]:
    if isinstance(default, dict):
        closed = {"additionalProperties": False, "properties": {}} if default else {}
        return {"type": "object", **closed}
    types = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}
    if type(default) not in types:
        raise SystemExit(f"values.yaml: {place}: write its entry of values.schema.json by hand, null has no type")
    return {"type": types[type(default)]}


def with_table(readme: str, lines: list[str]) -> str:
    """The README with these lines between its two marks."""
    head, rest = readme.split(BEGIN)
    tail = rest.split(END)[1]
    return head + "\n".join([BEGIN, "", *lines, "", END]) + tail


def table(schema: dict[str, Any]) -> list[str]:
    """A Markdown table with a row for each value."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    defaults = yaml.safe_load(text)
    rows = ["| value | type | default | what it is |", "|---|---|---|---|"]
    described = dict(documentation(text))
    undocumented = [key for key, _ in leaves(defaults) if not any(_within(key, known) for known in described)]
    if undocumented:
        raise SystemExit(f"values.yaml: no `# --` comment above {', '.join(undocumented)}")
    for key, words in described.items():
        default = defaults
        for part in key.split("."):
            default = default[part]
        shown = f"`{json.dumps(default)}`".replace("|", "\\|")
        rows.append(f"| `{key}` | {kind(key, schema)} | {shown} | {words} |".replace("{{", "{ {"))
    return rows


def documentation(text: str) -> Iterator[tuple[str, str]]:
    """Dotted key and comment of each value that has one, in the file's order."""
    path: list[tuple[int, str]] = []
    words: list[str] = []
    for line in text.splitlines():
        comment = re.match(r"\s*# ?(-- )?(.*)", line)
        if comment:
            if comment[1]:
                words = [comment[2]]
            elif words:
                words.append(comment[2])
            continue
        entry = re.match(r"( *)([A-Za-z][A-Za-z0-9]*):", line)
        if entry:
            depth = len(entry[1])
            path = [(indent, name) for indent, name in path if indent < depth] + [(depth, entry[2])]
            if words:
                yield ".".join(name for _, name in path), " ".join(words)
        words = []


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a mapping that is no mapping with entries."""
    for key, each in value.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(each, dict) and each:
            yield from leaves(each, name)
        else:
            yield name, each


def kind(key: str, schema: dict[str, Any]) -> str:
    """What the schema lets a value be, in a word or by its choices."""
    found = schema
    for part in key.split("."):
        found = _resolved(found["properties"][part], schema)
    if "enum" in found:
        return ", ".join(f"`{choice}`" for choice in found["enum"] if choice != "")
    if "anyOf" in found:
        types = [_resolved(each, schema).get("type", "") for each in found["anyOf"]]
        return " or ".join(types)
    return {"array": "list", "object": "mapping"}.get(found["type"], found["type"])


def _resolved(found: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][found["$ref"].rsplit("/", 1)[1]] if "$ref" in found else found


def _within(key: str, known: str) -> bool:
    return key == known or key.startswith(f"{known}.")


if __name__ == "__main__":
    sys.exit(main())
