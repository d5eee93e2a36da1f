"""The function ForgetRecipient whole, over moto: tables and queues in, and nothing left of them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from notifier.aws import table
from notifier.entrypoints.forget_recipient import ForgetRecipient, forget_recipient
from notifier.settings import ForgetRecipientSettings
from tests.integration.conftest import Aws, Stack
from tests.support.builders import PHONE, a_request
from tests.support.lambda_runtime import a_context, load_app

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "events/lambda/forget_recipient.json"

type Json = dict[str, Any]


@pytest.fixture
def receipts_dead_letters(aws: Aws) -> str:
    return aws.sqs.create_queue(QueueName="receipts-dead-letters")["QueueUrl"]


@pytest.fixture
def function(aws: Aws, receipts_dead_letters: str) -> ForgetRecipient:
    return forget_recipient(
        ForgetRecipientSettings("ledger", "identities", aws.dead_letters_url, receipts_dead_letters)
    )


@pytest.fixture
def everything(aws: Aws, receipts_dead_letters: str) -> Callable[[], str]:
    """Return the content of the tables and the dead letters as text; the dead letters stay."""

    def read() -> str:
        tables = [aws.dynamodb.scan(TableName=name)["Items"] for name in ("ledger", "identities")]
        bodies = []
        for url in (aws.dead_letters_url, receipts_dead_letters):
            answer = aws.sqs.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0
            )
            bodies += [message["Body"] for message in answer.get("Messages", [])]
        return json.dumps([tables, bodies], ensure_ascii=False)

    return read


def test_everything_found_is_erased(
    function: ForgetRecipient,
    stack: Stack,
    aws: Aws,
    receipts_dead_letters: str,
    everything: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And what is still on the queue, known or not, is not sent."""
    sent, rejected = a_request(metadata={"name": "Maria Silva"}), a_request()
    stack.deliver(sent, a_request(to="+5511988887777"))
    stack.blip.add_fault(path="messages", status=400, times=1)
    stack.deliver(rejected)
    stack.blip.add_fault(path="messages", status=503, times=1)
    waiting = a_request()
    stack.deliver(waiting)
    not_yet_seen = a_request()
    stack.publish(not_yet_seen)
    aws.sqs.send_message(
        QueueUrl=receipts_dead_letters, MessageBody='{"reason": "to +5531999998888"}'
    )
    already = len(stack.blip.inbox())
    caplog.set_level(logging.DEBUG, logger="notifier")
    caplog.clear()

    looked = function.handle({"to": "+55 31 99999-8888"}, a_context())
    assert looked == {
        "scanned": 4 + 2,
        "possible": 0,
        "found": {"notifications": 3, "identities": 1, "dead_letters": 2},
        "erased": {"notifications": 0, "identities": 0, "dead_letters": 0},
        "continue_from": None,
    }
    assert everything().count("99998888") > 3
    erased = function.handle({"to": PHONE, "dry_run": False}, a_context())

    assert erased == looked | {"erased": looked["found"]}
    for trace in ("99998888", "…8888", "Maria Silva", sent["id"], rejected["id"], waiting["id"]):
        assert trace not in everything()
    assert "+5511988887777" in everything()
    assert stack.handle(stack.receive()) == []
    assert stack.deliver(waiting) == []
    assert len(stack.blip.inbox()) == already
    assert aws.dead_letters() == []
    for record in caplog.records:
        assert "8888" not in f"{record.getMessage()} {vars(record)}"


def test_notification_without_its_body_is_counted_as_possible(
    function: ForgetRecipient, stack: Stack
) -> None:
    stack.deliver(a_request())
    stack.aws.dynamodb.update_item(
        TableName="ledger",
        Key={"key": {"S": stack.aws.ledger()[0]["key"]}},
        UpdateExpression="REMOVE #request",
        ExpressionAttributeNames={"#request": "request"},
    )

    answer = function.handle({"to": PHONE, "dry_run": False}, a_context())

    assert (answer["possible"], answer["erased"]["notifications"]) == (1, 0)


def test_ledger_of_many_pages_is_read_to_its_end(
    function: ForgetRecipient, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.deliver(*(a_request() for _ in range(7)))
    scan = table.Table.scan

    def two_at_a_time(self: table.Table, *arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            whole = self._dynamodb.scan
            patch.setattr(self._dynamodb, "scan", lambda **asked: whole(**asked, Limit=2))
            return scan(self, *arguments)

    monkeypatch.setattr(table.Table, "scan", two_at_a_time)

    answer = function.handle({"to": PHONE, "dry_run": False}, a_context())

    assert (answer["scanned"], answer["erased"]["notifications"]) == (7, 7)
    assert answer["continue_from"] is None
    assert {item["status"] for item in stack.aws.ledger()} == {"cancelled"}


def test_run_with_little_time_proceeds_and_says_where_to_continue(
    function: ForgetRecipient, stack: Stack
) -> None:
    stack.deliver(a_request())

    answer = function.handle({"to": PHONE, "dry_run": False}, a_context(seconds=9))

    assert (answer["scanned"], answer["continue_from"]) == (1, "letters")
    order = {"to": PHONE, "continue_from": answer["continue_from"]}
    assert function.handle(order, a_context())["continue_from"] is None


def test_invalid_order_is_answered_with_its_problem(function: ForgetRecipient, aws: Aws) -> None:
    aws.calls.clear()

    answer = function.handle({"to": "31 99999-8888"}, a_context())

    assert answer == {"error": "to: must start with + and the country code"}
    assert aws.calls == []


def test_table_that_does_not_answer_is_an_error_of_the_function(
    function: ForgetRecipient, aws: Aws
) -> None:
    aws.dynamodb.delete_table(TableName="ledger")

    with pytest.raises(ClientError):
        function.handle({"to": PHONE}, a_context())


@pytest.mark.parametrize("log_event", ["false", "true"])
def test_handler_runs_as_lambda_calls_it(
    aws: Aws,
    receipts_dead_letters: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    log_event: str,
) -> None:
    monkeypatch.setenv("POWERTOOLS_LOGGER_LOG_EVENT", log_event)
    monkeypatch.setenv("LEDGER_TABLE", "ledger")
    monkeypatch.setenv("IDENTITIES_TABLE", "identities")
    monkeypatch.setenv("DEAD_LETTERS_QUEUE_URL", aws.dead_letters_url)
    monkeypatch.setenv("RECEIPTS_DEAD_LETTERS_QUEUE_URL", receipts_dead_letters)
    handler = load_app("forget_recipient")["handler"]
    event = json.loads(SAMPLE.read_text(encoding="utf-8"))

    answer = handler(event, a_context())

    assert answer["found"] == {"notifications": 0, "identities": 0, "dead_letters": 0}
    assert event["to"].removeprefix("+") not in capsys.readouterr().out
