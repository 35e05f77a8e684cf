"""How a running pipeline is shown: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from podium.pipelines.cli.console import say, stderr, stdout

if TYPE_CHECKING:
    from rich.console import Console, Group

    from podium.pipelines.cli.snapshot import RunningTrial, Snapshot

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
        _print(self._console, renderable)


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
        _print(self._console, renderable)


def _print(console: Console, renderable: Any) -> None:
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
    from podium.trainer.units import format_usd

    of = f" of {format_usd(snapshot.budget_usd)}" if snapshot.budget_usd is not None else ""
    return f"{format_usd(snapshot.spent_usd)}{of} spent"


def _figures(trial: RunningTrial) -> list[str]:
    from podium.trainer.units import format_count, format_seconds

    loss = "" if trial.loss is None else f"loss {trial.loss:.3f}"
    speed = "" if trial.tokens_per_second is None else f"{format_count(trial.tokens_per_second)} tokens/s"
    left = "" if trial.seconds_left is None else f"{format_seconds(trial.seconds_left)} left"
    return [loss, speed, left]


def _trial_words(trial: RunningTrial) -> str:
    share = f"{100 * trial.tokens / trial.total_tokens:.0f}%"
    return " ".join([trial.name, share, *(word for word in _figures(trial) if word)])
