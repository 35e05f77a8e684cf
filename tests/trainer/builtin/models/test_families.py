"""A family is its config and its model: nothing else knows one family from another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import podium.trainer
from podium.trainer.builtin.model_config import FamilyConfig
from podium.trainer.builtin.models.build import build_model

ROOT = Path(podium.trainer.__path__[0]).resolve().parent


def test_no_other_module_names_a_family() -> None:
    classes = [*(family.__name__ for family in FamilyConfig.__subclasses__()), r"\.family\b"]
    own = {ROOT / "trainer/builtin/model_config.py", *(ROOT / "trainer/builtin/models").glob("*.py")}
    for package in ("trainer", "components", "pipelines"):
        for path in {*(ROOT / package).rglob("*.py")} - own:
            found = re.findall("|".join(classes), path.read_text())
            assert not found, f"{path.relative_to(ROOT)} names {found}"


@pytest.mark.parametrize("family", FamilyConfig.__subclasses__(), ids=lambda family: family.__name__)
def test_a_model_has_the_parameters_that_its_config_counts(family: type[FamilyConfig]) -> None:
    fields = {"vocab_size": 64, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "n_positions": 16}
    known = {name: value for name, value in fields.items() if name in family.model_fields}
    name = family.implementation.split(".")[0]
    config = family.model_validate({"family": name, **known})
    model = build_model(config)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameter_counts().total
