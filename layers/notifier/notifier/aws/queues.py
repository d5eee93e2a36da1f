"""The SQS queues: records as requests, requests put off, dead letters."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from notifier.failures import Reason, crash_facts
from notifier.records import QueuedRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageAttributeValueTypeDef

logger = logging.getLogger(__name__)

# SQS hides a message for twelve hours at most, counted from its receipt; we stay well below.
LONGEST_VISIBILITY_SECONDS = 6 * 3600
BATCH = 10
MOST_DIGITS = 9
# Leaves room in SQS's message for everything else.
MOST_FAILURE_BYTES = 4096


def queued_request(record: Mapping[str, Any]) -> QueuedRequest:
    """Read one record of the event that Lambda makes of an SQS message."""
    attributes = record.get("messageAttributes", {})
    return QueuedRequest(
        record_id=record["messageId"],
        receipt_handle=record["receiptHandle"],
        body=record["body"],
        published_at=int(record["attributes"]["SentTimestamp"]) / 1000,
        generation=_number(attributes, "generation"),
        redrives=_number(attributes, "redrives") or 0,
        receives=int(record["attributes"]["ApproximateReceiveCount"]),
    )


def _number(attributes: Mapping[str, Any], name: str) -> int | None:
    """Read a number that we ourselves put there; a producer's text under its name is ignored."""
    text = attributes.get(name, {}).get("stringValue") or ""
    usable = text.isdecimal() and text.isascii() and len(text) <= MOST_DIGITS
    return int(text) if usable else None


class RequestsQueue:
    """The queue that requests come from."""

    def __init__(self, sqs: "SQSClient", url: str) -> None:
        self._sqs = sqs
        self._url = url

    def hide(self, waits: "Iterable[tuple[QueuedRequest, float]]") -> None:
        """Let SQS deliver each of these again after so many seconds, not before.

        Where that fails they come back after the queue's own visibility timeout: later or sooner
        than asked for, but not lost. So it is no reason to fail the batch.
        """
        entries = [
            {
                "Id": str(number),
                "ReceiptHandle": queued.receipt_handle,
                "VisibilityTimeout": min(LONGEST_VISIBILITY_SECONDS, max(0, round(seconds))),
            }
            for number, (queued, seconds) in enumerate(waits)
        ]
        for start in range(0, len(entries), BATCH):
            try:
                answer = self._sqs.change_message_visibility_batch(
                    QueueUrl=self._url,
                    Entries=entries[start : start + BATCH],  # type: ignore[arg-type] # as above
                )
            except (BotoCoreError, ClientError) as error:
                logger.error("requests not hidden", extra=crash_facts(error))
            else:
                if refused := answer.get("Failed"):
                    codes = sorted({entry["Code"] for entry in refused})
                    logger.warning("requests not hidden", extra={"codes": codes})

    def put_back(self, body: str, *, bot: str, generation: int, delay_seconds: int) -> None:
        """Put a request back to be sent as the generation after this one.

        Args:
            body: exactly as it came.
            bot: the group that SQS's fair queues go by.
            generation: the one that failed.
            delay_seconds: how long SQS shall hide it; at most 900.
        """
        self._sqs.send_message(
            QueueUrl=self._url,
            MessageBody=body,
            DelaySeconds=delay_seconds,
            MessageGroupId=bot,
            MessageAttributes={"generation": _numeral(generation)},
        )


class ReceiptsQueue:
    """Where receipts wait to be recorded, however they were learnt."""

    def __init__(self, sqs: "SQSClient", url: str) -> None:
        self._sqs = sqs
        self._url = url

    def put(self, envelopes: "Sequence[dict[str, Any]]") -> None:
        """Put receipts on the queue, as LIME's JSON."""
        for envelope in envelopes:
            self._sqs.send_message(QueueUrl=self._url, MessageBody=json.dumps(envelope))


class DeadLettersQueue:
    """Where requests end that cannot be delivered, with the reason."""

    def __init__(self, sqs: "SQSClient", url: str, now: "Callable[[], float]") -> None:
        self._sqs = sqs
        self._url = url
        self._now = now

    def put(
        self,
        body: str,
        reason: Reason,
        failure: Mapping[str, Any],
        *,
        bot: str | None,
        notification_id: str | None,
        generation: int | None,
    ) -> None:
        """Keep a request exactly as it came, with what is known of its failure as attributes."""
        failed_at = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        attributes: dict[str, MessageAttributeValueTypeDef] = {
            "reason": _string(reason),
            "failed_at": _string(failed_at),
            "failure": _string(_short(failure)),
        }
        if bot is not None:
            attributes["bot"] = _string(bot)
        if notification_id is not None:
            attributes["notification_id"] = _string(notification_id)
        if generation is not None:
            attributes["generation"] = _numeral(generation)
        self._sqs.send_message(QueueUrl=self._url, MessageBody=body, MessageAttributes=attributes)


def _string(text: str) -> "MessageAttributeValueTypeDef":
    return {"DataType": "String", "StringValue": text}


def _numeral(number: int) -> "MessageAttributeValueTypeDef":
    return {"DataType": "Number", "StringValue": str(number)}


def _short(failure: Mapping[str, Any]) -> str:
    """Write the failure as ASCII JSON of at most MOST_FAILURE_BYTES, without empty members.

    Broken fields beyond that are counted, not told: who mends the first ones sees the rest.
    """
    told = {name: value for name, value in failure.items() if value is not None}
    fields = list(told.get("fields", []))
    left_out = 0
    while len(text := json.dumps(told)) > MOST_FAILURE_BYTES and fields:
        fields.pop()
        left_out += 1
        told |= {"fields": fields, "fields_left_out": left_out}
    return text
