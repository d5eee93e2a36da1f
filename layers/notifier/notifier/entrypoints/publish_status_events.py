"""Builds the function PublishStatusEvents: the ledger's stream to the event bus."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from notifier import telemetry
from notifier.aws.events import EventBridgeStatusEvents
from notifier.aws.outbox import ledger_write
from notifier.aws.queues import UnpublishedQueue
from notifier.entrypoints.environment import AWS, SystemClock, boto3
from notifier.settings import PublishStatusEventsSettings, stack
from notifier.use_cases.publish_status_events import ALL_PUBLISHED, DEFAULT_PUBLISHED, Publisher

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext


class PublishStatusEvents:
    """Takes the event of the ledger's stream and answers from where it has to come again."""

    def __init__(self, publisher: Publisher, meter: telemetry.Meter) -> None:
        self._publisher = publisher
        self._meter = meter

    def handle(self, event: Mapping[str, Any], context: "LambdaContext") -> dict[str, Any]:
        """Publish a batch. From the record that the answer names on it comes again."""
        deadline = SystemClock.now() + context.get_remaining_time_in_millis() / 1000
        writes = [ledger_write(record) for record in event["Records"]]
        again = self._publisher.publish(writes, deadline)
        self._meter.flush()
        return {"batchItemFailures": [] if again is None else [{"itemIdentifier": again}]}


def publish_status_events(settings: PublishStatusEventsSettings) -> PublishStatusEvents:
    """Build what the function needs."""
    meter = telemetry.Meter()
    publisher = Publisher(
        events=EventBridgeStatusEvents(
            boto3.client("events", config=AWS), settings.event_bus, stack()
        ),
        unpublished=UnpublishedQueue(
            boto3.client("sqs", config=AWS), settings.unpublished_queue_url
        ),
        meter=meter,
        clock=SystemClock(),
        published=ALL_PUBLISHED if settings.publish_all_receipts else DEFAULT_PUBLISHED,
    )
    return PublishStatusEvents(publisher, meter)
