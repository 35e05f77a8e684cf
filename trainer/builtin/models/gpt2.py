"""GPT-2 by `transformers`, dense or with mixtures of experts, under the contract that every model here keeps.

B sequences  T tokens  V vocabulary
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from podium.trainer.builtin.model_config import GPT2Config, RouterConfig
from podium.trainer.builtin.models import fused
from podium.trainer.builtin.models.moe import Domains, install_moe_layers
from podium.trainer.builtin.pretrained import source_folder
from podium.trainer.trial.errors import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


HEAD = "lm.lm_head.weight"
"""The tied matrix under its second name; a checkpoint holds it once, as the embedding."""


class GPT2(nn.Module):
    """A language model of `config`, with random weights."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        with quiet_transformers():
            from transformers import GPT2Config as Theirs
            from transformers import GPT2LMHeadModel

            self.lm: Any = GPT2LMHeadModel(Theirs(**_their_fields(config)))
        moe = config.moe
        self.mixtures = [] if moe is None else install_moe_layers(self.lm.transformer.h, config.d_model, moe)
        self.domains = Domains(("all",))
        self.router = RouterConfig()
        self.register_state_dict_post_hook(_drop_head)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_head)  # type: ignore[no-untyped-call]

    def forward(self, idx_BT: Tensor, targets_BT: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """(logits_BTV, None), or with targets (None, mean loss in nats); see `Mixture` for its gradient in training."""
        if self.training and self.mixtures:
            self.domains.begin_pass(*idx_BT.shape)
        x_BTD = self.lm.transformer(input_ids=idx_BT, use_cache=False).last_hidden_state
        if targets_BT is None:
            return self.lm.lm_head(x_BTD), None
        loss = fused.linear_cross_entropy(x_BTD.flatten(0, 1), self.lm.lm_head.weight, targets_BT.flatten())
        if self.training and self.mixtures:
            extra = self._router_loss()
            loss = loss + (extra - extra.detach())
        return None, loss

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Set the noise on the routers' logits for optimizer step `step` of `steps`."""
        for mixture in self.mixtures:
            mixture.noise = self.router.noise_at(step, steps)

    def load_source(self, source: str) -> None:
        """Copy the weights of a pretrained GPT-2: the hub's `gpt2`, a folder's, or those at s3://….

        Raises ConfigError where they can't be had, or have other dimensions.
        """
        folder = source_folder(source)
        with quiet_transformers():
            from transformers import GPT2LMHeadModel

            try:
                theirs = GPT2LMHeadModel.from_pretrained(str(folder), local_files_only=True)
            except (OSError, ValueError, RuntimeError) as error:
                first = str(error).strip().partition("\n")[0]
                raise ConfigError(
                    Problem("model.source", f"must be a GPT-2 of transformers, got {source!r}: {first}")
                ) from None
        load_pretrained(self, theirs)

    def _router_loss(self) -> Tensor:
        losses = [mixture.losses for mixture in self.mixtures if mixture.losses is not None]
        balance = torch.stack([each.load_balance for each in losses]).mean()
        return self.router.lb_coef * balance + self.router.z_coef * torch.stack([each.z for each in losses]).mean()


def load_pretrained(model: GPT2, theirs: GPT2LMHeadModel) -> None:
    """Copy a dense GPT-2's weights into `model`, its feed-forwards into every expert. Routers stay as they are.

    Raises ConfigError naming every dimension in which the two differ.
    """
    config = theirs.config
    wanted = _their_fields(model.config)
    shape = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")
    ours = {"n_embd": "d_model", "n_layer": "n_layers", "n_head": "n_heads"}
    problems = [
        Problem(
            f"model.{ours.get(name, name)}", f"must be {getattr(config, name)} as in the source, got {wanted[name]}"
        )
        for name in shape
        if getattr(config, name) != wanted[name]
    ]
    if config.n_inner not in (None, 4 * config.n_embd):
        problems.append(Problem("model.source", f"must have a feed-forward of 4 × d_model, got {config.n_inner}"))
    if problems:
        raise ConfigError(problems, source=f"weights of {model.config.source}")
    with torch.no_grad():
        for name, parameter in model.lm.named_parameters():
            parts = name.split(".mlp.")
            if ".router." in name:
                continue
            if ".experts." in name:
                parts[1] = parts[1].split(".", 2)[2]
            parameter.copy_(theirs.get_parameter(".mlp.".join(parts)))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep to itself what `transformers` says on import and on building a model: advice to its own users."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _their_fields(config: GPT2Config) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_positions": config.n_positions,
        # the same function as GPT-2's own name for it (gelu_new), in one kernel
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "attn_implementation": "sdpa",
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _drop_head(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state.pop(f"{prefix}{HEAD}", None)


def _add_head(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    embedding = f"{prefix}lm.transformer.wte.weight"
    if embedding in state:
        state[f"{prefix}{HEAD}"] = state[embedding]
