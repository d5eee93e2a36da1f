"""The dead-letter queue, read without taking anything off it."""

import contextlib
import json
from dataclasses import dataclass
from itertools import batched
from typing import Any

from mypy_boto3_sqs import SQSClient
from mypy_boto3_sqs.type_defs import MessageTypeDef

from notifier.domain.failures import Reason
from notifier.domain.status import Status, final_status

# What SQS itself moved to the dead letters says no reason.
RECEIVES_EXHAUSTED = "receives_exhausted"
HIDDEN_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter.

    Attributes:
        body: the request, byte by byte.
        sent_at: when it became a dead letter.
        failure: what the failed attempt left of it: `detail`, `attempts` and more.
    """

    body: str
    sent_at: float
    reason: str
    notification_id: str | None
    failure: dict[str, Any]

    @classmethod
    def read(cls, message: MessageTypeDef) -> "Letter":
        attributes = {
            name: value.get("StringValue", "")
            for name, value in message.get("MessageAttributes", {}).items()
        }
        failure = {}
        with contextlib.suppress(ValueError):
            failure = json.loads(attributes.get("failure", "{}"))
        return cls(
            body=message["Body"],
            sent_at=int(message["Attributes"]["SentTimestamp"]) / 1000,
            reason=attributes.get("reason", RECEIVES_EXHAUSTED),
            notification_id=attributes.get("notification_id"),
            failure=failure,
        )

    @property
    def status(self) -> Status:
        if self.reason == RECEIVES_EXHAUSTED:
            return Status.FAILED
        return final_status(Reason(self.reason))


class DeadLetters:
    """The dead-letter queue, read without taking anything off it."""

    def __init__(self, sqs: SQSClient, url: str) -> None:
        self._sqs = sqs
        self._url = url
        self._seen: dict[str, Letter] = {}
        self._held: dict[str, str] = {}

    def collect(self) -> list[Letter]:
        """Return those not seen before. They stay hidden until they are given back."""
        new = []
        while messages := self._sqs.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=HIDDEN_SECONDS,
            MessageSystemAttributeNames=["SentTimestamp"],
            MessageAttributeNames=["All"],
        ).get("Messages"):
            for message in messages:
                self._held[message["MessageId"]] = message["ReceiptHandle"]
                if message["MessageId"] not in self._seen:
                    letter = self._seen[message["MessageId"]] = Letter.read(message)
                    new.append(letter)
        return new

    def give_back(self) -> None:
        for handles in batched(self._held.values(), 10, strict=False):
            self._sqs.change_message_visibility_batch(
                QueueUrl=self._url,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
                    for number, handle in enumerate(handles)
                ],
            )
        self._held.clear()

    def visible(self) -> int:
        answer = self._sqs.get_queue_attributes(
            QueueUrl=self._url, AttributeNames=["ApproximateNumberOfMessages"]
        )
        return int(answer["Attributes"]["ApproximateNumberOfMessages"])
