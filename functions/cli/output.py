"""What a command shows on a terminal of any width. Nothing is ever cut: what does not fit wraps."""

import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Of what is no terminal: a table has one line per row there, so that `grep` finds all of it.
UNLIMITED = 100_000
# A bar is shown for so many; fewer are done in a moment.
SHOWN_FROM = 20
_NUMBERS = {"count", "code", "generation", "redrives", "found", "erased", "waiting", "in flight"}


def say(text: str = "") -> None:
    """Print a paragraph, wrapped at its spaces."""
    for line in _wrapped(text, _width(sys.stdout)):
        print(line)


def say_exactly(text: str) -> None:
    """Print a line that is copied: a command, a secret, an id. It is not wrapped."""
    print(text)


def print_json(data: object) -> None:
    """Print an answer for scripts."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; where it is wider than the terminal, a block per row.

    Args:
        columns: their names; the first one heads a block.
        rows: their cells. In a block, empty ones and `-` are left out.
    """
    screen = _screen()
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        justify = "right" if column in _NUMBERS else "left"
        drawn.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type] # one of two
    for cells in rows:
        drawn.add_row(*map(Text, cells))
    needed = screen.measure(drawn, options=screen.options.update(width=UNLIMITED)).maximum
    if needed <= screen.width:
        screen.print(drawn, highlight=False)
        return
    for number, cells in enumerate(rows):
        if number:
            print()
        block(cells[0], dict(zip(columns[1:], cells[1:], strict=True)))


def title(text: str) -> None:
    """Print what the lines below are about."""
    _screen().print(Text(text, style="bold"), soft_wrap=True)


def block(about: str, content: Mapping[str, str]) -> None:
    """Print one thing with what is known of it, below its name."""
    title(about)
    facts({name: fact for name, fact in content.items() if fact not in {"", "-"}}, indent=2)


def facts(content: Mapping[str, str | Sequence[str]], indent: int = 0) -> None:
    """Print names with their values, one below the other; long values wrap beside their names."""
    beside = indent + max(map(cell_len, content), default=0) + 2
    for name, fact in content.items():
        values = [fact] if isinstance(fact, str) else fact
        lines = [line for one in values for line in _wrapped(one, _width(sys.stdout) - beside)]
        print(f"{' ' * indent}{name}".ljust(beside) + lines[0])
        for line in lines[1:]:
            print(" " * beside + line)


def error(problem: str, command: str = "") -> None:
    """Print on standard error what is wrong, and the command that is the way out."""
    sys.stdout.flush()  # so that what is wrong stands last, in a pipe as well
    for line in _wrapped(f"error: {problem}", _width(sys.stderr)):
        print(line, file=sys.stderr)
    if command:
        print(f"  {command}", file=sys.stderr)


def next_step(what: str, command: str) -> None:
    """Print a command to be typed next, in one piece, and what it is for."""
    print(f"{what}:")
    print(f"  {command}")


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while something takes its time, if that is a terminal.

    Args:
        what: is counted.
        total: how many there are.
    """
    if total < SHOWN_FROM or not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Return what shows on standard error how far it is, each text in place of the one before."""
    shown = False

    def show(text: str) -> None:
        nonlocal shown
        shown = True
        print(f"\r{text}", end="", file=sys.stderr, flush=True)

    yield show
    if shown:
        print(file=sys.stderr)


def ago(at: str, now: float | None = None) -> str:
    """Return how long ago a time was, to its largest unit."""
    passed = (time.time() if now is None else now) - datetime.fromisoformat(at).timestamp()
    return f"{duration(max(0.0, passed))} ago"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has two."""
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f}{name}"
    return f"{seconds:.0f}s"


def moment(epoch_seconds: float) -> str:
    """Return a time as it is shown: in UTC, to the second."""
    return f"{datetime.fromtimestamp(epoch_seconds, UTC):%FT%TZ}"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _screen() -> Console:
    return Console(width=_width(sys.stdout))


def _width(stream: TextIO) -> int:
    return Console().width if stream.isatty() else UNLIMITED


def _wrapped(text: str, width: int) -> list[str]:
    """Wrap at spaces only, so that an id, a code or an address stays in one piece."""
    return textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False) or [
        ""
    ]
