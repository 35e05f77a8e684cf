"""One optimizer step: accumulation, clipping, loss scale.

B sequences of this rank's share  b of one forward pass  T tokens
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from podium.trainer.distributed import Ranks
from podium.trainer.optim.build import Optimizer
from podium.trainer.precision import Precision


def passes(sequences: int, length: int, micro_tokens: int | None) -> list[int]:
    """Sequences of each forward pass of at most `micro_tokens`, none where that is null; two sizes at most."""
    most = sequences if micro_tokens is None else max(1, micro_tokens // length)
    count = -(-sequences // most)
    size, rest = divmod(sequences, count)
    return [size + 1] * rest + [size] * (count - rest)


class Stepper:
    """Takes optimizer steps on the batches it is given."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        precision: Precision,
        *,
        micro_tokens: int | None = None,
        max_grad_norm: float | None,
        ranks: Ranks = Ranks(),  # noqa: B008  frozen
    ) -> None:
        """`model` is `Ranks.wrap`'s; a forward pass has at most `micro_tokens`, by default all of this rank's share."""
        self._model = model
        self._optimizer = optimizer
        self._precision = precision
        self._micro_tokens = micro_tokens
        self._max_grad_norm = max_grad_norm
        self._ranks = ranks
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.scaler = torch.amp.GradScaler(precision.device.type) if precision.needs_scaler else None

    def step(
        self,
        learning_rate: float,
        x_BT: npt.NDArray[np.int64],
        y_BT: npt.NDArray[np.int64],
        *,
        sequences: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(loss in nats, gradient norm before clipping), scalars on the device; over ranks the losses' mean counts.

        `sequences` is the step's number of them over all ranks, by default as many on every rank as here.
        """
        self._optimizer.set_learning_rate(learning_rate)
        share = (sequences or len(x_BT) * self._ranks.world_size) / self._ranks.world_size
        loss = self._accumulate(self._to_device(x_BT), self._to_device(y_BT), share)
        if self.scaler is not None:
            self.scaler.unscale_(self._optimizer)  # type: ignore[arg-type]
        norm = self._gradient_norm()
        divide_by = self._clip_factor(norm)
        if self.scaler is not None:
            self.scaler.step(self._optimizer, divide_by=divide_by)  # type: ignore[arg-type]
            self.scaler.update()
        else:
            self._optimizer.step(divide_by=divide_by)
        self._optimizer.zero_grad()
        return loss, norm

    def _accumulate(self, x_BT: Tensor, y_BT: Tensor, share: float) -> Tensor:
        """Gradients of the mean over the global batch; `share` is how many sequences a rank has on average."""
        sizes = passes(len(x_BT), x_BT.shape[1], self._micro_tokens)
        total: Tensor | None = None
        for index, (x_bT, y_bT) in enumerate(zip(torch.split(x_BT, sizes), torch.split(y_BT, sizes), strict=True)):
            with nullcontext() if index == len(sizes) - 1 else self._ranks.without_sync(self._model):
                with self._precision.autocast():
                    _, loss = self._model(x_bT, y_bT)
                # every sequence of a step counts alike, however many there are in this pass and on this rank
                part = loss if len(x_bT) == share else loss / (share / len(x_bT))
                (part if self.scaler is None else self.scaler.scale(part)).backward()
            # a copy: under CUDA graphs the next pass writes its loss to the same place
            total = part.detach().clone() if total is None else total + part.detach()
        self._ranks.finish_gradients(self._model)
        assert total is not None
        return total

    def _gradient_norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return norm

    def _clip_factor(self, norm: Tensor) -> Tensor | None:
        if self._max_grad_norm is None:
            return None
        factor = (norm / self._max_grad_norm).clamp(min=1.0)
        if factor.device.type == "cpu" and factor.item() == 1.0:
            return None  # no division costs less than one by 1; on a GPU, to ask would cost more
        return factor

    def _to_device(self, tokens: npt.NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(tokens)
        if self._precision.device.type == "cuda":
            return tensor.pin_memory().to(self._precision.device, non_blocking=True)
        return tensor.to(self._precision.device)
