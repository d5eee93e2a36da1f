"""The function GetNotification whole: HTTP API events in, answers out, over moto."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError
from jsonschema import Draft202012Validator, FormatChecker

from notifier.entrypoints.get_notification import GetNotification, get_notification
from notifier.settings import GetNotificationSettings
from tests.integration.conftest import Aws, Stack
from tests.integration.receipts_stack import ReceiptsStack, a_receipt
from tests.support.builders import a_request
from tests.support.clock import MachineClock
from tests.support.lambda_runtime import a_context, load_app

type Json = dict[str, Any]

ROOT = Path(__file__).parents[3]
OPENAPI = yaml.safe_load((ROOT / "events/openapi.yaml").read_text(encoding="utf-8"))
SAMPLE = ROOT / "events/lambda/get_notification.json"
ANSWER = Draft202012Validator(
    {"$ref": "#/components/schemas/NotificationAnswer"} | OPENAPI, format_checker=FormatChecker()
)


def an_event(method: str, path: str, query: dict[str, str] | None = None) -> Json:
    """Return an event as the HTTP API makes it."""
    event: Json = json.loads(SAMPLE.read_text(encoding="utf-8"))
    event |= {"rawPath": path, "routeKey": f"{method} /notifications/{{id}}"}
    event["requestContext"]["http"] |= {"method": method, "path": path}
    if query is None:
        del event["queryStringParameters"]
    else:
        event["queryStringParameters"] = query
    return event


@dataclass
class Asked:
    """The function, and what it was asked."""

    function: GetNotification

    def __call__(self, notification_id: str, method: str = "GET", **query: str) -> tuple[int, Any]:
        """Return the answer's status and body: JSON, or a line."""
        path = f"/notifications/{notification_id}"
        answer = self.function.handle(an_event(method, path, query or None), a_context())
        kind = answer["headers"]["Content-Type"]
        if kind == "application/json":
            body = json.loads(answer["body"])
            ANSWER.validate(body)
            return answer["statusCode"], body
        assert kind == "text/plain; charset=utf-8"
        assert answer["body"].count("\n") == 1
        return answer["statusCode"], answer["body"].strip()

    def cancel(self, notification_id: str, **query: str) -> tuple[int, Any]:
        return self(notification_id, "DELETE", **query)


@pytest.fixture
def asked(aws: Aws) -> Asked:
    assert aws
    return Asked(get_notification(GetNotificationSettings("ledger")))


def test_whole_notification_is_returned_without_number_and_parameters(
    asked: Asked, stack: Stack, receipts: ReceiptsStack
) -> None:
    request = a_request(metadata={"order": "981"}, correlation_id="trace-1")
    stack.deliver(request)
    (message,) = stack.blip.inbox()
    receipts.record(a_receipt(message["id"], "received"))

    status, answer = asked(request["id"])

    assert status == 200
    timeline = answer.pop("timeline")
    assert [change["status"] for change in timeline] == ["sent", "received"]
    assert timeline[0]["time"] <= timeline[1]["time"] == answer.pop("updated_at")
    assert answer.pop("created_at") <= timeline[0]["time"]
    assert answer == {
        "id": request["id"],
        "bot": "default",
        "status": "received",
        "reason": None,
        "code": None,
        "attempts": 1,
        "generation": 1,
        "template": "order_shipped",
        "category": None,
        "recipient": "…8888",
        "metadata": {"order": "981"},
        "correlation_id": "trace-1",
        "wakes_at": None,
    }


def test_reason_of_a_failure_is_returned(
    asked: Asked, stack: Stack, receipts: ReceiptsStack
) -> None:
    request = a_request()
    stack.deliver(request)
    (message,) = stack.blip.inbox()
    receipts.record(a_receipt(message["id"], "failed", 131026))

    _, answer = asked(request["id"], bot="default")

    assert (answer["status"], answer["reason"], answer["code"]) == ("failed", "undelivered", 131026)
    assert "Maria" not in json.dumps(answer)


def test_unknown_notification_is_404_and_named(asked: Asked, stack: Stack) -> None:
    request = a_request(id="order-1")
    stack.deliver(request)

    assert asked("order-2") == (404, "bot default has no notification order-2")
    assert asked("order-1", bot="clinic") == (404, "bot clinic has no notification order-1")


def test_id_may_be_percent_encoded(asked: Asked, stack: Stack) -> None:
    stack.deliver(a_request(id="a:b~c._-"))

    assert asked("a%3Ab%7Ec._-")[0] == asked("a:b~c._-")[0] == 200


ID_RULE = "id: must be 1 to 128 of A-Z a-z 0-9 . _ : ~ -"
BOT_RULE = "bot: must be 1 to 64 of A-Z a-z 0-9 _ -"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    ("notification_id", "query", "line"),
    [
        ("a b", {}, ID_RULE),
        ("x" * 129, {}, ID_RULE),
        ("a%25b", {}, ID_RULE),
        ("a", {"bot": ""}, BOT_RULE),
        ("a", {"bot": "a/b"}, BOT_RULE),
        ("a", {"bot": "a,b"}, BOT_RULE),
        ("ü", {"bot": "x" * 65}, f"{ID_RULE}; {BOT_RULE}"),
        ("a", {"bots": "clinic"}, "the query has a parameter that is not `bot`"),
    ],
)
def test_invalid_request_is_refused_before_any_read(
    asked: Asked, aws: Aws, method: str, notification_id: str, query: dict[str, str], line: str
) -> None:
    aws.calls.clear()

    assert asked(notification_id, method, **query) == (400, line)
    assert aws.calls == []


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("POST", "/notifications/a"), ("GET", "/notifications/a/b")]
)
def test_unknown_route_is_404(asked: Asked, method: str, path: str) -> None:
    answer = asked.function.handle(an_event(method, path), a_context())

    assert answer["statusCode"] == 404


# --- Taking back ----------------------------------------------------------------------------------


def test_waiting_notification_is_cancelled_and_never_sent(
    asked: Asked, stack: Stack, receipts: ReceiptsStack
) -> None:
    request = a_request(metadata={"order": "981"})
    stack.blip.add_fault(path="messages", status=400, code=51, times=1)
    stack.deliver(request)

    assert asked.cancel(request["id"])[1]["status"] == "cancelled"
    status, answer = asked.cancel(request["id"], bot="default")

    assert (status, answer["status"], answer["generation"]) == (200, "cancelled", 1)
    assert asked(request["id"]) == (200, answer)
    assert stack.deliver(request, generation=1) == []
    assert stack.deliver(request | {"to": "+5531988887777"}) == []
    assert stack.blip.inbox() == []
    assert stack.aws.dead_letters() == []
    details = [event["detail"] for event in receipts.published()]
    assert {(d["id"], d["status"], d["reason"]) for d in details} == {
        (request["id"], "cancelled", None)
    }
    assert len({detail["event_id"] for detail in details}) == 1
    (item,) = stack.aws.ledger()
    assert "request" not in item


def test_notification_that_has_not_arrived_is_cancelled_in_advance(
    asked: Asked, stack: Stack
) -> None:
    request = a_request()

    status, answer = asked.cancel(request["id"])
    assert stack.deliver(request) == []

    assert (status, answer["template"], answer["recipient"]) == (200, None, None)
    assert stack.blip.inbox() == []


def test_sent_notification_cannot_be_cancelled(asked: Asked, stack: Stack) -> None:
    stack.deliver(a_request(id="order-1"))

    assert asked.cancel("order-1") == (
        409,
        "notification order-1 of bot default cannot be cancelled: it has gone out, and is sent",
    )
    assert asked("order-1")[1]["status"] == "sent"


@pytest.mark.usefixtures("clock")
def test_cancellation_is_published_when_the_bus_answers_again(
    asked: Asked, stack: Stack, receipts: ReceiptsStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = a_request(id="order-1")
    stack.blip.add_fault(path="messages", status=400, code=51, times=1)
    stack.deliver(request)
    refused = {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "InternalFailure"}]}
    events: Any = receipts.publisher._publisher.events
    with monkeypatch.context() as patch:
        patch.setattr(events._eventbridge, "put_events", lambda **_: refused)
        assert asked.cancel("order-1")[0] == 200
        assert receipts.publish() == 1

    assert asked.cancel("order-1")[0] == 200
    assert len(receipts.published()) == 1


def test_cancellation_in_advance_is_published_once_when_its_request_arrives(
    asked: Asked, stack: Stack, receipts: ReceiptsStack
) -> None:
    request = a_request(id="order-1", metadata={"order": "981"}, correlation_id="trace-1")
    assert asked.cancel("order-1")[0] == 200
    assert receipts.published() == []

    assert stack.deliver(request, request) == []

    (event,) = receipts.published()
    detail = event["detail"]
    assert (detail["status"], detail["generation"]) == ("cancelled", 0)
    assert (detail["metadata"], detail["correlation_id"]) == ({"order": "981"}, "trace-1")
    assert asked.cancel("order-1")[1]["template"] == "order_shipped"
    assert receipts.published() == []


# --- What was refused -----------------------------------------------------------------------------


def test_invalid_request_is_returned_with_its_reasons(
    asked: Asked, stack: Stack, receipts: ReceiptsStack
) -> None:
    refused = a_request(id="order-1", to="31 99999-8888", correlation_id="trace-1")
    assert stack.deliver(refused) == []

    status, answer = asked("order-1")

    assert status == 200
    at = answer["updated_at"]
    assert answer == {
        "id": "order-1",
        "bot": "default",
        "status": "rejected",
        "reason": "invalid",
        "code": None,
        "attempts": 0,
        "generation": 0,
        "timeline": [{"status": "rejected", "generation": 0, "time": at, "reason": "invalid"}],
        "template": None,
        "category": None,
        "recipient": None,
        "metadata": {},
        "correlation_id": answer["correlation_id"],
        "wakes_at": None,
        "created_at": at,
        "updated_at": at,
    }
    (event,) = receipts.published()
    detail = event["detail"]
    assert (detail["id"], detail["status"], detail["reason"], detail["time"]) == (
        *("order-1", "rejected", "invalid"),
        at,
    )
    assert detail["generation"] == 0
    assert detail["correlation_id"] == answer["correlation_id"]


def test_last_ten_refusals_of_an_id_are_returned(
    clock: MachineClock, asked: Asked, stack: Stack, receipts: ReceiptsStack
) -> None:
    heard: list[str] = []
    times: list[str] = []
    for number in range(12):
        clock.advance(60)
        assert stack.deliver(a_request(id="order-1", to=f"no number {number}")) == []
        heard += [event["detail"]["time"] for event in receipts.published()]
        times.append(asked("order-1")[1]["updated_at"])

    answer = asked("order-1")[1]

    assert [change["time"] for change in answer["timeline"]] == times[2:]
    assert (answer["created_at"], answer["updated_at"]) == (times[2], times[-1])
    assert heard == times == sorted(set(times))
    assert len(stack.aws.dead_letters()) == 12


def test_notification_takes_precedence_over_refusals(
    asked: Asked, stack: Stack, receipts: ReceiptsStack
) -> None:
    request = a_request(id="order-1", metadata={"order": "981"})
    assert stack.deliver(request) == []
    assert stack.deliver(request | {"to": "+5531988887777"}) == []

    answer = asked("order-1")[1]

    assert (answer["status"], answer["reason"], answer["generation"]) == ("sent", None, 1)
    assert [change["status"] for change in answer["timeline"]] == ["sent"]
    published = [event["detail"] for event in receipts.published()]
    assert [(d["status"], d["reason"], d["generation"]) for d in published] == [
        ("sent", None, 1),
        ("rejected", "id_conflict", 0),
    ]
    assert {d["id"] for d in published} == {"order-1"}
    assert len({d["event_id"] for d in published}) == 2


def test_refusals_are_returned_for_fourteen_days(
    clock: MachineClock, asked: Asked, stack: Stack
) -> None:
    assert stack.deliver(a_request(id="order-1", to="no number")) == []

    clock.advance(14 * 86_400 - 10)
    assert asked("order-1")[0] == 200
    clock.advance(20)
    assert asked("order-1") == (404, "bot default has no notification order-1")


def test_table_that_does_not_answer_is_an_error_of_the_function(asked: Asked, aws: Aws) -> None:
    aws.dynamodb.delete_table(TableName="ledger")

    with pytest.raises(ClientError):  # a 500: the client asks again
        asked("order-1")


def test_no_log_holds_a_number_or_a_parameter(
    asked: Asked, stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    stack.deliver(a_request(id="order-1"))
    caplog.set_level(logging.DEBUG, logger="notifier")
    asked("order-1")
    asked.cancel("order-1")
    asked.cancel("order-2")
    asked("+5531999998888")

    for record in caplog.records:
        for private in ("5531", "8888", "Maria"):
            assert private not in f"{record.getMessage()} {vars(record)}"


def test_handler_runs_as_lambda_calls_it(
    asked: Asked, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked
    monkeypatch.setenv("LEDGER_TABLE", "ledger")
    stack.deliver(a_request(id="order-981-shipped"))
    handler = load_app("get_notification")["handler"]
    event = json.loads(SAMPLE.read_text(encoding="utf-8"))

    answer = handler(event, a_context())

    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["id"] == "order-981-shipped"
