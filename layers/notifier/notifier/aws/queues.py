"""The SQS queues: records as requests, requests that come back later, dead letters."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import batched
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from notifier.domain.dead_letters import DeadLetter, FailureDetails
from notifier.domain.failures import Reason, crash_facts
from notifier.domain.ledger_entries import LedgerEntry, LedgerWrite
from notifier.domain.notification import QueuedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import (
        MessageAttributeValueTypeDef,
        MessageTypeDef,
        SendMessageBatchRequestEntryTypeDef,
    )

logger = logging.getLogger(__name__)

# A message can be in flight for twelve hours at most, counted from its receipt.
MAX_VISIBILITY_SECONDS = 6 * 3600
BATCH = 10
# SQS takes 1 MiB at once; what it counts beside the bodies stays well below the rest.
MAX_BATCH_BYTES = 1024 * 1024 - 16 * 1024
# Asked for so long, SQS looks at all of its servers: only then does "nothing" mean nothing.
LONG_POLL_SECONDS = 1
MAX_DIGITS, TIME_DIGITS = 9, 10
IN_FLIGHT_SECONDS = 10.0
# Leaves room in SQS's message for everything else.
MAX_FAILURE_BYTES = 4096


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
        waited_since=_number(attributes, "waited_since", TIME_DIGITS),
        receive_count=int(record["attributes"]["ApproximateReceiveCount"]),
    )


def _number(attributes: Mapping[str, Any], name: str, digits: int = MAX_DIGITS) -> int | None:
    """Read a number that we ourselves put there; a producer's text under its name is ignored."""
    text = attributes.get(name, {}).get("stringValue") or ""
    usable = text.isdecimal() and text.isascii() and len(text) <= digits
    return int(text) if usable else None


class RequestsQueue:
    """The queue that requests come from."""

    def __init__(self, sqs: "SQSClient", url: str) -> None:
        self._sqs = sqs
        self._url = url

    def change_visibility(self, waits: "Iterable[tuple[QueuedRequest, float]]") -> None:
        """Change when SQS delivers each of these again: after so many seconds.

        Where that fails they come back after the queue's own visibility timeout: later or sooner
        than asked for, but not lost. So it is no reason to fail the batch.
        """
        entries = [
            {
                "Id": str(number),
                "ReceiptHandle": queued.receipt_handle,
                "VisibilityTimeout": min(MAX_VISIBILITY_SECONDS, max(0, round(seconds))),
            }
            for number, (queued, seconds) in enumerate(waits)
        ]
        for start in range(0, len(entries), BATCH):
            try:
                answer = self._sqs.change_message_visibility_batch(
                    QueueUrl=self._url,
                    Entries=entries[start : start + BATCH],  # type: ignore[arg-type] # plain dicts
                )
            except (BotoCoreError, ClientError) as error:
                logger.error("visibility of requests not changed", extra=crash_facts(error))
            else:
                _warn_of_refused("visibility of requests not changed", answer)

    def redrive(self, letters: "Sequence[DeadLetter]") -> list[DeadLetter]:
        """Put dead letters back, each marked as a redrive; return those that SQS took."""
        return self._put_all(letters, _redriven, "dead letters not put back")

    def wake(self, entries: "Sequence[LedgerEntry]") -> list[LedgerEntry]:
        """Put the next generations of notifications on the queue; return those that SQS took."""
        return self._put_all(entries, _woken, "next generations not put")

    def _put_all[T: DeadLetter | LedgerEntry](
        self,
        requests: "Sequence[T]",
        entry: "Callable[[int, T], SendMessageBatchRequestEntryTypeDef]",
        problem: str,
    ) -> list[T]:
        taken: list[T] = []
        for batch in in_batches(requests, lambda request: request.body):
            entries = [entry(number, request) for number, request in enumerate(batch)]
            try:
                answer = self._sqs.send_message_batch(QueueUrl=self._url, Entries=entries)
            except (BotoCoreError, ClientError) as error:
                logger.error(problem, extra=crash_facts(error))
            else:
                _warn_of_refused(problem, answer)
                taken += [batch[int(each["Id"])] for each in answer.get("Successful", [])]
        return taken


class UnpublishedQueue:
    """Keeps the keys of ledger items of which a status event could not be published."""

    def __init__(self, sqs: "SQSClient", url: str) -> None:
        self._sqs = sqs
        self._url = url

    def put(self, write: LedgerWrite, problem: str) -> bool:
        """Keep one; return whether SQS took it."""
        body = {"key": write.key, "sequence_number": write.sequence_number, "problem": problem}
        try:
            self._sqs.send_message(QueueUrl=self._url, MessageBody=json.dumps(body))
        except (BotoCoreError, ClientError) as error:
            logger.error("unpublished key not kept", extra=crash_facts(error))
            return False
        return True


class RequestsInFlight:
    """The number of requests in flight; SQS allows 120,000."""

    def __init__(self, sqs: "SQSClient", url: str, now: "Callable[[], float]") -> None:
        self._sqs = sqs
        self._url = url
        self._now = now
        self._known = 0
        self._asked_at = float("-inf")

    def __call__(self) -> int:
        """Return about how many; SQS is asked every IN_FLIGHT_SECONDS at most.

        Where it does not answer, the last figure counts.
        """
        if self._now() - self._asked_at >= IN_FLIGHT_SECONDS:
            try:
                answer = self._sqs.get_queue_attributes(
                    QueueUrl=self._url,
                    AttributeNames=["ApproximateNumberOfMessagesNotVisible"],
                )
            except (BotoCoreError, ClientError) as error:
                logger.error("in flight not known", extra=crash_facts(error))
            else:
                attributes = answer["Attributes"]
                self._known = int(attributes["ApproximateNumberOfMessagesNotVisible"])
            self._asked_at = self._now()
        return self._known


class ReceiptsQueue:
    """Where receipts wait to be recorded, however they were learnt."""

    def __init__(self, sqs: "SQSClient", url: str) -> None:
        self._sqs = sqs
        self._url = url

    def put(self, envelope: dict[str, Any]) -> None:
        """Put a receipt on the queue, as LIME's JSON."""
        self._sqs.send_message(QueueUrl=self._url, MessageBody=json.dumps(envelope))

    def put_all(self, envelopes: "Sequence[dict[str, Any]]") -> set[int]:
        """Put receipts on the queue; return the positions of those that SQS did not take."""
        refused = set()
        bodies = [(number, json.dumps(envelope)) for number, envelope in enumerate(envelopes)]
        for batch in in_batches(bodies, lambda each: each[1]):
            answer = self._sqs.send_message_batch(
                QueueUrl=self._url,
                Entries=[{"Id": str(number), "MessageBody": body} for number, body in batch],
            )
            _warn_of_refused("receipts not put", answer)
            refused |= {int(entry["Id"]) for entry in answer.get("Failed", [])}
        return refused


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
        failure: FailureDetails,
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

    def depth(self) -> tuple[int, int]:
        """Return the approximate numbers of dead letters that are visible and in flight."""
        answer = self._sqs.get_queue_attributes(
            QueueUrl=self._url,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
            ],
        )["Attributes"]
        return (
            int(answer["ApproximateNumberOfMessages"]),
            int(answer["ApproximateNumberOfMessagesNotVisible"]),
        )

    def receive(self, visibility_seconds: int) -> list[DeadLetter]:
        """Return up to ten dead letters, in flight for that long; none if none are visible."""
        answer = self._sqs.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=BATCH,
            WaitTimeSeconds=LONG_POLL_SECONDS,
            VisibilityTimeout=visibility_seconds,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["SentTimestamp"],
        )
        return [_dead_letter(message) for message in answer.get("Messages", [])]

    def change_visibility(self, handles: "Iterable[str]", seconds: int) -> None:
        """Make dead letters visible again after so many seconds.

        If that fails, they become visible when the time is over for which they were received.
        """
        for batch in batched(handles, BATCH, strict=False):
            try:
                answer = self._sqs.change_message_visibility_batch(
                    QueueUrl=self._url,
                    Entries=[
                        {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": seconds}
                        for number, handle in enumerate(batch)
                    ],
                )
            except (BotoCoreError, ClientError) as error:
                logger.error("visibility of dead letters not changed", extra=crash_facts(error))
            else:
                _warn_of_refused("visibility of dead letters not changed", answer)

    def delete(self, letters: "Sequence[DeadLetter]") -> list[DeadLetter]:
        """Delete dead letters from their queue; return those that are gone."""
        gone = []
        for batch in batched(letters, BATCH, strict=False):
            try:
                answer = self._sqs.delete_message_batch(
                    QueueUrl=self._url,
                    Entries=[
                        {"Id": str(number), "ReceiptHandle": letter.receipt_handle}
                        for number, letter in enumerate(batch)
                    ],
                )
            except (BotoCoreError, ClientError) as error:
                logger.error("dead letters not deleted", extra=crash_facts(error))
            else:
                _warn_of_refused("dead letters not deleted", answer)
                gone += [batch[int(entry["Id"])] for entry in answer.get("Successful", [])]
        return gone


def _warn_of_refused(what: str, answer: "Mapping[str, Any]") -> None:
    if refused := answer.get("Failed"):
        logger.warning(what, extra={"codes": sorted({entry["Code"] for entry in refused})})


def in_batches[T](messages: "Iterable[T]", body: "Callable[[T], str]") -> "Iterator[list[T]]":
    """Split into as many as SQS takes at once, by number and by size."""
    batch: list[T] = []
    size = 0
    for message in messages:
        own = len(body(message).encode())
        if batch and (len(batch) == BATCH or size + own > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += own
    if batch:
        yield batch


def _redriven(number: int, letter: DeadLetter) -> "SendMessageBatchRequestEntryTypeDef":
    attributes = {"redrives": _numeral(letter.redrives + 1)}
    if letter.generation is not None:
        attributes["generation"] = _numeral(letter.generation)
    return {
        "Id": str(number),
        "MessageBody": letter.body,
        "MessageGroupId": letter.bot or "default",
        "MessageAttributes": attributes,
    }


def _woken(number: int, entry: LedgerEntry) -> "SendMessageBatchRequestEntryTypeDef":
    since = int(entry.waits_since or 0)
    numbers = {"generation": entry.generation, "redrives": entry.redrives, "waited_since": since}
    return {
        "Id": str(number),
        "MessageBody": entry.body,
        "MessageGroupId": entry.bot,
        "MessageAttributes": {name: _numeral(value) for name, value in numbers.items()},
    }


def _dead_letter(message: "MessageTypeDef") -> DeadLetter:
    """Read a dead letter. Values of another type under our attributes' names are ignored."""
    attributes = {
        name: {"stringValue": value.get("StringValue")}
        for name, value in message.get("MessageAttributes", {}).items()
    }
    text = {name: value["stringValue"] or None for name, value in attributes.items()}
    published_at = int(message["Attributes"]["SentTimestamp"]) / 1000
    failure = _failure(text.get("failure"))
    # What SQS has moved here after a redrive still has the request's own count.
    redrives = failure.get("redrives", _number(attributes, "redrives"))
    return DeadLetter(
        letter_id=message["MessageId"],
        receipt_handle=message["ReceiptHandle"],
        body=message["Body"],
        reason=text.get("reason"),
        failed_at=_time(text.get("failed_at")) or published_at,
        bot=text.get("bot"),
        notification_id=text.get("notification_id"),
        generation=_number(attributes, "generation"),
        redrives=redrives if type(redrives) is int else 0,
        failure=failure,
    )


def _time(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except (ValueError, OverflowError):
        return None


def _failure(text: str | None) -> dict[str, Any]:
    try:
        failure = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return failure if isinstance(failure, dict) else {}


def _string(text: str) -> "MessageAttributeValueTypeDef":
    return {"DataType": "String", "StringValue": text}


def _numeral(number: int) -> "MessageAttributeValueTypeDef":
    return {"DataType": "Number", "StringValue": str(number)}


def _short(failure: FailureDetails) -> str:
    """Write the failure as ASCII JSON of at most MAX_FAILURE_BYTES, without empty members.

    Further broken fields are only counted; fixing the first ones surfaces the rest.
    """
    written = {name: value for name, value in asdict(failure).items() if value is not None}
    fields = list(written.get("fields", ()))
    left_out = 0
    while len(text := json.dumps(written)) > MAX_FAILURE_BYTES and fields:
        fields.pop()
        left_out += 1
        written |= {"fields": fields, "fields_left_out": left_out}
    return text
