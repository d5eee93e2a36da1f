"""Logs and metrics. Nothing personal goes in: ids, bots, reasons and counts only.

The runbook, functions/README.md, says what each metric means; a test compares the two.
"""

from collections import Counter
from collections.abc import Iterable

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import MetricResolution, Metrics, MetricUnit, single_metric

from notifier.settings import release, stack

# Every metric has it as the dimension `service`: stages that share an account share no metric.
SERVICE = stack()
NAMESPACE = "BlipNotifier"

# The modules log to children of `notifier`, the package's logger: its form and level hold for all.
# Powertools names it by its service, which therefore is not the stack's name here.
logger = Logger(service="notifier", stack=SERVICE, release=release())
metrics = Metrics(service=SERVICE, namespace=NAMESPACE)


class Meter:
    """Collects what the threads of a batch measure: Powertools' metrics are for one thread."""

    def __init__(self) -> None:
        self._measured: list[tuple[str, MetricUnit, float]] = []

    def took(self, what: str, seconds: float) -> None:
        """Note how long something took."""
        self._measured.append((what, MetricUnit.Milliseconds, 1000 * _floored(seconds)))

    def age(self, what: str, seconds: float) -> None:
        """Note how old something is, in seconds, as SQS measures it."""
        self._measured.append((what, MetricUnit.Seconds, _floored(seconds)))

    def share(self, what: str, share: float) -> None:
        """Note a share, from 0 to 1."""
        self._measured.append((what, MetricUnit.Percent, 100 * share))

    def count(self, what: str, number: int = 1) -> None:
        """Note that something happened."""
        if number:
            self._measured.append((what, MetricUnit.Count, number))

    def flush(self) -> None:
        """Hand everything over; call it when the threads have ended."""
        measured, self._measured = self._measured, []
        for name, unit, value in measured:
            # Powertools searches a list of enums for a resolution that is left out.
            metrics.add_metric(name, unit, value, MetricResolution.Standard)


def _floored(seconds: float) -> float:
    """Return the duration, or 0 if it is negative.

    It may be measured with two clocks, SQS's and a sandbox's or those of two sandboxes, which
    differ by some milliseconds.
    """
    return max(0.0, seconds)


def count(what: Iterable[str]) -> None:
    """Count what happened, one metric per name."""
    for name, number in Counter(what).items():
        metrics.add_metric(str(name), MetricUnit.Count, number)


def count_by(metric: str, dimension: str, what: Iterable[str]) -> None:
    """Count an event in one metric, with a dimension of few values."""
    for value, number in Counter(what).items():
        with single_metric(
            metric,
            MetricUnit.Count,
            number,
            namespace=NAMESPACE,
            default_dimensions={"service": SERVICE},
        ) as single:
            single.add_dimension(dimension, str(value))
