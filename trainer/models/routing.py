"""Counting where a router sends tokens in training, by domain of the text, until somebody reads the counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from podium.trainer.models.moe import RouterLosses


class Domains:
    """Which domain each sequence of the forward passes to come is of, shared by all layers."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """`names` of the domains; one where the data has none."""
        self.names = names
        self._coming_B: Tensor | None = None
        self.domain_N: Tensor | None = None
        """Of every token of the pass at hand; None where all are of the first domain."""

    def expect(self, domains_B: Tensor | None) -> None:
        """The domains of the next sequences, in the order in which they come, over however many passes."""
        self._coming_B = domains_B

    def begin_pass(self, sequences: int, tokens: int) -> None:
        """A pass of so many sequences of so many tokens begins."""
        self.domain_N = None
        if self._coming_B is not None:
            mine_B, self._coming_B = self._coming_B[:sequences], self._coming_B[sequences:]
            self.domain_N = mine_B.repeat_interleave(tokens)


class RoutingRecord:
    """What one layer's router did since the record was last cleared. C domains, E experts."""

    def __init__(self, domains: Domains, num_experts: int, device: torch.device) -> None:
        self._domains = domains
        shape = (len(domains.names), num_experts)
        self.assigned_CE = torch.zeros(shape, dtype=torch.int64, device=device)
        """Tokens of each domain that went to each expert, those over its capacity included."""
        self.dropped_C = torch.zeros(shape[0], dtype=torch.int64, device=device)
        """Assignments over an expert's capacity."""
        self.entropy_C = torch.zeros(shape[0], device=device)
        """Sum over tokens of the entropy of the router's probabilities, in nats."""
        self.losses_2 = torch.zeros(2, device=device)
        """Sums over passes of load-balance and z-loss."""
        self.passes = 0

    @torch.no_grad()
    def add(self, probabilities_NE: Tensor, experts_Nk: Tensor, kept_A: Tensor | None, losses: RouterLosses) -> None:
        """Count one pass; `kept_A` is by choice, as Dispatch numbers assignments."""
        C, E = self.assigned_CE.shape
        tokens, topk = experts_Nk.shape
        domain_N = self._domains.domain_N
        if domain_N is None:
            domain_N = experts_Nk.new_zeros(tokens)
        key_A = (domain_N.unsqueeze(1) * E + experts_Nk).flatten()
        self.assigned_CE.view(-1).scatter_add_(0, key_A, torch.ones_like(key_A))
        entropy_N = torch.special.entr(probabilities_NE).sum(-1)
        # a sum in a fixed order: scattered additions of floats are not the same from run to run on a GPU
        member_CN = domain_N == torch.arange(C, device=domain_N.device).unsqueeze(1)
        self.entropy_C += (member_CN * entropy_N).sum(1)
        if kept_A is not None:
            dropped_N = (~kept_A).view(topk, tokens).sum(0)
            self.dropped_C += (member_CN * dropped_N).sum(1)
        self.losses_2 += torch.stack([losses.load_balance, losses.z])
        self.passes += 1

    def clear(self) -> None:
        """Begin anew."""
        for counter in (self.assigned_CE, self.dropped_C, self.entropy_C, self.losses_2):
            counter.zero_()
        self.passes = 0

    def state_dict(self) -> dict[str, Any]:
        """The living tensors, and the number of passes."""
        return {
            "assigned": self.assigned_CE,
            "dropped": self.dropped_C,
            "entropy": self.entropy_C,
            "losses": self.losses_2,
            "passes": self.passes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.assigned_CE.copy_(state["assigned"])
        self.dropped_C.copy_(state["dropped"])
        self.entropy_C.copy_(state["entropy"])
        self.losses_2.copy_(state["losses"])
        self.passes = state["passes"]
