"""One suite for what holds state: the real adapters on moto, and the fakes of the unit tests.

Whatever is asserted of both is behaviour that the use cases rely on. The last part of each chapter
is about the real ones only: lost answers, and what AWS leaves undone.
"""

import contextlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any, Protocol, cast

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.sqs import models as moto_queues

from notifier.aws import identities as identities_module
from notifier.aws import queues
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.identities import DynamoDbIdentities, UnreadError, forgotten_key
from notifier.aws.queues import DeadLettersQueue, ReceiptsQueue, RequestsQueue, queued_request
from notifier.aws.refusals import DynamoDbRefusals
from notifier.aws.secrets import SecretsManagerBots
from notifier.aws.table import Item, Table
from notifier.domain.bot_state import BotState, HoldReason, Reservation
from notifier.domain.bots import Bot, Bots, BotsSecretError, InvalidBot
from notifier.domain.dead_letters import DeadLetter, FailureDetails
from notifier.domain.failures import FieldError, Reason
from notifier.domain.ledger_entries import (
    Change,
    Claim,
    ClaimLost,
    Control,
    LedgerEntry,
    NotificationDetails,
    RecipientMatch,
    Refusal,
)
from notifier.domain.notification import Notification, QueuedRequest, ledger_key
from notifier.domain.receipts import Receipt
from notifier.domain.recipients import Identity, LookUpLease
from notifier.domain.status import SENT_OR_LATER, UNDELIVERED, Status
from tests.integration.conftest import Aws, Stack
from tests.support.adapters import (
    CountingIdentities,
    CountingTable,
    FakeSecretsManager,
    RecordingBotStates,
    WholeLedger,
)
from tests.support.builders import KEY, OTHER_KEY, a_bot, a_failure, a_notification
from tests.support.clock import Clock
from tests.support.queues import FakeDeadLetters, FakeRequests

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
LEASE = 30.0
HORIZON = 3.0
SHARE = 0.9

RECIPIENT = ("default", "+5531999998888")
ADDRESS = "553199998888@wa.gw.msging.net"
TTL, NEGATIVE_TTL = 6 * 86_400, 86_400


class Backend(Protocol):
    """Somewhere to keep state, and what several sandboxes see of it."""

    clock: Clock

    def ledger(self) -> Any: ...
    def identities(self, *, uniform: Callable[[float, float], float] = max) -> Any: ...
    def refusals(self) -> Any: ...
    def bot_states(self) -> Any: ...
    def secrets(self) -> Any: ...
    def letters(self) -> Any: ...
    def moved(self, body: str) -> None: ...
    def requests(self) -> Any: ...
    def requested(self) -> list[tuple[str, int | None, int]]: ...
    def put_secret(self, text: str) -> None: ...
    def item(self, table: str, key: str) -> Item: ...
    def change(self, table: str, key: str, **attributes: Any) -> None: ...


class Fakes:
    """The fakes, on tables in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._tables = {"ledger": CountingTable(), "identities": CountingTable()}
        self._text = "{}"
        self._letters = FakeDeadLetters()
        self._letters.now = self.clock.now
        self._requests = FakeRequests()

    def ledger(self) -> WholeLedger:
        return WholeLedger(self._tables["ledger"], self.clock.now)

    def refusals(self) -> DynamoDbRefusals:
        return DynamoDbRefusals(self._tables["ledger"], self.clock.now)

    def identities(self, *, uniform: Callable[[float, float], float] = max) -> CountingIdentities:
        return CountingIdentities(
            self._tables["identities"],
            now=self.clock.now,
            ttl_seconds=TTL,
            negative_ttl_seconds=NEGATIVE_TTL,
            uniform=uniform,
        )

    def bot_states(self) -> RecordingBotStates:
        return RecordingBotStates(self._tables["identities"], self.clock.now)

    def secrets(self) -> SecretsManagerBots:
        client: Any = FakeSecretsManager(lambda: self._text)
        return SecretsManagerBots(client, "bots", self.clock.now)

    def letters(self) -> FakeDeadLetters:
        return self._letters

    def moved(self, body: str) -> None:
        self._letters.moved(body)

    def requests(self) -> FakeRequests:
        return self._requests

    def requested(self) -> list[tuple[str, int | None, int]]:
        return [(each.body, each.generation, each.redrives) for each in self._requests.redriven]

    def put_secret(self, text: str) -> None:
        self._text = text

    def item(self, table: str, key: str) -> Item:
        return self._tables[table].get(key)

    def change(self, table: str, key: str, **attributes: Any) -> None:
        self._tables[table].items[key] |= attributes


class RealOnes:
    """The adapters, on moto."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self._aws = aws
        self._monkeypatch = monkeypatch

    def table(self, name: str, dynamodb: Any = None) -> Table:
        return Table(dynamodb or self._aws.dynamodb, name)

    def ledger(self, dynamodb: Any = None) -> WholeLedger:
        return WholeLedger(self.table("ledger", dynamodb), self.clock.now)

    def refusals(self, dynamodb: Any = None) -> DynamoDbRefusals:
        return DynamoDbRefusals(self.table("ledger", dynamodb), self.clock.now)

    def identities(
        self, *, uniform: Callable[[float, float], float] = max, dynamodb: Any = None
    ) -> DynamoDbIdentities:
        return DynamoDbIdentities(
            self.table("identities", dynamodb),
            now=self.clock.now,
            ttl_seconds=TTL,
            negative_ttl_seconds=NEGATIVE_TTL,
            uniform=uniform,
        )

    def bot_states(self, dynamodb: Any = None) -> DynamoDbBotStates:
        return DynamoDbBotStates(self.table("identities", dynamodb), self.clock.now)

    def secrets(self) -> SecretsManagerBots:
        return SecretsManagerBots(self._aws.secrets_manager, self._aws.secret, self.clock.now)

    def letters(self) -> DeadLettersQueue:
        # moto's queue goes by our clock, too, and has nothing to wait for then.
        self._monkeypatch.setattr(queues, "LONG_POLL_SECONDS", 0)
        self._monkeypatch.setattr(moto_queues, "unix_time", self.clock.now)
        self._monkeypatch.setattr(moto_queues, "unix_time_millis", lambda: 1000 * self.clock.now())
        return DeadLettersQueue(self._aws.sqs, self._aws.dead_letters_url, self.clock.now)

    def moved(self, body: str) -> None:
        self._aws.sqs.send_message(QueueUrl=self._aws.dead_letters_url, MessageBody=body)

    def requests(self) -> RequestsQueue:
        return RequestsQueue(self._aws.sqs, self._aws.requests_url)

    def requested(self) -> list[tuple[str, int | None, int]]:
        stack = Stack(self._aws, cast("Any", None))
        queued = [queued_request(record) for record in stack.receive()]
        return [(each.body, each.generation, each.redrives) for each in queued]

    def put_secret(self, text: str) -> None:
        self._aws.put_bots(text)

    def item(self, table: str, key: str) -> Item:
        return self.table(table).get(key)

    def change(self, table: str, key: str, **attributes: Any) -> None:
        names = {f"#{name}": name for name in attributes}
        values = {f":{name}": value for name, value in attributes.items()}
        assignments = ", ".join(f"#{name} = :{name}" for name in attributes)
        assert names
        self.table(table).update(key, f"SET {assignments}", "", values)


@pytest.fixture
def real(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> RealOnes:
    return RealOnes(aws, monkeypatch)


@pytest.fixture(params=["fake", "real"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "fake":
        return Fakes()
    return cast("Backend", request.getfixturevalue("real"))


# --- The ledger: the claim ------------------------------------------------------------------------


def claim(
    backend: Backend,
    notification: Notification,
    status: Status = Status.CLAIMED,
    lease: float = LEASE,
) -> Claim | LedgerEntry:
    found = backend.ledger().claim(notification, status, backend.clock.now() + lease)
    assert isinstance(found, Claim | LedgerEntry)
    return found


def claimed(backend: Backend, notification: Notification, status: Status = Status.CLAIMED) -> Claim:
    found = claim(backend, notification, status)
    assert isinstance(found, Claim), found
    return found


def entry(backend: Backend, notification: Notification) -> Item:
    return backend.item("ledger", notification.key)


def of_generation(notification: Notification, generation: int | None) -> Notification:
    return replace(notification, queued=replace(notification.queued, generation=generation))


def bring_to(backend: Backend, notification: Notification, status: Status) -> None:
    """Bring a notification, of which the ledger knows nothing, to a status."""
    ledger = backend.ledger()
    start = Status.SENDING if status is not Status.CLAIMED else Status.CLAIMED
    taken = claimed(backend, notification, start)
    match status:
        case Status.CLAIMED | Status.SENDING:
            pass
        case Status.RETRYING:
            ledger.release(taken, attempted=True)
        case Status.UNKNOWN:
            ledger.mark_unknown(taken)
        case Status.CANCELLED:
            ledger.release(taken, attempted=True)
            ledger.cancel(notification.request.bot, notification.request.id)
        case Status.FAILED | Status.REJECTED | Status.EXPIRED:
            ledger.mark_failed(taken, status, Reason.REJECTED, 21)
        case _:
            ledger.mark_sent(taken, None)
            if status is not Status.SENT:
                moved, _ = ledger.advance(Receipt(notification.key, 1, status))
                assert moved
    assert entry(backend, notification)["status"] == status


def test_nothing_is_known_and_it_is_claimed(backend: Backend) -> None:
    notification = a_notification(bot="default", metadata={"order": "981"})

    for_sending = claimed(backend, notification, Status.SENDING)

    now = backend.clock.now()
    assert for_sending.key == notification.key
    assert for_sending.status is Status.SENDING
    assert for_sending.generation == 1
    assert for_sending.attempts == 1
    assert for_sending.token
    item = entry(backend, notification)
    assert item == {
        "key": notification.key,
        "id": "order-1",
        "bot": "default",
        "status": "sending",
        "generation": 1,
        "attempts": 1,
        "redrives": 0,
        "content_hash": notification.content_hash,
        "request": notification.queued.body,
        "template": "order_shipped",
        "recipient": "…8888",
        "metadata": {"order": "981"},
        "correlation_id": None,
        "token": for_sending.token,
        "lease_until": round((now + LEASE) * 1000),
        "created_at": round(now * 1000),
        "updated_at": round(now * 1000),
        "expires_at": round(now + 45 * DAY),
    }


def test_what_waits_for_its_next_attempt_is_claimed_and_counted(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.RETRYING)

    again = claimed(backend, notification)

    assert (again.generation, again.attempts) == (1, 2)


def test_a_claim_that_was_given_back_without_an_attempt_counts_none(backend: Backend) -> None:
    notification = a_notification()
    backend.ledger().release(claimed(backend, notification), attempted=False)

    assert claimed(backend, notification).attempts == 1


def test_a_claim_whose_lease_has_gone_is_claimed_by_the_next(backend: Backend) -> None:
    notification = a_notification()
    first = claimed(backend, notification)

    backend.clock.advance(LEASE + 0.1)
    second = claimed(backend, notification)

    assert second.token != first.token
    assert entry(backend, notification)["token"] == second.token


@pytest.mark.parametrize("status", [Status.CLAIMED, Status.SENDING])
def test_a_live_claim_is_left_alone(backend: Backend, status: Status) -> None:
    notification = a_notification()
    bring_to(backend, notification, status)
    before, ends = entry(backend, notification), backend.clock.now() + LEASE

    backend.clock.advance(LEASE)
    found = claim(backend, notification)

    assert isinstance(found, LedgerEntry)
    assert found.status is status
    assert found.lease_until == pytest.approx(ends, abs=0.001)
    assert entry(backend, notification) == before


def test_what_was_being_sent_when_its_lease_ended_is_never_simply_claimed(
    backend: Backend,
) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.SENDING)
    ends = backend.clock.now() + LEASE
    before = entry(backend, notification)

    backend.clock.advance(10 * DAY)
    found = claim(backend, notification, Status.SENDING)

    assert isinstance(found, LedgerEntry)
    assert found.status is Status.SENDING
    # The last instant at which the send can have been under way.
    assert found.in_flight_until == pytest.approx(ends, abs=0.001)
    assert entry(backend, notification) == before


def test_what_may_have_gone_out_is_never_simply_claimed(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.UNKNOWN)
    since, before = backend.clock.now(), entry(backend, notification)

    backend.clock.advance(10 * DAY)
    for generation in (None, 1):
        found = claim(backend, of_generation(notification, generation))
        assert isinstance(found, LedgerEntry)
        assert found.status is Status.UNKNOWN
        assert found.in_flight_until == pytest.approx(since, abs=0.001)
    assert entry(backend, notification) == before


def test_what_blip_has_is_a_duplicate_for_a_redrive_too(backend: Backend) -> None:
    for status in sorted(SENT_OR_LATER):
        notification = a_notification(id=status)
        bring_to(backend, notification, status)
        before = entry(backend, notification)

        for generation in (None, 1):
            found = claim(backend, of_generation(notification, generation))

            assert isinstance(found, LedgerEntry)
            assert found.status is status
            assert found.content_hash == notification.content_hash
            assert entry(backend, notification) == before


def test_what_ended_is_a_duplicate_for_all_but_its_own_redrive(backend: Backend) -> None:
    for status in sorted(UNDELIVERED):
        notification = a_notification(id=status)
        bring_to(backend, notification, status)
        before = entry(backend, notification)

        for generation in (None, 0, 2, 7):
            found = claim(backend, of_generation(notification, generation))

            assert isinstance(found, LedgerEntry)
            assert (found.status, found.generation) == (status, 1)
            assert entry(backend, notification) == before


@pytest.mark.parametrize("status", sorted(UNDELIVERED))
def test_what_ended_and_is_redriven_is_the_next_generation(
    backend: Backend, status: Status
) -> None:
    notification = a_notification()
    bring_to(backend, notification, status)
    backend.clock.advance(DAY)

    again = claimed(backend, of_generation(notification, 1))

    assert (again.generation, again.attempts) == (2, 1)
    item = entry(backend, notification)
    assert item["generation"] == 2
    assert not {"reason", "code", "in_flight_until", "denials"} & set(item)
    assert item["expires_at"] == round(backend.clock.now() + 45 * DAY)
    assert item["created_at"] == round((backend.clock.now() - DAY) * 1000)


def test_a_redrive_brings_its_own_content(backend: Backend) -> None:
    notification = a_notification()
    fixed = of_generation(a_notification(to="+5531988887777"), 1)
    bring_to(backend, notification, Status.REJECTED)

    assert claimed(backend, fixed).generation == 2

    item = entry(backend, notification)
    assert item["content_hash"] == fixed.content_hash != notification.content_hash
    assert item["request"] == fixed.queued.body
    assert item["recipient"] == "…7777"


def test_a_redrive_that_died_half_way_goes_on_in_its_generation(backend: Backend) -> None:
    notification = a_notification()
    redriven = of_generation(notification, 1)
    bring_to(backend, notification, Status.FAILED)
    claimed(backend, redriven)

    backend.clock.advance(LEASE + 1)

    assert claimed(backend, redriven).generation == 2


def test_a_redrive_that_has_ended_again_is_a_duplicate(backend: Backend) -> None:
    notification = a_notification()
    redriven = of_generation(notification, 1)
    bring_to(backend, notification, Status.FAILED)
    backend.ledger().mark_failed(claimed(backend, redriven), Status.FAILED, Reason.REJECTED, None)

    found = claim(backend, redriven)

    assert isinstance(found, LedgerEntry)
    assert (found.status, found.generation) == (Status.FAILED, 2)


def test_a_redrive_of_which_nothing_is_left_counts_on(backend: Backend) -> None:
    """Its message id must be another than that of the generation that failed."""
    assert claimed(backend, of_generation(a_notification(), 3)).generation == 4


def test_other_content_under_the_same_id_stands_in_the_way(backend: Backend) -> None:
    for status in Status:
        bring_to(backend, a_notification(id=status), status)
    backend.clock.advance(LEASE + 1)
    for status in Status:
        notification = a_notification(id=status)
        other = a_notification(id=status, to="+5531988887777")
        before = entry(backend, notification)

        found = claim(backend, other)

        assert isinstance(found, LedgerEntry), status
        assert found.content_hash == notification.content_hash != other.content_hash
        assert entry(backend, notification) == before


@pytest.mark.parametrize(("asked", "generation"), [(None, 1), (5, 6)])
def test_after_its_time_to_live_an_id_is_free_again(
    backend: Backend, asked: int | None, generation: int
) -> None:
    """DynamoDB's sweep comes up to two days late: the condition itself looks at the clock."""
    old_receipt = ["accepted", 1, 0, None]
    for status in sorted(set(Status) - {Status.CANCELLED}):
        before = a_notification(id=status)
        bring_to(backend, before, status)
        backend.change("ledger", before.key, late=[old_receipt], postponed=1)
    backend.clock.advance(45 * DAY)
    for status in sorted(set(Status) - {Status.CANCELLED}):
        other = of_generation(a_notification(id=status, to="+5531988887777"), asked)

        again = claimed(backend, other)

        assert (again.generation, again.attempts) == (generation, 1), status
        item = entry(backend, other)
        assert item["content_hash"] == other.content_hash
        assert item["expires_at"] == round(backend.clock.now() + 45 * DAY)
        # What was before is another notification's.
        assert not {"timeline", "late", "postponed"} & set(item)
        assert item["created_at"] == item["updated_at"]


@pytest.mark.parametrize("status", [Status.RETRYING, Status.CLAIMED])
def test_after_its_time_to_live_even_the_same_content_starts_anew(
    backend: Backend, status: Status
) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.FAILED)
    redriven = claimed(backend, of_generation(notification, 1))
    if status is Status.RETRYING:
        backend.ledger().release(redriven, attempted=True)
    assert entry(backend, notification)["generation"] == 2

    backend.clock.advance(45 * DAY)
    again = claimed(backend, notification)

    assert (again.generation, again.attempts) == (1, 1)


def test_up_to_its_time_to_live_an_id_is_taken(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.SENT)

    backend.clock.advance(45 * DAY - 1)

    assert isinstance(claim(backend, notification), LedgerEntry)


def test_a_retry_does_not_lengthen_the_time_to_live(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.RETRYING)
    expires_at = entry(backend, notification)["expires_at"]

    backend.clock.advance(DAY)
    claimed(backend, notification)

    assert entry(backend, notification)["expires_at"] == expires_at


def test_the_same_id_of_another_bot_is_another_notification(backend: Backend) -> None:
    claimed(backend, a_notification(bot="default"))

    assert claimed(backend, a_notification(bot="clinic")).generation == 1


@pytest.mark.parametrize("standing", [None, Status.RETRYING, Status.FAILED])
def test_of_many_that_claim_at_once_one_gets_it(backend: Backend, standing: Status | None) -> None:
    notification = a_notification()
    if standing is not None:
        bring_to(backend, notification, standing)
    asked = of_generation(notification, 1 if standing is Status.FAILED else None)
    start = threading.Barrier(8)

    def race(_: int) -> Claim | LedgerEntry:
        start.wait()
        return claim(backend, asked)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(race, range(8)))

    (winner,) = [one for one in found if isinstance(one, Claim)]
    assert entry(backend, notification)["token"] == winner.token
    losers = [one for one in found if isinstance(one, LedgerEntry)]
    assert {one.status for one in losers} == {Status.CLAIMED}
    assert all(one.lease_until > backend.clock.now() for one in losers)


# --- The ledger: under a claim --------------------------------------------------------------------


def test_sending_starts_under_the_claim(backend: Backend) -> None:
    notification = a_notification()
    taken = claimed(backend, notification)

    sending = backend.ledger().start_sending(taken, backend.clock.now() + 50)

    assert sending == replace(taken, status=Status.SENDING)
    item = entry(backend, notification)
    assert item["status"] == "sending"
    assert item["lease_until"] == round((backend.clock.now() + 50) * 1000)


def lose(backend: Backend, notification: Notification, how: str) -> None:
    """Take a claim's right away behind its back."""
    match how:
        case "claimed by another":
            backend.clock.advance(LEASE + 1)
            claimed(backend, notification)
        case "sent by another":
            backend.clock.advance(LEASE + 1)
            bring = claimed(backend, notification, Status.SENDING)
            backend.ledger().mark_sent(bring, None)
        case "given up by another":
            backend.clock.advance(LEASE + 1)
            bring = claimed(backend, notification)
            backend.ledger().mark_failed(bring, Status.FAILED, Reason.EXPIRED, None)
        case _:
            moved, _ = backend.ledger().advance(Receipt(notification.key, 1, Status.RECEIVED))
            assert moved


LOSSES = ["claimed by another", "sent by another", "given up by another", "received"]


@pytest.mark.parametrize("how", LOSSES)
def test_nothing_is_sent_under_a_claim_that_was_lost(backend: Backend, how: str) -> None:
    notification = a_notification()
    taken = claimed(backend, notification)
    lose(backend, notification, how)
    before = entry(backend, notification)

    with pytest.raises(ClaimLost):
        backend.ledger().start_sending(taken, backend.clock.now() + LEASE)

    assert entry(backend, notification) == before


@pytest.mark.parametrize("how", LOSSES)
def test_nothing_is_settled_under_a_claim_that_was_lost(backend: Backend, how: str) -> None:
    notification = a_notification()
    taken = claimed(backend, notification)
    lose(backend, notification, how)
    before, ledger = entry(backend, notification), backend.ledger()

    ledger.release(taken, attempted=True)
    ledger.release(taken, attempted=False)
    ledger.mark_unknown(taken)
    ledger.mark_failed(taken, Status.FAILED, Reason.REJECTED, 21)
    ledger.mark_not_sent(taken)
    ledger.release_unknown(taken)

    assert entry(backend, notification) == before


def test_a_claim_that_is_gone_altogether_settles_nothing(backend: Backend) -> None:
    """A ledger entry that was erased stays erased."""
    taken = replace(claimed(backend, a_notification()), key="another")
    ledger = backend.ledger()

    ledger.mark_sent(taken, None)
    ledger.release(taken, attempted=True)
    ledger.mark_failed(taken, Status.FAILED, Reason.REJECTED, 21)
    with pytest.raises(ClaimLost):
        ledger.start_sending(taken, backend.clock.now())

    assert backend.item("ledger", "another") == {}


def test_sent_ends_the_claim(backend: Backend) -> None:
    notification = a_notification()
    taken = claimed(backend, notification, Status.SENDING)

    backend.clock.advance(1)
    backend.ledger().mark_sent(taken, None)

    item = entry(backend, notification)
    assert item["status"] == "sent"
    assert item["attempts"] == 1
    assert item["timeline"] == [["sent", 1, round(backend.clock.now() * 1000), None]]
    assert not {"token", "lease_until", "poll_at"} & set(item)
    # What a redrive after a failed receipt would need.
    assert item["request"] == notification.queued.body


def test_sent_to_a_bot_whose_receipts_have_to_be_asked_for(backend: Backend) -> None:
    notification = a_notification()
    now = backend.clock.now()

    backend.ledger().mark_sent(claimed(backend, notification, Status.SENDING), now + 300)

    item = entry(backend, notification)
    assert (item["poll_bot"], item["poll_at"]) == ("default", round((now + 300) * 1000))


def test_that_blip_took_it_is_a_fact_whoever_has_the_claim_by_now(backend: Backend) -> None:
    notification = a_notification()
    taken = claimed(backend, notification, Status.SENDING)
    backend.clock.advance(LEASE + 1)
    standing = backend.ledger().read(notification.key)
    assert backend.ledger().claim_unknown(standing, backend.clock.now() + LEASE)

    backend.ledger().mark_sent(taken, None)

    item = entry(backend, notification)
    assert item["status"] == "sent"
    assert "token" not in item


@pytest.mark.parametrize(
    "status", [Status.ACCEPTED, Status.DISPATCHED, Status.RECEIVED, Status.CONSUMED]
)
def test_a_receipt_that_was_faster_stays(backend: Backend, status: Status) -> None:
    notification = a_notification()
    taken = claimed(backend, notification, Status.SENDING)
    moved, standing = backend.ledger().advance(Receipt(notification.key, 1, status))
    assert (moved, standing.status) == (True, status)
    before = entry(backend, notification)

    backend.ledger().mark_sent(taken, None)

    assert entry(backend, notification) == before


def test_an_answer_about_an_older_generation_changes_nothing(backend: Backend) -> None:
    notification = a_notification()
    first = claimed(backend, notification, Status.SENDING)
    backend.ledger().mark_failed(first, Status.FAILED, Reason.REJECTED, 21)
    claimed(backend, of_generation(notification, 1), Status.SENDING)
    before = entry(backend, notification)

    backend.ledger().mark_sent(first, None)

    assert entry(backend, notification) == before


def test_unknown_keeps_until_when_it_was_in_flight(backend: Backend) -> None:
    notification = a_notification()
    taken = claimed(backend, notification, Status.SENDING)

    backend.clock.advance(10)
    backend.ledger().mark_unknown(taken)

    item = entry(backend, notification)
    assert item["status"] == "unknown"
    assert item["in_flight_until"] == round(backend.clock.now() * 1000)
    assert "token" not in item


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (Status.REJECTED, Reason.NOT_A_PHONE_NUMBER, 61),
        (Status.EXPIRED, Reason.EXPIRED, None),
        (Status.FAILED, Reason.RETRIES_EXHAUSTED, 503),
    ],
)
def test_an_end_has_its_reason(
    backend: Backend, status: Status, reason: Reason, code: int | None
) -> None:
    notification = a_notification()

    backend.ledger().mark_failed(claimed(backend, notification), status, reason, code)

    item = entry(backend, notification)
    assert (item["status"], item["reason"], item["code"]) == (status, reason, code)
    assert item["timeline"] == [[status, 1, round(backend.clock.now() * 1000), reason]]
    assert "token" not in item
    standing = backend.ledger().read(notification.key)
    assert standing.reason is reason


def test_settling_twice_is_settling_once(backend: Backend) -> None:
    for settle in ("mark_sent", "mark_unknown", "release", "mark_failed"):
        notification = a_notification(id=f"order-{settle}")
        taken = claimed(backend, notification, Status.SENDING)
        arguments: dict[str, tuple[Any, ...]] = {
            "mark_sent": (taken, None),
            "mark_failed": (taken, Status.FAILED, Reason.REJECTED, 21),
        }
        more = {"attempted": False} if settle == "release" else {}

        for _ in range(2):
            getattr(backend.ledger(), settle)(*arguments.get(settle, (taken,)), **more)

        item = entry(backend, notification)
        assert len(item["timeline"]) == 1
        assert item["attempts"] == (0 if settle == "release" else 1)


def test_nothing_stands_in_the_ledger_of_what_it_has_never_seen(backend: Backend) -> None:
    assert backend.ledger().read("nothing") is None


# --- The ledger: settling the unknown, and receipts -----------------------------------------------


@pytest.mark.parametrize("status", [Status.UNKNOWN, Status.SENDING])
def test_one_at_a_time_settles_an_unknown(backend: Backend, status: Status) -> None:
    notification = a_notification()
    bring_to(backend, notification, status)
    since = backend.clock.now() + (LEASE if status is Status.SENDING else 0)
    backend.clock.advance(LEASE + 1)
    standing, ledger = backend.ledger().read(notification.key), backend.ledger()

    question = ledger.claim_unknown(standing, backend.clock.now() + LEASE)

    assert question.status is Status.UNKNOWN
    assert question.in_flight_until == pytest.approx(since, abs=0.001)
    assert ledger.claim_unknown(standing, backend.clock.now() + LEASE) is None
    found = claim(backend, notification)
    assert isinstance(found, LedgerEntry)
    assert found.lease_until > backend.clock.now()

    ledger.release_unknown(question)
    assert ledger.claim_unknown(standing, backend.clock.now() + LEASE) is not None


def test_an_unknown_that_was_denied_may_be_claimed_again(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    for denials in (0, 1):
        bring = claimed(backend, notification, Status.SENDING)
        assert bring.denials == denials
        ledger.mark_unknown(bring)
        question = ledger.claim_unknown(ledger.read(notification.key), backend.clock.now() + LEASE)
        ledger.mark_not_sent(question)

    assert entry(backend, notification)["denials"] == 2


@pytest.mark.parametrize("status", [Status.SENT, Status.RETRYING, Status.FAILED, Status.CLAIMED])
def test_what_is_no_unknown_is_not_settled(backend: Backend, status: Status) -> None:
    notification = a_notification()
    bring_to(backend, notification, status)
    backend.clock.advance(LEASE + 1)
    standing, before = backend.ledger().read(notification.key), entry(backend, notification)

    assert backend.ledger().claim_unknown(standing, backend.clock.now() + LEASE) is None
    assert entry(backend, notification) == before


def test_receipts_move_the_status_forward_only(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.SENT)
    receipts = [Status.DISPATCHED, Status.ACCEPTED, Status.DISPATCHED, Status.CONSUMED]
    receipts += [Status.RECEIVED]

    moves = [ledger.advance(Receipt(notification.key, 1, status)) for status in receipts]

    assert [(moved, standing.status) for moved, standing in moves] == [
        (True, Status.DISPATCHED),
        (False, Status.DISPATCHED),
        (False, Status.DISPATCHED),
        (True, Status.CONSUMED),
        (False, Status.CONSUMED),
    ]
    item = entry(backend, notification)
    assert [name for name, *_ in item["timeline"]] == ["sent", "dispatched", "consumed"]
    assert "late" not in item
    assert item["status"] == "consumed"
    assert "request" not in item


def test_a_delivery_of_an_older_generation_ends_it_all(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.FAILED)
    claimed(backend, of_generation(notification, 1))

    moved, standing = ledger.advance(Receipt(notification.key, 1, Status.ACCEPTED))
    assert (moved, standing.status, standing.generation) == (False, Status.CLAIMED, 2)
    item = entry(backend, notification)
    assert item["status"] == "claimed"
    # What it has to say of its own generation is kept beside the timeline.
    now = round(backend.clock.now() * 1000)
    assert item["timeline"] == [["failed", 1, now, "rejected"]]
    assert item["late"] == [["accepted", 1, now, None]]
    moved, standing = ledger.advance(Receipt(notification.key, 1, Status.RECEIVED))
    assert (moved, standing.status) == (True, Status.RECEIVED)
    item = entry(backend, notification)
    assert item["status"] == "received"
    assert item["timeline"][1:] == [["received", 1, now, None]]
    account = ledger.details("default", "order-1")
    assert [change.status for change in account.timeline] == [
        Status.FAILED,
        Status.RECEIVED,
        Status.ACCEPTED,
    ]
    assert isinstance(claim(backend, of_generation(notification, 1)), LedgerEntry)


def test_a_receipt_about_nothing_leaves_nothing(backend: Backend) -> None:
    for status in (Status.ACCEPTED, Status.RECEIVED):
        assert backend.ledger().advance(Receipt("foreign", 1, status)) == (False, None)
    assert not backend.ledger().fail(
        Receipt("foreign", 1, Status.FAILED), Reason.UNDELIVERED, postponed=False
    )
    assert backend.item("ledger", "foreign") == {}


def test_a_failed_receipt_ends_its_own_generation(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.DISPATCHED)
    failed = Receipt(notification.key, 1, Status.FAILED, code=131056)

    assert not ledger.fail(replace(failed, generation=2), Reason.UNDELIVERED, postponed=True)
    assert ledger.fail(failed, Reason.UNDELIVERED, postponed=True)
    assert not ledger.fail(failed, Reason.UNDELIVERED, postponed=False)

    item = entry(backend, notification)
    assert (item["status"], item["reason"], item["code"]) == ("failed", "undelivered", 131056)
    assert item["postponed"] == 1


# --- The ledger: taking back, and telling ---------------------------------------------------------


def cancel(backend: Backend, notification: Notification) -> NotificationDetails:
    account = backend.ledger().cancel(notification.request.bot, notification.request.id)
    assert isinstance(account, NotificationDetails)
    return account


def test_a_notification_that_has_not_come_yet_is_cancelled_in_advance(backend: Backend) -> None:
    notification = a_notification()

    account = cancel(backend, notification)

    now = backend.clock.now()
    assert (account.status, account.generation, account.attempts) == (Status.CANCELLED, 0, 0)
    assert (account.template, account.recipient, account.metadata) == (None, None, {})
    assert entry(backend, notification) == {
        "key": notification.key,
        "id": "order-1",
        "bot": "default",
        "status": "cancelled",
        "generation": 0,
        "attempts": 0,
        "metadata": {},
        "timeline": [["cancelled", 0, round(now * 1000), None]],
        "created_at": round(now * 1000),
        "updated_at": round(now * 1000),
        "expires_at": round(now + 45 * DAY),
    }


def test_what_was_cancelled_in_advance_gets_what_its_event_needs_when_its_request_comes(
    backend: Backend,
) -> None:
    notification, ledger = a_notification(metadata={"a": "b"}, correlation_id="c"), backend.ledger()
    cancel(backend, notification)
    cancelled = entry(backend, notification)
    backend.clock.advance(5)

    ledger.complete_cancelled(notification)
    # Another one under the same id changes nothing.
    ledger.complete_cancelled(a_notification(metadata={}, to="+5531988887777"))

    request = {"template": "order_shipped", "metadata": {"a": "b"}, "correlation_id": "c"}
    assert entry(backend, notification) == cancelled | request


def test_only_what_is_cancelled_is_completed(backend: Backend) -> None:
    notification, other = a_notification(), a_notification(id="order-2")
    bring_to(backend, notification, Status.SENT)
    sent = entry(backend, notification)

    for each in (notification, other):
        backend.ledger().complete_cancelled(
            replace(each, request=a_notification(metadata={"a": "b"}).request)
        )

    assert entry(backend, notification) == sent
    assert entry(backend, other) == {}


def test_what_waits_for_its_next_attempt_is_cancelled(backend: Backend) -> None:
    notification = a_notification(metadata={"order": "981"})
    bring_to(backend, notification, Status.RETRYING)
    backend.clock.advance(DAY)

    account = cancel(backend, notification)

    assert (account.status, account.generation) == (Status.CANCELLED, 1)
    assert (account.template, account.metadata) == ("order_shipped", {"order": "981"})
    assert [change.status for change in account.timeline] == [Status.RETRYING, Status.CANCELLED]
    item = entry(backend, notification)
    assert "request" not in item
    assert item["expires_at"] == round(backend.clock.now() + 45 * DAY)


def test_what_was_abandoned_is_cancelled_and_nothing_is_sent_under_the_old_claim(
    backend: Backend,
) -> None:
    notification = a_notification()
    abandoned = claimed(backend, notification, Status.CLAIMED)
    assert cancel(backend, notification).status is Status.CLAIMED
    backend.clock.advance(LEASE + 1)

    assert cancel(backend, notification).status is Status.CANCELLED

    with pytest.raises(ClaimLost):
        backend.ledger().start_sending(abandoned, backend.clock.now() + LEASE)
    assert entry(backend, notification)["status"] == "cancelled"


def test_what_was_put_back_because_of_a_rate_limit_is_cancelled(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.SENT)
    failed = Receipt(notification.key, 1, Status.FAILED, code=131056)
    assert ledger.fail(failed, Reason.UNDELIVERED, postponed=True)

    account = cancel(backend, notification)

    assert (account.status, account.reason, account.code) == (Status.CANCELLED, None, None)
    found = claim(backend, of_generation(notification, 1))
    assert isinstance(found, LedgerEntry)
    assert found.status is Status.CANCELLED


@pytest.mark.parametrize(
    "status", sorted(set(Status) - {Status.RETRYING, Status.CLAIMED, Status.CANCELLED})
)
def test_what_has_gone_out_or_may_or_has_ended_is_not_cancelled(
    backend: Backend, status: Status
) -> None:
    notification = a_notification()
    bring_to(backend, notification, status)
    before = entry(backend, notification)
    backend.clock.advance(LEASE + 1)

    assert cancel(backend, notification).status is status
    assert entry(backend, notification) == before


def test_cancelling_twice_is_cancelling_once(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.RETRYING)
    once = cancel(backend, notification)
    backend.clock.advance(DAY)

    assert cancel(backend, notification) == once


@pytest.mark.parametrize("in_advance", [True, False])
@pytest.mark.parametrize("generation", [None, 0, 1, 2])
@pytest.mark.parametrize("days", [0, 44, 46])
def test_what_was_cancelled_is_claimed_by_nobody(
    backend: Backend, in_advance: bool, generation: int | None, days: int
) -> None:
    notification = a_notification()
    if not in_advance:
        bring_to(backend, notification, Status.RETRYING)
    cancel(backend, notification)
    backend.clock.advance(days * DAY)

    for content in (notification, a_notification(to="+5531988887777")):
        found = claim(backend, of_generation(content, generation), Status.SENDING)
        assert isinstance(found, LedgerEntry)
        assert (found.status, found.forgotten) == (Status.CANCELLED, False)


def test_an_id_that_has_outlived_its_time_is_cancelled_in_advance(backend: Backend) -> None:
    notification, never_seen = a_notification(metadata={"a": "b"}), a_notification(id="order-2")
    bring_to(backend, notification, Status.CONSUMED)
    backend.change("ledger", notification.key, late=[["accepted", 1, 0, None]], postponed=1)
    backend.clock.advance(46 * DAY)

    assert cancel(backend, notification).status is Status.CANCELLED

    # What was before is another notification's, of which no event may tell.
    cancel(backend, never_seen)
    names = {"key": notification.key, "id": "order-1"}
    assert entry(backend, notification) == entry(backend, never_seen) | names


def test_that_the_person_has_it_is_true_of_what_was_cancelled_too(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.RETRYING)
    cancel(backend, notification)

    for status in (Status.ACCEPTED, Status.DISPATCHED, Status.FAILED):
        moved, standing = ledger.advance(Receipt(notification.key, 1, status))
        assert (moved, standing.status) == (False, Status.CANCELLED)
    moved, _ = ledger.advance(Receipt(notification.key, 1, Status.RECEIVED))
    assert moved
    assert entry(backend, notification)["status"] == "received"


def test_of_a_notification_all_is_told_but_number_and_parameters(backend: Backend) -> None:
    notification = a_notification(metadata={"order": "981"}, correlation_id="trace-1")
    taken_at = backend.clock.now()
    bring_to(backend, notification, Status.RETRYING)
    backend.clock.advance(90)
    bring_to_send = claimed(backend, notification, Status.SENDING)
    backend.ledger().mark_failed(bring_to_send, Status.REJECTED, Reason.REJECTED, 21)

    account = backend.ledger().details("default", "order-1")

    assert account == NotificationDetails(
        notification_id="order-1",
        bot="default",
        status=Status.REJECTED,
        generation=1,
        attempts=2,
        timeline=(
            Change(Status.RETRYING, 1, taken_at),
            Change(Status.REJECTED, 1, backend.clock.now(), Reason.REJECTED),
        ),
        created_at=taken_at,
        updated_at=backend.clock.now(),
        template="order_shipped",
        recipient="…8888",
        reason=Reason.REJECTED,
        code=21,
        metadata={"order": "981"},
        correlation_id="trace-1",
    )


def test_nothing_is_told_of_what_is_not_known_or_has_outlived_its_time(backend: Backend) -> None:
    ledger = backend.ledger()
    assert ledger.details("default", "order-1") is None
    bring_to(backend, a_notification(), Status.SENT)
    assert ledger.details("clinic", "order-1") is None
    backend.clock.advance(45 * DAY - 1)
    assert ledger.details("default", "order-1") is not None
    backend.clock.advance(1)
    assert ledger.details("default", "order-1") is None


# --- Refused requests -----------------------------------------------------------------------------


def refuse(backend: Backend, *messages: str, **changes: Any) -> None:
    for message in messages:
        facts = {"record_id": message, "reason": Reason.INVALID} | changes
        backend.refusals().keep("default", "order-1", Refusal(**facts))


REFUSED = f"{ledger_key('default', 'order-1')}:refused"


def test_a_refused_request_has_a_place_of_its_own_in_the_ledger(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.SENT)
    before = entry(backend, notification)
    now = round(backend.clock.now() * 1000)

    refuse(backend, "message-1", metadata={"order": "982"}, reason=Reason.ID_CONFLICT)
    backend.clock.advance(1)
    refuse(backend, "message-2", correlation_id="trace-1")

    assert backend.item("ledger", REFUSED) == {
        "key": REFUSED,
        "id": "order-1",
        "bot": "default",
        "status": "rejected",
        "refusals": [
            ["message-1", "id_conflict", now, None, {"order": "982"}],
            ["message-2", "invalid", now + 1000, "trace-1", {}],
        ],
        "updated_at": now + 1000,
        "expires_at": round(backend.clock.now() + 14 * DAY),
    }
    # The notification that has the id goes on undisturbed.
    assert entry(backend, notification) == before


def test_only_the_same_message_was_refused_before(backend: Backend) -> None:
    refusals = backend.refusals()
    assert not refusals.holds("default", "order-1", "message-1")
    refuse(backend, "message-1", "message-2")

    for message in ("message-1", "message-2"):
        assert refusals.holds("default", "order-1", message)
    assert not refusals.holds("default", "order-1", "message-3")
    assert not refusals.holds("default", "order-2", "message-1")
    assert not refusals.holds("clinic", "order-1", "message-1")


def test_the_last_ten_refusals_are_kept(backend: Backend) -> None:
    messages = [f"message-{number}" for number in range(13)]
    for number, message in enumerate(messages):
        refuse(backend, message)
        kept = [refusal[0] for refusal in backend.item("ledger", REFUSED)["refusals"]]
        assert kept == messages[: number + 1][-10:]
        backend.clock.advance(1)

    assert not backend.refusals().holds("default", "order-1", "message-2")
    assert backend.refusals().holds("default", "order-1", "message-3")
    assert backend.item("ledger", REFUSED)["expires_at"] == round(
        backend.clock.now() - 1 + 14 * DAY
    )


def test_several_sandboxes_that_refuse_at_once_lose_none(real: RealOnes) -> None:
    refuse(cast("Backend", real), *(f"message-{number}" for number in range(8)))
    start = threading.Barrier(5)

    def refuse_one(number: int) -> None:
        start.wait()
        refuse(cast("Backend", real), f"at once {number}")

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(refuse_one, range(5)))

    kept = [refusal[0] for refusal in real.item("ledger", REFUSED)["refusals"]]
    assert len(kept) == 10
    assert kept[:5] == [f"message-{number}" for number in range(3, 8)]
    assert set(kept[5:]) == {f"at once {number}" for number in range(5)}


def test_what_was_refused_is_told_with_its_reasons(backend: Backend) -> None:
    refusals, began = backend.refusals(), backend.clock.now()
    assert refusals.details("default", "order-1") is None
    refuse(backend, "message-1", metadata={"order": "982"}, reason=Reason.ID_CONFLICT)
    backend.clock.advance(1)
    refuse(backend, "message-2", correlation_id="trace-1")

    assert refusals.details("default", "order-1") == NotificationDetails(
        notification_id="order-1",
        bot="default",
        status=Status.REJECTED,
        generation=0,
        attempts=0,
        timeline=(
            Change(Status.REJECTED, 0, began, Reason.ID_CONFLICT),
            Change(Status.REJECTED, 0, began + 1, Reason.INVALID),
        ),
        created_at=began,
        updated_at=began + 1,
        reason=Reason.INVALID,
        metadata={},
        correlation_id="trace-1",
    )
    assert refusals.details("clinic", "order-1") is None
    backend.clock.advance(14 * DAY - 1)
    assert refusals.details("default", "order-1") is not None
    backend.clock.advance(1)
    assert refusals.details("default", "order-1") is None


# --- The ledger: forgetting -----------------------------------------------------------------------


def test_what_may_be_a_recipient_s_is_found_by_its_last_digits(backend: Backend) -> None:
    ledger = backend.ledger()
    waiting, delivered = a_notification(id="waiting"), a_notification(id="delivered", bot="clinic")
    same_digits = a_notification(id="same", to="+5521977778888")
    other = a_notification(id="other", to="+5521977770000")
    for notification in (waiting, same_digits, other):
        bring_to(backend, notification, Status.SENT)
    bring_to(backend, delivered, Status.RECEIVED)

    found: list[RecipientMatch] = []
    scanned, last = 0, None
    while True:
        page = ledger.matches("+5531999998888", last)
        found += page.matches
        scanned += page.scanned
        if (last := page.last) is None:
            break

    assert scanned == 4
    assert sorted(found, key=lambda held: held.key) == sorted(
        [
            RecipientMatch(waiting.key, "default", waiting.queued.body),
            RecipientMatch(delivered.key, "clinic", ""),
            RecipientMatch(same_digits.key, "default", same_digits.queued.body),
        ],
        key=lambda held: held.key,
    )


@pytest.mark.parametrize("status", sorted(Status))
def test_of_what_is_forgotten_only_a_tombstone_is_left(backend: Backend, status: Status) -> None:
    notification, ledger = a_notification(metadata={"name": "Maria"}), backend.ledger()
    bring_to(backend, notification, status)
    backend.change("ledger", notification.key, postponed=1, poll_bot="default", poll_at=1)
    backend.change("ledger", notification.key, poll_since=1, in_flight_until=1, denials=1)

    for _ in range(2):
        backend.clock.advance(DAY)
        ledger.erase(notification.key)

    tombstone = {
        "key": notification.key,
        "status": "cancelled",
        "forgotten": True,
        "generation": 1,
        "updated_at": round(backend.clock.now() * 1000),
        "expires_at": round(backend.clock.now() + 45 * DAY),
    }
    assert entry(backend, notification) == tombstone
    assert ledger.read(notification.key) is None
    account = ledger.details("default", "order-1")
    assert (account.status, account.template, account.recipient) == (Status.CANCELLED, None, None)
    assert cancel(backend, notification).status is Status.CANCELLED
    for receipt in (Status.ACCEPTED, Status.RECEIVED, Status.CONSUMED, Status.FAILED):
        assert ledger.advance(Receipt(notification.key, 1, receipt)) == (False, None)
    failed = Receipt(notification.key, 1, Status.FAILED)
    assert not ledger.fail(failed, Reason.UNDELIVERED, postponed=True)
    assert ledger.matches("+5531999998888", None).matches == []
    ledger.complete_cancelled(notification)
    assert entry(backend, notification) == tombstone
    found = claim(backend, of_generation(notification, 1))
    assert isinstance(found, LedgerEntry)
    assert (found.status, found.forgotten) == (Status.CANCELLED, True)


@pytest.mark.parametrize(
    "settle", ["mark_sent", "mark_unknown", "release", "mark_failed", "mark_not_sent"]
)
def test_a_sandbox_that_was_at_it_writes_nothing_back(backend: Backend, settle: str) -> None:
    notification, ledger = a_notification(), backend.ledger()
    taken = claimed(backend, notification, Status.SENDING)
    ledger.erase(notification.key)
    tombstone = entry(backend, notification)

    more: dict[str, Any] = {"attempted": False} if settle == "release" else {}
    arguments = {"mark_sent": (None,), "mark_failed": (Status.FAILED, Reason.REJECTED, 21)}
    getattr(ledger, settle)(taken, *arguments.get(settle, ()), **more)
    with pytest.raises(ClaimLost):
        ledger.start_sending(taken, backend.clock.now() + LEASE)

    assert entry(backend, notification) == tombstone


def test_to_forget_what_is_not_there_leaves_nothing(backend: Backend) -> None:
    backend.ledger().erase("nothing")

    assert backend.item("ledger", "nothing") == {}


# --- The ledger: the fake and the real one, side by side ------------------------------------------


def test_fake_and_real_ledger_cannot_be_told_apart(real: RealOnes) -> None:
    """Random stories, the same for both: every answer and every item is compared."""
    fakes = Fakes()
    rng = random.Random(20311144)
    contents: list[dict[str, Any]] = [{"id": "a"}, {"id": "a", "to": "+5531988887777"}, {"id": "b"}]
    claims: list[tuple[Claim, Claim]] = []
    seen: Counter[str] = Counter()

    for step in range(160):
        seconds = rng.choice([0, 0, 0.5, 1, 31, 100, 86_400.25, 20 * DAY])
        fakes.clock.advance(seconds)
        real.clock.advance(seconds)
        until = fakes.clock.now() + rng.choice([0.5, LEASE])
        generation = rng.choice([None, None, 1, 2])
        content = rng.choice(contents)
        # What is cancelled or forgotten stays so: others take its place.
        content = content | {"id": f"{content['id']}-{step // 20}"}
        notification = of_generation(a_notification(**content), generation)
        receipt = Receipt(
            notification.key,
            rng.choice([1, 1, 2, 3]),
            rng.choice([Status.ACCEPTED, Status.DISPATCHED, Status.RECEIVED, Status.CONSUMED]),
            code=rng.choice([None, 131056]),
        )
        taken = rng.choice(claims) if claims else None
        move = rng.choice(["claim", "claim", "claim to send", *MOVES] if taken else ["claim"])

        waiting = fakes.item("ledger", notification.key)

        ours = act(fakes.ledger(), move, notification, taken and taken[0], receipt, until)
        theirs = act(real.ledger(), move, notification, taken and taken[1], receipt, until)

        assert without_token(ours) == without_token(theirs), move
        for key in {notification.key, taken[0].key if taken else notification.key}:
            one, other = fakes.item("ledger", key), real.item("ledger", key)
            assert ("token" in one) == ("token" in other), move
            assert one | {"token": ""} == other | {"token": ""}, move
        if isinstance(ours, Claim):
            claims.append((ours, theirs))
        seen[f"{move}: {type(ours).__name__}"] += 1
        seen["completed"] += (
            move == "complete" and fakes.item("ledger", notification.key) != waiting
        )

    # The stories were not all the same.
    assert seen["claim: Claim"] > 5
    assert seen["claim: LedgerEntry"] > 5
    assert seen["start: str"] > 2
    assert seen["question: Claim"] > 0
    assert seen["cancel: NotificationDetails"] > 2
    assert seen["completed"] > 0


MOVES = ["question", "advance", "fail", "postpone", "start", "sent", "unknown", "release"]
MOVES += ["give back", "end", "deny", "put back", "cancel", "complete", "forget"]


def act(
    ledger: Any,
    move: str,
    notification: Notification,
    taken: Claim | None,
    receipt: Receipt,
    until: float,
) -> Any:
    match move:
        case "claim":
            return ledger.claim(notification, Status.CLAIMED, until)
        case "claim to send":
            return ledger.claim(notification, Status.SENDING, until)
        case "question":
            standing = ledger.read(notification.key)
            return standing and ledger.claim_unknown(standing, until)
        case "advance":
            return ledger.advance(receipt)
        case "fail":
            return ledger.fail(receipt, Reason.UNDELIVERED, postponed=False)
        case "postpone":
            return ledger.fail(receipt, Reason.UNDELIVERED, postponed=True)
        case "start":
            try:
                return ledger.start_sending(taken, until)
            except ClaimLost:
                return "lost"
        case "sent":
            return ledger.mark_sent(taken, until)
        case "unknown":
            return ledger.mark_unknown(taken)
        case "release":
            return ledger.release(taken, attempted=True)
        case "give back":
            return ledger.release(taken, attempted=False)
        case "end":
            return ledger.mark_failed(taken, Status.FAILED, Reason.REJECTED, None)
        case "deny":
            return ledger.mark_not_sent(taken)
        case "forget":
            return ledger.erase(notification.key)
        case "complete":
            return ledger.complete_cancelled(notification)
        case "cancel":
            return ledger.cancel(notification.request.bot, notification.request.id)
        case _:
            return ledger.release_unknown(taken)


def without_token(answer: Any) -> Any:
    return replace(answer, token="") if isinstance(answer, Claim) else answer


# --- The ledger: lost answers (the real one only) -------------------------------------------------


class LostAnswers:
    """DynamoDB whose every first answer gets lost: boto3 asks again, and finds its own write."""

    def __init__(self, dynamodb: Any) -> None:
        self._dynamodb = dynamodb

    def update_item(self, **parameters: Any) -> Any:
        with contextlib.suppress(ClientError):
            self._dynamodb.update_item(**parameters)
        return self._dynamodb.update_item(**parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dynamodb, name)


def test_a_claim_whose_answer_was_lost_is_a_claim(real: RealOnes, aws: Aws) -> None:
    notification = a_notification()
    ledger = real.ledger(LostAnswers(aws.dynamodb))
    until = real.clock.now() + LEASE

    taken = ledger.claim(notification, Status.CLAIMED, until)
    assert isinstance(taken, Claim)
    assert taken.attempts == 1
    sending = ledger.start_sending(taken, until)
    assert sending.status is Status.SENDING
    ledger.mark_failed(sending, Status.FAILED, Reason.REJECTED, 21)

    again = ledger.claim(of_generation(notification, 1), Status.SENDING, until)
    assert isinstance(again, Claim)
    assert (again.generation, again.attempts) == (2, 1)
    ledger.mark_sent(again, None)

    item = entry(real, notification)
    assert item["status"] == "sent"
    assert [event[:2] for event in item["timeline"]] == [["failed", 1], ["sent", 2]]


def test_a_retry_whose_answer_was_lost_counts_once(real: RealOnes, aws: Aws) -> None:
    notification = a_notification()
    ledger = real.ledger(LostAnswers(aws.dynamodb))
    for attempts in (1, 2, 3):
        taken = ledger.claim(notification, Status.SENDING, real.clock.now() + LEASE)
        assert isinstance(taken, Claim)
        assert taken.attempts == attempts
        ledger.release(taken, attempted=True)


def test_a_claim_given_back_whose_answer_was_lost_is_given_back_once(
    real: RealOnes, aws: Aws
) -> None:
    notification = a_notification()
    ledger = real.ledger(LostAnswers(aws.dynamodb))
    taken = ledger.claim(notification, Status.SENDING, real.clock.now() + LEASE)
    assert isinstance(taken, Claim)

    ledger.release(taken, attempted=False)

    assert entry(real, notification)["attempts"] == 0


def test_another_error_of_dynamodb_is_an_error(real: RealOnes, aws: Aws) -> None:
    aws.dynamodb.delete_table(TableName="ledger")

    with pytest.raises(ClientError, match="ResourceNotFound"):
        real.ledger().claim(a_notification(), Status.CLAIMED, 0)


# --- The identities -------------------------------------------------------------------------------


def learn(
    backend: Backend,
    identity: Identity | None = None,
    *,
    recipient: tuple[str, str] = RECIPIENT,
    uniform: Callable[[float, float], float] = max,
) -> None:
    identities = backend.identities(uniform=uniform)
    lease = identities.lease(recipient, LEASE)
    assert isinstance(lease, LookUpLease)
    identities.store(lease, identity or Identity(ADDRESS))


def known(identities: Any, recipient: tuple[str, str] = RECIPIENT) -> Identity | None:
    found = identities.read([recipient], [])[0].get(recipient)
    assert found is None or isinstance(found, Identity)
    return found


def test_nobody_is_known_at_first(backend: Backend) -> None:
    assert backend.identities().read([RECIPIENT], ["default"]) == ({}, {})
    assert backend.identities().get(RECIPIENT) is None


def test_what_one_sandbox_learns_all_know(backend: Backend) -> None:
    learn(backend)

    for identities in (backend.identities(), backend.identities()):
        assert known(identities) == Identity(ADDRESS)
        assert identities.get(RECIPIENT) == Identity(ADDRESS)
        assert identities.lease(RECIPIENT, LEASE) == Identity(ADDRESS)


def test_one_bot_s_recipients_are_not_another_s(backend: Backend) -> None:
    learn(backend)

    assert known(backend.identities(), ("clinic", RECIPIENT[1])) is None


def test_many_are_read_at_once(backend: Backend) -> None:
    recipients = [("default", f"+55319999{number:05}") for number in range(12)]
    for number, recipient in enumerate(recipients[:10]):
        learn(backend, Identity(f"{number}@wa.gw.msging.net"), recipient=recipient)
    identities = backend.identities()
    assert known(identities, recipients[3])  # one of them from memory

    found, _ = identities.read(recipients, ["default", "clinic"])

    assert found == {
        recipient: Identity(f"{number}@wa.gw.msging.net")
        for number, recipient in enumerate(recipients[:10])
    }


@pytest.mark.parametrize("uniform", [min, max])
@pytest.mark.parametrize(
    ("identity", "ttl"), [(Identity(ADDRESS), TTL), (Identity(None, 61), NEGATIVE_TTL)]
)
def test_what_was_learnt_lives_nine_tenths_of_its_time_at_least_and_all_of_it_at_most(
    backend: Backend, identity: Identity, ttl: int, uniform: Callable[[float, float], float]
) -> None:
    lifetime = uniform(0.9 * ttl, ttl)
    learn(backend, identity, uniform=uniform)
    item = backend.item("identities", "/".join(RECIPIENT))
    assert item["good_until"] == round((backend.clock.now() + lifetime) * 1000)
    assert item["expires_at"] == pytest.approx(backend.clock.now() + lifetime, abs=1)

    backend.clock.advance(lifetime - 1)
    assert known(backend.identities()) == identity

    backend.clock.advance(1)
    # Whether DynamoDB has swept it or not.
    assert known(backend.identities()) is None
    assert backend.identities().get(RECIPIENT) is None
    assert isinstance(backend.identities().lease(RECIPIENT, LEASE), LookUpLease)


def test_a_refusal_is_known_with_its_code(backend: Backend) -> None:
    learn(backend, Identity(None, 61))

    assert known(backend.identities()) == Identity(None, 61)
    assert backend.identities().lease(RECIPIENT, LEASE) == Identity(None, 61)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Identity(None, 61), Identity(ADDRESS)),
        (Identity(ADDRESS), Identity(None, 67)),
        (Identity(ADDRESS), Identity("another@wa.gw.msging.net")),
    ],
)
def test_what_is_learnt_anew_replaces_what_was_known(
    backend: Backend, first: Identity, second: Identity
) -> None:
    learn(backend, first)
    backend.clock.advance(TTL + 1)
    learn(backend, second)

    assert known(backend.identities()) == second


def test_one_at_a_time_looks_a_recipient_up(backend: Backend) -> None:
    first, second = backend.identities(), backend.identities()

    assert isinstance(first.lease(RECIPIENT, LEASE), LookUpLease)
    assert second.lease(RECIPIENT, LEASE) is None
    assert first.lease(RECIPIENT, LEASE) is None
    assert known(second) is None

    backend.clock.advance(LEASE + 0.1)
    assert isinstance(second.lease(RECIPIENT, LEASE), LookUpLease)


def test_a_lease_that_was_given_back_is_free_at_once(backend: Backend) -> None:
    first, second = backend.identities(), backend.identities()
    first.release(first.lease(RECIPIENT, LEASE))

    assert isinstance(second.lease(RECIPIENT, LEASE), LookUpLease)


def test_a_lease_that_has_passed_to_another_gives_nothing_back_and_stores_nothing(
    backend: Backend,
) -> None:
    late, second = backend.identities(), backend.identities()
    lost = late.lease(RECIPIENT, LEASE)
    backend.clock.advance(LEASE + 1)
    second.lease(RECIPIENT, LEASE)
    before = backend.item("identities", "/".join(RECIPIENT))

    late.release(lost)
    late.store(lost, Identity(ADDRESS))

    assert backend.item("identities", "/".join(RECIPIENT)) == before
    assert backend.identities().lease(RECIPIENT, LEASE) is None


def test_of_many_that_ask_at_once_one_looks_up(backend: Backend) -> None:
    start = threading.Barrier(8)

    def race(_: int) -> LookUpLease | Identity | None:
        start.wait()
        return cast("LookUpLease | None", backend.identities().lease(RECIPIENT, LEASE))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(race, range(8)))

    assert Counter(type(one) for one in found) == {LookUpLease: 1, type(None): 7}


def test_memory_spares_the_table_for_five_minutes(backend: Backend) -> None:
    learn(backend)
    identities = backend.identities()
    assert known(identities) == Identity(ADDRESS)
    backend.change("identities", "/".join(RECIPIENT), address="another@wa.gw.msging.net")

    backend.clock.advance(5 * MINUTE - 1)
    assert known(identities) == Identity(ADDRESS)

    backend.clock.advance(1)
    assert known(identities) == Identity("another@wa.gw.msging.net")


def test_memory_knows_what_this_sandbox_has_learnt(backend: Backend) -> None:
    identities = backend.identities()
    identities.store(identities.lease(RECIPIENT, LEASE), Identity(ADDRESS))
    backend.change("identities", "/".join(RECIPIENT), address="another@wa.gw.msging.net")

    assert known(identities) == Identity(ADDRESS)


def test_asking_the_table_is_asking_the_table(backend: Backend) -> None:
    learn(backend)
    identities = backend.identities()
    known(identities)
    backend.change("identities", "/".join(RECIPIENT), address="another@wa.gw.msging.net")

    assert identities.get(RECIPIENT) == Identity("another@wa.gw.msging.net")
    assert known(identities) == Identity("another@wa.gw.msging.net")


def test_memory_lives_no_longer_than_the_entry(backend: Backend) -> None:
    learn(backend)
    backend.clock.advance(TTL - 10)
    identities = backend.identities()
    assert known(identities) == Identity(ADDRESS)

    backend.clock.advance(10)
    assert known(identities) is None


def test_memory_is_bounded_and_forgets_the_oldest(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities_module, "MEMORY_ENTRIES", 3)
    recipients = [("default", f"+55319999{number:05}") for number in range(4)]
    for recipient in recipients:
        learn(backend, recipient=recipient)
    identities = backend.identities()
    for recipient in recipients:
        known(identities, recipient)
    for recipient in recipients:
        backend.change("identities", "/".join(recipient), address="another@wa.gw.msging.net")

    # The newest first: to read what was forgotten is to remember it.
    remembered = [
        known(identities, recipient) == Identity(ADDRESS) for recipient in reversed(recipients)
    ]

    assert remembered == [True, True, True, False]


def test_what_is_forgotten_is_forgotten_by_table_and_memory(backend: Backend) -> None:
    learn(backend)
    identities = backend.identities()
    known(identities)

    identities.invalidate(RECIPIENT)

    assert known(identities) is None
    assert known(backend.identities()) is None
    assert isinstance(identities.lease(RECIPIENT, LEASE), LookUpLease)


def test_to_forget_somebody_unknown_leaves_nothing(backend: Backend) -> None:
    backend.identities().invalidate(RECIPIENT)

    assert backend.item("identities", "/".join(RECIPIENT)) == {}


def test_what_is_erased_is_gone_for_that_bot_and_recipient(backend: Backend) -> None:
    learn(backend)
    learn(backend, recipient=("clinic", RECIPIENT[1]))
    identities = backend.identities()
    assert identities.holds(RECIPIENT)

    for _ in range(2):
        identities.erase(RECIPIENT)

    assert not identities.holds(RECIPIENT)
    assert identities.holds(("clinic", RECIPIENT[1]))
    assert backend.item("identities", "/".join(RECIPIENT)) == {}


def test_a_look_up_that_was_under_way_stores_nothing_of_who_was_erased(backend: Backend) -> None:
    lease = backend.identities().lease(RECIPIENT, LEASE)
    assert isinstance(lease, LookUpLease)
    backend.identities().erase(RECIPIENT)

    backend.identities().store(lease, Identity(ADDRESS))

    assert not backend.identities().holds(RECIPIENT)


def test_that_somebody_was_forgotten_counts_for_all_bots_and_is_not_remembered(
    backend: Backend,
) -> None:
    learn(backend)
    other = ("default", "+5511988887777")
    reader = backend.identities()
    assert reader.read([RECIPIENT], [])[0][RECIPIENT].address == ADDRESS
    backend.identities().mark_forgotten(RECIPIENT[1])

    of_clinic = ("clinic", RECIPIENT[1])
    known, _ = reader.read([RECIPIENT, of_clinic, other], ["default"])

    mark = Identity(None, forgotten_at=backend.clock.now())
    assert known == {RECIPIENT: mark, of_clinic: mark}
    item = backend.item("identities", forgotten_key(RECIPIENT[1]))
    assert item["expires_at"] == round(backend.clock.now() + 15 * DAY)
    assert RECIPIENT[1].removeprefix("+") not in str(item)


def test_a_lease_whose_answer_was_lost_is_a_lease(real: RealOnes, aws: Aws) -> None:
    identities = real.identities(dynamodb=LostAnswers(aws.dynamodb))

    lease = identities.lease(RECIPIENT, LEASE)
    assert isinstance(lease, LookUpLease)
    identities.store(lease, Identity(ADDRESS))

    assert known(real.identities()) == Identity(ADDRESS)


class ShortOfBreath:
    """DynamoDB that reads one key per call, and leaves the others for the next."""

    def __init__(self, dynamodb: Any, *, ever: bool = True) -> None:
        self._dynamodb = dynamodb
        self._ever = ever
        self.calls = 0

    def batch_get_item(self, *, RequestItems: Any) -> Any:  # noqa: N803 - boto3's name
        self.calls += 1
        ((table, wanted),) = RequestItems.items()
        assert len(wanted["Keys"]) <= 100
        first, rest = wanted["Keys"][: int(self._ever)], wanted["Keys"][int(self._ever) :]
        answer: dict[str, Any] = {"Responses": {}}
        if first:
            answer = self._dynamodb.batch_get_item(RequestItems={table: {"Keys": first}})
        return answer | {"UnprocessedKeys": {table: {"Keys": rest}} if rest else {}}


def test_what_dynamodb_leaves_unread_is_read_again_and_then_unknown(
    real: RealOnes, aws: Aws
) -> None:
    recipients = [("default", f"+55319999{number:05}") for number in range(5)]
    for recipient in recipients:
        learn(real, recipient=recipient)
    dynamodb = ShortOfBreath(aws.dynamodb)

    found, states = real.identities(dynamodb=dynamodb).read(recipients[:1], ["default"])

    assert set(found) == set(recipients[:1])
    assert states == {}
    assert dynamodb.calls == 3

    dynamodb = ShortOfBreath(aws.dynamodb)
    found, _ = real.identities(dynamodb=dynamodb).read(recipients[1:3], [])
    assert set(found) == set(recipients[1:2])


def test_who_may_have_been_forgotten_is_not_taken_for_known(real: RealOnes, aws: Aws) -> None:
    """Nothing else would find the mark."""
    recipients = [("default", f"+55319999{number:05}") for number in range(4)]
    dynamodb = ShortOfBreath(aws.dynamodb)

    with pytest.raises(UnreadError):
        real.identities(dynamodb=dynamodb).read(recipients, [])


def test_more_keys_than_dynamodb_takes_at_once(real: RealOnes, aws: Aws) -> None:
    recipients = [("default", f"+55319999{number:05}") for number in range(130)]
    for recipient in (recipients[0], recipients[129]):
        learn(real, recipient=recipient)
    aws.calls.clear()

    found, _ = real.identities().read(recipients, ["default"])

    assert set(found) == {recipients[0], recipients[129]}
    assert [name for name, _ in aws.calls] == ["BatchGetItem"] * 3


# --- The bot's item -------------------------------------------------------------------------------


def reserve(
    backend: Backend, count: int = 1, bot: Bot | None = None, plan: str = "messages"
) -> Reservation:
    reservation = backend.bot_states().reserve(
        bot or a_bot(), plan, count, HORIZON, share=SHARE, probing=False
    )
    assert isinstance(reservation, Reservation)
    return reservation


def state(backend: Backend, bot: str = "default") -> BotState:
    found = backend.identities().read([], [bot])[1].get(bot, BotState())
    assert isinstance(found, BotState)
    return found


def fastest(slots: list[float]) -> int:
    """The most slots in any second."""
    ordered = sorted(slots)
    return max(sum(first <= slot < first + 1 for slot in ordered) for first in ordered)


def test_an_idle_bot_s_slots_start_now_and_are_evenly_spaced(backend: Backend) -> None:
    slots = reserve(backend, 40).slots

    assert len(slots) == 40
    assert slots[0] == pytest.approx(backend.clock.now(), abs=0.001)
    gaps = [later - earlier for earlier, later in pairwise(slots)]
    assert min(gaps) == pytest.approx(1 / (SHARE * 20), rel=0.001)
    assert max(gaps) == pytest.approx(min(gaps), rel=0.001)
    assert fastest(list(slots)) <= SHARE * 20 + 1


@pytest.mark.parametrize("per_second", [0.5, 1, 3, 7, 50, 80, 200, 1000])
def test_every_plan_is_kept(backend: Backend, per_second: float) -> None:
    bot = a_bot(messages_per_second=per_second)
    slots = [slot for _ in range(3) for slot in reserve(backend, 7, bot).slots]

    assert fastest(slots) <= max(1, per_second)
    gaps = [later - earlier for earlier, later in pairwise(slots)]
    assert min(gaps) >= 1 / per_second


def test_a_busy_bot_s_slots_follow_those_that_are_taken(backend: Backend) -> None:
    first, second = reserve(backend, 3).slots, reserve(backend, 3).slots

    assert second[0] - first[-1] == pytest.approx(first[1] - first[0], abs=0.0001)
    assert state(backend).next_message_at == pytest.approx(2 * second[2] - second[1], abs=0.0001)


def test_slots_that_were_missed_are_not_made_up_for(backend: Backend) -> None:
    reserve(backend, 3)
    backend.clock.advance(60)

    slots = reserve(backend, 30).slots

    assert slots[0] == pytest.approx(backend.clock.now(), abs=0.001)
    assert fastest(list(slots)) <= 20


def test_only_slots_within_the_horizon_are_reserved(backend: Backend) -> None:
    bot = a_bot(messages_per_second=1 / SHARE)  # one a second

    assert len(reserve(backend, 10, bot).slots) == 4
    before = backend.item("identities", "bot:default")
    beyond = reserve(backend, 1, bot)

    assert (beyond.slots, beyond.why) == ((), None)
    assert beyond.retry_in == pytest.approx(4, abs=0.01)
    assert backend.item("identities", "bot:default") == before
    backend.clock.advance(2.1)
    slots = reserve(backend, 5, bot).slots
    assert len(slots) == 2
    assert slots[0] == pytest.approx(backend.clock.now() + 1.9, abs=0.01)


def test_slow_plan_has_one_slot_at_a_time(backend: Backend) -> None:
    bot = a_bot(messages_per_second=0.1 / SHARE)  # one in ten seconds

    assert len(reserve(backend, 10, bot).slots) == 1
    assert reserve(backend, 10, bot).retry_in == pytest.approx(10, abs=0.01)


def test_reservation_that_meets_another_looks_again(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another sandbox takes slots between the two looks of this one."""
    bot = a_bot(messages_per_second=1 / SHARE)
    reserve(backend, 1, bot)
    bot_states = backend.bot_states()
    table = bot_states._table
    update, others = table.update, [lambda: reserve(backend, 1, bot)]

    def meets_another(*args: Any) -> Any:
        if "+ :taken" in args[1] and others:
            others.pop()()
        return update(*args)

    monkeypatch.setattr(table, "update", meets_another)
    slots = bot_states.reserve(bot, "messages", 9, HORIZON, share=SHARE).slots

    assert len(slots) == 2
    assert slots[0] == pytest.approx(backend.clock.now() + 2, abs=0.01)


def test_the_plans_and_the_bots_do_not_mix(backend: Backend) -> None:
    slow = a_bot(messages_per_second=0.01)
    assert reserve(backend, 1, slow).slots

    now = pytest.approx(backend.clock.now(), abs=0.001)
    assert reserve(backend, plan="commands").slots[0] == now
    assert reserve(backend, bot=a_bot(name="clinic")).slots[0] == now
    assert reserve(backend).slots == ()


def test_first_throttling_lowers_the_share_of_its_plan(backend: Backend) -> None:
    bot_states, now = backend.bot_states(), backend.clock.now()

    first = [
        bot_states.start_cooldown(a_bot(), "messages", now + seconds) for seconds in (120, 130, 120)
    ]

    assert first == [True, False, False]
    assert state(backend).shares["messages"] == pytest.approx((0.72, now))
    assert "commands" not in state(backend).shares
    assert state(backend).throttled_until == pytest.approx(now + 130, abs=0.001)
    backend.clock.advance(131)
    assert bot_states.start_cooldown(a_bot(), "messages", backend.clock.now() + 120)
    (share, _) = state(backend).shares["messages"]
    assert share == pytest.approx(0.8 * (0.72 + 0.02 * 131 / 3600), abs=1e-5)


def test_controls_are_kept_two_at_a_time(backend: Backend) -> None:
    bot_states, now = backend.bot_states(), backend.clock.now()
    for number, older_than in ((1, now), (2, now + 300), (3, now), (4, now + 900)):
        bot_states.keep_control("default", Control(f"message {number}", now + number), older_than)

    assert [control.message_id for control in state(backend).controls] == ["message 2", "message 4"]
    assert state(backend).controls[1].at == pytest.approx(now + 4, abs=0.001)


def test_history_seen_only_grows(backend: Backend) -> None:
    bot_states, now = backend.bot_states(), backend.clock.now()
    for seconds in (10, 5, 20, 0):
        bot_states.history_shows("default", now + seconds)

    assert state(backend).history_seen == pytest.approx(now + 20, abs=0.001)


def test_number_is_not_down_by_a_small_part_of_what_it_sends(backend: Backend) -> None:
    bot_states = backend.bot_states()
    for number in range(20):
        now = backend.clock.now()
        assert not bot_states.number_in_trouble("default", f"key {number}", now, "not available")
        assert len(reserve(backend, 18).slots) == 18
        backend.clock.advance(1)
    assert state(backend).broken == ""
    for number in range(20, 40):
        bot_states.number_in_trouble(
            "default", f"key {number}", backend.clock.now(), "not available"
        )

    assert state(backend).broken == "not available"


def test_bot_that_never_was_is_not_missing(backend: Backend) -> None:
    bot_states = backend.bot_states()
    assert bot_states.missing("default") == 0
    bot_states.found("default")
    assert backend.item("identities", "bot:default") == {}

    reserve(backend)
    since = bot_states.missing("default")
    backend.clock.advance(60)
    assert (
        bot_states.missing("default") == since == pytest.approx(backend.clock.now() - 60, abs=0.001)
    )
    bot_states.found("default")
    assert state(backend).missing_since == 0


def test_number_is_down_after_five_different_notifications_within_minutes(
    backend: Backend,
) -> None:
    bot_states = backend.bot_states()
    for key in "aabbccdd":
        assert not bot_states.number_in_trouble(
            "default", key, backend.clock.now(), "not available"
        )
    backend.clock.advance(1800)
    for key in "abcd":  # anew
        assert not bot_states.number_in_trouble(
            "default", key, backend.clock.now(), "not available"
        )
    assert state(backend).broken == ""

    now = backend.clock.now()
    for key in "efghi":  # sent before the trouble began, as far as it is known
        assert not bot_states.number_in_trouble("default", key, now - 1, "not available")
    assert bot_states.number_in_trouble("default", "e", now, "not available")

    assert state(backend).broken == "not available"
    assert "down" not in backend.item("identities", "bot:default")


def test_sandboxes_that_reserve_at_once_share_the_plan(backend: Backend) -> None:
    bot = a_bot(messages_per_second=50)
    start = threading.Barrier(6)

    def race(_: int) -> list[float]:
        start.wait()
        return [slot for _ in range(4) for slot in reserve(backend, 3, bot).slots]

    with ThreadPoolExecutor(6) as threads:
        slots = sorted(slot for some in threads.map(race, range(6)) for slot in some)

    assert len(slots) == 72
    gaps = [later - earlier for earlier, later in pairwise(slots)]
    assert min(gaps) >= 1 / 50
    assert max(gaps) == pytest.approx(min(gaps), rel=0.001)


def test_a_shut_bot_is_shut_for_all_sandboxes_and_plans(backend: Backend) -> None:
    backend.bot_states().start_cooldown(a_bot(), "messages", backend.clock.now() + 120)

    assert state(backend).throttled_until == pytest.approx(backend.clock.now() + 120, abs=0.001)
    for plan in ("messages", "commands"):
        refused = reserve(backend, plan=plan)
        assert refused.slots == ()
        assert refused.retry_in == pytest.approx(120, abs=0.001)
    assert reserve(backend, bot=a_bot(name="clinic")).slots

    backend.clock.advance(120)
    assert reserve(backend).slots


def test_a_busy_bot_can_be_shut(backend: Backend) -> None:
    reserve(backend, 3)
    backend.bot_states().start_cooldown(a_bot(), "messages", backend.clock.now() + 120)

    assert reserve(backend).retry_in == pytest.approx(120, abs=0.001)


def test_a_longer_penalty_stays(backend: Backend) -> None:
    now = backend.clock.now()
    for seconds in (60, 120, 30):
        backend.bot_states().start_cooldown(a_bot(), "messages", now + seconds)

    assert state(backend).throttled_until == pytest.approx(now + 120, abs=0.001)


def test_an_open_breaker_lets_only_a_probe_through(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.open_breaker("default", "a wrong key")

    assert state(backend).broken == "a wrong key"
    assert reserve(backend) == Reservation((), None, HoldReason.BREAKER_OPEN)
    assert bot_states.reserve(a_bot(), "messages", 1, HORIZON, share=SHARE, probing=True).slots

    bot_states.close_breaker("default", sent=True)
    assert state(backend).broken == ""
    assert reserve(backend).slots


def test_a_paused_bot_gives_no_slots_to_anybody_until_it_is_resumed(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.pause("default")

    assert state(backend).paused
    assert reserve(backend) == Reservation((), 60, HoldReason.PAUSED)
    assert (
        bot_states.reserve(a_bot(), "commands", 1, HORIZON, share=SHARE, probing=True).slots == ()
    )
    assert reserve(backend, bot=a_bot(name="clinic")).slots

    bot_states.close_breaker("default", sent=True)
    assert state(backend).paused
    bot_states.resume("default")
    assert not state(backend).paused
    assert reserve(backend).slots


def test_one_at_a_time_probes_an_open_breaker(backend: Backend) -> None:
    assert not backend.bot_states().probe("default")
    backend.bot_states().open_breaker("default", "a wrong key")

    assert backend.bot_states().probe("default")
    assert not backend.bot_states().probe("default")
    backend.clock.advance(30)
    assert backend.bot_states().probe("default")


def test_a_breaker_that_opens_again_at_once_is_not_probed_any_sooner(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.open_breaker("default", "a wrong key")
    assert bot_states.probe("default")
    bot_states.close_breaker("default", sent=True)
    bot_states.open_breaker("default", "a wrong key")

    assert not bot_states.probe("default")
    backend.clock.advance(30)
    assert bot_states.probe("default")


def test_a_number_that_is_down_is_tried_seldom_and_closes_with_the_second_answer(
    backend: Backend,
) -> None:
    bot_states = backend.bot_states()
    assert bot_states.probe("default") is False
    bot_states.number_down("default", "payment")
    assert state(backend).broken == "payment"
    backend.clock.advance(599)
    assert not bot_states.probe("default")
    backend.clock.advance(1)
    assert bot_states.probe("default")

    assert not bot_states.close_breaker("default", sent=False)  # BLiP refused: no number was tried
    assert not bot_states.close_breaker("default", sent=True)
    assert not bot_states.close_breaker("default", sent=False)
    assert state(backend).broken == "payment"
    backend.clock.advance(599)
    assert not bot_states.probe("default")
    backend.clock.advance(1)
    assert bot_states.probe("default")
    assert bot_states.close_breaker("default", sent=True)
    assert not state(backend).broken


def test_a_receipt_after_the_first_answer_begins_anew(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.number_down("default", "payment")
    bot_states.close_breaker("default", sent=True)
    bot_states.number_down("default", "payment")

    assert not bot_states.close_breaker("default", sent=True)
    assert state(backend).broken


def test_an_answer_of_a_batch_that_began_before_closes_no_breaker(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.failed("default", ["a"])
    bot_states.answered("default")
    assert state(backend).failing == 0
    bot_states.open_breaker("default", "a wrong key")

    bot_states.answered("default")

    assert state(backend).broken


@pytest.mark.parametrize("how", ["open_breaker", "number_down"])
def test_a_bot_that_is_resumed_works_at_once(backend: Backend, how: str) -> None:
    bot_states = backend.bot_states()
    getattr(bot_states, how)("default", "why")
    bot_states.probe("default")

    bot_states.resume("default")

    assert reserve(backend).slots
    bot_states.open_breaker("default", "a wrong key")
    assert bot_states.probe("default")


def test_five_different_notifications_in_a_row_open_the_breaker(backend: Backend) -> None:
    bot_states = backend.bot_states()

    assert not bot_states.failed("default", ["a", "b"])
    assert not bot_states.failed("default", ["a", "b", "c", "d"])
    assert state(backend).failing == 4
    assert not state(backend).broken
    assert bot_states.failed("default", ["e"])
    assert state(backend).broken

    bot_states.close_breaker("default", sent=True)
    assert state(backend).failing == 0
    assert not bot_states.failed("default", ["f"])


def test_an_open_breaker_counts_no_more(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.open_breaker("default", "a wrong key")

    assert all(bot_states.failed("default", [f"key {number}"]) for number in range(9))

    assert state(backend).failing == 0
    assert state(backend).broken == "a wrong key"


def test_a_number_that_is_down_is_asked_for_its_receipts(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.number_down("default", "payment")

    assert bot_states.reserve(a_bot(), "commands", 1, HORIZON, share=SHARE, asking=True).slots
    assert reserve(backend, plan="commands") == Reservation(
        (), None, HoldReason.BREAKER_OPEN
    )  # nobody is looked up
    bot_states.pause("default")
    assert not bot_states.reserve(a_bot(), "commands", 1, HORIZON, share=SHARE, asking=True).slots


def test_a_reservation_whose_answer_was_lost_costs_slots_and_breaks_no_plan(
    real: RealOnes, aws: Aws
) -> None:
    bot_states = real.bot_states(LostAnswers(aws.dynamodb))

    slots = [
        slot
        for _ in range(4)
        for slot in bot_states.reserve(a_bot(), "messages", 3, 9, share=SHARE).slots
    ]

    assert len(slots) == 12
    assert min(later - earlier for earlier, later in pairwise(slots)) >= 1 / 20


def test_fake_and_real_bot_s_item_cannot_be_told_apart(real: RealOnes) -> None:
    fakes = Fakes()
    rng = random.Random(20311122)
    bot = a_bot(messages_per_second=3, commands_per_second=7)
    for _ in range(90):
        seconds = rng.choice([0, 0, 0.1, 1, 5, 40, 200])
        fakes.clock.advance(seconds)
        real.clock.advance(seconds)
        count, plan = rng.randint(1, 9), rng.choice(["messages", "commands"])
        probing, until = rng.random() < 0.2, fakes.clock.now() + rng.choice([1, 120])
        keys = [rng.choice("abcdefg")]
        moves: list[Callable[[Any], Any]] = [
            lambda states: states.reserve(bot, plan, count, HORIZON, share=SHARE, probing=probing),  # noqa: B023
            lambda states: states.reserve(bot, plan, count, HORIZON, share=SHARE, probing=probing),  # noqa: B023
            lambda states: states.reserve(bot, plan, count, HORIZON, share=SHARE, probing=probing),  # noqa: B023
            lambda states: states.start_cooldown(bot, plan, until),  # noqa: B023
            lambda states: states.failed("default", keys),  # noqa: B023
            lambda states: states.probe("default"),
            lambda states: states.close_breaker("default", sent=True),
            lambda states: states.open_breaker("default", "why"),
            lambda states: states.number_down("default", "why"),
            lambda states: states.number_in_trouble("default", keys[0], until - 120, "why"),  # noqa: B023
            lambda states: states.missing("default"),
            lambda states: states.found("default"),
            lambda states: states.keep_control("default", Control(keys[0], until), until - 130),  # noqa: B023
            lambda states: states.history_shows("default", until),  # noqa: B023
            lambda states: states.answered("default"),
            lambda states: states.pause("default"),
            lambda states: states.resume("default"),
        ]
        move = rng.choices(moves, [4, 4, 4, 1, 3, 2, 3, 1, 1, 2, 1, 1, 2, 2, 1, 1, 2])[0]

        assert move(fakes.bot_states()) == move(real.bot_states())
        assert fakes.item("identities", "bot:default") == real.item("identities", "bot:default")
        assert state(fakes) == state(real)


# --- The secret -----------------------------------------------------------------------------------


def a_secret(**bots: str) -> str:
    return json.dumps({name: {"key": key} for name, key in bots.items()})


def test_the_secret_is_kept_for_five_minutes(backend: Backend) -> None:
    backend.put_secret(a_secret(default=KEY))
    secrets = backend.secrets()
    assert secrets.bots()["default"].key == KEY
    backend.put_secret(a_secret(default=OTHER_KEY))

    backend.clock.advance(5 * MINUTE)
    assert secrets.bots()["default"].key == KEY

    backend.clock.advance(1)
    assert secrets.bots()["default"].key == OTHER_KEY


def test_a_key_that_does_not_work_is_fetched_afresh(backend: Backend) -> None:
    backend.put_secret(a_secret(default=KEY))
    secrets = backend.secrets()
    stale = secrets.bots()["default"]
    backend.put_secret(a_secret(default=OTHER_KEY))

    backend.clock.advance(11)
    fresh = secrets.fresh("default", stale)

    assert fresh.key == OTHER_KEY
    # Who comes a moment later gets the same without another fetch.
    backend.put_secret(a_secret(default=KEY))
    backend.clock.advance(60)
    assert secrets.fresh("default", stale) == fresh


def test_a_bot_that_does_not_work_makes_nobody_fetch_more_often_than_every_ten_seconds(
    backend: Backend,
) -> None:
    backend.put_secret(a_secret(default=KEY))
    secrets = backend.secrets()
    stale = secrets.bots()["default"]
    backend.put_secret(a_secret(default=OTHER_KEY, late=KEY))

    backend.clock.advance(10)
    assert secrets.fresh("default", stale) == stale
    assert secrets.fresh("late", None) is None

    backend.clock.advance(0.1)
    assert secrets.fresh("late", None).key == KEY


def test_while_aws_does_not_answer_the_bots_that_are_known_stay_good(
    real: RealOnes, aws: Aws, caplog: pytest.LogCaptureFixture
) -> None:
    aws.put_bots({"default": {"key": KEY}})
    bots = real.secrets()
    known = bots.bots()
    bot = known["default"]
    assert isinstance(bot, Bot)
    aws.secrets_manager.delete_secret(SecretId=aws.secret, ForceDeleteWithoutRecovery=True)

    real.clock.advance(301)
    assert bots.bots() == known
    assert bots.fresh("default", bot) == bot

    assert "secret not read: the known value stays valid" in caplog.messages
    with pytest.raises(ClientError):
        real.secrets().bots()


def test_a_broken_entry_and_a_broken_secret(backend: Backend) -> None:
    backend.put_secret(json.dumps({"default": {"key": KEY}, "bad": {"key": "REPLACE_ME"}}))
    secrets = backend.secrets()
    bots: Bots = secrets.bots()
    assert isinstance(bots["bad"], InvalidBot)
    assert isinstance(bots["default"], Bot)
    backend.put_secret("not JSON")

    backend.clock.advance(11)
    with pytest.raises(BotsSecretError):
        secrets.fresh("default", bots["default"])


def test_one_thread_fetches_the_secret_for_all(real: RealOnes, aws: Aws) -> None:
    real.put_secret(a_secret(default=KEY))
    secrets = real.secrets()
    stale = secrets.bots()["default"]
    assert isinstance(stale, Bot)
    real.put_secret(a_secret(default=OTHER_KEY))
    real.clock.advance(11)
    aws.calls.clear()
    start = threading.Barrier(8)

    def race(_: int) -> Bot | InvalidBot | None:
        start.wait()
        return secrets.fresh("default", stale)

    with ThreadPoolExecutor(8) as threads:
        fresh = list(threads.map(race, range(8)))

    assert {bot.key for bot in fresh if isinstance(bot, Bot)} == {OTHER_KEY}
    assert [name for name, _ in aws.calls] == ["GetSecretValue"]


# --- Dead letters that are looked at and put back -------------------------------------------------


def lay_down(letters: Any, body: str, **changes: Any) -> None:
    given: dict[str, Any] = {
        "reason": Reason.UNDELIVERED,
        "failure": a_failure(detail="ação", redrives=1),
        "bot": "default",
        "notification_id": "a:1",
        "generation": 3,
    } | changes
    letters.put(body, given.pop("reason"), given.pop("failure"), **given)


def test_a_letter_is_read_with_all_that_was_put_down(backend: Backend) -> None:
    letters = backend.letters()
    lay_down(letters, ' {"any": "thing" }\n')
    failed_at = backend.clock.now()
    backend.clock.advance(HOUR)

    (letter,) = letters.receive(60)

    assert letter == DeadLetter(
        letter_id=letter.letter_id,
        receipt_handle=letter.receipt_handle,
        body=' {"any": "thing" }\n',
        reason="undelivered",
        failed_at=failed_at,
        bot="default",
        notification_id="a:1",
        generation=3,
        redrives=1,
        failure={
            "detail": "ação",
            "template": "order_shipped",
            "phase": "send",
            "attempts": 1,
            "possibly_sent": False,
            "redrives": 1,
        },
    )


def test_what_sqs_has_moved_says_nothing_but_when(backend: Backend) -> None:
    letters = backend.letters()
    backend.moved("a body")

    (letter,) = letters.receive(60)

    assert (letter.body, letter.reason, letter.failure) == ("a body", None, {})
    assert (letter.bot, letter.notification_id, letter.generation) == (None, None, None)
    assert (letter.failed_at, letter.redrives) == (backend.clock.now(), 0)


def test_letters_come_by_ten_and_are_hidden_for_a_time(backend: Backend) -> None:
    letters = backend.letters()
    for number in range(13):
        lay_down(letters, f"letter {number}")

    assert letters.depth()[1] == 0
    first = letters.receive(60)
    assert (len(first), letters.depth()[1]) == (10, 10)
    assert len(letters.receive(60)) == 3
    assert letters.receive(60) == []
    backend.clock.advance(61)
    assert letters.depth()[1] == 0
    assert len(letters.receive(60)) == 10


def test_letters_are_given_back_at_once_or_later(backend: Backend) -> None:
    letters = backend.letters()
    for number in range(25):
        lay_down(letters, f"letter {number}")
    handles = [letter.receipt_handle for _ in range(3) for letter in letters.receive(60)]

    letters.change_visibility(handles[:13], 0)
    letters.change_visibility(handles[13:], 900)

    backend.clock.advance(0.001)  # moto's "from now on" begins after now
    assert letters.depth()[1] == 12
    assert len([letter for _ in range(3) for letter in letters.receive(60)]) == 13
    backend.clock.advance(899)
    assert letters.depth()[1] == 12
    backend.clock.advance(2)
    assert letters.depth()[1] == 0


def test_letters_that_are_done_are_gone_and_no_others(backend: Backend) -> None:
    letters = backend.letters()
    for number in range(25):
        lay_down(letters, f"letter {number}")
    received = [letter for _ in range(3) for letter in letters.receive(60)]

    letters.delete(received[:13])

    backend.clock.advance(61)
    left = {letter.body for _ in range(3) for letter in letters.receive(60)}
    assert left == {letter.body for letter in received[13:]}
    letters.delete([])
    letters.change_visibility([], 0)


def test_letters_are_put_back_as_they_came_and_marked(backend: Backend) -> None:
    letters = backend.letters()
    for number in range(12):
        lay_down(letters, f" letter {number}\n", generation=number or None)
    backend.moved("moved by SQS")
    received = [letter for _ in range(2) for letter in letters.receive(60)]

    assert backend.requests().redrive(received) == received
    assert backend.requests().redrive([]) == []

    assert sorted(backend.requested(), key=str) == sorted(
        [
            ("moved by SQS", None, 1),
            *((f" letter {number}\n", number or None, 2) for number in range(12)),
        ],
        key=str,
    )


def test_letters_are_put_back_into_the_group_of_their_bot(real: RealOnes, aws: Aws) -> None:
    letters = real.letters()
    lay_down(letters, "one", bot="clinic")
    lay_down(letters, "two", bot=None)
    aws.calls.clear()

    real.requests().redrive(letters.receive(60))

    (sent,) = [parameters for name, parameters in aws.calls if name == "SendMessageBatch"]
    assert [entry["MessageGroupId"] for entry in sent["Entries"]] == ["clinic", "default"]


def test_large_letters_are_put_back_by_as_many_as_sqs_takes(real: RealOnes, aws: Aws) -> None:
    letters = real.letters()
    for _ in range(9):
        lay_down(letters, "ç" * 128 * 1024)  # 256 KiB
    received = letters.receive(60)
    aws.calls.clear()

    assert real.requests().redrive(received) == received

    batches = [parameters["Entries"] for name, parameters in aws.calls if name != "ReceiveMessage"]
    assert [len(entries) for entries in batches] == [3, 3, 3]


class PartlyRefusing:
    """SQS that refuses of each batch what an entry says, or the whole of it."""

    def __init__(self, sqs: Any, refused: Callable[[Any], bool], *, whole: bool = False) -> None:
        self._sqs = sqs
        self._refused = refused
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        def call(**parameters: Any) -> Any:
            entries = parameters["Entries"]
            refused = [entry for entry in entries if self._refused(entry)]
            if self._whole and refused:
                raise ClientError({"Error": {"Code": "ServiceUnavailable"}}, name)
            taken = [entry for entry in entries if entry not in refused]
            answer = getattr(self._sqs, name)(**parameters | {"Entries": taken}) if taken else {}
            failed = [{"Id": entry["Id"], "Code": "InternalError"} for entry in refused]
            return answer | {"Failed": failed}

        return call


@pytest.mark.parametrize("whole", [False, True])
def test_letters_that_sqs_does_not_take_are_told_apart(
    real: RealOnes, aws: Aws, whole: bool
) -> None:
    letters = real.letters()
    for number in range(20):
        lay_down(letters, f"letter {number}")
    received = [letter for _ in range(2) for letter in letters.receive(60)]
    sqs: Any = PartlyRefusing(
        aws.sqs, lambda entry: entry["MessageBody"] == "letter 3", whole=whole
    )

    taken = RequestsQueue(sqs, aws.requests_url).redrive(received)

    lost = 10 if whole else 1
    assert len(taken) == 20 - lost
    assert {letter.body for letter in taken} == {body for body, _, _ in real.requested()}


@pytest.mark.parametrize("whole", [False, True])
def test_what_cannot_be_given_back_or_deleted_is_seen_again_anyway(
    real: RealOnes, aws: Aws, whole: bool
) -> None:
    letters = real.letters()
    lay_down(letters, "one")
    (letter,) = letters.receive(60)
    sqs: Any = PartlyRefusing(aws.sqs, lambda _: True, whole=whole)
    failing = DeadLettersQueue(sqs, aws.dead_letters_url, real.clock.now)

    failing.change_visibility([letter.receipt_handle], 0)
    failing.delete([letter])

    real.clock.advance(61)
    assert [again.body for again in letters.receive(60)] == ["one"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"reason": "", "failed_at": "yesterday", "failure": "{"},
        {"failed_at": "0001-01-01T00:00:00", "failure": "[]"},
        {"failure": '{"redrives": "2"}', "generation": "first"},
        {"failure": "[" * 3000},
        {"failure": '{"redrives": true}', "failed_at": ""},
    ],
)
def test_what_others_have_put_there_does_no_harm(
    real: RealOnes, aws: Aws, attributes: dict[str, str]
) -> None:
    letters = real.letters()
    written: Any = {
        name: {"DataType": "String", "StringValue": value or "x"}
        for name, value in attributes.items()
    }
    written["picture"] = {"DataType": "Binary", "BinaryValue": b"\xff"}
    aws.sqs.send_message(
        QueueUrl=aws.dead_letters_url, MessageBody="a body", MessageAttributes=written
    )

    (letter,) = letters.receive(60)

    assert (letter.body, letter.generation, letter.redrives) == ("a body", None, 0)
    assert letter.failed_at <= real.clock.now()
    assert real.requests().redrive([letter]) == [letter]


def test_what_sqs_has_moved_after_a_redrive_counts_on(real: RealOnes, aws: Aws) -> None:
    letters = real.letters()
    count: Any = {"DataType": "Number", "StringValue": "2"}
    aws.sqs.send_message(
        QueueUrl=aws.dead_letters_url,
        MessageBody="a body",
        MessageAttributes={"redrives": count, "generation": count},
    )

    (letter,) = letters.receive(60)

    assert (letter.reason, letter.generation, letter.redrives) == (None, 2, 2)


# --- The queues (the real ones only) --------------------------------------------------------------


def a_record(**changes: Any) -> dict[str, Any]:
    return {
        "messageId": "record",
        "receiptHandle": "handle",
        "body": "body",
        "attributes": {"SentTimestamp": "1800000000123", "ApproximateReceiveCount": "3"},
        "messageAttributes": {},
    } | changes


def test_a_record_is_read_as_lambda_gives_it() -> None:
    attributes = {
        "generation": {"stringValue": "4", "dataType": "Number"},
        "redrives": {"stringValue": "2", "dataType": "Number"},
    }

    assert queued_request(a_record(messageAttributes=attributes)) == QueuedRequest(
        record_id="record",
        receipt_handle="handle",
        body="body",
        published_at=1_800_000_000.123,
        generation=4,
        redrives=2,
        receive_count=3,
    )
    bare = queued_request(a_record())
    assert (bare.generation, bare.redrives) == (None, 0)


@pytest.mark.parametrize(
    "attribute",
    [
        {"stringValue": "", "dataType": "String"},
        {"stringValue": "one", "dataType": "String"},
        {"stringValue": "-1", "dataType": "Number"},
        {"stringValue": "1.5", "dataType": "Number"},
        {"stringValue": "1e3", "dataType": "Number"},
        {"stringValue": "9" * 400, "dataType": "Number"},
        {"stringValue": "²", "dataType": "String"},
        {"stringValue": "٣", "dataType": "String"},
        {"stringValue": None, "dataType": "String"},
        {"binaryValue": "MQ==", "dataType": "Binary"},
    ],
)
def test_what_a_producer_writes_into_our_attributes_does_no_harm(attribute: Any) -> None:
    queued = queued_request(
        a_record(messageAttributes={"generation": attribute, "redrives": attribute})
    )

    assert (queued.generation, queued.redrives) == (None, 0)


def test_requests_are_hidden_for_as_long_as_they_wait(aws: Aws) -> None:
    requests = RequestsQueue(aws.sqs, aws.requests_url)
    for number in range(23):
        aws.sqs.send_message(QueueUrl=aws.requests_url, MessageBody=f"request {number}")
    queued = []
    while messages := aws.sqs.receive_message(
        QueueUrl=aws.requests_url, MaxNumberOfMessages=10
    ).get("Messages"):
        queued += [
            QueuedRequest(message["MessageId"], message["ReceiptHandle"], message["Body"], 0)
            for message in messages
        ]
    waits = [0, -3, 0.4, 0.6, 899.5, 21_600, 99_999, float(10**12), *[7.0] * 15]
    aws.calls.clear()

    requests.change_visibility(zip(queued, waits, strict=True))

    assert [name for name, _ in aws.calls] == ["ChangeMessageVisibilityBatch"] * 3
    hidden = [
        entry["VisibilityTimeout"] for _, parameters in aws.calls for entry in parameters["Entries"]
    ]
    assert hidden == [0, 0, 0, 1, 900, 21_600, 21_600, 21_600, *[7] * 15]
    visible = aws.sqs.receive_message(QueueUrl=aws.requests_url, MaxNumberOfMessages=10)
    assert len(visible["Messages"]) == 3


def test_nothing_to_hide_is_no_call(aws: Aws) -> None:
    aws.calls.clear()

    RequestsQueue(aws.sqs, aws.requests_url).change_visibility([])

    assert aws.calls == []


def test_what_cannot_be_hidden_comes_back_anyway(aws: Aws) -> None:
    unknown = QueuedRequest("record", "no handle of this queue", "body", 0)
    RequestsQueue(aws.sqs, aws.requests_url).change_visibility([(unknown, 5)])

    aws.sqs.delete_queue(QueueUrl=aws.requests_url)
    RequestsQueue(aws.sqs, aws.requests_url).change_visibility([(unknown, 5)])


def test_a_request_is_put_back_to_be_the_next_generation(aws: Aws) -> None:
    RequestsQueue(aws.sqs, aws.requests_url).enqueue_next_generation(
        "the body", bot="default", generation=2, redrives=1, delay_seconds=0
    )

    (message,) = aws.sqs.receive_message(QueueUrl=aws.requests_url, MessageAttributeNames=["All"])[
        "Messages"
    ]
    assert message["Body"] == "the body"
    assert message["MessageAttributes"]["generation"]["StringValue"] == "2"
    assert message["MessageAttributes"]["redrives"]["StringValue"] == "1"


def test_receipts_are_put_together_by_number_and_size(aws: Aws) -> None:
    url = aws.sqs.create_queue(QueueName="receipts")["QueueUrl"]
    queue = ReceiptsQueue(aws.sqs, url)
    aws.calls.clear()

    envelopes = [{"id": str(number)} for number in range(25)] + [
        {"id": str(number), "text": "x" * 300_000} for number in range(25, 31)
    ]
    assert queue.put_all(envelopes) == set()

    sizes = [len(call["Entries"]) for name, call in aws.calls if name == "SendMessageBatch"]
    assert sizes == [10, 10, 8, 3]
    found = []
    while messages := aws.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        found += [json.loads(message["Body"])["id"] for message in messages]
    assert sorted(found, key=int) == [str(number) for number in range(31)]


def test_receipts_that_sqs_refuses_are_named_by_position(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = aws.sqs.create_queue(QueueName="receipts")["QueueUrl"]

    def send(**call: Any) -> Any:
        failed = [entry for entry in call["Entries"] if entry["Id"] in {"3", "12"}]
        return {"Failed": [{"Id": entry["Id"], "Code": "InternalError"} for entry in failed]}

    monkeypatch.setattr(aws.sqs, "send_message_batch", send)

    assert ReceiptsQueue(aws.sqs, url).put_all([{"id": "1"}] * 15) == {3, 12}


def put_letter(aws: Aws, clock: Clock, failure: FailureDetails, **named: Any) -> dict[str, Any]:
    names = {"bot": None, "notification_id": None, "generation": None} | named
    letters = DeadLettersQueue(aws.sqs, aws.dead_letters_url, clock.now)
    letters.put(' {"any": "thing" }\n', Reason.INVALID, failure, **names)
    (letter,) = aws.dead_letters()
    return letter


def test_a_dead_letter_says_what_is_known(aws: Aws) -> None:
    failure = a_failure(detail="ação", phase="contract", attempts=0, fields=())

    letter = put_letter(
        aws, Clock(1_800_000_000.5), failure, bot="default", notification_id="a:1", generation=3
    )

    assert letter == {
        "body": ' {"any": "thing" }\n',
        "reason": "invalid",
        "bot": "default",
        "notification_id": "a:1",
        "generation": "3",
        "failed_at": "2027-01-15T08:00:00.500+00:00",
        "failure": {
            "detail": "ação",
            "template": "order_shipped",
            "phase": "contract",
            "attempts": 0,
            "possibly_sent": False,
            "redrives": 0,
            "fields": [],
        },
    }


def test_a_dead_letter_without_names_has_none(aws: Aws) -> None:
    assert set(put_letter(aws, Clock(), a_failure())) == {"body", "reason", "failed_at", "failure"}


def test_a_failure_is_short_and_ascii_however_much_is_broken(aws: Aws) -> None:
    broken = tuple(FieldError(f"template.body[{n}]" + "ç" * 60, "ã" * 200) for n in range(20))

    put_letter(aws, Clock(), a_failure(detail="é" * 100, fields=broken, template="a" * 512))

    (parameters,) = [parameters for name, parameters in aws.calls if name == "SendMessage"]
    text = parameters["MessageAttributes"]["failure"]["StringValue"]
    assert text.isascii()
    assert len(text) <= 4096
    told = json.loads(text)
    kept = len(told["fields"])
    assert told["fields"] == [asdict(one) for one in broken[:kept]]
    assert kept
    assert told["fields_left_out"] == 20 - kept


def test_boto3_s_own_client_is_what_the_adapters_get(aws: Aws) -> None:
    """The recorder that these tests count calls with sees the function's clients, too."""
    aws.calls.clear()
    boto3.client("sqs").list_queues()

    assert [name for name, _ in aws.calls] == ["ListQueues"]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever an adapter logs, it is no personal data."""
    yield
    for record in caplog.records:
        assert "99999888" not in str(record.__dict__)
