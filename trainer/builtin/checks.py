"""What can be said about stop rules before anything runs: which can never be met, and what a threshold means."""

from __future__ import annotations

import math

from podium.trainer.builtin.config import TrainConfig
from podium.trainer.builtin.data.manifest import Manifest, check_lengths
from podium.trainer.trial.errors import ConfigError, Problem
from podium.trainer.trial.stopping import KillCriterion, KillRule, StopRules

SEED_NOISE = 0.0013
"""Standard deviation over seeds of a final loss in nats, measured for a 124M GPT on FineWeb (modded-nanogpt, track 1).
A yardstick where a study has no measurement of its own."""

_EXAMPLE_PERPLEXITIES = (1000.0, 300.0, 100.0, 30.0)


def evaluation_tokens(config: TrainConfig) -> list[int]:
    """The token counts at which the run is evaluated: every `evaluation.every_steps`, and the last step."""
    steps = [*range(config.evaluation.every_steps, config.steps + 1, config.evaluation.every_steps)]
    if not steps or steps[-1] != config.steps:
        steps.append(config.steps)
    return [step * config.tokens_per_step for step in steps]


def impossible_rules(config: TrainConfig) -> list[Problem]:
    """Every rule, look and interval of the run that can never occur, each with what would be possible."""
    problems = []
    for name, every in (
        ("evaluation.every_steps", config.evaluation.every_steps),
        ("checkpoint.every_steps", config.checkpoint.every_steps),
    ):
        if every > config.steps:
            problems.append(Problem(name, f"must be at most the run's {config.steps} steps, got {every}"))
    if config.stop.collapse is not None:
        rule = config.stop.collapse
        least = rule.checks * rule.every_steps
        if least > config.steps:
            what = f"needs {rule.checks} looks, {least} steps, and the run has {config.steps}"
            problems.append(Problem("stop.collapse.every_steps", f"{what}, got {rule.every_steps}"))
    evaluations = evaluation_tokens(config)
    if config.stop.kill is not None:
        problems += _curriculum_problems(config) or _kill_problems(config.stop.kill, evaluations)
    return problems + _own_curve_problems(config.stop, evaluations)


def _curriculum_problems(config: TrainConfig) -> list[Problem]:
    curriculum = config.curriculum
    if curriculum is None or curriculum.keeps_tokens(config.batch.sequences, config.data.sequence_length):
        return []
    batch = f"{config.batch.sequences} × {config.data.sequence_length} tokens"
    return [
        Problem(
            "stop.kill",
            "compares at equal tokens, so every evaluation must come at a count that is known beforehand; a curriculum "
            f"has that with mode 'reshape' and lengths that divide a step's {batch}, "
            f"got mode {curriculum.mode!r} and lengths {curriculum.lengths}: leave the rule out of its stage",
        )
    ]


def _kill_problems(rule: KillRule, evaluations: list[int]) -> list[Problem]:
    where = "stop.kill"
    last = evaluations[-1]
    strays = [look for look in rule.looks or [] if look not in set(evaluations)]
    if strays:
        shown = ", ".join(map(str, strays[:5])) + (", …" if len(strays) > 5 else "")
        nearest = min(evaluations, key=lambda tokens: abs(tokens - strays[0]))
        return [
            Problem(
                f"{where}.looks",
                f"every look must be an evaluation (every {evaluations[0]} tokens up to {last}), got {shown}; "
                f"nearest to the first is {nearest}",
            )
        ]
    looks = sorted(set(rule.looks)) if rule.looks is not None else evaluations
    if not looks:
        return [Problem(f"{where}.looks", "must name at least two token counts, got none")]
    problems = []
    if rule.min_tokens > looks[-1]:
        problems.append(
            Problem(f"{where}.min_tokens", f"must be at most the last look, {looks[-1]} tokens, got {rule.min_tokens}")
        )
    if rule.span_tokens > looks[-1] - looks[0]:
        problems.append(
            Problem(
                f"{where}.span_tokens",
                f"must be at most {looks[-1] - looks[0]}, the tokens from the first look ({looks[0]}) to the last "
                f"({looks[-1]}), got {rule.span_tokens}",
            )
        )
    return problems


def _own_curve_problems(stop: StopRules, evaluations: list[int]) -> list[Problem]:
    problems = []
    last, count = evaluations[-1], len(evaluations)
    if stop.patience is not None:
        if stop.patience.min_tokens > last:
            problems.append(
                Problem("stop.patience.min_tokens", f"must be at most {last} tokens, got {stop.patience.min_tokens}")
            )
        if stop.patience.evaluations >= count:
            problems.append(
                Problem(
                    "stop.patience.evaluations",
                    f"must be less than the run's {count} evaluations, got {stop.patience.evaluations}",
                )
            )
    if stop.regression is not None:
        if stop.regression.min_tokens > last:
            problems.append(
                Problem(
                    "stop.regression.min_tokens", f"must be at most {last} tokens, got {stop.regression.min_tokens}"
                )
            )
        if count < 2:
            problems.append(Problem("stop.regression", "needs at least 2 evaluations in the run, got 1"))
    return problems


def meaning_of(rule: KillRule, loss: float | None) -> list[str]:
    """Sentences for `plan`: each criterion's threshold in its other unit, beside seed noise.

    `loss` is what the run is expected to reach, in nats; None shows a few perplexities instead.
    """
    perplexities = _EXAMPLE_PERPLEXITIES if loss is None else (math.exp(loss),)
    return [_meaning(criterion, perplexities) for criterion in rule.criteria]


def _meaning(criterion: KillCriterion, perplexities: tuple[float, ...]) -> str:
    if criterion.metric == "gradient_norm":
        return f"a gradient norm {criterion.limit:g} × the reference's or more"
    if criterion.metric == "perplexity":
        nats = [math.log1p(criterion.limit / perplexity) for perplexity in perplexities]
        shown = ", ".join(
            f"{value:.4f} nats at PPL {perplexity:.4g}" for perplexity, value in zip(perplexities, nats, strict=True)
        )
        return f"{criterion.limit:g} PPL worse is {shown}{_noise(min(nats))}"
    scaled = f" ({criterion.sigmas:g} × σ {criterion.sigma:g})" if criterion.sigmas is not None else ""
    shown = ", ".join(
        f"{perplexity * math.expm1(criterion.limit):.2g} PPL at PPL {perplexity:.4g}" for perplexity in perplexities
    )
    return f"{criterion.limit:.4g} nats worse{scaled} is {shown}{_noise(criterion.limit, criterion.sigma)}"


def _noise(nats: float, sigma: float | None = None) -> str:
    """A warning where two runs that differ by their seed alone may differ by as much."""
    source = "as given" if sigma is not None else "measured for a 124M GPT; yours may differ"
    sigma = SEED_NOISE if sigma is None else sigma
    difference = sigma * math.sqrt(2)
    if nats >= 2 * difference:
        return ""
    return (
        f"; at its least that is {nats / difference:.1f} × the noise of a difference of two seeds "
        f"({difference:.4f} nats; σ {sigma:g}, {source})"
    )


# Whether a config and a prepared dataset go together; asked before anything is written. Without torch.


def check_data(config: TrainConfig, manifest: Manifest) -> None:
    """Raises ConfigError for a vocabulary or an evaluation that the data does not have, DataError for a short split."""
    length, split = config.data.sequence_length, config.data.validation_split
    check_lengths(manifest, length, (config.data.train_split, split))
    problems = []
    if manifest.tokenizer_size > config.model.vocab_size:
        problems.append(
            Problem(
                "model.vocab_size",
                f"must be at least the dataset's {manifest.tokenizer_size} tokens, got {config.model.vocab_size}",
            )
        )
    windows, wanted = (manifest.split(split).tokens - 1) // length, config.evaluation.sequences
    if wanted is not None and wanted > windows:
        problems.append(
            Problem("evaluation.sequences", f"must be at most the {windows} that split {split!r} has, got {wanted}")
        )
    if config.data.balance_tokens and not manifest.domains:
        problems.append(Problem("data.balance_tokens", "needs data of several domains, got one corpus"))
    if problems:
        raise ConfigError(problems, source=f"dataset {manifest.fingerprint}")
