"""Measures ours against the textbook handler and the floor, and prints what came of it.

    make bench

Writes results.json and batches.svg beside this file. About ten minutes.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.benchmarks import cold_start, growth, plot, targets
from tests.benchmarks.figures import RESULTS, Figures, ratio
from tests.benchmarks.lab import (
    COMPETITORS,
    FLOOR,
    OURS,
    RECEIPTS,
    WEBHOOK_SECRET,
    Function,
    Lab,
    batch,
    lab,
    receipts,
    record,
)


@dataclass(frozen=True)
class Case:
    """A batch of so many recipients, known and new, of whom BLiP refuses so many."""

    name: str
    known: int
    new: int
    refused: int = 0
    rounds: int = 15

    @property
    def size(self) -> int:
        return self.known + self.new


CASES = (
    Case("ten known", 10, 0),
    Case("ten new", 0, 10),
    Case("one known", 1, 0),
    Case("ten, 10 % fail", 5, 5, refused=1),
    Case("a hundred known", 100, 0, rounds=5),
)
LATENCIES = (0.0, 0.1)
WARM_UP = 2
ALL_DONE: dict[str, Any] = {"batchItemFailures": []}
RECEIPT_STATUSES = ("accepted", "dispatched", "received", "consumed")


def measure(lab: Lab, functions: list[Function], case: Case, latency: float) -> list[Figures]:
    """Let everybody handle such a batch in turn, round after round, in changing order."""
    lab.latency(latency)
    figures = {
        function.name: Figures(case.name, latency, function.name, case.size)
        for function in functions
    }
    for number in range(-WARM_UP, case.rounds):
        for function in functions[number % 3 :] + functions[: number % 3]:
            records = batch(lab, case.known, case.new, case.refused)
            lab.counts()
            lab.accepted()
            measured = function.invoke({"Records": records})
            counts = lab.counts()
            # Whoever does not do the work is not fast.
            expected = case.size - case.refused
            assert measured["answer"] == ALL_DONE, f"{function.name}: {measured}"
            assert lab.accepted() == expected, f"{function.name} did not send {expected}"
            if number >= 0:
                _add(figures[function.name], case.rounds, measured, counts)
    return list(figures.values())


def measure_receipts(lab: Lab, sender: Function) -> list[Figures]:
    """Let the receipts of ten messages come in one by one, and be recorded in batches."""
    receive, record_ten = (lab.function(name) for name in RECEIPTS)
    received = Figures("a receipt received", 0, OURS, 1)
    recorded = Figures("ten receipts recorded", 0, OURS, 10)
    for number in range(-WARM_UP, 5):
        sent = batch(lab, known=10, new=0)
        sender.invoke({"Records": sent})
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
                    _add(received, 5 * 4 * 10, measured, lab.counts())
            records = [record(place, receipt) for place, receipt in enumerate(some)]
            measured = record_ten.invoke({"Records": records})
            assert measured["answer"] == ALL_DONE, measured
            if number >= 0:
                _add(recorded, 5 * 4, measured, lab.counts())
    return [received, recorded]


def _add(figures: Figures, rounds: int, measured: dict[str, Any], counts: dict[str, Any]) -> None:
    share = 1 / (rounds * figures.size)
    figures.seconds.append(measured["seconds"])
    figures.cpu_seconds.append(measured["cpu_seconds"])
    figures.peak_bytes = measured["peak_bytes"]
    figures.logged_bytes += measured["logged_bytes"] * share
    figures.read_units += counts["read_units"] * share
    figures.write_units += counts["write_units"] * share
    figures.largest_item = max(figures.largest_item, counts["largest_item"])
    for operation, count in counts["calls"].items():
        figures.calls[operation] = figures.calls.get(operation, 0) + count * share


def table(results: Sequence[Figures]) -> Table:
    """Lay it out; ratios are medians over the rounds, with quartiles."""
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
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    arguments = parser.parse_args()
    console = Console(width=165)
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
        of_receipts = measure_receipts(running, functions[0])
        cold = cold_start.measure(running, Path(folder))
        grown = growth.measure(running)
    console.print(
        cold_start.tables(cold), growth.tables(grown), targets.table(results, cold, grown)
    )
    document = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "batches": [asdict(figures) for figures in results],
        "receipts": [asdict(figures) for figures in of_receipts],
        "cold_start": cold,
        "growth": grown,
    }
    RESULTS.write_text(json.dumps(document) + "\n", encoding="utf-8")
    RESULTS.with_name("batches.svg").write_text(plot.batches(results), encoding="utf-8")


if __name__ == "__main__":
    main()
