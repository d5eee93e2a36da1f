"""What the ledger's stream makes of whole histories: each entry is an event once, and no other is.

`use_cases/test_publish_status_events.py` tests single images and the publisher; here the ledger
writes the images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notifier.aws.events import detail
from notifier.aws.outbox import status_events
from notifier.aws.table import Item
from notifier.domain.failures import Reason, Rejected, Transient, Unknown
from notifier.domain.notification import ledger_key
from notifier.domain.receipts import FailureKind, Receipt
from notifier.domain.status import Status
from notifier.domain.status_events import StatusEvent
from notifier.use_cases.publish_status_events import ALL_PUBLISHED
from tests.support.adapters import WholeLedger
from tests.support.blip import raises
from tests.support.builders import a_request
from tests.support.world import World

DAY = 86_400
KEY = ledger_key("default", "order-1")
REQUEST = a_request(id="order-1", metadata={"order": "981"}, correlation_id="trace-1")
OTHER = a_request(id="order-1", to="+5531911112222", metadata={"order": "982"})

RECEIVED_BY_BLIP = {"sent", "accepted", "dispatched", "waiting", "received", "consumed"}
NO_EVENT = {"claimed", "sending", "retrying", "unknown", "waiting"}

type Entry = tuple[str, int, int, str | None]


@dataclass
class History:
    """A world with one id, and the timelines of the notifications that had it one after another."""

    world: World = field(default_factory=lambda: World(published=ALL_PUBLISHED))
    lives: list[list[Entry]] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        publish = self.world.ledger_table.on_write

        def written(key: str, before: Item, after: Item) -> None:
            publish(key, before, after)
            if key == KEY and "timeline" in after:
                self._note(before, after)

        self.world.ledger_table.on_write = written

    def _note(self, before: Item, after: Item) -> None:
        known, timeline = before.get("timeline", []), after["timeline"]
        if not known or timeline[: len(known)] != known:
            self.lives.append([])
        life: dict[Entry, None] = dict.fromkeys(self.lives[-1])
        # What was cancelled in advance is an event when its request has come.
        life |= {tuple(each): None for each in timeline if each[0] != "cancelled"}
        if "template" in after:
            life |= {tuple(each): None for each in timeline if each[0] == "cancelled"}
        self.lives[-1] = list(life)

    @property
    def ledger(self) -> WholeLedger:
        return WholeLedger(self.world.ledger_table, self.world.clock.now)

    @property
    def generation(self) -> int:
        return int(self.world.ledger_table.items.get(KEY, {}).get("generation", 0))

    def deliver(
        self,
        *failures: Exception,
        receipt: str | None = None,
        redrive: bool = False,
        max_attempts: int = 9,
    ) -> None:
        """Deliver the request; a receipt may overtake the answer."""
        raise_it = raises(*failures)

        def answer(bot: Any) -> None:
            if receipt:
                self.receipt(receipt, generation=self.generation)
            raise_it(bot)

        self.world.blip.before_send = answer
        generation = self.generation if redrive else None
        sandbox = self.world.sandbox(max_attempts=max_attempts)
        sandbox.deliver(self.world.queued(REQUEST, generation=generation))

    def receipt(self, status: str, *, generation: int, code: int | None = None) -> None:
        undelivered = FailureKind.RATE_LIMITED if code == 131056 else FailureKind.PERMANENT
        about = Receipt(KEY, generation, Status(status), undelivered, code)
        self.world.sandbox().receipts.record(about)

    def refuse(self) -> None:
        before = len(self.world.dead_letters.letters)
        self.world.sandbox().deliver({"id": "order-1"})
        self.refused += len(self.world.dead_letters.letters) - before


def delivering(*failures: Callable[[], Exception], redrive: bool = False) -> Any:
    return lambda history: history.deliver(*[each() for each in failures], redrive=redrive)


def overtaken(receipt: str, *, redrive: bool = False) -> Any:
    return lambda history: history.deliver(receipt=receipt, redrive=redrive)


def receiving(status: str, behind: int, code: int | None = None) -> Any:
    def step(history: History) -> None:
        if "content_hash" in history.world.ledger_table.items.get(KEY, {}):  # it was claimed once
            history.receipt(status, generation=max(1, history.generation - behind), code=code)

    return step


STEPS: dict[str, Callable[[History], object]] = {
    "sent": delivering(),
    "sent, redriven": delivering(redrive=True),
    "busy": delivering(lambda: Transient("busy")),
    "unknown": delivering(lambda: Unknown("no answer")),
    "rejected": delivering(lambda: Rejected(Reason.REJECTED, "no")),
    "rejected, redriven": delivering(lambda: Rejected(Reason.REJECTED, "no"), redrive=True),
    "given up": lambda history: history.deliver(Transient("busy"), max_attempts=1),
    **{f"overtaken by {each}": overtaken(each) for each in ("accepted", "received", "failed")},
    "redriven and overtaken": overtaken("received", redrive=True),
    **{
        f"{status}, {behind} behind": receiving(status, behind)
        for status in ("accepted", "dispatched", "received", "consumed", "failed")
        for behind in (0, 1)
    },
    "rate limit": receiving("failed", 0, 131056),
    "cancelled": lambda history: history.ledger.cancel("default", "order-1"),
    "forgotten": lambda history: history.ledger.erase(KEY),
    "refused": History.refuse,
    "46 days": lambda history: history.world.clock.advance(46 * DAY),
}


def entry_of(event: StatusEvent) -> Entry:
    reason = event.reason.value if event.reason else None
    return (event.status.value, event.generation, round(event.time * 1000), reason)


def shows_that_it_was_sent(entry: Entry) -> bool:
    status, _, _, reason = entry
    return status in RECEIVED_BY_BLIP or (status == "failed" and reason == "undelivered")


def events_of(life: list[Entry]) -> list[Entry]:
    """Return what upstream should hear of a timeline."""
    events: list[Entry] = []
    for entry in life:
        status, generation, at, _ = entry
        is_known = any(event[:2] == ("sent", generation) for event in events)
        if shows_that_it_was_sent(entry) and not is_known:
            events.append(("sent", generation, at, None))
        if status not in NO_EVENT | {"sent"}:
            events.append(entry)
    return events


@settings(max_examples=200)
@given(st.lists(st.sampled_from(list(STEPS)), max_size=12))
@example(["sent", "46 days", "received, 0 behind"])
@example(["busy", "46 days", "cancelled", "sent", "46 days", "sent"])
@example(["sent", "failed, 0 behind", "sent, redriven", "received, 1 behind", "received, 0 behind"])
@example(["cancelled", "forgotten", "sent", "received, 0 behind"])
def test_each_timeline_entry_is_published_exactly_once(names: list[str]) -> None:
    history = History()
    for name in names:
        STEPS[name](history)
        history.world.clock.advance(1)

    published = [entry_of(event) for event in history.world.events.published]
    refusals = [entry for entry in published if entry[3] == "invalid"]
    assert [entry[:2] for entry in refusals] == [("rejected", 0)] * history.refused
    assert [entry for entry in published if entry not in refusals] == [
        event for life in history.lives for event in events_of(life)
    ]


def test_cancelling_an_expired_id_waits_for_its_next_request() -> None:
    """DynamoDB sweeps up to two days late: what lies there is another notification's."""
    history = History()
    history.deliver(Transient("busy"))
    history.world.clock.advance(46 * DAY)

    assert history.ledger.cancel("default", "order-1").timeline[1:] == ()
    assert history.world.events.published == []
    history.world.sandbox().deliver(OTHER)

    (event,) = history.world.events.published
    assert (event.status, event.generation) == (Status.CANCELLED, 0)
    assert (event.metadata, event.correlation_id) == ({"order": "982"}, None)


def test_item_that_expires_during_its_cancellation_is_cancelled_in_advance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history = History()
    history.deliver(Transient("busy"))
    history.world.clock.advance(46 * DAY)
    table = history.world.ledger_table
    update = table.update

    def swept(*call: Any, **how: Any) -> Any:
        answer = update(*call, **how)
        table.items.pop(KEY)
        monkeypatch.undo()
        return answer

    monkeypatch.setattr(table, "update", swept)

    assert history.ledger.cancel("default", "order-1").status is Status.CANCELLED
    assert table.get(KEY)["generation"] == 0


@pytest.mark.parametrize(
    ("entry", "event_id"),
    [
        (["sent", 1, 1000, None], "cdf13bc2-0af7-57c7-94db-b8ec14d5571f"),
        (["accepted", 1, 1000, None], "1422a8ad-2bcf-5cb2-a0f7-22958d87408d"),
        (["received", 2, 1000, None], "68309373-b182-586a-a4b7-0f67e0b62f65"),
        (["failed", 1, 1000, "undelivered"], "acacc997-7aff-5437-b494-f02a44ed12de"),
        (["failed", 1, 1000, "outcome_unknown"], "06e82480-b6c1-515c-8394-652e59394138"),
        (["expired", 1, 1000, "expired"], "377d1732-61dc-55c8-8243-1c54b802da9e"),
        (["cancelled", 0, 1000, None], "4e121f10-8dd4-58ba-a37b-6b94755614d1"),
    ],
    ids=str,
)
def test_event_id_of_a_timeline_entry_never_changes(entry: list[Any], event_id: str) -> None:
    """Upstream systems keep these: the same today and with every later release."""
    item = {"key": KEY, "id": "order-1", "bot": "default", "template": "t", "timeline": [entry]}

    *_, event = status_events(item)

    assert detail(event)["event_id"] == event_id


@pytest.mark.parametrize(
    ("reason", "event_id"),
    [
        ("invalid", "e754e9c5-d2cb-5678-97aa-8ce04ff39de6"),
        ("id_conflict", "9aacb1a5-41f9-54f1-86d8-90d6e92a7980"),
    ],
)
def test_event_id_of_a_refusal_never_changes(reason: str, event_id: str) -> None:
    refusals = [["message-1", reason, 1000, None, {}]]
    item = {"key": f"{KEY}:refused", "id": "order-1", "bot": "default", "refusals": refusals}

    (event,) = status_events(item)

    assert detail(event)["event_id"] == event_id
