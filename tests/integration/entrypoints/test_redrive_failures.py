"""The redrive whole, over moto, and what becomes of what it puts back."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import batched
from threading import Lock
from typing import Any

import boto3
import pytest
from moto.sqs import models as moto_queues

from functions.cli import dead_letters
from notifier.aws.table import Table
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import Claim
from notifier.domain.notification import QueuedRequest, ledger_key
from notifier.domain.status import Status
from notifier.use_cases.redrive_failures import redrive
from notifier.use_cases.redrive_failures.orders import ListOrder, RedriveOrder
from tests.integration.cli.deployed import Deployed
from tests.integration.conftest import Aws, Stack
from tests.integration.receipts_stack import Json, ReceiptsStack, a_receipt
from tests.support.adapters import WholeLedger
from tests.support.builders import a_notification, a_request
from tests.support.clock import MachineClock


def order(stack: Stack, *, redrive: bool = True, **chosen: Any) -> Json:
    """Run an operator's order. Return the answer."""
    kind = RedriveOrder if redrive else ListOrder
    return dead_letters.redrive(Deployed(stack.aws), kind(**chosen), lambda *_: None).as_json()


def outcomes(answer: Json) -> dict[tuple[str, str], int]:
    return {(group["outcome"], group["reason"]): group["count"] for group in answer["groups"]}


def depth(aws: Aws, url: str) -> int:
    answer = aws.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return sum(
        int(answer[name])
        for name in ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    )


# --- One dead letter ------------------------------------------------------------------------------


def test_failed_request_is_sent_again_after_its_cause_is_fixed(
    stack: Stack, receipts: ReceiptsStack
) -> None:
    request = a_request(id="order-1", valid_until="2101-01-01T00:00:00Z")
    key = ledger_key("default", "order-1")
    stack.deliver(request)
    receipts.record(a_receipt(key, "failed", 132_001))

    dry = order(stack, each=True)
    assert outcomes(dry) == {("would_redrive", "undelivered"): 1}
    assert dry["dead_letters"][0]["code"] == 132_001
    assert stack.receive() == []

    assert outcomes(order(stack, dry_run=False)) == {("redriven", "undelivered"): 1}
    (record,) = records = stack.receive()
    assert record["body"] == json.dumps(request)
    assert record["attributes"]["MessageGroupId"] == "default"
    assert stack.handle(records) == []
    assert [message["id"] for message in stack.blip.inbox()] == [key, f"{key}:2"]
    assert depth(stack.aws, stack.aws.dead_letters_url) == 0


def test_dead_letter_that_fails_again_counts_its_redrives(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    """Also after a retry, whichever function writes the dead letter."""
    stack.deliver(a_request(id="order-1"))
    key = ledger_key("default", "order-1")
    message_id = key
    for redrives in range(3):
        receipts.record(a_receipt(message_id, "failed", 132_001))
        (letter,) = order(stack, redrive=False, each=True)["dead_letters"]
        assert (letter["redrives"], letter["generation"]) == (redrives, redrives + 1)
        order(stack, dry_run=False)
        stack.handle(stack.receive())
        message_id = f"{key}:{redrives + 2}"

    # The next generation after a rate limit counts on, too.
    receipts.record(a_receipt(message_id, "failed", 131_056))
    clock.advance(901)
    assert receipts.wake() == 1
    (woken,) = stack.receive()
    assert woken["messageAttributes"]["redrives"]["stringValue"] == "3"

    stack.deliver(a_request(id="order-2", bot="nobody"))
    order(stack, dry_run=False)
    stack.handle(stack.receive())
    (letter,) = order(stack, redrive=False, each=True)["dead_letters"]
    assert (letter["id"], letter["reason"], letter["redrives"]) == ("order-2", "unknown_bot", 1)


def test_redrive_of_the_sqs_console_is_understood(stack: Stack, receipts: ReceiptsStack) -> None:
    """It copies a dead letter with all of its attributes, also one that the function enqueues."""
    key = ledger_key("default", "order-1")
    stack.deliver(a_request(id="order-1"))
    receipts.record(a_receipt(key, "failed", 132_001))
    (letter,) = stack.aws.sqs.receive_message(
        QueueUrl=stack.aws.dead_letters_url, MessageAttributeNames=["All"], VisibilityTimeout=0
    )["Messages"]
    order(stack, dry_run=False)
    attributes: Any = letter["MessageAttributes"]
    assert set(attributes) >= {"reason", "failure", "failed_at", "generation"}

    for _ in range(2):
        stack.aws.sqs.send_message(
            QueueUrl=stack.aws.requests_url,
            MessageBody=letter["Body"],
            MessageAttributes=attributes,
        )
    stack.handle(stack.receive())

    assert [message["id"] for message in stack.blip.inbox()] == [key, f"{key}:2"]
    assert stack.aws.dead_letters() == []


# --- A thousand dead letters ----------------------------------------------------------------------


class Death(BaseException):
    """The process is gone."""


class Killer:
    """Kills the process at the n-th call of an operation of SQS, before the call or after it.

    Calls are counted by operation: those of several threads come in no order.
    """

    def __init__(self, session: boto3.Session) -> None:
        self._events = session.events
        self._lock = Lock()
        self._operation: str | None = None
        self._left = 0
        self._after = False
        self._dead = False
        self._events.register("before-call.sqs.*", self._before)
        self._events.register("after-call.sqs.*", self._then)

    def close(self) -> None:
        self._events.unregister("before-call.sqs.*", self._before)
        self._events.unregister("after-call.sqs.*", self._then)

    def at(self, operation: str, call: int, *, after: bool) -> None:
        self._operation, self._left, self._after = operation, call, after
        self._dead = False

    def rest(self) -> None:
        self._operation, self._dead = None, False

    def _before(self, model: Any, **_: Any) -> None:
        self._die(model.name, after=False)

    def _then(self, model: Any, **_: Any) -> None:
        self._die(model.name, after=True)

    def _die(self, operation: str, *, after: bool) -> None:
        # Once dead it stays dead: what it wants to clean up does not happen either.
        with self._lock:
            if operation == self._operation and after == self._after:
                self._left -= 1
                self._dead |= self._left == 0
            if self._dead:
                raise Death


@pytest.fixture
def killer(session: boto3.Session) -> Iterator[Killer]:
    """Knows of the calls of every client that is made after it."""
    killer = Killer(session)
    yield killer
    killer.close()


REASONS = [
    Reason.UNDELIVERED,
    Reason.REJECTED,
    Reason.EXPIRED,
    Reason.INVALID,
    Reason.RETRIES_EXHAUSTED,
]


@pytest.fixture
def thousand(aws: Aws) -> list[Json]:
    """Write a thousand dead letters of five reasons. Return the requests that were undelivered.

    The ledger holds what was tried, as it does after the functions have written them.
    """
    now = 1_800_000_000.0
    ledger = WholeLedger(Table(aws.dynamodb, "ledger"), lambda: now)
    undelivered = []
    pattern: dict[str, Any] = {}
    items: list[Any] = []
    entries: list[Any] = []
    for number in range(1000):
        reason = REASONS[number % 5]
        body = a_request(id=f"order-{number}", to=f"+553198{number:07}")
        text = json.dumps(body)
        if reason is Reason.UNDELIVERED:
            undelivered.append(body)
            notification = a_notification(QueuedRequest("record", "receipt", text, now))
            if not pattern:
                claim = ledger.claim(notification, Status.SENDING, now + 30)
                assert isinstance(claim, Claim)
                ledger.mark_failed(claim, Status.FAILED, reason, 132_001)
                (pattern,) = aws.dynamodb.scan(TableName="ledger")["Items"]
            own = {
                "key": notification.key,
                "id": body["id"],
                "content_hash": notification.content_hash,
                "request": text,
            }
            items.append(pattern | {name: {"S": value} for name, value in own.items()})
        letter = {
            "reason": reason,
            "bot": "default",
            "notification_id": body["id"],
            "failure": '{"template": "order_shipped"}',
        }
        attributes = {
            name: {"DataType": "String", "StringValue": value} for name, value in letter.items()
        }
        attributes["generation"] = {"DataType": "Number", "StringValue": "1"}
        entries.append({"Id": str(number), "MessageBody": text, "MessageAttributes": attributes})
    for some in batched(items, 25, strict=False):
        puts: Any = [{"PutRequest": {"Item": item}} for item in some]
        aws.dynamodb.batch_write_item(RequestItems={"ledger": puts})
    for letters in batched(entries, 10, strict=False):
        aws.sqs.send_message_batch(QueueUrl=aws.dead_letters_url, Entries=letters)
    return undelivered


def test_thousand_dead_letters_survive_a_redrive_killed_four_times(
    stack: Stack,
    killer: Killer,
    thousand: list[Json],
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moto_queues, "unix_time", clock.now)
    monkeypatch.setattr(moto_queues, "unix_time_millis", lambda: 1000 * clock.now())
    # It counts the whole queue for each message that it gives out, to see how old one may be.
    monkeypatch.setattr(
        moto_queues.SQSBackend, "is_message_valid_based_on_retention_period", lambda *_: True
    )

    listed = order(stack, redrive=False)
    assert outcomes(listed) == {("listed", reason): 200 for reason in REASONS}
    assert (listed["scanned"], listed["more"], listed["in_flight"]) == (1000, False, 0)
    dry = order(stack, reasons=["undelivered"])
    assert outcomes(dry) == {("would_redrive", "undelivered"): 200}

    for operation, call, after in (
        ("ReceiveMessage", 30, True),
        ("SendMessageBatch", 3, True),
        ("DeleteMessageBatch", 2, False),
        ("ChangeMessageVisibilityBatch", 5, False),
    ):
        killer.at(operation, call, after=after)
        with pytest.raises(Death):
            order(stack, reasons=["undelivered"], dry_run=False)
        clock.advance(redrive.VISIBILITY_SECONDS)
    killer.rest()
    order(stack, reasons=["undelivered"], dry_run=False)

    records = stack.receive()
    put_back = Counter(json.loads(record["body"])["id"] for record in records)
    assert set(put_back) == {body["id"] for body in thousand}
    assert sum(put_back.values()) > 200  # some twice, by a death between the queues
    while records:
        for batch in batched(records, 10, strict=False):
            stack.handle(list(batch))
        clock.advance(60)  # for what found no slot free
        records = stack.receive()
    sent = Counter(message["id"] for message in stack.blip.inbox())
    assert sent == {f"{ledger_key('default', body['id'])}:2": 1 for body in thousand}

    left = order(stack, redrive=False)
    assert outcomes(left) == {("listed", reason): 200 for reason in REASONS[1:]}
    assert left["in_flight"] == 0
