"""Replay the ladder and its opponents on recorded curves: settings fixed on half of the arms, the other half reported.

    python -m tests.benchmarks.replay [--draws 2000] [--swap] [--out FOLDER]

Prints the table; with --out also writes replay.json, and replay.svg. ASHA and Hyperband are Optuna's (pip install
optuna); --no-optuna leaves them out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .data import DEFAULT, halves, load
from .evaluate import evaluate
from .opponents import OWN
from .report import figures, plot, table
from .schedulers import schedulers
from .settings import fix


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.replay", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=DEFAULT, help="CSV of variant,total_steps,run,step,val_loss (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=2000, help="draws that are reported (default: %(default)s)")
    parser.add_argument("--fix-draws", type=int, default=300, help="draws that fix the settings (default: %(default)s)")
    parser.add_argument("--arms", type=int, default=16, help="arms of a draw (default: %(default)s)")
    parser.add_argument(
        "--swap", action="store_true", help="fix on the half that is otherwise reported, and report the other"
    )
    parser.add_argument("--split", type=int, help="random halves of this number, instead of every other arm by name")
    parser.add_argument("--no-optuna", action="store_true", help="leave out ASHA and Hyperband")
    parser.add_argument("--out", type=Path, help="folder for replay.json and replay.svg")
    given = parser.parse_args()

    opponents = OWN | ({} if given.no_optuna else schedulers())
    fixed_on, reported = halves(load(given.data), given.split)
    if given.swap:
        fixed_on, reported = reported, fixed_on
    designs = fix(fixed_on, opponents, given.arms, given.seed, given.fix_draws)
    _tell(f"settings fixed on {len(fixed_on)} arms: the ladder has {designs['ladder']}")
    out = evaluate(reported, opponents, designs, k=given.arms, seed=given.seed, draws=given.draws, tell=_tell)
    of = f"{min(given.arms, len(reported))} of {len(reported)} arms"
    print(f"{given.draws} draws of {of}; ladder: {designs['ladder']}\n")
    print(table(out))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "replay.json").write_text(json.dumps(figures(out), indent=2) + "\n")
        plot(out, given.out / "replay.svg")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
