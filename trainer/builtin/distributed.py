"""Several devices under torchrun: the same optimisation as on one, each rank with its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from podium.trainer.trial.errors import ConfigError

MEETING_SECONDS = 60.0


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of the run. With one process nothing here communicates."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model that averages its gradients over ranks in `backward`, or else in `finish_gradients`."""
        if self.world_size == 1 or changes_layers(model):
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def without_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context for all but the last of a step's backward passes: gradients gather locally."""
        return model.no_sync() if hasattr(model, "no_sync") else nullcontext()  # type: ignore[operator]

    def finish_gradients(self, model: nn.Module) -> None:
        """Average the gradients of a model that `wrap` left as it is: of those parameters that have one, on all ranks
        alike. DistributedDataParallel would wait for the others, or search for them after every pass.
        """
        if self.world_size == 1 or hasattr(model, "no_sync"):
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        work = [torch.distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
        for handle in work:
            handle.wait()
        torch._foreach_div_(gradients, self.world_size)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
            values /= self.world_size
        return values

    def largest(self, values: list[float], device: torch.device) -> list[float]:
        """The largest over ranks, element by element."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor.tolist()

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            torch.distributed.barrier()


def changes_layers(model: nn.Module) -> bool:
    """Whether which parameters have a gradient changes from step to step (`begin_step` decides)."""
    return bool(getattr(model, "changes_layers", False))


def launched_ranks() -> Ranks:
    """What torchrun's environment says, or one process. Raises ConfigError where it says half of it."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return Ranks()
    missing = [name for name in ("RANK", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, so {' and '.join(missing)} must be set: start the ranks with "
            "`torchrun --nproc-per-node N -m podium.trainer …`, or `python -m torch.distributed.run` without torchrun"
        )
    return Ranks(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]))


def _meeting(ranks: Ranks) -> dict[str, Any]:
    """Where the ranks meet: the first one's store, or torchrun's own.

    All ranks have been started when one comes here, so one that does not come within a minute is lost: the default
    half hour would hold the others' devices as long. What they send each other later has the default.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return {}
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=MEETING_SECONDS)
    store_of_first: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]  # named in no list of its module
    store = store_of_first(address, port, ranks.world_size, ranks.is_first, timeout=timeout)
    return {"store": store, "rank": ranks.rank, "world_size": ranks.world_size}


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """The process group, for as long as the block lasts: NCCL between GPUs, gloo between CPUs."""
    if ranks.world_size == 1:
        yield
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", **_meeting(ranks))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
