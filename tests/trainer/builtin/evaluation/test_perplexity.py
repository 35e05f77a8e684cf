from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from podium.trainer.builtin.evaluation.perplexity import evaluate_loss

VOCAB = 11
Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class Bigram(nn.Module):
    """The smallest model with the trainer's interface; dropout shows whether it was in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCAB, VOCAB)
        self.dropout = nn.Dropout(0.5)

    def forward(
        self, idx_BT: torch.Tensor, targets_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert targets_BT is None
        return self.dropout(self.table(idx_BT)), None


def batches(*sizes: int, length: int = 7) -> Iterator[Batch]:
    rng = np.random.default_rng(1)
    stream = rng.integers(0, VOCAB, size=(sum(sizes), length + 1))
    start = 0
    for size in sizes:
        rows = stream[start : start + size]
        start += size
        yield rows[:, :-1].copy(), rows[:, 1:].copy()


def by_hand(model: Bigram) -> tuple[float, int]:
    x, y = next(batches(6))
    table = model.table.weight.detach().double().numpy()
    logits = table[x]
    log_z = np.log(np.exp(logits).sum(-1))
    return float((log_z - np.take_along_axis(logits, y[..., None], -1)[..., 0]).mean()), y.size


def test_the_loss_is_the_mean_over_all_tokens() -> None:
    model = Bigram()
    expected, tokens = by_hand(model)
    result = evaluate_loss(model, batches(6), device="cpu")
    assert result.loss == pytest.approx(expected, abs=1e-6)
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    assert result.tokens == tokens
    assert result.bits_per_byte is None
    assert result.bytes is None


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (4, 2), (5, 1)])
def test_uneven_batches_give_the_mean_over_tokens_and_not_over_batches(sizes: tuple[int, ...]) -> None:
    model = Bigram()
    whole = evaluate_loss(model, batches(6), device="cpu")
    parts = evaluate_loss(model, batches(*sizes), device="cpu")
    assert parts.tokens == whole.tokens
    assert parts.loss == pytest.approx(whole.loss, abs=1e-7)


def test_a_batch_larger_than_a_chunk_is_summed_whole() -> None:
    model = Bigram()
    x, y = next(batches(6))
    many = evaluate_loss(model, [(np.tile(x, (200, 1)), np.tile(y, (200, 1)))], device="cpu")
    assert many.tokens == 200 * y.size
    assert many.loss == pytest.approx(evaluate_loss(model, [(x, y)], device="cpu").loss, abs=1e-7)


def test_bits_per_byte_counts_the_bytes_of_the_predicted_tokens() -> None:
    token_bytes = np.arange(1, VOCAB + 1)
    _, y = next(batches(6))
    size = int((y + 1).sum())
    result = evaluate_loss(Bigram(), batches(6), device="cpu", token_bytes=token_bytes)
    assert result.bytes == size
    assert result.bits_per_byte == pytest.approx(result.loss * y.size / math.log(2) / size)


def test_the_model_is_evaluated_in_evaluation_mode_and_left_as_it_was() -> None:
    model = Bigram()
    for training in (True, False):
        model.train(training)
        first = evaluate_loss(model, batches(6), device="cpu")
        assert first == evaluate_loss(model, batches(6), device="cpu")
        assert model.training is training


def test_the_training_mode_comes_back_after_an_error() -> None:
    model = Bigram().train()
    with pytest.raises(IndexError):
        evaluate_loss(model, [(np.full((1, 2), 99), np.zeros((1, 2), dtype=np.int64))], device="cpu")
    assert model.training


def test_the_forward_pass_runs_under_autocast_and_the_loss_in_fp32() -> None:
    class Checking(Bigram):
        seen: list[torch.dtype] = []

        def forward(
            self, idx_BT: torch.Tensor, targets_BT: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            logits = self.table(idx_BT) @ torch.eye(VOCAB)
            self.seen.append(logits.dtype)
            return logits, None

    model = Checking()
    low = evaluate_loss(model, batches(3, 3), device="cpu", autocast=torch.autocast("cpu", torch.bfloat16))
    high = evaluate_loss(model, batches(3, 3), device="cpu")
    assert model.seen == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert low.loss == pytest.approx(high.loss, abs=0.01)


def test_a_loss_too_large_for_a_perplexity_is_infinite_and_nan_stays_nan() -> None:
    model = Bigram()
    with torch.no_grad():
        model.table.weight.zero_()
        model.table.weight[:, 0] = 1e6
    huge = evaluate_loss(model, batches(6), device="cpu")
    assert math.isfinite(huge.loss)
    assert huge.perplexity == math.inf
    with torch.no_grad():
        model.table.weight.fill_(math.nan)
    broken = evaluate_loss(model, batches(6), device="cpu")
    assert math.isnan(broken.loss)
    assert math.isnan(broken.perplexity)


def test_no_batches_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(ValueError, match="no batches"):
        evaluate_loss(Bigram(), [], device="cpu")
