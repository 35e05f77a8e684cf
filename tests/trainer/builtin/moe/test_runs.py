"""Runs of a mixture: resume, what a checkpoint fits, router records, the collapse stop, memory that runs out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from podium.trainer.builtin.checkpoint import FULL_KEYS, SIDECAR_KEYS, load_model, read_full
from podium.trainer.builtin.config import RunSpec, load_config
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.loop import Loop
from podium.trainer.builtin.routing import Check, collapse
from podium.trainer.builtin.run import train
from podium.trainer.builtin.setup import Stepper, build_parts, choose_precision
from podium.trainer.trial.errors import CheckpointError, ConfigError
from podium.trainer.trial.result import Status
from podium.trainer.trial.routing_metrics import routing_of, routing_values
from podium.trainer.trial.stopping import CollapseRule
from podium.trainer.trial.storage import open_storage

TIMES = ("train_seconds",)


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


class _Killed(Exception):
    pass


def train_killed_after(step, spec, folder, monkeypatch):
    """Run until a checkpoint of `step` is written, then die as by a signal."""
    save = Loop._save

    def save_and_die(self):
        save(self)
        if self.state.step == step:
            self._recorder.drain()
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_save", save_and_die)
        with pytest.raises(_Killed):
            train(spec, open_storage(str(folder)))


@pytest.mark.parametrize("topk", [1, 2])
def test_a_resumed_mixture_equals_the_uninterrupted_one_bit_for_bit(tmp_path, moe_spec, monkeypatch, topk):
    """Noise, annealing and the records between two lines included: step 5 lies between the records of 4 and 8."""
    model = moe_spec().config.model.model_dump()
    spec = moe_spec(
        model={**model, "dropout": 0.1, "moe": {**model["moe"], "topk": topk}},
        stop={"collapse": {"every_steps": 3, "share": 0.99}},
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(spec, open_storage(str(whole)))
    train_killed_after(5, spec, resumed, monkeypatch)
    held = read_full(resumed / "ckpt-step-5.pt")["scheduler_state_dict"]
    assert held["step"] == 5
    assert int(held["routing"]["records"][0]["assigned"].sum()) == 6 * 16 * topk, "step 5's, not read yet"
    result = train(spec, open_storage(str(resumed)))
    assert result.steps == 12
    assert lines_of(resumed) == lines_of(whole)
    for name in ("final-model.safetensors", "best-model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    last = [read_full(folder / "ckpt-step-12.pt") for folder in (whole, resumed)]
    assert torch.equal(last[0]["torch_rng_state"], last[1]["torch_rng_state"])
    assert last[0]["scheduler_state_dict"]["routing"]["checks"] == last[1]["scheduler_state_dict"]["routing"]["checks"]


def test_the_schedule_goes_on_from_where_it_stood(tmp_path, moe_spec, monkeypatch):
    spec = moe_spec(schedule={"name": "cosine", "warmup_fraction": 0.1})
    train_killed_after(5, spec, tmp_path, monkeypatch)
    held = read_full(tmp_path / "ckpt-step-5.pt")["scheduler_state_dict"]
    train(spec, open_storage(str(tmp_path)))
    rates = [line["learning_rate"] for line in lines_of(tmp_path) if "learning_rate" in line]
    assert held["learning_rate"] == rates[4]
    assert len(rates) == 12
    assert rates == sorted(rates[:1]) + sorted(rates[1:], reverse=True)


def test_a_dense_checkpoint_is_refused_by_a_mixture_and_the_other_way_round(tmp_path, moe_spec):
    steps = {"max_steps": 2, "evaluation": {"every_steps": 2}, "checkpoint": {"every_steps": 2}}
    dense = moe_spec(model={**moe_spec().config.model.model_dump(), "moe": None}, router=None, **steps)
    train(dense, open_storage(str(tmp_path / "dense")))
    with pytest.raises(CheckpointError, match="mode: must be 'moe', got 'dense'"):
        train(moe_spec(), open_storage(str(tmp_path / "moe")), resume=str(tmp_path / "dense/ckpt-step-2.pt"))
    train(moe_spec(**steps), open_storage(str(tmp_path / "moe")))
    with pytest.raises(CheckpointError, match="mode: must be 'dense', got 'moe'"):
        train(dense, open_storage(str(tmp_path / "other")), resume=str(tmp_path / "moe/ckpt-step-2.pt"))


def test_checkpoints_of_another_format_or_of_weights_alone_are_refused(tmp_path, moe_spec):
    spec = moe_spec(max_steps=2, evaluation={"every_steps": 2}, checkpoint={"every_steps": 2})
    train(spec, open_storage(str(tmp_path / "a")))
    state = torch.load(tmp_path / "a/ckpt-step-2.pt", weights_only=True)
    torch.save({**state, "format_version": 7}, tmp_path / "ckpt-step-9.pt")
    with pytest.raises(CheckpointError, match="format_version must be 1, got 7"):
        train(spec, open_storage(str(tmp_path / "b")), resume=str(tmp_path / "ckpt-step-9.pt"))
    with pytest.raises(CheckpointError, match="takes a full checkpoint"):
        train(spec, open_storage(str(tmp_path / "b")), resume=str(tmp_path / "a/final-model.safetensors"))
    other = {**spec.config.model.model_dump(), "moe": {"layers": [0], "num_experts": 4}}
    with pytest.raises(CheckpointError, match=r"model.moe.layers: must be \[0\], got \[1\]"):
        train(moe_spec(model=other), open_storage(str(tmp_path / "b")), resume=str(tmp_path / "a/ckpt-step-2.pt"))


def test_keys_are_those_of_the_design_and_best_final_and_the_last_k_stay(tmp_path, moe_spec):
    spec = moe_spec(checkpoint={"every_steps": 2, "keep_last": 2})
    result = train(spec, open_storage(str(tmp_path)))
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if name.endswith(".pt")} == {"ckpt-step-10.pt", "ckpt-step-12.pt"}
    assert {"best-model.safetensors", "best-model.json", "final-model.safetensors", "final-model.json"} <= names
    state = read_full(tmp_path / "ckpt-step-12.pt")
    assert set(state) == set(FULL_KEYS) == {
        "format_version", "step", "preset", "mode", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict",
        "config", "python_random_state", "numpy_random_state", "torch_rng_state", "cuda_rng_state_if_available",
        "loader_state",
    }  # fmt: skip
    assert (state["format_version"], state["mode"]) == (1, "moe")
    sidecar = json.loads((tmp_path / "model-step-12.json").read_text())
    assert set(sidecar) == set(SIDECAR_KEYS) == {
        "format_version", "step", "preset", "mode", "config", "metrics_summary",
    }  # fmt: skip
    model, config = load_model(tmp_path / "final-model.safetensors")
    assert config.mode == "moe"
    assert not model.training
    assert result.best_model == "best-model.safetensors"


def test_routing_is_recorded_by_layer_expert_and_domain(tmp_path, moe_spec):
    result = train(moe_spec(), open_storage(str(tmp_path)))
    routings = [routing for line in lines_of(tmp_path) if (routing := routing_of(line))]
    assert [routing.step for routing in routings] == [4, 8, 12]
    for routing in routings:
        assert (routing.layers, routing.domains) == ((1,), ("down", "noise", "up"))
        counts = np.array(routing.assigned)
        assert counts.shape == (1, 3, 4)
        assert counts.sum() == 4 * 6 * 16  # steps × sequences × tokens
        assert sum(routing.shares(0)) == pytest.approx(1)
        assert all(0 < entropy < np.log(4) + 1e-6 for entropy in routing.entropy[0])
        assert 0.99 < routing.load_balance[0] < 4
        assert routing.dropped == [[0, 0, 0]]
        assert 0 <= routing.information(0) <= 1
    assert [routing.noise for routing in routings] == pytest.approx([0.5 * (1 - s / 12) for s in (3, 7, 11)])
    # balanced: over whole epochs every domain is trained on alike; these are 72 of its 3 × 56 sequences
    total = np.array([routing.assigned for routing in routings]).sum((0, 1, 3))
    assert total.min() > 0.5 * total.max()
    assert set(result.final_val_loss_by_domain) == {"down", "noise", "up"}
    weights = {"down": 20, "noise": 14, "up": 11}  # validation sequences, never balanced
    mean = sum(result.final_val_loss_by_domain[name] * n for name, n in weights.items()) / sum(weights.values())
    assert mean == pytest.approx(result.final_val_loss)


def test_a_record_as_named_numbers():
    line = {"step": 1, "tokens": 8, "router": {
        "layers": [8], "domains": ["code", "math"], "noise": 0.1, "assigned": [[[4, 0], [0, 4]]],
        "entropy": [[0.5, None]], "load_balance": [1.0], "z": [2.0], "dropped": [[1, 2]],
    }}  # fmt: skip
    values = dict(routing_values(line))
    assert values["router/layer8/specialisation"] == pytest.approx(1.0)
    assert values["router/layer8/load_entropy"] == pytest.approx(1.0)
    assert values["router/layer8/largest_share"] == 0.5
    assert values["router/layer8/math/expert1/share"] == 1.0
    assert values["router/layer8/dropped"] == 3
    assert "router/layer8/math/entropy" not in values


# ---- collapse ----


def test_a_collapse_is_three_looks_in_a_row_over_the_share():
    rule = CollapseRule()

    def looks(*shares):
        return [Check(100 * (number + 1), 9, 2, share) for number, share in enumerate(shares)]

    assert collapse(looks(0.7, 0.7), rule) == ""
    assert collapse(looks(0.7, 0.7, 0.6, 0.7, 0.7), rule) == ""
    assert "block 9 sent 71.0% of its tokens to expert 2 by step 300" in collapse(looks(0.7, 0.7, 0.71), rule)


def test_a_run_made_to_collapse_ends_at_its_third_look(tmp_path, moe_spec, monkeypatch):
    from podium.trainer.builtin.models.moe import Router

    forward = Router.forward
    favour = torch.tensor([0.0, 0.0, 20.0, 0.0])
    monkeypatch.setattr(Router, "forward", lambda self, x: forward(self, x) + favour)
    spec = moe_spec(
        max_steps=40,
        stop={"collapse": {"every_steps": 2}},
        router={"lb_coef": 0.0, "noise": 0.0},
        evaluation={"every_steps": 20},
    )
    result = train(spec, open_storage(str(tmp_path)))
    assert result.status is Status.COLLAPSED
    assert result.steps == 6
    assert "sent 100.0% of its tokens to expert 2 by step 6" in result.reason
    assert json.loads((tmp_path / "result.json").read_text())["reason"] == result.reason
    assert result.final_val_loss is not None
    assert (tmp_path / "ckpt-step-6.pt").is_file()


def test_twenty_healthy_runs_never_collapse(domain_data, moe_config):
    """Balanced, as moe-main is: looked at every two steps, which is noisier than every hundred."""
    for seed in range(20):
        config = moe_config(
            seed=seed, stop={"collapse": {"every_steps": 2}}, router={"lb_coef": 0.01, "noise": 0.1}, max_steps=12,
            optimizer={"learning_rate": 5e-4},
        )  # fmt: skip
        parts = build_parts(config, domain_data, choose_precision("fp32", torch.device("cpu")), Ranks())
        for step in range(1, 13):
            batch = parts.loader.next_batch()
            parts.routing.expect(parts.loader.domains_B)
            parts.stepper.step(5e-4, *batch)
            if parts.routing.is_due(step):
                _, why = parts.routing.look(step, 0, Ranks())
                assert why == "", f"seed {seed}"
        parts.loader.close()
        assert len(parts.routing.checks) == 6


def test_a_dense_run_has_no_routers_to_speak_of(moe_config):
    dense = {**moe_config().model.model_dump(), "moe": None}
    with pytest.raises(ConfigError, match="router is for a mixture of experts"):
        moe_config(model=dense)
    with pytest.raises(ConfigError, match=r"stop.collapse is for a mixture of experts"):
        moe_config(model=dense, router=None, stop={"collapse": {}})


# ---- memory ----


@pytest.fixture
def memory_for(monkeypatch):
    """Makes a forward pass of more than so many tokens run out of memory."""
    step = Stepper.step

    def allow(tokens, *, from_step=1):
        taken = []

        def limited(self, rate, x_BT, y_BT, **rest):
            taken.append(rate)
            if self._micro_tokens is None or (self._micro_tokens > tokens and len(taken) >= from_step):
                raise torch.OutOfMemoryError("CUDA out of memory (injected)")
            return step(self, rate, x_BT, y_BT, **rest)

        monkeypatch.setattr(Stepper, "step", limited)

    return allow


def test_a_smaller_pass_is_the_same_training(tmp_path, moe_spec, memory_for, capsys):
    dense = {
        "model": {**moe_spec().config.model.model_dump(), "moe": None}, "router": None, "max_steps": 4,
        "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    before = train(moe_spec(**dense), open_storage(str(tmp_path / "roomy")))
    memory_for(16, from_step=3)
    spec = moe_spec(batch={"sequences": 6, "micro_batch": 2, "fit_memory": True}, **dense)
    result = train(spec, open_storage(str(tmp_path / "tight")))
    assert result.status is Status.COMPLETED
    assert result.memory_fallbacks == ["batch 1 × accumulation 6 instead of 2 × 3"]
    assert result.final_val_loss == pytest.approx(before.final_val_loss, abs=1e-5)
    assert (
        "out of memory with 2 × 16 tokens in one forward pass: now batch 1 × accumulation 6" in capsys.readouterr().out
    )
    assert "**Memory ran out:** batch 1 × accumulation 6" in (tmp_path / "tight/note.md").read_text()
    assert lines_of(tmp_path / "tight")[-1]["tokens"] == lines_of(tmp_path / "roomy")[-1]["tokens"]


def test_then_the_sequence_is_shortened_and_the_run_begins_again(tmp_path, moe_spec, memory_for, monkeypatch):
    monkeypatch.setattr("podium.trainer.builtin.run.SHORT", 8)
    memory_for(8, from_step=3)
    spec = moe_spec(
        batch={"sequences": 6, "micro_batch": 2, "fit_memory": True}, checkpoint={"every_steps": 2}, max_steps=4
    )
    result = train(spec, open_storage(str(tmp_path)))
    assert result.status is Status.COMPLETED
    assert result.memory_fallbacks == [
        "batch 1 × accumulation 6 instead of 2 × 3",
        "sequences of 8 tokens instead of 16",
    ]
    assert result.tokens == 4 * 6 * 8
    again = train(spec.model_copy(), open_storage(str(tmp_path)))
    assert again.memory_fallbacks == result.memory_fallbacks, "a restart begins with what was taken"


def test_without_the_fallback_memory_that_runs_out_is_a_result(tmp_path, moe_spec, memory_for):
    memory_for(1)
    result = train(moe_spec(), open_storage(str(tmp_path / "off")))
    assert result.status is Status.OUT_OF_MEMORY
    assert result.memory_fallbacks == []
    batch = {"sequences": 6, "micro_batch": 2, "fit_memory": True}
    result = train(moe_spec(batch=batch), open_storage(str(tmp_path / "on")))
    assert result.status is Status.OUT_OF_MEMORY, "nothing is left to make smaller"
    assert result.memory_fallbacks == ["batch 1 × accumulation 6 instead of 2 × 3"]


def test_each_run_leaves_a_note(tmp_path, domain_data, moe_config):
    spec = RunSpec(config=moe_config(max_steps=4), dataset=f"file://{domain_data}", question="Does it learn?")
    train(spec, open_storage(str(tmp_path / "a-run")))
    note = (tmp_path / "a-run/note.md").read_text()
    for part in ("# a-run", "**Question:** Does it learn?", "**Command:** `", "**Commit:** ", "**Data:** three domains",
                 "**Outcome:** completed: all 4 steps done", "moe, seed 42", "**By domain:** down "):  # fmt: skip
        assert part in note
    assert load_config(spec.config.model_dump(mode="json")) == spec.config
