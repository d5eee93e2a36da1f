"""What was measured, and how it is compared."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")


@dataclass
class Figures:
    """What one competitor needed for one case; lists have an entry per round.

    Attributes:
        calls: to AWS per notification, by operation.
        read_units, write_units: of DynamoDB, per notification.
        peak_bytes: the most memory that its process has held so far.
    """

    case: str
    latency: float
    competitor: str
    size: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    calls: dict[str, float] = field(default_factory=dict)
    read_units: float = 0
    write_units: float = 0
    logged_bytes: float = 0
    peak_bytes: int = 0
    largest_item: int = 0

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.seconds, n=20, method="inclusive")[-1]

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_seconds) / self.size

    @property
    def calls_in_all(self) -> float:
        return sum(self.calls.values())


def billed(seconds: float) -> float:
    """Return an invocation's seconds rounded up to the millisecond, as Lambda bills them."""
    return math.ceil(1000 * seconds) / 1000


def quartiles(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and the quartiles around it as text."""
    low, middle, high = (f"{value:.{digits}f}" for value in statistics.quantiles(values, n=4))
    return f"{middle} ({low}-{high})"


def median_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the median of the ratios, round by round."""
    return statistics.median(mine / theirs for mine, theirs in zip(one, other, strict=True))


def ratio(one: Sequence[float], other: Sequence[float]) -> str:
    """Return the ratio, compared round by round: a disturbance of a round affects both."""
    return quartiles([mine / theirs for mine, theirs in zip(one, other, strict=True)])


def last_run(what: str) -> list[Figures]:
    """Return what `make bench` wrote about the batches or the receipts."""
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [Figures(**figures) for figures in document[what]]
