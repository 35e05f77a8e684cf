"""When the sequence length grows, what a step then is, and that an interruption leaves no trace of itself."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest
import torch

from podium.trainer.builtin.checks import impossible_rules
from podium.trainer.builtin.config import CurriculumConfig
from podium.trainer.builtin.data.loader import SequenceLoader, rank_slice
from podium.trainer.builtin.data.shards import open_shard
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.run import train
from podium.trainer.builtin.setup import Curriculum, build_parts, choose_precision, passes, training_shapes
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.lease import Interrupted
from podium.trainer.trial.result import read_lines
from podium.trainer.trial.storage import open_storage

GROWING = {"lengths": [4, 8, 12, 16], "window": 2, "min_improvement": 0.02, "latest_fraction": None}
TIMES = {"train_seconds"}


def note_all(curriculum, losses, first=1):
    """The steps after which the length changed."""
    changed = []
    for step, loss in enumerate(losses, first):
        judges = curriculum.judges_at(step)
        curriculum.note(loss)
        if judges and curriculum.judge(step):
            changed.append(step)
    return changed


def test_a_length_is_left_when_the_loss_stands_still_over_two_windows(tiny_config):
    curriculum = Curriculum(tiny_config(curriculum=GROWING, max_steps=100))
    falling = [5.0 - 0.1 * step for step in range(10)]
    assert note_all(curriculum, falling) == []
    assert curriculum.shape.length == 4
    assert note_all(curriculum, [4.0] * 30, first=11) == [14, 18, 22]  # two windows of two steps each time
    assert curriculum.shape.length == 16
    assert not curriculum.judges_at(100)


def test_a_length_is_left_at_its_deadline_whatever_the_loss_does(tiny_config):
    curriculum = Curriculum(tiny_config(curriculum={**GROWING, "latest_fraction": 0.6}, max_steps=100))
    assert note_all(curriculum, [9.0 - 0.09 * step for step in range(100)]) == [20, 40, 60]


def test_a_resumed_curriculum_decides_as_one_that_went_on(tiny_config):
    losses = [4.0 - 0.05 * step + 0.3 * (step % 3) for step in range(60)]
    whole = Curriculum(tiny_config(curriculum=GROWING, max_steps=100))
    expected = note_all(whole, losses)
    assert len(expected) == 3
    for cut in range(1, 60, 7):
        first, second = (Curriculum(tiny_config(curriculum=GROWING, max_steps=100)) for _ in range(2))
        found = note_all(first, losses[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert found + note_all(second, losses[cut:], first=cut + 1) == expected


def test_crop_has_fewer_tokens_and_reshape_keeps_them_to_within_one_sequence():
    lengths = [256, 512, 768, 1024]
    crop, reshape = (CurriculumConfig(lengths=lengths, mode=mode) for mode in ("crop", "reshape"))
    assert [crop.shape(512, 1024, length).tokens for length in lengths] == [512 * length for length in lengths]
    for batch in (512, 128, 24):
        for length in lengths:
            shape = reshape.shape(batch, 1024, length)
            assert 0 <= batch * 1024 - shape.tokens < length
    assert not reshape.keeps_tokens(512, 1024)
    assert CurriculumConfig(lengths=[256, 512, 1024], mode="reshape").keeps_tokens(512, 1024)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("mode", ["crop", "reshape"])
def test_the_tokens_are_the_same_on_any_number_of_ranks(markov_data, world, mode):
    config = CurriculumConfig(lengths=[4, 12, 16], mode=mode)
    loaders = [
        SequenceLoader(
            markov_data, "train", sequence_length=16, batch_sequences=8, seed=1, rank=rank, world_size=world,
            shuffle=False,
        )
        for rank in range(world)
    ]  # fmt: skip
    tokens = np.concatenate([np.asarray(part) for part in _shards(markov_data)])
    for step, length in enumerate((16, 4, 12, 16)):
        shape = config.shape(8, 16, length)
        batches = [loader.next_batch(shape) for loader in loaders]
        x, y = (np.concatenate([batch[part] for batch in batches]) for part in (0, 1))
        here = tokens[step * 128 : (step + 1) * 128 + 1].astype(np.int64)
        if shape.cropped:
            expected = here[:128].reshape(8, 16)[:, :length], here[1:].reshape(8, 16)[:, :length]
        else:
            used = shape.tokens
            expected = here[:used].reshape(-1, length), here[1 : used + 1].reshape(-1, length)
        assert np.array_equal(x, expected[0])
        assert np.array_equal(y, expected[1])
        assert max(len(batch[0]) for batch in batches) - min(len(batch[0]) for batch in batches) <= 1


def _shards(folder):
    return [open_shard(path) for path in sorted(folder.glob("train-*.bin"))]


def test_shares_and_passes_differ_by_one_sequence_at_most():
    for sequences in (8, 682, 683):
        for world in (1, 2, 8):
            slices = [rank_slice(sequences, rank, world) for rank in range(world)]
            assert [first for first, _ in slices[1:]] == [last for _, last in slices[:-1]]
            assert slices[-1][1] == sequences
            sizes = {last - first for first, last in slices}
            assert max(sizes) - min(sizes) <= 1
    assert passes(682, 768, 64 * 1024) == [76] * 7 + [75] * 2
    assert passes(512, 256, 64 * 1024) == [256, 256]
    assert passes(512, 1024, 64 * 1024) == [64] * 8
    assert passes(512, 1024, None) == [512]


@pytest.mark.parametrize("mode", ["crop", "reshape"])
def test_a_run_counts_the_tokens_it_saw_and_evaluates_at_full_length(tmp_path, tiny_spec, mode):
    growing = {**GROWING, "mode": mode, "window": 1, "min_improvement": 10.0}  # always a plateau
    spec = tiny_spec(curriculum=growing, batch={"sequences": 8, "micro_batch": 4})
    result = train(spec, open_storage(str(tmp_path)))
    lengths = [4] * 2 + [8] * 2 + [12] * 2 + [16] * 6
    per_step = [length * (8 if mode == "crop" else 128 // length) for length in lengths]
    lines = read_lines((tmp_path / "metrics.jsonl").read_text())
    counted = [line["tokens"] for line in lines if "train_loss" in line]
    assert counted == list(np.cumsum(per_step))
    assert result.tokens == sum(per_step)
    assert result.passes == pytest.approx(result.tokens / (749 * 16))
    assert result.final_val_loss is not None
    assert [line["step"] for line in lines if "val_loss" in line] == [3, 6, 9, 12]


def test_a_run_interrupted_in_the_middle_of_a_length_goes_on_bit_for_bit(tmp_path, tiny_spec):
    spec = tiny_spec(curriculum={**GROWING, "min_improvement": 0.2}, max_steps=24)
    train(spec, open_storage(str(tmp_path / "whole")))
    for stop in (3, 7, 8, 13):
        folder = tmp_path / f"cut-{stop}"
        with pytest.raises(Interrupted):
            train(spec, open_storage(str(folder)), reporter=_Interrupting(stop))
        train(spec, open_storage(str(folder)), resume="auto")
        assert _metrics(folder) == _metrics(tmp_path / "whole"), stop
    tokens = [line["tokens"] for line in _metrics(folder) if "train_loss" in line]
    assert len(set(np.diff(tokens))) >= 3  # it went through several lengths


class _Interrupting:
    def __init__(self, step):
        self.step = step

    def progress(self, progress):
        if progress.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def say(self, text):
        pass

    def evaluated(self, point):
        pass

    def close(self):
        pass


def _metrics(folder):
    lines = read_lines((folder / "metrics.jsonl").read_text())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def test_without_a_curriculum_every_step_is_alike(tiny_config):
    curriculum = Curriculum(tiny_config())
    assert not any(curriculum.judges_at(step) for step in range(1, 13))
    assert [(shape.sequences, shape.length, shape.cropped) for shape in curriculum.shapes] == [(8, 16, False)]


def test_what_can_not_be_is_refused_in_words(tiny_config):
    with pytest.raises(ConfigError, match=r"lengths must ascend from at least 2, got \[8, 4, 16\]"):
        tiny_config(curriculum={**GROWING, "lengths": [8, 4, 16]})
    with pytest.raises(ConfigError, match=r"must end with data.sequence_length = 16, got \[4, 8\]"):
        tiny_config(curriculum={**GROWING, "lengths": [4, 8]})
    with pytest.raises(ConfigError, match="decides the tokens, so give max_steps, got max_tokens"):
        tiny_config(curriculum=GROWING, max_steps=None, max_tokens=4096)


def test_a_kill_rule_needs_evaluations_at_known_tokens(tiny_config):
    kill = {"criteria": [{"metric": "loss", "threshold": 0.1}], "span_tokens": 384, "min_tokens": 0}
    exact = {**GROWING, "lengths": [4, 8, 16], "mode": "reshape"}
    assert impossible_rules(tiny_config(curriculum=exact, stop={"kill": kill})) == []
    for growing in (GROWING, {**GROWING, "mode": "reshape"}):
        (problem,) = impossible_rules(tiny_config(curriculum=growing, stop={"kill": kill}))
        assert problem.where == "stop.kill"
        assert "mode 'reshape' and lengths that divide a step's 8 × 16 tokens" in problem.what


@pytest.mark.parametrize("mode", ["crop", "reshape"])
def test_every_shape_of_the_run_is_known_before_the_clock_starts(markov_data, tiny_config, mode):
    growing = {"lengths": [4, 6, 16], "mode": mode, "window": 1, "min_improvement": 10.0}
    config = tiny_config(curriculum=growing, batch={"sequences": 8, "micro_batch": 2})
    parts = build_parts(config, markov_data, choose_precision("fp32", torch.device("cpu")), Ranks())
    seen = []
    parts.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    for step in range(1, 8):
        shape = parts.curriculum.shape
        loss, _ = parts.stepper.step(0.01, *parts.loader.next_batch(shape), sequences=shape.sequences)
        parts.curriculum.note(loss.item())
        if parts.curriculum.judges_at(step):
            parts.curriculum.judge(step)
    parts.loader.close()
    assert {length for _, length in seen} == {4, 6, 16}
    assert set(seen) == set(training_shapes(parts, Ranks()))
    assert len(set(seen)) <= 2 * 3


def test_a_thread_that_makes_batches_ahead_ends_with_its_loader(markov_data):
    before = set(threading.enumerate())
    loader = SequenceLoader(markov_data, "train", sequence_length=16, batch_sequences=8, seed=1)
    loader.next_batch()
    made = set(threading.enumerate()) - before
    assert made
    loader.close()
    assert not any(thread.is_alive() for thread in made)
