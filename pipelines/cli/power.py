"""`podium power`: how many seeds a proof takes, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from podium.pipelines.cli.find import open_run
from podium.pipelines.cli.options import Json, Profile, Store, command, result, result_json, stdout
from podium.pipelines.cli.results import is_figures
from podium.trainer.trial.errors import Problem, UserError

if TYPE_CHECKING:
    from podium.components.study.schema import Study
    from podium.components.verdicts.power import Proof
    from podium.components.verdicts.samples import AssumedSd

SHOWN = (2, 3, 4, 5, 6, 8, 10, 15, 20)


@command("Before a run", 3)
def power(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Take test, alpha, seeds and price from its proof stage.")
    ] = None,
    gap: Annotated[
        float | None, typer.Option(help="How much better the variant is, in the metric's unit (nats).")
    ] = None,
    sigma: Annotated[float | None, typer.Option(help="SD over seeds, in the same unit.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="Take the SD from a past run or a file of figures.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="One-sided level; 0.01 where no study says another.")] = None,
    wanted: Annotated[float, typer.Option("--power", help="Probability to show the gap.")] = 0.8,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds a variant: say their power and the gap that they show.")
    ] = None,
    against: Annotated[
        Literal["target", "baseline"] | None, typer.Option(help="A fixed target, or a baseline with as many seeds.")
    ] = None,
    arms: Annotated[int | None, typer.Option(min=1, help="Variants that are compared.")] = None,
    margin: Annotated[float | None, typer.Option(help="The gap has to exceed this.")] = None,
    known_sigma: Annotated[bool, typer.Option("--known-sigma", help="The test knows the SD: z, not t.")] = False,
    usd_per_run: Annotated[float | None, typer.Option(help="Price of one run in US dollars.")] = None,
    stage: Annotated[str | None, typer.Option(help="The study's stage; by default its last proof.")] = None,
    profile: Profile = "full",
    store: Store = "runs",
    as_json: Json = False,
) -> None:
    """Say how many seeds it takes to show a gap, what they cost, and how likely a number of seeds succeeds.

    The SD over seeds comes from [b]--sigma[/b], from a past run or a file ([b]--from[/b]), from the study, or is a
    default that names its source.

    Example: [b]podium power --gap 0.002 --sigma 0.0012 --against baseline[/b], or
    [b]podium power param-allocation --from runs/demo --gap 0.01[/b]
    """
    from podium.components.verdicts.power import gap_for, seeds_for
    from podium.components.verdicts.power import power as power_of

    _check(gap, sigma, alpha, wanted, seeds, usd_per_run, source)
    chosen = _load(study, stage, profile)
    proof = _proof(chosen, against, alpha, arms, margin, known_sigma=known_sigma)
    assumed = _assumed_sd(chosen, sigma, source, store)
    size = gap if gap is not None else _expected_gap(chosen)
    count = seeds if seeds is not None else _seeds(chosen)
    price = usd_per_run if usd_per_run is not None else _price(chosen)
    tried = sorted({*SHOWN, *([count] if count else [])})
    needed = None if size is None else seeds_for(proof, size, assumed.sigma, wanted)
    plain: dict[str, Any] = {
        "against": proof.against,
        "alpha": proof.alpha,
        "arms": proof.arms,
        "margin": proof.margin,
        "known_sigma": proof.known_sigma,
        "sigma": assumed.sigma,
        "sigma_source": assumed.source,
        "gap": size,
        "wanted": wanted,
        "seeds_needed": needed,
        "usd_needed": _usd(proof, needed, price),
        "seeds": count,
        "power": None if size is None or count is None else power_of(proof, size, count, assumed.sigma),
        "gap_shown": None if count is None else gap_for(proof, count, assumed.sigma, wanted),
        "usd": _usd(proof, count, price),
        "table": [
            {
                "seeds": n,
                "gap_shown": gap_for(proof, n, assumed.sigma, wanted),
                "power": None if size is None else power_of(proof, size, n, assumed.sigma),
                "usd": _usd(proof, n, price),
            }
            for n in tried
        ],
    }
    if as_json:
        result_json(plain)
    else:
        _print(plain)


Chosen = tuple["Study", str] | None
"""A study and its stage, where one was named."""


def _check(
    gap: float | None,
    sigma: float | None,
    alpha: float | None,
    wanted: float,
    seeds: int | None,
    usd: float | None,
    source: str | None,
) -> None:

    problems = [
        Problem(flag, f"must be more than 0, got {value:g}")
        for flag, value in (("--gap", gap), ("--sigma", sigma), ("--usd-per-run", usd), ("--seeds", seeds))
        if value is not None and not value > 0
    ]
    if alpha is not None and not 0 < alpha < 0.5:
        problems.append(Problem("--alpha", f"must be between 0 and 0.5, got {alpha:g}"))
    if not 0 < wanted < 1:
        problems.append(Problem("--power", f"must be between 0 and 1, got {wanted:g}"))
    if sigma is not None and source is not None:
        problems.append(Problem("--from", "and --sigma both say the SD; give one"))
    if problems:
        raise UserError(problems)


def _load(study: str | None, stage: str | None, profile: str) -> Chosen:
    from podium.components.study.load import load_study
    from podium.components.verdicts.power import proof_of

    if study is None:
        if stage is not None:
            raise UserError(Problem("--stage", "is a study's; name the study too"))
        return None
    loaded = load_study(study, profile=profile)
    able = [name for name in loaded.stages if proof_of(loaded, name, 1) is not None]
    proofs = [name for name in able if loaded.stages[name].proof]
    found = stage or next(iter(reversed(proofs or able)), None)
    if found not in able:
        raise UserError(
            Problem("--stage", f"must be a stage that tests ({', '.join(able) or 'it has none'}), got {stage}")
        )
    assert found is not None
    return loaded, found


def _proof(
    chosen: Chosen,
    against: Literal["target", "baseline"] | None,
    alpha: float | None,
    arms: int | None,
    margin: float | None,
    *,
    known_sigma: bool,
) -> Proof:

    from podium.components.verdicts.power import Proof, proof_of

    declared = Proof("target", 0.01)
    if chosen is not None:
        from podium.components.study.plan import most_variants

        study, stage = chosen
        found = proof_of(study, stage, arms or most_variants(study)[stage])
        assert found is not None
        declared = found
    return replace(
        declared,
        against=against or declared.against,
        alpha=alpha or declared.alpha,
        arms=arms or declared.arms,
        margin=margin if margin is not None else declared.margin,
        known_sigma=known_sigma or declared.known_sigma,
    )


def _assumed_sd(chosen: Chosen, sigma: float | None, source: str | None, store: str) -> AssumedSd:
    from podium.components.verdicts.samples import AssumedSd, default_sd, sd_from

    if sigma is not None:
        return AssumedSd(sigma, "given by --sigma")
    if source is not None:
        from podium.components.verdicts.samples import sd_of_run

        metric = chosen[0].stages[chosen[1]].promotion.metric if chosen is not None else "final_val_loss"
        return sd_from(source, metric=metric) if is_figures(source) else sd_of_run(open_run(source, store))
    expected = chosen[0].stages[chosen[1]].expected if chosen is not None else None
    return AssumedSd(expected.sigma, expected.source) if expected is not None else default_sd()


def _expected_gap(chosen: Chosen) -> float | None:
    expected = chosen[0].stages[chosen[1]].expected if chosen is not None else None
    return expected.gap if expected is not None else None


def _seeds(chosen: Chosen) -> int | None:
    from podium.components.study.trials import stage_seeds

    return len(stage_seeds(*chosen)) if chosen is not None else None


def _price(chosen: Chosen) -> float | None:
    from podium.components.study.trials import run_usd

    if chosen is None:
        return None
    stage = chosen[0].stages[chosen[1]]
    return run_usd(stage.price, max(stage.resources.gpus_per_trial, 1))


def _usd(proof: Proof, seeds: int | None, price: float | None) -> float | None:
    """Of all arms, the baseline included where it is run."""
    if seeds is None or price is None:
        return None
    return round(seeds * (proof.arms + (proof.against == "baseline")) * price, 6)


def _print(plain: dict[str, Any]) -> None:
    from rich.table import Table

    from podium.trainer.trial.section import format_usd

    priced = plain["usd_needed"] is not None or plain["usd"] is not None
    variants = f"{plain['arms']} {'variant' if plain['arms'] == 1 else 'variants'}"
    result(f"{variants} against a {plain['against']}, one-sided alpha {plain['alpha']:g}, SD {plain['sigma']:.3g}")
    result(f"SD: {plain['sigma_source']}")
    heads = ["seeds", f"gap shown at power {plain['wanted']:g}"]
    heads += [f"power at a gap of {plain['gap']:g}"] * (plain["gap"] is not None) + ["dollars"] * priced
    table = Table(*heads, box=None, pad_edge=False)
    for row in plain["table"]:
        cells = [str(row["seeds"]), "none" if row["gap_shown"] is None else f"{row['gap_shown']:.4g}"]
        cells += [f"{row['power']:.3f}"] * (plain["gap"] is not None)
        cells += [format_usd(row["usd"]) if row["usd"] is not None else ""] * priced
        table.add_row(*cells)
    stdout().print(table)
    if plain["gap"] is None:
        return
    if plain["seeds_needed"] is None:
        result(f"no number of seeds below 10,000 shows a gap of {plain['gap']:g} with power {plain['wanted']:g}")
        return
    cost = f", {format_usd(plain['usd_needed'])}" if plain["usd_needed"] is not None else ""
    result(
        f"{plain['seeds_needed']} seeds a variant show a gap of {plain['gap']:g} with power {plain['wanted']:g}{cost}"
    )
