"""Logs and metrics. Nothing personal goes in: ids, bots, reasons and counts only."""

from collections import Counter
from collections.abc import Iterable

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit, single_metric

SERVICE = "notifier"
NAMESPACE = "BlipNotifier"

# The modules log to children of `notifier`, the package's logger: its form and level hold for all.
logger = Logger(service=SERVICE)
metrics = Metrics(service=SERVICE, namespace=NAMESPACE)


def count(what: Iterable[str]) -> None:
    """Count what happened, one metric per name."""
    for name, number in Counter(what).items():
        metrics.add_metric(str(name), MetricUnit.Count, number)


def count_by(metric: str, dimension: str, what: Iterable[str]) -> None:
    """Count what happened in one metric, told apart by a dimension of few values."""
    for value, number in Counter(what).items():
        with single_metric(
            metric,
            MetricUnit.Count,
            number,
            namespace=NAMESPACE,
            default_dimensions={"service": SERVICE},
        ) as single:
            single.add_dimension(dimension, str(value))
