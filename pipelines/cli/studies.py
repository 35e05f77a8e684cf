"""`podium studies`, `new` and `validate`: what there is to run, and how to write one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from podium.pipelines.cli.console import result, result_json, say, stdout
from podium.pipelines.cli.options import Json

TEMPLATE = Path(__file__).parent / "new_study.yaml"


def studies(as_json: Json = False) -> None:
    """List the studies that come with Podium, each with its question and profiles.

    Example: [b]podium studies[/b]
    """
    found = [_described(name, path) for name, path in _shipped().items()]
    if as_json:
        result_json({"studies": found})
        return
    from rich.table import Table

    table = Table("study", "question", "stages", "profiles", box=None, pad_edge=False)
    for study in found:
        table.add_row(study["name"], study["question"], " → ".join(study["stages"]), ", ".join(study["profiles"]))
    stdout().print(table)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study, and of the file NAME.yaml.")],
    to: Annotated[Path | None, typer.Option(help="Where to write it; by default NAME.yaml here.")] = None,
) -> None:
    """Write a commented study file that validates and runs: change it line by line.

    Example: [b]podium new width-sweep[/b], then [b]podium run width-sweep.yaml --profile smoke[/b]
    """
    from podium.components.study.load import load_study
    from podium.trainer.errors import Problem, UserError

    path = to or Path(f"{name}.yaml")
    text = TEMPLATE.read_text(encoding="utf-8").replace("name: my-study", f"name: {name}", 1)
    load_study(text)
    if path.exists():
        raise UserError(Problem(str(path), "is there already; give another name, or --to FILE"))
    if not path.parent.is_dir():
        raise UserError(Problem(str(path), "its folder does not exist"))
    path.write_text(text, encoding="utf-8")
    result(str(path))
    say(f"next: podium plan {path} --profile smoke; podium run {path} --profile smoke")


def validate(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or a shipped study's name.")],
    as_json: Json = False,
) -> None:
    """Check a study in each of its profiles, and list every problem at once. Nothing is written.

    Example: [b]podium validate width-sweep.yaml[/b]
    """
    from podium.components.study.load import load_study
    from podium.trainer.errors import Problem, UserError

    problems: list[Problem] = []
    valid: list[str] = []
    for profile in profiles(study):
        try:
            load_study(study, profile=profile)
            valid.append(profile)
        except UserError as error:
            # One mistake outside the profiles is found in each of them: name it once.
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise UserError(problems, source=study)
    if as_json:
        result_json({"study": study, "valid": True, "profiles": valid})
    else:
        result(f"{study}: valid (profiles: {', '.join(valid)})")


def profiles(source: str) -> list[str]:
    """The names of a study's profiles, `full` first. Raises UserError for an unknown study or broken YAML."""
    from podium.components.study.load import read_study_text
    from podium.components.study.yaml_text import parse_yaml

    text, name = read_study_text(source)
    data = parse_yaml(text, name)
    declared = data.get("profiles") if isinstance(data, dict) else None
    return ["full", *(name for name in declared or {} if name != "full")] if isinstance(declared, dict) else ["full"]


def _shipped() -> dict[str, Path]:
    from podium.components.study.load import shipped_studies

    return shipped_studies()


def _described(name: str, path: Path) -> dict[str, Any]:
    from podium.components.study.load import load_study

    study = load_study(str(path))
    return {
        "name": name,
        "title": study.title,
        "question": " ".join(study.question.split()),
        "stages": list(study.stages),
        "profiles": profiles(name),
    }
