"""Builds the function RedriveFailures, which operators invoke."""

from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.metrics import MetricUnit

from notifier import telemetry
from notifier.aws.queues import DeadLettersQueue, RequestsQueue
from notifier.redrive import Fate, OrderError, Redrive, read_order
from notifier.runtime import AWS, SystemClock, boto3
from notifier.settings import RedriveFailuresSettings

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext


class RedriveFailures:
    """Takes an operator's order and answers with what became of it."""

    def __init__(self, redrive: Redrive) -> None:
        self._redrive = redrive

    def handle(self, event: object, context: "LambdaContext") -> dict[str, Any]:
        """Do what was asked for. An order that cannot be understood is no error of the function."""
        deadline = SystemClock.now() + context.get_remaining_time_in_millis() / 1000
        try:
            order = read_order(event)
        except OrderError as error:
            telemetry.metrics.add_metric(Fate.REDRIVEN, MetricUnit.Count, 0)
            return {"error": str(error)}
        report = self._redrive.run(order, deadline)
        redriven = report.fates.get(Fate.REDRIVEN, 0)
        telemetry.metrics.add_metric(Fate.REDRIVEN, MetricUnit.Count, redriven)
        return report.as_json()


def redrive_failures(settings: RedriveFailuresSettings) -> RedriveFailures:
    """Build what the function needs."""
    clock = SystemClock()
    sqs = boto3.client("sqs", config=AWS)
    return RedriveFailures(
        Redrive(
            dead_letters=DeadLettersQueue(sqs, settings.dead_letters_queue_url, clock.now),
            requests=RequestsQueue(sqs, settings.requests_queue_url),
            clock=clock,
        )
    )
