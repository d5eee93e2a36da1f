"""Runs the faults at full size on a simulated clock, and prints what came of them.

    make faults

Ends with 1 if anything was lost, sent twice, or ended as it should not.
"""

import logging
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from tests.faults import interleavings, stories
from tests.faults.breaks import BREAKS
from tests.faults.long_runs import backlog, outage
from tests.faults.storm import Storm, run


def _crash_points() -> tuple[str, list[str]]:
    broken: list[str] = []
    count = 0
    for name, story in stories.STORIES.items():
        for point in stories.points(story):
            count += 1
            broken += [f"{name}, {point}: {what}" for what in stories.killed_at(story, point)]
    return f"{count} points in {len(stories.STORIES)} stories", broken


def _interleavings() -> tuple[str, list[str]]:
    told, broken = "nothing lost, nothing twice, nothing too late, nothing back", []
    try:
        interleavings.run(5000, steps=80)
    except AssertionError as error:
        broken = ["\n".join([str(error), *getattr(error, "__notes__", ())])]
        told = "one that breaks something"
    return told, broken


def _breaks() -> tuple[str, list[str]]:
    missed = interleavings.overlooked(4000)
    return f"{len(BREAKS) - len(missed)} found", [f"not found: {name}" for name in missed]


def _storm(storm: Storm, *, may_be_sent_twice: bool = False) -> tuple[str, list[str]]:
    result = run(storm)
    broken = list(result.broken)
    if result.lost:
        broken.append(f"{result.lost} lost")
    if result.sent_twice and not may_be_sent_twice:
        broken.append(f"{result.sent_twice} sent twice")
    told = f"{result.lost} lost, {result.sent_twice} sent twice, {result.killed} sandboxes killed"
    return told, broken


def _outage() -> tuple[str, list[str]]:
    result = outage(10_000, 6, "refused")
    broken = list(result.broken)
    if result.letters or result.spent or result.shortest_between_probes < 30:
        broken.append("it cost something")
    told = (
        f"{result.letters} dead letters, {result.spent} attempts spent, {result.probes} probes, "
        f"{result.shortest_between_probes:.1f} s between two at least, "
        f"then drained in {result.drained_in / 60:.0f} min"
    )
    return told, broken


def _backlog() -> tuple[str, list[str]]:
    result = backlog(100_000)
    broken = list(result.broken)
    if result.throttled or result.share < 0.95:
        broken.append("not at the plan's rate")
    told = (
        f"{result.rate:.1f} a second, {100 * result.share:.1f} % of the configured rate, at most "
        f"{result.most_per_second} in any second, {result.throttled} throttled"
    )
    return told, broken


RUNS: dict[str, Callable[[], tuple[str, list[str]]]] = {
    "a sandbox killed at every call out": _crash_points,
    "5,000 interleavings": _interleavings,
    f"interleavings of code broken in {len(BREAKS)} ways": _breaks,
    "storm, 100,000 requests": lambda: _storm(Storm(100_000)),
    "storm without history, 20,000, if_unknown: fail": lambda: _storm(
        Storm(20_000, history=False, if_unknown="fail")
    ),
    "storm without history, 20,000, if_unknown: resend": lambda: _storm(
        Storm(20_000, history=False, if_unknown="resend"), may_be_sent_twice=True
    ),
    "outage of six hours, 10,000 waiting": _outage,
    "backlog of 100,000 at 50 a second": _backlog,
}


def main() -> int:
    """Run everything; 0 if nothing was broken."""
    logging.disable()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("what", "came of it", ""):
        table.add_column(title, overflow="fold")
    failures: list[str] = []
    for name, what in RUNS.items():
        print(name, file=sys.stderr)
        told, broken = what()
        failures += [f"{name}: {problem}" for problem in broken]
        table.add_row(name, told, "[red]✗[/]" if broken else "[green]✓[/]")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for problem in failures[:50]:
        print(problem, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
