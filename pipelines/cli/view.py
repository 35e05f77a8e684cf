"""How a run is shown while it goes on: a snapshot of its store, drawn on a terminal or printed as plain lines.

The process that runs a pipeline and one that only looks on read the same store and show the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from podium.components.study import layout
from podium.pipelines.cli.options import say, stderr, stdout
from podium.trainer.trial.storage import MANIFEST

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

    from podium.components.study.ledger import Entry
    from podium.components.study.run import Run
    from podium.components.study.trials import Trial


WORDS = {
    "run_started": "started {}",
    "gate": "shakedown",
    "trial_ended": "ended {}",
    "kill": "killed {}",
    "trial_restarted": "restarted {}",
    "more_trials": "more trials {}",
    "registration": "registered {}",
    "report": "report built",
}
"""Kind of a ledger entry → how a line about it begins; other kinds say themselves."""


@dataclass(frozen=True)
class StageCount:
    """A stage's trials, counted."""

    name: str
    trials: int
    """0 while it is not known who takes part."""
    finished: int
    running: int
    killed: int
    broken: int
    decision: str | None
    known: bool = True
    """Whether it is known who takes part."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial that holds a lease on its folder now."""

    name: str
    tokens: int
    total_tokens: int
    loss: float | None
    """Nats per token: the last training loss, or the validation loss where that was the last line."""
    tokens_per_second: float | None
    seconds_left: float | None
    """By the training clock; evaluations come on top."""


@dataclass(frozen=True)
class Snapshot:
    """The run at one moment."""

    doing: str
    """What goes on, in a few words: `preparing data`, `ranking: training`, …"""
    stages: tuple[StageCount, ...]
    running: tuple[RunningTrial, ...]
    spent_usd: float
    budget_usd: float | None
    waiting: tuple[str, ...] = ()
    """What trials that were started wait for, one reason each with how many wait for it."""


def take(run: Run) -> Snapshot:
    """Read the run's store."""
    stages, running = [], []
    for stage in run.stages:
        trials = run.trials(stage)
        statuses = [result.status.value for trial in trials if (result := run.result(trial.key)) is not None]
        verdict = run.verdict(stage)
        active = [] if verdict is not None else [trial for trial in trials if _is_running(run, trial)]
        running += [_running(run, trial) for trial in active]
        stages.append(
            StageCount(
                name=stage,
                trials=len(trials),
                finished=len(statuses),
                running=len(active),
                killed=statuses.count("killed"),
                broken=statuses.count("broken"),
                decision=verdict.decision if verdict is not None else None,
                known=run.stage_variants(stage) is not None,
            )
        )
    doing, waiting = _doing(run, stages), tuple(reasons(run.waiting()))
    return Snapshot(doing, tuple(stages), tuple(running), run.spent_usd(), run.study.budget.usd, waiting)


def reasons(waiting: Mapping[str, str]) -> list[str]:
    """What trials wait for: one line a reason, which names the trial that waits for it, or says how many do."""
    names: dict[str, list[str]] = {}
    for name, why in waiting.items():
        names.setdefault(why, []).append(name)
    return [f"{found[0] if len(found) == 1 else f'{len(found)} trials'}: {why}" for why, found in names.items()]


def sentence(entry: Entry) -> str:
    """A ledger entry as one line."""
    data: dict[str, Any] = entry.data
    said = data.get("reason") or data.get("decision") or data.get("outcome") or data.get("status") or ""
    if entry.kind == "verdict":
        return f"verdict of {entry.key.partition('/')[0]}: {said}"
    words = WORDS.get(entry.kind, f"{entry.kind} {{}}").format(entry.key)
    return f"{words}{': ' if said else ''}{said}"


def _is_running(run: Run, trial: Trial) -> bool:
    from podium.trainer.trial.result import RESULT

    return run.storage.exists(trial.key.file(layout.LEASE)) and not run.storage.exists(trial.key.file(RESULT))


def _running(run: Run, trial: Trial) -> RunningTrial:
    line = run.trial_progress(trial.key) or {}
    tokens, seconds = int(line.get("tokens") or 0), float(line.get("train_seconds") or 0.0)
    speed = tokens / seconds if seconds > 0 else None
    return RunningTrial(
        name=trial.key.name,
        tokens=tokens,
        total_tokens=trial.config.tokens,
        loss=line.get("val_loss", line.get("train_loss")),
        tokens_per_second=speed,
        seconds_left=(trial.config.tokens - tokens) / speed if speed else None,
    )


def _doing(run: Run, stages: list[StageCount]) -> str:
    gate = run.read_json(layout.SHAKEDOWN)
    if gate is None:
        data = {run.dataset_fingerprint(variant) for variant in run.stage_variants(run.stages[0]) or []}
        prepared = all(run.store.exists(f"{layout.data_key(fingerprint)}/{MANIFEST}") for fingerprint in data)
        return "shakedown" if prepared else "preparing data"
    for stage in stages:
        if stage.decision is None:
            return f"{stage.name}: {'selecting' if stage.known and stage.finished >= stage.trials else 'training'}"
        if stage.decision != "promote":
            return f"{stage.name}: {stage.decision}"
    if run.storage.exists(layout.REGISTRATION):
        return "reporting"
    return "evaluating and registering"


# Views: a live picture on a terminal, plain lines elsewhere.

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines when nothing happens."""
MOST_BARS = 12
"""Running trials that are drawn with a bar of their own."""
MOST_REASONS = 5


class View(Protocol):
    """Shows snapshots and passes sentences and tables on."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def show(self, snapshot: Snapshot) -> None:
        """Draw the run as it stands."""

    def event(self, line: str) -> None:
        """Something happened."""

    def emit(self, renderable: Any) -> None:
        """A result: a verdict's sentence, a table."""


def open_view(*, as_json: bool) -> View:
    """The view that fits where output goes. With `as_json` nothing but the object goes to stdout."""
    console = stderr() if as_json else stdout()
    return LiveView(console) if console.is_terminal else PlainView(console)


class PlainView:
    """A line of progress on stderr every ten seconds and at each event."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._shown: float | None = None
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, snapshot: Snapshot) -> None:
        """Print a line if the last one is old, or something else goes on than then."""
        now = self._clock()
        if snapshot.doing != self._last or self._shown is None or now - self._shown >= PLAIN_SECONDS:
            say(plain_line(snapshot))
            self._shown, self._last = now, snapshot.doing

    def event(self, line: str) -> None:
        """Print it."""
        say(line)

    def emit(self, renderable: Any) -> None:
        """Print it where results go."""
        _print_view(self._console, renderable)


class LiveView:
    """A picture that is redrawn in place, with events scrolling above it."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    def show(self, snapshot: Snapshot) -> None:
        """Redraw."""
        self._live.update(picture(snapshot))

    def event(self, line: str) -> None:
        """Print it above the picture."""
        self._console.print(line, style="dim", markup=False)

    def emit(self, renderable: Any) -> None:
        """Print it above the picture."""
        _print_view(self._console, renderable)


def _print_view(console: Console, renderable: Any) -> None:
    # a sentence may hold brackets that are no markup, and stays one line where nobody sets its width
    console.print(renderable, markup=False, soft_wrap=isinstance(renderable, str) and not console.is_terminal)


def plain_line(snapshot: Snapshot) -> str:
    """The snapshot in one line."""
    parts = [snapshot.doing]
    stage = next((stage for stage in snapshot.stages if snapshot.doing.startswith(f"{stage.name}:")), None)
    if stage is not None and stage.known:
        counts = [f"{stage.finished}/{stage.trials} trials", f"{stage.running} running"]
        counts += [
            f"{number} {word}" for number, word in ((stage.killed, "killed"), (stage.broken, "broken")) if number
        ]
        parts.append(", ".join(counts))
    parts += [_trial_words(trial) for trial in snapshot.running[:3]]
    parts += [f"waiting: {reason}" for reason in snapshot.waiting[:1]]
    parts.append(money(snapshot))
    return " | ".join(parts)


def picture(snapshot: Snapshot) -> Group:
    """The snapshot as a table of stages and a bar for each running trial."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    stages = Table("stage", "done", "running", "killed", "broken", "verdict", box=None, pad_edge=False)
    for stage in snapshot.stages:
        count = f"{stage.finished}/{stage.trials}" if stage.known else "…"
        stages.add_row(
            stage.name, count, str(stage.running), str(stage.killed), str(stage.broken), stage.decision or ""
        )
    bars = Table.grid(padding=(0, 2))
    for trial in snapshot.running[:MOST_BARS]:
        bar = ProgressBar(total=trial.total_tokens, completed=trial.tokens, width=24)
        bars.add_row(trial.name, bar, *_figures(trial))
    hidden = len(snapshot.running) - MOST_BARS
    more = [Text(f"and {hidden} more running", style="dim")] if hidden > 0 else []
    more += [Text(f"waiting: {reason}", style="yellow") for reason in snapshot.waiting[:MOST_REASONS]]
    head = Text(f"{snapshot.doing}   {money(snapshot)}", style="bold")
    return Group(head, stages, bars, *more)


def money(snapshot: Snapshot) -> str:
    """`$0.12 of $5.00 spent`."""
    from podium.trainer.trial.section import format_usd

    of = f" of {format_usd(snapshot.budget_usd)}" if snapshot.budget_usd is not None else ""
    return f"{format_usd(snapshot.spent_usd)}{of} spent"


def _figures(trial: RunningTrial) -> list[str]:
    from podium.trainer.trial.section import format_count, format_seconds

    loss = "" if trial.loss is None else f"loss {trial.loss:.3f}"
    speed = "" if trial.tokens_per_second is None else f"{format_count(trial.tokens_per_second)} tokens/s"
    left = "" if trial.seconds_left is None else f"{format_seconds(trial.seconds_left)} left"
    return [loss, speed, left]


def _trial_words(trial: RunningTrial) -> str:
    share = f"{100 * trial.tokens / trial.total_tokens:.0f}%"
    return " ".join([trial.name, share, *(word for word in _figures(trial) if word)])


# Tables of the report, after a verdict.

STYLES = {"winner": "bold green", "baseline": "", "lost": "dim", "total": "bold", "": ""}
"""How a line's mark is shown where there is colour."""


def axis_tables(run: Run, stage: str) -> Iterator[Table]:
    """The comparison table of each axis once the first stage has its verdict; later stages have none of their own."""
    from rich.table import Table
    from rich.text import Text

    from podium.components.reporting.build import axis_tables as report_tables

    if stage != run.stages[0]:
        return
    for made in report_tables(run):
        table = Table(
            title=made.title, caption=made.note, title_justify="left", caption_justify="left", box=None, pad_edge=False
        )
        for column in made.columns:
            table.add_column(column.title, justify="right" if column.number else "left")
        for line in made.lines:
            table.add_row(*(Text(cell) for cell in line.cells), style=STYLES[line.mark])
        yield table
