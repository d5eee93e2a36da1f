"""The competitors handle the same batches in turn, round after round."""

from dataclasses import dataclass
from typing import Any

from tests.benchmarks.figures import Figures
from tests.benchmarks.lab import Function, Lab, batch


@dataclass(frozen=True)
class Case:
    """A batch of so many recipients, known and new, with so many that BLiP refuses."""

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


def measure(lab: Lab, functions: list[Function], case: Case, latency: float) -> list[Figures]:
    """Invoke each competitor with such a batch in turn, round after round, in changing order."""
    lab.latency(latency)
    figures = {
        function.name: Figures(case.name, latency, function.name, case.size)
        for function in functions
    }
    for number in range(-WARM_UP, case.rounds):
        first = number % len(functions)
        for function in functions[first:] + functions[:first]:
            records = batch(lab, case.known, case.new, case.refused)
            lab.counts()
            lab.accepted()
            measured = function.invoke({"Records": records})
            counts = lab.counts()
            # A competitor that does not do the work is not fast.
            expected = case.size - case.refused
            assert measured["answer"] == ALL_DONE, f"{function.name}: {measured}"
            assert lab.accepted() == expected, f"{function.name} did not send {expected}"
            if number >= 0:
                add(figures[function.name], case.rounds, measured, counts)
    return list(figures.values())


def add(figures: Figures, rounds: int, measured: dict[str, Any], counts: dict[str, Any]) -> None:
    """Add what a round measured and AWS counted."""
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
