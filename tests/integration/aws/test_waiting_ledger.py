"""The ledger: a next generation that waits, and what finds it when its time has come."""

import pytest

from notifier.domain.ledger_entries import Due
from notifier.domain.receipts import Receipt
from notifier.domain.status import STARTS_BY_GENERATION, Status, before
from tests.integration.aws.backends import (
    DAY,
    HOUR,
    Backend,
    Fakes,
    bring_to,
    claimed,
    entry,
    of_generation,
)
from tests.support.builders import a_notification

CAPPED = "recipient capped"


def test_wait_is_one_write_that_ends_the_claim_and_the_questions(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    ledger.mark_sent(claimed(backend, notification, Status.SENDING), backend.clock.now() + 300)
    sent = entry(backend, notification)
    backend.clock.advance(5)
    now, until = backend.clock.now(), backend.clock.now() + DAY

    assert ledger.wait(notification.key, 1, until, CAPPED, 131_049)

    questions = {"poll_bot", "poll_at", "poll_since"}
    assert questions <= sent.keys()
    kept = {name: sent[name] for name in sent.keys() - questions}
    assert entry(backend, notification) == kept | {
        "status": "waiting",
        "code": 131_049,
        "timeline": [*sent["timeline"], ["waiting", 1, round(now * 1000), None]],
        "updated_at": round(now * 1000),
        "waits": [CAPPED],
        "wake_shard": notification.key[0],
        "wake_at": round(until * 1000),
    }
    # Twice is once, and another generation is not meant.
    assert not ledger.wait(notification.key, 1, until + 1, CAPPED, 131_049)
    assert not ledger.wait(notification.key, 2, until, CAPPED, 131_049)


@pytest.mark.parametrize("status", sorted(Status))
def test_only_what_has_not_ended_is_put_to_wait(backend: Backend, status: Status) -> None:
    notification = a_notification()
    bring_to(backend, notification, status)
    was = entry(backend, notification)

    moved = backend.ledger().wait(notification.key, 1, backend.clock.now() + DAY, CAPPED, None)

    assert moved is (status in before(Status.WAITING))
    assert (entry(backend, notification) == was) is not moved


def test_waiting_entry_says_from_when_until_when(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.SENT)
    backend.change("ledger", notification.key, category="MARKETING")
    since, until = backend.clock.now() + 60, backend.clock.now() + DAY
    backend.clock.advance(60)
    ledger.wait(notification.key, 1, until, CAPPED, None)
    backend.clock.advance(DAY)

    ((waiting,), unreadable) = ledger.read_waiting([notification.key])

    assert unreadable == []
    assert waiting == ledger.read(notification.key)
    assert (waiting.waits_since, waiting.wakes_at) == (since, until)
    assert (waiting.waits, waiting.category) == ((CAPPED,), "MARKETING")
    assert waiting.body == notification.queued.body
    ledger.woken(waiting)
    assert ledger.read_waiting([notification.key]) == ([], [])
    assert ledger.read(notification.key).status is Status.WAITING


def test_row_of_waits_goes_on_over_generations(backend: Backend) -> None:
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.SENT)
    for generation, kind in enumerate((CAPPED, "rate limited", CAPPED), 1):
        assert ledger.wait(notification.key, generation, backend.clock.now() + HOUR, kind, 1)
        again = claimed(backend, of_generation(notification, generation), Status.SENDING)
        assert again.generation == generation + 1
        ledger.mark_sent(again, None)

    item = entry(backend, notification)
    assert item["waits"] == [CAPPED, "rate limited", CAPPED]
    assert not item.keys() & {"wake_shard", "wake_at", "code"}


@pytest.mark.parametrize("status", sorted(set(Status) - STARTS_BY_GENERATION))
def test_what_does_not_wait_any_more_is_not_due(status: Status) -> None:
    """Whatever comes after a wait takes the notification out of the index."""
    backend = Fakes()
    notification, ledger = a_notification(), backend.ledger()
    bring_to(backend, notification, Status.WAITING)
    backend.clock.advance(HOUR)
    assert len(ledger.due_waits(notification.key[0], 10, None)) == 1

    match status:
        case Status.CANCELLED:
            ledger.cancel("default", "order-1")
        case Status.RECEIVED | Status.CONSUMED:
            moved, _ = ledger.advance(Receipt(notification.key, 1, status))
            assert moved
        case _:
            claimed(backend, of_generation(notification, 1))

    assert ledger.due_waits(notification.key[0], 10, None) == []


def test_due_are_returned_longest_first_and_page_by_page() -> None:
    backend = Fakes()
    ledger, start = backend.ledger(), backend.clock.now()
    waits: dict[str, float] = {}
    for number in range(40):
        notification = a_notification(id=f"order-{number}")
        bring_to(backend, notification, Status.SENT)
        until = start + 60 + (7 * number) % 40
        ledger.wait(notification.key, 1, until, CAPPED, None)
        waits[notification.key] = until
    shard = max("0123456789abcdef", key=lambda one: sum(key[0] == one for key in waits))
    due = sorted((until, key) for key, until in waits.items() if key[0] == shard)
    backend.clock.advance(due[-1][0] - 1 - start)

    found: list[Due] = []
    while page := ledger.due_waits(shard, 1, found[-1] if found else None):
        found += page

    assert len(due) > 2
    assert found == [Due(key, until) for until, key in due[:-1]]


def test_wait_that_has_begun_anew_is_not_read_before_its_time(backend: Backend) -> None:
    """Another run may have woken it since the index was read, and WhatsApp have capped it again."""
    notification, ledger = a_notification(), backend.ledger()
    ledger.mark_sent(claimed(backend, notification, Status.SENDING), None)
    assert ledger.wait(notification.key, 1, backend.clock.now() + DAY, CAPPED, 131_049)

    assert ledger.read_waiting([notification.key]) == ([], [])
    backend.clock.advance(DAY)
    ((due,), unreadable) = ledger.read_waiting([notification.key])

    assert (due.key, unreadable) == (notification.key, [])
