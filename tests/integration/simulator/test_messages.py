"""The BLiP simulator: paths, headers, envelopes and messages."""

import json
from typing import Any

import pytest

from tests.integration.simulator.client import (
    COMMAND,
    IDENTITY,
    Client,
    body,
    message,
)
from tests.local.blip import Bot, Simulator
from tests.support.builders import PHONE

# --- Paths and headers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/messages/", 404),
        ("POST", "/", 404),
        ("POST", "/contacts", 404),
        ("GET", "/messages", 405),
        ("PUT", "/commands", 405),
        ("DELETE", "/notifications", 405),
        ("GET", "/_simulator/nothing", 404),
        ("POST", "/_simulator/inbox", 405),
    ],
)
def test_unknown_path_or_method_is_refused(
    client: Client, method: str, path: str, status: int
) -> None:
    assert client.http.request(method, path).status_code == status


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        ("/messages", "application/json", 202),
        ("/messages", "application/vnd.lime.message+json", 202),
        ("/messages", "application/vnd.lime.command+json", 415),
        ("/messages", "application/json; charset=utf-8", 415),
        ("/messages", "Application/JSON", 415),
        ("/messages", "text/plain", 415),
        ("/messages", "", 415),
    ],
)
def test_content_type_must_match_exactly(
    client: Client, path: str, content_type: str, status: int
) -> None:
    raw = json.dumps(message()).encode()
    answer = client.http.post(path, content=raw, headers={"Content-Type": content_type})
    assert answer.status_code == status


@pytest.mark.parametrize(
    "key",
    [
        "",
        "Key",
        "c2ltdWxhdGVkOnNlY3JldA==",
        "key c2ltdWxhdGVkOnNlY3JldA==",
        "Basic c2ltdWxhdGVkOnNlY3JldA==",
        "Key c2ltdWxhdGVkOm90aGVy",
        "Key not-base64",
    ],
)
@pytest.mark.parametrize("path", ["/messages", "/commands", "/notifications"])
def test_wrong_key_is_401(client: Client, path: str, key: str) -> None:
    answer = client.http.post(path, json=message(), headers={"Authorization": key})
    assert answer.status_code == 401
    assert answer.json() == {"code": 13, "description": "Invalid authorization header"}


def test_changed_key_is_refused_and_the_new_one_works(blip: Simulator, client: Client) -> None:
    new = Bot(name="simulated", key="c2ltdWxhdGVkOm5ldw==")
    blip.put_bot(new)
    assert client.send().status_code == 401
    client.http.headers["Authorization"] = new.key
    assert client.send().status_code == 202


# --- Envelopes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "envelope", "code"),
    [
        ("/messages", [], 21),
        ("/messages", "text", 21),
        ("/messages", COMMAND, 21),
        ("/messages", message(event="accepted"), 21),
        ("/messages", message(Id="m1"), 21),
        ("/messages", message(id=""), 21),
        ("/messages", message(id=1), 21),
        ("/messages", message(metadata={"a": 1}), 21),
        ("/messages", message(metadata={"a": {"b": "c"}}), 21),
        ("/messages", message(metadata=["a"]), 21),
        ("/messages", message(metadata="a"), 21),
        ("/messages", message() | {"to": None}, 25),
        ("/messages", message(to=""), 25),
        ("/messages", message(to="a@b@c"), 25),
        ("/messages", message(to="a:b@c"), 25),
        ("/messages", message(to="a b@"), 25),
        ("/messages", message(**{"from": "@"}), 25),
        ("/messages", message(pp="a@b/"), 25),
        ("/messages", {k: v for k, v in message().items() if k != "to"}, 26),
        ("/messages", {k: v for k, v in message().items() if k != "type"}, 23),
        ("/messages", {k: v for k, v in message().items() if k != "content"}, 22),
        ("/messages", message() | {"content": None}, 22),
        ("/messages", message(type="json"), 23),
        ("/messages", message(type="application/json; charset=utf-8"), 23),
        ("/messages", message(content="text"), 21),
        ("/messages", message(type="text/plain"), 21),
        ("/notifications", {"id": "m", "to": IDENTITY}, 21),
        ("/notifications", {"event": "consumed"}, 21),
        ("/notifications", {"id": "m", "event": "read"}, 21),
        ("/notifications", {"id": "m", "event": "failed"}, 21),
        ("/notifications", message(), 21),
        ("/commands", {"method": "get", "uri": "/ping"}, 21),
        ("/commands", COMMAND | {"method": "GET"}, 27),
        ("/commands", {"id": "c", "uri": "/ping"}, 27),
        ("/commands", {"id": "c", "method": "get"}, 27),
        ("/commands", COMMAND | {"uri": 1}, 27),
        ("/commands", COMMAND | {"status": "success"}, 24),
        ("/commands", COMMAND | {"method": "set"}, 23),
        ("/commands", COMMAND | {"method": "set", "type": "text/plain"}, 22),
    ],
)
def test_invalid_envelope_is_400_with_a_bare_reason(
    blip: Simulator, client: Client, path: str, envelope: Any, code: int
) -> None:
    answer = client.post(path, envelope)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert answer.json().keys() == {"code", "description"}
    assert blip.inbox() == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"id": NaN}',
        '{"id":"é"}'.encode("latin-1"),
        b"[" * 100_000,
    ],
)
def test_body_that_is_not_json_is_400(client: Client, raw: bytes) -> None:
    answer = client.http.post(
        "/messages", content=raw, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, 21)


def test_oversized_envelope_is_413(client: Client) -> None:
    assert client.send(metadata={"a": "x" * 1_100_000}).status_code == 413


def test_other_sender_is_401(client: Client) -> None:
    answer = client.send(**{"from": "other@msging.net"})
    assert (answer.status_code, answer.json()["code"]) == (401, 32)
    assert client.send(**{"from": "simulated@msging.net/instance"}).status_code == 202


# --- Messages -------------------------------------------------------------------------------------


def test_message_is_202_without_a_body_and_consumed(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    answer = client.send()
    assert (answer.status_code, answer.content) == (202, b"")
    (entry,) = blip.inbox()
    assert (entry["id"], entry["bot"], entry["phone"]) == ("m1", "simulated", PHONE)
    assert (entry["template"], entry["language"], entry["status"]) == (
        "order_shipped",
        "pt_BR",
        "consumed",
    )
    assert entry["components"] == [body("Maria", "981")]


def test_message_without_an_id_is_never_reported(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    assert client.send(id=None).status_code == 202
    (entry,) = blip.inbox()
    assert (entry["status"], entry["receipts"]) == ("posted", [])


def test_same_id_twice_is_two_deliveries(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    client.send()
    client.send()
    assert [entry["repeated"] for entry in blip.inbox()] == [False, True]
    assert blip.statistics()["messages"] == {
        "accepted": 2,
        "distinct": 1,
        "repeated": {"simulated/m1": 2},
    }
    assert client.history("m1").count("accepted") == 2


def test_deduplication_can_be_enabled(blip: Simulator, client: Client) -> None:
    blip.configure(deduplicate=True)
    assert [client.send().status_code, client.send().status_code] == [202, 202]
    assert len(blip.inbox()) == 1


@pytest.mark.parametrize("to", [IDENTITY, "5531999998888", PHONE, "a@0mn.io", f"{IDENTITY}/x"])
def test_identity_that_no_look_up_returned_fails(blip: Simulator, client: Client, to: str) -> None:
    assert client.send(to).status_code == 202
    (entry,) = blip.inbox()
    assert (entry["status"], entry["reason"]["code"]) == ("failed", 42)


def test_identity_returned_to_another_bot_fails(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(name="other"))
    blip.know(PHONE, "other")
    client.send()
    assert blip.inbox()[0]["reason"]["code"] == 42


def test_identity_made_of_the_digits_fails(blip: Simulator, client: Client) -> None:
    client.look_up(PHONE)
    client.send("5531999998888@wa.gw.msging.net")
    assert blip.inbox()[0]["status"] == "failed"


def test_unknown_identities_can_be_allowed(blip: Simulator, client: Client) -> None:
    blip.configure(strict_identities=False)
    client.send()
    assert blip.inbox()[0]["status"] == "consumed"


def test_content_that_is_not_a_template_fails(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    assert client.send(type="text/plain", content="hello").status_code == 202
    assert blip.inbox()[0]["reason"]["code"] == 131047
