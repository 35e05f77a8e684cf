"""The short note that each run leaves beside its result: question, command, commit, data and outcome."""

from __future__ import annotations

import shlex
import sys

from podium.trainer.config import RunSpec
from podium.trainer.result import TrialResult

NOTE = "note.md"


def experiment_note(spec: RunSpec, result: TrialResult, corpus: str) -> str:
    """Markdown; `corpus` is the dataset's in words."""
    labels = ", ".join(f"{name} {value}" for name, value in spec.labels.items())
    commit = result.versions.commit if result.versions else None
    lines = [
        f"# {result.run_name}",
        "",
        f"- **Question:** {spec.question or labels or 'none was given'}",
        f"- **Command:** `{command()}`",
        f"- **Commit:** {commit or 'unknown (no checkout)'}",
        f"- **Config:** preset {spec.config.preset}, {spec.config.mode}, seed {spec.config.seed}",
        f"- **Data:** {corpus}",
        f"- **Outcome:** {result.status.value}: {result.reason}",
    ]
    if result.final_val_loss is not None:
        lines.append(f"- **Validation loss:** {result.final_val_loss:.4f} at step {result.steps}")
    by_domain = result.final_val_loss_by_domain or {}
    if by_domain:
        lines.append(f"- **By domain:** {', '.join(f'{name} {loss:.4f}' for name, loss in by_domain.items())}")
    lines += [f"- **Memory ran out:** {said}" for said in result.memory_fallbacks]
    return "\n".join(lines) + "\n"


def command() -> str:
    """This process's command, as it could be given again."""
    program, *arguments = sys.argv or [""]
    if program.endswith(("trainer/__main__.py", "podium.trainer")):
        return shlex.join(["python", "-m", "podium.trainer", *arguments])
    return shlex.join([program, *arguments])
