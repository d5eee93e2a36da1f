"""The outbox: which status events the ledger's writes stand for, and how they get to the bus."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.aws.outbox import ledger_write, status_events
from notifier.aws.table import Item
from notifier.domain.failures import Reason, Rejected, Throttled, Transient
from notifier.domain.ledger_entries import LedgerWrite
from notifier.domain.notification import ledger_key
from notifier.domain.receipts import FailureKind, Receipt
from notifier.domain.status import BY_RECEIPT, PUBLISHABLE, SENT_OR_LATER, STREAMED, Status
from notifier.domain.status_events import Publication, StatusEvent
from notifier.use_cases.publish_status_events import ALL_PUBLISHED, DEFAULT_PUBLISHED
from notifier.use_cases.record_receipt import ReceiptOutcome
from tests.support.adapters import WholeLedger
from tests.support.blip import raises
from tests.support.builders import a_notification, a_request, stream_record
from tests.support.world import World

REQUEST = a_request(id="order-1", metadata={"order": "981"}, correlation_id="trace-1")
KEY = ledger_key("default", "order-1")
NOW = 1_800_000_000.0
NOW_MS = round(NOW * 1000)


@pytest.fixture
def world() -> World:
    return World()


def heard(world: World) -> list[tuple[str, int, str | None]]:
    """Return the published events: status, generation, reason."""
    return [
        (event.status.value, event.generation, event.reason) for event in world.events.published
    ]


# --- What the ledger's items stand for ------------------------------------------------------------


def an_item(*timeline: list[Any], **changes: Any) -> Item:
    return {
        "key": KEY,
        "id": "order-1",
        "bot": "default",
        "status": timeline[-1][0] if timeline else "claimed",
        "generation": 1,
        "template": "order_shipped",
        "metadata": {"order": "981"},
        "correlation_id": "trace-1",
        "timeline": list(timeline),
    } | changes


def stands_for(item: Item) -> list[tuple[str, int, float, str | None]]:
    return [
        (event.status.value, event.generation, event.time, event.reason)
        for event in status_events(item)
    ]


def at(milliseconds: int) -> float:
    return milliseconds / 1000


@pytest.mark.parametrize("status", sorted(PUBLISHABLE - {Status.SENT}))
def test_event_has_the_names_and_time_of_its_timeline_entry(status: Status) -> None:
    reason = Reason.REJECTED if status in {"failed", "rejected", "expired"} else None
    item = an_item(["sent", 1, 1500, None], [status, 1, 2750, reason])

    sent, event = status_events(item)

    expected = StatusEvent(
        key=KEY,
        notification_id="order-1",
        bot="default",
        status=status,
        generation=1,
        time=2.75,
        reason=reason,
        metadata={"order": "981"},
        correlation_id="trace-1",
    )
    assert event == expected
    assert sent == replace(expected, status=Status.SENT, reason=None, time=1.5)


def test_waiting_notification_was_sent_and_is_no_event() -> None:
    waiting = ["waiting", 1, 2000, None]

    assert stands_for(an_item(waiting)) == [("sent", 1, 2.0, None)]
    assert stands_for(an_item(["sent", 1, 1000, None], waiting)) == [("sent", 1, 1.0, None)]


@pytest.mark.parametrize("status", ["claimed", "sending", "retrying", "unknown"])
def test_notification_in_progress_is_no_event(status: str) -> None:
    assert stands_for(an_item([status, 1, 5, None])) == []
    assert stands_for(an_item()) == []
    assert stands_for({}) == []


@pytest.mark.parametrize(
    "overtaking",
    [
        *([status, 1, 2000, None] for status in ("accepted", "dispatched", "received", "consumed")),
        *(["failed", 1, 2000, reason] for reason in sorted(BY_RECEIPT)),
    ],
)
def test_receipt_before_the_send_s_answer_shows_that_it_was_sent(
    overtaking: list[Any],
) -> None:
    later = ["consumed", 1, 3000, None]

    assert stands_for(an_item(["unknown", 1, 1000, None], overtaking, later)) == [
        ("sent", 1, 2.0, None),
        (overtaking[0], 1, 2.0, overtaking[3]),
        ("consumed", 1, 3.0, None),
    ]


@pytest.mark.parametrize("reason", sorted(set(Reason) - BY_RECEIPT))
@pytest.mark.parametrize("status", ["failed", "rejected", "expired"])
def test_dead_letter_of_this_stack_does_not_show_that_it_was_sent(
    status: str, reason: Reason
) -> None:
    """It may have been sent, or was certainly not: only BLiP knows."""
    assert stands_for(an_item([status, 1, 2000, reason])) == [(status, 1, 2.0, reason)]


def test_cancelled_notification_was_not_sent() -> None:
    assert stands_for(an_item(["cancelled", 1, 2000, None])) == [("cancelled", 1, 2.0, None)]


def test_sent_is_published_once_for_each_generation() -> None:
    item = an_item(
        ["accepted", 1, 1000, None],
        ["dispatched", 1, 2000, None],
        ["failed", 1, 3000, "undelivered"],
        ["received", 2, 4000, None],
        ["consumed", 1, 5000, None],
    )

    sent = [entry for entry in stands_for(item) if entry[0] == "sent"]
    assert sent == [("sent", 1, 1.0, None), ("sent", 2, 4.0, None)]


def test_sent_is_not_published_again_after_it() -> None:
    item = an_item(["sent", 1, 1000, None], ["received", 1, 2000, None])

    assert stands_for(item) == [("sent", 1, 1.0, None), ("received", 1, 2.0, None)]


def test_late_receipt_is_no_event() -> None:
    late = [["accepted", 1, 3000, None], ["received", 1, 4000, None]]

    assert stands_for(an_item(["sent", 2, 1000, None], late=late)) == [("sent", 2, 1.0, None)]


def test_cancellation_in_advance_is_no_event_before_its_request() -> None:
    item = an_item(["cancelled", 0, 2000, None], generation=0)
    del item["template"]

    assert stands_for(item) == []
    assert stands_for(item | {"template": "order_shipped"}) == [("cancelled", 0, 2.0, None)]
    # A delivery to the phone is published in any case.
    received = item | {"timeline": [*item["timeline"], ["received", 1, 3000, None]]}
    assert stands_for(received) == [("sent", 1, 3.0, None), ("received", 1, 3.0, None)]


def test_erased_notification_is_no_event() -> None:
    tombstone = {
        "key": KEY,
        "status": "cancelled",
        "generation": 1,
        "forgotten": True,
        "updated_at": 5,
        "expires_at": 6,
    }

    assert stands_for(tombstone) == []


def test_event_without_metadata_and_correlation_id_has_neither() -> None:
    item = an_item(["sent", 1, 1000, None])
    del item["metadata"], item["correlation_id"]

    (event,) = status_events(item)

    assert (event.metadata, event.correlation_id) == ({}, None)


def test_refusal_is_an_event_without_a_generation_under_its_own_key() -> None:
    item = {
        "key": f"{KEY}:refused",
        "id": "order-1",
        "bot": "default",
        "status": "rejected",
        "refusals": [
            ["message-1", "invalid", 1000, "trace-1", {}],
            ["message-2", "id_conflict", 2000, None, {"order": "982"}],
        ],
    }

    first = StatusEvent(
        key=KEY,
        notification_id="order-1",
        bot="default",
        status=Status.REJECTED,
        generation=0,
        time=1.0,
        reason=Reason.INVALID,
        metadata={},
        correlation_id="trace-1",
    )
    second = replace(
        first,
        time=2.0,
        reason=Reason.ID_CONFLICT,
        metadata={"order": "982"},
        correlation_id=None,
    )
    assert status_events(item) == [first, second]


# --- What a write adds ----------------------------------------------------------------------------


def write(before: Item, after: Item, number: int = 7) -> LedgerWrite:
    return ledger_write(stream_record(KEY, number, before, after))


def test_write_adds_the_events_that_its_old_image_lacks() -> None:
    before = an_item(["sent", 1, 1000, None])
    after = an_item(["sent", 1, 1000, None], ["received", 1, 2000, None])

    assert write({}, before).events == tuple(status_events(before))
    added = write(before, after)
    assert [event.status for event in added.events] == ["received"]
    assert (added.key, added.sequence_number, added.problem) == (KEY, "7", "")
    assert write(after, after).events == ()
    assert write(after, {}) == LedgerWrite(KEY, "7")  # swept, at the end of its time


def test_redrive_publishes_nothing_of_the_generation_before() -> None:
    before = an_item(["rejected", 1, 1000, "rejected"], reason="rejected")
    again = before | {"status": "claimed", "correlation_id": "trace-2", "generation": 2}
    sent = again | {"timeline": [*before["timeline"], ["sent", 2, 2000, None]]}

    assert write(before, again).events == ()
    (event,) = write(again, sent).events
    assert (event.status, event.generation) == ("sent", 2)


def test_same_status_at_another_time_is_another_event() -> None:
    before = an_item(["sent", 1, 1000, None], ["failed", 1, 2000, "undelivered"])
    after = an_item(*before["timeline"], ["failed", 1, 3000, "undelivered"])

    (event,) = write(before, after).events

    assert event.time == 3.0


def test_restored_item_publishes_no_event() -> None:
    restored = an_item(["sent", 1, 1000, None], restored_at=5000)
    again = restored | {"restored_at": 6000}
    later = restored | {"timeline": [["sent", 1, 1000, None], ["received", 1, 7000, None]]}

    assert write({}, restored).events == ()
    assert write(restored, again).events == ()
    assert write(an_item(), restored).events == ()
    assert [event.status for event in write(restored, later).events] == ["received"]


@pytest.mark.parametrize(
    "broken",
    [
        {"timeline": [["teleported", 1, 1000, None]]},
        {"timeline": [["sent", 1, 1000]]},
        {"timeline": [["failed", 1, 1000, "unlucky"]]},
        {"timeline": [["sent", 1, "now", None]]},
        {"timeline": 5},
        {"refusals": [["message-1", "invalid", 1000]]},
    ],
    ids=str,
)
def test_unreadable_item_is_a_problem_and_not_a_crash(broken: Item) -> None:
    found = write({}, an_item() | broken)

    assert (found.key, found.sequence_number, found.events) == (KEY, "7", ())
    assert found.problem in {"ValueError", "TypeError"}


def test_item_without_its_id_is_a_problem() -> None:
    item = an_item(["sent", 1, 1000, None])
    del item["id"]

    assert write({}, item).problem == "KeyError"


def test_image_that_is_not_an_item_is_a_problem() -> None:
    record = stream_record(KEY, 7, {}, an_item())
    record["dynamodb"]["NewImage"]["status"] = {"X": "what is that?"}

    assert ledger_write(record).problem == "TypeError"


def test_every_status_is_published_or_internal() -> None:
    assert set(Status) - {"claimed", "sending", "retrying", "unknown", "waiting"} == PUBLISHABLE
    assert {"waiting"} == STREAMED - PUBLISHABLE
    assert set(Status) - ALL_PUBLISHED == set(Status) - PUBLISHABLE
    assert {Status.ACCEPTED, Status.DISPATCHED} == ALL_PUBLISHED - DEFAULT_PUBLISHED
    assert Status.SENT in SENT_OR_LATER & DEFAULT_PUBLISHED


# --- What upstream hears of whole stories ---------------------------------------------------------


def test_receipt_before_the_send_s_answer_is_published_in_order(world: World) -> None:
    world.know(REQUEST["to"])
    sandbox = world.sandbox()

    def overtake(_: object) -> None:
        sandbox.receipts.record(Receipt(KEY, 1, Status.RECEIVED))

    world.blip.before_send = overtake
    sandbox.deliver(REQUEST)

    assert heard(world) == [("sent", 1, None), ("received", 1, None)]


@pytest.mark.parametrize("every", [True, False])
def test_accepted_and_dispatched_are_published_only_if_wanted(world: World, *, every: bool) -> None:
    if every:
        world.published = ALL_PUBLISHED
    sandbox = world.sandbox()
    sandbox.deliver(REQUEST)

    for status in (Status.ACCEPTED, Status.DISPATCHED, Status.RECEIVED):
        sandbox.receipts.record(Receipt(KEY, 1, status))

    statuses = ["sent", "accepted", "dispatched", "received"] if every else ["sent", "received"]
    assert heard(world) == [(status, 1, None) for status in statuses]


def test_rate_limit_publishes_only_the_second_failure(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.deliver(REQUEST)
    later = Receipt(KEY, 1, Status.FAILED, FailureKind.RATE_LIMITED, 131056)
    sandbox.receipts.record(later)
    assert heard(world) == [("sent", 1, None)]

    sandbox.deliver(world.queued(REQUEST, generation=1))
    sandbox.receipts.record(replace(later, generation=2))

    assert heard(world) == [("sent", 1, None), ("sent", 2, None), ("failed", 2, "undelivered")]


def test_rate_limit_before_the_send_s_answer_publishes_that_it_was_sent(world: World) -> None:
    world.know(REQUEST["to"])
    sandbox = world.sandbox()

    def overtake(_: object) -> None:
        later = Receipt(KEY, 1, Status.FAILED, FailureKind.RATE_LIMITED, 131056)
        assert sandbox.receipts.record(later) is ReceiptOutcome.WAITING

    world.blip.before_send = overtake
    sandbox.deliver(REQUEST)

    assert heard(world) == [("sent", 1, None)]


def test_waiting_or_sending_notification_publishes_nothing(world: World) -> None:
    world.blip.before_send = raises(Transient("busy"), Throttled("slowly"))
    for _ in range(2):
        world.sandbox().deliver(REQUEST)
        world.clock.advance(1000)

    assert heard(world) == []


def test_reused_id_publishes_its_own_events(world: World) -> None:
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no", code=21))
    world.sandbox().deliver(REQUEST)
    world.clock.advance(46 * 86_400)

    world.sandbox().deliver(REQUEST | {"metadata": {"order": "982"}})

    assert heard(world) == [("rejected", 1, "rejected"), ("sent", 1, None)]
    assert [event.metadata["order"] for event in world.events.published] == ["981", "982"]
    assert [status for status, *_ in world.entry(REQUEST)["timeline"]] == ["sent"]


def test_cancellation_in_advance_is_published_once_when_its_request_arrives(world: World) -> None:
    ledger = WholeLedger(world.ledger_table, world.clock.now)
    ledger.cancel("default", "order-1")
    cancelled_at = world.clock.now()
    assert heard(world) == []
    world.clock.advance(60)

    for _ in range(3):
        world.sandbox().deliver(REQUEST)

    (event,) = world.events.published
    assert (event.status, event.generation, event.time) == (Status.CANCELLED, 0, cancelled_at)
    assert (event.metadata, event.correlation_id) == ({"order": "981"}, "trace-1")


def test_erased_cancellation_in_advance_is_never_published(world: World) -> None:
    ledger = WholeLedger(world.ledger_table, world.clock.now)
    ledger.cancel("default", "order-1")
    ledger.erase(KEY)
    before = world.entry(REQUEST)

    world.sandbox().deliver(REQUEST)
    ledger.complete_cancelled(a_notification())

    assert heard(world) == []
    assert world.entry(REQUEST) == before


# --- To the bus -----------------------------------------------------------------------------------


@dataclass
class Bus:
    """A publisher over a world's bus, clock and queue, with the writes of a shard."""

    world: World = field(default_factory=World)

    def publish(self, writes: Iterable[LedgerWrite], seconds: float = 60) -> str | None:
        deadline = self.world.clock.now() + seconds
        return self.world.publisher().publish(list(writes), deadline)

    @property
    def calls(self) -> list[list[str]]:
        return [[event.notification_id for event in call] for call in self.world.events.calls]

    @property
    def taken(self) -> list[str]:
        return [event.notification_id for event in self.world.events.published]

    def fails(self, outcome: Publication, *ids: str, times: float = float("inf")) -> None:
        """Have the bus answer so for these events, that many times each."""
        left = dict.fromkeys(ids, times)

        def answer(event: StatusEvent) -> Publication:
            if left.get(event.notification_id, 0) > 0:
                left[event.notification_id] -= 1
                return outcome
            return Publication.TAKEN

        self.world.events.outcome = answer


@pytest.fixture
def bus() -> Bus:
    return Bus()


def sent(name: str, number: int, *more: Status) -> LedgerWrite:
    """Return a write that adds `sent` of a notification, and more."""
    event = StatusEvent(
        key=f"key of {name}",
        notification_id=name,
        bot="default",
        status=Status.SENT,
        generation=1,
        time=NOW - 2,
        reason=None,
        metadata={},
    )
    events = (event, *(replace(event, status=status) for status in more))
    return LedgerWrite(event.key, str(number), events)


def many(count: int) -> list[LedgerWrite]:
    return [sent(f"order-{number}", number) for number in range(count)]


def test_ten_events_are_one_call_in_order(bus: Bus) -> None:
    assert bus.publish(many(23)) is None

    assert [len(call) for call in bus.calls] == [10, 10, 3]
    assert bus.taken == [f"order-{number}" for number in range(23)]
    assert bus.world.clock.slept == []


def test_batch_without_events_makes_no_call(bus: Bus) -> None:
    assert bus.publish([]) is None
    assert bus.publish([LedgerWrite("a", "1"), LedgerWrite("b", "2")]) is None
    assert (
        bus.publish([replace(sent("c", 3), events=sent("c", 3, Status.ACCEPTED).events[1:])])
        is None
    )

    assert bus.calls == []


def test_call_has_at_most_one_event_of_a_notification(bus: Bus) -> None:
    """EventBridge may take the later of two, and refuse the earlier."""
    writes = [sent("a", 1, Status.RECEIVED), sent("b", 2), sent("a", 3, Status.CONSUMED)]
    writes[2] = replace(writes[2], events=writes[2].events[1:])

    assert bus.publish(writes) is None

    assert bus.calls == [["a", "b"], ["a"], ["a"]]
    of_a = [event.status for event in bus.world.events.published if event.notification_id == "a"]
    assert of_a == [Status.SENT, Status.RECEIVED, Status.CONSUMED]


def test_throttled_event_is_repeated_before_later_ones(bus: Bus) -> None:
    bus.fails(Publication.NOT_NOW, "a", times=2)
    writes = [sent("a", 1, Status.RECEIVED), sent("b", 2)]

    assert bus.publish(writes) is None

    assert bus.calls == [["a", "b"], ["a"], ["a"], ["a"]]
    published = [
        (event.notification_id, event.status.value) for event in bus.world.events.published
    ]
    assert published == [("b", "sent"), ("a", "sent"), ("a", "received")]
    assert bus.world.clock.slept == [0.2, 0.5]


def test_bus_that_takes_nothing_is_called_six_times(bus: Bus) -> None:
    names = [f"order-{number}" for number in range(12)]
    bus.fails(Publication.NOT_NOW, *names)

    assert bus.publish(many(12)) == "0"

    assert [len(call) for call in bus.calls] == [10] * 6
    assert bus.world.clock.slept == [0.2, 0.5, 1.0, 2.0, 4.0]
    assert bus.world.unpublished.kept == []
    assert bus.world.meter.counts == {}


def test_each_wait_for_the_bus_is_random_up_to_its_limit(bus: Bus) -> None:
    bus.fails(Publication.NOT_NOW, "a")
    asked: list[tuple[float, float]] = []

    def least(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    replace(bus.world.publisher(), uniform=least).publish([sent("a", 1)], NOW + 60)

    assert asked == [(0.1, 0.2), (0.25, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0)]
    assert bus.world.clock.slept == [0.1, 0.25, 0.5, 1.0, 2.0]


def test_batch_returns_from_the_first_unpublished_record(bus: Bus) -> None:
    bus.fails(Publication.NOT_NOW, "order-3", "order-17")

    assert bus.publish(many(23)) == "3"

    assert set(bus.taken) == {f"order-{number}" for number in range(23)} - {"order-3", "order-17"}
    assert len(bus.taken) == 21


def test_published_event_of_a_write_does_not_hide_an_unpublished_one(bus: Bus) -> None:
    bus.world.events.outcome = lambda event: (
        Publication.NOT_NOW if event.status is Status.RECEIVED else Publication.TAKEN
    )

    assert bus.publish([sent("b", 1), sent("a", 2, Status.RECEIVED), sent("c", 3)]) == "2"


@pytest.mark.parametrize(("seconds", "calls"), [(20.1, 1), (20.3, 2), (20.65, 2), (20.75, 3)])
def test_no_call_starts_that_the_sandbox_might_not_outlive(
    bus: Bus, seconds: float, calls: int
) -> None:
    bus.fails(Publication.NOT_NOW, "a")

    assert bus.publish([sent("a", 1)], seconds) == "1"

    assert len(bus.calls) == calls


def test_event_that_the_bus_refuses_is_set_aside_and_the_batch_continues(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    bus.fails(Publication.REFUSED, "b")
    writes = [sent("a", 1), sent("b", 2, Status.RECEIVED), sent("c", 3)]

    assert bus.publish(writes) is None

    assert bus.taken == ["a", "c"]
    problem = "the event bus refuses it"
    assert bus.world.unpublished.kept == [("key of b", "2", problem)]
    assert bus.world.meter.counts == {"status_event_unpublished": 1}
    assert bus.world.clock.slept == []
    facts = vars(caplog.records[0])
    assert (facts["message"], facts["levelno"]) == ("not publishable", logging.ERROR)
    assert (
        facts.items()
        >= {
            "key": "key of b",
            "sequence_number": "2",
            "problem": problem,
        }.items()
    )


def test_unreadable_record_is_set_aside_and_the_batch_continues(bus: Bus) -> None:
    writes = [sent("a", 1), LedgerWrite("key of b", "2", problem="ValueError"), sent("c", 3)]

    assert bus.publish(writes) is None

    assert bus.taken == ["a", "c"]
    assert bus.world.unpublished.kept == [("key of b", "2", "ValueError")]
    assert bus.world.meter.counts == {"status_event_unpublished": 1}


def test_queue_that_does_not_answer_stops_the_batch_before_its_record(
    bus: Bus,
) -> None:
    bus.world.unpublished.down = True
    writes = [sent("a", 1), LedgerWrite("key of b", "2", problem="ValueError"), sent("c", 3)]

    assert bus.publish(writes) == "2"

    bus.world.unpublished.down = False
    assert bus.publish(writes[1:]) is None
    assert bus.taken == ["a", "c", "c"]
    assert bus.world.unpublished.kept == [("key of b", "2", "ValueError")]


def test_refused_event_is_not_lost_while_the_queue_does_not_answer(bus: Bus) -> None:
    bus.fails(Publication.REFUSED, "b")
    bus.world.unpublished.down = True

    assert bus.publish([sent("a", 1), sent("b", 2), sent("c", 3)]) == "2"

    assert bus.taken == ["a", "c"]
    bus.world.unpublished.down = False
    assert bus.publish([sent("b", 2), sent("c", 3)]) is None
    assert bus.world.unpublished.kept[-1] == ("key of b", "2", "the event bus refuses it")


def test_delay_is_measured_for_published_events_only(bus: Bus) -> None:
    bus.fails(Publication.REFUSED, "b")

    bus.publish([sent("a", 1), sent("b", 2)])

    assert bus.world.meter.times == {"changed_to_published": [pytest.approx(2)]}


@pytest.mark.parametrize("every", [True, False])
def test_only_wanted_statuses_are_published(bus: Bus, *, every: bool) -> None:
    bus.world.published = ALL_PUBLISHED if every else DEFAULT_PUBLISHED
    write = sent("a", 1, *sorted(PUBLISHABLE - {Status.SENT}))

    assert bus.publish([write]) is None

    published = {event.status for event in bus.world.events.published}
    assert published == (ALL_PUBLISHED if every else DEFAULT_PUBLISHED)


def named(events: Iterable[StatusEvent]) -> list[tuple[str, int, str]]:
    return [(event.key, event.generation, event.status.value) for event in events]


def taken(bus: Bus) -> list[tuple[str, int, str]]:
    return named(bus.world.events.published)


@given(
    shard=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.lists(st.sampled_from([Status.RECEIVED, Status.CONSUMED]), max_size=2, unique=True),
            st.sampled_from(["good", "good", "poison", "refused for ever"]),
        ),
        max_size=14,
    ),
    answers=st.lists(st.sampled_from([Publication.TAKEN, Publication.NOT_NOW]), max_size=40),
    downs=st.lists(st.booleans(), max_size=6),
    seconds=st.sampled_from([20.5, 23, 60]),
)
def test_no_answer_of_bus_or_queue_loses_or_reorders_an_event(
    shard: list[tuple[str, list[Status], str]],
    answers: list[Publication],
    downs: list[bool],
    seconds: float,
) -> None:
    """A batch comes again from where the answer says, until it is done."""
    bus = Bus()
    writes = [
        LedgerWrite(f"key of {name}", str(number), problem="ValueError")
        if kind == "poison"
        # Each write is of a generation of its own, so that no two events are the same.
        else replace(
            (write := sent(name, number, *statuses)),
            events=tuple(replace(event, generation=number) for event in write.events),
        )
        for number, (name, statuses, kind) in enumerate(shard)
    ]
    hopeless = {str(number) for number, (_, _, kind) in enumerate(shard) if kind != "good"}
    next_answer = iter(answers)

    def answer(event: StatusEvent) -> Publication:
        if str(event.generation) in hopeless:
            return Publication.REFUSED
        return next(next_answer, Publication.TAKEN)

    bus.world.events.outcome = answer
    down = iter(downs)
    left = writes
    for _ in range(len(answers) + len(downs) + 1):
        bus.world.unpublished.down = next(down, False)
        again = bus.publish(left, seconds)
        numbers = [write.sequence_number for write in left]
        done = left if again is None else left[: numbers.index(again)]
        left = left[len(done) :]
        kept = {number for _, number, _ in bus.world.unpublished.kept}
        for write in done:
            if write.sequence_number in hopeless:
                assert write.sequence_number in kept
            else:
                assert set(named(write.events)) <= set(taken(bus))
        if not left:
            break

    assert left == []
    assert {number for _, number, _ in bus.world.unpublished.kept} == hopeless
    for call in bus.world.events.calls:
        assert len(call) <= 10
        assert len({event.key for event in call}) == len(call)
    for key in {write.key for write in writes}:
        first = [name for name in dict.fromkeys(taken(bus)) if name[0] == key]
        in_order = [name for write in writes if write.key == key for name in named(write.events)]
        assert first == [name for name in in_order if name in first]
