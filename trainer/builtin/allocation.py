"""From a parameter budget to a model's dimensions: the allocation solver, and the exact counts behind it.

Notation: N parameters, V vocabulary, d model width, L layers, f feed-forward width. Without biases, SwiGLU:
N = c·V·d + L·(4·d² + 3·d·f + 2·d) + d, where c is 1 for a tied and 2 for an untied output matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from podium.trainer.builtin.config import TrainConfig
from podium.trainer.builtin.model_config import Allocation, ModelConfig, swiglu_counts
from podium.trainer.trial.errors import ConfigError, Problem
from podium.trainer.trial.result import ParameterCounts
from podium.trainer.trial.section import format_count

TOTAL_TOLERANCE = 0.005
"""Largest deviation of the total, as a fraction of the request."""
SHARE_TOLERANCE = 0.015
"""Largest deviation of the embedding share, in absolute terms (1.5 points)."""
EXPANSION_TOLERANCE = 0.05
"""Largest deviation of d_ff / d_model, as a fraction of the request."""
MAX_LAYERS = 64
ALIGNMENT = 8
"""Tensor cores want widths that divide by 8; other even widths are taken only where they fit the request better."""

WHERE = "model.allocation"


@dataclass(frozen=True, slots=True)
class Dimensions:
    """A solved model. `counts` are exact."""

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    counts: ParameterCounts

    @property
    def embedding_share(self) -> float:
        """Embedding parameters (output included where untied) over all parameters."""
        return (self.counts.embedding + self.counts.output) / self.counts.total


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Exact trainable parameters of a model, by part, without building it.

    Raises ConfigError where the dimensions are not resolved yet.
    """
    return config.parameter_counts()


def solve(allocation: Allocation, vocab_size: int, tied: bool) -> Dimensions:
    """The dimensions nearest to a request.

    Among all (d_model, n_layers, d_ff) within the tolerances above it takes the one with the least

        (Δtotal / 0.5 %)² + (Δshare / 1.5 points)² + (Δexpansion / 5 %)²
        + 1 if d_model is no multiple of 8 + 0.5 if d_ff is none + (log2 of head size / wanted head size)²

    d_model is even, n_layers at most 64, the head size even and as near as d_model allows to 64 (a quarter of d_model
    in smaller models, so that they keep four heads).

    Raises ConfigError naming the nearest feasible share where none fits.
    """
    return _solve(allocation.parameters, allocation.embedding_share, allocation.glu_expansion, vocab_size, tied)


def resolve(config: ModelConfig) -> ModelConfig:
    """The config with its dimensions filled in; one that has them is returned as it is.

    Raises ConfigError for an infeasible allocation, and for dimensions that contradict the allocation beside them.
    """
    if config.wanted_allocation is None:
        return config
    allocation, tied = config.wanted_allocation
    if config.has_dimensions:
        _check_agreement(config, allocation)
        return config
    solved = solve(allocation, config.vocab_size, tied)
    return config.model_copy(
        update={
            "d_model": solved.d_model,
            "n_layers": solved.n_layers,
            "n_heads": solved.n_heads,
            "d_ff": solved.d_ff,
        }
    )


def resolve_config(config: TrainConfig) -> TrainConfig:
    """The same run with its model's dimensions filled in. Raises ConfigError as `resolve` does."""
    resolved = resolve(config.model)
    return config if resolved is config.model else config.model_copy(update={"model": resolved})


def choose_heads(d_model: int) -> int:
    """Number of heads for an even `d_model`: the head size is even and near the wanted one, better a multiple of 8."""
    wanted = _wanted_head_size(d_model)
    sizes = [size for size in range(2, d_model + 1, 2) if d_model % size == 0]
    best = min(sizes, key=lambda size: (abs(math.log2(size / wanted)) + 0.25 * (size % ALIGNMENT != 0), size))
    return d_model // best


def _wanted_head_size(d_model: int) -> float:
    return min(64.0, max(16.0, d_model / 4))


@lru_cache(maxsize=4096)
def _solve(parameters: int, share: float, expansion: float, vocab_size: int, tied: bool) -> Dimensions:
    per_width = vocab_size * (1 if tied else 2)
    low = (share - SHARE_TOLERANCE) * parameters * (1 - TOTAL_TOLERANCE) / per_width
    high = (share + SHARE_TOLERANCE) * parameters * (1 + TOTAL_TOLERANCE) / per_width
    best: tuple[float, int, int, int] | None = None
    for d_model in range(max(2, 2 * math.ceil(low / 2)), math.floor(high) + 1, 2):
        heads_penalty: float | None = None
        for n_layers, d_ff, total in _fits(d_model, parameters, expansion, per_width):
            off_share = per_width * d_model / total - share
            if abs(off_share) > SHARE_TOLERANCE:
                continue
            if heads_penalty is None:
                head_size = d_model // choose_heads(d_model)
                heads_penalty = math.log2(head_size / _wanted_head_size(d_model)) ** 2
            deviation = (
                ((total / parameters - 1) / TOTAL_TOLERANCE) ** 2
                + (off_share / SHARE_TOLERANCE) ** 2
                + ((d_ff / d_model / expansion - 1) / EXPANSION_TOLERANCE) ** 2
                + (d_model % ALIGNMENT != 0)
                + 0.5 * (d_ff % ALIGNMENT != 0)
                + heads_penalty
            )
            candidate = (deviation, d_model, n_layers, d_ff)
            best = candidate if best is None else min(best, candidate)
    if best is None:
        raise _infeasible(parameters, share, expansion, vocab_size, tied)
    _, d_model, n_layers, d_ff = best
    return Dimensions(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=choose_heads(d_model),
        d_ff=d_ff,
        counts=swiglu_counts(d_model, n_layers, d_ff, vocab_size, tied),
    )


def _fits(d_model: int, parameters: int, expansion: float, per_width: int) -> Iterator[tuple[int, int, int]]:
    """Every (n_layers, d_ff, total) worth a look that meets total and expansion at this width; share is not checked."""
    rest = parameters - (per_width + 1) * d_model
    slack = TOTAL_TOLERANCE * parameters
    if rest + slack <= 0:
        return
    narrow, wide = expansion * (1 - EXPANSION_TOLERANCE), expansion * (1 + EXPANSION_TOLERANCE)
    square = d_model**2
    fewest = max(1, math.ceil((rest - slack) / (4 * square + 2 * d_model + 3 * square * wide)))
    most = min(MAX_LAYERS, math.floor((rest + slack) / (4 * square + 2 * d_model + 3 * square * narrow)))
    for n_layers in range(fewest, most + 1):
        fixed = n_layers * (4 * square + 2 * d_model)
        per_unit = 3 * d_model * n_layers
        exact = (rest - fixed) / per_unit
        aligned = ALIGNMENT * math.floor(exact / ALIGNMENT)
        for d_ff in {math.floor(exact), math.ceil(exact), aligned, aligned + ALIGNMENT}:
            total = parameters - rest + fixed + per_unit * d_ff
            if d_ff > 0 and abs(total - parameters) <= slack and narrow <= d_ff / d_model <= wide:
                yield n_layers, d_ff, total


def _infeasible(parameters: int, share: float, expansion: float, vocab_size: int, tied: bool) -> ConfigError:
    ties = "tied" if tied else "untied"
    asked = (
        f"no model of {format_count(parameters)} parameters has an embedding share of {share:.4g} with expansion "
        f"{expansion:g}, a vocabulary of {vocab_size}, {ties} embeddings and at most {MAX_LAYERS} layers"
    )
    nearest = _nearest_share(parameters, share, expansion, vocab_size, tied)
    if nearest is None:
        return ConfigError(Problem(WHERE, f"{asked}; no other share is feasible either"))
    solved = _solve(parameters, nearest, expansion, vocab_size, tied)
    return ConfigError(
        Problem(
            WHERE,
            f"{asked}; the nearest feasible embedding_share is {nearest:.4g} "
            f"({solved.n_layers} layers, d_model {solved.d_model}, d_ff {solved.d_ff}), got {share:g}",
        )
    )


def _nearest_share(parameters: int, share: float, expansion: float, vocab_size: int, tied: bool) -> float | None:
    """The feasible share, in steps of 0.1 point, that is nearest to an infeasible one; None where there is none.

    A share is feasible when some width has an achieved share within the tolerance of it, so it is enough to walk over
    widths away from the ideal one, both ways, until one fits.
    """
    per_width = vocab_size * (1 if tied else 2)
    ideal = 2 * round(share * parameters / per_width / 2)
    # the widest model has one layer
    layer = 4 + 3 * expansion * (1 - EXPANSION_TOLERANCE)
    widest = 2 * math.floor(math.sqrt(parameters * (1 + TOTAL_TOLERANCE) / layer) / 2)
    found = []
    for widths in (range(min(ideal, widest), 0, -2), range(max(2, ideal), widest + 1, 2)):
        # widths next to the first that fits may reach nearer, since their totals differ by up to 1 %
        fitting = 0
        for d_model in widths:
            totals = [total for *_, total in _fits(d_model, parameters, expansion, per_width)]
            found += [_step_towards(share, per_width * d_model / total) for total in totals]
            fitting += bool(totals)
            if fitting == 3:
                break
    feasible = [value for value in found if 0 < value < 1]
    return min(feasible, key=lambda value: (abs(value - share), value), default=None)


def _step_towards(share: float, achieved: float) -> float:
    """The request nearest to `share`, in steps of 0.001, for which `achieved` is within the tolerance."""
    if achieved > share:
        return math.ceil(round((achieved - SHARE_TOLERANCE) * 1000, 9)) / 1000
    return math.floor(round((achieved + SHARE_TOLERANCE) * 1000, 9)) / 1000


def _check_agreement(config: ModelConfig, allocation: Allocation) -> None:
    counts = count_parameters(config)
    share = (counts.embedding + counts.output) / counts.total
    if abs(counts.total / allocation.parameters - 1) > TOTAL_TOLERANCE:
        raise ConfigError(
            Problem(WHERE, f"asks for {allocation.parameters} parameters, but the given dimensions have {counts.total}")
        )
    if abs(share - allocation.embedding_share) > SHARE_TOLERANCE:
        asked = allocation.embedding_share
        raise ConfigError(
            Problem(WHERE, f"asks for an embedding share of {asked:g}, but the given dimensions have {share:.4f}")
        )
