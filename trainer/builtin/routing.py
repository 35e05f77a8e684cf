"""What a mixture's routers do while it trains: recorded at intervals, and looked at for a collapse.

L layers with experts  C domains  E experts
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from podium.trainer.builtin.config import TrainConfig
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.model_config import RouterConfig
from podium.trainer.builtin.models.moe import Domains, Mixture, RoutingRecord
from podium.trainer.trial.result import finite
from podium.trainer.trial.routing_metrics import Routing
from podium.trainer.trial.stopping import CollapseRule


@dataclass(frozen=True)
class Check:
    """One look for a collapse: the largest share of any expert in any layer."""

    step: int
    layer: int
    """The block's number."""
    expert: int
    share: float


def collapse(checks: list[Check], rule: CollapseRule) -> str:
    """Why the run ends, or empty: more than the rule's share in any layer at its last `rule.checks` looks in a row."""
    last = checks[-rule.checks :]
    if len(last) < rule.checks or any(check.share <= rule.share for check in last):
        return ""
    newest = last[-1]
    return (
        f"experts collapsed: block {newest.layer} sent {newest.share:.1%} of its tokens to expert {newest.expert} by "
        f"step {newest.step}, over {rule.share:.0%} at {rule.checks} looks in a row"
    )


class RouterMonitor:
    """Tells a mixture the domains of what comes, and reads what its routers did with it."""

    def __init__(self, model: Mixture, config: TrainConfig, names: tuple[str, ...], device: torch.device) -> None:
        """`names` of the data's domains, none where it has none."""
        self._model, self._config = model, config
        self._router = config.router or RouterConfig()
        self._rule = config.stop.collapse
        model.router = self._router
        model.domains = Domains(names or ("all",))
        moe = config.model.mixture
        assert moe is not None
        self.topk = moe.topk
        self._layers = tuple(sorted(moe.layers))
        self._records = [RoutingRecord(model.domains, len(mixture.experts), device) for mixture in model.mixtures]
        for mixture, record in zip(model.mixtures, self._records, strict=True):
            mixture.record = record
        self._since_line, self._since_check = _Sums.of(self._records), _Sums.of(self._records)
        self.checks: list[Check] = []

    def expect(self, domains_B: npt.NDArray[np.int64] | None) -> None:
        """The domains of the sequences of the next optimizer step."""
        device = self._records[0].assigned_CE.device
        self._model.domains.expect(None if domains_B is None else torch.from_numpy(domains_B).to(device))

    def is_due(self, step: int) -> bool:
        """Whether something is to be read after this step."""
        return step % self._router.log_every_steps == 0 or (
            self._rule is not None and step % self._rule.every_steps == 0
        )

    def look(self, step: int, tokens: int, ranks: Ranks) -> tuple[Routing | None, str]:
        """What is to be recorded after this step, and why the run ends with it (empty: it does not)."""
        read = _Sums.of(self._records, ranks)
        for record in self._records:
            record.clear()
        self._since_line += read
        self._since_check += read
        routing, why = None, ""
        if step % self._router.log_every_steps == 0:
            routing = self._since_line.routing(step, tokens, self)
            self._since_line = read.zero()
        if self._rule is not None and step % self._rule.every_steps == 0:
            self.checks.append(self._since_check.check(step, self._layers))
            self._since_check = read.zero()
            why = collapse(self.checks, self._rule)
        return routing, why

    def noise_at(self, step: int) -> float:
        """Standard deviation of the noise in that step."""
        return self._router.noise_at(step, self._config.steps)

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the blocks with experts."""
        return self._layers

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""
        return self._model.domains.names

    def state_dict(self) -> dict[str, Any]:
        """What is counted and not read yet, and the looks so far."""
        return {
            "records": [record.state_dict() for record in self._records],
            "since_line": self._since_line.state_dict(),
            "since_check": self._since_check.state_dict(),
            "checks": [asdict(check) for check in self.checks],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`; counts over other domains (a run on other data goes on) are left."""
        self.checks = [Check(**check) for check in state["checks"]]
        if state["since_line"]["assigned"].shape != torch.Size(self._since_line.assigned.shape):
            return
        for record, held in zip(self._records, state["records"], strict=True):
            record.load_state_dict(held)
        self._since_line = _Sums.from_state_dict(state["since_line"])
        self._since_check = _Sums.from_state_dict(state["since_check"])


@dataclass(frozen=True)
class _Sums:
    """Records of all layers, summed over ranks and over looks, on the host: (L, C, E), (L, C), (L, C) and (L, 2)."""

    assigned: npt.NDArray[np.int64]
    dropped: npt.NDArray[np.int64]
    entropy: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    passes: int

    @classmethod
    def of(cls, records: list[RoutingRecord], ranks: Ranks = Ranks()) -> _Sums:  # noqa: B008  frozen
        def gather(name: str) -> npt.NDArray[Any]:
            parts = torch.stack([getattr(record, name) for record in records]).cpu().double()
            if ranks.world_size > 1:
                parts = ranks.mean(parts.to(records[0].losses_2.device)).cpu() * ranks.world_size
            return parts.numpy()

        return cls(
            np.rint(gather("assigned_CE")).astype(np.int64),
            np.rint(gather("dropped_C")).astype(np.int64),
            gather("entropy_C"),
            gather("losses_2"),
            records[0].passes * ranks.world_size,
        )

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.assigned + other.assigned,
            self.dropped + other.dropped,
            self.entropy + other.entropy,
            self.losses + other.losses,
            self.passes + other.passes,
        )

    def zero(self) -> _Sums:
        return _Sums(
            np.zeros_like(self.assigned),
            np.zeros_like(self.dropped),
            np.zeros_like(self.entropy),
            np.zeros_like(self.losses),
            0,
        )

    def check(self, step: int, layers: tuple[int, ...]) -> Check:
        share_LE = self.assigned.sum(1) / np.maximum(1, self.assigned.sum((1, 2)))[:, None]
        layer, expert = np.unravel_index(int(share_LE.argmax()), share_LE.shape)
        return Check(step, layers[int(layer)], int(expert), float(share_LE[layer, expert]))

    def routing(self, step: int, tokens: int, monitor: RouterMonitor) -> Routing:
        seen_LC = self.assigned.sum(2) / monitor.topk
        entropy = [
            [finite(total / seen) if seen else None for total, seen in zip(totals, counts, strict=True)]
            for totals, counts in zip(self.entropy.tolist(), seen_LC.tolist(), strict=True)
        ]
        losses_L2 = self.losses / max(1, self.passes)
        return Routing(
            step=step,
            tokens=tokens,
            layers=monitor.layers,
            domains=monitor.domains,
            noise=monitor.noise_at(step),
            assigned=self.assigned.tolist(),
            entropy=entropy,
            load_balance=[finite(value) for value in losses_L2[:, 0].tolist()],
            z=[finite(value) for value in losses_L2[:, 1].tolist()],
            dropped=self.dropped.tolist(),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "assigned": torch.from_numpy(self.assigned),
            "dropped": torch.from_numpy(self.dropped),
            "entropy": torch.from_numpy(self.entropy),
            "losses": torch.from_numpy(self.losses),
            "passes": self.passes,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> _Sums:
        return cls(
            state["assigned"].numpy(),
            state["dropped"].numpy(),
            state["entropy"].numpy(),
            state["losses"].numpy(),
            state["passes"],
        )
