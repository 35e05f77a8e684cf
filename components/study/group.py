"""Groups of a stage's trials as a study declares them: rows of axis values, and what a group takes from another."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from podium.trainer.section import Section


class Group(Section):
    """Trials that belong together, a row each. A group that needs another's result waits for it: it is a later wave."""

    purpose: str = ""
    after: list[str] = []
    """Groups that must be over first."""
    takes: dict[str, str] = {}
    """Axis → the group whose best value of it every row has; such a group comes after that one."""
    rows: list[dict[str, Any]] = Field(min_length=1)
    """Axis → value, a trial each. What a row leaves open is the base config's. A row that repeats a configuration of
    the stage is a replicate of it, with the next seed."""

    @property
    def waits_for(self) -> set[str]:
        """The groups that must be over first."""
        return {*self.after, *self.takes.values()}
