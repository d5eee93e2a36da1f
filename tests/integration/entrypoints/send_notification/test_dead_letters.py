"""The function whole: requests that become dead letters."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from notifier.domain.notification import ledger_key
from tests.integration.conftest import Stack
from tests.integration.entrypoints.send_notification.helpers import (
    phone,
    statuses,
    visibility_timeouts,
)
from tests.support.builders import MARIA, a_request

pytestmark = pytest.mark.usefixtures("no_holding_still")

WEEK = timedelta(days=7)


def the_letter(stack: Stack, body: str, reason: str) -> dict[str, Any]:
    """Return the only dead letter, and assert its unchanged body and its attributes."""
    (sent,) = [
        parameters
        for name, parameters in stack.aws.calls
        if name == "SendMessage" and parameters["QueueUrl"] == stack.aws.dead_letters_url
    ]
    attributes = sent["MessageAttributes"]
    assert len(attributes) <= 10
    assert set(attributes) <= {
        *("reason", "bot", "notification_id", "generation", "failed_at", "failure")
    }
    for name, attribute in attributes.items():
        assert attribute["DataType"] == ("Number" if name == "generation" else "String")
        assert attribute["StringValue"]
        assert attribute["StringValue"].isascii()
    assert len(attributes["failure"]["StringValue"]) <= 4096
    (letter,) = stack.aws.dead_letters()
    assert letter["body"] == body
    assert letter["reason"] == reason
    failed_at = datetime.fromisoformat(letter["failed_at"])
    assert abs(datetime.now(UTC) - failed_at) < timedelta(minutes=1)
    failure: dict[str, Any] = letter["failure"]
    assert failure["possibly_sent"] is False
    assert failure["redrives"] == 0
    return letter


@pytest.mark.parametrize(
    "body", ["{", "Olá, Maria!", "[1]", "\ufeff{}", '{"Type": "Notification"}']
)
def test_malformed_body_is_a_dead_letter(stack: Stack, body: str) -> None:
    assert stack.deliver(body) == []

    letter = the_letter(stack, body, "malformed")
    assert not {"notification_id", "generation"} & set(letter)
    assert letter["failure"]["phase"] == "contract"
    assert stack.aws.ledger() == []


def assert_refused(stack: Stack, notification_id: str, reason: str) -> None:
    """Assert that one refusal is kept under the id, and nothing of the body."""
    (item,) = (item for item in stack.aws.ledger() if "refusals" in item)
    assert item.keys() == {
        *("key", "id", "bot", "status", "refusals", "updated_at", "expires_at"),
    }
    assert item["key"] == f"{ledger_key('default', notification_id)}:refused"
    assert (item["id"], item["bot"], item["status"]) == (notification_id, "default", "rejected")
    (refusal,) = item["refusals"]
    assert refusal["L"][1:3] == [{"S": reason}, {"N": item["updated_at"]}]
    assert int(item["expires_at"]) == pytest.approx(time.time() + 14 * 86_400, abs=60)


def test_invalid_request_is_a_dead_letter(stack: Stack) -> None:
    body = json.dumps(a_request(to="31 99999-8888", id="order-1"), indent=3) + "\n"

    assert stack.deliver(body) == []

    letter = the_letter(stack, body, "invalid")
    assert (letter["notification_id"], letter["bot"]) == ("order-1", "default")
    (field,) = letter["failure"]["fields"]
    assert field["field"] == "to"
    assert "99999" not in json.dumps(letter["failure"])
    assert letter["failure"]["template"] == "order_shipped"
    assert_refused(stack, "order-1", "invalid")
    assert stack.blip.requests == []


def test_invalid_request_with_many_long_fields_is_a_dead_letter(stack: Stack) -> None:
    names = [f"{'ção' * 40}_{number}" for number in range(30)]
    body = json.dumps(
        {"template": {"body": dict.fromkeys(names, "")}} | dict.fromkeys(names, MARIA)
    )

    assert stack.deliver(body) == []

    letter = the_letter(stack, body, "invalid")
    assert len(letter["failure"]["fields"]) >= 5


def assert_ended(stack: Stack, body: dict[str, Any], status: str) -> None:
    (item,) = stack.aws.ledger()
    assert (item["id"], item["status"]) == (body["id"], status)
    assert "token" not in item


def test_unknown_bot_is_a_dead_letter(stack: Stack) -> None:
    body = a_request(bot="clinic")

    assert stack.deliver(body) == []

    letter = the_letter(stack, json.dumps(body), "unknown_bot")
    assert (letter["bot"], letter["generation"]) == ("clinic", "1")
    assert_ended(stack, body, "rejected")


def test_id_conflict_is_a_dead_letter(stack: Stack) -> None:
    body = a_request()
    other = body | {"to": phone(1)}

    assert stack.deliver(body) == []
    assert stack.deliver(other) == []

    letter = the_letter(stack, json.dumps(other), "id_conflict")
    assert letter["notification_id"] == body["id"]
    assert "generation" not in letter
    assert statuses(stack) == {body["id"]: "sent"}
    assert_refused(stack, body["id"], "id_conflict")
    assert len(stack.blip.inbox()) == 1


@pytest.mark.parametrize("reason", ["invalid", "id_conflict"])
def test_message_is_refused_once_however_often_it_is_received(stack: Stack, reason: str) -> None:
    """SQS may show a message twice; what a producer publishes twice is wrong twice."""
    body = a_request()
    if reason == "id_conflict":
        assert stack.deliver(body) == []
    stack.publish(body | {"to": phone(1) if reason == "id_conflict" else "no number"})
    records = stack.receive()

    assert stack.handle(records) == []
    assert stack.handle(records) == []
    assert [letter["reason"] for letter in stack.aws.dead_letters()] == [reason]
    again = [record | {"messageId": "another"} for record in records]
    assert stack.handle(again) == []

    assert [letter["reason"] for letter in stack.aws.dead_letters()] == [reason]
    (refused,) = (item for item in stack.aws.ledger() if "refusals" in item)
    ids = [refusal["L"][0]["S"] for refusal in refused["refusals"]]
    assert ids == [records[0]["messageId"], "another"]


def test_expired_request_is_a_dead_letter(stack: Stack) -> None:
    body = a_request(valid_until="2020-01-01T00:00:00-03:00")

    assert stack.deliver(body) == []

    letter = the_letter(stack, json.dumps(body), "expired")
    assert letter["notification_id"] == body["id"]
    assert_ended(stack, body, "expired")
    assert stack.blip.requests == []


def test_not_a_phone_number_is_a_dead_letter(stack: Stack) -> None:
    body = a_request(to="+5531900000061")

    assert stack.deliver(body) == []

    letter = the_letter(stack, json.dumps(body), "not_a_phone_number")
    assert letter["failure"]["code"] == 61
    assert_ended(stack, body, "rejected")
    assert stack.blip.inbox() == []
    # It is remembered: the next one is not even looked up.
    assert stack.deliver(a_request(to="+5531900000061")) == []
    assert stack.blip.statistics()["kinds"] == {"lookups": 1}


def test_rejected_message_is_a_dead_letter(stack: Stack) -> None:
    body = a_request(to="+5531900000031")
    stack.blip.add_fault(path="messages", status=400, code=21)

    assert stack.deliver(body) == []

    letter = the_letter(stack, json.dumps(body), "rejected")
    assert letter["failure"]["code"] == 21
    assert letter["failure"]["phase"] == "send"
    assert letter["failure"]["attempts"] == 1
    assert letter["failure"]["template"] == "order_shipped"
    assert_ended(stack, body, "rejected")


def test_exhausted_retries_end_in_a_dead_letter(stack: Stack) -> None:
    stack.aws.overrides["max_attempts"] = 3
    stack.blip.add_fault(path="messages", status=400, code=51)
    body = a_request()
    stack.publish(body)
    records = stack.receive()

    for attempt in (1, 2):
        assert stack.handle(records) == [json.dumps(body)]
        (seconds,) = visibility_timeouts(stack)
        assert 5 <= seconds <= 5 * 2**attempt
    assert stack.handle(records) == []

    letter = the_letter(stack, json.dumps(body), "retries_exhausted")
    assert letter["failure"]["attempts"] == 3
    assert letter["failure"]["code"] == 51
    assert_ended(stack, body, "failed")


def test_request_that_waited_too_long_is_a_dead_letter(stack: Stack) -> None:
    body = a_request()
    stack.publish(body)
    (record,) = stack.receive()
    published = int(record["attributes"]["SentTimestamp"]) - WEEK / timedelta(milliseconds=1)
    record["attributes"]["SentTimestamp"] = str(round(published))

    assert stack.handle([record]) == []

    the_letter(stack, json.dumps(body), "waited_too_long")
    assert_ended(stack, body, "failed")
    assert stack.blip.requests == []


def test_longest_body_of_the_queue_is_a_dead_letter(stack: Stack) -> None:
    body = "x" * 262_144

    assert stack.deliver(body) == []

    the_letter(stack, body, "malformed")


def test_redrive_is_the_next_generation(stack: Stack) -> None:
    body = a_request()
    stack.blip.add_fault(path="messages", status=400, code=21, times=1)
    stack.deliver(body)
    assert [letter["generation"] for letter in stack.aws.dead_letters()] == ["1"]

    assert stack.deliver(body) == []  # a mere repetition
    assert stack.blip.inbox() == []
    assert stack.deliver(body, generation=1) == []
    assert stack.deliver(body, generation=1) == []

    (message,) = stack.blip.inbox()
    (item,) = stack.aws.ledger()
    assert message["id"] == f"{item['key']}:2"
    assert (item["generation"], item["status"]) == ("2", "sent")
