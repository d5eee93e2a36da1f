"""The function record_receipt whole: receipts in; ledger, status events, dead letters out."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from jsonschema import Draft202012Validator, FormatChecker

from notifier import telemetry
from notifier.domain.bots import Bot
from notifier.domain.notification import ledger_key
from notifier.domain.receipts import Receipt
from notifier.entrypoints.environment import BatchCrashed
from tests.integration.conftest import Stack
from tests.integration.receipts_stack import Json, ReceiptsStack, a_receipt
from tests.support.builders import a_request
from tests.support.clock import MachineClock
from tests.support.lambda_runtime import a_context, load_app, printed_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
PRIVATE = ("+5531999998888", "5531999998888", "553199998888", "99998888", "Maria")


def schema(name: str) -> Draft202012Validator:
    content = json.loads((ROOT / "events" / "schema" / name).read_text(encoding="utf-8"))
    return Draft202012Validator(content, format_checker=FormatChecker())


def sent(stack: Stack, **changes: Any) -> str:
    """Send one notification. Return its message id."""
    request = a_request(**changes)
    assert stack.deliver(request) == []
    return ledger_key(request.get("bot", "default"), request["id"])


def item(stack: Stack, key: str) -> Json:
    return next(item for item in stack.aws.ledger() if item["key"] == key)


@pytest.fixture
def key(stack: Stack, receipts: ReceiptsStack) -> str:
    key = sent(stack, id="order-1", metadata={"order": "1"})
    receipts.published()
    return key


# --- Status events --------------------------------------------------------------------------------


def test_each_change_is_published(receipts: ReceiptsStack, stack: Stack, key: str) -> None:
    for event in ("accepted", "dispatched", "received", "consumed"):
        assert receipts.record(a_receipt(key, event)) == []
        assert item(stack, key)["status"] == event

    published = receipts.published()
    assert [heard["detail"]["status"] for heard in published] == ["received", "consumed"]
    for heard in published:
        schema("status-event.schema.json").validate(heard)
        assert heard["source"] == "blip-notifier"
        assert heard["detail-type"] == "Notification Status Changed"
        assert heard["detail"] == {
            "event_id": heard["detail"]["event_id"],
            "id": "order-1",
            "bot": "default",
            "status": heard["detail"]["status"],
            "reason": None,
            "generation": 1,
            "time": heard["detail"]["time"],
            "metadata": {"order": "1"},
            "correlation_id": None,
            "category": None,
            "stack": "blip-notifier",
        }
        for private in PRIVATE:
            assert private not in json.dumps(heard)


def test_sent_is_published(receipts: ReceiptsStack, stack: Stack) -> None:
    sent(stack, id="order-1")

    (event,) = receipts.published()
    schema("status-event.schema.json").validate(event)
    assert (event["detail"]["id"], event["detail"]["status"]) == ("order-1", "sent")


def test_dead_letter_is_published_with_its_reason(receipts: ReceiptsStack, key: str) -> None:
    receipts.record(a_receipt(key, "failed", 132_001))

    (event,) = receipts.published()
    schema("status-event.schema.json").validate(event)
    assert event["detail"]["status"] == "failed"
    assert event["detail"]["reason"] == "undelivered"
    for private in PRIVATE:
        assert private not in json.dumps(event)


def test_accepted_and_dispatched_are_published_if_enabled(
    receipts: ReceiptsStack, stack: Stack
) -> None:
    receipts.all_receipts = True
    key = sent(stack)

    receipts.record(*(a_receipt(key, event) for event in ("accepted", "dispatched", "received")))

    published = [event["detail"]["status"] for event in receipts.published()]
    assert published == ["sent", "accepted", "dispatched", "received"]


@pytest.mark.parametrize("problem", ["raises", "refuses"])
@pytest.mark.parametrize(("event", "code"), [("received", None), ("failed", 131_047)])
@pytest.mark.usefixtures("clock")
def test_unpublished_receipt_is_recorded_at_once_and_published_later(
    receipts: ReceiptsStack,
    stack: Stack,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    problem: str,
    event: str,
    code: int | None,
) -> None:
    def put_events(**call: Any) -> Json:
        if problem == "raises":
            raise ClientError({"Error": {"Code": "InternalException"}}, "PutEvents")
        return {
            "FailedEntryCount": 1,
            "Entries": [{"ErrorCode": "ThrottlingException"} for _ in call["Entries"]],
        }

    events: Any = receipts.publisher._publisher.events
    with monkeypatch.context() as patched:
        patched.setattr(events._eventbridge, "put_events", put_events)
        batch = [a_receipt(key, event, code), a_receipt(key, "accepted")]
        assert receipts.record(*batch) == []

        assert item(stack, key)["status"] == event
        assert len(stack.aws.dead_letters()) == (event == "failed")
        assert receipts.publish() == 1
        assert receipts.heard() == []

    assert [each["detail"]["status"] for each in receipts.published()] == [event]
    assert receipts.record(*batch) == []
    assert receipts.published() == []
    assert stack.aws.dead_letters() == []


# --- Dead letters and next generations ------------------------------------------------------------


def test_failed_message_is_a_dead_letter_with_all_details(
    receipts: ReceiptsStack, stack: Stack, key: str
) -> None:
    body = item(stack, key)["request"]

    assert receipts.record(a_receipt(key, "failed", 86)) == []

    (letter,) = stack.aws.dead_letters()
    assert letter["body"] == body
    assert letter["reason"] == "undelivered"
    assert letter["bot"] == "default"
    assert letter["notification_id"] == "order-1"
    assert letter["generation"] == "1"
    assert letter["failure"] == {
        "detail": "BLiP reports reason 86: gateway: operation timed out",
        "code": 86,
        "template": "order_shipped",
        "phase": "receipt",
        "attempts": 1,
        "possibly_sent": True,
        "redrives": 0,
    }
    attributes = {name: value for name, value in letter.items() if name != "body"}
    text = json.dumps(letter["failure"])
    schema("dead-letter.schema.json").validate(attributes | {"failure": text})
    for private in PRIVATE:
        assert private not in text
    found = item(stack, key)
    assert (found["status"], found["reason"], found["code"]) == ("failed", "undelivered", "86")


def test_redrive_is_the_next_generation(receipts: ReceiptsStack, stack: Stack, key: str) -> None:
    receipts.record(a_receipt(key, "failed", 132_001))
    (letter,) = stack.aws.dead_letters()

    # Redriven twice: by hand, and by the console.
    assert stack.deliver(letter["body"], generation=int(letter["generation"])) == []
    assert stack.deliver(letter["body"], generation=int(letter["generation"])) == []

    assert [message["id"] for message in stack.blip.inbox()] == [key, f"{key}:2"]
    receipts.published()
    # What comes late about the first one changes nothing any more,
    assert receipts.record(a_receipt(key, "dispatched"), a_receipt(key, "failed", 131_026)) == []
    assert item(stack, key)["status"] == "sent"
    assert stack.aws.dead_letters() == []
    assert receipts.published() == []
    # what comes about the second one does,
    assert receipts.record(a_receipt(f"fwd:{key}:2", "failed", 132_001)) == []
    (letter,) = stack.aws.dead_letters()
    assert letter["generation"] == "2"
    # and that the person has the first one is true whenever it comes.
    assert receipts.record(a_receipt(key, "received")) == []
    assert item(stack, key)["status"] == "received"
    assert stack.deliver(letter["body"], generation=2) == []
    assert len(stack.blip.inbox()) == 2
    published = [
        (event["detail"]["status"], event["detail"]["generation"]) for event in receipts.published()
    ]
    assert published == [("failed", 2), ("received", 1)]


def test_rate_limit_lets_the_request_wait_once(
    receipts: ReceiptsStack, stack: Stack, key: str, clock: MachineClock
) -> None:
    stack.aws.calls.clear()

    assert receipts.record(*[a_receipt(key, "failed", 131_056)] * 3) == []
    assert receipts.record(a_receipt(key, "failed", 131_056)) == []

    assert {name for name, _ in stack.aws.calls} == {"GetItem", "UpdateItem"}
    waits = float(item(stack, key)["wake_at"]) / 1000 - clock.now()
    assert 290 <= waits <= 900
    assert receipts.published() == []
    assert receipts.wake() == 0  # not before its time
    clock.advance(waits + 1)
    assert [receipts.wake(), receipts.wake()] == [1, 0]

    assert stack.handle(stack.receive()) == []
    assert [message["id"] for message in stack.blip.inbox()] == [key, f"{key}:2"]
    # The second time it is given up.
    assert receipts.record(a_receipt(f"{key}:2", "failed", 131_056)) == []
    (letter,) = stack.aws.dead_letters()
    assert letter["generation"] == "2"


def test_unreachable_recipient_is_looked_up_again(
    receipts: ReceiptsStack, stack: Stack, key: str
) -> None:
    receipts.record(a_receipt(key, "failed", 131_026))

    sandbox = stack.sandbox()
    stack.publish(a_request())
    assert stack.handle(stack.receive(), function=sandbox) == []

    assert stack.blip.statistics()["lookups"] == {"+5531999998888": 2}


@pytest.mark.parametrize("code", [131_047, 131_049])
def test_other_failures_keep_the_identity(
    receipts: ReceiptsStack, stack: Stack, key: str, code: int
) -> None:
    receipts.record(a_receipt(key, "failed", code))

    sandbox = stack.sandbox()
    stack.publish(a_request())
    assert stack.handle(stack.receive(), function=sandbox) == []

    assert stack.blip.statistics()["lookups"] == {"+5531999998888": 1}


# --- Order, repetition, time ----------------------------------------------------------------------


def test_repeated_receipts_change_nothing(receipts: ReceiptsStack, stack: Stack, key: str) -> None:
    batch = [a_receipt(key, "failed", 131_047)] * 3 + [a_receipt(f"fwd:fwd:{key}", "failed", 1)]

    assert receipts.record(*batch) == []
    assert receipts.record(*batch) == []

    assert len(stack.aws.dead_letters()) == 1
    assert len(receipts.published()) == 1
    assert receipts.record(*[a_receipt(key, "received")] * 3, a_receipt(key, "failed", 1)) == []
    assert [event["detail"]["status"] for event in receipts.published()] == ["received"]
    assert item(stack, key)["status"] == "received"


def test_batch_may_hold_any_body(receipts: ReceiptsStack, stack: Stack) -> None:
    keys = [sent(stack, to=f"+55319999988{number:02}") for number in range(8)]
    foreign = ledger_key("default", "nobody's")
    receipts.published()
    batch = [a_receipt(key, "received") for key in keys[:4]]
    batch += [a_receipt(key, "failed", 131_026) for key in keys[4:]]
    batch += [a_receipt(keys[0], "dispatched"), a_receipt(keys[7], "consumed")]
    batch += [a_receipt(foreign, event) for event in ("accepted", "received", "failed")]
    batch += [a_receipt("wamid.HBg", "received"), {"content": "Oi"}, {"event": "exploded"}, {}]

    assert receipts.record(*batch) == []

    statuses = {item["key"]: item["status"] for item in stack.aws.ledger()}
    assert statuses == dict.fromkeys(keys[:4], "received") | dict.fromkeys(keys[4:7], "failed") | {
        keys[7]: "consumed"
    }
    assert len(stack.aws.dead_letters()) == 4
    assert len(receipts.published()) == 4 + 4 + 1


def test_receipt_before_the_send_s_answer_is_kept(
    receipts: ReceiptsStack, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    blip: Any = stack.sandbox()._delivery._blip
    send: Callable[..., None] = blip.send

    def overtaken(bot: Bot, message_id: str, *others: Any) -> None:
        assert item(stack, message_id)["status"] == "sending"
        send(bot, message_id, *others)
        assert receipts.record(a_receipt(message_id, "received")) == []

    monkeypatch.setattr(blip, "send", overtaken)

    key = sent(stack)

    found = item(stack, key)
    assert found["status"] == "received"
    assert not found.keys() & {"token", "lease_until", "request"}
    published = [event["detail"]["status"] for event in receipts.published()]
    assert published == ["sent", "received"]


def test_failure_before_the_send_s_answer_is_kept(
    receipts: ReceiptsStack, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    blip: Any = stack.sandbox()._delivery._blip
    send: Callable[..., None] = blip.send

    def overtaken(bot: Bot, message_id: str, *others: Any) -> None:
        send(bot, message_id, *others)
        assert receipts.record(a_receipt(message_id, "failed", 132_001)) == []

    monkeypatch.setattr(blip, "send", overtaken)

    key = sent(stack)

    assert item(stack, key)["status"] == "failed"
    assert len(stack.aws.dead_letters()) == 1
    assert [event["detail"]["status"] for event in receipts.published()] == ["sent", "failed"]


def test_receipts_may_arrive_weeks_later(
    receipts: ReceiptsStack, stack: Stack, clock: MachineClock
) -> None:
    key = sent(stack)
    clock.advance(30 * 86_400)

    assert receipts.record(a_receipt(key, "received")) == []
    assert item(stack, key)["status"] == "received"

    # And when the ledger's entry has expired.
    stack.aws.dynamodb.delete_item(TableName="ledger", Key={"key": {"S": key}})
    assert receipts.record(*(a_receipt(key, e) for e in ("accepted", "consumed", "failed"))) == []
    assert stack.aws.ledger() == []
    assert stack.aws.dead_letters() == []


def test_receipts_without_a_notification_write_nothing(
    receipts: ReceiptsStack, stack: Stack
) -> None:
    keys = [ledger_key("default", "nobody's"), "1b4e28ba-2fa1-4d3b-a3f5-ef19b5a7633b", "wamid.HBg"]
    for key in keys:
        for event in ("accepted", "dispatched", "received", "consumed", "failed"):
            assert receipts.record(a_receipt(key, event, 131_056)) == []

    assert stack.aws.ledger() == []
    assert stack.aws.dead_letters() == []
    assert receipts.published() == []
    # The bot's other messages cost no call at all.
    stack.aws.calls.clear()
    receipts.record(a_receipt(keys[1], "received"), a_receipt(keys[2], "failed"))
    assert stack.aws.calls == []


def test_two_sandboxes_with_the_same_batch_do_the_same_as_one(
    receipts: ReceiptsStack, stack: Stack
) -> None:
    keys = [sent(stack, to=f"+55319999988{number:02}") for number in range(6)]
    receipts.published()
    other = ReceiptsStack(**{name: getattr(receipts, name) for name in receipts.__annotations__})
    batch = [a_receipt(key, event) for key in keys for event in ("consumed", "received")]

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(side.record, *batch) for side in (receipts, other)]
        assert [future.result() for future in futures] == [[], []]
    other.recorder.close()

    assert {item["status"] for item in stack.aws.ledger()} == {"consumed"}
    published = [event["detail"] for event in receipts.published()]
    assert len({detail["event_id"] for detail in published}) == len(
        published
    )  # each is published once
    assert [detail["status"] for detail in published].count("consumed") == 6


# --- What cannot be recorded hurts nothing else ---------------------------------------------------


@pytest.mark.parametrize("poison", ["", "no", "{", "[" * 100_000], ids=lambda body: body[:3] or "-")
def test_body_that_is_not_json_returns_alone(
    receipts: ReceiptsStack, stack: Stack, key: str, poison: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert receipts.record(poison, a_receipt(key, "received")) == [poison]
    assert item(stack, key)["status"] == "received"
    assert "not JSON" in caplog.text


def test_receipt_that_cannot_be_recorded_returns_alone(
    receipts: ReceiptsStack, stack: Stack
) -> None:
    first, second, third = (sent(stack, to=f"+55319999988{number:02}") for number in range(3))
    stack.aws.sqs.delete_queue(QueueUrl=stack.aws.dead_letters_url)
    dying = [a_receipt(key, "failed", 131_047) for key in (first, second)]

    back = receipts.record(
        a_receipt(third, "accepted"),
        *dying,
        a_receipt(second, "accepted"),
        a_receipt(third, "received"),
    )

    assert back == [json.dumps(receipt) for receipt in dying]
    statuses = {item["key"]: item["status"] for item in stack.aws.ledger()}
    assert statuses == {first: "sent", second: "accepted", third: "received"}

    queue = stack.aws.sqs.create_queue(QueueName="dead-letters")
    assert queue["QueueUrl"] == stack.aws.dead_letters_url
    assert receipts.record(*back) == []
    assert len(stack.aws.dead_letters()) == 2


@pytest.mark.parametrize("dying", [2, 1])
def test_function_fails_only_if_the_whole_batch_crashed(
    receipts: ReceiptsStack, stack: Stack, monkeypatch: pytest.MonkeyPatch, dying: int
) -> None:
    keys = [sent(stack, to=f"+55319999988{number:02}") for number in range(2)]
    records = [{"messageId": key, "body": json.dumps(a_receipt(key, "received"))} for key in keys]
    advance = receipts.recorder._receipts.ledger.advance

    def broken(receipt: Receipt) -> Any:
        if receipt.key in keys[:dying]:
            raise OSError("the release is broken")
        return advance(receipt)

    monkeypatch.setattr(receipts.recorder._receipts.ledger, "advance", broken)

    if dying == 2:
        with pytest.raises(BatchCrashed):
            receipts.recorder.handle({"Records": records})
    else:
        answer = receipts.recorder.handle({"Records": records})
        assert answer == {"batchItemFailures": [{"itemIdentifier": keys[0]}]}


def test_no_log_holds_a_number_or_a_parameter(
    receipts: ReceiptsStack,
    stack: Stack,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG, logger="notifier")
    keys = [sent(stack, to=f"+55319999988{number:02}") for number in range(7)]
    for key, code in zip(keys[:5], (131_026, 131_056, 131_042, 86, 9_999), strict=True):
        receipts.record(a_receipt(key, "failed", code), a_receipt(key, "received"))
    receipts.record("no: +5531999998888", a_receipt("wamid.+5531999998888", "failed"))
    stack.aws.sqs.delete_queue(QueueUrl=stack.aws.dead_letters_url)
    receipts.record(a_receipt(keys[5], "failed", 131_026))

    def forget(recipient: tuple[str, str]) -> None:
        raise ValueError(f"no such value: {recipient}")

    monkeypatch.setattr(receipts.recorder._receipts.identities, "invalidate", forget)
    assert len(receipts.record(a_receipt(keys[6], "failed", 131_026))) == 1

    lines = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    crashes = [vars(one) for one in caplog.records if one.getMessage() == "receipt not recorded"]
    assert [crash["error"] for crash in crashes] == ["QueueDoesNotExist", "ValueError"]
    assert all(crash["key"] and "in record\n" in "".join(crash["stack"]) for crash in crashes)
    assert sum("dead letter" in line for line in lines) >= 4
    for line in lines:
        for private in ("+55", "553199", "Maria"):
            assert private not in line


def test_handler_runs_as_lambda_calls_it(
    stack: Stack,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {
        "LEDGER_TABLE": "ledger",
        "IDENTITIES_TABLE": "identities",
        "DEAD_LETTERS_QUEUE_URL": stack.aws.dead_letters_url,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    app = load_app("record_receipt")
    bodies = [json.dumps(a_receipt(key, "received")), "no", '{"content": "Oi"}']
    records = [{"messageId": str(number), "body": body} for number, body in enumerate(bodies)]

    answer = app["handler"]({"Records": records}, a_context())
    app["_record_receipt"].close()

    assert answer == {"batchItemFailures": [{"itemIdentifier": "1"}]}
    (metrics,) = printed_metrics(capsys.readouterr().out)
    assert metrics["receipt_recorded"] == [1.0]
    assert metrics["receipt_foreign"] == [1.0]
    assert metrics["receipt_comes_back"] == [1.0]
    assert item(stack, key)["status"] == "received"


# --- Of whose bot ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bots", [["clinic"], ["clinic", "shop"]])
@pytest.mark.parametrize("event", ["accepted", "dispatched", "received", "consumed", "failed"])
def test_receipt_with_another_bot_s_secret_changes_nothing(
    receipts: ReceiptsStack,
    stack: Stack,
    key: str,
    event: str,
    bots: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = item(stack, key)
    counted: list[str] = []
    monkeypatch.setattr(telemetry, "count", counted.extend)

    # 131042 would stop the whole number.
    assert receipts.record(a_receipt(key, event, 131042, bots=bots)) == []

    assert item(stack, key) == before
    assert stack.aws.dead_letters() == []
    assert counted == ["webhook_unauthorized"]
    (warning,) = [one for one in caplog.records if "secret of another bot" in one.getMessage()]
    assert (vars(warning)["key"], vars(warning)["bot"]) == (key, "default")


def test_receipt_with_another_bot_s_secret_leaves_no_older_generation(
    receipts: ReceiptsStack, stack: Stack, key: str
) -> None:
    body = item(stack, key)["request"]
    receipts.record(a_receipt(key, "failed", 131_056))
    stack.deliver(body, generation=1)
    before = item(stack, key)
    assert before["generation"] == "2"

    receipts.record(a_receipt(key, "accepted", bots=["clinic"]))
    assert item(stack, key) == before
    receipts.record(a_receipt(key, "accepted", bots=["default"]))
    assert item(stack, key) != before


@pytest.mark.parametrize("bots", [["default"], ["clinic", "default"]])
@pytest.mark.parametrize("event", ["accepted", "received", "failed"])
def test_bot_s_own_secret_is_as_good_as_the_shared_one(
    receipts: ReceiptsStack, stack: Stack, key: str, event: str, bots: list[str]
) -> None:
    assert receipts.record(a_receipt(key, event, 131026, bots=bots)) == []

    assert item(stack, key)["status"] == event
