"""A user's own code in a run, as a config. Without torch."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, model_validator

from podium.trainer.section import Section


class Extension(Section):
    """A Python module whose function makes the model: `factory(config, **options)`, see `podium.trainer.extension`.

    It is code, and the run executes it: name only what you would run yourself.
    """

    module: str
    """An import name that the run's image has (`lab.variants`), or a file shipped with the study (`mine.py`)."""
    factory: str = "build_model"
    """The function's name."""
    options: dict[str, Any] = {}
    """Keyword arguments for it."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the shipped file's bytes; the study fills it in, and a file with another sum is refused."""

    @property
    def is_file(self) -> bool:
        """Whether `module` is a file rather than an import name."""
        return self.module.endswith(".py")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.is_file and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", self.module):
            raise ValueError(f"module must be an import name or a file that ends with .py, got {self.module!r}")
        if self.sha256 is not None and not self.is_file:
            raise ValueError(f"sha256 is of a shipped file, and module is an import name, got {self.module!r}")
        if not self.factory.isidentifier():
            raise ValueError(f"factory must be a function's name, got {self.factory!r}")
        return self
