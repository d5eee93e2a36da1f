"""What a MemorySize costs, in dollars and in time.

Ours with the share of a processor that Lambda gives it at each size; see `quota`.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table

from tests.benchmarks import batches, growth, quota
from tests.benchmarks.cost import lambda_dollars
from tests.benchmarks.figures import Figures, billed, quartiles, ratio
from tests.benchmarks.lab import Function, Lab, batch

SIZES_MB = (256, 512, 1024, 1769)
# BLiP so near that a round trip is all there is to wait for; and as in the other benchmarks.
ROUND_TRIP_SECONDS = 0.04
LATENCIES = (ROUND_TRIP_SECONDS, 0.1)
CASES = [case for case in batches.CASES if case.name in {"ten known", "ten new"}]
DRAINS = 2
STARTS = 5


def measure(lab: Lab) -> dict[str, Any] | None:
    """Measure batches, backlogs and starts, the sizes by turns; None where there is no quota."""
    if not quota.SUPPORTED:
        return None
    with _sandboxes(lab, *SIZES_MB) as functions:
        figures = [
            measured
            for case in CASES
            for latency in LATENCIES
            for measured in batches.measure(lab, functions, case, latency)
        ]
    drains: dict[int, list[growth.Row]] = {size: [] for size in SIZES_MB}
    starts: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES_MB}
    for number in range(DRAINS):
        for size in _in_turn(number):
            drains[size].append(_drain(lab, size))
    lab.latency(ROUND_TRIP_SECONDS)
    for number in range(STARTS):
        for size in _in_turn(number):
            starts[size].append(_start(lab, size))
    return {
        "batches": [asdict(each) for each in figures],
        "drains": [{"memory_mb": size, "rounds": rounds} for size, rounds in drains.items()],
        "starts": [{"memory_mb": size, "rounds": rounds} for size, rounds in starts.items()],
    }


def _in_turn(number: int) -> Sequence[int]:
    first = number % len(SIZES_MB)
    return SIZES_MB[first:] + SIZES_MB[:first]


@contextmanager
def _sandboxes(lab: Lab, *sizes_mb: int) -> Iterator[list[Function]]:
    with ExitStack() as running:
        yield [running.enter_context(lab.sandbox(size)) for size in sizes_mb]


def _drain(lab: Lab, size: int) -> growth.Row:
    """Empty a backlog with sandboxes that are warm: in a real backlog their starts do not count."""
    lab.plan(growth.PLAN)
    with _sandboxes(lab, *[size] * growth.MAXIMUM_CONCURRENCY) as functions:
        for function in functions:
            function.invoke({"Records": batch(lab, known=10, new=0)})
        return growth.drain(lab, functions, ROUND_TRIP_SECONDS)


def _start(lab: Lab, size: int) -> dict[str, float]:
    records = batch(lab, known=10, new=0)
    with lab.sandbox(size) as function:
        first_batch = function.invoke({"Records": records})["seconds"]
        return {"start": function.start_seconds, "first_batch": first_batch}


def tables(measured: dict[str, Any] | None) -> Group:
    """Return the tables."""
    if measured is None:
        return Group(
            "MemorySize: not measured. The quota needs the processor clock of another process,"
            " which only Linux shows."
        )
    return Group(
        _batches([Figures(**each) for each in measured["batches"]]),
        _drains(measured["drains"]),
        _starts(measured["starts"]),
    )


def _table(title: str, *headings: str) -> Table:
    shown = Table(title=title)
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "batch" else "right")
    return shown


def _batches(results: Sequence[Figures]) -> Table:
    shown = _table(
        "One batch by MemorySize. Ratios: median of the rounds (quartiles)",
        *("batch", "BLiP ms", "MemorySize", "p50 ms", "p95 ms", "CPU ms each"),
        *("time, of a whole processor's", "Lambda, $ per million"),
    )
    for row in range(0, len(results), len(SIZES_MB)):
        sizes = results[row : row + len(SIZES_MB)]
        for size, figures in zip(SIZES_MB, sizes, strict=True):
            first, last = figures is sizes[0], figures is sizes[-1]
            seconds = statistics.fmean(map(billed, figures.seconds))
            shown.add_row(
                figures.case if first else "",
                f"{figures.latency * 1000:.0f}" if first else "",
                figures.competitor,
                f"{figures.p50 * 1000:.0f}",
                f"{figures.p95 * 1000:.0f}",
                f"{figures.cpu * 1000:.1f}",
                "" if last else ratio(figures.seconds, sizes[-1].seconds),
                f"{lambda_dollars(1, seconds, size) / figures.size:.2f}",
                end_section=last,
            )
    return shown


def _drains(drains: Sequence[dict[str, Any]]) -> Table:
    shown = _table(
        f"A backlog of {growth.BACKLOG}, {growth.MAXIMUM_CONCURRENCY} warm sandboxes, "
        f"{growth.SHARE_OF_PLAN:.2f} of {growth.PLAN}/s, "
        f"BLiP at {ROUND_TRIP_SECONDS * 1000:.0f} ms (each round)",
        *("MemorySize", "notifications a second", "% of what the plan allows"),
        *("came back", "invocations", "Lambda, $ per million"),
    )
    for row in drains:
        rounds = row["rounds"]
        dollars = [
            lambda_dollars(each["invocations"], each["billed_seconds"], row["memory_mb"])
            / each["requests"]
            for each in rounds
        ]
        shown.add_row(
            f"{row['memory_mb']} MB",
            _each(f"{each['requests'] / each['seconds']:.1f}" for each in rounds),
            _each(f"{100 * each['at_the_plan'] / each['seconds']:.0f}" for each in rounds),
            _each(f"{each['came_back']}" for each in rounds),
            _each(f"{each['invocations']}" for each in rounds),
            _each(f"{each:.2f}" for each in dollars),
        )
    return shown


def _each(values: Iterator[str]) -> str:
    return ", ".join(values)


def _starts(starts: Sequence[dict[str, Any]]) -> Table:
    shown = _table(
        f"Cold start, all of it under the quota, BLiP at {ROUND_TRIP_SECONDS * 1000:.0f} ms. "
        "Median (quartiles)",
        *("MemorySize", "start of the process, ms", "first batch, ms", "both, $ per million"),
    )
    for row in starts:
        both = [each["start"] + each["first_batch"] for each in row["rounds"]]
        shown.add_row(
            f"{row['memory_mb']} MB",
            *(
                _milliseconds([each[what] for each in row["rounds"]])
                for what in ("start", "first_batch")
            ),
            f"{lambda_dollars(1, billed(statistics.median(both)), row['memory_mb']):.2f}",
        )
    return shown


def _milliseconds(seconds: Sequence[float]) -> str:
    return quartiles([1000 * each for each in seconds], digits=0)
