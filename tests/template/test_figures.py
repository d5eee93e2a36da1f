"""The figures in the documents are those that `make bench` and `make cost` printed last."""

import json
import re
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.benchmarks.cost import (
    MAXIMUM_CONCURRENCY,
    STATUS_EVENTS_EACH,
    lambda_dollars,
    limits,
    publishing,
    receipts,
    sending,
    syncing,
    waiting,
)
from tests.benchmarks.figures import RESULTS, Figures, billed, last_run, median_ratio
from tests.benchmarks.growth import BACKLOG, SHARE_OF_PLAN
from tests.benchmarks.lab import COMPETITORS, FLOOR, OURS, TEXTBOOK
from tests.benchmarks.memory import ROUND_TRIP_SECONDS, SIZES_MB
from tests.benchmarks.targets import ALONE, KNOWN, NEW
from tests.local.machine import ROOT

MEASURED: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
BATCHES = {(f.case, f.competitor): f for f in last_run("batches") if f.latency}
SIZES = {
    (f.case, f.competitor): f
    for f in (Figures(**each) for each in MEASURED["memory"]["batches"])
    if f.latency == ROUND_TRIP_SECONDS
}


def _row(name: str, *cells: str) -> str:
    return f"| {' | '.join([name, *cells])} |".replace("|  |", "| |")


def _both(digits: int, figure: Callable[[Figures], float], competitor: str) -> str:
    known, new = (figure(BATCHES[case, competitor]) for case in (KNOWN, NEW))
    return f"{known:.{digits}f} / {new:.{digits}f}"


def _dollars(figures: Figures) -> float:
    return sum(sending(figures).values())


def _time(figures: Figures) -> str:
    return f"{1000 * figures.p50:.0f} ms ({1000 * figures.p95:.0f})"


def _start(competitor: str) -> str:
    first, peak = (
        statistics.median(MEASURED["cold_start"]["starts"][competitor][what])
        for what in ("first_batch", "peak_bytes")
    )
    return f"{1000 * first:.0f} ms, {peak / 1e6:.0f} MB"


def of_tests() -> Iterator[str]:
    """Yield what stands in the section on performance and cost."""
    for name, case in (
        ("ten known recipients, median (p95)", KNOWN),
        ("ten new recipients", NEW),
        ("one known recipient alone", ALONE),
    ):
        yield _row(name, *(_time(BATCHES[case, competitor]) for competitor in COMPETITORS))
    yield _row(
        "processor time per notification, known / new",
        *(f"{_both(1, lambda f: 1000 * f.cpu, each)} ms" for each in COMPETITORS),
    )
    yield _row(
        "calls to AWS per notification, known / new",
        *(_both(1, lambda f: f.calls_in_all, each) for each in COMPETITORS),
    )
    yield _row(
        "DynamoDB write units, known / new",
        *(_both(1, lambda f: f.write_units, each) for each in COMPETITORS),
    )
    yield _row(
        "dollars per million, known / new (`make cost`)",
        *(_both(2, _dollars, each) for each in (OURS, TEXTBOOK)),
        "",
    )
    yield _row("cold start: imports and first batch", _start(OURS), "", _start("bare"))

    known = BATCHES[KNOWN, OURS]
    received, recorded, _, ten = last_run("afterwards")
    yield (
        f"{receipts(received, recorded):.2f} dollars for four receipts each, "
        f"{STATUS_EVENTS_EACH * publishing(ten):.2f} for status events, "
        f"and {waiting(known):.2f} for what waits"
    )
    yield f"{syncing(50):.2f} dollars a month for 50 of them and {syncing(6000):.2f} for 6,000"
    full = next(at for name, at in limits(known, 1).items() if "MaximumConcurrency" in name)
    yield f"`MaximumConcurrency` {MAXIMUM_CONCURRENCY} is enough for {full:.0f} a second"
    drained = MEASURED["growth"]["drain"]
    yield (
        f"With {SHARE_OF_PLAN:.2f} of the plan in use, a backlog of {BACKLOG} drained in "
        f"{drained['seconds']:.1f} s, where the plan alone takes {drained['at_the_plan']:.1f} s"
    )
    items = MEASURED["growth"]["items"]
    least, most = (f"{items[place]['calls']:.2f}" for place in (0, -1))
    yield f"{least} calls each at a thousand items and {most} at a million"
    more = _dollars(BATCHES[NEW, OURS]) / _dollars(BATCHES[NEW, TEXTBOOK]) - 1
    yield f"two conditional writes more: {100 * more:.0f} % more dollars"
    ours, floor = (BATCHES[KNOWN, each].cpu_seconds for each in (OURS, FLOOR))
    yield f"Processor time of ten known recipients is {median_ratio(ours, floor):.2f} of the"


def of_readme() -> Iterator[str]:
    """Yield what stands in README."""
    ours, theirs = (1000 * BATCHES[KNOWN, each].p50 for each in (OURS, TEXTBOOK))
    yield f"{ours:,.0f} ms, not {theirs:,.0f} ms"
    received, recorded, _, ten = last_run("afterwards")
    more = receipts(received, recorded) + STATUS_EVENTS_EACH * publishing(ten)
    yield (
        f"cost {_dollars(BATCHES[KNOWN, OURS]):.2f} dollars on AWS if their recipients are known, "
        f"{_dollars(BATCHES[NEW, OURS]):.2f} if they are new, and {more:.2f} more for receipts"
    )


def of_layers() -> Iterator[str]:
    """Yield the rows of the table by which MemorySize was chosen."""
    memory = MEASURED["memory"]
    for size, drains, starts in zip(SIZES_MB, memory["drains"], memory["starts"], strict=True):
        name = f"{size} MB"
        known, new = (SIZES[case, name] for case in (KNOWN, NEW))
        paid = [
            lambda_dollars(1, statistics.fmean(map(billed, each.seconds)), size) / each.size
            for each in (known, new)
        ]
        first, second = drains["rounds"]
        rates = [each["requests"] / each["seconds"] for each in (first, second)]
        dollars = [
            lambda_dollars(each["invocations"], each["billed_seconds"], size) / each["requests"]
            for each in (first, second)
        ]
        begun, batch = (
            1000 * statistics.median(each[what] for each in starts["rounds"])
            for what in ("start", "first_batch")
        )
        yield _row(
            f"{size:,} MB",
            *(f"{1000 * f.p50:,.0f} ({1000 * f.p95:,.0f}) ms" for f in (known, new)),
            f"{paid[0]:.2f}, {paid[1]:.2f}",
            f"{rates[0]:.1f}, {rates[1]:.1f}",
            f"{dollars[0]:.2f}, {dollars[1]:.2f}",
            f"{begun:,.0f} + {batch:,.0f} ms",
        )


@pytest.mark.parametrize(
    ("document", "figure"),
    [
        (document, figure)
        for document, figures in (
            ("README.md", of_readme()),
            ("tests/README.md", of_tests()),
            ("layers/README.md", of_layers()),
        )
        for figure in figures
    ],
)
def test_document_holds_the_figure_that_was_measured(document: str, figure: str) -> None:
    text = re.sub(r"\s+", " ", (ROOT / document).read_text(encoding="utf-8"))
    assert figure in text, f"{document} does not say: {figure}"
