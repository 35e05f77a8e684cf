"""One table, one plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .evaluate import LADDER, Outcome
from .intervals import bootstrap, paired
from .settings import MATCH

DELTA = 0.0005
"""A difference that does not matter, nats."""
LABELS = {
    "random": (0, 8, "center"),
    "successive halving": (0, 10, "center"),
    "naive top-1": (7, 3, "left"),
    "ASHA (Optuna)": (8, -3, "left"),
    "constant discard": (8, -9, "left"),
    "one full seed each": (-8, -3, "right"),
    LADDER: (0, 11, "center"),
    "F-race": (4, 9, "right"),
    "full grid, 5 seeds": (-4, 9, "left"),
}
"""Where a name stands, in points from its mark, so that it lies on no other."""


def table(out: Outcome) -> str:
    """Every policy, and the ladder beside each opponent at its compute; Markdown."""
    lines = [
        "| policy | share of the grid | regret, 10⁻⁴ nats | P(best within δ) | false proofs | where no arm differs |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in sorted(out.policies.items(), key=lambda item: np.mean(item[1].share)):
        claims = any(record.proven) or record.null_false
        lines.append(
            f"| {name} | {_percent(bootstrap(record.share))} | {_nats(bootstrap(record.regret))} "
            f"| {_percent(bootstrap([regret <= DELTA for regret in record.regret]))} "
            f"| {_percent(bootstrap(record.false)) if claims else 'claims nothing'} "
            f"| {_percent(bootstrap(record.null_false)) if record.null_false else ''} |"
        )
    lines += [
        "",
        "| at the compute of | its share | the ladder's | settings | regret minus its, 10⁻⁴ nats | no worse |",
        "|---|---|---|---|---|---|",
    ]
    for name, ours in sorted(out.matched.items(), key=lambda item: np.mean(item[1].share)):
        theirs = out.policies[name]
        difference = paired(ours.regret, theirs.regret)
        lines.append(
            f"| {name} | {np.mean(theirs.share):.2%} | {np.mean(ours.share):.2%} | {_settings(out, name)} "
            f"| {_nats(difference)} | {'yes' if no_worse(out, name) else 'no'} |"
        )
    beaten = beaten_by(out)
    lines += ["", f"Beats the ladder in both compute and regret: {', '.join(beaten) if beaten else 'nothing'}."]
    return "\n".join(lines)


def no_worse(out: Outcome, opponent: str) -> bool:
    """Whether the ladder at that compute (±5 %) has no more regret: the paired interval reaches 0 or is below it."""
    ours, theirs = out.matched[opponent], out.policies[opponent]
    matched = np.mean(ours.share) <= (1 + MATCH) * np.mean(theirs.share)
    return bool(matched and paired(ours.regret, theirs.regret)[1] <= 0)


def beaten_by(out: Outcome) -> list[str]:
    """The policies with less compute and less regret than the ladder, both by the mean over draws."""
    ours = out.policies[LADDER]
    return [
        name
        for name, record in out.policies.items()
        if np.mean(record.share) < np.mean(ours.share) and np.mean(record.regret) < np.mean(ours.regret)
    ]


def figures(out: Outcome) -> dict:
    """The numbers of the table as plain data."""
    rows = {}
    for kind, records in (("policies", out.policies), ("ladder_at_compute_of", out.matched)):
        rows[kind] = {
            name: {
                "share": bootstrap(record.share),
                "regret": bootstrap(record.regret),
                "best_within_delta": bootstrap([regret <= DELTA for regret in record.regret]),
                "proven": float(np.mean(record.proven)),
                "false_proofs": float(np.mean(record.false)),
                "false_proofs_without_difference": float(np.mean(record.null_false)) if record.null_false else None,
                "difference": paired(record.regret, out.policies[name].regret) if kind != "policies" else None,
            }
            for name, record in records.items()
        }
    return {**rows, "designs": {name: str(design) for name, design in out.designs.items()}}


def plot(out: Outcome, path: Path) -> None:
    """Regret over compute: opponents, the ladder, and the ladder at each opponent's compute."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, record in out.policies.items():
        own = name == LADDER
        _point(axes, record, "#0b5fa5" if own else "#444444", "D" if own else "o", 9 if own else 6)
        axes.annotate(
            name,
            (float(np.mean(record.share)), _units(np.mean(record.regret))),
            xytext=LABELS.get(name, (7, 5))[:2],
            ha=LABELS[name][2] if name in LABELS else "left",
            textcoords="offset points",
            fontsize=8,
            color="#0b5fa5" if own else "#444444",
        )
    rows = sorted(out.matched.values(), key=lambda record: np.mean(record.share))
    x = [float(np.mean(record.share)) for record in rows]
    y = [_units(np.mean(record.regret)) for record in rows]
    axes.plot(x, y, color="#0b5fa5", linewidth=1.2, marker=".", label="the ladder at each opponent's compute")
    axes.axhline(DELTA * 1e4, color="#999999", linewidth=0.8, linestyle=":", label="δ = 0.0005 nats")
    axes.set_xscale("log")
    axes.set_xticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], ["1 %", "2 %", "5 %", "10 %", "20 %", "50 %", "100 %"])
    axes.set_xticks([], minor=True)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50], ["0", "0.5", "1", "2", "5", "10", "20", "50"])
    axes.set_ylim(-0.1, 100)
    axes.set_xlim(0.009, 3)
    axes.set_xlabel("tokens, share of the five-seed grid's")
    axes.set_ylabel("regret, 10⁻⁴ nats")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    plt.rcParams["svg.hashsalt"] = "podium"
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _point(axes, record, color: str, marker: str, size: int) -> None:
    mean, low, high = bootstrap(record.regret)
    share = float(np.mean(record.share))
    axes.errorbar(
        share,
        _units(mean),
        yerr=[[(mean - low) * 1e4], [(high - mean) * 1e4]],
        color=color,
        marker=marker,
        markersize=size,
    )


def _units(nats: float) -> float:
    return float(nats) * 1e4


def _settings(out: Outcome, name: str) -> str:
    design = out.designs[name]
    if design.short_steps is not None:
        return f"{design.short_steps} steps of all, then whole runs"
    if np.mean(out.matched[name].share) <= design.screen_seeds / 5 * 1.001:
        return f"{design.screen_seeds} seed of the arms it pays for"
    return (
        f"{design.screen_seeds} seed{'s' if design.screen_seeds > 1 else ''}, top {design.most}, the rest fresh seeds"
    )


def _percent(triple: tuple[float, float, float]) -> str:
    mean, low, high = (value * 100 for value in triple)
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _nats(triple: tuple[float, float, float]) -> str:
    mean, low, high = (value * 1e4 for value in triple)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" if low < 0 else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
