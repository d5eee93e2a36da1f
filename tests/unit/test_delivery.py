"""The story of a notification and of a batch: what follows from what, on fakes and a fake clock."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from threading import Event
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError
from hypothesis import given, settings
from hypothesis import strategies as st

from notifier.domain.bot_state import Reservation
from notifier.domain.bots import Bot
from notifier.domain.failures import (
    Failure,
    Misconfigured,
    Reason,
    Rejected,
    Throttled,
    Transient,
    Unknown,
)
from notifier.domain.ledger_entries import ClaimLost, Control
from notifier.domain.notification import ledger_key
from notifier.domain.receipts import Receipt
from notifier.domain.recipients import LookUpLease
from notifier.domain.status import Status
from notifier.use_cases.send_notification.outcomes import Outcome, Result
from tests.support.adapters import WholeLedger
from tests.support.blip import always, identity_of, raises
from tests.support.builders import KEY, MARIA, OTHER_KEY, PHONE, a_request
from tests.support.clock import Clock
from tests.support.world import Sandbox, World

OTHER_PHONE = "+5511988887777"
DAY = 86_400

type Request = dict[str, Any]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def discreet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens, no log holds a number, a parameter or a key."""
    caplog.set_level(logging.INFO, "notifier")
    yield
    logged = "\n".join(f"{record.__dict__} {record.exc_text}" for record in caplog.records)
    for secret in ("99999888", "8888777", MARIA, *(key.removeprefix("Key ") for key in KEYS)):
        assert secret not in logged


KEYS = (KEY, OTHER_KEY)


def outcome(result: Result) -> str:
    return result.outcome.value


def key_of(body: Mapping[str, Any]) -> str:
    return ledger_key(body.get("bot", "default"), body["id"])


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def ends(world: World) -> list[tuple[str, str | None]]:
    """The dead letters: reason and the notification's id."""
    return [(letter.reason.value, letter.notification_id) for letter in world.dead_letters.letters]


# --- All is well ----------------------------------------------------------------------------------


def test_a_known_recipient_is_written_to_at_once(world: World) -> None:
    world.know(PHONE)
    body = a_request()

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "sent"
    assert result.retry_in is None
    (sent,) = world.blip.sent
    assert sent.message_id == key_of(body)
    assert sent.identity == identity_of(PHONE)
    assert sent.template.body == [MARIA, "981"]
    assert sent.bot.namespace == "ns"
    assert world.blip.look_ups == []
    assert world.entry(body)["status"] == "sent"
    assert ends(world) == []


def test_for_a_known_recipient_the_ledger_is_written_twice(world: World) -> None:
    """Claimed, so that it is sent at once; and settled. Look-ups cost one write more."""
    world.know(PHONE)

    world.sandbox().deliver(a_request())
    assert world.ledger_table.writes == 2

    world.sandbox().deliver(a_request(to=OTHER_PHONE))
    assert world.ledger_table.writes == 5


@pytest.mark.parametrize(("receipts", "asked_for"), [("history", True), ("webhook", False)])
def test_what_was_sent_is_asked_for_its_receipts_if_none_come(
    world: World, receipts: str, *, asked_for: bool
) -> None:
    world.bots["default"]["receipts"] = receipts
    body = a_request()

    world.sandbox().deliver(body)

    expected = round(1000 * (world.clock.now() + 300)) if asked_for else None
    assert world.entry(body).get("poll_at") == expected


def test_an_unknown_recipient_is_looked_up_once_for_all(world: World) -> None:
    sandbox = world.sandbox()

    sandbox.deliver(a_request())
    sandbox.deliver(a_request())
    world.sandbox().deliver(a_request())

    assert world.blip.look_ups == [PHONE]
    assert [sent.identity for sent in world.blip.sent] == [identity_of(PHONE)] * 3


def test_upstream_hears_of_it(world: World) -> None:
    body = a_request(metadata={"order": "981"})

    world.sandbox().deliver(body)

    (event,) = world.events.told
    assert (event.notification_id, event.bot) == (body["id"], "default")
    assert (event.status, event.generation) == (Status.SENT, 1)
    assert event.metadata == {"order": "981"}


def test_the_producers_correlation_id_is_in_logs_and_events(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.sandbox().deliver(
        a_request(correlation_id="checkout-1"),
        a_request(correlation_id="checkout-2", id="order-1", extra="a typo"),
    )

    told = {event.status.value: event.correlation_id for event in world.events.told}
    assert told == {"sent": "checkout-1", "rejected": "checkout-2"}
    logged = {vars(record).get("correlation_id") for record in caplog.records}
    assert logged == {"checkout-1", "checkout-2"}


def test_the_clocks_of_a_notification_are_kept_apart(world: World) -> None:
    world.blip.call_seconds = 0.25
    waited = world.queued(a_request(), age=40)

    world.sandbox().deliver(waited)

    assert world.meter.times["published_to_claimed"] == [pytest.approx(40)]
    assert world.meter.times["claimed_to_sent"] == [pytest.approx(0.5)]


def test_only_the_first_attempt_tells_how_long_a_request_waited(world: World) -> None:
    world.blip.before_send = raises(Transient("nothing"))
    body = a_request()

    for _ in range(2):
        world.sandbox().deliver(body)

    assert len(world.meter.times["published_to_claimed"]) == 1
    assert len(world.meter.times["claimed_to_sent"]) == 1


def test_look_ups_that_no_send_followed_are_counted(world: World) -> None:
    number = Rejected(Reason.NOT_A_PHONE_NUMBER, "no number", code=61)
    world.blip.before_look_up = raises(number)
    sandbox = world.sandbox()

    sandbox.deliver(a_request())
    sandbox.deliver(a_request(to=OTHER_PHONE))
    sandbox.deliver(a_request(to=OTHER_PHONE))

    assert world.meter.counts == {
        "look_up": 2,
        "look_up_without_send": 1,
        "identity_miss": 2,
        "identity_hit": 1,
        "sent_in_time": 2,
    }


def test_nothing_is_looked_up_before_its_claim_holds_and_nothing_sent_before_it_is_written_down(
    world: World,
) -> None:
    body, seen = a_request(), []
    world.blip.before_look_up = lambda _: seen.append(world.entry(body)["status"])
    world.blip.before_send = lambda _: seen.append(world.entry(body)["status"])

    world.sandbox().deliver(body)

    assert seen == ["claimed", "sending"]


def test_every_bot_sends_with_its_own_key(world: World) -> None:
    world.bots = {"default": {"key": KEY}, "clinic": {"key": OTHER_KEY, "namespace": "clinic"}}
    one, other = a_request(), a_request(bot="clinic")

    world.sandbox().deliver(one, other)

    keys = {sent.message_id: (sent.bot.key, sent.bot.namespace) for sent in world.blip.sent}
    assert keys == {key_of(one): (KEY, None), key_of(other): (OTHER_KEY, "clinic")}
    # A number is known per bot.
    assert world.blip.look_ups == [PHONE, PHONE]


# --- Sent once ------------------------------------------------------------------------------------


def test_a_request_that_comes_again_is_a_duplicate(world: World) -> None:
    body = a_request()
    world.sandbox().deliver(body)

    (result,) = world.sandbox().deliver(body)

    assert (outcome(result), result.retry_in) == ("duplicate", None)
    assert len(world.blip.sent) == 1


def test_the_same_request_five_times_in_one_batch_is_sent_once(world: World) -> None:
    body = a_request()

    results = world.sandbox().deliver(*[body] * 5)

    assert sorted(map(outcome, results)) == ["duplicate"] * 4 + ["sent"]
    assert len(world.blip.sent) == 1


def test_the_same_json_in_another_order_is_the_same_request(world: World) -> None:
    body = a_request()
    reordered = dict(reversed(body.items()))

    results = world.sandbox().deliver(body, reordered)

    assert sorted(map(outcome, results)) == ["duplicate", "sent"]


def test_two_requests_for_one_person_are_one_look_up_and_two_sends(world: World) -> None:
    first, second = a_request(), a_request()

    results = world.sandbox().deliver(first, second)

    assert list(map(outcome, results)) == ["sent", "sent"]
    assert world.blip.look_ups == [PHONE]


def test_what_another_sandbox_is_working_on_comes_back_when_its_lease_ends(world: World) -> None:
    body, found = a_request(), []

    def meanwhile(_: Bot) -> None:
        found.extend(world.sandbox().deliver(body))

    world.blip.before_look_up = meanwhile
    world.sandbox(uniform=min).deliver(body, seconds=30)

    (result,) = found
    assert outcome(result) == "retry_later"
    assert result.retry_in == pytest.approx(30, abs=3)
    assert len(world.blip.sent) == 1
    assert world.entry(body)["attempts"] == 1


def test_other_content_under_the_same_id_is_a_dead_letter_and_harms_nobody(world: World) -> None:
    body = a_request()
    world.sandbox().deliver(body)
    other = body | {"to": OTHER_PHONE}
    before = world.entry(body)

    (result,) = world.sandbox().deliver(other)

    assert (outcome(result), result.reason) == ("dead_letter", Reason.ID_CONFLICT)
    (letter,) = world.dead_letters.letters
    assert '"+5511988887777"' in letter.body
    assert (letter.reason, letter.bot, letter.notification_id, letter.generation) == (
        Reason.ID_CONFLICT,
        "default",
        body["id"],
        None,
    )
    assert world.entry(body) == before
    assert len(world.blip.sent) == 1


def test_a_conflict_within_one_batch(world: World) -> None:
    body = a_request()

    first, second = world.sandbox().deliver(body, body | {"to": OTHER_PHONE})

    assert (outcome(first), outcome(second)) == ("sent", "dead_letter")
    assert world.blip.look_ups == [PHONE]


def rejected(world: World, body: Request) -> None:
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no", code=21))
    world.sandbox().deliver(body)
    assert world.entry(body)["status"] == "rejected"


def test_a_redrive_is_the_next_generation_and_another_message(world: World) -> None:
    body = a_request()
    rejected(world, body)

    (result,) = world.sandbox().deliver(world.queued(body, generation=1))

    assert outcome(result) == "sent"
    assert world.blip.taken[0].message_id == f"{key_of(body)}:2"
    entry = world.entry(body)
    assert (entry["status"], entry["generation"]) == ("sent", 2)


def test_a_redrive_may_bring_other_content(world: World) -> None:
    body = a_request()
    rejected(world, body)

    (result,) = world.sandbox().deliver(world.queued(body | {"to": OTHER_PHONE}, generation=1))

    assert outcome(result) == "sent"
    assert world.blip.taken[0].identity == identity_of(OTHER_PHONE)


def test_what_failed_is_not_sent_for_a_mere_repetition(world: World) -> None:
    body = a_request()
    rejected(world, body)

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "duplicate"
    assert world.blip.taken == []
    assert len(ends(world)) == 1


def test_two_redrives_of_one_failure_are_one_send(world: World) -> None:
    body = a_request()
    rejected(world, body)
    redriven = world.queued(body, generation=1)

    results = world.sandbox().deliver(redriven, world.queued(body, generation=1))

    assert sorted(map(outcome, results)) == ["duplicate", "sent"]


def test_a_claim_that_was_lost_between_look_up_and_send_sends_nothing(world: World) -> None:
    """A sandbox that was frozen for a minute, and another that went on meanwhile."""
    body = a_request()
    slow = world.sandbox()

    def freeze(_: Bot) -> None:
        world.blip.before_look_up = lambda _: None
        world.clock.advance(60)
        (meanwhile,) = world.sandbox().deliver(body)
        assert outcome(meanwhile) == "sent"

    world.blip.before_look_up = freeze
    (result,) = slow.deliver(body)

    assert outcome(result) == "retry_later"
    assert len(world.blip.sent) == 1
    assert world.entry(body)["status"] == "sent"


# --- What cannot be sent --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "malformed"),
        ("not JSON", "malformed"),
        ("[]", "malformed"),
        ("{}", "invalid"),
        ('{"id": "a/b", "to": "+55"}', "invalid"),
    ],
)
def test_what_cannot_be_understood_is_a_dead_letter(world: World, body: str, reason: str) -> None:
    (result,) = world.sandbox().deliver(body)

    assert (outcome(result), result.retry_in) == ("dead_letter", None)
    (letter,) = world.dead_letters.letters
    assert (letter.body, letter.reason.value) == (body, reason)
    assert letter.generation is None
    assert letter.failure["phase"] == "contract"
    assert letter.failure["possibly_sent"] is False
    assert world.ledger_table.items == {}


def test_an_invalid_request_with_a_readable_id_is_told_to_upstream(world: World) -> None:
    world.sandbox().deliver({"id": "order-1", "to": PHONE})

    (event,) = world.events.told
    assert (event.notification_id, event.status) == ("order-1", Status.REJECTED)
    assert event.reason is Reason.INVALID
    (letter,) = world.dead_letters.letters
    assert letter.notification_id == "order-1"
    assert [field["field"] for field in letter.failure["fields"]] == ["template"]


def test_a_broken_request_does_no_harm_to_its_neighbours(world: World) -> None:
    good = [a_request(to=f"+55119888877{n:02}") for n in range(4)]

    results = world.sandbox().deliver("x", good[0], "{}", good[1], good[2], "[]", good[3])

    assert list(map(outcome, results)) == [
        *("dead_letter", "sent", "dead_letter", "sent"),
        *("sent", "dead_letter", "sent"),
    ]


def test_too_late_is_a_dead_letter(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now()))

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.EXPIRED
    assert world.entry(body)["status"] == "expired"
    assert world.blip.look_ups == []
    assert world.blip.sent == []
    (event,) = world.events.told
    assert (event.status, event.reason) == (Status.EXPIRED, Reason.EXPIRED)


def test_too_late_stays_too_late_after_a_redrive(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now()))
    world.sandbox().deliver(body)

    world.sandbox().deliver(world.queued(body, generation=1))

    assert [letter.generation for letter in world.dead_letters.letters] == [1, 2]
    assert world.blip.sent == []


def test_what_gets_too_late_while_it_waits_for_its_slot_is_not_sent(world: World) -> None:
    world.bots = {"default": {"key": KEY, "messages_per_second": 1}}
    world.know(PHONE)
    world.know(OTHER_PHONE)
    in_time = a_request()
    late = a_request(to=OTHER_PHONE, valid_until=at(world.clock.now() + 1))

    _, result = world.sandbox().deliver(in_time, late)

    assert result.reason is Reason.EXPIRED
    assert [sent.message_id for sent in world.blip.sent] == [key_of(in_time)]


def test_what_lay_on_the_queue_for_a_week_is_a_dead_letter(world: World) -> None:
    """SQS deletes after two weeks, silently."""
    week = 7 * DAY
    young, old = world.queued(a_request(), age=week - 1), world.queued(a_request(), age=week)

    first, second = world.sandbox().deliver(young, old)

    assert outcome(first) == "sent"
    assert second.reason is Reason.WAITED_TOO_LONG
    assert world.dead_letters.letters[0].failure["detail"] == "it lay on the queue for 7 days"


@pytest.mark.parametrize("allowed", [("+5511",), (OTHER_PHONE, "+1")])
def test_a_stage_writes_to_nobody_who_is_not_allowed(
    world: World, allowed: tuple[str, ...]
) -> None:
    stage = world.sandbox(allowed_recipients=allowed)
    world.know(PHONE)
    stranger, looked_up = a_request(), a_request(to="+5531999990000")
    tester = a_request(to=OTHER_PHONE)

    results = stage.deliver(stranger, looked_up, tester)

    assert [outcome(result) for result in results] == ["dead_letter", "dead_letter", "sent"]
    assert sorted(ends(world)) == sorted(
        [("not_allowed", stranger["id"]), ("not_allowed", looked_up["id"])]
    )
    assert world.blip.look_ups == [OTHER_PHONE]
    assert [sent.identity for sent in world.blip.sent] == [identity_of(OTHER_PHONE)]
    assert world.entry(stranger)["status"] == "rejected"


def test_after_a_restoration_of_the_ledger_older_requests_are_sent_by_nobody_but_an_operator(
    world: World,
) -> None:
    sandbox = world.sandbox(ledger_restored_at=world.clock.now() - 60)
    older, newer = a_request(), a_request()

    gone, sent = sandbox.deliver(world.queued(older, age=61), world.queued(newer, age=59))

    assert (outcome(gone), outcome(sent)) == ("dead_letter", "sent")
    assert ends(world) == [("outcome_unknown", older["id"])]
    assert world.dead_letters.letters[0].failure["possibly_sent"] is True

    (redriven,) = sandbox.deliver(world.queued(older, generation=1))
    assert outcome(redriven) == "sent"


@pytest.mark.parametrize("still", ["paused", "broken", "misconfigured"])
def test_what_waits_for_a_bot_that_does_not_work_does_not_wait_for_ever(
    world: World, still: str
) -> None:
    """SQS deletes silently what is 14 days old."""
    sandbox = world.sandbox()
    world.blip.before_ping = always(lambda: Transient("nothing"))
    match still:
        case "paused":
            sandbox.bot_states.pause("default")
        case "broken":
            sandbox.bot_states.open_breaker("default", "nothing works")
        case _:
            world.bots = {"default": {"key": "Key REPLACE_ME"}}
    old, young, late = a_request(), a_request(), a_request(valid_until=at(world.clock.now() - 1))

    gone, waits, expired = sandbox.deliver(
        world.queued(old, age=7 * DAY), world.queued(young, age=6 * DAY), late
    )

    assert (outcome(gone), outcome(expired)) == ("dead_letter", "dead_letter")
    assert waits.retry_in is not None
    assert sorted(ends(world)) == sorted([("waited_too_long", old["id"]), ("expired", late["id"])])
    assert world.entry(young) == {}
    assert (world.blip.look_ups, world.blip.sent) == ([], [])


def test_letters_are_not_repeated_while_a_table_cannot_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = world.sandbox()

    def unread(*_: Any) -> Any:
        raise ConnectionError

    monkeypatch.setattr(sandbox.identities, "read", unread)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            sandbox.deliver("not JSON", a_request())

    assert ends(world) == []


def test_a_redriven_conflict_does_not_take_the_others_place(world: World) -> None:
    first, other = a_request(id="order-1"), a_request(id="order-1", to=OTHER_PHONE)
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no", code=21))
    sandbox = world.sandbox()
    sandbox.deliver(first)
    sandbox.deliver(other)
    rejected, conflict = world.dead_letters.letters
    assert (rejected.generation, conflict.generation) == (1, None)

    again = sandbox.deliver(world.queued(other, generation=conflict.generation))
    sent = sandbox.deliver(world.queued(first, generation=rejected.generation))

    assert [outcome(result) for result in (*again, *sent)] == ["dead_letter", "sent"]


def test_a_key_that_stays_wrong_is_told_as_such(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.bot_states.open_breaker("default", "a wrong key")
    world.blip.before_ping = always(lambda: Misconfigured("HTTP 401", code=13))

    (result,) = sandbox.deliver(a_request())

    assert outcome(result) == "misconfigured"
    assert result.retry_in is not None


def test_a_bot_that_nobody_knows_is_a_dead_letter(world: World) -> None:
    body = a_request(bot="clinic")

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.UNKNOWN_BOT
    (letter,) = world.dead_letters.letters
    assert (letter.bot, letter.generation) == ("clinic", 1)
    assert "'clinic'" in letter.failure["detail"]
    assert world.entry(body)["status"] == "rejected"


def test_a_bot_that_was_added_a_moment_ago_is_found(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.deliver(a_request())
    world.bots["clinic"] = {"key": OTHER_KEY}
    world.clock.advance(11)

    (result,) = sandbox.deliver(a_request(bot="clinic"))

    assert outcome(result) == "sent"
    assert sandbox.secrets_manager.fetches == 2


def test_a_number_that_is_none_is_a_dead_letter_and_remembered(world: World) -> None:
    world.blip.before_look_up = raises(Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61))
    first, second = a_request(), a_request()

    for body in (first, second):
        (result,) = world.sandbox().deliver(body)
        assert result.reason is Reason.NOT_A_PHONE_NUMBER
        assert world.entry(body)["status"] == "rejected"

    assert world.blip.look_ups == [PHONE]
    assert world.blip.sent == []
    for letter in world.dead_letters.letters:
        assert letter.failure["code"] == 61
        assert letter.failure["phase"] == "look-up"

    world.clock.advance(DAY)
    (result,) = world.sandbox().deliver(a_request())
    assert outcome(result) == "sent"


def test_a_refused_message_is_a_dead_letter_at_once(world: World) -> None:
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no such template", code=21))
    body = a_request()

    (result,) = world.sandbox().deliver(body)

    assert (outcome(result), result.retry_in) == ("dead_letter", None)
    (letter,) = world.dead_letters.letters
    assert letter.reason is Reason.REJECTED
    assert letter.failure == {
        "detail": "no such template",
        "code": 21,
        "template": "order_shipped",
        "phase": "send",
        "attempts": 1,
        "possibly_sent": False,
        "redrives": 0,
    }
    assert world.entry(body)["reason"] == "rejected"
    assert world.entry(body)["code"] == 21


def test_a_refused_look_up_is_a_dead_letter_but_says_nothing_of_the_number(world: World) -> None:
    world.blip.before_look_up = raises(Rejected(Reason.REJECTED, "no", code=27))
    (first,) = world.sandbox().deliver(a_request())
    (second,) = world.sandbox().deliver(a_request())

    assert (first.reason, outcome(second)) == (Reason.REJECTED, "sent")
    assert len(world.blip.look_ups) == 2


def test_the_dead_letter_comes_before_the_ledger(world: World) -> None:
    """A crash in between repeats the letter, which can be told apart, and loses nothing."""
    world.blip.before_send = always(lambda: Rejected(Reason.REJECTED, "no", code=21))
    body, sandbox = a_request(), world.sandbox()
    statuses = []
    world.dead_letters.before_put = lambda: statuses.append(world.entry(body)["status"])

    sandbox.deliver(body)

    assert statuses == ["sending"]


def test_a_dead_letter_that_cannot_be_put_loses_nothing(world: World) -> None:
    world.know(PHONE)
    body = a_request(valid_until=at(world.clock.now()))
    failures = [RuntimeError("SQS does not answer")]

    def put() -> None:
        if failures:
            raise failures.pop()

    world.dead_letters.before_put = put
    (result,) = world.sandbox().deliver(body)
    assert outcome(result) == "crashed"
    assert result.retry_in is not None
    assert 30 <= result.retry_in <= 60
    assert world.events.told == []

    world.clock.advance(result.retry_in)
    (result,) = world.sandbox().deliver(body)
    assert result.reason is Reason.EXPIRED
    assert ends(world) == [("expired", body["id"])]


# --- What is tried again --------------------------------------------------------------------------

STAGES = ("before_look_up", "before_send")


def fail(world: World, stage: str, failure: Callable[[], Exception]) -> None:
    """Let every look-up, or every send, come to this."""

    def strike(_: Bot) -> None:
        raise failure()

    setattr(world.blip, stage, strike)


def fix(world: World) -> None:
    for stage in STAGES:
        setattr(world.blip, stage, lambda _: None)


@pytest.mark.parametrize("stage", STAGES)
def test_a_passing_failure_is_tried_again(world: World, stage: str) -> None:
    fail(world, stage, lambda: Transient("busy", code=51))
    body, sandbox = a_request(), world.sandbox()

    (result,) = sandbox.deliver(body)

    assert outcome(result) == "retrying"
    entry = world.entry(body)
    assert (entry["status"], entry["attempts"]) == ("retrying", 1)
    assert "token" not in entry
    fix(world)
    (result,) = sandbox.deliver(body)
    assert outcome(result) == "sent"
    # The identity's lease was given back, too.
    assert len(world.blip.look_ups) == (2 if stage == "before_look_up" else 1)


@pytest.mark.parametrize(
    ("uniform", "expected"),
    [
        (max, [10, 20, 40, 80, 160, 320, 640, 900, 900]),
        (min, [5] * 9),
    ],
)
def test_the_wait_grows_exponentially_with_full_jitter_up_to_a_quarter_of_an_hour(
    world: World, uniform: Callable[[float, float], float], expected: list[float]
) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    body, waits = a_request(), []

    for _ in expected:
        world.clock.advance(900)
        world.identities_table.items.pop("bot:default", None)  # the breaker is another matter
        (result,) = world.sandbox(uniform=uniform).deliver(body)
        waits.append(result.retry_in)

    assert waits == expected


def test_the_last_attempt_ends_in_a_dead_letter(world: World) -> None:
    fail(world, "before_send", lambda: Transient("busy", code=503))
    body = a_request()

    for _ in range(2):
        (result,) = world.sandbox(max_attempts=3).deliver(body)
        assert outcome(result) == "retrying"
    (result,) = world.sandbox(max_attempts=3).deliver(body)

    assert result.reason is Reason.RETRIES_EXHAUSTED
    (letter,) = world.dead_letters.letters
    assert letter.failure["attempts"] == 3
    assert letter.failure["code"] == 503
    assert world.entry(body)["status"] == "failed"
    assert len(world.blip.sent) == 3


def test_a_redrive_has_all_its_attempts_before_it(world: World) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    body = a_request()
    world.sandbox(max_attempts=1).deliver(body)

    (result,) = world.sandbox(max_attempts=2).deliver(world.queued(body, generation=1))

    assert outcome(result) == "retrying"


def test_what_is_valid_for_a_moment_comes_back_when_that_ends(world: World) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    body = a_request(valid_until=at(world.clock.now() + 3))

    (result,) = world.sandbox().deliver(body)
    assert outcome(result) == "retrying"
    assert result.retry_in == pytest.approx(3, abs=0.5)

    world.clock.advance(3)
    (result,) = world.sandbox().deliver(body)
    assert result.reason is Reason.EXPIRED


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("retry_after", "seconds"), [(None, 120), (17.0, 17)])
def test_a_throttled_bot_is_shut_for_everybody(
    world: World, stage: str, retry_after: float | None, seconds: float
) -> None:
    fail(world, stage, lambda: Throttled("slowly", code=34, retry_after_seconds=retry_after))
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(5)]

    results = world.sandbox(uniform=min).deliver(*bodies)

    # One was over the plan; the others of the batch were not even tried.
    asked = world.blip.look_ups if stage == "before_look_up" else world.blip.sent
    assert len(asked) == 1
    assert sorted(map(outcome, results)) == ["cooling_down"] * 4 + ["throttled"]
    assert all(result.retry_in == pytest.approx(seconds, abs=1) for result in results)
    for body in bodies:
        assert world.entry(body)["attempts"] == 0
        assert world.entry(body)["status"] == "retrying"

    # Another sandbox, another notification: not even claimed.
    fix(world)
    later = a_request()
    world.clock.advance(seconds - 1)
    (result,) = world.sandbox(uniform=min).deliver(later)
    assert outcome(result) == "cooling_down"
    assert result.retry_in == pytest.approx(1, abs=0.5)
    assert world.entry(later) == {}

    world.clock.advance(2)
    assert {outcome(v) for v in world.sandbox().deliver(later, *bodies)} == {"sent"}


def test_a_throttled_bot_does_not_stop_the_others(world: World) -> None:
    world.bots["clinic"] = {"key": OTHER_KEY}

    def refuse(bot: Bot) -> None:
        if bot.name == "default":
            raise Throttled("slowly")

    world.blip.before_send = refuse
    first, second = world.sandbox().deliver(a_request(), a_request(bot="clinic"))

    assert (outcome(first), outcome(second)) == ("throttled", "sent")


def test_waiting_for_a_penalty_is_no_attempt(world: World) -> None:
    fail(world, "before_send", lambda: Throttled("slowly"))
    body = a_request()

    for _ in range(30):
        (result,) = world.sandbox(max_attempts=2).deliver(body)
        assert outcome(result) == "throttled"
        world.clock.advance(200)

    fix(world)
    (result,) = world.sandbox(max_attempts=2).deliver(body)
    assert outcome(result) == "sent"


# --- A bot that is not well -----------------------------------------------------------------------


def wrong_key(bot: Bot) -> None:
    if bot.key == KEY:
        raise Misconfigured("wrong key", code=13)


@pytest.mark.parametrize("stage", STAGES)
def test_a_rotated_key_is_picked_up_on_the_way(world: World, stage: str) -> None:
    sandbox = world.sandbox()
    sandbox.secrets.bots()
    world.bots = {"default": {"key": OTHER_KEY}}
    world.clock.advance(11)
    setattr(world.blip, stage, wrong_key)
    world.blip.before_send = wrong_key

    (result,) = sandbox.deliver(a_request())

    assert outcome(result) == "sent"
    assert world.blip.taken[0].bot.key == OTHER_KEY
    assert sandbox.secrets_manager.fetches == 2


@pytest.mark.parametrize("stage", STAGES)
def test_a_wrong_key_stops_the_bot_and_its_requests_wait(world: World, stage: str) -> None:
    setattr(world.blip, stage, wrong_key)
    world.blip.before_ping = wrong_key
    sandbox = world.sandbox(uniform=min)
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(5)]

    results = sandbox.deliver(*bodies)

    asked = world.blip.look_ups if stage == "before_look_up" else world.blip.sent
    assert len(asked) == 1
    assert all(outcome(result) in {"misconfigured", "breaker_open"} for result in results)
    assert all(result.retry_in == 600 for result in results)
    assert ends(world) == []
    assert all(world.entry(body)["attempts"] == 0 for body in bodies)

    # Hours later it is the same; nothing is claimed, looked up or sent, nothing dead-lettered.
    for _ in range(20):
        world.clock.advance(700)
        (result,) = world.sandbox().deliver(a_request())
        assert outcome(result) == "misconfigured"
        assert result.retry_in is not None
        assert 600 <= result.retry_in <= 900
    assert len(world.blip.sent) <= 1
    assert ends(world) == []

    # Somebody fixes the key.
    world.bots = {"default": {"key": OTHER_KEY}}
    world.clock.advance(700)
    for _ in range(2):
        results = sandbox.deliver(*bodies)
        world.clock.advance(700)
    assert {outcome(result) for result in results} <= {"sent", "duplicate"}
    assert len(world.blip.taken) == 5


def test_a_secret_that_breaks_when_it_is_needed_most_stops_the_bot(world: World) -> None:
    """The key was refused: that nothing went out is certain, whatever the secret holds now."""
    world.know(PHONE)
    sandbox = world.sandbox()
    sandbox.secrets.bots()
    world.bots = "not JSON"
    world.clock.advance(11)
    world.blip.before_send = world.blip.before_ping = wrong_key
    body = a_request()

    (result,) = sandbox.deliver(body)

    assert outcome(result) == "misconfigured"
    assert world.entry(body)["status"] == "retrying"


@pytest.mark.parametrize(
    "bots",
    [
        {"default": {"key": "REPLACE_ME"}},
        {"default": {"key": "not base64"}},
        {"default": {}},
        {"default": None},
        "",
        "not JSON",
        "[]",
    ],
    ids=str,
)
def test_a_bot_that_cannot_be_used_lets_its_requests_wait(world: World, bots: Any) -> None:
    world.bots = bots
    body = a_request()

    (result,) = world.sandbox().deliver(body)

    assert result.retry_in is not None
    assert 600 <= result.retry_in <= 900
    assert world.entry(body) == {}
    assert ends(world) == []

    world.bots = {"default": {"key": KEY}}
    world.clock.advance(result.retry_in)
    assert outcome(world.sandbox().deliver(body)[0]) == "sent"


def test_a_bot_that_cannot_be_used_does_no_harm_to_the_others(world: World) -> None:
    world.bots = {"default": {"key": "REPLACE_ME"}, "clinic": {"key": KEY}}

    first, second = world.sandbox().deliver(a_request(), a_request(bot="clinic"))

    assert first.retry_in is not None
    assert outcome(second) == "sent"


def test_a_batch_that_can_do_nothing_holds_still_for_a_moment(world: World) -> None:
    """SQS allows 120,000 in flight."""
    world.bots = {"default": {"key": "REPLACE_ME"}}
    world.in_flight = 110_000

    world.sandbox().deliver(a_request(), a_request())
    assert world.clock.slept == [pytest.approx(3)]

    # But not where somebody had something to do.
    world.sandbox().deliver(a_request(), "not JSON")
    assert len(world.clock.slept) == 1


def five_failures(world: World, failure: Callable[[], Failure]) -> None:
    fail(world, "before_send", failure)
    for number in range(5):
        (result,) = world.sandbox().deliver(a_request(to=f"+55119888877{number:02}"))
        assert outcome(result) in {"retrying", "unknown"}
    fix(world)


@pytest.mark.parametrize("failure", [Transient, Unknown])
def test_five_notifications_in_a_row_without_an_answer_stop_the_bot(
    world: World, failure: type[Failure]
) -> None:
    five_failures(world, lambda: failure("nothing"))
    asked = len(world.blip.look_ups), len(world.blip.sent)
    body = a_request()

    (result,) = world.sandbox().deliver(body)  # the probe
    assert outcome(result) == "sent"
    assert world.blip.pings == 1
    assert outcome(world.sandbox().deliver(a_request())[0]) == "sent"
    assert world.blip.pings == 1
    assert (len(world.blip.look_ups), len(world.blip.sent)) == (asked[0] + 1, asked[1] + 2)


def test_while_the_probe_is_not_answered_nothing_is_claimed_looked_up_or_sent(
    world: World,
) -> None:
    five_failures(world, lambda: Transient("nothing"))
    asked = len(world.blip.look_ups), len(world.blip.sent)
    world.blip.before_ping = always(lambda: Transient("nothing"))
    bodies = [a_request() for _ in range(3)]

    for _ in range(3):
        results = world.sandbox().deliver(*bodies)
        assert {outcome(result) for result in results} == {"breaker_open"}
        world.clock.advance(31)

    assert world.blip.pings == 3
    assert (len(world.blip.look_ups), len(world.blip.sent)) == asked
    assert all(world.entry(body) == {} for body in bodies)


def test_a_secret_that_breaks_while_the_bot_is_probed_leaves_the_breaker_open(
    world: World,
) -> None:
    five_failures(world, lambda: Transient("nothing"))
    sandbox = world.sandbox()
    sandbox.secrets.bots()
    world.bots = "not JSON"
    world.clock.advance(11)
    world.blip.before_ping = wrong_key

    (result,) = sandbox.deliver(a_request())

    assert outcome(result) == "misconfigured"
    assert world.blip.pings == 1


def test_one_notification_goes_through_with_a_probe(world: World) -> None:
    five_failures(world, lambda: Transient("nothing"))
    bodies = [a_request(to=f"+55119777766{n:02}") for n in range(4)]

    results = world.sandbox().deliver(*bodies)

    assert sorted(map(outcome, results)) == ["breaker_open"] * 3 + ["sent"]
    assert {outcome(v) for v in world.sandbox().deliver(*bodies)} == {"sent", "duplicate"}


def test_what_was_under_way_when_the_breaker_opened_does_not_close_it(world: World) -> None:
    fail(world, "before_send", lambda: Transient("nothing"))
    world.sandbox().deliver(a_request())  # so that an answer is worth a write
    sandbox = world.sandbox()
    world.blip.before_send = lambda _: sandbox.bot_states.number_down("default", "payment")

    (result,) = sandbox.deliver(a_request())

    assert outcome(result) == "sent"
    item = world.identities_table.get("bot:default")
    assert (item["broken"], "tried_at" in item) == ("payment", False)


def test_a_probe_that_crashes_hurts_its_bot_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bots = {name: {"key": KEY} for name in ("default", "clinic")}
    sandbox = world.sandbox()
    sandbox.bot_states.open_breaker("default", "nothing works")

    def crash(_: str) -> bool:
        raise ConnectionError

    monkeypatch.setattr(sandbox.bot_states, "probe", crash)

    results = sandbox.deliver(a_request(), a_request(bot="clinic"))

    assert sorted(map(outcome, results)) == ["breaker_open", "sent"]
    assert world.blip.pings == 0


def test_a_refusal_is_no_sign_that_a_number_delivers_again(world: World) -> None:
    world.blip.before_look_up = always(lambda: Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61))
    sandbox = world.sandbox()
    sandbox.bot_states.number_down("default", "payment")

    for number in range(3):
        world.clock.advance(601)
        (result,) = sandbox.deliver(a_request(to=f"+55119777766{number:02}"))
        assert outcome(result) == "dead_letter"

    item = world.identities_table.get("bot:default")
    assert (item["broken"], "tried_at" in item) == ("payment", False)


def test_nobody_is_looked_up_while_a_number_is_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may have read the bot's item before."""
    sandbox = world.sandbox()
    read = sandbox.identities.read

    def just_before(*arguments: Any) -> Any:
        found = read(*arguments)
        sandbox.bot_states.number_down("default", "payment")
        return found

    monkeypatch.setattr(sandbox.identities, "read", just_before)

    sandbox.deliver(a_request(), a_request(to=OTHER_PHONE))

    assert (world.blip.look_ups, world.blip.sent) == ([], [])


def test_bots_that_hang_keep_no_other_waiting(world: World) -> None:
    names = ("hangs", "hangs-too", "clinic")
    world.bots = {name: {"key": KEY} for name in names}
    sent = Event()
    waited: list[bool] = []

    def hang(_: Bot) -> None:
        waited.append(sent.wait(5))
        raise Transient("nothing")

    world.blip.before_ping = hang
    world.blip.before_send = lambda _: sent.set()
    with ThreadPoolExecutor(8) as threads:
        sandbox = world.sandbox(threads=threads)
        for name in names[:2]:
            sandbox.bot_states.open_breaker(name, "nothing works")

        results = sandbox.deliver(*[a_request(bot=name) for name in names])

    assert sorted(map(outcome, results)) == ["breaker_open", "breaker_open", "sent"]
    assert waited == [True, True]


def test_a_paused_bot_sends_nothing_until_it_is_resumed(world: World) -> None:
    world.bots = {name: {"key": KEY} for name in ("default", "clinic")}
    sandbox = world.sandbox()
    sandbox.bot_states.pause("default")
    body, other = a_request(), a_request(bot="clinic")

    paused, sent = sandbox.deliver(body, other)

    assert (outcome(paused), outcome(sent)) == ("paused", "sent")
    assert paused.retry_in is not None
    assert paused.retry_in >= 600
    assert world.entry(body) == {}
    assert world.blip.look_ups == [PHONE]

    sandbox.bot_states.resume("default")
    assert outcome(sandbox.deliver(body)[0]) == "sent"
    assert world.entry(body)["attempts"] == 1


def test_what_is_paused_in_the_middle_of_a_batch_goes_no_further(world: World) -> None:
    sandbox = world.sandbox()
    world.blip.before_look_up = lambda _: sandbox.bot_states.pause("default")
    body = a_request()

    (result,) = sandbox.deliver(body)

    assert outcome(result) == "paused"
    assert world.blip.sent == []
    assert world.entry(body)["status"] == "retrying"


def test_one_notification_that_fails_five_times_stops_nobody(world: World) -> None:
    fail(world, "before_send", lambda: Transient("nothing"))
    body = a_request()
    for _ in range(6):
        (result,) = world.sandbox().deliver(body)
        assert outcome(result) == "retrying"


def test_an_answer_in_between_starts_the_count_anew(world: World) -> None:
    for _ in range(3):
        fail(world, "before_send", lambda: Transient("nothing"))
        for _ in range(4):
            assert outcome(world.sandbox().deliver(a_request())[0]) == "retrying"
        fix(world)
        assert outcome(world.sandbox().deliver(a_request())[0]) == "sent"
    assert world.blip.pings == 0


# --- Time and slots -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "answer"),
    [
        ("before_look_up", Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61)),
        ("before_send", Rejected(Reason.REJECTED, "no", code=21)),
    ],
)
def test_a_refusal_is_an_answer_too(world: World, stage: str, answer: Failure) -> None:
    world.identities_table.items["bot:default"] = {"failing": {"a", "b", "c", "d"}}
    fail(world, stage, lambda: answer)

    world.sandbox().deliver(a_request())

    assert "failing" not in world.identities_table.get("bot:default")


def test_a_number_that_is_remembered_to_be_none_is_no_answer(world: World) -> None:
    fail(world, "before_look_up", lambda: Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61))
    world.sandbox().deliver(a_request())
    world.identities_table.items["bot:default"] = {"failing": {"a", "b", "c", "d"}}

    world.sandbox().deliver(a_request())

    assert len(world.identities_table.get("bot:default")["failing"]) == 4


def test_a_crash_hides_no_answer_that_another_notification_got(world: World) -> None:
    world.identities_table.items["bot:default"] = {"failing": {"a", "b", "c", "d"}}
    world.blip.before_send = raises(RuntimeError("nobody foresaw it"))

    results = world.sandbox().deliver(a_request(), a_request(to=OTHER_PHONE))

    assert list(map(outcome, results)) == ["crashed", "sent"]
    assert "failing" not in world.identities_table.get("bot:default")


def test_with_too_little_time_left_nothing_is_claimed_and_all_comes_back_at_once(
    world: World,
) -> None:
    bodies = [a_request() for _ in range(5)]

    results = world.sandbox().deliver(*bodies, seconds=11.9)

    assert [(outcome(v), v.retry_in) for v in results] == [("retry_later", 0)] * 5
    assert world.ledger_table.writes == 0
    assert world.blip.look_ups == []


def test_what_is_broken_is_a_dead_letter_also_with_little_time_left(world: World) -> None:
    (result,) = world.sandbox().deliver("not JSON", seconds=1)

    assert outcome(result) == "dead_letter"


def test_nobody_is_looked_up_who_could_not_be_written_to_afterwards(world: World) -> None:
    """Look-ups that no send follows count against the number."""
    world.know(OTHER_PHONE)
    unknown, known = a_request(), a_request(to=OTHER_PHONE)

    first, second = world.sandbox().deliver(unknown, known, seconds=20)

    assert (outcome(first), first.retry_in) == ("retry_later", 0)
    assert outcome(second) == "sent"
    assert world.blip.look_ups == []
    entry = world.entry(unknown)
    assert (entry["status"], entry["attempts"]) == ("retrying", 0)
    # Its look-up is free for whoever comes next.
    lease = world.sandbox().identities.lease(("default", PHONE), 10)
    assert isinstance(lease, LookUpLease)


def test_slow_neighbours_leave_no_send_that_could_be_cut_off(world: World) -> None:
    """Ten seconds per call, one after the other: what no longer fits comes back at once."""
    for number in range(6):
        world.know(f"+551198888770{number}")
    world.blip.call_seconds = 9.5
    bodies = [a_request(to=f"+551198888770{number}") for number in range(6)]

    results = world.sandbox().deliver(*bodies, seconds=30)

    assert list(map(outcome, results)) == ["sent", "sent", *["retry_later"] * 4]
    assert all(v.retry_in == pytest.approx(0, abs=1) for v in results[2:])
    assert all(world.entry(body)["attempts"] == 0 for body in bodies[2:])
    assert world.clock.now() - world.blip.sent[-1].at <= 12


def test_a_batch_keeps_to_the_plan(world: World) -> None:
    world.bots = {"default": {"key": KEY, "messages_per_second": 20}}
    bodies = [a_request(to=f"+551198888{n:04}") for n in range(30)]
    for body in bodies:
        world.know(body["to"])
    sandbox = world.sandbox()

    results = sandbox.deliver(*bodies)

    assert set(map(outcome, results)) == {"sent"}
    times = [sent.at for sent in world.blip.sent]
    assert max(sum(first <= at < first + 1 for at in times) for first in times) <= 20
    assert times[-1] - times[0] < 30 / 20 + 0.2
    # One reservation for the whole batch.
    assert sandbox.bot_states.reservations == [("default", "messages", 30)]


@pytest.mark.parametrize("answered_in", [0.02, 0.04, 0.1, 0.7])
def test_slots_whose_reservation_takes_long_let_everybody_send_and_not_at_once(
    world: World, answered_in: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bots = {"default": {"key": KEY, "messages_per_second": 20}}
    bodies = [a_request(to=f"+551198888{n:04}") for n in range(10)]
    for body in bodies:
        world.know(body["to"])
    sandbox = world.sandbox()
    reserve = sandbox.bot_states.reserve

    def slowly(*args: Any, **kwargs: Any) -> Reservation:
        reservation = reserve(*args, **kwargs)
        world.clock.sleep(answered_in)
        return reservation

    monkeypatch.setattr(sandbox.bot_states, "reserve", slowly)
    results = sandbox.deliver(*bodies)

    assert set(map(outcome, results)) == {"sent"}
    times = [sent.at for sent in world.blip.sent]
    assert max(sum(first <= at < first + 0.5 for at in times) for first in times) <= 11
    assert min(later - earlier for earlier, later in pairwise(times)) > 0


def test_look_ups_keep_to_the_commands_plan(world: World) -> None:
    world.bots = {"default": {"key": KEY, "commands_per_second": 5, "messages_per_second": 1000}}
    times = []
    world.blip.before_look_up = lambda _: times.append(world.clock.now())

    world.sandbox().deliver(*[a_request(to=f"+551198888{n:04}") for n in range(10)])

    assert len(times) == 10
    assert max(sum(first <= at < first + 1 for at in times) for first in times) <= 5


def test_the_look_ups_of_a_batch_reserve_together_and_so_do_the_sends_after_them(
    world: World,
) -> None:
    sandbox = world.sandbox()

    sandbox.deliver(*[a_request(to=f"+55119888877{n:02}") for n in range(2)])

    assert sandbox.bot_states.reservations == [
        ("default", "commands", 2),
        ("default", "messages", 2),
    ]


def test_a_bot_without_a_slot_soon_lets_its_requests_wait_unclaimed(world: World) -> None:
    world.bots = {"default": {"key": KEY, "messages_per_second": 1}}
    bodies = [a_request(to=f"+551198888{n:04}") for n in range(8)]
    for body in bodies:
        world.know(body["to"])
    first, second = world.sandbox(), world.sandbox()
    first.deliver(*bodies[:6])
    world.clock.advance(-5)  # as if the two had started together

    results = second.deliver(*bodies[6:])

    assert set(map(outcome, results)) == {"retry_later"}
    waits = [result.retry_in for result in results]
    assert all(wait is not None and 5 < wait < 7 for wait in waits)
    assert all(world.entry(body) == {} for body in bodies[6:])


# --- Looked up by another -------------------------------------------------------------------------


class Meanwhile(Clock):
    """Something happens while somebody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps = 0
        self.happens: Callable[[int], None] = lambda _: None

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if seconds > 0:
            self.sleeps += 1
            self.happens(self.sleeps)


def test_what_another_sandbox_is_looking_up_is_waited_for(world: World) -> None:
    clock = Meanwhile()
    world = World(clock=clock)
    other = world.sandbox().identities
    lease = other.lease(("default", PHONE), 22)
    assert isinstance(lease, LookUpLease)

    def learn(sleeps: int) -> None:
        if sleeps == 5:
            world.know(PHONE)

    clock.happens = learn
    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "sent"
    assert world.blip.look_ups == []


def test_who_was_looked_up_a_moment_ago_is_not_looked_up_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = world.sandbox()
    read = sandbox.identities.read

    def read_too_early(*asked: Any) -> Any:
        found = read(*asked)
        world.know(PHONE)
        return found

    monkeypatch.setattr(sandbox.identities, "read", read_too_early)

    sandbox.deliver(a_request())

    assert [sent.identity for sent in world.blip.sent] == [identity_of(PHONE)]
    assert world.blip.look_ups == []


def test_what_another_sandbox_looks_up_for_too_long_comes_back(world: World) -> None:
    other = world.sandbox().identities
    other.lease(("default", PHONE), 22)
    started, body = world.clock.now(), a_request()

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "retry_later"
    assert result.retry_in is not None
    assert 1 <= result.retry_in <= 5.1
    assert 1.9 < world.clock.now() - started < 2.3
    assert world.blip.look_ups == []
    entry = world.entry(body)
    assert (entry["status"], entry["attempts"]) == ("retrying", 0)


def test_who_wakes_too_late_for_a_slot_takes_another(world: World) -> None:
    """A stalled machine must not let out at once what it held up."""
    clock = Meanwhile()
    world = World(clock=clock, bots={"default": {"key": KEY, "messages_per_second": 2}})
    bodies = [a_request(to=f"+551198888{n:04}") for n in range(4)]
    for body in bodies:
        world.know(body["to"])

    def stall(sleeps: int) -> None:
        if sleeps == 1:
            clock.advance(0.3)

    clock.happens = stall
    results = world.sandbox().deliver(*bodies)

    assert set(map(outcome, results)) == {"sent"}
    times = [sent.at for sent in world.blip.sent]
    assert min(later - earlier for earlier, later in pairwise(times)) >= 1 / 2


# --- Nobody knows whether it went out -------------------------------------------------------------

WINDOW = 900


def unknown(world: World, body: Request, *, stored: Status | None = None) -> None:
    """Let the answer to its send be lost."""
    world.blip.before_send = raises(Unknown("no answer"))
    (result,) = world.sandbox().deliver(body)
    assert outcome(result) == "unknown"
    assert result.retry_in == pytest.approx(WINDOW, abs=1)
    assert world.entry(body)["status"] == "unknown"
    if stored is not None:
        message_id = world.blip.sent[-1].message_id
        world.blip.stored[message_id] = [Receipt(key_of(body), 1, stored)]


def show_later_message(world: World) -> str:
    """Send another message later, and let BLiP's history show it; its id."""
    before = len(world.blip.taken)
    world.blip.before_send = lambda _: None
    world.clock.advance(3)
    (result,) = world.sandbox().deliver(a_request(to="+5511977776666"))
    assert outcome(result) == "sent"
    later = world.blip.taken[before].message_id
    world.blip.stored[later] = [Receipt(later, 1, Status.ACCEPTED)]
    return later


def test_what_may_have_gone_out_is_not_sent_again_before_that_is_settled(world: World) -> None:
    body = a_request()
    unknown(world, body)

    for generation in (None, 1):
        world.clock.advance(WINDOW / 3)
        (result,) = world.sandbox().deliver(world.queued(body, generation=generation))
        assert result.retry_in is not None
        assert 0 < result.retry_in <= WINDOW
    assert len(world.blip.sent) == 1
    assert world.blip.asked == []


def test_what_may_have_gone_out_is_not_dead_lettered_for_being_late(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now() + 60))
    unknown(world, body)

    world.clock.advance(120)
    (result,) = world.sandbox().deliver(body)

    assert result.retry_in is not None
    assert ends(world) == []


def test_a_sandbox_that_ended_in_the_middle_of_a_send_leaves_an_unknown(world: World) -> None:
    world.know(PHONE)
    fail(world, "before_send", lambda: RuntimeError("the sandbox is gone"))
    body = a_request()
    (result,) = world.sandbox().deliver(body)
    assert outcome(result) == "crashed"
    assert world.entry(body)["status"] == "sending"
    fix(world)

    for seconds in (20, 40, WINDOW - 60):
        world.clock.advance(seconds)
        (result,) = world.sandbox().deliver(body)
        assert result.retry_in is not None
    assert len(world.blip.sent) == 1

    world.clock.advance(WINDOW)
    world.sandbox().deliver(body)
    assert world.blip.asked == [key_of(body)]


@pytest.mark.parametrize("stored", [Status.ACCEPTED, Status.DISPATCHED, Status.CONSUMED])
def test_what_blip_s_history_knows_went_out(world: World, stored: Status) -> None:
    body = a_request()
    unknown(world, body, stored=stored)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)

    assert (outcome(result), result.retry_in) == ("settled", None)
    assert world.entry(body)["status"] == stored
    assert len(world.blip.sent) == 1


def test_what_blip_s_history_does_not_know_is_sent_again_under_the_same_id_once(
    world: World,
) -> None:
    body = a_request()
    unknown(world, body)
    later = show_later_message(world)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)
    assert (outcome(result), result.retry_in) == ("denied", 0)
    assert world.blip.asked == [key_of(body), later]
    world.blip.before_send = raises(Unknown("no answer"))
    world.sandbox().deliver(body)
    assert [sent.message_id for sent in world.blip.sent] == [key_of(body), later, key_of(body)]

    # The second time it is given up.
    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)
    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert world.dead_letters.letters[0].failure["possibly_sent"] is True
    assert len(world.blip.sent) == 3


def test_what_is_too_late_by_the_time_it_is_denied_is_not_sent_again(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now() + 60))
    unknown(world, body)
    later = show_later_message(world)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.EXPIRED
    assert world.entry(body)["status"] == "expired"
    assert [sent.message_id for sent in world.blip.sent] == [key_of(body), later]


def test_what_is_too_late_but_went_out_is_no_dead_letter(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now() + 60))
    unknown(world, body, stored=Status.RECEIVED)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "settled"
    assert ends(world) == []


def test_who_prefers_none_to_two_gets_none(world: World) -> None:
    body = a_request(if_unknown="fail")
    unknown(world, body)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert len(world.blip.sent) == 1


@pytest.mark.parametrize("failure", [Transient, Rejected, Misconfigured, Throttled])
def test_a_question_that_fails_is_no_answer(world: World, failure: type[Failure]) -> None:
    raised = Rejected(Reason.REJECTED, "no") if failure is Rejected else failure("no")
    body = a_request()
    unknown(world, body)
    world.blip.before_history = always(lambda: raised)

    for _ in range(3):
        world.clock.advance(WINDOW + 2)
        (result,) = world.sandbox().deliver(body)
        assert result.retry_in is not None
        assert result.retry_in >= 120
        assert world.entry(body)["status"] == "unknown"
    assert len(world.blip.sent) == 1
    assert ends(world) == []


def test_what_is_too_late_at_the_very_moment_it_is_denied_is_not_sent_again(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now() + WINDOW + 5))
    unknown(world, body)
    show_later_message(world)
    world.clock.advance(WINDOW + 2)

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.EXPIRED
    assert len(world.blip.sent) == 2


@pytest.mark.parametrize(("uniform", "wait"), [(max, WINDOW), (min, WINDOW / 3)])
def test_an_unknown_of_a_bot_that_was_taken_away_waits_for_it(
    world: World, uniform: Callable[[float, float], float], wait: float
) -> None:
    body = a_request()
    unknown(world, body)
    show_later_message(world)
    bots, world.bots = world.bots, {}
    world.clock.advance(WINDOW + 2)
    assert outcome(world.sandbox().deliver(body)[0]) == "misconfigured"
    world.clock.advance(900)  # now it is an unknown bot

    (result,) = world.sandbox(uniform=uniform).deliver(body)

    assert (outcome(result), result.retry_in) == ("unsettled", wait)
    assert ends(world) == []
    # Nobody has it meanwhile: whoever comes next may ask.
    world.bots = bots
    assert outcome(world.sandbox().deliver(body)[0]) == "denied"


def test_a_question_waits_for_its_place_in_the_commands_plan(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(2)]
    for body in bodies:
        unknown(world, body)
    world.clock.advance(WINDOW + 2)
    sandbox = world.sandbox()

    sandbox.deliver(*bodies)

    assert sandbox.bot_states.reservations == [("default", "commands", 1)] * 2


def test_a_question_takes_no_place_that_is_reserved_for_a_look_up(world: World) -> None:
    body = a_request()
    unknown(world, body)
    world.clock.advance(WINDOW + 2)
    sandbox = world.sandbox()

    sandbox.deliver(body, *[a_request(to=f"+55119888877{n:02}") for n in range(2)])

    commands = [count for _, plan, count in sandbox.bot_states.reservations if plan == "commands"]
    assert commands == [1, 2]


def test_a_question_for_which_there_is_no_place_soon_is_asked_later(world: World) -> None:
    body = a_request()
    unknown(world, body)
    show_later_message(world)
    world.clock.advance(WINDOW + 2)
    later = round((world.clock.now() + 60) * 1e6)
    world.identities_table.items["bot:default"]["next_commands_at"] = later

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "retry_later"
    assert result.retry_in == pytest.approx(60, abs=1)
    assert world.blip.asked == []
    # Nobody has it meanwhile: whoever comes next may ask.
    world.clock.advance(60)
    assert outcome(world.sandbox().deliver(body)[0]) == "denied"


def test_no_question_is_asked_whose_answer_could_come_too_late(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(2)]
    for body in bodies:
        unknown(world, body)
    later = show_later_message(world)
    world.clock.advance(WINDOW + 2)
    world.blip.call_seconds = 10

    first, second = world.sandbox().deliver(*bodies, seconds=31)

    assert (outcome(first), outcome(second)) == ("denied", "retry_later")
    assert second.retry_in == pytest.approx(0, abs=1)
    assert world.blip.asked == [key_of(bodies[0]), later]


def test_a_question_is_asked_with_the_bots_own_key(world: World) -> None:
    world.bots["clinic"] = {"key": OTHER_KEY}
    body = a_request(bot="clinic")
    unknown(world, body)
    world.clock.advance(WINDOW + 2)
    keys: list[str] = []
    world.blip.before_history = lambda bot: keys.append(bot.key)

    world.sandbox().deliver(body)

    assert keys == [OTHER_KEY]


@pytest.mark.parametrize(("receipts", "asked_for"), [("history", True), ("webhook", False)])
def test_what_went_out_after_all_is_asked_for_its_receipts_if_none_come(
    world: World, receipts: str, *, asked_for: bool
) -> None:
    world.bots["default"]["receipts"] = receipts
    body = a_request()
    unknown(world, body, stored=Status.ACCEPTED)
    world.clock.advance(WINDOW + 2)

    world.sandbox().deliver(body)

    entry = world.entry(body)
    assert entry["status"] == "accepted"
    expected = round(1000 * (world.clock.now() + 300)) if asked_for else None
    assert entry.get("poll_at") == expected


def test_unknown_is_given_up_after_three_days_when_the_history_shows_nothing(
    world: World,
) -> None:
    body = a_request()
    unknown(world, body)
    show_later_message(world)

    world.clock.advance(3 * DAY)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert world.blip.asked == [key_of(body)]
    assert len(world.blip.sent) == 2


def test_unknown_is_settled_after_three_days_when_the_history_still_shows_it(world: World) -> None:
    body = a_request()
    unknown(world, body, stored=Status.ACCEPTED)

    world.clock.advance(3 * DAY)
    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "settled"


def test_unknown_is_given_up_after_three_days_when_the_question_fails(world: World) -> None:
    body = a_request()
    unknown(world, body)
    world.clock.advance(3 * DAY)
    world.blip.before_history = raises(Transient("no answer"))

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN


# --- The control question -------------------------------------------------------------------------


def test_empty_history_denies_nothing_until_it_shows_a_later_message(world: World) -> None:
    body = a_request()
    unknown(world, body)
    later = show_later_message(world)
    shown = world.blip.stored.pop(later)

    for _ in range(8):
        world.clock.advance(WINDOW + 2)
        assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"
    world.blip.stored[later] = shown
    world.clock.advance(WINDOW + 2)

    assert outcome(world.sandbox().deliver(body)[0]) == "denied"


def test_unknown_keeps_its_control_while_newer_messages_take_its_place(world: World) -> None:
    body = a_request()
    unknown(world, body)
    later = show_later_message(world)
    shown = world.blip.stored.pop(later)
    world.clock.advance(WINDOW + 2)
    world.sandbox().deliver(body)
    for _ in range(3):
        world.clock.advance(WINDOW)
        del world.blip.stored[show_later_message(world)]
    world.blip.stored[later] = shown

    assert outcome(world.sandbox().deliver(body)[0]) == "denied"
    assert world.blip.asked[-1] == later


def test_history_that_has_shown_a_later_message_needs_no_second_control(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(2)]
    for body in bodies:
        unknown(world, body)
    later = show_later_message(world)
    world.clock.advance(WINDOW + 2)

    assert outcome(world.sandbox().deliver(bodies[0])[0]) == "denied"
    assert outcome(world.sandbox().deliver(bodies[1])[0]) == "denied"

    assert world.blip.asked == [key_of(bodies[0]), later, key_of(bodies[1])]


def test_unknowns_of_one_batch_ask_about_their_control_once(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(3)]
    for body in bodies:
        unknown(world, body)
    later = show_later_message(world)
    del world.blip.stored[later]
    world.clock.advance(WINDOW + 2)

    world.sandbox().deliver(*bodies)

    assert world.blip.asked.count(later) == 1


def test_message_sent_before_an_unknown_is_no_control_for_six_hours(world: World) -> None:
    show_later_message(world)
    body = a_request()
    unknown(world, body)

    world.clock.advance(6 * 3600 - 1)
    assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"
    world.clock.advance(1)
    assert outcome(world.sandbox().deliver(body)[0]) == "denied"


def test_message_sent_before_an_unknown_must_be_shown_after_six_hours(world: World) -> None:
    del world.blip.stored[show_later_message(world)]
    body = a_request()
    unknown(world, body)

    world.clock.advance(6 * 3600)

    assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"


def test_first_message_of_a_bot_is_given_up_after_six_hours(world: World) -> None:
    body = a_request()
    unknown(world, body)

    world.clock.advance(6 * 3600 - 1)
    assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"
    world.clock.advance(1)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert len(world.blip.sent) == 1


def test_producer_that_wants_no_second_send_hears_after_the_window(world: World) -> None:
    body = a_request(if_unknown="fail")
    unknown(world, body)
    world.clock.advance(WINDOW + 2)

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert world.blip.asked == [key_of(body)]


def test_control_is_written_once_in_a_third_of_the_window(world: World) -> None:
    sandbox = world.sandbox()
    kept = []
    for _ in range(4):
        sandbox.deliver(a_request())
        kept.append(world.identities_table.get("bot:default")["control"])
        world.clock.advance(WINDOW / 6 + 1)

    assert kept[0] == kept[1] != kept[2] == kept[3]
    assert world.identities_table.get("bot:default")["control_before"] == kept[0]


# --- A wrong bot, or a wrong notification ---------------------------------------------------------


def refuse(world: World, *phones: str, failure: Callable[[], Failure] | None = None) -> None:
    """Refuse the messages to these as though the bot were misconfigured."""
    addresses = {identity_of(phone) for phone in phones}

    def strike(_: Bot) -> None:
        if world.blip.sent[-1].identity in addresses:
            raise failure() if failure else Misconfigured("HTTP 403", code=403)

    world.blip.before_send = strike


def test_notification_that_is_refused_while_the_bot_answers_costs_it_an_attempt(
    world: World,
) -> None:
    refuse(world, PHONE)
    bad, good = a_request(), a_request(to=OTHER_PHONE)

    refused, sent = world.sandbox().deliver(bad, good)

    assert (outcome(refused), outcome(sent)) == ("refused", "sent")
    assert (world.blip.pings, world.entry(bad)["attempts"]) == (1, 1)
    assert "broken" not in world.identities_table.get("bot:default")


def test_notification_that_is_always_refused_is_given_up(world: World) -> None:
    refuse(world, PHONE)
    body = a_request()

    for _ in range(19):
        world.sandbox().deliver(body)
        world.clock.advance(900)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.RETRIES_EXHAUSTED
    assert "broken" not in world.identities_table.get("bot:default")
    assert world.dead_letters.letters[0].failure["code"] == 403


def test_five_different_refusals_in_a_row_open_the_breaker(world: World) -> None:
    """A bot without a WhatsApp channel answers pings, and no request can succeed."""
    fail(world, "before_look_up", lambda: Misconfigured("81 twice", code=81))
    phones = [f"+55119888877{number:02}" for number in range(5)]

    for phone in phones[:4]:
        world.sandbox().deliver(a_request(to=phone))
    assert "broken" not in world.identities_table.get("bot:default")
    world.sandbox().deliver(a_request(to=phones[4]))

    assert "broken" in world.identities_table.get("bot:default")


def test_later_refusals_of_the_same_notifications_do_not_open_the_breaker(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{number:02}") for number in range(8)]
    refuse(world, *(body["to"] for body in bodies))
    for body in bodies:
        world.sandbox().deliver(body)
        world.sandbox().deliver(a_request(to=OTHER_PHONE))

    for _ in range(3):
        world.clock.advance(900)
        results = world.sandbox().deliver(*bodies)
        assert list(map(outcome, results)) == ["refused"] * 8

    assert "broken" not in world.identities_table.get("bot:default")


def test_probe_that_is_refused_costs_no_attempt_and_leaves_the_breaker_open(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.bot_states.open_breaker("default", "no answer")
    refuse(world, PHONE)
    world.know(PHONE)
    body = a_request()

    (result,) = sandbox.deliver(body)

    assert outcome(result) == "misconfigured"
    assert world.entry(body)["attempts"] == 0
    assert "broken" in world.identities_table.get("bot:default")


@pytest.mark.parametrize(
    ("age", "worked_before", "attempts"),
    [(DAY + 1, DAY - 10, 1), (DAY - 1, 10, 0), (DAY + 1, DAY + 10, 0), (DAY + 1, None, 0)],
)
def test_probe_that_is_refused_costs_an_old_notification_of_a_bot_that_worked_an_attempt(
    world: World, age: float, worked_before: float | None, attempts: int
) -> None:
    """Where only such notifications are left, nothing else would end them."""
    sandbox = world.sandbox()
    published_at = world.clock.now() - age
    if worked_before is not None:
        control = Control("a message", published_at - worked_before)
        sandbox.bot_states.keep_control("default", control, 0)
    sandbox.bot_states.open_breaker("default", "no answer")
    world.know(PHONE)
    refuse(world, PHONE)
    body = a_request()

    (result,) = sandbox.deliver(world.queued(body, age=age))

    assert outcome(result) == ("refused" if attempts else "misconfigured")
    assert world.entry(body)["attempts"] == attempts
    assert "broken" in world.identities_table.get("bot:default")


def test_refusals_of_one_batch_ping_once(world: World) -> None:
    phones = [f"+55119888877{number:02}" for number in range(6)]
    refuse(world, *phones)

    results = world.sandbox().deliver(*(a_request(to=phone) for phone in phones))

    assert {outcome(result) for result in results} == {"refused"}
    assert world.blip.pings == 1


def test_throttled_ping_after_a_refusal_is_a_penalty(world: World) -> None:
    """401 with LIME's 34 says both."""
    refuse(world, PHONE)
    world.blip.before_ping = always(lambda: Throttled("too fast"))
    body = a_request()

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "throttled"
    assert world.entry(body)["attempts"] == 0


def test_refusal_with_too_little_time_for_a_ping_comes_back_at_once(world: World) -> None:
    world.know(PHONE)
    refuse(world, PHONE)
    body = a_request()

    def slowly(_: Bot) -> None:
        world.clock.advance(5)
        raise Misconfigured("HTTP 403", code=403)

    world.blip.before_send = slowly
    (result,) = world.sandbox().deliver(body, seconds=14)

    assert (outcome(result), world.blip.pings) == ("retry_later", 0)
    assert world.entry(body)["attempts"] == 0


# --- A penalty lowers the share, and time heals it ------------------------------------------------


def test_first_throttling_of_a_penalty_lowers_the_share_and_the_others_do_not(
    world: World,
) -> None:
    sandbox = world.sandbox()
    world.blip.before_send = always(lambda: Throttled("too fast"))

    sandbox.deliver(a_request())
    first = world.identities_table.get("bot:default")
    sandbox.bot_states.start_cooldown(
        Bot(name="default", key=KEY), "messages", world.clock.now() + 130
    )
    second = world.identities_table.get("bot:default")

    assert (first["messages_share"], first["penalties"]) == (720_000, 1)
    assert (second["messages_share"], second["penalties"]) == (720_000, 1)
    assert second["throttled_until"] > first["throttled_until"]
    assert "commands_share" not in first
    assert world.meter.counts["cooldown_began"] == 1


def test_throttled_look_up_lowers_the_share_of_the_commands(world: World) -> None:
    world.blip.before_look_up = always(lambda: Throttled("too fast"))

    world.sandbox().deliver(a_request())

    item = world.identities_table.get("bot:default")
    assert item["commands_share"] == 720_000
    assert "messages_share" not in item


def test_share_never_falls_below_a_tenth_and_climbs_from_what_was_left(world: World) -> None:
    bot_states, bot = world.sandbox().bot_states, Bot(name="default", key=KEY)
    shares = []
    for _ in range(15):
        bot_states.start_cooldown(bot, "messages", world.clock.now() + 120)
        shares.append(bot_states.state("default").share("messages", bot.share, world.clock.now()))
        world.clock.advance(121)

    assert shares[1] == pytest.approx(0.8 * (0.72 + 0.02 * 121 / 3600))
    assert min(shares) == shares[-1] == 0.1
    world.clock.advance(3600)
    assert bot_states.state("default").share("messages", bot.share, world.clock.now()) > 0.12


def test_slots_are_spaced_by_the_share_that_is_in_force(world: World) -> None:
    world.know(PHONE)
    world.know(OTHER_PHONE)
    now = round(1000 * world.clock.now())
    world.bots["default"]["messages_per_second"] = 2
    world.identities_table.items["bot:default"] = {
        "messages_share": 500_000,
        "messages_share_at": now,
    }

    world.sandbox().deliver(a_request(), a_request(to=OTHER_PHONE))

    first, second = world.blip.sent
    assert second.at - first.at == pytest.approx(1)
    assert world.meter.times["share_of_plan"] == [pytest.approx(0.5, abs=1e-3)]


# --- Room in flight -------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [0, 79_999, 80_000, 109_999, 110_000])
@pytest.mark.parametrize("reason", ["paused", "penalty", "broken"])
def test_bot_that_is_still_leaves_room_in_flight_for_others(
    world: World, reason: str, in_flight: int
) -> None:
    sandbox = world.sandbox()
    match reason:
        case "paused":
            sandbox.bot_states.pause("default")
        case "broken":
            sandbox.bot_states.open_breaker("default", "no answer")
            world.blip.before_ping = always(lambda: Transient("busy"))
        case _:
            bot = Bot(name="default", key=KEY)
            sandbox.bot_states.start_cooldown(bot, "messages", world.clock.now() + 100)
    world.in_flight = in_flight

    (result,) = sandbox.deliver(a_request())

    # What waits for the end of a penalty comes back by 200 a second.
    long = 105 + in_flight / 200 if reason == "penalty" else 900
    assert result.retry_in == (long if in_flight < 80_000 else 30)
    assert [slept for slept in world.clock.slept if slept > 0.01] == (
        [3] if in_flight >= 110_000 else []
    )


def test_all_sandboxes_together_look_through_no_more_than_2000_a_second(world: World) -> None:
    sandbox = world.sandbox(maximum_concurrency=100)
    sandbox.bot_states.pause("default")

    sandbox.deliver(*(a_request(to=f"+55119888877{number:02}") for number in range(10)))
    assert world.clock.slept == [pytest.approx(0.5 - 0.03)]
    sandbox.deliver(a_request(), seconds=1.02)
    assert world.clock.slept[1:] == [pytest.approx(0.02)]


def test_batch_that_could_do_something_does_not_hold_still(world: World) -> None:
    world.bots["other"] = world.bots["default"]
    sandbox = world.sandbox()
    sandbox.bot_states.pause("default")
    world.in_flight = 110_000

    still, sent = sandbox.deliver(a_request(), a_request(bot="other"))

    assert (still.retry_in, outcome(sent)) == (30, "sent")
    assert world.clock.slept == []


@pytest.mark.parametrize(
    ("age", "valid_for", "least"),
    [(60, None, 5), (6000, None, 100), (6 * DAY, None, 3600), (6000, 100, 10), (6000, 5000, 100)],
)
def test_every_wait_is_a_sixtieth_of_the_age_at_least(
    world: World, age: float, valid_for: float | None, least: float
) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    world.know(PHONE)
    changes = {} if valid_for is None else {"valid_until": at(world.clock.now() + valid_for)}
    queued = world.queued(a_request(**changes), age=age)

    (result,) = world.sandbox(uniform=min).deliver(queued)

    assert result.retry_in == pytest.approx(least, abs=0.1)


# --- A bot that vanishes from the secret ----------------------------------------------------------


def test_bot_that_worked_and_vanished_from_the_secret_is_waited_for(world: World) -> None:
    world.sandbox().deliver(a_request())
    bots, world.bots = world.bots, {}
    body = a_request()

    for _ in range(2):
        assert outcome(world.sandbox().deliver(body)[0]) == "misconfigured"
        world.clock.advance(449)
    world.bots = bots
    assert outcome(world.sandbox().deliver(body)[0]) == "sent"
    world.bots = {}
    world.clock.advance(600)
    assert outcome(world.sandbox().deliver(a_request())[0]) == "misconfigured"


def test_bot_that_stays_away_is_an_unknown_bot_after_a_quarter_of_an_hour(world: World) -> None:
    world.sandbox().deliver(a_request())
    world.bots = {}
    world.sandbox().deliver(a_request())
    world.clock.advance(900)

    (result,) = world.sandbox().deliver(a_request())

    assert result.reason is Reason.UNKNOWN_BOT


# --- AWS fails, and nothing was sent --------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_what_was_not_sent_is_not_left_as_if_it_might_have_been(
    world: World, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    if known:
        world.know(PHONE)
    sandbox, body = world.sandbox(), a_request()

    def fail_to_reserve(*_: Any, **__: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(sandbox.delivery, "_reserve", fail_to_reserve)
    (result,) = sandbox.deliver(body)

    assert outcome(result) == "crashed"
    item = world.entry(body)
    assert (item["status"], item["attempts"]) == ("retrying", 0)


def test_what_was_posted_stays_as_it_is_when_the_answer_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, body = world.sandbox(), a_request()

    def fail_to_settle(*_: Any, **__: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(sandbox.ledger, "mark_sent", fail_to_settle)
    (result,) = sandbox.deliver(body)

    assert (outcome(result), world.entry(body)["status"]) == ("crashed", "sending")


@pytest.mark.parametrize("failure", [Transient("busy"), Throttled("slowly")], ids=type)
def test_what_was_surely_not_sent_is_given_back_when_the_ledger_first_fails(
    world: World, monkeypatch: pytest.MonkeyPatch, failure: Failure
) -> None:
    world.know(PHONE)
    sandbox, body = world.sandbox(), a_request()
    world.blip.before_send = raises(failure)

    def fail_to_release(*_: Any, **__: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(sandbox.ledger, "release", fail_to_release)
    (result,) = sandbox.deliver(body)

    assert (outcome(result), world.entry(body)["status"]) == ("crashed", "retrying")


@pytest.mark.parametrize("method", ["keep_control", "answered"])
def test_what_was_sent_does_not_come_back_when_the_bot_s_item_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    world.identities_table.items["bot:default"] = {"failing": {"a"}}
    sandbox = world.sandbox()

    def fail_to_write(*_: Any, **__: Any) -> None:
        raise ReadTimeoutError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(sandbox.bot_states, method, fail_to_write)
    (result,) = sandbox.deliver(a_request())

    assert (outcome(result), result.retry_in) == ("sent", None)
    assert len(world.events.told) == 1
    assert "the bot's item was not written" in caplog.messages


@pytest.mark.parametrize("failures", [1, 3])
def test_claim_whose_answer_is_lost_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    world.know(PHONE)
    sandbox, body = world.sandbox(), a_request()
    update, left = world.ledger_table.update, [True] + [False] * (failures - 1)

    def lose_answers(*args: Any) -> Any:
        if not left:
            return update(*args)
        if left.pop(0):
            update(*args)
        raise ReadTimeoutError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(world.ledger_table, "update", lose_answers)
    (result,) = sandbox.deliver(body)

    assert outcome(result) == "crashed"
    assert (world.entry(body)["status"], world.entry(body)["attempts"]) == ("retrying", 0)


# --- How long everything waits --------------------------------------------------------------------


class Spread:
    """Stands in for chance: takes the upper bound, and remembers both."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def __call__(self, low: float, high: float) -> float:
        self.asked.append((low, high))
        return high


@pytest.mark.parametrize(
    ("failure", "bounds"),
    [
        (partial(Transient, "busy"), (0, 10)),
        (partial(Throttled, "slowly"), (120, 137)),
        (partial(Throttled, "slowly", retry_after_seconds=9999), (3600, 3965)),
        (partial(Misconfigured, "wrong key"), (600, 900)),
        (partial(RuntimeError, "nobody foresaw it"), (30, 60)),
    ],
)
def test_after_a_failure(
    world: World, failure: Callable[[], Exception], bounds: tuple[float, float]
) -> None:
    fail(world, "before_send", failure)
    world.blip.before_ping = raises(Transient("no answer"))
    spread = Spread()

    (result,) = world.sandbox(uniform=spread).deliver(a_request())

    assert spread.asked[0] == pytest.approx(bounds)
    assert result.retry_in == pytest.approx(bounds[1])


@pytest.mark.parametrize(("left", "wait"), [(0.5, 0.5), (7, 7), (100, 10)])
def test_after_a_failure_no_longer_than_the_request_is_valid(
    world: World, left: float, wait: float
) -> None:
    fail(world, "before_send", lambda: Transient("busy"))

    (result,) = world.sandbox().deliver(a_request(valid_until=at(world.clock.now() + left)))

    assert result.retry_in == pytest.approx(wait, abs=0.1)


def test_for_a_penalty(world: World) -> None:
    until = round(1000 * (world.clock.now() + 50))
    world.identities_table.items["bot:default"] = {"throttled_until": until}
    spread = Spread()

    (result,) = world.sandbox(uniform=spread).deliver(a_request())

    assert (outcome(result), result.retry_in) == ("cooling_down", 55)
    assert spread.asked == [(0, 5), (0, 0)]  # and nothing else is in flight


@pytest.mark.parametrize(
    ("age", "valid_for", "longer"),
    [
        (0, None, 0),
        (600, None, 20),
        (DAY, None, 2880),
        (600, DAY, 20),
        (6 * DAY, None, 3600),  # it is to be noticed within the hour that the plan has grown
        (DAY, 300, 10),  # who is soon too late comes by more often
    ],
)
def test_who_has_waited_long_for_a_slot_waits_longer(
    world: World, age: float, valid_for: float | None, longer: float
) -> None:
    """SQS takes what it has shown a thousand times for dead."""
    free_at = round(1e6 * (world.clock.now() + 20))
    world.identities_table.items["bot:default"] = {"next_messages_at": free_at}
    changes = {} if valid_for is None else {"valid_until": at(world.clock.now() + valid_for)}

    (result,) = world.sandbox(uniform=Spread()).deliver(world.queued(a_request(**changes), age=age))

    assert outcome(result) == "retry_later"
    assert result.retry_in == pytest.approx(20 + longer, abs=0.1)


def refused(kind: str) -> list[Request]:
    """Two different bodies under one id, which both are refused."""
    if kind == "id_conflict":
        return [a_request(id="order-1", to=f"+55119888877{number:02}") for number in range(2)]
    return [a_request(id="order-1", to=f"123{number}") for number in range(2)]


REFUSED = f"{ledger_key('default', 'order-1')}:refused"


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_one_message_is_refused_with_one_letter_however_often_it_comes(
    world: World, kind: str
) -> None:
    first = a_request(id="order-1")
    world.sandbox().deliver(first)
    before = world.entry(first)
    world.events.told.clear()
    message = world.queued(refused(kind)[0])

    for receive_count in (1, 2, 3):
        (result,) = world.sandbox().deliver(replace(message, receive_count=receive_count))
        assert (outcome(result), result.retry_in) == ("dead_letter", None)

    (letter,) = world.dead_letters.letters
    assert letter.reason == kind
    (event,) = world.events.told
    assert (event.reason, event.generation, event.key) == (kind, 0, before["key"])
    assert [refusal[0] for refusal in world.ledger_table.get(REFUSED)["refusals"]] == [
        message.record_id
    ]
    assert world.entry(first) == before


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_another_body_under_the_same_id_is_a_letter_of_its_own(world: World, kind: str) -> None:
    world.sandbox().deliver(a_request(id="order-1"))
    world.events.told.clear()
    bodies = refused(kind)

    for body in bodies:
        world.sandbox().deliver(body)
        world.clock.advance(1)

    letters = [json.loads(letter.body) for letter in world.dead_letters.letters]
    assert letters == bodies
    assert [event.reason for event in world.events.told] == [kind, kind]


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_a_redriven_letter_that_is_still_wrong_is_a_letter_of_its_own(
    world: World, kind: str
) -> None:
    """SQS gives what is put back another message id."""
    world.sandbox().deliver(a_request(id="order-1"))
    body = refused(kind)[0]
    world.sandbox().deliver(body)

    world.sandbox().deliver(replace(world.queued(body), redrives=1))

    redrives = [letter.failure["redrives"] for letter in world.dead_letters.letters]
    assert redrives == [0, 1]
    assert len(world.ledger_table.get(REFUSED)["refusals"]) == 2


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_the_letter_comes_before_the_refusal_so_that_a_crash_repeats_it(
    world: World, kind: str
) -> None:
    world.sandbox().deliver(a_request(id="order-1"))
    world.events.told.clear()
    message = world.queued(refused(kind)[0])
    held = []

    def crash() -> None:
        held.append(world.ledger_table.get(REFUSED))
        if len(held) == 1:
            raise RuntimeError("SQS does not answer")

    world.dead_letters.before_put = crash
    (result,) = world.sandbox().deliver(message)
    assert outcome(result) == "crashed"
    assert world.events.told == []

    (result,) = world.sandbox().deliver(message)
    assert outcome(result) == "dead_letter"

    assert held == [{}, {}]
    assert len(world.dead_letters.letters) == 1
    assert [event.reason for event in world.events.told] == [kind]


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_two_that_are_refused_at_once_are_two(world: World, kind: str) -> None:
    world.sandbox().deliver(a_request(id="order-1"))

    results = world.sandbox().deliver(*refused(kind))

    assert [outcome(result) for result in results] == ["dead_letter"] * 2
    assert len(world.dead_letters.letters) == 2
    kept = {refusal[0] for refusal in world.ledger_table.get(REFUSED)["refusals"]}
    assert kept == {result.queued.record_id for result in results}


def test_what_has_no_readable_id_leaves_only_its_letter(world: World) -> None:
    for _ in range(2):
        world.sandbox().deliver("{}")

    assert len(world.dead_letters.letters) == 2
    assert world.ledger_table.items == {}
    assert world.events.told == []


def test_a_letter_that_cannot_be_put_comes_back_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = world.sandbox()

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(world.dead_letters, "put", broken)
    letter = world.queued("not JSON")

    results = {result.queued: result for result in sandbox.deliver(a_request(), letter)}

    assert sorted(map(outcome, results.values())) == ["crashed", "sent"]
    assert outcome(results[letter]) == "crashed"
    assert results[letter].retry_in is not None


def test_how_old_is_what_has_to_come_back_is_measured(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.bot_states.pause("default")

    sandbox.deliver(world.queued(a_request(), age=3600), world.queued(a_request(), age=60))

    assert sorted(world.meter.times["oldest_request"]) == pytest.approx([60, 3600], abs=5)


def test_a_throttled_probe_shuts_the_bot_for_everybody(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.bot_states.open_breaker("default", "no answer")
    world.blip.before_ping = always(lambda: Throttled("too fast", retry_after_seconds=90))

    (result,) = sandbox.deliver(a_request())

    assert (outcome(result), world.blip.sent) == ("cooling_down", [])
    for _ in range(3):
        world.clock.advance(28)
        sandbox.deliver(a_request())
    assert world.blip.pings == 1


@pytest.mark.parametrize(("seconds", "pings"), [(11.9, 0), (12.1, 1)])
def test_no_probe_starts_that_cannot_end(world: World, seconds: float, pings: int) -> None:
    world.identities_table.items["bot:default"] = {"broken": "no answer"}
    world.blip.before_ping = always(lambda: Transient("busy"))

    (result,) = world.sandbox().deliver(a_request(), seconds=seconds)

    assert world.blip.pings == pings
    if not pings:  # another sandbox can try at once
        assert (outcome(result), result.retry_in) == ("retry_later", 0)


def test_for_a_breaker(world: World) -> None:
    world.identities_table.items["bot:default"] = {"broken": "no answer"}
    world.blip.before_ping = always(lambda: Transient("busy"))
    spread = Spread()

    (result,) = world.sandbox(uniform=spread).deliver(a_request())

    assert (outcome(result), result.retry_in) == ("breaker_open", 900)
    assert spread.asked == [(600, 900)]


def test_for_a_slot_further_away_than_one_waits_for(world: World) -> None:
    def next_at(seconds: float) -> None:
        free_at = round(1e6 * (world.clock.now() + seconds))
        world.identities_table.items["bot:default"] = {"next_messages_at": free_at}

    next_at(4)
    (result,) = world.sandbox().deliver(a_request())
    assert (outcome(result), result.retry_in) == ("retry_later", 4)

    next_at(2)
    (result,) = world.sandbox().deliver(a_request())
    assert outcome(result) == "sent"


def test_for_a_claim_that_somebody_else_holds(world: World) -> None:
    body, found, spread = a_request(), [], Spread()

    def meanwhile(_: Bot) -> None:
        found.extend(world.sandbox(uniform=spread).deliver(body))

    world.blip.before_look_up = meanwhile
    world.sandbox().deliver(body, seconds=30)

    (result,) = found
    assert (outcome(result), result.retry_in) == ("retry_later", 33)
    assert spread.asked == [(0, 1)]


def test_for_what_was_given_back_between_two_looks_at_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    body, sandbox = a_request(), world.sandbox()
    sandbox.deliver(body)
    standing = sandbox.ledger.read(key_of(body))
    monkeypatch.setattr(sandbox.ledger, "claim", lambda *_: standing)

    (result,) = sandbox.deliver(body)

    assert (outcome(result), result.retry_in) == ("retry_later", 1)
    assert result.notification is not None


def test_for_a_claim_that_was_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise ClaimLost("key")  # not because the recipient was forgotten

    spread = Spread()
    sandbox = world.sandbox(uniform=spread)
    monkeypatch.setattr(sandbox.ledger, "start_sending", lost)

    (result,) = sandbox.deliver(a_request())

    assert (outcome(result), result.retry_in) == ("retry_later", 10)
    assert spread.asked == [(5, 10)]


def test_for_a_question_that_somebody_else_asks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = a_request()
    unknown(world, body)
    world.clock.advance(WINDOW + 2)
    sandbox = world.sandbox()
    monkeypatch.setattr(sandbox.ledger, "claim_unknown", lambda *_: None)

    (result,) = sandbox.deliver(body)

    assert (outcome(result), result.retry_in) == ("retry_later", 30)
    assert world.blip.asked == []


def test_for_a_look_up_of_another_sandbox(world: World) -> None:
    world.sandbox().identities.lease(("default", PHONE), 100)
    spread = Spread()
    began_at = world.clock.now()

    (result,) = world.sandbox(uniform=spread).deliver(a_request())

    assert outcome(result) == "retry_later"
    assert result.retry_in == pytest.approx(5, abs=0.1)
    assert spread.asked[0] == (1, 5)
    assert world.clock.now() - began_at == pytest.approx(2, abs=0.11)
    assert set(world.clock.slept) == {0.1}


@pytest.mark.parametrize(("window", "wait"), [(60, 61), (900, 900), (3600, 900)])
def test_for_the_first_question(world: World, window: int, wait: float) -> None:
    world.blip.before_send = raises(Unknown("no answer"))

    (result,) = world.sandbox(settle_window_seconds=window).deliver(a_request())

    assert (outcome(result), result.retry_in) == ("unknown", wait)


@pytest.mark.parametrize(("passed", "wait"), [(0, 900), (100, 801), (899.5, 1.5)])
def test_for_the_settle_window(world: World, passed: float, wait: float) -> None:
    body = a_request()
    unknown(world, body)
    world.clock.advance(passed)
    spread = Spread()

    (result,) = world.sandbox(uniform=spread).deliver(body)

    assert outcome(result) == "unsettled"
    assert result.retry_in == pytest.approx(wait, abs=0.01)
    assert spread.asked == [(0, 1)]


def test_a_batch_that_has_little_time_left_holds_still_until_a_second_before_its_end(
    world: World,
) -> None:
    world.identities_table.items["bot:default"] = {"broken": "no answer"}
    world.blip.before_ping = always(lambda: Transient("busy"))
    world.blip.call_seconds = 10
    world.in_flight = 110_000

    world.sandbox().deliver(a_request(), seconds=12.5)

    assert world.clock.slept == [10, 1.5]


# --- Crashes and events ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "method"),
    [("ledger", "claim"), ("identities", "lease"), ("ledger", "start_sending")],
)
def test_a_crash_before_the_send_hurts_one_record_and_loses_nothing(
    world: World, part: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(3)]
    sandbox = world.sandbox()
    adapter = getattr(sandbox, part)
    original, calls = getattr(adapter, method), []

    def crash(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError(f"about {PHONE} and {MARIA}")
        return original(*args, **kwargs)

    monkeypatch.setattr(adapter, method, crash)
    # The log of a crash shows what was raised. What the adapters raise holds nothing personal.
    monkeypatch.setattr(
        "notifier.use_cases.send_notification.batch.logger.error", lambda *_, **__: None
    )
    results = sandbox.deliver(*bodies)

    assert list(map(outcome, results)) == ["sent", "crashed", "sent"]
    wait = results[1].retry_in
    assert wait is not None
    assert 30 <= wait <= 60
    world.clock.advance(wait)
    assert outcome(world.sandbox().deliver(bodies[1])[0]) == "sent"
    assert len(world.blip.sent) == 3


def test_a_mere_repetition_is_not_told_again(world: World) -> None:
    body = a_request()
    world.sandbox().deliver(body)
    for receive_count in (1, 2):
        (result,) = world.sandbox().deliver(world.queued(body, receive_count=receive_count))
        assert (outcome(result), result.retry_in) == ("duplicate", None)

    assert [(event.notification_id, event.status) for event in world.events.told] == [
        (body["id"], Status.SENT)
    ]
    assert len(world.blip.sent) == 1


# --- Whatever happens -----------------------------------------------------------------------------


class Mishap:
    """One call to BLiP: what it raises, and whether the message went out nevertheless."""

    def __init__(self, failure: Callable[[], Exception] | None, *, taken: bool) -> None:
        self.failure = failure
        self.taken = taken


MISHAPS = {
    "fine": Mishap(None, taken=True),
    "busy": Mishap(lambda: Transient("busy"), taken=False),
    "no answer, taken": Mishap(lambda: Unknown("no answer"), taken=True),
    "no answer, lost": Mishap(lambda: Unknown("no answer"), taken=False),
    "throttled": Mishap(lambda: Throttled("slowly"), taken=False),
    "wrong key": Mishap(lambda: Misconfigured("wrong key"), taken=False),
    "refused": Mishap(lambda: Rejected(Reason.REJECTED, "no"), taken=False),
    "crash, taken": Mishap(lambda: RuntimeError("gone"), taken=True),
    "crash, lost": Mishap(lambda: RuntimeError("gone"), taken=False),
}


@settings(max_examples=150, deadline=None)
@given(
    sends=st.lists(st.sampled_from(sorted(MISHAPS)), max_size=8),
    look_ups=st.lists(
        st.sampled_from(["fine", "busy", "throttled", "wrong key", "crash, lost"]), max_size=4
    ),
    early=st.lists(st.booleans(), max_size=10),
    if_unknown=st.sampled_from(["resend", "fail"]),
)
def test_whatever_happens_it_is_sent_once_or_a_dead_letter(
    sends: list[str], look_ups: list[str], early: list[bool], if_unknown: str
) -> None:
    """BLiP's history is told the truth, so that nothing need be sent twice."""
    world = World()
    body = a_request(if_unknown=if_unknown)
    arrived: list[str] = []

    def send(_: Bot) -> None:
        mishap = MISHAPS[sends.pop(0) if sends else "fine"]
        if mishap.taken:
            message_id = world.blip.sent[-1].message_id
            arrived.append(message_id)
            world.blip.stored[message_id] = [Receipt(key_of(body), 1, Status.ACCEPTED)]
        if mishap.failure:
            raise mishap.failure()

    def look_up(_: Bot) -> None:
        if (mishap := MISHAPS[look_ups.pop(0) if look_ups else "fine"]).failure:
            raise mishap.failure()

    world.blip.before_send, world.blip.before_look_up = send, look_up
    done = False
    for _ in range(60):
        (result,) = world.sandbox().deliver(body)
        if result.retry_in is None:
            done = True
            break
        # SQS delivers again when it was told to; or, once in a while, earlier.
        world.clock.advance(result.retry_in / (3 if early and early.pop() else 1) + 0.001)

    assert done
    assert len(arrived) <= 1
    assert bool(arrived) or len(world.dead_letters.letters) == 1
    final = world.entry(body)["status"]
    assert final in ({"sent", "accepted"} if arrived else {"failed", "rejected"})

    world.identities_table.items.pop("bot:default", None)  # its breaker may still be open
    (result,) = world.sandbox().deliver(body)
    assert result.outcome is Outcome.DUPLICATE
    assert len(arrived) <= 1


def test_a_sandbox_is_what_this_suite_thinks_it_is(world: World) -> None:
    """Two of them share the world and nothing else."""
    one, other = world.sandbox(), world.sandbox()
    one.deliver(a_request())

    assert isinstance(one, Sandbox)
    assert other.secrets_manager.fetches == 0
    assert other.identities.get(("default", PHONE)) is not None


# --- Cancelled, and forgotten ---------------------------------------------------------------------


def cancelled(world: World, body: Request) -> None:
    WholeLedger(world.ledger_table, world.clock.now).cancel(body.get("bot", "default"), body["id"])


@pytest.mark.parametrize(
    ("changes", "generation", "age"),
    [
        ({}, None, 0),
        ({}, 1, 0),
        ({}, 0, 0),
        ({"to": OTHER_PHONE}, None, 0),
        ({"to": OTHER_PHONE}, 1, 0),
        ({"valid_until": "2020-01-01T00:00:00Z"}, None, 0),
        ({}, None, 8 * DAY),
    ],
)
@pytest.mark.parametrize("in_advance", [True, False])
def test_what_was_cancelled_is_acknowledged_whatever_comes(
    world: World, changes: Request, generation: int | None, age: float, in_advance: bool
) -> None:
    body = a_request(metadata={"order": "981"})
    sandbox = world.sandbox()
    if not in_advance:
        world.blip.before_send = raises(Transient("503"))
        sandbox.deliver(body)
    cancelled(world, body)
    before = world.entry(body)
    assert len(world.events.told) == (not in_advance)

    for _ in range(2):
        again = world.queued(body | changes, generation=generation, age=age)
        (result,) = sandbox.deliver(again)
        assert (result.outcome, result.retry_in) == (Outcome.CANCELLED, None)

    # Upstream hears of it once, however often its request comes.
    (event,) = world.events.told
    assert (event.status, event.reason) == (Status.CANCELLED, None)
    assert event.metadata == {"order": "981"}
    what_its_event_needs = {"template": "order_shipped", "correlation_id": None}
    assert world.entry(body) == before | {"metadata": {"order": "981"}} | (
        what_its_event_needs if in_advance else {}
    )
    assert world.blip.taken == []
    assert world.dead_letters.letters == []


def test_of_a_bot_that_does_not_exist_too(world: World) -> None:
    body = a_request(bot="nobody")
    cancelled(world, body)

    (result,) = world.sandbox().deliver(body)

    assert result.outcome is Outcome.CANCELLED
    assert world.dead_letters.letters == []


def test_nobody_hears_of_what_was_forgotten(world: World) -> None:
    body = a_request()
    key = key_of(body)
    world.ledger_table.items[key] = {
        "key": key,
        "status": "cancelled",
        "generation": 1,
        "updated_at": 0,
        "expires_at": round(world.clock.now()) + DAY,
        "forgotten": True,
    }

    before = world.entry(body)

    (result,) = world.sandbox().deliver(body)

    assert (result.outcome, result.retry_in) == (Outcome.CANCELLED, None)
    assert world.entry(body) == before
    assert world.ledger_table.writes == 1  # the claim, which did not hold
    assert world.events.told == []
    assert world.blip.look_ups == []
