"""A user's own code in a run, as a config. Without torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from podium.trainer.errors import ConfigError, Problem
from podium.trainer.section import Section


class Extension(Section):
    """A Python module whose function makes the model: `factory(config, **options)`, see `podium.trainer.extension`.

    It is code, and whoever trains or evaluates with this config runs it: name only what you would run yourself.
    """

    module: str
    """An import name that the run's image has (`lab.variants`), or a file shipped with the study (`mine.py`)."""
    factory: str = "build_model"
    """The function's name."""
    options: dict[str, Any] = {}
    """Keyword arguments for it."""
    text: str | None = None
    """The shipped file's text, which the study fills in: so it is part of every identity and of every checkpoint."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the text; filled in with it, and a text with another sum is refused."""

    @property
    def is_file(self) -> bool:
        """Whether `module` is a file rather than an import name."""
        return self.module.endswith(".py")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.is_file and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", self.module):
            raise ValueError(f"module must be an import name or a file that ends with .py, got {self.module!r}")
        if not self.is_file and (self.text is not None or self.sha256 is not None):
            raise ValueError(f"text and sha256 are of a shipped file, not of an import name, got {self.module!r}")
        if self.is_file and self.text is None:
            raise ValueError(f"the text of a shipped file must come with it, got none for {self.module!r}")
        if self.sha256 is not None and self.sha256 != sha256_of_text(str(self.text)):
            raise ValueError(f"text must have the sha256 beside it, got another for {self.module!r}")
        if not self.factory.isidentifier():
            raise ValueError(f"factory must be a function's name, got {self.factory!r}")
        return self


def with_text(extension: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An extension as a user writes it, with the text of its file, which is sought from `folder` on.

    One that is no file, or has its text, is returned as it is. Raises ConfigError for a file that can't be read.
    """
    module = extension.get("module")
    if not isinstance(module, str) or not module.endswith(".py") or "text" in extension:
        return extension
    try:
        text = (folder / module).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(Problem("module", f"must be a file in or below {folder}, got {module!r}: {why}")) from None
    # a name without the folder it came from: moving the study must not make it another one
    return {**extension, "module": Path(module).name, "text": text, "sha256": sha256_of_text(text)}


def sha256_of_text(text: str) -> str:
    """The sum by which a shipped file is known."""
    return hashlib.sha256(text.encode()).hexdigest()
