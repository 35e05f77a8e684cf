"""Loss, perplexity and bits per byte of a model over batches: the one evaluation that every number in a study is.

Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from podium.trainer.trial.result import perplexity_of

_CHUNK = 512
"""Positions whose loss is taken at once: bounds the fp32 copy of the logits, which is V times as large. On a CPU, where
it then stays in the cache, twice as fast as all of 16 × 256 positions at once."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found. A loss that is not finite is kept as it is (nan or inf)."""

    loss: float
    """Mean negative log-likelihood in nats per token."""
    perplexity: float
    """exp(loss); infinite where that is too large for a float."""
    bits_per_byte: float | None
    """Nats over all tokens / (ln 2 · UTF-8 bytes of these tokens); None where the bytes are not known."""
    tokens: int
    """Predicted tokens."""
    bytes: int | None
    by_domain: dict[str, float] | None = None
    """The loss over each domain's sequences; None where domains were not given."""


def evaluate_loss(
    model: nn.Module,
    batches: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    *,
    device: torch.device | str,
    autocast: contextlib.AbstractContextManager[Any] | None = None,
    token_bytes: npt.NDArray[Any] | None = None,
    domains: Sequence[str] = (),
) -> Evaluation:
    """The exact mean loss over all predicted tokens of `batches` (pairs x_BT, y_BT of token ids).

    The forward pass runs under `autocast` (a reusable context such as `torch.autocast(...)`); log-likelihoods are taken
    in fp32 and summed in fp64, weighted by tokens and not by batches. So how sequences are divided over batches changes
    the result only by what a matrix product of another height rounds differently (about 1e-7); the same batches on the
    same device and thread count give the same bits. The model is put into evaluation mode and back.

    `token_bytes` is the UTF-8 length of every token id (V entries), for bits per byte. `domains` names that of each
    sequence, in the order of the batches. Raises ValueError without batches.
    """
    context = autocast or contextlib.nullcontext()
    nats, tokens, size, done = 0.0, 0, 0, 0
    by_domain: dict[str, tuple[float, int]] = {}
    was_training = model.training
    model.eval()
    try:
        # not inference_mode: buffers that a model caches in its forward pass must stay usable in training
        with torch.no_grad():
            for x_BT, y_BT in batches:
                with context:
                    logits_BTV, _ = model(torch.from_numpy(x_BT).to(device))
                if domains:
                    for domain, logits_TV, y_T in zip(domains[done:], logits_BTV, y_BT, strict=False):
                        own = _sum_of_losses(logits_TV, torch.from_numpy(y_T).to(device))
                        before = by_domain.get(domain, (0.0, 0))
                        by_domain[domain] = before[0] + own, before[1] + y_T.size
                        nats += own
                    done += len(y_BT)
                else:
                    nats += _sum_of_losses(logits_BTV.flatten(0, 1), torch.from_numpy(y_BT).flatten().to(device))
                tokens += y_BT.size
                if token_bytes is not None:
                    size += int(token_bytes[y_BT].sum(dtype=np.int64))
    finally:
        model.train(was_training)
    if tokens == 0:
        raise ValueError("nothing to evaluate: no batches")
    loss = nats / tokens
    return Evaluation(
        loss=loss,
        perplexity=perplexity_of(loss),
        bits_per_byte=nats / math.log(2) / size if size else None,
        tokens=tokens,
        bytes=size or None,
        by_domain={name: own / count for name, (own, count) in sorted(by_domain.items())} or None,
    )


def _sum_of_losses(logits_NV: torch.Tensor, y_N: torch.Tensor) -> float:
    sums = []
    for logits_CV, y_C in zip(torch.split(logits_NV, _CHUNK), torch.split(y_N, _CHUNK), strict=True):
        losses_C = F.cross_entropy(logits_CV.float(), y_C, reduction="none")
        # a device without fp64 (MPS) sums on the host
        sums.append((losses_C.cpu() if losses_C.device.type == "mps" else losses_C).sum(dtype=torch.float64))
    return float(torch.stack(sums).sum())
