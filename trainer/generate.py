"""Text from a trained model, a token at a time.

T tokens so far  V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt_ids: list[int],
    *,
    tokens: int,
    context: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    end: int | None = None,
    seed: int = 42,
) -> Iterator[int]:
    """Up to `tokens` ids after the prompt, which must not be empty; ends before the id `end`.

    The model sees the last `context` tokens. Temperature 0 takes the likeliest token always; `top_k` samples among the
    k likeliest.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    for _ in range(tokens):
        idx_1T = torch.tensor([ids[-context:]], device=device)
        logits_V = model(idx_1T)[0][0, -1].float().cpu()
        chosen = _choose(logits_V, temperature, top_k, generator)
        if chosen == end:
            return
        ids.append(chosen)
        yield chosen


def _choose(logits_V: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        least = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))
