"""`notification` and `cancel`: what the function is asked, and what a person reads."""

import json
from typing import Any

import pytest

from tests.unit.cli.conftest import MadeUpStack, Run

type Json = dict[str, Any]

ANSWER: Json = {
    "id": "order-1",
    "bot": "clinic",
    "status": "failed",
    "reason": "undelivered",
    "code": 131026,
    "template": "order_shipped",
    "recipient": None,
    "metadata": {"order": "981"},
    "timeline": [
        {"status": "sent", "generation": 1, "time": "2026-11-24T18:00:00.000+00:00"},
        {"status": "failed", "generation": 1, "time": "2026-11-24T18:00:09.000+00:00"},
    ],
}


def an_answer(**changes: Any) -> Json:
    return {"statusCode": 200, "body": json.dumps(ANSWER | changes)}


@pytest.mark.parametrize(("command", "method"), [("notification", "GET"), ("cancel", "DELETE")])
def test_function_is_invoked_as_the_api_invokes_it(
    command: str, method: str, stack: MadeUpStack, run: Run
) -> None:
    stack.answers = [an_answer()]

    code, shown = run(command, "order-1", "--bot", "clinic")

    assert code == 0
    [(function, event)] = stack.invoked
    assert function == "GetNotificationFunction"
    assert event["rawPath"] == "/notifications/order-1"
    assert event["queryStringParameters"] == {"bot": "clinic"}
    assert event["requestContext"]["http"]["method"] == method
    for text in ("order_shipped", "undelivered", "131026", "metadata order 981", "18:00:09"):
        assert text in shown
    assert "recipient" not in shown


def test_answer_is_printed_as_json(stack: MadeUpStack, run: Run) -> None:
    stack.answers = [an_answer()]

    code, shown = run("notification", "order-1", "--json")

    assert (code, json.loads(shown)) == (0, ANSWER)


def test_refusal_of_the_api_is_one_line(stack: MadeUpStack, run: Run) -> None:
    stack.answers = [{"statusCode": 409, "body": "it has gone out, and is sent\n"}]

    assert run("cancel", "order-1") == (1, "error: it has gone out, and is sent ")
