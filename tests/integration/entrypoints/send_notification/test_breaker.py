"""A bot's breaker, the function whole: what opens it, what an open one costs, what closes it."""

import time
from itertools import count, pairwise
from typing import Any

import pytest

from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.table import Table
from notifier.domain.notification import ledger_key
from notifier.use_cases.send_notification import batch as batches
from notifier.use_cases.send_notification import waits as all_waits
from tests.integration.conftest import Record, Stack
from tests.integration.receipts_stack import Json, ReceiptsStack, a_receipt
from tests.local.blip import Bot
from tests.support.builders import a_request
from tests.support.clock import MachineClock

# Of no bot anywhere.
OLD_KEY, NEW_KEY = "Key c2ltdWxhdGVkOnNlY3JldA==", "Key c2ltdWxhdGVkOnJvdGF0ZWQ="

PEOPLE = count(1)  # every recipient is new


@pytest.fixture(autouse=True)
def simulated(stack: Stack, clock: MachineClock) -> None:
    assert clock
    stack.blip.configure(throttle=False)  # its clock is not the simulated one


def bot_item(stack: Stack, bot: str = "default") -> Json:
    answer = stack.aws.dynamodb.get_item(TableName="identities", Key={"key": {"S": f"bot:{bot}"}})
    return {name: next(iter(value.values())) for name, value in answer.get("Item", {}).items()}


def is_open(stack: Stack, bot: str = "default") -> bool:
    return "broken" in bot_item(stack, bot)


def batch(stack: Stack, size: int = 1, **changes: Any) -> list[Record]:
    """Publish requests to so many recipients. Return their records."""
    for _ in range(size):
        stack.publish(a_request(**{"to": f"+5531988{next(PEOPLE):06}"} | changes))
    records = stack.receive()
    assert len(records) == size
    return records


def calls(stack: Stack) -> list[str]:
    """Return the kinds of calls to BLiP, in order."""
    return [request.kind for request in stack.blip.requests]


def waits(stack: Stack) -> list[int]:
    """Return the visibility timeouts of the last batch's requests."""
    stack_calls = [p for n, p in stack.aws.calls if n == "ChangeMessageVisibilityBatch"]
    return [entry["VisibilityTimeout"] for entry in stack_calls[-1]["Entries"]]


def break_it(stack: Stack, why: str = "a test") -> None:
    stack.aws.dynamodb.update_item(
        TableName="identities",
        Key={"key": {"S": "bot:default"}},
        UpdateExpression="SET broken = :why",
        ExpressionAttributeValues={":why": {"S": why}},
    )


# --- What opens it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "messages", "status": 503},
        {"path": "messages", "drop": True},
        {"path": "messages", "status": 400, "code": 86},
        {"path": "lookups", "failure": 85},
    ],
    ids=str,
)
def test_five_different_notifications_in_a_row_open_the_breaker(stack: Stack, fault: Json) -> None:
    stack.blip.add_fault(**fault)

    for _ in range(4):
        records = batch(stack)
        assert len(stack.handle(records)) == 1
        assert not is_open(stack)
    assert len(stack.handle(batch(stack))) == 1

    assert is_open(stack)
    assert bot_item(stack)["broken"] == "5 notifications in a row had no definite answer"


def test_failures_in_one_batch_and_in_several_sandboxes_open_the_breaker(stack: Stack) -> None:
    stack.blip.add_fault(path="messages", status=503)

    stack.handle(batch(stack, 2), function=stack.sandbox())
    stack.handle(batch(stack, 2), function=stack.sandbox())
    assert not is_open(stack)
    stack.handle(batch(stack, 3), function=stack.sandbox())

    assert is_open(stack)


def test_one_notification_failing_five_times_does_not_open_the_breaker(
    stack: Stack, clock: MachineClock
) -> None:
    stack.blip.add_fault(path="messages", status=400, code=51)
    records = batch(stack)

    for _ in range(7):
        assert len(stack.handle(records)) == 1
        clock.advance(901)

    assert not is_open(stack)
    assert calls(stack).count("messages") == 7


@pytest.mark.parametrize(
    "answer",
    [{}, {"path": "messages", "status": 400, "code": 21}, {"path": "lookups", "failure": 67}],
    ids=["202", "rejected", "not a phone number"],
)
def test_definite_answer_in_between_resets_the_count(stack: Stack, answer: Json) -> None:
    for _ in range(2):
        stack.blip.add_fault(path="messages", status=503)
        for _ in range(4):
            stack.handle(batch(stack))
        assert not is_open(stack)
        assert len(bot_item(stack)["failing"]) == 4

        stack.blip.clear_faults()
        if answer:
            stack.blip.add_fault(**answer)
        assert stack.handle(batch(stack)) == []
        stack.blip.clear_faults()
        assert "failing" not in bot_item(stack)


def test_call_that_never_reached_blip_does_not_reset_the_count(stack: Stack) -> None:
    nobody, somebody = "+5531977777777", "+5531966666666"
    stack.blip.add_fault(path="lookups", failure=67, to=nobody)
    sent = a_request(to=somebody)
    assert stack.deliver(a_request(to=nobody), sent) == []
    stack.blip.add_fault(path="messages", status=503)

    for _ in range(4):
        stack.handle(batch(stack))
        # A number known to be none, a duplicate, a request too late say nothing of the bot.
        late = a_request(to=somebody, valid_until="2020-01-01T00:00:00Z")
        assert stack.deliver(a_request(to=nobody), sent, late) == []
    stack.handle(batch(stack))

    assert is_open(stack)


def test_throttling_is_not_counted_as_a_failure(stack: Stack, clock: MachineClock) -> None:
    stack.blip.add_fault(path="messages", status=429)

    for _ in range(6):
        assert len(stack.handle(batch(stack))) == 1
        clock.advance(121)

    assert not is_open(stack)
    assert "failing" not in bot_item(stack)
    assert {item["attempts"] for item in stack.aws.ledger()} == {"0"}


def test_open_breaker_does_not_stop_another_bot(stack: Stack) -> None:
    other = Bot(name="other")
    stack.blip.put_bot(other)
    bot = {"base_url": stack.blip.url, "key": stack.blip.key}
    stack.aws.put_bots({"default": bot, "other": bot | {"key": other.key}})
    stack.blip.add_fault(path="messages", status=503, bot="simulated")
    stack.handle(batch(stack, 5))
    assert is_open(stack)

    assert stack.handle(batch(stack, 3, bot="other")) == []

    assert not is_open(stack, "other")


# --- While it is open -----------------------------------------------------------------------------


def test_open_breaker_prevents_every_claim_look_up_and_send(
    stack: Stack, clock: MachineClock
) -> None:
    break_it(stack)
    stack.blip.add_fault(path="ping", status=503)
    records = batch(stack, 10)
    stack.handle(records)
    stack.blip.clear()
    clock.slept.clear()
    stack.aws.calls.clear()

    assert len(stack.handle(records)) == 10

    assert calls(stack) == []
    assert stack.aws.ledger() == []
    assert [name for name, _ in stack.aws.calls if name == "UpdateItem"] == ["UpdateItem"]
    assert all(600 <= wait <= 900 for wait in waits(stack))
    assert len(set(waits(stack))) > 1  # they don't come back together
    assert sum(clock.slept) < 1


def test_outage_costs_no_attempts_and_no_dead_letters(stack: Stack, clock: MachineClock) -> None:
    records = batch(stack, 6)
    with stack.blip.unreachable():
        assert len(stack.handle(records)) == 6
        assert is_open(stack)
        attempts = {item["attempts"] for item in stack.aws.ledger()}
        for _ in range(24):  # six hours
            clock.advance(900)
            assert len(stack.handle(records)) == 6
    assert {item["attempts"] for item in stack.aws.ledger()} == attempts == {"1"}

    clock.advance(900)
    assert len(stack.handle(records)) == 5
    assert not is_open(stack)
    assert stack.handle(records) == []
    assert {item["status"] for item in stack.aws.ledger()} == {"sent"}
    assert {item["attempts"] for item in stack.aws.ledger()} == {"2"}
    assert len(stack.blip.inbox()) == 6
    assert stack.aws.dead_letters() == []


def test_batch_with_a_request_that_can_proceed_does_not_hold_still(
    stack: Stack, clock: MachineClock
) -> None:
    other = Bot(name="other")
    stack.blip.put_bot(other)
    bot = {"base_url": stack.blip.url, "key": stack.blip.key}
    stack.aws.put_bots({"default": bot, "other": bot | {"key": other.key}})
    break_it(stack)
    stack.blip.add_fault(path="ping", status=503)
    stack.publish(a_request())

    assert len(stack.handle(stack.receive() + batch(stack, bot="other"))) == 1

    assert 3.0 not in clock.slept


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report as many requests in flight as SQS allows."""
    monkeypatch.setattr(all_waits, "CROWDED", 0)
    monkeypatch.setattr(batches, "FULL", 0)


@pytest.mark.usefixtures("full")
def test_batch_does_not_hold_still_beyond_the_deadline(stack: Stack, clock: MachineClock) -> None:
    break_it(stack)
    stack.blip.add_fault(path="ping", status=503)

    assert len(stack.handle(batch(stack), seconds=60)) == 1
    assert clock.slept == [pytest.approx(3, abs=0.1)]
    clock.slept.clear()
    assert len(stack.handle(batch(stack), seconds=2.5)) == 1
    assert sum(clock.slept) <= 1.5


# --- The probe ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": True}, {"failure": 61}], ids=str)
def test_all_sandboxes_together_probe_every_30_seconds(
    stack: Stack, clock: MachineClock, fault: Json
) -> None:
    break_it(stack)
    stack.blip.add_fault(path="ping", **fault)
    sandboxes = [stack.sandbox() for _ in range(3)]
    records = batch(stack, 2)
    probed_at: list[float] = []

    for turn in range(30):  # each holds still for three seconds
        before = len(calls(stack))
        started = clock.now()
        assert len(stack.handle(records, function=sandboxes[turn % 3])) == 2
        probed_at += [started] * (len(calls(stack)) - before)

    assert set(calls(stack)) == {"ping"}
    assert 3 <= len(probed_at) <= 5
    assert all(later - earlier >= 30 for earlier, later in pairwise(probed_at))
    assert is_open(stack)


def test_sandbox_that_dies_during_a_probe_delays_the_next_by_30_seconds(
    stack: Stack, clock: MachineClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(stack)
    records = batch(stack)
    blip: Any = stack.sandbox()._delivery._blip

    def ends(_: object) -> None:
        raise RuntimeError("the sandbox ends here")

    with monkeypatch.context() as patched:
        patched.setattr(blip, "ping", ends)
        assert len(stack.handle(records)) == 1
    clock.advance(20)
    assert len(stack.handle(records)) == 1
    assert calls(stack) == []
    clock.advance(10)

    assert stack.handle(records) == []


def test_answered_probe_lets_exactly_one_notification_through(stack: Stack) -> None:
    break_it(stack)
    stack.blip.add_fault(path="messages", status=400, code=51)

    assert len(stack.handle(batch(stack, 5))) == 5

    assert calls(stack) == ["ping", "lookups", "messages"]
    assert len(stack.aws.ledger()) == 1
    assert is_open(stack)
    assert sum(600 <= wait <= 900 for wait in waits(stack)) == 4


def test_second_notification_of_the_probed_recipient_is_not_let_through(stack: Stack) -> None:
    break_it(stack)
    stack.blip.add_fault(path="messages", status=503)

    assert len(stack.handle(batch(stack, 5, to="+5531955555555"))) == 5

    assert calls(stack) == ["ping", "lookups", "messages"]


@pytest.mark.parametrize("code", [62, 63, 67])
def test_ping_refused_as_unsupported_is_an_answer(stack: Stack, code: int) -> None:
    break_it(stack)
    stack.blip.add_fault(path="ping", failure=code)

    assert stack.handle(batch(stack)) == []
    assert not is_open(stack)


@pytest.mark.parametrize(
    ("answer", "closes"),
    [
        ({}, True),
        ({"path": "messages", "status": 400, "code": 21}, True),
        ({"path": "lookups", "failure": 67}, True),
        ({"path": "messages", "status": 503}, False),
        ({"path": "messages", "drop": True}, False),
        ({"path": "lookups", "status": 503}, False),
        ({"path": "messages", "status": 429}, False),
        ({"path": "messages", "status": 401}, False),
    ],
    ids=str,
)
def test_only_a_definite_answer_closes_the_breaker(
    stack: Stack, answer: Json, closes: bool
) -> None:
    break_it(stack)
    if answer:
        stack.blip.add_fault(**answer)

    back = stack.handle(batch(stack))

    assert is_open(stack) == (not closes)
    assert back == [] if closes else len(back) == 1
    if closes:
        stack.blip.clear_faults()
        assert not bot_item(stack).keys() & {"broken", "failing"}
        assert stack.handle(batch(stack, 5)) == []


def test_cached_not_a_phone_number_does_not_close_the_breaker(stack: Stack) -> None:
    nobody = "+5531977777777"
    stack.blip.add_fault(path="lookups", failure=67, to=nobody)
    assert stack.deliver(a_request(to=nobody)) == []
    break_it(stack)

    assert stack.deliver(a_request(to=nobody)) == []

    assert is_open(stack)


# --- A wrong key ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "*", "status": 401, "code": 13},
        {"path": "messages", "status": 403},
        {"path": "messages", "status": 404},
        {"path": "messages", "status": 302},
        {"path": "messages", "status": 400, "code": 31},
        {"path": "lookups", "failure": 35},
        {"path": "lookups", "failure": 81},
    ],
    ids=str,
)
def test_misconfigured_bot_opens_the_breaker_at_once_and_loses_nothing(
    stack: Stack, clock: MachineClock, fault: Json
) -> None:
    stack.blip.add_fault(**fault)
    stack.blip.add_fault(path="ping", status=401)
    records = batch(stack)

    for _ in range(3):
        assert len(stack.handle(records)) == 1
        assert is_open(stack)
        assert 600 <= waits(stack)[0] <= 900
        clock.advance(901)

    assert stack.aws.dead_letters() == []
    assert {item["attempts"] for item in stack.aws.ledger()} == {"0"}
    stack.blip.clear_faults()
    assert stack.handle(records) == []
    assert not is_open(stack)
    assert len(stack.blip.inbox()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "messages", "status": 401},
        {"path": "messages", "status": 403},
        {"path": "messages", "status": 404},
        {"path": "messages", "status": 405},
        {"path": "messages", "status": 401, "code": 34},
        {"path": "lookups", "failure": 81},
    ],
    ids=str,
)
def test_single_refused_notification_becomes_a_dead_letter_and_affects_no_other(
    stack: Stack, clock: MachineClock, fault: Json
) -> None:
    stack.aws.overrides["max_attempts"] = 3
    stack.blip.add_fault(**fault)
    bad = batch(stack)
    assert len(stack.handle(bad)) == 1
    stack.blip.clear_faults()
    assert stack.handle(batch(stack, 3)) == []

    for _ in range(2):
        clock.advance(901)
        stack.blip.add_fault(**fault)
        stack.handle(bad)
        stack.blip.clear_faults()
        assert not is_open(stack)

    (letter,) = stack.aws.dead_letters()
    assert (letter["reason"], letter["failure"]["attempts"]) == ("retries_exhausted", 3)


@pytest.mark.parametrize("code", [42, 83, 87])
def test_code_of_a_403_makes_a_dead_letter_at_once(stack: Stack, code: int) -> None:
    stack.blip.add_fault(path="messages", status=403, code=code)

    assert stack.handle(batch(stack)) == []

    assert [letter["reason"] for letter in stack.aws.dead_letters()] == ["rejected"]
    assert not is_open(stack)


def test_bot_without_a_channel_opens_the_breaker_and_loses_nothing(
    stack: Stack, clock: MachineClock
) -> None:
    stack.blip.add_fault(path="lookups", failure=81)
    records = batch(stack, 8)

    for _ in range(30):
        assert len(stack.handle(records)) == 8
        clock.advance(901)

    assert is_open(stack)
    assert stack.aws.dead_letters() == []
    assert {item["attempts"] for item in stack.aws.ledger()} == {"1"}


def test_wrong_key_stops_the_rest_of_its_batch(stack: Stack) -> None:
    stack.blip.put_bot(Bot(key=NEW_KEY))

    assert len(stack.handle(batch(stack, 10))) == 10
    refused = len(calls(stack))
    assert len(stack.handle(batch(stack, 10))) == 10

    # The calls already under way, each once more with a fresh secret, and a ping, also repeated.
    assert refused <= 22
    assert len(calls(stack)) - refused <= 2  # the probe, also repeated
    assert stack.aws.dead_letters() == []
    assert stack.blip.inbox() == []


def test_rotated_key_is_fetched_without_a_deploy(stack: Stack, clock: MachineClock) -> None:
    assert stack.blip.key == OLD_KEY
    assert stack.handle(batch(stack)) == []
    stack.blip.put_bot(Bot(key=NEW_KEY))
    clock.advance(20)
    waiting = batch(stack, 3)
    assert len(stack.handle(waiting)) == 3
    assert is_open(stack)

    stack.aws.put_bots({"default": {"base_url": stack.blip.url, "key": NEW_KEY}})
    clock.advance(31)
    assert len(stack.handle(waiting)) == 2  # one is let through
    assert not is_open(stack)
    stack.handle(waiting)

    assert len(stack.blip.inbox()) == 4
    assert stack.aws.dead_letters() == []


def test_key_rotated_in_time_stops_nothing(stack: Stack, clock: MachineClock) -> None:
    assert stack.handle(batch(stack)) == []
    stack.aws.put_bots({"default": {"base_url": stack.blip.url, "key": NEW_KEY}})
    stack.blip.put_bot(Bot(key=NEW_KEY))
    clock.advance(20)  # the sandbox still has the old one in mind

    assert stack.handle(batch(stack, 5)) == []

    assert not is_open(stack)
    assert len(stack.blip.inbox()) == 6


# --- Receipts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [131_031, 131_042, 368])
def test_receipts_about_the_number_open_the_breaker(
    stack: Stack, receipts: ReceiptsStack, code: int
) -> None:
    request = a_request()
    assert stack.deliver(request) == []

    key = ledger_key("default", request["id"])
    assert receipts.record(a_receipt(key, "failed", code)) == []

    assert str(code) in bot_item(stack)["broken"]
    stack.blip.clear()
    assert len(stack.handle(batch(stack, 3))) == 3
    assert calls(stack) == []


def number_is_down(stack: Stack, receipts: ReceiptsStack, request: Json) -> None:
    """BLiP takes a notification, and a receipt says that its number cannot deliver."""
    failed = a_receipt(ledger_key("default", request["id"]), "failed", 131_042)
    assert receipts.record(failed) == []
    stack.blip.clear()


def test_number_that_is_down_is_tried_every_ten_minutes_until_no_receipt_fails(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    """BLiP answers pings and 202 all the while."""
    request, second = a_request(), a_request()
    assert stack.deliver(request) == []
    number_is_down(stack, receipts, request)
    waiting = batch(stack, 3)

    clock.advance(590)
    assert len(stack.handle(waiting)) == 3
    assert calls(stack) == []
    clock.advance(11)
    assert stack.deliver(second) == []
    assert calls(stack).count("messages") == 1
    assert len(stack.handle(waiting)) == 3  # one was taken; that proves nothing yet
    assert is_open(stack)

    number_is_down(stack, receipts, second)
    clock.advance(601)
    assert len(stack.handle(waiting)) == 2
    clock.advance(601)
    assert is_open(stack)
    assert len(stack.handle(waiting[1:])) == 1
    assert not is_open(stack)
    assert stack.handle(waiting[2:]) == []
    assert not bot_item(stack).keys() & {"number_down_at", "tried_at", "broken"}


def test_resume_by_an_operator_takes_effect_at_once(stack: Stack, receipts: ReceiptsStack) -> None:
    request = a_request()
    assert stack.deliver(request) == []
    number_is_down(stack, receipts, request)
    assert len(stack.handle(batch(stack, 3))) == 3

    DynamoDbBotStates(Table(stack.aws.dynamodb, "identities"), time.time).resume("default")

    assert stack.handle(batch(stack, 3)) == []
    assert calls(stack).count("ping") == 0


@pytest.mark.parametrize("code", [131_026, 131_056, 132_001])
def test_other_failed_receipts_do_not_open_the_breaker(
    stack: Stack, receipts: ReceiptsStack, code: int
) -> None:
    for _ in range(6):
        request = a_request()
        assert stack.deliver(request) == []
        key = ledger_key("default", request["id"])
        assert receipts.record(a_receipt(key, "failed", code)) == []

    assert not is_open(stack)
