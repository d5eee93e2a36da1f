"""Logs and metrics. Nothing personal goes in: ids, bots, reasons and counts only.

    published_to_claimed   how long a request waited on the queue before its first attempt
    claimed_to_sent        from the claim until BLiP had taken the message
    sent_in_time, sent_late   the service level: within ten seconds of being allowed to go out
    sent_to_received       from then until it was on the recipient's phone
    identity_hit, identity_miss   whether it was known who the recipient is on WhatsApp
    look_up, look_up_without_send   how often BLiP was asked, and how often no send followed:
                           many of those get a number banned

    share_of_plan          the share of a bot's plan for messages that is in force, in percent
    cooldown_began          how often BLiP throttled a bot that it did not throttle before

    template_unknown       sent although it is not known whether it fits its template
    template_asked         how often BLiP was asked for one template before a refusal
    sent_marketing, sent_utility, sent_authentication, sent_uncategorized
                           what was sent, by the category of its template
    template_was_paused, template_category_changed   what WhatsApp has done to a template
    templates_synced       bots whose templates were listed
    templates_late         how long ago those of a bot were that sends

    oldest_request         how old a request is that has to come back
    receipts_late          for how long the longest due question about receipts had been due
    changed_to_published   from a change of status until EventBridge had taken its event
    status_event_unpublished   events that can never be published; their keys are on a queue

and every outcome of `delivery`, every effect of `receipts`, `webhook_…` and
`receipts_polled`.
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
