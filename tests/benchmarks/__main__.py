"""Measures ours against the textbook handler and the floor, and prints what came of it.

    make bench
    make bench ARGS=memory    only what a MemorySize costs, in five minutes; writes nothing

Writes results.json and batches.svg beside this file. About a quarter of an hour.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.benchmarks import cold_start, growth, memory, plot, targets
from tests.benchmarks.batches import ALL_DONE, CASES, LATENCIES, WARM_UP, add, measure
from tests.benchmarks.figures import RESULTS, Figures, ratio
from tests.benchmarks.lab import (
    AFTERWARDS,
    COMPETITORS,
    FLOOR,
    OURS,
    WEBHOOK_SECRET,
    Function,
    Lab,
    batch,
    lab,
    receipts,
    record,
)

# How many changes of status come together: at a trickle one, under load more.
EVENTS = (("one event", 1), ("ten events", 10))
RECEIPT_STATUSES = ("accepted", "dispatched", "received", "consumed")


def measure_afterwards(lab: Lab, sender: Function) -> list[Figures]:
    """Publish what ten messages have changed, alone and together.

    Then their receipts come in one by one, and are recorded in batches.
    """
    receive, record_ten, publish = (lab.function(name) for name in AFTERWARDS)
    received = Figures("a receipt received", 0, OURS, 1)
    recorded = Figures("ten receipts recorded", 0, OURS, 10)
    published = [Figures(f"{name} published", 0, OURS, size) for name, size in EVENTS]
    for number in range(-WARM_UP, 5):
        sent = batch(lab, known=10, new=0)
        lab.stream()
        sender.invoke({"Records": sent})
        records = lab.stream()["Records"]
        assert len(records) == len(sent)
        for figures in published:
            lab.counts()
            measured = publish.invoke({"Records": records[: figures.size]})
            assert measured["answer"] == ALL_DONE, measured
            if number >= 0:
                add(figures, 5, measured, lab.counts())
        for status in RECEIPT_STATUSES:
            lab.counts()
            some = receipts(sent, status)
            for receipt in some:
                request = {
                    "headers": {"x-receipts-secret": WEBHOOK_SECRET},
                    "body": json.dumps(receipt),
                    "isBase64Encoded": False,
                }
                measured = receive.invoke(request)
                assert measured["answer"]["statusCode"] == 200, measured
                if number >= 0:
                    add(received, 5 * 4 * 10, measured, lab.counts())
            records = [record(place, receipt) for place, receipt in enumerate(some)]
            measured = record_ten.invoke({"Records": records})
            assert measured["answer"] == ALL_DONE, measured
            if number >= 0:
                add(recorded, 5 * 4, measured, lab.counts())
    return [received, recorded, *published]


def table(results: Sequence[Figures]) -> Table:
    """Return the table; ratios are medians over the rounds, with quartiles."""
    shown = Table(title="One batch. Ratios: median of the rounds (quartiles)")
    for heading in (
        "batch", "BLiP ms", "", "p50 ms", "p95 ms", "CPU ms each", "calls each", "RCU each",
        "WCU each", "peak MB", "ours: time", "ours: CPU",
    ):  # fmt: skip
        shown.add_column(
            heading, justify="left" if heading in {"batch", ""} else "right", no_wrap=True
        )
    ours: Figures | None = None
    for figures in results:
        first = figures.competitor == OURS
        ours = figures if first else ours
        assert ours is not None
        against = ("", "") if first else (
            ratio(ours.seconds, figures.seconds), ratio(ours.cpu_seconds, figures.cpu_seconds)
        )  # fmt: skip
        shown.add_row(
            figures.case if first else "",
            f"{figures.latency * 1000:.0f}" if first else "",
            figures.competitor,
            f"{figures.p50 * 1000:.0f}",
            f"{figures.p95 * 1000:.0f}",
            f"{figures.cpu * 1000:.1f}",
            f"{figures.calls_in_all:.2f}",
            f"{figures.read_units:.2f}",
            f"{figures.write_units:.2f}",
            f"{figures.peak_bytes / 1e6:.0f}",
            *against,
            end_section=figures.competitor == FLOOR,
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("part", nargs="?", choices=["memory"], help="only this")
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    arguments = parser.parse_args()
    console = Console(width=165)
    if arguments.part:
        with lab() as running:
            console.print(memory.tables(memory.measure(running)))
        return
    results: list[Figures] = []
    with lab() as running, tempfile.TemporaryDirectory() as folder:
        functions = [running.function(name) for name in COMPETITORS]
        plan = [(case, latency) for case in CASES for latency in LATENCIES]
        for case, latency in track(plan, "measuring", console=Console(file=sys.stderr)):
            if arguments.only in case.name:
                results += measure(
                    running,
                    functions,
                    replace(case, rounds=arguments.rounds or case.rounds),
                    latency,
                )
        console.print(table(results))
        if arguments.only or arguments.rounds:
            return
        afterwards = measure_afterwards(running, functions[0])
        sizes = memory.measure(running)
        cold = cold_start.measure(running, Path(folder))
        grown = growth.measure(running)
    console.print(
        memory.tables(sizes),
        cold_start.tables(cold),
        growth.tables(grown),
        targets.table(results, cold, grown),
    )
    document = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "batches": [asdict(figures) for figures in results],
        "afterwards": [asdict(figures) for figures in afterwards],
        "memory": sizes,
        "cold_start": cold,
        "growth": grown,
    }
    RESULTS.write_text(json.dumps(document) + "\n", encoding="utf-8")
    RESULTS.with_name("batches.svg").write_text(plot.batches(results), encoding="utf-8")


if __name__ == "__main__":
    main()
