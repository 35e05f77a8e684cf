"""The winner's configuration for the training at full scale, as a file that the trainer runs as it is."""

from __future__ import annotations

from podium.components.reporting.model import ReportData
from podium.components.study.fields import with_overrides
from podium.components.study.layout import data_key
from podium.components.study.trials import variant_config
from podium.components.study.yaml_text import dump_yaml
from podium.trainer.config import TrainConfig
from podium.trainer.storage import join_uri
from podium.trainer.units import format_count

FILE = "production.yaml"


def production_yaml(data: ReportData) -> str | None:
    """The file's text; None where the study declares no such training, or has no winner yet.

    Stop rules are the race's, so there are none; everything else is the winner's, under the declared overrides.
    """
    declared, verdict = data.study.production, data.last_verdict
    if declared is None or verdict is None or verdict.winner is None or verdict.stage != data.stages[-1].name:
        return None
    winner = next(ref for ref in verdict.promoted if ref.name == verdict.winner)
    config = variant_config(data.study, verdict.stage, winner)
    plain = config.model_dump(mode="json", exclude={"stop", "max_steps", "max_tokens"})
    tree = with_overrides(plain, declared.overrides) | {"max_tokens": declared.tokens, "preset": "custom"}
    checked = TrainConfig.model_validate(tree)
    dataset = next(each for each in data.datasets if winner.name in each.variants or not winner.overrides)
    spec = {
        "config": checked.model_dump(mode="json"),
        "dataset": join_uri(data.store_uri, data_key(dataset.fingerprint)),
    }
    head = [
        f"The winner of run {data.run_id}: {verdict.winner} ({winner.description or 'the base config'}).",
        f"{verdict.reason}.",
        f"{format_count(checked.tokens)} tokens in {checked.steps} steps. Run it as it is:",
        f"  python -m podium.trainer train --config {FILE} --run-name production",
        "The dataset is the study's, read again and again; --data FOLDER takes a larger one with the same tokens.",
    ]
    return "".join(f"# {line}\n" for line in head) + dump_yaml(spec)
