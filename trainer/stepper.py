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


class Stepper:
    """Takes optimizer steps on the batches it is given."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        precision: Precision,
        *,
        accumulation_steps: int,
        max_grad_norm: float | None,
        ranks: Ranks = Ranks(),  # noqa: B008  frozen
    ) -> None:
        """`model` is `Ranks.wrap`'s; the batch of a step is divided into `accumulation_steps` forward passes."""
        self._model = model
        self._optimizer = optimizer
        self._precision = precision
        self._accumulation_steps = accumulation_steps
        self._max_grad_norm = max_grad_norm
        self._ranks = ranks
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.scaler = torch.amp.GradScaler(precision.device.type) if precision.needs_scaler else None

    def step(
        self, learning_rate: float, x_BT: npt.NDArray[np.int64], y_BT: npt.NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """(loss in nats, gradient norm before clipping), scalars on the device; the loss is this rank's mean."""
        self._optimizer.set_learning_rate(learning_rate)
        loss = self._accumulate(self._to_device(x_BT), self._to_device(y_BT))
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

    def _accumulate(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Gradients of the mean over the global batch. Every pass has the same number of tokens, as has every rank."""
        n = self._accumulation_steps
        total: Tensor | None = None
        for index, (x_bT, y_bT) in enumerate(zip(x_BT.chunk(n), y_BT.chunk(n), strict=True)):
            with nullcontext() if index == n - 1 else self._ranks.without_sync(self._model):
                with self._precision.autocast():
                    _, loss = self._model(x_bT, y_bT)
                share = loss if n == 1 else loss / n
                (share if self.scaler is None else self.scaler.scale(share)).backward()
            total = share.detach() if total is None else total + share.detach()
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
