"""A synthetic run that looks like a real one: the parameter-allocation study at full size, with seed noise."""

import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from podium.components.reporting.build import Report, render
from podium.components.reporting.model import DatasetData, EvaluationData, ReportData, StageData, TrialData
from podium.components.study.design import experiments, variants
from podium.components.study.layout import TrialKey
from podium.components.study.ledger import Entry
from podium.components.study.schema import Study
from podium.components.study.trials import trial_config
from podium.components.study.verdict import ArmSummary, StageResults, TrialOutcome, VariantRef, Verdict
from podium.trainer.builtin.allocation import count_parameters
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.trial.result import Point, Status, TrialResult, Versions

STUDY: dict[str, Any] = {
    "name": "param-allocation",
    "title": "Parameter allocation",
    "question": "At a fixed 10M parameters, which embedding share and which GLU expansion give the best quality?",
    "layout": "param-allocation",
    "design": "one_at_a_time",
    "data": {"corpus": {"source": "wikitext-2"}, "vocab_size": 16000},
    "config": {
        "model": {"allocation": {"parameters": 10_000_000, "embedding_share": 0.35, "glu_expansion": 2.66}},
        "data": {"sequence_length": 256},
        "optimizer": {"learning_rate": 1e-3},
        "batch": {"sequences": 4},
        "evaluation": {"every_steps": 500},
    },
    "axes": {
        "embedding": {
            "field": "model.allocation.embedding_share",
            "values": [0.25, 0.35, 0.45],
            "names": ["emb25", "emb35", "emb45"],
            "title": "Embedding share",
            "key": "embedding_ratio",
        },
        "glu": {
            "field": "model.allocation.glu_expansion",
            "values": [2.0, 2.66, 3.0, 4.0],
            "names": ["glu2x", "glu266x", "glu3x", "glu4x"],
            "title": "GLU expansion",
            "key": "glu_expansion",
        },
    },
    "stages": {
        "ranking": {
            "purpose": "rank every value of both axes cheaply",
            "budget": {"tokens": "5M"},
            "seeds": 1,
            "price": {"usd_per_gpu_hour": 1.2, "minutes_per_run": 6.0},
            "promotion": {"policy": "top_per_axis"},
            "max_broken": 1,
        },
        "finals": {
            "purpose": "prove the winner on fresh seeds",
            "budget": {"tokens": "50M"},
            "seeds": 3,
            "price": {"usd_per_gpu_hour": 1.2, "minutes_per_run": 55.0},
            "promotion": {"policy": "best_mean", "alpha": 0.05},
            "proof": True,
        },
    },
    "budget": {"usd": 95.0},
    "confounds": [
        "Share is confounded with depth: 25, 35 and 45 % at 2.66× give 27, 13 and 6 layers.",
        "Fifty million tokens are about twenty passes over WikiText-2.",
    ],
}
EFFECT = {"baseline": 0.0, "emb25": 0.031, "emb45": -0.012, "glu2x": 0.006, "glu3x": -0.004, "glu4x": 0.018}
EFFECT |= {"emb45-glu3x": -0.019}


def _curve(final: float, tokens: int, noise: random.Random, count: int = 40, until: int | None = None) -> list[Point]:
    points = []
    for index in range(1, count + 1):
        at = tokens * index // count
        if until is not None and at > until:
            break
        value = final + 4.2 * (1 - at / tokens) ** 2 * (0.02 * tokens / at + 0.1) + noise.gauss(0, 0.0015)
        points.append(
            Point(step=at // 1024, tokens=at, val_loss=value if at < tokens else final, bits_per_byte=value / 3)
        )
    return points


def _result(
    key: TrialKey, config: TrainConfig, status: Status, loss: float | None, tokens: int, **more: Any
) -> TrialResult:
    d_model, n_layers, n_heads, d_ff = config.model.dimensions
    seconds = tokens / 14_321.7
    base: dict[str, Any] = {
        "run_name": key.name,
        "fingerprint": f"{zlib.crc32(key.name.encode()):012x}",
        "status": status,
        "reason": "all steps done",
        "seed": key.seed,
        "steps": tokens // 1024,
        "tokens": tokens,
        "passes": tokens / 2.4e6,
        "final_train_loss": None if loss is None else loss - 0.1,
        "final_val_loss": loss,
        "final_val_perplexity": None if loss is None else 2.718281828459045**loss,
        "final_bits_per_byte": None if loss is None else loss / 3.01,
        "best_val_loss": loss,
        "best_val_perplexity": None if loss is None else 2.718281828459045**loss,
        "best_step": tokens // 1024,
        "training_seconds": seconds,
        "evaluation_seconds": seconds / 20,
        "compile_seconds": 31.25,
        "checkpoint_seconds": 1.5,
        "tokens_per_second": 14_321.7,
        "peak_memory_bytes": 2_345_678_901,
        "parameters": count_parameters(config.model),
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_ff": d_ff,
        "device_seconds": seconds * 1.05 + 33,
        "cost_usd": (seconds * 1.05 + 33) / 3600 * 1.2,
        "final_model": "checkpoints/final-model.safetensors",
        "versions": Versions(podium="0.1.0", commit="abc1234", python="3.11.2", torch="2.13.0", device="NVIDIA L40S"),
    }
    return TrialResult.model_validate(base | more)


def _stage(
    study: Study, name: str, refs: list[VariantRef], seeds: list[int], noise: random.Random, strange: bool
) -> StageData:
    stage = study.stages[name]
    tokens = stage.budget.tokens or 0
    level = 5.61 if name == "ranking" else 4.32
    trials = []
    for seed in seeds:
        for ref in refs:
            key = TrialKey(name, ref.name, seed)
            config = trial_config(study, name, ref, seed)
            loss = level + EFFECT.get(ref.name, 0.002 * len(ref.name)) + noise.gauss(0, 0.0013)
            curve = _curve(loss, tokens, noise)
            result = _result(key, config, Status.COMPLETED, loss, tokens)
            if strange and ref.name == "emb25":
                curve = _curve(loss, tokens, noise, until=tokens // 2)
                detail = "perplexity 0.52 worse than the baseline's at every look from 1.5M to 2.5M tokens"
                result = _result(
                    key, config, Status.KILLED, curve[-1].val_loss, tokens // 2, kill_tokens=tokens // 2, reason=detail,
                    stopped_tokens=tokens // 2 + 2048, kill_detail=detail, final_model=None,
                )  # fmt: skip
            if strange and ref.name == "glu4x":
                curve = []
                tail = ["step 100 loss 9.1234", "RuntimeError: CUDA error: device-side assert triggered <kernel & co>"]
                result = _result(
                    key, config, Status.BROKEN, None, 0, attempts=3, log_tail=tail, final_model=None,
                    training_seconds=None,
                    reason="broken after 3 attempts: exit code 1", parameters=None, d_model=None, n_layers=None,
                )  # fmt: skip
            if strange and ref.name == "glu2x":
                result = _result(
                    key, config, Status.DIVERGED, None, tokens // 3, reason="validation loss not finite at 1.7M tokens",
                    final_model=None, best_val_loss=7.25, best_val_perplexity=1408.1,
                )  # fmt: skip
            trials.append(TrialData(key, ref, result, tuple(curve), config=config))
    return StageData(name, stage, tuple(refs), tuple(trials))


def _verdict(data: StageData, baseline: str, **more: Any) -> Verdict:
    groups: dict[str, list[TrialData]] = {}
    for trial in data.trials:
        groups.setdefault(trial.variant.name, []).append(trial)
    arms = []
    for name, trials in groups.items():
        values = {
            str(t.key.seed): t.result.final_val_loss if t.status == "completed" else None for t in trials if t.result
        }
        known = [v for v in values.values() if v is not None]
        mean = sum(known) / len(known) if known else None
        sd = (sum((v - mean) ** 2 for v in known) / (len(known) - 1)) ** 0.5 if mean and len(known) > 1 else None
        arms.append((name, mean, sd, values, {str(t.key.seed): t.status for t in trials}))
    base = next(mean for name, mean, *_ in arms if name == baseline)
    assert base is not None
    arms.sort(key=lambda arm: arm[1] if arm[1] is not None else float("inf"))
    ranking = [
        ArmSummary(
            variant=name, rank=place + 1 if mean is not None else None, n=sum(v is not None for v in values.values()),
            mean=mean, sd=sd, values=values, statuses=statuses,
            difference=mean - base if mean is not None and name != baseline else None,
            interval=(mean - base - 0.0024, mean - base + 0.0024) if mean and sd and name != baseline else None,
            p=0.0031 if sd and name != baseline else None,
            why="" if mean is not None else "no finished seed",
        )
        for place, (name, mean, sd, values, statuses) in enumerate(arms)
    ]  # fmt: skip
    outcomes = [
        TrialOutcome(variant=t.variant.name, seed=t.key.seed, fingerprint=t.result.fingerprint or "",
                     status=t.result.status,
                     value=t.result.final_val_loss, cost_usd=t.result.cost_usd)
        for t in data.trials if t.result
    ]  # fmt: skip
    seeds = sorted({t.key.seed for t in data.trials})
    results = StageResults(stage=data.name, variants=list(data.variants or ()), seeds=seeds, outcomes=outcomes)
    content = {"stage": data.name, "ranking": ranking, "metric": "final_val_loss", "results": results}
    return Verdict.model_validate(content | {"parameters": data.stage.promotion.model_dump()} | more)


@pytest.fixture(scope="session")
def study() -> Callable[..., Study]:
    """A study with top-level fields replaced."""
    return lambda **changes: Study.model_validate({**STUDY, **changes})


@pytest.fixture(scope="session")
def make_report(study: Callable[..., Study]) -> Callable[..., ReportData]:
    """A run with 0, 1 or 2 `stages` done, proven or not; `strange` has killed, broken and diverged trials."""

    def make(*, stages: int = 2, strange: bool = False, proven: bool = True, winner: str = "emb45-glu3x") -> ReportData:
        chosen = study()
        noise = random.Random(7)
        refs = variants(chosen)
        base = refs[0]
        by_name = {ref.name: ref for ref in refs}
        both = VariantRef(
            name="emb45-glu3x", overrides=by_name["emb45"].overrides | by_name["glu3x"].overrides,
            axis_values={"embedding": 0.45, "glu": 3.0},
        )  # fmt: skip
        finalists = [both, by_name["emb45"], by_name["glu3x"], base]
        data = ReportData(
            study=chosen,
            run_id="param-allocation-0badcafe",
            study_hash="0badcafe" * 8,
            stages=(
                StageData("ranking", chosen.stages["ranking"], tuple(refs)),
                StageData("finals", chosen.stages["finals"], None),
            ),
            experiments=tuple(experiments(chosen)),
            plan={"usd": 30.1, "usd_worst": 44.2, "usd_naive": 77.7, "trials": 18, "gpu_hours": 25.2, "stages": [
                {"name": "ranking", "trials": 6, "gpu_hours": 0.6, "usd": 0.72},
                {"name": "finals", "trials": 12, "gpu_hours": 11.0, "usd": 13.2}]},
            datasets=(DatasetData("feedfacefeedface", {"vocab_size": 16000, "corpus": "wikitext-2", "splits": {
                "train": {"tokens": 2_400_000, "bytes": 10_900_000, "documents": 600},
                "validation": {"tokens": 250_000, "bytes": 1_100_000, "documents": 60},
            }}, tuple(ref.name for ref in [*refs, both])),),
            store_uri="file:///data/runs",
        )  # fmt: skip
        entries = [Entry(1, "a1", "run_started", "run", {"study": "param-allocation"}, 1.7e9)]
        entries.append(
            Entry(2, "a2", "gate", "shakedown", {"passed": True, "reason": "losses finite, resume exact"}, 1.7e9 + 40)
        )
        if stages >= 1:
            ranking = _stage(chosen, "ranking", refs, [42], noise, strange)
            verdict = _verdict(
                ranking, "baseline", policy="top_per_axis", decision="promote", winner="emb45", promoted=finalists,
                reason="The best value of each axis, both together and the baseline go on.",
                tops={"embedding": "emb45", "glu": "glu3x"}, not_chosen={"glu4x": "glu3x is better on its axis"},
            )  # fmt: skip
            data = replace(
                data, stages=(replace(ranking, verdict=verdict), replace(data.stages[1], variants=tuple(finalists)))
            )
            entries.append(
                Entry(3, "a3", "verdict", "ranking", {"decision": "promote", "reason": verdict.reason}, 1.7e9 + 900)
            )
        if stages >= 2:
            finals = _stage(chosen, "finals", finalists, [52, 53, 54], noise, False)
            verdict = _verdict(
                finals, "baseline", policy="best_mean", decision="promote", winner=winner, proven=proven,
                claim="proven" if proven else "candidate", promoted=[ref for ref in finalists if ref.name == winner],
                reason=f"{winner} has the best mean and {'beats' if proven else 'does not beat'} the baseline.",
                test={"name": "pooled t, one-sided", "statistic": -14.2, "df": 8, "p": 0.0031 if proven else 0.21,
                      "alpha": 0.05, "pooled_sd": 0.0013},
            )  # fmt: skip
            entries.append(
                Entry(4, "a4", "verdict", "finals", {"decision": "promote", "reason": verdict.reason}, 1.7e9 + 9000)
            )
            data = replace(
                data,
                stages=(data.stages[0], replace(finals, verdict=verdict)),
                evaluations=tuple(_evaluation(ref) for ref in finalists),
                registration={
                    "variant": winner, "alias": "champion" if proven else "candidate", "proven": proven,
                    "claim": verdict.claim, "metric": "final_val_loss", "model": "param-allocation", "version": "1",
                            "value": next(t.result for t in finals.trials if t.variant.name == winner).final_val_loss,
                    "uri": "models:/param-allocation@champion"},
            )  # fmt: skip
        spent = sum(trial.result.cost_usd or 0.0 for trial in data.trials if trial.result)
        return replace(data, ledger=tuple(entries), spent_usd=spent)

    return make


@pytest.fixture(scope="session")
def rendered(make_report: Callable[..., ReportData]) -> Callable[..., Report]:
    """The files of `make_report(**state)`, made once a session."""
    made: dict[str, Report] = {}

    def once(**state: Any) -> Report:
        key = repr(sorted(state.items()))
        if key not in made:
            made[key] = render(make_report(**state))
        return made[key]

    return once


def _evaluation(ref: VariantRef) -> EvaluationData:
    offset = EFFECT.get(ref.name, 0.0)
    metrics: dict[str, Any] = {
        "checkpoint": f"file:///store/runs/x/trials/finals/{ref.name}/seed-52/checkpoints/final-model.safetensors",
        "dev_loss": 4.32 + offset, "dev_perplexity": 75.2 + offset * 75, "dev_bits_per_byte": 1.41,
        "test_loss": 4.31 + offset, "test_perplexity": 74.5 + offset * 75, "test_bits_per_byte": 1.40,
        "latency_128_median_ms": 6.51, "latency_128_p95_ms": 7.2, "latency_512_median_ms": 9.9,
        "latency_512_p95_ms": 11.1, "throughput_tokens_per_second": 51234.5, "peak_memory_mb": None,
        "parameters_total": 10_000_123, "vocab_size": 16000, "evaluation_seconds": 31.77,
    }  # fmt: skip
    for task, value in {"sst2": 0.58, "rte": 0.53, "boolq": 0.6, "mrpc": 0.68}.items():
        metrics |= {f"smallbench_{task}_accuracy": value - offset, f"smallbench_{task}_stderr": 0.02}
        metrics |= {f"smallbench_{task}_majority": value - 0.03, f"smallbench_{task}_n": 300}
    metrics["unmeasured"] = {"peak_memory_mb": "no CUDA device"}
    return EvaluationData(ref.name, metrics)
