"""What producers may ask: how it goes with a notification, and to take it back."""

import logging
from dataclasses import dataclass
from typing import Any

import pytest

from notifier.aws.refusals import DynamoDbRefusals
from notifier.domain.failures import Reason, Transient
from notifier.domain.ledger_entries import Change, NotificationDetails, Refusal
from notifier.domain.notification import ledger_key
from notifier.domain.status import SENT_OR_LATER, Status
from notifier.use_cases.get_notification import Notifications, NotKnown, TooLate
from tests.support.adapters import WholeLedger
from tests.support.blip import raises
from tests.support.builders import a_request
from tests.support.world import World


@dataclass
class Asked:
    """The use case, over a world."""

    world: World

    @property
    def notifications(self) -> Notifications:
        table, now = self.world.ledger_table, self.world.clock.now
        return Notifications(WholeLedger(table, now), DynamoDbRefusals(table, now))

    def cancel(self, request: dict[str, Any]) -> Status:
        return self.notifications.cancel(request.get("bot", "default"), request["id"]).status


@pytest.fixture
def asked() -> Asked:
    return Asked(World())


def test_known_notification_is_returned(asked: Asked) -> None:
    request = a_request(metadata={"order": "981"})
    asked.world.sandbox().deliver(request)

    account = asked.notifications.get("default", request["id"])

    assert (account.status, account.metadata) == (Status.SENT, {"order": "981"})
    with pytest.raises(NotKnown, match=f"^bot clinic has no notification {request['id']}$"):
        asked.notifications.get("clinic", request["id"])


def test_waiting_notification_is_cancelled_and_published(asked: Asked) -> None:
    request = a_request(metadata={"order": "981"}, correlation_id="trace-1")
    asked.world.blip.before_send = raises(Transient("503"))
    asked.world.sandbox().deliver(request)

    assert asked.cancel(request) is Status.CANCELLED

    (event,) = asked.world.events.published
    assert (event.key, event.notification_id) == (
        ledger_key("default", request["id"]),
        request["id"],
    )
    assert (event.status, event.generation, event.reason) == (Status.CANCELLED, 1, None)
    assert (event.metadata, event.correlation_id) == ({"order": "981"}, "trace-1")
    assert event.time == asked.world.clock.now()
    asked.world.sandbox().deliver(request)
    assert asked.world.blip.taken == []


def test_cancellation_in_advance_is_published_when_its_request_arrives(asked: Asked) -> None:
    request = a_request(metadata={"order": "981"})
    assert asked.cancel(request) is Status.CANCELLED
    assert asked.world.events.published == []

    asked.world.sandbox().deliver(request)

    (event,) = asked.world.events.published
    assert (event.status, event.generation) == (Status.CANCELLED, 0)
    assert event.metadata == {"order": "981"}
    assert asked.world.blip.look_ups == []
    assert asked.world.blip.taken == []


def test_waiting_notification_shows_until_when_and_can_be_cancelled(asked: Asked) -> None:
    request = a_request(id="order-1")
    sandbox = asked.world.sandbox()
    sandbox.deliver(request)
    key, until = ledger_key("default", "order-1"), asked.world.clock.now() + 86_400
    assert sandbox.ledger.wait(key, 1, until, "recipient capped", 131049)

    details = sandbox.ledger.details("default", "order-1")
    assert details is not None
    assert (details.status, details.wakes_at, details.code) == (Status.WAITING, until, 131049)
    assert asked.cancel(request) is Status.CANCELLED

    asked.world.sandbox().deliver(asked.world.queued(request, generation=1))
    assert len(asked.world.blip.taken) == 1
    assert sandbox.ledger.due_waits(key[0], 10, None) == []


@pytest.mark.parametrize(
    ("status", "why"),
    [
        *((status, f"it has gone out, and is {status}") for status in sorted(SENT_OR_LATER)),
        (Status.FAILED, "it has ended, failed"),
        (Status.REJECTED, "it has ended, rejected"),
        (Status.EXPIRED, "it has ended, expired"),
        (Status.UNKNOWN, "it may have gone out"),
        (Status.CLAIMED, "it is being sent; ask again in a minute"),
        (Status.SENDING, "it is being sent; ask again in a minute"),
    ],
)
def test_notification_that_cannot_be_cancelled_is_unchanged(
    asked: Asked, status: Status, why: str
) -> None:
    request = a_request(id="order-1")
    asked.world.sandbox().deliver(request)
    item = asked.world.ledger_table.items[ledger_key("default", "order-1")]
    item |= {"status": status.value, "lease_until": 2**53}
    asked.world.events.published.clear()

    with pytest.raises(TooLate) as refused:
        asked.cancel(request)

    assert str(refused.value) == f"notification order-1 of bot default cannot be cancelled: {why}"
    assert item["status"] == status
    assert asked.world.events.published == []


def test_every_answer_is_logged_with_id_and_bot(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    sent, other = a_request(), a_request()
    asked.world.sandbox().deliver(sent)
    caplog.clear()
    caplog.set_level(logging.INFO, logger="notifier.use_cases.get_notification")
    asked.cancel(other)
    with pytest.raises(TooLate):
        asked.cancel(sent)

    logged = [
        (record.getMessage(), *(vars(record)[name] for name in ("notification_id", "bot", "key")))
        for record in caplog.records
    ]
    assert logged == [
        ("cancelled", other["id"], "default", ledger_key("default", other["id"])),
        ("not cancelled", sent["id"], "default", ledger_key("default", sent["id"])),
    ]


def test_refusals_are_returned_if_no_notification_has_the_id(asked: Asked) -> None:
    world, good = asked.world, a_request(id="order-1")
    world.sandbox().deliver({"id": "order-1", "correlation_id": "trace-1"})
    world.clock.advance(1)
    world.sandbox().deliver(good | {"to": "123"})

    account = asked.notifications.get("default", "order-1")

    assert (account.status, account.reason) == (Status.REJECTED, Reason.INVALID)
    assert [(each.status, each.reason, each.generation) for each in account.timeline] == [
        (Status.REJECTED, Reason.INVALID, 0)
    ] * 2
    assert (account.generation, account.attempts, account.template) == (0, 0, None)
    with pytest.raises(NotKnown):
        asked.notifications.get("clinic", "order-1")
    # A notification comes first, whatever was refused before it or is after it.
    world.sandbox().deliver(good)
    world.sandbox().deliver(good | {"to": "123"})
    assert asked.notifications.get("default", "order-1").status is Status.SENT


def refuse(world: World, *messages: str, **changes: Any) -> None:
    refusals = DynamoDbRefusals(world.ledger_table, world.clock.now)
    for message in messages:
        facts = {"record_id": message, "reason": Reason.INVALID} | changes
        refusals.keep("clinic", "order-1", Refusal(**facts))
        world.clock.advance(1)


def test_last_refusal_is_returned_with_the_times_of_the_others(
    asked: Asked,
) -> None:
    began = asked.world.clock.now()
    refuse(asked.world, "message-1", "message-2")
    refuse(asked.world, "message-3", metadata={"order": "982"}, correlation_id="trace-1")

    assert asked.notifications.get("clinic", "order-1") == NotificationDetails(
        notification_id="order-1",
        bot="clinic",
        status=Status.REJECTED,
        generation=0,
        attempts=0,
        timeline=tuple(
            Change(Status.REJECTED, 0, began + number, Reason.INVALID) for number in range(3)
        ),
        created_at=began,
        updated_at=began + 2,
        reason=Reason.INVALID,
        metadata={"order": "982"},
        correlation_id="trace-1",
    )
    asked.world.clock.advance(14 * 86_400 - 2)
    assert asked.notifications.get("clinic", "order-1").updated_at == began + 2
    asked.world.clock.advance(1)
    with pytest.raises(NotKnown):
        asked.notifications.get("clinic", "order-1")


def test_refusal_written_at_the_same_time_is_not_lost(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is full, and another sandbox refuses one between reading it and writing it."""
    world = asked.world
    refuse(world, *(f"message-{number}" for number in range(10)))
    update = world.ledger_table.update
    between = ["between 1", "between 2"]

    def overtaken(*call: Any) -> Any:
        answer = update(*call)
        if not answer[0] and between:
            world.clock.advance(1)
            refuse(world, between.pop())
        return answer

    monkeypatch.setattr(world.ledger_table, "update", overtaken)

    refuse(world, "the last")

    key = f"{ledger_key('clinic', 'order-1')}:refused"
    kept = [refusal[0] for refusal in world.ledger_table.get(key)["refusals"]]
    assert kept == [
        *(f"message-{number}" for number in range(3, 10)),
        *("between 1", "between 2", "the last"),
    ]
    assert len(world.events.published) == 13


def test_refused_id_can_still_be_cancelled_in_advance(asked: Asked) -> None:
    good = a_request(id="order-1")
    asked.world.sandbox().deliver(good | {"to": "123"})

    assert asked.cancel(good) is Status.CANCELLED
    asked.world.sandbox().deliver(good)

    assert asked.world.blip.taken == []
    assert asked.notifications.get("default", "order-1").status is Status.CANCELLED
    published = [(event.status, event.generation) for event in asked.world.events.published]
    assert published == [(Status.REJECTED, 0), (Status.CANCELLED, 0)]
