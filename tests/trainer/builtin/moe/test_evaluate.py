"""A mixture's weights under the evaluation that every finalist gets."""

from __future__ import annotations

import pytest

from podium.trainer.builtin.evaluation.metrics import EvaluationRequest
from podium.trainer.builtin.evaluation.run import evaluate_checkpoint
from podium.trainer.builtin.run import train
from podium.trainer.trial.storage import open_storage


def test_a_mixture_is_measured_as_far_as_its_positions_go(tmp_path, moe_spec, domain_data):
    model = {**moe_spec().config.model.model_dump(), "n_positions": 256}
    spec = moe_spec(model=model, max_steps=4, evaluation={"every_steps": 2}, checkpoint={"every_steps": 2})
    result = train(spec, open_storage(str(tmp_path / "run")))
    request = EvaluationRequest(
        checkpoint=str(tmp_path / "run/final-model.safetensors"), data=str(domain_data), output=str(tmp_path / "out"),
        device="cpu", precision="fp32", skip=("smallbench", "throughput"),
    )  # fmt: skip
    metrics = evaluate_checkpoint(request)
    assert metrics["declared_dev_loss"] == pytest.approx(result.final_val_loss, abs=1e-6)
    assert metrics["latency_128_median_ms"] > 0
    assert metrics["latency_512_median_ms"] is None
    assert metrics["unmeasured"]["latency_512_median_ms"] == "the model has 256 positions"
