"""Mixtures of experts in place of a model's feed-forwards: the router, its two losses, and what it is seen to do.

    B sequences  T tokens  N tokens of all sequences (B · T)  D d_model  E experts  k experts of a token

Upcycling (Komatsuzaki et al., 2022): every expert begins as a copy of the dense feed-forward, beside a fresh router.
Since a token's weights sum to 1, the mixture is the dense model at the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from podium.trainer.builtin.model_config import MoEConfig, RouterConfig
from podium.trainer.builtin.models.experts import Dispatch, Experts

# Counting where a router sends tokens in training, by domain of the text, until somebody reads the counts.


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


ROUTER_STD = 0.02


@dataclass(frozen=True)
class RouterLosses:
    """Of one layer in one forward pass, as scalars with a gradient."""

    load_balance: Tensor
    z: Tensor


class Router(nn.Module):
    """A linear map to one logit an expert, in fp32 whatever the rest computes in."""

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, d_model))
        nn.init.normal_(self.weight, std=ROUTER_STD)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) to logits (N, E)."""
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.float(), self.weight.float())


class MixtureOfExperts(nn.Module):
    """Takes the place of a GPT-2 block's feed-forward, of which every expert begins as a copy."""

    def __init__(self, feed_forward: nn.Module, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        self.router = Router(d_model, config.num_experts)
        self.experts = Experts(feed_forward, config.num_experts)
        self.dropout: nn.Module = feed_forward.dropout  # type: ignore[assignment]
        self.topk = config.topk
        self.capacity_factor = config.capacity_factor
        self.noise = 0.0
        """Standard deviation of the noise on the logits in training."""
        self.losses: RouterLosses | None = None
        """Of the last forward pass in training."""
        self.record: RoutingRecord | None = None
        """Where routing in training is counted; None: nowhere."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.router(x_ND)
        if self.training and self.noise > 0:
            logits_NE = logits_NE + self.noise * torch.randn_like(logits_NE)
        probabilities_NE = logits_NE.softmax(-1)
        chosen_Nk, experts_Nk = probabilities_NE.topk(self.topk)
        weight_kN = combine_weights(chosen_Nk).T.contiguous()
        dispatch = Dispatch.of(experts_Nk, logits_NE.shape[1])
        kept_A = None
        if self.capacity_factor is not None:
            # of those that are dropped the product is still made: that leaves every shape as it was
            kept_A = dispatch.kept(self._capacity(len(x_ND)))
            weight_kN = weight_kN * kept_A.view(self.topk, -1)
        if self.training:
            share_E = dispatch.counts / len(x_ND)
            self.losses = RouterLosses(load_balance_loss(probabilities_NE, share_E), z_loss(logits_NE))
            if self.record is not None:
                self.record.add(probabilities_NE.detach(), experts_Nk, kept_A, self.losses)
        out_BTD: Tensor = self.dropout(self.experts(x_ND, weight_kN, dispatch).view(x_BTD.shape))
        return out_BTD

    def _capacity(self, tokens: int) -> int:
        assert self.capacity_factor is not None
        return math.ceil(self.capacity_factor * tokens * self.topk / len(self.experts))


def combine_weights(chosen_Nk: Tensor) -> Tensor:
    """A token's weights from the probabilities of its experts; they sum to 1.

    One expert: p / stop_gradient(p), which is 1 and has the gradient of Switch's p (Fedus et al., 2021) relative to its
    size; a plain 1 would tell the router nothing of the language model's loss. Two: renormalised.
    """
    if chosen_Nk.shape[1] == 1:
        return chosen_Nk / chosen_Nk.detach()
    return chosen_Nk / chosen_Nk.sum(-1, keepdim=True)


def load_balance_loss(probabilities_NE: Tensor, share_E: Tensor) -> Tensor:
    """Switch's E · Σ f·P (Fedus et al., 2021, eq. 4-6): f the share of tokens that go to an expert, which has no
    gradient, P the mean of its probability. 1 where tokens are spread evenly over experts (2 for two experts a token).
    """
    return probabilities_NE.shape[1] * torch.dot(share_E, probabilities_NE.mean(0))


def z_loss(logits_NE: Tensor) -> Tensor:
    """Mean of logsumexp(logits)² (Zoph et al., 2022, eq. 5): keeps logits small, where fp32 and bf16 round little."""
    return logits_NE.logsumexp(-1).square().mean()


def install_moe_layers(blocks: Sequence[nn.Module], d_model: int, config: MoEConfig) -> list[MixtureOfExperts]:
    """Put a mixture of copies of its own feed-forward (`mlp`) into each of the given blocks, in their order."""
    mixtures = []
    for layer in sorted(config.layers):
        block = blocks[layer]
        mixture = MixtureOfExperts(block.mlp, d_model, config)  # type: ignore[arg-type]
        block.mlp = mixture
        mixtures.append(mixture)
    return mixtures


@runtime_checkable
class Mixture(Protocol):
    """A model with routers: what their training and the recording of their routing need of it. Others need not know.

    In training `forward` with targets gives a loss whose value is the language model's alone, so that it compares with
    a dense model's, and whose gradient is that of the weighted sum with the router losses.
    """

    mixtures: list[MixtureOfExperts]
    """The layers with experts, in order."""
    domains: Domains
    router: RouterConfig
    """How the routers are trained."""
