"""Hears the local event bus: what the stack publishes, on a queue of its own, by a rule."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from tests.local.stack import Aws


class Heard:
    """The details of all status events since it began to listen.

    Attributes:
        details: in the order in which they were published.
    """

    def __init__(self, aws: "Aws", queue: str) -> None:
        self._aws = aws
        self._queue = queue
        self.details: list[dict[str, Any]] = []

    def collect(self) -> list[dict[str, Any]]:
        """Take what has come meanwhile; return all there is."""
        while messages := self._aws.sqs.receive_message(
            QueueUrl=self._queue, MaxNumberOfMessages=10
        ).get("Messages", []):
            for message in messages:
                self.details.append(json.loads(message["Body"])["detail"])
                self._aws.sqs.delete_message(
                    QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"]
                )
        return self.details

    def statuses(self, notification_id: str) -> list[str]:
        """Return what was published of a notification, in order, each event once.

        By what was collected last.
        """
        own = {
            detail["event_id"]: detail["status"]
            for detail in self.details
            if detail["id"] == notification_id
        }
        return list(own.values())


@contextmanager
def listening(aws: "Aws") -> Iterator[Heard]:
    """Listen to status events with a rule as producers are told to make it."""
    events, name = aws.client("events"), f"heard-{uuid4()}"
    queue = aws.sqs.create_queue(QueueName=name)["QueueUrl"]
    attributes = aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    pattern = {"source": ["blip-notifier"], "detail-type": ["Notification Status Changed"]}
    events.put_rule(Name=name, EventPattern=json.dumps(pattern))
    target = {"Id": "queue", "Arn": attributes["Attributes"]["QueueArn"]}
    events.put_targets(Rule=name, Targets=[target])
    yield Heard(aws, queue)
    events.remove_targets(Rule=name, Ids=["queue"])
    events.delete_rule(Name=name)
    aws.sqs.delete_queue(QueueUrl=queue)
