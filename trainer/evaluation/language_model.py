"""Our model and tokenizer as lm-eval wants them: log-likelihoods of continuations, batched by length.

Shapes: B rows, T positions, V vocabulary. Imported only where SmallBench runs, since it imports lm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lm_eval.api.model import LM
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

_TOKENS_AT_ONCE = 4096
"""Positions of one forward pass: bounds the logits, which are V times as large."""


class PodiumLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """A model for `lm_eval.evaluate`, for tasks that rank given continuations.

    Context and continuation are tokenised together and cut where the context alone ends, spaces at the context's end
    moved to the continuation, as lm-eval's own Hugging Face model does. A text longer than `max_length` loses its
    beginning; `truncated` counts the examples.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        end_of_text: int,
        max_length: int,
        device: torch.device,
        autocast: AbstractContextManager[Any],
    ) -> None:
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._end_of_text = end_of_text
        self._max_length = max_length
        self._device = device
        self._autocast = autocast
        self._cut: set[int] = set()

    @property
    def truncated(self) -> int:
        """Examples of the last task that lost the beginning of a prompt."""
        return len(self._cut)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each request's continuation."""
        pairs = [self._encode(*request.args) for request in requests]
        kept = [self._shorten(context, continuation) for context, continuation in pairs]
        self._cut = {requests[i].doc_id for i, (context, _) in enumerate(pairs) if len(kept[i][0]) < len(context)}
        pairs = kept
        # continuations of one token share their input with the question's other answers: run it once
        inputs: dict[tuple[int, ...], list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            inputs.setdefault(tuple((context + continuation)[:-1]), []).append(index)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for batch in self._batches(sorted(inputs, key=len, reverse=True)):
            logits_BTV = self._logits(batch)
            for row, tokens in enumerate(batch):
                for index in inputs[tokens]:
                    continuation = pairs[index][1]
                    last = logits_BTV[row, len(tokens) - len(continuation) : len(tokens)]
                    found[index] = _score(last, continuation)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Not offered: perplexity is measured on the study's own data, with its own windows."""
        raise NotImplementedError("tasks that need a rolling log-likelihood are not part of SmallBench")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: no task of SmallBench generates."""
        raise NotImplementedError("tasks that generate are not part of SmallBench")

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        whole = self._ids(bare + continuation)
        prefix = self._ids(bare) if bare else []
        answer = whole[len(prefix) :]
        return whole[: len(prefix)] or [self._end_of_text], answer

    def _shorten(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        excess = len(context) + len(continuation) - 1 - self._max_length
        return context[max(0, excess) :], continuation

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _batches(self, inputs: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        batches: list[list[tuple[int, ...]]] = []
        for tokens in inputs:
            # the longest comes first, so that it sets the width of its batch
            if not batches or (len(batches[-1]) + 1) * len(batches[-1][0]) > _TOKENS_AT_ONCE:
                batches.append([])
            batches[-1].append(tokens)
        return batches

    def _logits(self, batch: Sequence[tuple[int, ...]]) -> torch.Tensor:
        # padded on the right: attention is causal, so that no position sees it
        idx_BT = torch.full((len(batch), len(batch[0])), self._end_of_text)
        for row, tokens in enumerate(batch):
            idx_BT[row, : len(tokens)] = torch.tensor(tokens)
        with torch.no_grad(), self._autocast:
            logits_BTV, _ = self._model(idx_BT.to(self._device))
        return logits_BTV  # type: ignore[no-any-return]


def _score(logits_TV: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    targets_T = torch.tensor(continuation, device=logits_TV.device)
    loss = F.cross_entropy(logits_TV.float(), targets_T, reduction="none").double().sum()
    return -float(loss), bool((logits_TV.argmax(-1) == targets_T).all())
