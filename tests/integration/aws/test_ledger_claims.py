"""The ledger: the claim, and what happens under it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import (
    Claim,
    ClaimLost,
    LedgerEntry,
)
from notifier.domain.notification import Notification
from notifier.domain.receipts import Receipt
from notifier.domain.status import SENT_OR_LATER, STARTS_BY_GENERATION, Status
from tests.integration.aws.backends import (
    DAY,
    LEASE,
    Backend,
    bring_to,
    claim,
    claimed,
    entry,
    of_generation,
)
from tests.support.builders import a_notification

# --- The claim ------------------------------------------------------------------------------------


def test_unknown_request_is_claimed(backend: Backend) -> None:
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
        "category": None,
        "recipient": "…8888",
        "metadata": {"order": "981"},
        "correlation_id": None,
        "token": for_sending.token,
        "lease_until": round((now + LEASE) * 1000),
        "created_at": round(now * 1000),
        "updated_at": round(now * 1000),
        "expires_at": round(now + 45 * DAY),
    }


def test_retrying_request_is_claimed_and_counted(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.RETRYING)

    again = claimed(backend, notification)

    assert (again.generation, again.attempts) == (1, 2)


def test_claim_released_without_an_attempt_counts_none(backend: Backend) -> None:
    notification = a_notification()
    backend.ledger().release(claimed(backend, notification), attempted=False)

    assert claimed(backend, notification).attempts == 1


def test_claim_with_an_expired_lease_is_taken_over(backend: Backend) -> None:
    notification = a_notification()
    first = claimed(backend, notification)

    backend.clock.advance(LEASE + 0.1)
    second = claimed(backend, notification)

    assert second.token != first.token
    assert entry(backend, notification)["token"] == second.token


@pytest.mark.parametrize("status", [Status.CLAIMED, Status.SENDING])
def test_live_claim_is_left_alone(backend: Backend, status: Status) -> None:
    notification = a_notification()
    bring_to(backend, notification, status)
    before, ends = entry(backend, notification), backend.clock.now() + LEASE

    backend.clock.advance(LEASE)
    found = claim(backend, notification)

    assert isinstance(found, LedgerEntry)
    assert found.status is status
    assert found.lease_until == pytest.approx(ends, abs=0.001)
    assert entry(backend, notification) == before


def test_expired_lease_during_a_send_is_never_claimed_again(
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


def test_unknown_outcome_is_never_claimed_again(backend: Backend) -> None:
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


def test_accepted_message_is_a_duplicate_even_for_a_redrive(backend: Backend) -> None:
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


def test_final_request_is_a_duplicate_for_all_but_its_own_redrive(backend: Backend) -> None:
    for status in sorted(STARTS_BY_GENERATION):
        notification = a_notification(id=status)
        bring_to(backend, notification, status)
        before = entry(backend, notification)

        for generation in (None, 0, 2, 7):
            found = claim(backend, of_generation(notification, generation))

            assert isinstance(found, LedgerEntry)
            assert (found.status, found.generation) == (status, 1)
            assert entry(backend, notification) == before


@pytest.mark.parametrize("status", sorted(STARTS_BY_GENERATION))
def test_redrive_of_a_final_request_is_the_next_generation(
    backend: Backend, status: Status
) -> None:
    notification = a_notification()
    bring_to(backend, notification, status)
    backend.clock.advance(DAY)

    again = claimed(backend, of_generation(notification, 1))

    assert (again.generation, again.attempts) == (2, 1)
    item = entry(backend, notification)
    assert item["generation"] == 2
    assert not {"reason", "code", "in_flight_until", "denials", "wake_shard", "wake_at"} & set(item)
    # A row of waits ends with a dead letter only.
    assert ("waits" in item) == (status is Status.WAITING)
    assert item["expires_at"] == round(backend.clock.now() + 45 * DAY)
    assert item["created_at"] == round((backend.clock.now() - DAY) * 1000)


def test_redrive_may_bring_other_content(backend: Backend) -> None:
    notification = a_notification()
    fixed = of_generation(a_notification(to="+5531988887777"), 1)
    bring_to(backend, notification, Status.REJECTED)

    assert claimed(backend, fixed).generation == 2

    item = entry(backend, notification)
    assert item["content_hash"] == fixed.content_hash != notification.content_hash
    assert item["request"] == fixed.queued.body
    assert item["recipient"] == "…7777"


def test_redrive_that_died_half_way_continues_in_its_generation(backend: Backend) -> None:
    notification = a_notification()
    redriven = of_generation(notification, 1)
    bring_to(backend, notification, Status.FAILED)
    claimed(backend, redriven)

    backend.clock.advance(LEASE + 1)

    assert claimed(backend, redriven).generation == 2


def test_redrive_that_ended_again_is_a_duplicate(backend: Backend) -> None:
    notification = a_notification()
    redriven = of_generation(notification, 1)
    bring_to(backend, notification, Status.FAILED)
    backend.ledger().mark_failed(claimed(backend, redriven), Status.FAILED, Reason.REJECTED, None)

    found = claim(backend, redriven)

    assert isinstance(found, LedgerEntry)
    assert (found.status, found.generation) == (Status.FAILED, 2)


def test_redrive_without_an_entry_continues_the_count_of_generations(backend: Backend) -> None:
    """Its message id must be another than that of the generation that failed."""
    assert claimed(backend, of_generation(a_notification(), 3)).generation == 4


def test_other_content_under_the_same_id_is_a_conflict(backend: Backend) -> None:
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
def test_id_is_free_after_its_time_to_live(
    backend: Backend, asked: int | None, generation: int
) -> None:
    """DynamoDB's sweep comes up to two days late: the condition itself looks at the clock."""
    old_receipt = ["accepted", 1, 0, None]
    for status in sorted(set(Status) - {Status.CANCELLED}):
        before = a_notification(id=status)
        bring_to(backend, before, status)
        backend.change("ledger", before.key, late=[old_receipt], waits=["x"])
    backend.clock.advance(45 * DAY)
    for status in sorted(set(Status) - {Status.CANCELLED}):
        other = of_generation(a_notification(id=status, to="+5531988887777"), asked)

        again = claimed(backend, other)

        assert (again.generation, again.attempts) == (generation, 1), status
        item = entry(backend, other)
        assert item["content_hash"] == other.content_hash
        assert item["expires_at"] == round(backend.clock.now() + 45 * DAY)
        # What was before is another notification's.
        assert not {"timeline", "late", "waits", "wake_shard", "wake_at"} & set(item)
        assert item["created_at"] == item["updated_at"]


@pytest.mark.parametrize("status", [Status.RETRYING, Status.CLAIMED])
def test_same_content_starts_again_after_its_time_to_live(backend: Backend, status: Status) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.FAILED)
    redriven = claimed(backend, of_generation(notification, 1))
    if status is Status.RETRYING:
        backend.ledger().release(redriven, attempted=True)
    assert entry(backend, notification)["generation"] == 2

    backend.clock.advance(45 * DAY)
    again = claimed(backend, notification)

    assert (again.generation, again.attempts) == (1, 1)


def test_id_is_taken_until_its_time_to_live(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.SENT)

    backend.clock.advance(45 * DAY - 1)

    assert isinstance(claim(backend, notification), LedgerEntry)


def test_retry_does_not_extend_the_time_to_live(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.RETRYING)
    expires_at = entry(backend, notification)["expires_at"]

    backend.clock.advance(DAY)
    claimed(backend, notification)

    assert entry(backend, notification)["expires_at"] == expires_at


def test_same_id_of_another_bot_is_another_notification(backend: Backend) -> None:
    claimed(backend, a_notification(bot="default"))

    assert claimed(backend, a_notification(bot="clinic")).generation == 1


@pytest.mark.parametrize("standing", [None, Status.RETRYING, Status.FAILED])
def test_one_of_many_simultaneous_claims_succeeds(
    backend: Backend, standing: Status | None
) -> None:
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


# --- Under a claim --------------------------------------------------------------------------------


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
def test_lost_claim_cannot_start_sending(backend: Backend, how: str) -> None:
    notification = a_notification()
    taken = claimed(backend, notification)
    lose(backend, notification, how)
    before = entry(backend, notification)

    with pytest.raises(ClaimLost):
        backend.ledger().start_sending(taken, backend.clock.now() + LEASE)

    assert entry(backend, notification) == before


@pytest.mark.parametrize("how", LOSSES)
def test_lost_claim_marks_nothing(backend: Backend, how: str) -> None:
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


def test_missing_entry_cannot_be_marked(backend: Backend) -> None:
    """A ledger entry that was erased stays erased."""
    taken = replace(claimed(backend, a_notification()), key="another")
    ledger = backend.ledger()

    ledger.mark_sent(taken, None)
    ledger.release(taken, attempted=True)
    ledger.mark_failed(taken, Status.FAILED, Reason.REJECTED, 21)
    with pytest.raises(ClaimLost):
        ledger.start_sending(taken, backend.clock.now())

    assert backend.item("ledger", "another") == {}


def test_mark_sent_ends_the_claim(backend: Backend) -> None:
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


def test_sent_notification_of_a_polled_bot_is_due_for_polling(backend: Backend) -> None:
    notification = a_notification()
    now = backend.clock.now()

    backend.ledger().mark_sent(claimed(backend, notification, Status.SENDING), now + 300)

    item = entry(backend, notification)
    assert (item["poll_bot"], item["poll_at"]) == ("default", round((now + 300) * 1000))


def test_mark_sent_succeeds_without_the_claim(backend: Backend) -> None:
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
def test_earlier_receipt_is_kept_by_mark_sent(backend: Backend, status: Status) -> None:
    notification = a_notification()
    taken = claimed(backend, notification, Status.SENDING)
    moved, standing = backend.ledger().advance(Receipt(notification.key, 1, status))
    assert (moved, standing.status) == (True, status)
    before = entry(backend, notification)

    backend.ledger().mark_sent(taken, None)

    assert entry(backend, notification) == before


def test_answer_about_an_older_generation_changes_nothing(backend: Backend) -> None:
    notification = a_notification()
    first = claimed(backend, notification, Status.SENDING)
    backend.ledger().mark_failed(first, Status.FAILED, Reason.REJECTED, 21)
    claimed(backend, of_generation(notification, 1), Status.SENDING)
    before = entry(backend, notification)

    backend.ledger().mark_sent(first, None)

    assert entry(backend, notification) == before


def test_mark_unknown_keeps_the_end_of_the_send(backend: Backend) -> None:
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
def test_mark_failed_keeps_the_reason(
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


def test_marking_twice_changes_nothing(backend: Backend) -> None:
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


def test_unknown_request_has_no_entry(backend: Backend) -> None:
    assert backend.ledger().read("nothing") is None
