"""What a receipt does, in any order and however often it comes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.aws.events import detail
from notifier.aws.table import Item
from notifier.blip.receipts import receipt
from notifier.domain.failures import Reason
from notifier.domain.notification import ledger_key, message_id
from notifier.domain.receipts import FailureKind, Receipt
from notifier.domain.status import Status
from notifier.domain.status_events import StatusEvent
from notifier.use_cases.publish_status_events import ALL_PUBLISHED
from notifier.use_cases.record_receipt import ReceiptOutcome, Receipts
from tests.support.builders import PHONE, a_request
from tests.support.world import Sandbox, World
from tests.unit.blip.receipt_envelopes import KEY, LATER, TABLE, envelope

# --- What it does ---------------------------------------------------------------------------------


class Crash(Exception):
    """The sandbox ends here."""


class Mortal:
    """Passes calls on, and crashes before or after a given one."""

    def __init__(self, real: Any, countdown: list[float]) -> None:
        self._real = real
        self._countdown = countdown

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._countdown[0] -= 0.5
            if self._countdown[0] == 0:
                raise Crash(f"before {name}")
            result = getattr(self._real, name)(*args, **kwargs)
            self._countdown[0] -= 0.5
            if self._countdown[0] == 0:
                raise Crash(f"after {name}")
            return result

        return call


class Case:
    """One notification that was sent, and what records its receipts."""

    def __init__(self, **changes: Any) -> None:
        self.world = World()
        self.sandbox: Sandbox = self.world.sandbox()
        self.request = a_request(id="order-1", metadata={"order": "1"}) | changes
        self.body = json.dumps(self.request)
        self.receipts = self.recorder()
        self.send()

    def recorder(self, countdown: list[float] | None = None) -> Receipts:
        limit = countdown or [float("inf")]

        def mortal(part: object) -> Any:
            return Mortal(part, limit)

        return Receipts(
            ledger=mortal(self.sandbox.ledger),
            identities=mortal(self.sandbox.identities),
            bot_states=mortal(self.sandbox.bot_states),
            requests=mortal(self.world.requests),
            dead_letters=mortal(self.world.dead_letters),
            meter=self.world.meter,
            now=self.world.clock.now,
            uniform=lambda low, high: (low + high) / 2,
        )

    def send(self, generation: int | None = None) -> str:
        """Deliver the request. Return the outcome."""
        queued = self.world.queued(self.body, generation=generation)
        (result,) = self.sandbox.deliver(queued)
        return result.outcome

    def record(self, status: str, code: int | None = None, generation: int = 1) -> ReceiptOutcome:
        self.world.clock.advance(1)
        return self.receipts.record(a_receipt(status, code, generation))

    @property
    def item(self) -> Item:
        return self.world.entry(self.request)

    @property
    def bot(self) -> Item:
        return self.world.identities_table.get("bot:default")

    @property
    def published(self) -> list[tuple[str, int, str | None]]:
        """What upstream has heard from receipts: status, generation, reason."""
        return [
            (event.status.value, event.generation, event.reason)
            for event in self.world.events.published
            if event.status is not Status.SENT
        ]

    def timeline(self) -> list[tuple[str, int]]:
        return [(status, generation) for status, generation, _, _ in self.item["timeline"]]

    def late(self) -> list[tuple[str, int]]:
        """Return the receipts kept of older generations."""
        return [(status, generation) for status, generation, _, _ in self.item.get("late", ())]


def a_receipt(status: str, code: int | None = None, generation: int = 1) -> Receipt:
    document = envelope(status, id=message_id(KEY, generation))
    if code is not None:
        document["reason"] = {"code": code}
    about = receipt(document)
    assert about is not None
    return about


ORDER = ["accepted", "dispatched", "received", "consumed"]


def crashes(case: Callable[[], Case], about: Receipt) -> Iterator[Case]:
    """Crash before and after every single call that recording makes; each time in a new world."""
    for halves in range(1, 100):
        crashed = case()
        try:
            crashed.recorder([halves / 2]).record(about)
        except Crash:
            yield crashed
        else:
            return
    raise AssertionError("it never ends")


def test_each_receipt_moves_the_status_forward() -> None:
    case = Case()

    for status in ORDER:
        assert case.record(status) is ReceiptOutcome.MOVED
        assert case.item["status"] == status

    assert case.timeline() == [("sent", 1), *((status, 1) for status in ORDER)]
    assert case.published == [("received", 1, None), ("consumed", 1, None)]
    assert "request" not in case.item
    assert case.item["metadata"] == {"order": "1"}


def test_time_to_the_phone_is_measured_once() -> None:
    case = Case(correlation_id="checkout-1")

    for status in ("accepted", "received", "received", "consumed"):
        case.record(status)

    assert case.world.meter.times["sent_to_received"] == [pytest.approx(2)]
    assert {event.correlation_id for event in case.world.events.published} == {"checkout-1"}


@pytest.mark.parametrize("reported", list(permutations(ORDER)), ids="-".join)
def test_receipts_in_any_order_end_in_the_same_status(reported: tuple[str, ...]) -> None:
    case = Case()

    effects = [case.record(status) for status in reported]

    assert case.item["status"] == "consumed"
    forward = [max(map(ORDER.index, reported[: n + 1])) for n in range(4)]
    moved = [n == 0 or forward[n] > forward[n - 1] for n in range(4)]
    assert effects == [ReceiptOutcome.MOVED if move else ReceiptOutcome.REPEATED for move in moved]


@given(st.lists(st.sampled_from([*ORDER, "failed"]), min_size=1, max_size=10))
def test_receipts_in_any_order_and_repetition_end_in_the_same_status(reported: list[str]) -> None:
    case = Case()

    for status in reported:
        case.record(status, 131049 if status == "failed" else None)

    delivered = [status for status in reported if status in {"received", "consumed"}]
    if delivered:
        expected = max(delivered, key=ORDER.index)
    elif "failed" in reported:
        expected = "failed"
    else:
        expected = max(reported, key=ORDER.index)
    assert case.item["status"] == expected
    assert ("request" in case.item) == (not delivered)
    assert ("reason" in case.item) == (expected == "failed")
    assert case.item.get("code") == (131049 if expected == "failed" else None)
    assert "token" not in case.item
    assert "lease_until" not in case.item
    # Upstream hears each change once, however often it was reported.
    assert len(case.published) == len(set(case.published))
    first = [reported.index(status) for status in ("failed", *delivered) if status in reported]
    died = bool(first) and reported[min(first)] == "failed"
    assert len(case.world.dead_letters.letters) == died
    assert (("failed", 1, "undelivered") in case.published) == died


def test_failed_after_received_is_ignored() -> None:
    case = Case()
    case.record("received")
    before = case.item

    for code in (131026, 131056, 131042, 86, None):
        assert case.record("failed", code) is ReceiptOutcome.REPEATED

    assert case.item == before
    assert case.world.dead_letters.letters == []
    assert case.world.requests.enqueued == []
    assert case.bot.get("broken") is None
    assert case.published == [("received", 1, None)]


@pytest.mark.parametrize("status", ["received", "consumed"])
@pytest.mark.parametrize("code", [131049, 131056])
def test_received_after_failed_wins(status: str, code: int) -> None:
    case = Case()
    case.record("failed", code)

    assert case.record(status) is ReceiptOutcome.MOVED

    assert case.item["status"] == status
    assert "reason" not in case.item
    assert "code" not in case.item
    assert case.published[-1] == (status, 1, None)


def test_received_cancels_a_generation_that_waits_on_the_queue() -> None:
    case = Case()
    case.record("failed", 131056)
    case.record("received")

    assert case.send(generation=1) == "duplicate"

    assert len(case.world.blip.taken) == 1
    assert case.item["generation"] == 1


@pytest.mark.parametrize("status", ["retrying", "claimed"])
def test_received_cancels_a_generation_that_was_started(status: str) -> None:
    case = Case()
    case.record("failed", 131049)
    item = case.item | {"status": status, "generation": 2, "token": "t", "lease_until": 1}
    case.world.ledger_table.items[KEY] = item

    assert case.record("received", generation=1) is ReceiptOutcome.MOVED
    assert case.send(generation=1) == "duplicate"

    assert len(case.world.blip.taken) == 1
    assert case.item["status"] == "received"
    assert case.item["generation"] == 2
    assert "token" not in case.item
    assert case.published[-1] == ("received", 1, None)


def test_receipt_of_an_older_generation_is_kept_and_not_published() -> None:
    case = Case()
    case.record("failed", 131049)
    assert case.send(generation=1) == "sent"
    before = case.item
    published = list(case.published)

    for status, code in (("accepted", None), ("dispatched", None), ("failed", 131026)):
        assert case.record(status, code, generation=1) is ReceiptOutcome.REPEATED

    after = case.item
    assert case.late() == [("accepted", 1), ("dispatched", 1), ("failed", 1)]
    assert {**after, "late": None} == {**before, "late": None}
    assert case.published == published
    assert [event.generation for event in case.world.events.published] == [1, 1, 2]
    assert len(case.world.dead_letters.letters) == 1

    # That the person has the first one, too, is no news when the second one has arrived.
    case.record("received", generation=2)
    assert case.record("received", generation=1) is ReceiptOutcome.REPEATED
    assert (case.timeline()[-1], case.late()[-1]) == (("received", 2), ("received", 1))
    assert case.published == [*published, ("received", 2, None)]


def test_receipt_may_arrive_before_the_send_s_answer() -> None:
    case = Case()
    case.request["id"] = "order-2"
    case.body = json.dumps(case.request)
    key = ledger_key("default", "order-2")
    case.world.know(PHONE)

    def receipt_overtakes(_: object) -> None:
        about = replace(a_receipt("received"), key=key)
        assert case.receipts.record(about) is ReceiptOutcome.MOVED

    case.world.blip.before_send = receipt_overtakes

    assert case.send() == "sent"

    assert case.item["status"] == "received"
    assert "token" not in case.item


def test_receipt_outcomes_are_named_as_they_are_counted() -> None:
    assert [effect.value for effect in ReceiptOutcome] == [
        "receipt_recorded",
        "receipt_repeated",
        "receipt_foreign",
        "receipt_dead_letter",
        "receipt_postponed",
        "webhook_unauthorized",
    ]


# --- A rate limit ---------------------------------------------------------------------------------


RATE_CODES = [code for codes in LATER.values() for code in codes]


@pytest.mark.parametrize("code", RATE_CODES)
def test_rate_limit_enqueues_one_next_generation_after_a_delay(code: int) -> None:
    case = Case()

    assert case.record("failed", code) is ReceiptOutcome.POSTPONED

    assert case.world.requests.enqueued == [(case.body, 1, 600)]
    assert case.item["status"] == "failed"
    assert (case.item["reason"], case.item["code"]) == ("undelivered", code)
    assert case.world.dead_letters.letters == []
    assert case.published == []
    # However often it is reported.
    assert case.record("failed", code) is ReceiptOutcome.REPEATED
    assert len(case.world.requests.enqueued) == 1

    assert case.send(generation=1) == "sent"
    assert case.send(generation=1) == "duplicate"
    assert [sent.message_id for sent in case.world.blip.taken] == [KEY, f"{KEY}:2"]
    assert case.record("failed", code, generation=1) is ReceiptOutcome.REPEATED
    assert len(case.world.requests.enqueued) == 1

    # The second time it is given up.
    assert case.record("failed", code, generation=2) is ReceiptOutcome.DEAD_LETTER
    assert len(case.world.requests.enqueued) == 1
    (letter,) = case.world.dead_letters.letters
    assert (letter.reason, letter.generation) == (Reason.UNDELIVERED, 2)
    assert letter.failure["code"] == code
    assert case.published == [("failed", 2, "undelivered")]


def test_delay_after_a_rate_limit_is_random_and_within_the_limit_of_sqs() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    case = Case()
    replace(case.receipts, uniform=uniform).record(a_receipt("failed", 131056))

    assert asked == [(300, 900)]
    assert case.world.requests.enqueued[0][2] == 900


def test_redrive_may_be_rate_limited_once_more() -> None:
    case = Case()
    for generation in (1, 2):
        case.record("failed", 131056, generation=generation)
        case.send(generation=generation)

    assert case.item["generation"] == 3
    assert case.record("failed", 131056, generation=3) is ReceiptOutcome.POSTPONED
    assert [generation for _, generation, _ in case.world.requests.enqueued] == [1, 3]


def test_redrive_that_is_rate_limited_keeps_its_count() -> None:
    case = Case()
    case.record("failed", 131049)
    case.sandbox.deliver(replace(case.world.queued(case.body, generation=1), redrives=3))

    case.record("failed", 131056, generation=2)

    assert case.world.requests.enqueued_redrives == [3]


def test_redrive_after_another_failure_may_be_rate_limited() -> None:
    case = Case()
    case.record("failed", 131049)
    case.send(generation=1)

    assert case.record("failed", 130429, generation=2) is ReceiptOutcome.POSTPONED


# --- Given up -------------------------------------------------------------------------------------


ONCE_MORE = {FailureKind.RATE_LIMITED, FailureKind.SPORADIC}
GIVEN_UP = [code for code, follows in TABLE.items() if follows not in ONCE_MORE]


@pytest.mark.parametrize("code", [*GIVEN_UP, 9999, None])
def test_every_other_failure_is_a_dead_letter(code: int | None) -> None:
    case = Case()

    assert case.record("failed", code) is ReceiptOutcome.DEAD_LETTER

    (letter,) = case.world.dead_letters.letters
    assert letter.body == case.body
    assert letter.reason is Reason.UNDELIVERED
    assert (letter.bot, letter.notification_id, letter.generation) == ("default", "order-1", 1)
    assert letter.failure == {
        "detail": a_receipt("failed", code).detail,
        "template": "order_shipped",
        "phase": "receipt",
        "attempts": 1,
        "possibly_sent": code == 86,
        "redrives": 0,
    } | ({} if code is None else {"code": code})
    assert PHONE not in json.dumps(letter.failure)
    assert case.item["status"] == "failed"
    assert (case.item["reason"], case.item["code"]) == ("undelivered", code)
    assert case.published == [("failed", 1, "undelivered")]
    assert case.world.requests.enqueued == []
    case.world.clock.advance(600)  # the number may be down
    assert case.send() == "duplicate"
    # However often it is reported.
    assert case.record("failed", code) is ReceiptOutcome.REPEATED
    assert len(case.world.dead_letters.letters) == 1


@pytest.mark.parametrize("code", [*TABLE, None])
def test_only_an_unreachable_recipient_is_invalidated(code: int | None) -> None:
    unreachable = code in {33, 42, 83, 1013, 1026, 131026, 131062}
    case = Case()
    assert "address" in case.world.identities_table.get(f"default/{PHONE}")

    case.record("failed", code)

    identity = case.world.identities_table.get(f"default/{PHONE}")
    assert ("address" in identity) == (not unreachable)
    assert ("good_until" in identity) == (not unreachable)


def test_dead_letter_is_logged_with_its_identifiers(caplog: pytest.LogCaptureFixture) -> None:
    case = Case(correlation_id="trace-1")
    case.record("failed", 131026)

    (line,) = [line for line in caplog.records if line.getMessage() == "dead letter"]
    facts = {
        "notification_id": "order-1",
        "bot": "default",
        "key": KEY,
        "reason": "undelivered",
        "code": 131026,
        "correlation_id": "trace-1",
    }
    assert vars(line).items() >= facts.items()


def test_final_status_is_published_with_all_its_fields() -> None:
    case = Case(correlation_id="trace-1")
    case.record("failed", 131026)

    assert case.world.events.published[-1] == StatusEvent(
        key=KEY,
        notification_id="order-1",
        bot="default",
        status=Status.FAILED,
        generation=1,
        time=case.world.clock.now(),
        reason=Reason.UNDELIVERED,
        metadata={"order": "1"},
        correlation_id="trace-1",
    )


def test_wrapped_request_s_recipient_is_invalidated() -> None:
    case = Case()
    wrapped = {"specversion": "1.0", "id": "x", "source": "/s", "type": "t", "data": a_request()}
    case.request = wrapped["data"]  # type: ignore[assignment] # it is a request
    case.body = json.dumps(wrapped)
    case.send()
    key = ledger_key("default", case.request["id"])

    case.receipts.record(replace(a_receipt("failed", 131026), key=key))

    assert "address" not in case.world.identities_table.get(f"default/{PHONE}")
    assert case.world.dead_letters.letters[0].body == case.body


@pytest.mark.parametrize("code", [*TABLE, None])
def test_only_failures_about_the_number_open_the_breaker(code: int | None) -> None:
    number_down = code in {368, 402, 1031, 131031, 131042}
    case = Case()

    case.record("failed", code)

    assert ("broken" in case.bot) == number_down
    if number_down:
        assert case.bot["broken"] == a_receipt("failed", code).detail


TROUBLE = [code for code, follows in TABLE.items() if follows is FailureKind.SPORADIC]


@pytest.mark.parametrize("code", TROUBLE)
def test_sporadic_failure_is_sent_again_once_and_then_becomes_a_dead_letter(
    code: int,
) -> None:
    case = Case()

    assert case.record("failed", code) is ReceiptOutcome.POSTPONED
    assert case.world.dead_letters.letters == []
    case.send(generation=1)
    assert case.record("failed", code, generation=2) is ReceiptOutcome.DEAD_LETTER


def in_trouble(case: Case, *keys: str, every: float = 1) -> bool:
    """Count these notifications as failed by WhatsApp. Return whether the number is down."""
    for key in keys:
        case.world.clock.advance(every)
        sent_at = case.world.clock.now()
        case.sandbox.bot_states.number_in_trouble("default", key, sent_at, "not available")
    return "number_down_at" in case.bot


def test_five_different_sporadic_failures_within_minutes_open_the_breaker() -> None:
    case = Case()

    assert not in_trouble(case, "a", "b", "c", "d")
    assert not in_trouble(case, "a", "b", "c", "d", "d")
    case.world.clock.advance(1)
    case.record("failed", 131056)  # a rate limit: it is sent once more, after the others
    case.send(generation=1)
    case.record("failed", 131016, generation=2)

    assert case.bot["broken"] == a_receipt("failed", 131016).detail
    assert "number_down_at" in case.bot


def test_sporadic_failures_far_apart_do_not_open_the_breaker() -> None:
    case = Case()

    assert not in_trouble(case, *"abcdefghijkl", every=460)


def test_sporadic_failure_of_an_old_message_is_not_counted() -> None:
    case = Case()
    in_trouble(case, "a", "b", "c", "d")
    case.world.clock.advance(3601)

    case.record("failed", 131016)

    assert "broken" not in case.bot


def test_request_that_the_contract_no_longer_accepts_is_a_dead_letter() -> None:
    case = Case()
    case.item["request"] = "{}"
    case.world.ledger_table.items[KEY]["request"] = "{}"

    assert case.record("failed", 131026) is ReceiptOutcome.DEAD_LETTER

    assert case.world.dead_letters.letters[0].body == "{}"


def test_failure_of_an_old_message_does_not_open_the_breaker() -> None:
    case = Case()
    case.world.clock.advance(3601)

    assert case.record("failed", 131042) is ReceiptOutcome.DEAD_LETTER

    assert "broken" not in case.bot


# --- Effects come first ---------------------------------------------------------------------------


def event_id(event: StatusEvent) -> object:
    return detail(event, "stack")["event_id"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("received", None),
        ("accepted", None),
        ("failed", 131049),
        ("failed", 131026),
        ("failed", 131042),
        ("failed", 131056),
        ("failed", 86),
    ],
)
def test_crash_anywhere_repeats_the_effects_and_loses_none(status: str, code: int | None) -> None:
    about = a_receipt(status, code)
    calm = Case()
    calm.receipts.record(about)
    letters = {
        (letter.notification_id, letter.generation) for letter in calm.world.dead_letters.letters
    }
    published = {event_id(event) for event in calm.world.events.published}

    seen = 0
    for case in crashes(Case, about):
        seen += 1
        unmoved = case.item["status"] == "sent"
        if not unmoved:
            # Once the ledger has moved, every effect is there.
            assert {event_id(event) for event in case.world.events.published} == published
            assert bool(case.world.dead_letters.letters) == bool(letters)
            assert bool(case.world.requests.enqueued) == (code == 131056)

        case.receipts.record(about)

        assert case.item == calm.item
        assert case.bot == calm.bot
        assert case.world.identities_table.items == calm.world.identities_table.items
        assert {event_id(event) for event in case.world.events.published} == published
        found = case.world.dead_letters.letters
        assert {(letter.notification_id, letter.generation) for letter in found} == letters
        assert set(case.world.requests.enqueued) == set(calm.world.requests.enqueued)
        # Two next generations on the queue are one message to the person.
        for _ in case.world.requests.enqueued:
            case.send(generation=1)
        assert len(case.world.blip.taken) == 1 + bool(case.world.requests.enqueued)
    assert seen >= 2


def test_receipt_without_a_ledger_entry_is_foreign() -> None:
    case = Case()
    key = ledger_key("default", "somebody else's")

    for status in ("accepted", "dispatched", "received", "consumed", "failed"):
        assert case.receipts.record(replace(a_receipt(status), key=key)) is ReceiptOutcome.FOREIGN

    assert list(case.world.ledger_table.items) == [KEY]
    assert case.published == []


def test_accepted_and_dispatched_are_published_if_wanted() -> None:
    case = Case()
    case.world.published = ALL_PUBLISHED

    for status in ("dispatched", "accepted", "received"):
        case.record(status)

    assert case.published == [("dispatched", 1, None), ("received", 1, None)]
    assert case.item["status"] == "received"


def test_event_has_the_producer_s_fields_and_no_phone_number() -> None:
    case = Case()
    case.record("received")

    (event,) = [event for event in case.world.events.published if event.status is Status.RECEIVED]

    assert detail(event, "notifier-dev") == {
        "event_id": event_id(event),
        "id": "order-1",
        "bot": "default",
        "status": "received",
        "reason": None,
        "generation": 1,
        "time": "2027-01-15T08:00:01.000+00:00",
        "metadata": {"order": "1"},
        "correlation_id": None,
        "category": None,
        "stack": "notifier-dev",
    }


def test_event_keeps_its_id_when_published_again() -> None:
    event = StatusEvent(KEY, "order-1", "default", Status.FAILED, 1, 1.0, Reason.UNDELIVERED, {})

    # Upstream systems keep these: the same today and with every later release.
    assert event_id(event) == "acacc997-7aff-5437-b494-f02a44ed12de"
    sent = replace(event, status=Status.SENT, reason=None)
    assert event_id(sent) == "cdf13bc2-0af7-57c7-94db-b8ec14d5571f"
    assert event_id(replace(event, time=9.0, metadata={"a": "b"})) == event_id(event)
    others = [
        replace(event, key=ledger_key("default", "order-2")),
        replace(event, generation=2),
        replace(event, status=Status.SENT),
        replace(event, reason=Reason.ID_CONFLICT),
        replace(event, reason=None),
    ]
    assert len({event_id(other) for other in (event, *others)}) == 6
