"""From a study's text to a `Study` in which nothing is open: profile, overrides, prices, and every problem at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import podium
from podium.components.study.modules import ship_modules
from podium.components.study.profiles import apply_profile
from podium.components.study.schema import Study
from podium.components.study.selection import Overrides, Selection
from podium.components.study.validate import validate
from podium.components.study.yaml_text import dump_yaml, parse_yaml
from podium.trainer.data.corpora import parse_corpus
from podium.trainer.errors import ConfigError, DataError, Problem, UserError

__all__ = ["Overrides", "Selection", "dump_study", "load_study", "read_study_text", "shipped_studies"]

NEEDED = ("name", "question", "data", "config", "stages")


def load_study(
    source: str, *, profile: str = "full", overrides: Overrides | None = None, site: str | None = None
) -> Study:
    """A study, validated and resolved.

    `source` is a shipped study's name, a path, or YAML text (which has a line break). `site` is a file with the prices
    of GPU classes: `gpu_classes: {l40s: {usd_per_gpu_hour: 1.2}}`.

    Raises ConfigError that lists every problem, each with its dotted place, what was allowed and what came.
    """
    text, name = read_study_text(source)
    data = parse_yaml(text, name)
    if not data:
        raise ConfigError(f"this is an empty study; it needs at least {', '.join(NEEDED)}", source=name)
    if not isinstance(data, dict):
        raise ConfigError(f"a study is a mapping of fields, got {type(data).__name__}", source=name)
    data, problems = apply_profile(data, profile)
    ship_modules(data, name)
    data, more = _apply_overrides(data, overrides or Overrides())
    problems += more
    if site is not None:
        _apply_site(data, site)
    _absolute_paths(data)
    return validate(data, source=name, problems=problems)


def read_study_text(source: str) -> tuple[str, str]:
    """The YAML text of a study and what to call it in messages. Raises UserError for an unknown study."""
    if "\n" in source or source.lstrip().startswith("{"):
        return source, "study"
    shipped = shipped_studies()
    path = shipped.get(source, Path(source).expanduser())
    if path.is_dir() or not (path.is_file() or source == os.devnull):
        known = ", ".join(shipped) or "none"
        raise UserError(f"no study {source!r}: it is no file, and the shipped studies are: {known}")
    try:
        return path.read_text(encoding="utf-8"), source
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: can't be read as text: {error}") from None


def shipped_studies() -> dict[str, Path]:
    """The studies that come with Podium, by name."""
    folder = Path(podium.__path__[0]) / "pipelines" / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def dump_study(study: Study) -> str:
    """The resolved study as YAML text; `load_study` reads it back to the same study."""
    return dump_yaml(study.model_dump(mode="json"))


def _apply_overrides(data: dict[str, Any], overrides: Overrides) -> tuple[dict[str, Any], list[Problem]]:
    data, problems = dict(data), []
    declared = data.get("stages")
    stages = (
        {k: dict(v) for k, v in declared.items() if isinstance(v, Mapping)} if isinstance(declared, Mapping) else {}
    )
    if overrides.seeds is not None:
        for stage in stages.values():
            stage["seeds"] = overrides.seeds
            if isinstance(stage.get("min_seeds"), int):
                stage["min_seeds"] = min(stage["min_seeds"], overrides.seeds)
    if overrides.gpus is not None:
        for name, stage in stages.items():
            stage["resources"], problem = _with_gpus(stage.get("resources") or {}, overrides.gpus)
            problems += [Problem(f"stages.{name}.resources", problem)] if problem else []
    if overrides.baseline == "run":
        data["baseline"] = (data.get("baseline") or {}) | {"recorded": {}}
        for stage in stages.values():
            if isinstance(stage.get("promotion"), Mapping):
                stage["promotion"] = {k: v for k, v in stage["promotion"].items() if not k.startswith("threshold")}
    if stages and isinstance(declared, Mapping):
        data["stages"] = {name: stages.get(name, stage) for name, stage in declared.items()}
    if overrides.budget_usd is not None:
        data["budget"] = (data.get("budget") or {}) | {"usd": overrides.budget_usd}
    if overrides.data is not None:
        try:
            corpus = parse_corpus(overrides.data).model_dump(mode="json", exclude_unset=True)
            limit = ((data.get("data") or {}).get("corpus") or {}).get("max_bytes")
            if limit is not None and "max_bytes" not in corpus and corpus["source"] != "fineweb":
                corpus["max_bytes"] = limit  # the study's own limit on size holds for whatever text it is given
            size = ((data.get("data") or {}).get("corpus") or {}).get("size_mb")
            if size is not None and corpus["source"] == "mixture":
                corpus["size_mb"] = size
            data["data"] = (data.get("data") or {}) | {"corpus": corpus}
        except (ConfigError, DataError) as error:
            problems += [Problem("--data", problem.what) for problem in error.problems]
    return data, problems


def _with_gpus(resources: Any, gpus: int) -> tuple[Any, str | None]:
    """A stage's resources with this many GPUs at once, or why they can't be shared out."""
    if not isinstance(resources, Mapping):
        return resources, None
    if gpus <= 0:
        return {**resources, "gpus_per_trial": 0}, None if gpus == 0 else f"--gpus must be 0 or more, got {gpus}"
    each = resources.get("gpus_per_trial") or 1
    if isinstance(each, int) and gpus < each:
        # accumulation makes it the same optimisation on fewer devices
        return {**resources, "gpus_per_trial": gpus, "parallel": 1}, None
    if not isinstance(each, int) or gpus % each:
        return resources, f"--gpus must be a multiple of gpus_per_trial = {each}, got {gpus}"
    return {**resources, "gpus_per_trial": each, "parallel": gpus // each}, None


def _apply_site(data: dict[str, Any], site: str) -> None:
    """Fill prices that the study leaves out, by GPU class."""
    text, name = read_study_text(site)
    parsed = parse_yaml(text, name)
    classes = parsed.get("gpu_classes") if isinstance(parsed, Mapping) else None
    if not isinstance(classes, Mapping):
        raise ConfigError("a site file has gpu_classes: {name: {usd_per_gpu_hour: price}}", source=name)
    for stage in (data.get("stages") or {}).values():
        if not isinstance(stage, dict):
            continue
        price = stage.get("price") or {}
        known = classes.get((stage.get("resources") or {}).get("gpu_class"), {}).get("usd_per_gpu_hour")
        if known is not None and "usd_per_run" not in price and "usd_per_gpu_hour" not in price:
            stage["price"] = {**price, "usd_per_gpu_hour": known}


def _absolute_paths(data: dict[str, Any]) -> None:
    """Make the corpus's path absolute: a study's steps run in other working directories."""
    section = data.get("data")
    if not isinstance(section, Mapping) or not isinstance(section.get("corpus"), Mapping):
        return
    corpus = section["corpus"]
    path = corpus.get("path")
    if isinstance(path, str) and not re.match(r"[a-z0-9+.-]+://", path):
        absolute = os.path.abspath(os.path.expanduser(path))
        data["data"] = {**section, "corpus": {**corpus, "path": absolute}}
    domains = corpus.get("domains")
    if isinstance(domains, Mapping):
        absolutes = {name: _absolute(where) for name, where in domains.items()}
        data["data"] = {**section, "corpus": {**corpus, "domains": absolutes}}


def _absolute(where: Any) -> Any:
    named = not isinstance(where, str) or where in ("hub", "demo") or re.match(r"[a-z0-9+.-]+://", where)
    return where if named else os.path.abspath(os.path.expanduser(where))
