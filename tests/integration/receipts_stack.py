"""What follows a send, over moto: the webhook, recording, polling, publishing, and a listener.

And a clock that is put forward, for whatever takes its time.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import boto3
import pytest

from functions.cli import dead_letters, ledger, webhook
from notifier.domain.status import STREAMED
from notifier.entrypoints import get_notification as answering
from notifier.entrypoints import poll_receipts as polling
from notifier.entrypoints import publish_status_events as publishing
from notifier.entrypoints import receive_receipt as receiving
from notifier.entrypoints import record_receipt as recording
from notifier.entrypoints import send_notification as sending
from notifier.entrypoints import wake_notifications as waking
from notifier.entrypoints.environment import BatchCrashed
from notifier.entrypoints.poll_receipts import PollReceipts, poll_receipts
from notifier.entrypoints.publish_status_events import PublishStatusEvents, publish_status_events
from notifier.entrypoints.receive_receipt import ReceiveReceipt, receive_receipt
from notifier.entrypoints.record_receipt import RecordReceipt, record_receipt
from notifier.entrypoints.wake_notifications import WakeNotifications, wake_notifications
from notifier.settings import (
    PollReceiptsSettings,
    PublishStatusEventsSettings,
    ReceiveReceiptSettings,
    RecordReceiptSettings,
    WakeNotificationsSettings,
)
from tests.support.clock import MachineClock
from tests.support.lambda_runtime import a_context
from tests.template.transformed import load

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient

    from tests.integration.conftest import Aws

type Json = dict[str, Any]

# As many records of the stream as the template hands over at once.
BATCH_RECORDS = 100

SECRET = "s3cret-of-the-webhook"  # noqa: S105 - of no webhook anywhere


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MachineClock:
    simulated = MachineClock()
    commands = (dead_letters, ledger, webhook)
    functions = (sending, receiving, recording, polling, waking, publishing, answering)
    for module in (*functions, *commands):
        monkeypatch.setattr(module, "SystemClock", simulated)
    return simulated


@dataclass
class ReceiptsStack:
    """The functions that follow receipts, with their AWS.

    Attributes:
        listener_url: a queue that an EventBridge rule sends every status event to.
        unpublished_url: the queue of keys whose status events cannot be published.
        all_receipts: whether `accepted` and `dispatched` are published too.
        position: the record of the ledger's stream that the publisher has to have next.
    """

    aws: "Aws"
    events: "EventBridgeClient"
    queue_url: str
    listener_url: str
    unpublished_url: str
    webhook_secret: str
    all_receipts: bool = False
    position: int = 0

    @cached_property
    def webhook(self) -> ReceiveReceipt:
        return receive_receipt(ReceiveReceiptSettings(self.queue_url, self.webhook_secret))

    @cached_property
    def recorder(self) -> RecordReceipt:
        return record_receipt(
            RecordReceiptSettings("ledger", "identities", self.aws.dead_letters_url)
        )

    @cached_property
    def poller(self) -> PollReceipts:
        return poll_receipts(
            PollReceiptsSettings("ledger", "identities", self.aws.secret, self.queue_url, 120)
        )

    @cached_property
    def waker(self) -> WakeNotifications:
        return wake_notifications(WakeNotificationsSettings("ledger", self.aws.requests_url))

    @cached_property
    def publisher(self) -> PublishStatusEvents:
        return publish_status_events(
            PublishStatusEventsSettings("default", self.unpublished_url, self.all_receipts)
        )

    def post(
        self, body: object, *, secret: str | None = SECRET, base64: bool = False, **changes: Any
    ) -> Json:
        """Return the webhook's answer to an HTTP API call. A text is the body, unchanged."""
        headers = {"content-type": "application/json", "host": "example.com"}
        if secret is not None:
            headers["x-receipts-secret"] = secret
        event = {
            "version": "2.0",
            "routeKey": "POST /receipts",
            "rawPath": "/receipts",
            "headers": headers,
            "body": body if isinstance(body, str) else json.dumps(body),
            "isBase64Encoded": base64,
        }
        return self.webhook.handle(event | changes)

    def record(self, *receipts: str | Json) -> list[str]:
        """Hand these to the function as one batch. Return the bodies that have to return."""
        records = [
            {
                "messageId": str(uuid4()),
                "body": receipt if isinstance(receipt, str) else json.dumps(receipt),
            }
            for receipt in receipts
        ]
        try:
            answer = self.recorder.handle({"Records": records})
        except BatchCrashed:
            return [record["body"] for record in records]
        failed = {entry["itemIdentifier"] for entry in answer["batchItemFailures"]}
        assert failed <= {record["messageId"] for record in records}
        return [record["body"] for record in records if record["messageId"] in failed]

    def poll(self, seconds: float = 60) -> int:
        """Run the schedule once; return the number of messages asked about."""
        return self.poller.handle(a_context(seconds))["asked"]

    def wake(self, seconds: float = 60) -> int:
        """Run the other schedule once; return the number of notifications woken."""
        return self.waker.handle(a_context(seconds))["woken"]

    def waiting(self) -> list[Json]:
        """Receive and return all receipts of their queue."""
        return [json.loads(body) for body in self._take(self.queue_url)]

    def stream(self) -> list[Json]:
        """Return all records of the ledger's stream, from the first one on."""
        streams = boto3.client("dynamodbstreams")
        (stream,) = streams.list_streams(TableName="ledger")["Streams"]
        description = streams.describe_stream(StreamArn=stream["StreamArn"])["StreamDescription"]
        (shard,) = description["Shards"]
        iterator = streams.get_shard_iterator(
            StreamArn=stream["StreamArn"],
            ShardId=shard["ShardId"],
            ShardIteratorType="TRIM_HORIZON",
        )["ShardIterator"]
        records: list[Json] = []
        while page := streams.get_records(ShardIterator=iterator):
            if not page["Records"]:
                break
            records += cast("list[Json]", page["Records"])
            iterator = page["NextShardIterator"]
        return records

    def publish(self, *, seconds: float = 60) -> int:
        """Hand what is new in the ledger's stream to the publisher, as Lambda's mapping does.

        Returns:
            How many records have to come again.
        """
        records = self.stream()
        new = [record for record in records[self.position :] if passes_filter(record)]
        for start in range(0, len(new), BATCH_RECORDS):
            again = self.publish_records(new[start : start + BATCH_RECORDS], seconds=seconds)
            if again:
                self.position = records.index(again[0])
                return len(new) - new.index(again[0])
        self.position = len(records)
        return 0

    def publish_records(self, records: list[Json], *, seconds: float = 60) -> list[Json]:
        """Hand these to the publisher as one batch; return those that have to come again."""
        answer = self.publisher.handle({"Records": records}, a_context(seconds))
        numbers = [record["dynamodb"]["SequenceNumber"] for record in records]
        again = [numbers.index(each["itemIdentifier"]) for each in answer["batchItemFailures"]]
        return records[min(again) :] if again else []

    def published(self) -> list[Json]:
        """Run the publisher until it has caught up. Return the events that were received."""
        assert self.publish() == 0
        return self.heard()

    def heard(self) -> list[Json]:
        """Return EventBridge's events that the listener has received since the last call."""
        return [json.loads(body) for body in self._take(self.listener_url)]

    def unpublished(self) -> list[Json]:
        """Receive and return the keys of unpublished events."""
        return [json.loads(body) for body in self._take(self.unpublished_url)]

    def _take(self, url: str) -> list[str]:
        bodies = []
        while messages := self.aws.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            for message in messages:
                bodies.append(message["Body"])
                self.aws.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return bodies


@pytest.fixture
def receipts(aws: "Aws") -> Iterator[ReceiptsStack]:
    properties = load().properties("LedgerTable")
    for index in properties["GlobalSecondaryIndexes"]:
        aws.dynamodb.update_table(
            TableName="ledger",
            AttributeDefinitions=properties["AttributeDefinitions"],
            GlobalSecondaryIndexUpdates=[{"Create": index}],
        )
    queue_url = aws.sqs.create_queue(QueueName="receipts")["QueueUrl"]
    listener_url = aws.sqs.create_queue(QueueName="listener")["QueueUrl"]
    unpublished_url = aws.sqs.create_queue(QueueName="unpublished")["QueueUrl"]
    events = boto3.client("events")
    events.put_rule(
        Name="upstream",
        EventPattern=json.dumps(
            {"source": ["blip-notifier"], "detail-type": ["Notification Status Changed"]}
        ),
    )
    attributes = aws.sqs.get_queue_attributes(QueueUrl=listener_url, AttributeNames=["QueueArn"])
    events.put_targets(
        Rule="upstream", Targets=[{"Id": "queue", "Arn": attributes["Attributes"]["QueueArn"]}]
    )
    secret = aws.secrets_manager.create_secret(Name="webhook", SecretString=SECRET)["ARN"]
    stack = ReceiptsStack(aws, events, queue_url, listener_url, unpublished_url, secret)
    yield stack
    built = vars(stack)
    if "recorder" in built:
        stack.recorder.close()
    if "poller" in built:
        stack.poller.close()
    if "waker" in built:
        stack.waker.close()


def passes_filter(record: Json) -> bool:
    """Return whether the template's filter lets a record of the stream through."""
    status = record["dynamodb"].get("NewImage", {}).get("status", {}).get("S")
    return status in STREAMED


def a_receipt(message_id: str, event: str, code: int | None = None, **members: Any) -> Json:
    """Return a receipt as BLiP posts it."""
    receipt: Json = {
        "id": message_id,
        "from": "553199998888@wa.gw.msging.net",
        "to": "bot@msging.net/instance",
        "event": event,
        "metadata": {"#message.to": "553199998888@wa.gw.msging.net", "#wa.timestamp": "1700000000"},
    }
    if code is not None:
        receipt["reason"] = {"code": code, "description": "to +5531999998888"}
    return receipt | members
