"""The ledger: unknown outcomes, receipts, cancelling, erasing, and lost answers."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import (
    Change,
    Claim,
    ClaimLost,
    LedgerEntry,
    NotificationDetails,
    RecipientMatch,
)
from notifier.domain.notification import Notification
from notifier.domain.receipts import Receipt
from notifier.domain.status import Status
from tests.integration.aws.backends import (
    DAY,
    LEASE,
    Backend,
    Fakes,
    LostAnswers,
    RealOnes,
    bring_to,
    claim,
    claimed,
    entry,
    of_generation,
)
from tests.integration.conftest import Aws
from tests.support.builders import a_notification

# --- Unknown outcomes and receipts ----------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.UNKNOWN, Status.SENDING])
def test_one_sandbox_at_a_time_claims_an_unknown_outcome(backend: Backend, status: Status) -> None:
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


def test_unknown_outcome_marked_as_not_sent_may_be_claimed_again(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    for denials in (0, 1):
        bring = claimed(backend, notification, Status.SENDING)
        assert bring.denials == denials
        ledger.mark_unknown(bring)
        question = ledger.claim_unknown(ledger.read(notification.key), backend.clock.now() + LEASE)
        ledger.mark_not_sent(question)

    assert entry(backend, notification)["denials"] == 2


@pytest.mark.parametrize("status", [Status.SENT, Status.RETRYING, Status.FAILED, Status.CLAIMED])
def test_only_unknown_outcomes_are_claimed_as_unknown(backend: Backend, status: Status) -> None:
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


def test_delivery_of_an_older_generation_marks_the_notification_received(backend: Backend) -> None:
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


def test_receipt_without_an_entry_writes_nothing(backend: Backend) -> None:
    for status in (Status.ACCEPTED, Status.RECEIVED):
        assert backend.ledger().advance(Receipt("foreign", 1, status)) == (False, None)
    assert not backend.ledger().fail(Receipt("foreign", 1, Status.FAILED), Reason.UNDELIVERED)
    assert not backend.ledger().wait("foreign", 1, 0, "rate limited", None)
    assert backend.item("ledger", "foreign") == {}


def test_failed_receipt_ends_its_own_generation(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.DISPATCHED)
    failed = Receipt(notification.key, 1, Status.FAILED, code=131056)

    assert not ledger.fail(replace(failed, generation=2), Reason.UNDELIVERED)
    assert ledger.fail(failed, Reason.UNDELIVERED)
    assert not ledger.fail(failed, Reason.UNDELIVERED)

    item = entry(backend, notification)
    assert (item["status"], item["reason"], item["code"]) == ("failed", "undelivered", 131056)


# --- Cancelling and reading -----------------------------------------------------------------------


def cancel(backend: Backend, notification: Notification) -> NotificationDetails:
    account = backend.ledger().cancel(notification.request.bot, notification.request.id)
    assert isinstance(account, NotificationDetails)
    return account


def test_request_that_has_not_arrived_is_cancelled_in_advance(backend: Backend) -> None:
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


def test_cancellation_in_advance_is_completed_by_its_request(
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


def test_only_a_cancelled_entry_is_completed(backend: Backend) -> None:
    notification, other = a_notification(), a_notification(id="order-2")
    bring_to(backend, notification, Status.SENT)
    sent = entry(backend, notification)

    for each in (notification, other):
        backend.ledger().complete_cancelled(
            replace(each, request=a_notification(metadata={"a": "b"}).request)
        )

    assert entry(backend, notification) == sent
    assert entry(backend, other) == {}


def test_retrying_request_is_cancelled(backend: Backend) -> None:
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


def test_abandoned_request_is_cancelled_and_its_claim_sends_nothing(
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


def test_waiting_request_is_cancelled(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.WAITING)

    account = cancel(backend, notification)

    assert (account.status, account.reason, account.code) == (Status.CANCELLED, None, None)
    assert account.wakes_at is None
    assert not entry(backend, notification).keys() & {"wake_shard", "wake_at", "waits"}
    found = claim(backend, of_generation(notification, 1))
    assert isinstance(found, LedgerEntry)
    assert found.status is Status.CANCELLED


@pytest.mark.parametrize(
    "status",
    sorted(set(Status) - {Status.RETRYING, Status.CLAIMED, Status.WAITING, Status.CANCELLED}),
)
def test_sent_unknown_or_final_request_is_not_cancelled(backend: Backend, status: Status) -> None:
    notification = a_notification()
    bring_to(backend, notification, status)
    before = entry(backend, notification)
    backend.clock.advance(LEASE + 1)

    assert cancel(backend, notification).status is status
    assert entry(backend, notification) == before


def test_second_cancellation_changes_nothing(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.RETRYING)
    once = cancel(backend, notification)
    backend.clock.advance(DAY)

    assert cancel(backend, notification) == once


@pytest.mark.parametrize("in_advance", [True, False])
@pytest.mark.parametrize("generation", [None, 0, 1, 2])
@pytest.mark.parametrize("days", [0, 44, 46])
def test_cancelled_request_cannot_be_claimed(
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


def test_expired_entry_is_cancelled_in_advance(backend: Backend) -> None:
    notification, never_seen = a_notification(metadata={"a": "b"}), a_notification(id="order-2")
    bring_to(backend, notification, Status.CONSUMED)
    backend.change("ledger", notification.key, late=[["accepted", 1, 0, None]], waits=["x"])
    backend.clock.advance(46 * DAY)

    assert cancel(backend, notification).status is Status.CANCELLED

    # The earlier entry is another notification's and must not be published.
    cancel(backend, never_seen)
    names = {"key": notification.key, "id": "order-1"}
    assert entry(backend, notification) == entry(backend, never_seen) | names


def test_receipt_of_a_cancelled_request_marks_it_received(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.RETRYING)
    cancel(backend, notification)

    for status in (Status.ACCEPTED, Status.DISPATCHED, Status.FAILED):
        moved, standing = ledger.advance(Receipt(notification.key, 1, status))
        assert (moved, standing.status) == (False, Status.CANCELLED)
    moved, _ = ledger.advance(Receipt(notification.key, 1, Status.RECEIVED))
    assert moved
    assert entry(backend, notification)["status"] == "received"


def test_details_hold_no_number_and_no_parameter(backend: Backend) -> None:
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


def test_unknown_and_expired_entries_have_no_details(backend: Backend) -> None:
    ledger = backend.ledger()
    assert ledger.details("default", "order-1") is None
    bring_to(backend, a_notification(), Status.SENT)
    assert ledger.details("clinic", "order-1") is None
    backend.clock.advance(45 * DAY - 1)
    assert ledger.details("default", "order-1") is not None
    backend.clock.advance(1)
    assert ledger.details("default", "order-1") is None


# --- Erasing --------------------------------------------------------------------------------------


def test_entries_of_a_recipient_are_found_by_its_last_digits(backend: Backend) -> None:
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
def test_erased_entry_leaves_a_tombstone_only(backend: Backend, status: Status) -> None:
    notification, ledger = a_notification(metadata={"name": "Maria"}), backend.ledger()
    bring_to(backend, notification, status)
    backend.change("ledger", notification.key, waits=["x"], poll_bot="default", poll_at=1)
    backend.change("ledger", notification.key, wake_shard="a", wake_at=1)
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
    assert not ledger.fail(failed, Reason.UNDELIVERED)
    assert not ledger.wait(notification.key, 1, 0, "rate limited", None)
    assert ledger.matches("+5531999998888", None).matches == []
    ledger.complete_cancelled(notification)
    assert entry(backend, notification) == tombstone
    found = claim(backend, of_generation(notification, 1))
    assert isinstance(found, LedgerEntry)
    assert (found.status, found.forgotten) == (Status.CANCELLED, True)


@pytest.mark.parametrize(
    "settle", ["mark_sent", "mark_unknown", "release", "mark_failed", "mark_not_sent"]
)
def test_sandbox_working_on_an_erased_entry_writes_nothing_back(
    backend: Backend, settle: str
) -> None:
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


def test_erasing_a_missing_entry_leaves_nothing(backend: Backend) -> None:
    backend.ledger().erase("nothing")

    assert backend.item("ledger", "nothing") == {}


# --- Side by side ---------------------------------------------------------------------------------


MOVES = ["question", "advance", "fail", "wait", "woken", "start", "sent", "unknown", "release"]
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
            return ledger.fail(receipt, Reason.UNDELIVERED)
        case "wait":
            kind = "rate limited"
            return ledger.wait(receipt.key, receipt.generation, until, kind, receipt.code)
        case "woken":
            entries, _ = ledger.read_waiting([notification.key])
            return [ledger.woken(entry) for entry in entries]
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


def test_simulated_and_moto_ledger_agree(real: RealOnes) -> None:
    """Random stories, the same for both: every answer and every item is compared."""
    fakes = Fakes()
    rng = random.Random(20311147)
    contents: list[dict[str, Any]] = [{"id": "a"}, {"id": "a", "to": "+5531988887777"}, {"id": "b"}]
    claims: list[tuple[Claim, Claim]] = []
    seen: Counter[str] = Counter()

    for step in range(300):
        seconds = rng.choice([0, 0, 0.5, 1, 31, 100, 86_400.25, 20 * DAY])
        fakes.clock.advance(seconds)
        real.clock.advance(seconds)
        until = fakes.clock.now() + rng.choice([0.5, LEASE])
        generation = rng.choice([None, None, 1, 2])
        content = rng.choice(contents)
        # Cancelled or erased entries stay so: others take their place.
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

    # The stories differed.
    assert seen["claim: Claim"] > 5
    assert seen["claim: LedgerEntry"] > 5
    assert seen["start: str"] > 2
    assert seen["question: Claim"] > 0
    assert seen["cancel: NotificationDetails"] > 2
    assert seen["completed"] > 0


# --- Lost answers ---------------------------------------------------------------------------------


def test_claim_with_a_lost_answer_is_a_claim(real: RealOnes, aws: Aws) -> None:
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


def test_retry_with_a_lost_answer_counts_once(real: RealOnes, aws: Aws) -> None:
    notification = a_notification()
    ledger = real.ledger(LostAnswers(aws.dynamodb))
    for attempts in (1, 2, 3):
        taken = ledger.claim(notification, Status.SENDING, real.clock.now() + LEASE)
        assert isinstance(taken, Claim)
        assert taken.attempts == attempts
        ledger.release(taken, attempted=True)


def test_release_with_a_lost_answer_is_one_release(real: RealOnes, aws: Aws) -> None:
    notification = a_notification()
    ledger = real.ledger(LostAnswers(aws.dynamodb))
    taken = ledger.claim(notification, Status.SENDING, real.clock.now() + LEASE)
    assert isinstance(taken, Claim)

    ledger.release(taken, attempted=False)

    assert entry(real, notification)["attempts"] == 0


def test_other_dynamodb_errors_are_raised(real: RealOnes, aws: Aws) -> None:
    aws.dynamodb.delete_table(TableName="ledger")

    with pytest.raises(ClientError, match="ResourceNotFound"):
        real.ledger().claim(a_notification(), Status.CLAIMED, 0)
