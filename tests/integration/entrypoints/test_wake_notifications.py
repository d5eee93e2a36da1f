"""The function wake_notifications whole: waits that are over are put on the requests queue."""

from typing import Any

import pytest
from botocore.exceptions import ClientError

from notifier.domain.notification import ledger_key
from notifier.entrypoints.environment import BatchCrashed
from tests.integration.conftest import Stack
from tests.integration.receipts_stack import Json, ReceiptsStack, a_receipt
from tests.support.builders import a_request
from tests.support.clock import MachineClock
from tests.support.lambda_runtime import a_context, load_app, printed_metrics

DAY = 86_400


def item(stack: Stack, key: str) -> Json:
    return next(item for item in stack.aws.ledger() if item["key"] == key)


def waiting(stack: Stack, receipts: ReceiptsStack, count: int, code: int = 131_049) -> list[str]:
    """Send notifications, and let WhatsApp refuse them for now; return their keys."""
    requests = [a_request(to=f"+5531999{number:06}") for number in range(count)]
    for start in range(0, count, 10):
        assert stack.deliver(*requests[start : start + 10]) == []
    keys = [ledger_key("default", request["id"]) for request in requests]
    assert receipts.record(*(a_receipt(key, "failed", code) for key in keys)) == []
    assert {each["status"] for each in stack.aws.ledger()} == {"waiting"}
    return keys


def test_capped_message_goes_out_again_after_a_day(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    (key,) = waiting(stack, receipts, 1)
    assert [event["detail"]["status"] for event in receipts.published()] == ["sent"]

    clock.advance(DAY - 60)
    assert receipts.wake() == 0
    clock.advance(DAY / 10 + 120)
    assert receipts.wake() == 1
    assert "wake_at" not in item(stack, key)
    assert receipts.wake() == 0

    (woken,) = stack.receive()
    assert woken["attributes"]["MessageGroupId"] == "default"
    assert woken["body"] == item(stack, key)["request"]
    assert stack.handle([woken]) == []
    assert [message["id"] for message in stack.blip.inbox()] == [key, f"{key}:2"]
    assert [event["detail"]["generation"] for event in receipts.published()] == [2]


def test_many_are_woken_with_few_calls(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    keys = waiting(stack, receipts, 25)
    clock.advance(1.2 * DAY)
    stack.aws.calls.clear()

    assert receipts.wake() == len(keys)

    calls = [name for name, _ in stack.aws.calls]
    assert calls.count("Query") == 16
    assert calls.count("BatchGetItem") == calls.count("SendMessageBatch") == 3
    assert calls.count("UpdateItem") == 25
    assert len(calls) == 16 + 3 + 3 + 25


def test_run_without_anything_due_costs_a_query_for_each_shard(
    stack: Stack, receipts: ReceiptsStack
) -> None:
    stack.aws.calls.clear()

    assert receipts.wake() == 0

    assert [name for name, _ in stack.aws.calls] == ["Query"] * 16


def test_queue_that_is_away_leaves_everything_due(
    stack: Stack,
    receipts: ReceiptsStack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting(stack, receipts, 3)
    clock.advance(1.2 * DAY)

    def away(**_: Any) -> Any:
        raise ClientError({"Error": {"Code": "ServiceUnavailable"}}, "SendMessageBatch")

    requests: Any = receipts.waker._waking.requests
    with monkeypatch.context() as patched:
        patched.setattr(requests._sqs, "send_message_batch", away)
        assert receipts.wake() == 0

    assert receipts.wake() == 3


def test_function_fails_if_nothing_could_be_woken(
    stack: Stack,
    receipts: ReceiptsStack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only then does the alarm of a canary roll a broken release back."""
    waiting(stack, receipts, 3)
    clock.advance(1.2 * DAY)

    def broken(_: object) -> None:
        raise OSError("the release is broken")

    monkeypatch.setattr(receipts.waker._waking.requests, "wake", broken)

    with pytest.raises(BatchCrashed):
        receipts.wake()


def test_handler_runs_as_lambda_calls_it(
    stack: Stack,
    receipts: ReceiptsStack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = waiting(stack, receipts, 3)
    stack.aws.dynamodb.update_item(
        TableName="ledger",
        Key={"key": {"S": keys[0]}},
        UpdateExpression="REMOVE #request",
        ExpressionAttributeNames={"#request": "request"},
    )
    clock.advance(1.2 * DAY)
    monkeypatch.setenv("LEDGER_TABLE", "ledger")
    monkeypatch.setenv("REQUESTS_QUEUE_URL", stack.aws.requests_url)
    app = load_app("wake_notifications")

    answer = app["handler"]({}, a_context())
    app["_wake_notifications"].close()

    assert answer == {"woken": 2}
    (metrics,) = printed_metrics(capsys.readouterr().out)
    assert metrics["woken"] == [2.0]
    assert metrics["wake_unreadable"] == [1.0]
    (late,) = metrics["waits_late"]
    assert 0.1 * DAY <= late <= 0.2 * DAY
