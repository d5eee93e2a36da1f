"""What a receipt does, in any order and however often it comes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.aws.events import detail
from notifier.domain.failures import Reason
from notifier.domain.notification import ledger_key
from notifier.domain.receipts import FailureKind, Receipt, wait_seconds
from notifier.domain.status import Status
from notifier.domain.status_events import StatusEvent
from notifier.use_cases.publish_status_events import ALL_PUBLISHED
from notifier.use_cases.record_receipt import ReceiptOutcome
from tests.support.builders import PHONE, a_request
from tests.unit.blip.receipt_envelopes import KEY, TABLE
from tests.unit.use_cases.receipt_case import Case, Crash, a_receipt

# --- What it does ---------------------------------------------------------------------------------


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
        case.record(status, 131047 if status == "failed" else None)

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
    assert case.item.get("code") == (131047 if expected == "failed" else None)
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

    for code in (131026, 131056, 131049, 131042, 86, None):
        assert case.record("failed", code) is ReceiptOutcome.REPEATED

    assert case.item == before
    assert case.world.dead_letters.letters == []
    assert case.bot.get("broken") is None
    assert case.published == [("received", 1, None)]


@pytest.mark.parametrize("status", ["received", "consumed"])
@pytest.mark.parametrize("code", [131047, 131049, 131056])
def test_received_after_failed_wins(status: str, code: int) -> None:
    case = Case()
    case.record("failed", code)

    assert case.record(status) is ReceiptOutcome.MOVED

    assert case.item["status"] == status
    assert not case.item.keys() & {"wake_shard", "wake_at", "waits"}
    assert "reason" not in case.item
    assert "code" not in case.item
    assert case.published[-1] == (status, 1, None)


def test_received_cancels_a_generation_that_waits() -> None:
    case = Case()
    case.record("failed", 131056)
    case.record("received")

    assert case.send(generation=1) == "duplicate"

    assert len(case.world.blip.taken) == 1
    assert case.item["generation"] == 1


@pytest.mark.parametrize("status", ["retrying", "claimed"])
def test_received_cancels_a_generation_that_was_started(status: str) -> None:
    case = Case()
    case.record("failed", 131047)
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
    case.record("failed", 131047)
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
        "receipt_waiting",
        "webhook_unauthorized",
    ]


# --- Given up -------------------------------------------------------------------------------------


GIVEN_UP = [
    code
    for code, follows in TABLE.items()
    if wait_seconds(follows, (), max) is None or follows is FailureKind.PERHAPS_CAPPED
]


@pytest.mark.parametrize("code", [*GIVEN_UP, 9999, None])
def test_every_other_failure_is_a_dead_letter(code: int | None) -> None:
    case = Case()

    assert case.record("failed", code) is ReceiptOutcome.DEAD_LETTER

    reason = "opted_out" if code == 131050 else "undelivered"
    (letter,) = case.world.dead_letters.letters
    assert letter.body == case.body
    assert letter.reason == reason
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
    assert (case.item["reason"], case.item["code"]) == (reason, code)
    assert case.published == [("failed", 1, reason)]
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

    assert case.record("failed", code) is ReceiptOutcome.WAITING
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
    return detail(event)["event_id"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("received", None),
        ("accepted", None),
        ("failed", 131047),
        ("failed", 131026),
        ("failed", 131042),
        ("failed", 131049),
        ("failed", 131056),
        ("failed", 132015),
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
            assert set(case.paused) == set(calm.paused)

        case.receipts.record(about)

        assert case.item == calm.item
        assert case.bot == calm.bot
        assert case.world.identities_table.items == calm.world.identities_table.items
        assert {event_id(event) for event in case.world.events.published} == published
        found = case.world.dead_letters.letters
        assert {(letter.notification_id, letter.generation) for letter in found} == letters
        assert set(case.paused) == set(calm.paused)
        # Two next generations on the queue are one message to the person.
        if case.item["status"] == "waiting":
            for _ in range(2):
                case.send(generation=1)
        assert len(case.world.blip.taken) == 1 + (calm.item["status"] == "waiting")
    assert seen >= 2


def test_receipt_without_a_ledger_entry_is_foreign() -> None:
    case = Case()
    key = ledger_key("default", "somebody else's")

    for status in ("accepted", "dispatched", "received", "consumed", "failed"):
        assert case.receipts.record(replace(a_receipt(status), key=key)) is ReceiptOutcome.FOREIGN

    assert list(case.world.ledger_table.items) == [KEY]
    assert case.published == []


@pytest.mark.parametrize("status", [*ORDER, "failed"])
def test_receipt_with_the_secret_of_another_bot_is_only_logged(
    status: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case()
    before = case.item

    receipt = replace(a_receipt(status, 131042 if status == "failed" else None), bots=("clinic",))
    assert case.receipts.record(receipt) is ReceiptOutcome.OTHER_BOT

    assert (case.item, case.published, case.world.dead_letters.letters) == (before, [], [])
    assert "broken" not in case.bot
    message = "receipt with the secret of another bot"
    (line,) = [line for line in caplog.records if line.getMessage() == message]
    assert vars(line).items() >= {"key": KEY, "bot": "default", "shown": ("clinic",)}.items()


@pytest.mark.parametrize("status", [*ORDER, "failed"])
def test_receipt_with_a_secret_that_its_bot_shares_is_recorded(status: str) -> None:
    case = Case()

    receipt = replace(a_receipt(status), bots=("clinic", "default"))

    assert case.receipts.record(receipt) in {ReceiptOutcome.MOVED, ReceiptOutcome.DEAD_LETTER}
    assert case.item["status"] == status


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

    assert detail(event) == {
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
