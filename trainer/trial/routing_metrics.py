"""Routing as it stands in metrics.jsonl, and what follows from it: shares, entropies, specialisation. Without torch.

A line has `step tokens train_seconds router`; `router` has `layers domains noise assigned entropy load_balance z
dropped`, over the tokens since the line before: `assigned[layer][domain][expert]` counts the tokens that went to an
expert, `entropy[layer][domain]` is the mean entropy of the router's probabilities in nats, `dropped[layer][domain]`
counts assignments over an expert's capacity, and the two losses are means by layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Routing:
    """One line."""

    step: int
    tokens: int
    layers: tuple[int, ...]
    """Numbers of the blocks with experts."""
    domains: tuple[str, ...]
    noise: float
    assigned: Sequence[Sequence[Sequence[int]]]
    """[layer][domain][expert]."""
    entropy: Sequence[Sequence[float | None]]
    """[layer][domain]; None for a domain without tokens."""
    load_balance: Sequence[float | None]
    z: Sequence[float | None]
    dropped: Sequence[Sequence[int]]

    def to_line(self, train_seconds: float) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "train_seconds": round(train_seconds, 4),
            "router": {
                "layers": list(self.layers),
                "domains": list(self.domains),
                "noise": self.noise,
                "assigned": self.assigned,
                "entropy": self.entropy,
                "load_balance": self.load_balance,
                "z": self.z,
                "dropped": self.dropped,
            },
        }

    def shares(self, layer: int) -> list[float]:
        """Share of each expert in all that the layer (its index) assigned; 0 where it assigned nothing."""
        return shares_of([sum(column) for column in zip(*self.assigned[layer], strict=True)])

    def specialisation(self, layer: int) -> list[list[float]]:
        """[domain][expert]: share of each expert in what the layer assigned of a domain."""
        return [shares_of(row) for row in self.assigned[layer]]

    def load_entropy(self, layer: int) -> float:
        """Entropy of the experts' shares as a fraction of its most, log E: 1 is an even load, 0 one expert for all."""
        shares = self.shares(layer)
        return entropy_of(shares) / math.log(len(shares))

    def information(self, layer: int) -> float | None:
        """How much the expert tells of a token's domain: their mutual information over the domain's entropy, with
        every domain given the same weight. 0: none specialises; 1: each expert takes one domain. None for one domain.
        """
        rows = [
            row for row, counts in zip(self.specialisation(layer), self.assigned[layer], strict=True) if sum(counts)
        ]
        if len(rows) < 2:
            return None
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        gained = entropy_of(mean) - sum(entropy_of(row) for row in rows) / len(rows)
        return max(0.0, gained / math.log(len(rows)))


def routing_of(line: Mapping[str, Any]) -> Routing | None:
    """The routing of a line of metrics.jsonl; None for any other line."""
    if "router" not in line:
        return None
    found: dict[str, Any] = dict(line["router"])
    found |= {"layers": tuple(found["layers"]), "domains": tuple(found["domains"])}
    return Routing(step=line["step"], tokens=line["tokens"], **found)


def routing_values(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A line as named numbers, as MLflow has them: `router/layer8/expert3/share` and the like."""
    routing = routing_of(line)
    assert routing is not None
    yield "router/noise", routing.noise
    for index, layer in enumerate(routing.layers):
        place = f"router/layer{layer}"
        yield f"{place}/load_entropy", routing.load_entropy(index)
        yield f"{place}/largest_share", max(routing.shares(index))
        information = routing.information(index)
        if information is not None:
            yield f"{place}/specialisation", information
        for name, value in (("load_balance", routing.load_balance[index]), ("z", routing.z[index])):
            if value is not None:
                yield f"{place}/{name}", value
        yield f"{place}/dropped", float(sum(routing.dropped[index]))
        for expert, share in enumerate(routing.shares(index)):
            yield f"{place}/expert{expert}/share", share
        for domain, row in enumerate(routing.specialisation(index)):
            name = routing.domains[domain]
            entropy = routing.entropy[index][domain]
            if entropy is not None:
                yield f"{place}/{name}/entropy", entropy
            for expert, share in enumerate(row):
                yield f"{place}/{name}/expert{expert}/share", share


def shares_of(counts: Sequence[int]) -> list[float]:
    """Each count over their sum; 0 where that is 0."""
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def entropy_of(shares: Sequence[float]) -> float:
    """In nats."""
    return -math.fsum(share * math.log(share) for share in shares if share > 0)
