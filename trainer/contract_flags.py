"""The flags of `train` that the MoE-emergence study's contract names, as changes of a config. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from podium.trainer.errors import ConfigError, Problem
from podium.trainer.moe_presets import MOE_PRESETS, Mode, set_mode, set_model

_FIELDS = {
    "block_size": "data.sequence_length",
    "balance_tokens": "data.balance_tokens",
    "max_grad_norm": "max_grad_norm",
    "weight_decay": "optimizer.weight_decay",
    "warmup_fraction": "schedule.warmup_fraction",
    "eval_every": "evaluation.every_steps",
    "save_every": "checkpoint.every_steps",
    "keep_last_k": "checkpoint.keep_last",
    "fit_memory": "batch.fit_memory",
}
_MIXTURE_FIELDS = {
    "num_experts": "model.moe.num_experts",
    "topk": "model.moe.topk",
    "lb_coef": "router.lb_coef",
    "z_coef": "router.z_coef",
    "log_router_every": "router.log_every_steps",
}


@dataclass(frozen=True)
class ContractFlags:
    """As given; None where a flag was not."""

    mode: str | None = None
    model: str | None = None
    size_mb: float | None = None
    block_size: int | None = None
    balance_tokens: bool | None = None
    batch_size: int | None = None
    grad_accum_steps: int | None = None
    eval_every: int | None = None
    save_every: int | None = None
    keep_last_k: int | None = None
    weight_decay: float | None = None
    warmup_fraction: float | None = None
    max_grad_norm: float | None = None
    lb_coef: float | None = None
    z_coef: float | None = None
    log_router_every: int | None = None
    num_experts: int | None = None
    topk: int | None = None
    moe_layers: str | None = None
    fit_memory: bool | None = None

    def adjust(self, fields: dict[str, Any], preset: str | None) -> dict[str, Any]:
        """Set mode, model and batch in a config's fields; the other flags as dotted changes.

        Raises ConfigError for flags that the config has no place for.
        """
        self._choose(fields, preset)
        self._set_batch(fields)
        mixture = {field: getattr(self, flag) for flag, field in _MIXTURE_FIELDS.items()}
        mixture["model.moe.layers"] = None if self.moe_layers is None else _layers(self.moe_layers)
        given = [field for field, value in mixture.items() if value is not None]
        if given and not (fields.get("model") or {}).get("moe"):
            flags = {field: f"--{flag.replace('_', '-')}" for flag, field in _MIXTURE_FIELDS.items()}
            wrong = [flags.get(field, "--moe-layers") for field in given]
            raise ConfigError(Problem(flag, "needs a mixture of experts, got a dense model") for flag in wrong)
        return {field: getattr(self, flag) for flag, field in _FIELDS.items()} | mixture

    def _choose(self, fields: dict[str, Any], preset: str | None) -> None:
        if self.mode not in (None, "dense", "moe"):
            raise ConfigError(Problem("--mode", f"must be dense or moe, got {self.mode!r}"))
        if preset in MOE_PRESETS:
            if self.mode is not None:
                set_mode(fields, preset, cast("Mode", self.mode))
            if self.model is not None:
                set_model(fields, self.model)
            return
        named = (("--mode", self.mode), ("--model", self.model), ("--size-mb", self.size_mb))
        wrong = [
            Problem(flag, f"is for --preset {', '.join(MOE_PRESETS)}") for flag, value in named if value is not None
        ]
        if wrong:
            raise ConfigError(wrong)

    def _set_batch(self, fields: dict[str, Any]) -> None:
        if self.batch_size is None and self.grad_accum_steps is None:
            return
        batch = fields.setdefault("batch", {})
        sequences = batch.get("sequences", 1)
        micro = batch.get("micro_batch") or sequences
        steps = self.grad_accum_steps or sequences // micro
        batch["micro_batch"] = self.batch_size or micro
        batch["sequences"] = batch["micro_batch"] * steps


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigError(
            Problem("--moe-layers", f"must be numbers of blocks such as 8 9 10 11, got {text!r}")
        ) from None
