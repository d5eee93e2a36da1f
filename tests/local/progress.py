"""Shows how far it is: the steps of the start, then how many requests were sent, delivered, ended.

On a terminal something moves ten times a second. Elsewhere plain lines say the same.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.text import Text

from tests.local.rows import Row

TITLE_WIDTH = 60
BAR_WIDTH = 30
LINES_EVERY_SECONDS = 2.0

type Clock = Callable[[], float]


class Steps:
    """The steps of the start, some at the same time: each becomes a line when it is done."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._under_way = Progress(
            SpinnerColumn(),
            _Step(),
            console=console,
            transient=True,
            get_time=clock,
            disable=not moves(console),
        )

    def __enter__(self) -> Self:
        self._under_way.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._under_way.stop()

    @contextlib.contextmanager
    def __call__(self, title: str) -> Iterator[None]:
        """Show a step for as long as it takes. One that fails leaves no line, but its error."""
        began = self._clock()
        task = self._under_way.add_task(title)
        try:
            yield
        finally:
            self._under_way.remove_task(task)
        self._console.print(Text.assemble(("✓ ", "green"), _step(title, self._clock() - began)))


def moves(console: Console) -> bool:
    """Return whether a console can show what moves."""
    return console.is_terminal and not console.is_dumb_terminal


def _step(title: str, seconds: float) -> Text:
    return Text(f"{title:{TITLE_WIDTH}} {seconds:7.1f} s")


class _Step(ProgressColumn):
    max_refresh = None

    def render(self, task: Task) -> Text:
        return _step(task.description, task.elapsed or 0.0)


class Bars:
    """How many of the requests were sent, delivered and ended, with rate and time left.

    What was refused can no longer be sent or delivered, and does not count there.
    """

    def __init__(
        self,
        console: Console,
        rows: Sequence[Row],
        *,
        has_receipts: bool,
        clock: Clock = time.monotonic,
    ) -> None:
        """Make it.

        Args:
            console: where it is shown.
            rows: what is published.
            has_receipts: whether it can be known what was delivered.
            clock: in seconds.
        """
        self._console = console
        self._rows = rows
        self._clock = clock
        self._has_receipts = has_receipts
        self._shown_at = clock()
        self._first: Row | None = None
        self._progress = Progress(
            SpinnerColumn(),
            _Name(),
            BarColumn(BAR_WIDTH),
            _Count(),
            _Rate(),
            _TimeLeft(),
            console=console,
            transient=True,
            get_time=clock,
            disable=not moves(console),
        )
        names = ("sent", "delivered", "ended") if has_receipts else ("sent", "ended")
        self._tasks: dict[str, TaskID] = {
            name: self._progress.add_task(name, total=len(rows)) for name in names
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self) -> None:
        """Show the rows as they stand now."""
        self._show_first()
        sent = sum(row.sent_at is not None for row in self._rows)
        delivered = sum(row.delivered_at is not None for row in self._rows)
        ended = [row for row in self._rows if row.ended_at is not None]
        never_sent = sum(row.sent_at is None for row in ended)
        never_delivered = sum(row.delivered_at is None for row in ended)
        counts = {
            "sent": (sent, len(self._rows) - never_sent),
            "delivered": (delivered, len(self._rows) - never_delivered),
            "ended": (len(ended), len(self._rows)),
        }
        for name, task in self._tasks.items():
            completed, total = counts[name]
            self._progress.update(task, completed=completed, total=total)
        if not moves(self._console) and self._clock() - self._shown_at >= LINES_EVERY_SECONDS:
            self._shown_at = self._clock()
            self._console.print(self._line())

    def _show_first(self) -> None:
        """Show the first request that arrived, as soon as it has."""
        if self._first:
            return
        word = "delivered" if self._has_receipts else "sent"
        for row in self._rows:
            at = row.delivered_at if self._has_receipts else row.sent_at
            if at is not None and (seconds := row.took(at)) is not None:
                self._first = row
                title = f"First one {word}: {row.source}, id {row.id}"
                self._console.print(Text.assemble(("✓ ", "green"), _step(title, seconds)))
                return

    def _line(self) -> str:
        *tasks, last = (self._progress.tasks[task] for task in self._tasks.values())
        counts = [f"{task.description} {task.completed:.0f}" for task in [*tasks, last]]
        parts = [f"{', '.join(counts)} of {len(self._rows)}", rate(last), time_left(last)]
        return "; ".join(filter(None, parts))


def rate(task: Task) -> str:
    """Return how many a second there were lately; empty before that is known."""
    return f"{task.speed:.1f} a second" if task.speed else ""


def time_left(task: Task) -> str:
    """Return how long the rest takes at that rate; empty where that is not known."""
    left = task.time_remaining
    if left is None or task.finished:
        return ""
    minutes, seconds = divmod(round(left), 60)
    return f"{minutes}:{seconds:02} left"


class _Name(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.description:9}")


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = f"{task.total:.0f}"
        return Text(f"{task.completed:{len(total)}.0f}/{total}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{rate(task):>13}", "cyan")


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{time_left(task):>10}", "cyan")
