"""Flags that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from podium.trainer.presets import PRESETS

ConfigFlag = Annotated[str | None, typer.Option("--config", help="TrainConfig or RunSpec, YAML or JSON, path or URI.")]
PresetFlag = Annotated[str | None, typer.Option("--preset", help=f"A named config instead: {', '.join(PRESETS)}.")]
DataFlag = Annotated[str | None, typer.Option("--data", help="Folder or URI of a prepared dataset (see prepare).")]
SeedFlag = Annotated[int | None, typer.Option("--seed", help="Of weights and data order.")]
DeviceFlag = Annotated[str | None, typer.Option("--device", help="auto, cuda, mps or cpu.", show_default="auto")]
ThreadsFlag = Annotated[int | None, typer.Option("--threads", help="CPU threads; the same number resumes bit for bit.")]
SetFlag = Annotated[
    list[str] | None, typer.Option("--set", help="Any other field: --set optimizer.weight_decay=0.05 (repeatable).")
]
