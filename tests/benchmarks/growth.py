"""What grows with the ledger, with sandboxes, and with a backlog."""

import heapq
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from tests.benchmarks.figures import billed
from tests.benchmarks.lab import FULL_SPEED, OURS, Function, Lab, batch

ITEMS = (1_000, 10_000, 100_000, 1_000_000)
ROUNDS = 9
SANDBOXES = (1, 2, 3, 4)
BATCHES_EACH = 8
# What is left over when a day's campaign is put on the queue at once, in small.
BACKLOG = 600
PLAN = 50
SHARE_OF_PLAN = 0.90
MAXIMUM_CONCURRENCY = 5

type Row = dict[str, float]


def with_items(lab: Lab, function: Function) -> list[Row]:
    """Send to ten known and ten new recipients while the tables hold more and more items."""
    filler = {"key": "filler", "status": "consumed", "generation": 1, "request": "x" * 400}
    lab.latency(0)
    rows = []
    for count in ITEMS:
        lab.fill("ledger", filler, count)
        lab.fill("identities", filler, count)
        seconds, counted = [], {"calls": 0.0, "read_units": 0.0, "write_units": 0.0}
        for _ in range(ROUNDS):
            for known, new in ((10, 0), (0, 10)):
                records = batch(lab, known, new)
                lab.counts()
                seconds.append(function.invoke({"Records": records})["seconds"])
                counts = lab.counts()
                counted["calls"] += sum(counts["calls"].values())
                for units in ("read_units", "write_units"):
                    counted[units] += counts[units]
        each = {name: total / (ROUNDS * 20) for name, total in counted.items()}
        rows.append({"items": count, "seconds": statistics.median(seconds)} | each)
    return rows


def _side_by_side(functions: Sequence[Function], work: "_Queue") -> tuple[float, list[float]]:
    """Invoke each function with batches of the queue until it is empty.

    Return how long it took, and the seconds of each invocation.
    """
    invocations: list[float] = []

    def poll(function: Function) -> None:
        while (records := work.receive()) is not None:
            if records:
                measured = function.invoke({"Records": records})
                invocations.append(measured["seconds"])
                failures = measured["answer"]["batchItemFailures"]
                work.come_back(records, {failure["itemIdentifier"] for failure in failures})
            else:
                time.sleep(0.01)

    begun = time.monotonic()
    threads = [threading.Thread(target=poll, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begun, invocations


class _Queue:
    """The event source mapping: batches of ten; returned requests wait for their visibility."""

    def __init__(self, lab: Lab, records: list[dict[str, Any]]) -> None:
        self._lab = lab
        self._lock = threading.Lock()
        self._waiting = [(0.0, number, record) for number, record in enumerate(records)]
        self._under_way = 0
        self.came_back = 0

    def receive(self) -> list[dict[str, Any]] | None:
        """Return up to ten records, perhaps none at the moment; None when all are done."""
        with self._lock:
            now = time.monotonic()
            some: list[dict[str, Any]] = []
            while self._waiting and self._waiting[0][0] <= now and len(some) < 10:
                some.append(heapq.heappop(self._waiting)[2])
            self._under_way += len(some)
            return some if some or self._waiting or self._under_way else None

    def come_back(self, records: list[dict[str, Any]], names: set[str]) -> None:
        """Take back what is not done."""
        with self._lock:
            hidden = self._lab.counts()["hidden"] if names else {}
            self._under_way -= len(records)
            self.came_back += len(names)
            for record in records:
                if record["messageId"] in names:
                    number = int(record["receiptHandle"])
                    visible = time.monotonic() + hidden.get(record["receiptHandle"], 0)
                    heapq.heappush(self._waiting, (visible, number, record))


def with_sandboxes(lab: Lab, functions: Sequence[Function]) -> list[Row]:
    """Send with more and more sandboxes at once, as fast as they can; BLiP answers in 100 ms."""
    lab.latency(0.1)
    rows = []
    for count in SANDBOXES:
        records = batch(lab, known=10 * BATCHES_EACH * count, new=0)
        lab.accepted()
        seconds, _ = _side_by_side(functions[:count], _Queue(lab, records))
        sent = lab.accepted()
        assert sent == len(records), f"{sent} of {len(records)}"
        rows.append({"sandboxes": count, "seconds": seconds, "per_second": sent / seconds})
    return rows


def drain(lab: Lab, functions: Sequence[Function], latency: float) -> Row:
    """Empty a backlog with these sandboxes at the plan's rate."""
    lab.latency(latency)
    lab.plan(PLAN)
    records = batch(lab, known=BACKLOG, new=0)
    lab.accepted()
    queue = _Queue(lab, records)
    seconds, invocations = _side_by_side(functions, queue)
    sent = lab.accepted()
    lab.plan(FULL_SPEED)
    assert sent == BACKLOG, f"{sent} of {BACKLOG}"
    plan = BACKLOG / (PLAN * SHARE_OF_PLAN)
    return {
        "requests": BACKLOG,
        "seconds": seconds,
        "at_the_plan": plan,
        "came_back": queue.came_back,
        "invocations": len(invocations),
        "billed_seconds": sum(map(billed, invocations)),
    }


def measure(lab: Lab) -> dict[str, Any]:
    """Measure all three."""
    functions = [lab.function(OURS) for _ in range(MAXIMUM_CONCURRENCY)]
    for function in functions:
        function.invoke({"Records": batch(lab, known=10, new=0)})
    sandboxes = with_sandboxes(lab, functions)
    drained = drain(lab, [lab.function(OURS) for _ in functions], 0.1)
    return {
        "items": with_items(lab, functions[0]),
        "sandboxes": sandboxes,
        "drain": drained,
    }


def tables(measured: dict[str, Any]) -> Group:
    """Return the tables."""
    items = Table(title="With a growing ledger: ten known and ten new by turns, BLiP at 0 ms")
    for heading in ("items", "p50 ms a batch", "calls each", "RCU each", "WCU each"):
        items.add_column(heading, justify="right")
    for row in measured["items"]:
        items.add_row(
            f"{row['items']:,}",
            f"{row['seconds'] * 1000:.0f}",
            *(f"{row[name]:.2f}" for name in ("calls", "read_units", "write_units")),
        )
    sandboxes = Table(title="With more sandboxes, BLiP at 100 ms, with a plan that limits none")
    for heading in ("sandboxes", "notifications a second"):
        sandboxes.add_column(heading, justify="right")
    for row in measured["sandboxes"]:
        sandboxes.add_row(f"{row['sandboxes']}", f"{row['per_second']:.0f}")
    row = measured["drain"]
    summary = (
        f"A backlog of {row['requests']}, {MAXIMUM_CONCURRENCY} sandboxes, "
        f"{SHARE_OF_PLAN:.2f} of {PLAN}/s: {row['seconds']:.1f} s, "
        f"where the plan alone takes {row['at_the_plan']:.1f} s; "
        f"{row['came_back']} came back on the way."
    )
    return Group(items, sandboxes, summary)
