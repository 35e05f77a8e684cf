from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import ValidationError

from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.section import Section, kind_field, kind_tag


class Plain(Section):
    name: Literal["plain"] = "plain"
    rate: float


class Fancy(Section):
    name: Literal["fancy"] = "fancy"
    rate: float
    extra: int = 1


class Whole(Section):
    part: Annotated[
        Annotated[Plain, kind_tag("plain")] | Annotated[Fancy, kind_tag("fancy")], kind_field("name", "plain", "fancy")
    ]


def problems(data: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(data)
    return [str(problem) for problem in ConfigError.from_validation(caught.value).problems]


def test_the_field_chooses_the_kind_and_may_be_left_out() -> None:
    assert Whole.model_validate({"part": {"rate": 0.5}}).part == Plain(rate=0.5)
    assert Whole.model_validate({"part": {"name": "fancy", "rate": 0.5}}).part == Fancy(rate=0.5)


def test_a_section_and_its_dump_are_read_back_as_they_were() -> None:
    whole = Whole(part=Fancy(rate=0.5, extra=3))
    assert Whole.model_validate(whole.model_dump(mode="json")) == whole


def test_a_problem_is_placed_without_the_kind() -> None:
    assert problems({"part": {"name": "fancy", "rate": "x"}}) == ["part.rate: must be a valid number, got 'x'"]


def test_a_field_of_another_kind_is_unknown() -> None:
    assert problems({"part": {"rate": 0.5, "extra": 2}}) == ["part.extra: unknown field"]


def test_an_unknown_kind_is_one_problem_that_lists_what_is_allowed() -> None:
    assert problems({"part": {"name": "odd", "rate": 0.5}}) == ["part.name: must be one of plain, fancy, got 'odd'"]
