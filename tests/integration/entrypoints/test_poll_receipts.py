"""The function poll_receipts whole: BLiP's history is asked for bots without a webhook."""

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.table import Table
from notifier.domain.notification import ledger_key
from notifier.use_cases import poll_receipts
from tests.integration.conftest import Stack
from tests.integration.receipts_stack import Json, ReceiptsStack
from tests.local.blip import Bot
from tests.support.builders import a_request
from tests.support.clock import MachineClock
from tests.support.lambda_runtime import a_context, load_app, printed_metrics

MINUTE, HOUR, DAY = 60, 3600, 86_400


@pytest.fixture(autouse=True)
def history_bot(stack: Stack) -> None:
    stack.blip.configure(throttle=False)  # its clock is not the simulated one
    put_bots(stack, default={})


def put_bots(stack: Stack, **bots: Json) -> None:
    """Put these into the secret, each with what differs from a bot without a webhook."""
    entry = {"base_url": stack.blip.url, "key": stack.blip.key, "receipts": "history"}
    stack.aws.put_bots({name: entry | changes for name, changes in bots.items()})


@pytest.fixture(autouse=True)
def at_once(stack: Stack) -> None:
    """Remove the simulator's delays, so that every event is in the history at once."""
    delays = {"dispatched": 0.0, "received": 0.0, "consumed": 0.0, "failed": 0.0}
    stack.blip.configure(receipts={"delays": delays})


def sent(stack: Stack, **changes: Any) -> str:
    """Send one notification. Return its message id."""
    request = a_request(**changes)
    assert stack.deliver(request) == []
    return ledger_key(request.get("bot", "default"), request["id"])


def several(stack: Stack, count: int, **changes: Any) -> list[str]:
    """Send to so many recipients. Return the message ids."""
    requests = [a_request(to=f"+5531999{number:06}", **changes) for number in range(count)]
    for start in range(0, count, 10):
        assert stack.deliver(*requests[start : start + 10]) == []
    return [ledger_key(request.get("bot", "default"), request["id"]) for request in requests]


def item(stack: Stack, key: str) -> Json:
    return next(item for item in stack.aws.ledger() if item["key"] == key)


def asked(stack: Stack) -> int:
    """Return how many questions BLiP has got, refused ones too."""
    return sum(request.kind == "history" for request in stack.blip.requests)


def due_in(stack: Stack, key: str, clock: MachineClock) -> float | None:
    """Return the seconds until a message is asked about."""
    poll_at = item(stack, key).get("poll_at")
    return None if poll_at is None else int(poll_at) / 1000 - clock.now()


# --- When -----------------------------------------------------------------------------------------


def test_sent_message_is_polled_after_minutes(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    key = sent(stack)
    assert receipts.poll() == 0
    clock.advance(4.9 * MINUTE)
    assert receipts.poll() == 0
    assert asked(stack) == 0

    clock.advance(0.2 * MINUTE)
    assert receipts.poll() == 1

    found = receipts.waiting()
    assert {receipt["event"] for receipt in found} == {
        "accepted",
        "dispatched",
        "received",
        "consumed",
    }
    assert {receipt["id"] for receipt in found} == {key}
    for private in ("5531", "wa.gw.msging.net"):
        assert private not in json.dumps(found)
    # Not again before its time; and recorded, not at all.
    assert receipts.poll() == 0
    assert receipts.record(*found) == []
    assert item(stack, key)["status"] == "consumed"
    assert not item(stack, key).keys() & {"poll_bot", "poll_at", "poll_since"}
    clock.advance(4 * DAY)
    assert receipts.poll() == 0


def test_polling_backs_off_and_stops_before_blip_forgets(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    stack.blip.add_fault(path="messages", events=["accepted", "dispatched"])
    key = sent(stack)
    since = clock.now()

    ages = []
    while (wait := due_in(stack, key, clock)) is not None:
        clock.advance(wait - 1)
        assert receipts.poll() == 0
        clock.advance(1.01)
        assert receipts.poll() == 1
        ages.append(clock.now() - since)
        assert receipts.record(*receipts.waiting()) == []
        assert item(stack, key)["status"] == "dispatched"

    expected = [300 * 2**n for n in range(10)] + [3 * DAY - HOUR]
    assert ages == pytest.approx(expected, rel=0.01)
    clock.advance(10 * DAY)
    assert receipts.poll() == 0


def test_message_without_events_is_given_up(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    stack.blip.add_fault(path="messages", events=[])
    key = sent(stack)
    clock.advance(10 * MINUTE)
    assert receipts.poll() == 1
    assert receipts.waiting() == []
    assert due_in(stack, key, clock) == pytest.approx(10 * MINUTE, abs=2)

    clock.advance(3 * DAY)
    assert receipts.poll() == 1
    assert due_in(stack, key, clock) is None
    assert item(stack, key)["status"] == "sent"


def test_failed_message_is_recorded_and_polled_no_more(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    stack.blip.add_fault(path="messages", receipt=131_026)
    key = sent(stack, id="order-1")
    clock.advance(6 * MINUTE)
    assert receipts.poll() == 1

    assert receipts.record(*receipts.waiting()) == []

    (letter,) = stack.aws.dead_letters()
    assert (letter["reason"], letter["failure"]["code"]) == ("undelivered", 131_026)
    assert due_in(stack, key, clock) is None
    # Redriven, the next generation is asked about under its own id.
    stack.blip.clear_faults()
    assert stack.deliver(letter["body"], generation=1) == []
    clock.advance(6 * MINUTE)
    assert receipts.poll() == 1
    assert {receipt["id"] for receipt in receipts.waiting()} == {f"{key}:2"}


def test_message_that_ended_meanwhile_stays_final(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    key = sent(stack)
    clock.advance(6 * MINUTE)
    queue: Any = receipts.poller._polling.receipts
    put_all = queue.put_all

    def recorded_at_once(found: list[Json]) -> set[int]:
        refused: set[int] = put_all(found)
        assert receipts.record(*receipts.waiting()) == []
        return refused

    double = SimpleNamespace(put_all=recorded_at_once)
    object.__setattr__(receipts.poller._polling, "receipts", double)

    assert receipts.poll() == 1
    assert item(stack, key)["status"] == "consumed"
    assert due_in(stack, key, clock) is None


# --- Which bots -----------------------------------------------------------------------------------


def test_bots_with_a_webhook_are_not_polled(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    put_bots(stack, default={"receipts": "webhook"}, unsaid={"receipts": "webhook"})
    keys = [sent(stack), sent(stack, bot="unsaid", to="+5531999998889")]
    for key in keys:
        assert not item(stack, key).keys() & {"poll_bot", "poll_at", "poll_since"}
    clock.advance(HOUR)
    assert receipts.poll() == 0

    # What is left from before the bot got its webhook is left alone, too.
    stack.aws.dynamodb.update_item(
        TableName="ledger",
        Key={"key": {"S": keys[0]}},
        UpdateExpression="SET poll_bot = :bot, poll_at = :then, poll_since = :then",
        ExpressionAttributeValues={":bot": {"S": "default"}, ":then": {"N": "1"}},
    )
    assert receipts.poll() == 0
    assert asked(stack) == 0


def test_every_polled_bot_gets_its_turn(
    receipts: ReceiptsStack,
    stack: Stack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(poll_receipts, "CONCURRENCY", 2)
    other = Bot(name="other")
    stack.blip.put_bot(other)
    put_bots(stack, default={}, other={"key": other.key}, broken={"key": "no key"})
    several(stack, 5)
    several(stack, 1, bot="other")
    clock.advance(6 * MINUTE)

    assert receipts.poll() == 6

    order = [request.bot for request in stack.blip.requests if request.kind == "history"]
    assert order == ["simulated", "simulated", "other", *["simulated"] * 3]


@pytest.mark.parametrize("secret", ["", "[]", "no", "{}"])
def test_nothing_is_polled_without_a_bot(
    receipts: ReceiptsStack, stack: Stack, secret: str
) -> None:
    stack.aws.put_bots(secret or '{"default": 5}')

    assert receipts.poll() == 0


# --- Within limits --------------------------------------------------------------------------------


def test_polling_keeps_to_the_commands_plan(receipts: ReceiptsStack, stack: Stack) -> None:
    put_bots(stack, default={"commands_per_second": 10})
    keys = several(stack, 14)
    for key in keys:  # on the real clock, so they cannot wait
        stack.aws.dynamodb.update_item(
            TableName="ledger",
            Key={"key": {"S": key}},
            UpdateExpression="SET poll_at = :then",
            ExpressionAttributeValues={":then": {"N": "1"}},
        )
    stack.blip.clear()

    assert receipts.poll() == 14

    # Evenly spaced; threads that wake late on a busy machine come a little closer.
    statistics = stack.blip.statistics()
    assert statistics["requests"]["/commands"] == {"200": 14}
    assert statistics["highest_per_second"]["simulated"]["commands"] <= 12


def test_polling_stops_before_the_function_s_deadline(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    several(stack, 3)
    clock.advance(6 * MINUTE)

    assert receipts.poll(seconds=17) == 0
    assert asked(stack) == 0
    # Slots that lie too late are not waited for.
    put_bots(stack, default={"commands_per_second": 0.1})
    clock.advance(6 * MINUTE)
    assert receipts.poll(seconds=20) == 1
    assert asked(stack) == 1
    assert sum(clock.slept) < 10


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, 120), (700, 700), (90_000, 3600)])
def test_throttling_stops_polling_for_the_bot(
    receipts: ReceiptsStack,
    stack: Stack,
    clock: MachineClock,
    retry_after: int | None,
    seconds: int,
) -> None:
    headers = {"Retry-After": str(retry_after)} if retry_after else {}
    stack.blip.add_fault(path="history", status=429, headers=headers, times=10)
    keys = several(stack, 3)
    clock.advance(6 * MINUTE)

    assert receipts.poll() == 0
    assert receipts.waiting() == []
    assert asked(stack) == 3

    clock.advance(seconds - 5)
    assert receipts.poll() == 0
    assert len(stack.deliver(a_request())) == 1  # the sender, too
    assert asked(stack) == 3
    clock.advance(6)
    stack.blip.clear_faults()
    assert receipts.poll() == 3
    assert {receipt["id"] for receipt in receipts.waiting()} == set(keys)


def test_open_breaker_stops_polling(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    key = sent(stack)
    stack.aws.dynamodb.update_item(
        TableName="identities",
        Key={"key": {"S": "bot:default"}},
        UpdateExpression="SET broken = :why",
        ExpressionAttributeValues={":why": {"S": "a test"}},
    )
    clock.advance(6 * MINUTE)

    assert receipts.poll() == 0

    assert asked(stack) == 0
    assert due_in(stack, key, clock) == pytest.approx(-1 * MINUTE, abs=5)


def test_number_that_is_down_is_still_polled(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    """Only they can show whether it still is."""
    sent(stack)
    table = Table(stack.aws.dynamodb, "identities")
    DynamoDbBotStates(table, clock.now).number_down("default", "131042: payment")
    clock.advance(6 * MINUTE)

    assert receipts.poll() == 1


def test_more_messages_than_one_page_are_polled(
    receipts: ReceiptsStack,
    stack: Stack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(poll_receipts, "PAGE", poll_receipts.CONCURRENCY)
    several(stack, 50)
    clock.advance(6 * MINUTE)

    assert receipts.poll() == 50

    assert asked(stack) == 50


def test_wrong_key_does_not_postpone_the_other_messages(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    key = sent(stack)
    stack.blip.put_bot(Bot(key="Key c2ltdWxhdGVkOnJvdGF0ZWQ="))
    clock.advance(6 * MINUTE)

    assert receipts.poll() == 0
    assert due_in(stack, key, clock) == pytest.approx(-1 * MINUTE, abs=5)

    # Put into the secret, the new key is picked up without a deploy.
    put_bots(stack, default={"key": "Key c2ltdWxhdGVkOnJvdGF0ZWQ="})
    clock.advance(5 * MINUTE + 1)
    assert receipts.poll() == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"drop": True},
        {"failure": 61},
        {"failure": 64},
        {"status": 200, "body": []},
    ],
)
def test_failed_query_is_postponed_and_does_not_delay_the_others(
    receipts: ReceiptsStack,
    stack: Stack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
    fault: Json,
) -> None:
    monkeypatch.setattr(poll_receipts, "CONCURRENCY", 2)
    keys = several(stack, 3)
    stack.blip.add_fault(path="history", **fault, times=1)
    clock.advance(6 * MINUTE)

    # One of the first two fails, and no other message is polled in this run.
    assert [receipts.poll() for _ in range(3)] == [1, 1, 0]

    waits = sorted(due_in(stack, key, clock) or 0 for key in keys)
    assert waits == pytest.approx([6 * MINUTE, 6 * MINUTE, 15 * MINUTE], abs=5)
    clock.advance(15 * MINUTE)
    assert receipts.poll() == 3


def test_failed_query_at_the_end_is_the_last(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    key = sent(stack)
    stack.blip.add_fault(path="history", status=503)
    clock.advance(3 * DAY - 16 * MINUTE)
    assert receipts.poll() == 0
    assert due_in(stack, key, clock) is not None

    clock.advance(15 * MINUTE + 1)
    assert receipts.poll() == 0
    assert due_in(stack, key, clock) is None
    assert asked(stack) == 2


def test_receipt_that_cannot_be_enqueued_is_polled_again(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    keys = several(stack, 3)
    clock.advance(6 * MINUTE)
    stack.aws.sqs.delete_queue(QueueUrl=receipts.queue_url)

    with pytest.raises(ClientError):
        receipts.poll()
    for key in keys:
        assert due_in(stack, key, clock) == pytest.approx(-1 * MINUTE, abs=5)

    stack.aws.sqs.create_queue(QueueName="receipts")
    assert receipts.poll() == 3
    assert {receipt["id"] for receipt in receipts.waiting()} == set(keys)


def test_receipt_that_sqs_refuses_is_polled_again(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    keys = several(stack, 3)
    clock.advance(6 * MINUTE)
    queue: Any = receipts.poller._polling.receipts
    refusing = True

    def put_all(found: list[Json]) -> set[int]:
        refused = [n for n, event in enumerate(found) if refusing and event["id"] == keys[1]]
        # One event of several is enough.
        taken = [event for number, event in enumerate(found) if number not in refused[:1]]
        assert queue.put_all(taken) == set()
        return set(refused[:1])

    double = SimpleNamespace(put_all=put_all)
    object.__setattr__(receipts.poller._polling, "receipts", double)

    assert receipts.poll() == 2
    late = [(due_in(stack, key, clock) or 0) < 0 for key in keys]
    assert late == [False, True, False]
    assert {receipt["id"] for receipt in receipts.waiting()} == set(keys)

    refusing = False
    assert receipts.poll() == 1
    assert {receipt["id"] for receipt in receipts.waiting()} == {keys[1]}
    assert (due_in(stack, keys[1], clock) or 0) > 0


def test_no_query_is_running_when_the_function_returns(
    receipts: ReceiptsStack,
    stack: Stack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(poll_receipts, "KEPT_TOGETHER", 1)
    keys = several(stack, 2)
    clock.advance(6 * MINUTE)
    raised = threading.Event()

    def put_all(found: list[Json]) -> set[int]:
        if found[0]["id"] == keys[0]:
            raised.set()
            raise ValueError("the queue does not answer")
        assert raised.wait(5)
        return set()

    double = SimpleNamespace(put_all=put_all)
    object.__setattr__(receipts.poller._polling, "receipts", double)

    with pytest.raises(ValueError, match="does not answer"):
        receipts.poll()

    first, second = (due_in(stack, key, clock) for key in keys)
    assert first is not None
    assert first < 0
    assert second is not None
    assert second > 0


def test_handler_runs_as_lambda_calls_it(
    receipts: ReceiptsStack,
    stack: Stack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    several(stack, 2)
    clock.advance(6 * MINUTE)
    settings = {
        "LEDGER_TABLE": "ledger",
        "IDENTITIES_TABLE": "identities",
        "BOTS_SECRET_ARN": stack.aws.secret,
        "RECEIPTS_QUEUE_URL": receipts.queue_url,
        "COOLDOWN_SECONDS": "120",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    app = load_app("poll_receipts")

    answer = app["handler"]({}, a_context())
    app["_poll_receipts"].close()

    assert answer == {"asked": 2}
    (metrics,) = printed_metrics(capsys.readouterr().out)
    assert metrics["receipts_polled"] == [2.0]
    (late,) = metrics["receipts_late"]
    assert 60 <= late < 70  # five minutes after the send they were due


def test_delay_is_measured_only_for_polled_bots(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    polling = receipts.poller._polling
    assert polling.poll(clock.now() + 60).late_seconds == 0

    several(stack, 1)
    clock.advance(20 * MINUTE)
    several(stack, 1)
    clock.advance(7 * MINUTE)
    late = polling.poll(clock.now() + 60).late_seconds
    assert late == pytest.approx(22 * MINUTE, abs=10)

    put_bots(stack, default={"receipts": "webhook"})
    clock.advance(6 * MINUTE)
    assert polling.poll(clock.now() + 60).late_seconds is None
