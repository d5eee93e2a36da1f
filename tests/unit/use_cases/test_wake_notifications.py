"""What has waited long enough is put on the queue: once, the longest due first, whatever fails."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from notifier.aws.waiting_ledger import SHARDS
from notifier.domain.ledger_entries import Due, LedgerEntry
from notifier.domain.status import Status
from notifier.use_cases import wake_notifications
from notifier.use_cases.wake_notifications import PAGE, Waking, Woken
from tests.support.adapters import WholeLedger
from tests.support.builders import PHONE, a_request
from tests.support.world import InlineExecutor, World

RUN_SECONDS = 60.0


class Waits:
    """A world in which notifications wait, and what wakes them."""

    def __init__(self) -> None:
        self.world = World()
        self.ledger = WholeLedger(self.world.ledger_table, self.world.clock.now)
        self.begun_at = self.world.clock.now()

    def add(self, name: str, seconds: float) -> str:
        """Send a notification that then waits for so long from the beginning on; return its key."""
        request = a_request(id=name)
        self.world.know(request["to"])
        self.world.sandbox().deliver(request)
        key = str(self.world.entry(request)["key"])
        assert self.ledger.wait(key, 1, self.begun_at + seconds, "recipient capped", 1)
        return key

    def go_to(self, seconds: float) -> None:
        """Advance the clock to so long after the beginning."""
        self.world.clock.advance(self.begun_at + seconds - self.world.clock.now())

    def wake(self, **changes: Any) -> Woken:
        parts: dict[str, Any] = {
            "ledger": self.ledger,
            "requests": self.world.requests,
            "clock": self.world.clock,
            "threads": InlineExecutor(),
            "shards": SHARDS,
        }
        return Waking(**parts | changes).wake(self.world.clock.now() + RUN_SECONDS)

    @property
    def on_the_queue(self) -> list[tuple[str, int | None]]:
        """The ids and generations of what was put on the queue, in its order."""
        items = self.world.ledger_table.items.values()
        ids = {item["request"]: item["id"] for item in items if "request" in item}
        return [(ids[queued.body], queued.generation) for queued in self.world.requests.woken]

    def waiting(self) -> dict[str, bool]:
        """Return, of what has the status `waiting`, whether it is still in the index."""
        return {
            item["id"]: "wake_at" in item
            for item in self.world.ledger_table.items.values()
            if item["status"] == Status.WAITING
        }


@pytest.fixture
def waits() -> Waits:
    return Waits()


def test_notification_is_woken_once_when_its_wait_is_over(waits: Waits) -> None:
    waits.add("early", 600)
    waits.add("late", 601)
    waits.go_to(599.9)
    assert waits.wake() == Woken()

    waits.go_to(600)
    assert waits.wake() == Woken(woken=1)

    assert waits.on_the_queue == [("early", 1)]
    assert waits.waiting() == {"early": False, "late": True}
    assert waits.wake() == Woken()


def test_woken_notification_is_sent_as_its_next_generation(waits: Waits) -> None:
    waits.add("order-1", 600)
    waits.go_to(600)
    waits.wake()

    (woken,) = waits.world.requests.woken
    (result,) = waits.world.sandbox().deliver(woken)

    assert result.outcome == "sent"
    assert len(waits.world.blip.taken) == 2


def test_longest_due_is_woken_first_across_the_shards(waits: Waits) -> None:
    numbers = [(7 * number) % 50 for number in range(50)]
    for number in numbers:
        waits.add(str(number), 600 + number)
    assert len({key[0] for key in waits.world.ledger_table.items}) > 10
    waits.go_to(700)

    woken = waits.wake()

    assert woken == Woken(woken=50, late_seconds=100)
    assert [name for name, _ in waits.on_the_queue] == [str(number) for number in range(50)]


def test_more_than_a_page_of_a_shard_is_woken_in_one_run(
    waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wake_notifications, "PAGE", 3)
    for number in range(60):
        waits.add(str(number), 600)
    waits.go_to(600)

    assert waits.wake() == Woken(woken=60)
    assert PAGE > 3


class SlowRequests:
    """The queue; each call takes its time."""

    def __init__(self, waits: Waits, seconds: float) -> None:
        self._waits = waits
        self._seconds = seconds

    def wake(self, entries: Sequence[LedgerEntry]) -> list[LedgerEntry]:
        self._waits.world.clock.advance(self._seconds)
        return self._waits.world.requests.wake(entries)


def test_what_there_is_no_time_for_stays_due(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake_notifications, "CONCURRENCY", 1)
    for number in range(40):
        waits.add(str(number), 600)
    waits.go_to(600)

    first = waits.wake(requests=SlowRequests(waits, 25))
    second = waits.wake(requests=SlowRequests(waits, 25))

    # After 50 of 60 seconds nothing more is begun.
    assert (first.woken, second.woken) == (20, 20)
    assert second.late_seconds == 75
    assert waits.wake() == Woken()


def test_what_sqs_refuses_stays_due(waits: Waits) -> None:
    for name in ("a", "b", "c"):
        waits.add(name, 600)
    waits.go_to(660)
    waits.world.requests.refuses = lambda body: '"id": "b"' in body

    assert waits.wake() == Woken(woken=2, late_seconds=60)
    assert waits.waiting() == {"a": False, "b": True, "c": False}
    waits.world.requests.refuses = lambda _: False
    assert waits.wake() == Woken(woken=1, late_seconds=60)


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def spoil(item: dict[str, Any], how: str) -> None:
    match how:
        case "status":
            item["status"] = "teleported"
        case "request":
            item["request"] = ""
        case "type":
            item["request"] = 7
        case "bot":
            del item["bot"]
        case _:
            item["timeline"] = [5]


@pytest.mark.parametrize("how", ["status", "request", "type", "bot", "timeline"])
def test_unreadable_item_is_counted_and_stops_no_other(
    waits: Waits, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = waits.add("spoilt", 500)
    for number in range(12):
        waits.add(str(number), 600)
    spoil(waits.world.ledger_table.items[spoilt], how)
    waits.go_to(1000)

    caplog.clear()  # another test may have let `sent` be logged

    assert waits.wake() == Woken(woken=12, unreadable=1, late_seconds=500)
    assert waits.wake() == Woken(unreadable=1, late_seconds=500)
    lines = errors(caplog)
    assert {record.getMessage() for record in lines} == {"waits, and cannot be read"}
    assert {vars(record)["key"] for record in lines} == {spoilt}


def test_notification_that_waits_no_more_is_left_alone(waits: Waits) -> None:
    """The index lags behind the table, and may still hold what has ended."""
    key = waits.add("cancelled", 600)
    due = Due(key, waits.begun_at + 600)
    waits.ledger.cancel("default", "cancelled")
    waits.go_to(600)
    before = waits.world.ledger_table.items[key]

    class Lagging(WholeLedger):
        def due_waits(self, shard: str, _: int, after: Due | None) -> list[Due]:
            return [due] if shard == key[0] and after is None else []

    lagging = Lagging(waits.world.ledger_table, waits.world.clock.now)
    assert waits.wake(ledger=lagging) == Woken()

    assert waits.on_the_queue == []
    assert waits.world.ledger_table.items[key] == before


def test_next_wait_is_not_ended_by_a_late_record_of_the_one_before(waits: Waits) -> None:
    key = waits.add("order-1", 600)
    waits.go_to(600)
    ((old,), _) = waits.ledger.read_waiting([key])
    waits.wake()
    waits.world.sandbox().deliver(*waits.world.requests.woken)
    assert waits.ledger.wait(key, 2, waits.begun_at + 9000, "recipient capped", 1)

    waits.ledger.woken(old)

    assert waits.waiting() == {"order-1": True}


class Crash(Exception):
    """The sandbox ends here."""


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("method", ["read_waiting", "wake", "woken"])
def test_crash_anywhere_loses_nothing_and_sends_nothing_twice(
    waits: Waits, method: str, side: str
) -> None:
    waits.add("order-1", 600)
    waits.go_to(600)

    class Dying:
        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                if name == method and side == "before":
                    raise Crash
                answer = getattr(self._real, name)(*arguments)
                if name == method:
                    raise Crash
                return answer

            return call

    crashed = waits.wake(ledger=Dying(waits.ledger), requests=Dying(waits.world.requests))
    assert (crashed.woken, crashed.crashed) == (0, 1)
    waits.wake()

    for woken in waits.world.requests.woken:
        waits.world.sandbox().deliver(woken)
    assert len(waits.world.blip.taken) == 2
    assert waits.wake() == Woken()


def test_crash_of_one_batch_stops_no_other(waits: Waits, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(30):
        waits.add(str(number), 600 + number)
    waits.go_to(700)
    read = waits.ledger.read_waiting

    class Broken(WholeLedger):
        def read_waiting(self, keys: Sequence[str]) -> tuple[list[LedgerEntry], list[str]]:
            entries, unreadable = read(keys)
            if any(entry.notification_id == "15" for entry in entries):
                raise OSError(PHONE)
            return entries, unreadable

    broken = Broken(waits.world.ledger_table, waits.world.clock.now)
    caplog.clear()
    woken = waits.wake(ledger=broken)

    assert (woken.woken, woken.crashed) == (20, 10)
    (line,) = errors(caplog)
    assert line.getMessage() == "not woken"
    assert vars(line)["error"] == "OSError"
    assert PHONE not in str(vars(line))


def test_crash_within_a_batch_counts_what_was_woken_before_it(waits: Waits) -> None:
    for number in range(10):
        waits.add(str(number), 600 + number)
    waits.go_to(700)
    woken = waits.ledger.woken

    class Broken(WholeLedger):
        def woken(self, entry: LedgerEntry) -> None:
            if entry.notification_id == "3":
                raise OSError
            woken(entry)

    came = waits.wake(ledger=Broken(waits.world.ledger_table, waits.world.clock.now))

    assert (came.woken, came.crashed) == (3, 7)
    assert list(waits.waiting().values()) == [False] * 3 + [True] * 7
