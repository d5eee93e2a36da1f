"""The function whole: a request becomes one message at BLiP."""

import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Stack
from tests.integration.entrypoints.send_notification.helpers import (
    in_parallel,
    know,
    phone,
    statuses,
    visibility_timeouts,
)
from tests.local.blip import Bot, wait_until
from tests.support.builders import PHONE, a_request
from tests.support.clock import MachineClock
from tests.unit.blip.test_envelopes import PLACEHOLDERS, SENDS, differences, documented

pytestmark = pytest.mark.usefixtures("no_holding_still")

# --- What arrives ---------------------------------------------------------------------------------


def test_request_becomes_one_message_at_blip(stack: Stack) -> None:
    body = a_request()

    assert stack.deliver(body) == []

    (message,) = stack.blip.inbox()
    (item,) = stack.aws.ledger()
    assert item["status"] == "sent"
    assert item["id"] == body["id"]
    assert message["id"] == item["key"]
    assert message["phone"] == PHONE
    assert stack.aws.dead_letters() == []


def test_documented_requests_are_sent_as_in_the_document(stack: Stack) -> None:
    """Five sends, and the look-up before each of them."""
    namespace = PLACEHOLDERS["{{NAMESPACE}}"]
    stack.aws.put_bots(
        {"default": {"base_url": stack.blip.url, "key": stack.blip.key, "namespace": namespace}}
    )
    name = PLACEHOLDERS["{{MESSAGE_TEMPLATE_NAME}}"]
    wanted: dict[str, str] = {}
    for shown, parts in SENDS.items():
        to = phone(len(wanted))
        wanted[to] = shown
        template: dict[str, Any] = {"name": name, "language": "pt_BR"} | parts
        assert stack.deliver(a_request(to=to, template=template)) == []

    messages = {message["phone"]: message["envelope"] for message in stack.blip.inbox()}
    for to, shown in wanted.items():
        theirs = documented(shown)
        changed = {path for path, _, _ in differences(theirs, messages[to])}
        typo = {f"content.template.components[0].parameters[1].{key}" for key in ("type", "Type")}
        assert changed == {"id", "to"} | (typo if shown == "2-text" else set())
    look_ups = [asked for asked in stack.blip.requests if asked.path == "/commands"]
    assert len(look_ups) == len(wanted)
    for asked, to in zip(look_ups, wanted, strict=True):
        theirs = documented("1-look-up")
        ours = asked.envelope | {"id": theirs["id"]}
        assert ours == theirs | {"uri": theirs["uri"].replace(PHONE, to)}


def test_every_kind_of_content_arrives_as_whatsapp_expects(stack: Stack) -> None:
    """The samples of events/: the simulator fails by receipt what WhatsApp would refuse."""
    samples = sorted(Path("events").glob("[01]*.json"))
    assert len(samples) > 5
    for sample in samples:
        assert stack.deliver(sample.read_text(encoding="utf-8")) == [], sample

    wait_until(
        lambda: all(m["status"] in {"consumed", "failed"} for m in stack.blip.inbox()),
    )
    assert [(m["status"], m["reason"]) for m in stack.blip.inbox()] == [
        ("consumed", None) for _ in samples
    ]


# --- Once -----------------------------------------------------------------------------------------


def test_same_request_five_times_in_one_batch_is_sent_once(stack: Stack) -> None:
    body = a_request()

    assert stack.deliver(*[body] * 5) == []

    assert len(stack.blip.inbox()) == 1
    assert stack.blip.statistics()["lookups"] == {PHONE: 1}


def test_same_request_in_five_batches_is_sent_once(stack: Stack) -> None:
    body = a_request()
    for _ in range(5):
        assert stack.deliver(body) == []

    assert len(stack.blip.inbox()) == 1


def test_same_request_in_five_sandboxes_at_once_is_sent_once(stack: Stack) -> None:
    stack.blip.configure(latency_seconds=0.1)
    body = a_request()
    stack.publish(*[body] * 5)
    records = stack.receive()

    waiting = in_parallel(stack, *[[record] for record in records])

    assert len(stack.blip.inbox()) == 1
    assert stack.blip.statistics()["lookups"] == {PHONE: 1}
    # A request that was too early returns when the lease ends, and is a duplicate.
    assert set(waiting) <= {json.dumps(body)}
    assert stack.handle(records) == []
    assert len(stack.blip.inbox()) == 1
    assert statuses(stack) == {body["id"]: "sent"}


def test_twenty_requests_for_one_number_in_several_sandboxes_are_one_look_up(
    stack: Stack,
) -> None:
    stack.blip.configure(latency_seconds=0.2)
    bodies = [a_request() for _ in range(20)]
    stack.publish(*bodies)
    records = stack.receive()

    waiting = in_parallel(stack, *[records[start::5] for start in range(5)])

    assert stack.blip.statistics()["lookups"] == {PHONE: 1}
    again = [record for record in records if record["body"] in waiting]
    assert stack.handle(again) == []
    assert stack.blip.statistics()["lookups"] == {PHONE: 1}
    assert Counter(statuses(stack).values()) == {"sent": 20}
    assert len({message["id"] for message in stack.blip.inbox()}) == 20 == len(stack.blip.inbox())


def test_claim_lost_during_the_look_up_sends_nothing(stack: Stack) -> None:
    # Long enough for the claim to be lost meanwhile.
    stack.blip.add_fault(path="lookups", latency_seconds=2)
    body = a_request()
    stack.publish(body)
    records = stack.receive()
    with ThreadPoolExecutor(1) as threads:
        handled = threads.submit(stack.handle, records)
        wait_until(lambda: bool(stack.blip.requests))
        (item,) = stack.aws.ledger()
        stack.aws.dynamodb.update_item(
            TableName="ledger",
            Key={"key": {"S": item["key"]}},
            UpdateExpression="SET #token = :another",
            ExpressionAttributeNames={"#token": "token"},
            ExpressionAttributeValues={":another": {"S": "another"}},
        )
        assert handled.result() == [json.dumps(body)]

    assert stack.blip.inbox() == []
    (item,) = stack.aws.ledger()
    assert (item["token"], item["status"]) == ("another", "claimed")


# --- A bot that is not well -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        json.dumps({"default": {"key": "REPLACE_ME", "base_url": "https://http.msging.net"}}),
        json.dumps({"default": {"key": "Key with spaces", "base_url": "https://http.msging.net"}}),
        "not JSON",
    ],
)
def test_requests_of_a_bot_without_a_key_wait(
    stack: Stack, secret: str, shifted_clock: MachineClock
) -> None:
    good = {"default": {"base_url": stack.blip.url, "key": stack.blip.key}}
    stack.aws.put_bots(secret)
    bodies = [a_request(to=phone(number)) for number in range(3)]
    stack.publish(*bodies)
    records = stack.receive()

    assert len(stack.handle(records)) == 3

    waits = visibility_timeouts(stack)
    assert min(waits) >= 600, waits
    assert max(waits) <= 900, waits
    assert stack.aws.ledger() == []
    assert stack.aws.dead_letters() == []

    stack.aws.put_bots(good)
    shifted_clock.advance(600)
    assert stack.handle(records) == []
    assert len(stack.blip.inbox()) == 3


def test_wrong_key_stops_the_bot_until_it_is_rotated(
    stack: Stack, shifted_clock: MachineClock, log: io.StringIO
) -> None:
    old = Bot(name="simulated", key="c2ltdWxhdGVkOm9sZA==")
    wrong = {"default": {"base_url": stack.blip.url, "key": old.key}}
    right = {"default": {"base_url": stack.blip.url, "key": stack.blip.key}}
    stack.blip.put_bot(old)
    stack.aws.put_bots(wrong)
    assert stack.deliver(a_request(to=phone(9))) == []
    stack.blip.put_bot(Bot(name="simulated"))  # the key was rotated at BLiP
    know(stack, *map(phone, range(5)))
    bodies = [a_request(to=phone(number)) for number in range(5)]
    stack.publish(*bodies)
    records = stack.receive()
    shifted_clock.advance(60)
    stack.aws.calls.clear()

    assert len(stack.handle(records)) == 5

    # One thread fetched the secret afresh for all; it held nothing new.
    assert [name for name, _ in stack.aws.calls].count("GetSecretValue") == 1
    assert all(600 <= seconds <= 900 for seconds in visibility_timeouts(stack))
    assert {item["attempts"] for item in stack.aws.ledger() if item["status"] != "sent"} == {"0"}
    assert "misconfigured" in log.getvalue()

    # Others don't even try.
    asked = len(stack.blip.requests)
    shifted_clock.advance(60)
    stack.publish(a_request(to=phone(7)))
    more = stack.receive()
    assert len(stack.handle(more, function=stack.sandbox())) == 1
    assert len(stack.blip.requests) - asked <= 1  # the ping of a probe
    assert stack.aws.dead_letters() == []

    stack.aws.put_bots(right)
    for _ in range(2):  # one goes with the probe, then the others
        shifted_clock.advance(601)
        stack.handle([*records, *more])
    assert stack.handle([*records, *more]) == []
    assert Counter(statuses(stack).values()) == {"sent": 7}
    assert stack.aws.dead_letters() == []


def test_key_rotated_in_time_delays_no_request(stack: Stack, shifted_clock: MachineClock) -> None:
    assert stack.deliver(a_request(to=phone(9))) == []
    rotated = Bot(name="simulated", key="c2ltdWxhdGVkOm5ldw==")
    stack.blip.put_bot(rotated)
    stack.aws.put_bots({"default": {"base_url": stack.blip.url, "key": rotated.key}})
    shifted_clock.advance(60)

    assert stack.deliver(*[a_request(to=phone(number)) for number in range(5)]) == []

    assert Counter(statuses(stack).values()) == {"sent": 6}


# --- Time -----------------------------------------------------------------------------------------


def test_little_time_left_returns_the_whole_batch_at_once(stack: Stack) -> None:
    bodies = [a_request(to=phone(number)) for number in range(5)]

    assert len(stack.deliver(*bodies, seconds=5)) == 5

    assert visibility_timeouts(stack) == [0] * 5
    assert stack.aws.ledger() == []
    assert stack.blip.requests == []
    # And can be had at once.
    assert stack.deliver() == []
    assert len(stack.blip.inbox()) == 5


def test_possibly_sent_request_waits_for_its_reconciliation(
    stack: Stack, shifted_clock: MachineClock
) -> None:
    """An answer that got lost: not sent again before it is known whether it went out."""
    stack.blip.add_fault(path="messages", drop=True, accept=True, times=1)
    body = a_request()
    stack.publish(body)
    records = stack.receive()

    assert stack.handle(records) == [json.dumps(body)]
    assert statuses(stack) == {body["id"]: "unknown"}
    shifted_clock.advance(600)
    assert stack.handle(records) == [json.dumps(body)]
    assert all(0 < seconds <= 901 for seconds in visibility_timeouts(stack))

    shifted_clock.advance(602)
    assert stack.handle(records) == []
    assert len(stack.blip.inbox()) == 1
    assert statuses(stack)[body["id"]] in {"accepted", "dispatched", "received", "consumed"}
    assert stack.aws.dead_letters() == []
