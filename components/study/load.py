"""From a study's text to a `Study` in which nothing is open: profile, overrides, prices, and every problem at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

import podium
from podium.components.study import schema
from podium.components.study.checks import NAME_RULE, check_study
from podium.components.study.design import Overrides
from podium.components.study.fields import RESERVED, FieldType, coerce, fields_of, nearest
from podium.components.study.schema import Axis, Baseline, Group, Stage, VariantSpec, policies
from podium.trainer.builtin.config import TrainConfig, with_text
from podium.trainer.builtin.data.corpus import parse_corpus
from podium.trainer.trial.errors import ConfigError, DataError, Problem, UserError
from podium.trainer.trial.yaml_text import dump_yaml, parse_yaml

# A profile: a named set of overrides on a study, merged into it.

FULL = "full"
"""The study as it is written. It need not be declared."""
NAMED = ("axes", "variants", "stages")
"""Mappings by name, in which null removes an entry."""
TAGS = ("policy", "source")
"""Fields that say which kind a section is: another kind replaces it whole."""
ONE_OF = ("budget",)
"""Sections of a stage of which exactly one field is given: replaced whole."""


def apply_profile(data: dict[str, Any], profile: str) -> tuple[dict[str, Any], list[Problem]]:
    """The study's mapping with the profile merged in and the profiles taken out, and what is wrong with them."""
    data = dict(data)
    profiles = data.pop("profiles", None) or {}
    if not profiles and profile in (FULL, data.get("profile")):
        return {"profile": FULL} | data, []  # as it is written, or one that is resolved already and says so
    data["profile"] = profile
    if not isinstance(profiles, Mapping):
        return data, [Problem("profiles", f"must be a mapping of names to overrides, got {profiles!r}")]
    problems = [
        Problem(f"profiles.{name}", f"must be a mapping of overrides, got {overrides!r}")
        for name, overrides in profiles.items()
        if not isinstance(overrides, Mapping)
    ]
    if profile not in profiles and profile != FULL:
        names = [FULL, *(name for name in profiles if name != FULL)]
        problems.append(Problem("--profile", f"no profile {profile!r}{nearest(profile, names)}; the study has: "
                                             f"{', '.join(names)}"))  # fmt: skip
    overrides = profiles.get(profile, {})
    if not isinstance(overrides, Mapping):
        return data, problems
    unknown = [
        Problem(f"profiles.{profile}.{section}.{name}", f"removes {name!r}, which the study does not have")
        for section in NAMED
        for name, value in (overrides.get(section) or {}).items()
        if value is None and name not in (data.get(section) or {})
    ]
    return _merge(data, overrides, path=()), problems + unknown


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if value is None and path and path[-1] in NAMED and len(path) == 1:
            merged.pop(key, None)
        elif not isinstance(value, Mapping) or not isinstance(below, Mapping) or _replaces(key, below, value, path):
            merged[key] = dict(value) if isinstance(value, Mapping) else value
        else:
            merged[key] = _merge(below, value, (*path, key))
    return merged


def _replaces(key: str, below: Mapping[str, Any], value: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    other_kind = any(tag in value and tag in below and value[tag] != below[tag] for tag in TAGS)
    # dotted overrides are a flat mapping of fields: they merge field by field, as they stand
    return other_kind or (key in ONE_OF and len(path) == 2 and path[0] == "stages")


# Validate a study's mapping: the schema's problems and those of meaning, all in one go.

MOST_SHOWN = 40
"""Problems that one message lists; the rest is counted."""

_ENTRIES: dict[str, type[BaseModel]] = {"stages": Stage, "axes": Axis, "variants": VariantSpec}
_UNION = re.compile(r"\.(?:int|list\[int\])(?:\.\d+)?$")
"""What pydantic appends to the place of a field that is a number or a list."""


_TAG = re.compile(r"\.promotion\.([a-z0-9_]+)")


def _without_tag(place: str) -> str:
    """The place without the policy's name, which pydantic puts after the field as the tag of the union."""
    return _TAG.sub(lambda found: ".promotion" if found[1] in policies() else found[0], place)


def validate(data: Mapping[str, Any], *, source: str, problems: Iterable[Problem] = ()) -> Study:
    """The study, its values in their fields' types. Raises ConfigError with `problems` and all that is found."""
    found = list(problems)
    study, schema_problems = _parse(data)
    found += schema_problems
    if study is None:
        found += _config_problems(data.get("config"), data)
    else:
        study, more = _normalise(study, data)
        found += more or check_study(study)
    # a part that had to be left out to go on may be missed by the checks of meaning: its own problem is enough
    places = {problem.where for problem in schema_problems}
    found = [p for p in dict.fromkeys(found) if p in schema_problems or p.where not in places]
    if found or study is None:
        shown = found[:MOST_SHOWN]
        if len(found) > MOST_SHOWN:
            shown.append(Problem("", f"and {len(found) - MOST_SHOWN} more"))
        raise ConfigError(shown, source=source)
    return study


def _parse(data: Mapping[str, Any]) -> tuple[Study | None, list[Problem]]:
    """The study, or what is left of it without its faulty parts, and what is wrong with them."""
    problems: list[Problem] = []
    for _ in range(4):
        try:
            return Study.model_validate(data), problems
        except ValidationError as error:
            if not problems:
                told = zip(ConfigError.from_validation(error).problems, error.errors(), strict=True)
                # a field that may be two things is reported once for each: once is enough
                problems = list({p.where: p for p in (_in_words(p, d) for p, d in told)}.values())
            rest = data
            for detail in error.errors():
                rest = _without(rest, detail["loc"], missing=detail["type"] == "missing")
            # with a stand-in for a faulty name the rest can still be judged
            data = {"name": "study", "question": "-", **rest}
    return None, problems


def _in_words(problem: Problem, detail: Any) -> Problem:
    where = _UNION.sub("", _without_tag(problem.where))
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        allowed = ", ".join(policies())
        return Problem(f"{where}.policy", f"must be one of {allowed}, got {detail['input'].get('policy')!r}")
    if where != problem.where and where.endswith(".seeds"):
        value = detail["input"]
        return Problem(where, f"must be a number of seeds or a list of seeds, got {value!r}")
    if detail["type"] == "string_pattern_mismatch":
        return Problem(where, f"{NAME_RULE}, got {detail['input']!r}")
    if detail["type"] == "too_short":
        return Problem(where, f"needs at least one, got {detail['input']!r}")
    if detail["type"] != "extra_forbidden":
        return Problem(where, problem.what)
    parts = where.split(".")
    if parts[0] in _ENTRIES and len(parts) > 2:
        fields, name = fields_of(_ENTRIES[parts[0]]), ".".join(parts[2:])
        if parts[0] == "stages":
            fields = _stage_fields()
            if parts[2] == "promotion":
                fields, name = _policy_fields(), ".".join(parts[3:])
    elif parts[0] == "baseline":
        fields, name = fields_of(Baseline), ".".join(parts[1:])
    else:
        fields, name = fields_of(Study), where
    return Problem(where, f"unknown field{nearest(name, fields)}")


def _policy_fields() -> dict[str, FieldType]:
    return {field: type_ for policy in policies().values() for field, type_ in fields_of(policy).items()}


def _stage_fields() -> dict[str, FieldType]:
    """Those of a stage, with the fields of all policies where its own promotion is."""
    found: dict[str, FieldType] = {}
    for field, type_ in fields_of(Stage).items():
        found.setdefault(field, type_)
        if field == "promotion":
            found |= {f"promotion.{inner}": each for inner, each in _policy_fields().items()}
    return found


def _without(data: Mapping[str, Any], loc: tuple[int | str, ...], *, missing: bool) -> dict[str, Any]:
    """The mapping without what is at `loc`, or without the named entry around it where that can't be."""
    path = [part for part in loc if isinstance(part, str) and not part.startswith("function-")]
    if missing:
        path = path[:2] if path and path[0] in _ENTRIES else path[:1]
    result = dict(data)
    node, parts = result, list(path)
    while len(parts) > 1:
        below = node.get(parts[0])
        if parts[0] not in node:  # the tag of a union
            parts.pop(0)
        elif isinstance(below, Mapping) and any(part in below for part in parts[1:]):
            node[parts[0]] = node = dict(below)
            parts.pop(0)
        else:
            break
    node.pop(parts[0] if parts else "", None)
    return result


def _normalise(study: Study, data: Mapping[str, Any]) -> tuple[Study, list[Problem]]:
    """The same study with the values of axes and overrides, and the base config, in the types of their fields."""
    problems = _config_problems(study.config, data)
    axes, variants, stages = {}, {}, {}
    for name, axis in study.axes.items():
        values = []
        for index, value in enumerate(axis.values):
            where = f"axes.{name}.values.{index}"
            try:
                values.append(coerce(axis.field, value, where))
            except ConfigError as error:
                unknown = [Problem(f"axes.{name}.field", p.what) for p in error.problems if p.where == where]
                problems += unknown if _is_unknown(axis.field) else error.problems
        axes[name] = axis.model_copy(update={"values": values})
    for name, variant in study.variants.items():
        overrides, more = _coerce_all(variant.overrides, f"variants.{name}.overrides")
        variants[name] = variant.model_copy(update={"overrides": overrides})
        problems += more
    for name, stage in study.stages.items():
        overrides, more = _coerce_all(stage.overrides, f"stages.{name}.overrides")
        groups, faults = _coerce_groups(stage.groups, axes, f"stages.{name}.groups")
        stages[name] = stage.model_copy(update={"overrides": overrides, "groups": groups})
        problems += more + faults
    update: dict[str, Any] = {"axes": axes, "variants": variants, "stages": stages}
    if not problems:
        update["config"] = _plain_config(study.config, study.data.vocab_size)
    return study.model_copy(update=update), problems


def _coerce_groups(
    groups: Mapping[str, Group], axes: Mapping[str, Axis], where: str
) -> tuple[dict[str, Group], list[Problem]]:
    """The groups with the values of their rows in the types of the axes' fields."""
    result: dict[str, Group] = {}
    problems: list[Problem] = []
    for name, group in groups.items():
        rows = []
        for index, row in enumerate(group.rows):
            known = {}
            for axis, value in row.items():
                known[axis] = value
                if axis not in axes or _is_unknown(axes[axis].field):
                    continue  # said elsewhere
                try:
                    known[axis] = coerce(axes[axis].field, value, f"{where}.{name}.rows.{index}.{axis}")
                except ConfigError as error:
                    problems += error.problems
            rows.append(known)
        result[name] = group.model_copy(update={"rows": rows})
    return result, problems


def _is_unknown(field: str) -> bool:
    try:
        coerce(field, None, "")
    except ConfigError as error:
        return not error.problems[0].where and error.problems[0].what.startswith(("no field", "a study sets"))
    return False


def _coerce_all(overrides: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
    result: dict[str, Any] = {}
    problems: list[Problem] = []
    for field, value in overrides.items():
        try:
            result[field] = coerce(field, value, f"{where}.{field}")
        except ConfigError as error:
            problems += error.problems
    return result, problems


def _config_problems(config: Any, data: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the base config by itself."""
    if not isinstance(config, Mapping):
        return []  # the schema says so
    problems = [Problem(f"config.{name}", f"a study sets this by {instead}; leave it out")
                for name, instead in RESERVED.items() if name in config]  # fmt: skip
    section = data.get("data")
    vocab_size = section.get("vocab_size") if isinstance(section, Mapping) else None
    try:
        _base_config({k: v for k, v in config.items() if k not in RESERVED}, vocab_size)
    except ValidationError as error:
        for problem, detail in zip(ConfigError.from_validation(error).problems, error.errors(), strict=True):
            if problem.where == "model.vocab_size":
                continue  # it comes from data.vocab_size, which the schema judges
            unknown = detail["type"] == "extra_forbidden"
            what = f"unknown field{nearest(problem.where, fields_of(TrainConfig))}" if unknown else problem.what
            problems.append(Problem(f"config.{problem.where}".rstrip("."), what))
    return problems


def _base_config(config: Mapping[str, Any], vocab_size: Any) -> TrainConfig:
    model = config.get("model")
    if isinstance(model, Mapping) and "vocab_size" not in model:
        config = {**config, "model": {**model, "vocab_size": vocab_size}}
    # enough steps for any batch: a stage's budget is checked with the stage
    return TrainConfig.model_validate({**config, "max_steps": 10**12})


def _plain_config(config: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The fields that the study gives, in their types: `10M` and 10000000 are one study."""
    plain = _base_config(config, vocab_size).model_dump(mode="json", exclude_unset=True)
    del plain["max_steps"]
    if "vocab_size" not in config["model"]:
        del plain["model"]["vocab_size"]
    return plain


# A user's own Python files that a study names: read beside the study's file, and from then on part of it.


def ship_modules(data: dict[str, Any], source: str) -> None:
    """Put the text of every `extension` that is a file into the study's data, in place.

    `source` is the study's path, or what messages call it where it has none: then files are sought in the working
    directory. Raises ConfigError for files that can't be read.
    """
    study = Path(source).expanduser()
    folder = study.parent if study.is_file() else Path.cwd()
    problems = []
    for where, extension in _extensions(data, ""):
        try:
            extension |= with_text(extension, folder)
        except ConfigError as error:
            problems += [Problem(f"{where}.{problem.where}", problem.what) for problem in error.problems]
    if problems:
        raise ConfigError(problems, source=source)


def _extensions(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        for name, below in node.items():
            place = f"{where}.{name}".lstrip(".")
            if name == "extension" and isinstance(below, dict):
                yield place, below
            else:
                yield from _extensions(below, place)


def shipped(data: Any) -> dict[str, str]:
    """sha256 of every shipped file in a study's resolved data, with its text."""
    found = (extension for _, extension in _extensions(data, ""))
    return {each["sha256"]: each["text"] for each in found if each.get("sha256") and each.get("text")}


NEEDED = ("name", "question", "data", "config", "stages")


class Study(schema.Study):
    """One experiment, resolved: a profile is applied and nothing is left open. `Study.load` reads one."""

    @classmethod
    def load(cls, source: str, *, profile: str = "full", site: str | None = None, **overrides: Any) -> Study:
        """A study from a shipped study's name, a path or YAML text, with a profile applied and nothing left open.

        `overrides` are those of the command line: `seeds`, `gpus`, `data`, `budget_usd`, `baseline`; `site` is a file
        of prices. Raises ConfigError that lists every problem.
        """
        return load_study(source, profile=profile, overrides=Overrides(**overrides), site=site)


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


def dump_study(study: schema.Study) -> str:
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
        stand_ins = {field for policy in policies().values() for field in policy.stand_ins}
        data["baseline"] = (data.get("baseline") or {}) | {"recorded": {}}
        for stage in stages.values():
            if isinstance(stage.get("promotion"), Mapping):
                stage["promotion"] = {k: v for k, v in stage["promotion"].items() if k not in stand_ins}
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


# Which studies a compiled pipeline can run: its graph depends on the stages' names and order, and on nothing else.


def graph_problems(study: schema.Study, graph: Sequence[str]) -> list[Problem]:
    """Why a study can't run on the graph with these stages, and which graph it needs; empty where it can."""
    stages = list(study.stages)
    if stages == list(graph):
        return []
    fitting = next(shipped_with(stages), None)
    instead = (
        f"run it by the pipeline {fitting}"
        if fitting is not None and fitting != study.name
        else "compile the study again and upload that (podium upload STUDY --profile PROFILE)"
    )
    return [
        Problem(
            "study",
            f"its stages are {' → '.join(stages)} (profile {study.profile}), and this pipeline's graph has "
            f"{' → '.join(graph)}: a graph follows the stages' names, so this study needs another one; {instead}",
        )
    ]


def shipped_with(stages: Sequence[str]) -> Iterator[str]:
    """Shipped studies whose graph, as uploaded, has exactly these stages."""
    for name in shipped_studies():
        try:
            found = list(load_study(name).stages)
        except UserError:  # a study that does not load under this version fits nothing
            continue
        if found == list(stages):
            yield name


def other_graphs(source: str) -> dict[str, list[str]]:
    """Profiles of a study whose stages are not those of `full`, with their stages: each needs a pipeline of its own."""
    text, name = read_study_text(source)
    data = parse_yaml(text, name)
    profiles = [each for each in (data.get("profiles") or {}) if each != "full"] if isinstance(data, dict) else []
    stages = list(load_study(source).stages)
    found = {profile: list(load_study(source, profile=profile).stages) for profile in profiles}
    return {profile: names for profile, names in found.items() if names != stages}
