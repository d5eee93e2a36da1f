"""The BLiP simulator is as strict as it says: every row of that, over loopback."""

import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.local.blip import Bot, Simulator, Template, Traffic, control, server, wait_until
from tests.local.blip.faults import MAGIC, Fault, magic_numbers
from tests.local.blip.settings import Delay
from tests.local.blip.throughput import Meter, OtherTraffic
from tests.support.builders import PHONE

IDENTITY = "553199998888@wa.gw.msging.net"
GATEWAY = "postmaster@wa.gw.msging.net"

TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and httpx would load the system's

type Json = dict[str, Any]


class Client:
    """A bot's client that checks nothing."""

    def __init__(self, blip: Simulator, key: str | None = None) -> None:
        headers = {"Authorization": key or blip.key}
        kept = httpx.Limits(keepalive_expiry=60)
        self.http = httpx.Client(
            base_url=blip.url, headers=headers, timeout=60, verify=TLS, limits=kept
        )

    def post(self, path: str, envelope: Any) -> httpx.Response:
        return self.http.post(path, json=envelope)

    def command(self, uri: str, to: str | None = None, **members: Any) -> Json:
        envelope = {"id": "c", "method": "get", "uri": uri} | ({"to": to} if to else {}) | members
        answer = self.post("/commands", envelope)
        assert answer.status_code == 200, answer.text
        document: Json = answer.json()
        return document

    def look_up(self, phone: str) -> Json:
        return self.command(f"lime://wa.gw.msging.net/accounts/{phone}", GATEWAY)

    def send(self, to: str = IDENTITY, **members: Any) -> httpx.Response:
        return self.post("/messages", message(to, **members))

    def history(self, identifier: str, more: str = "") -> list[str]:
        answer = self.command(f"/notifications?id={identifier}{more}")
        assert answer["status"] == "success", answer
        return [item["event"] for item in answer["resource"]["items"]]


def message(to: str = IDENTITY, **members: Any) -> Json:
    envelope = {"id": "m1", "to": to, "type": "application/json", "content": content()}
    return {name: value for name, value in (envelope | members).items() if value is not None}


def content(*components: Json, name: str = "order_shipped") -> Json:
    language = {"code": "pt_BR", "policy": "deterministic"}
    chosen = list(components) if components else [body("Maria", "981")]
    return {
        "type": "template",
        "template": {"name": name, "language": language, "components": chosen},
    }


def body(*texts: str) -> Json:
    return {"type": "body", "parameters": [{"type": "text", "text": text} for text in texts]}


def header(kind: str, value: Any) -> Json:
    return {"type": "header", "parameters": [{"type": kind, kind: value}]}


def button(sub_type: str, index: Any, parameter: Json) -> Json:
    return {"type": "button", "sub_type": sub_type, "index": index, "parameters": [parameter]}


def payload(text: str) -> Json:
    return {"type": "payload", "payload": text}


@pytest.fixture
def blip() -> Iterator[Simulator]:
    with Simulator() as simulator:
        simulator.configure(
            receipts={"delays": {"dispatched": 0, "received": 0, "consumed": 0, "failed": 0}}
        )
        yield simulator


@pytest.fixture
def client(blip: Simulator) -> Iterator[Client]:
    client = Client(blip)
    yield client
    client.http.close()


class Clock:
    """The simulator's time, which stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(server, "time", clock)
    monkeypatch.setattr(control, "time", clock)
    return clock


# Paths and headers


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
def test_other_paths_and_methods(client: Client, method: str, path: str, status: int) -> None:
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
def test_content_type_is_exact(client: Client, path: str, content_type: str, status: int) -> None:
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
def test_a_wrong_key_is_401(client: Client, path: str, key: str) -> None:
    answer = client.http.post(path, json=message(), headers={"Authorization": key})
    assert answer.status_code == 401
    assert answer.json() == {"code": 13, "description": "Invalid authorization header"}


def test_a_changed_key_is_refused_and_the_new_one_works(blip: Simulator, client: Client) -> None:
    new = Bot(name="simulated", key="c2ltdWxhdGVkOm5ldw==")
    blip.put_bot(new)
    assert client.send().status_code == 401
    client.http.headers["Authorization"] = new.key
    assert client.send().status_code == 202


# Envelopes


COMMAND = {"id": "c", "method": "get", "uri": "/ping"}


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
def test_an_invalid_envelope_is_400_with_a_bare_reason(
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
def test_what_is_not_json_is_400(client: Client, raw: bytes) -> None:
    answer = client.http.post(
        "/messages", content=raw, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, 21)


def test_a_huge_envelope_is_413(client: Client) -> None:
    assert client.send(metadata={"a": "x" * 1_100_000}).status_code == 413


def test_another_sender_is_401(client: Client) -> None:
    answer = client.send(**{"from": "other@msging.net"})
    assert (answer.status_code, answer.json()["code"]) == (401, 32)
    assert client.send(**{"from": "simulated@msging.net/instance"}).status_code == 202


# Messages


def test_a_message_is_202_without_a_body_and_consumed(blip: Simulator, client: Client) -> None:
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


def test_without_an_id_nothing_is_ever_reported(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    assert client.send(id=None).status_code == 202
    (entry,) = blip.inbox()
    assert (entry["status"], entry["receipts"]) == ("posted", [])


def test_the_same_id_twice_is_two_deliveries(blip: Simulator, client: Client) -> None:
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


def test_deduplication_is_a_switch(blip: Simulator, client: Client) -> None:
    blip.configure(deduplicate=True)
    assert [client.send().status_code, client.send().status_code] == [202, 202]
    assert len(blip.inbox()) == 1


@pytest.mark.parametrize("to", [IDENTITY, "5531999998888", PHONE, "a@0mn.io", f"{IDENTITY}/x"])
def test_an_identity_that_no_look_up_gave_out_fails(
    blip: Simulator, client: Client, to: str
) -> None:
    assert client.send(to).status_code == 202
    (entry,) = blip.inbox()
    assert (entry["status"], entry["reason"]["code"]) == ("failed", 42)


def test_an_identity_given_out_to_another_bot_fails(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(name="other"))
    blip.know(PHONE, "other")
    client.send()
    assert blip.inbox()[0]["reason"]["code"] == 42


def test_an_identity_made_of_the_digits_fails(blip: Simulator, client: Client) -> None:
    client.look_up(PHONE)
    client.send("5531999998888@wa.gw.msging.net")
    assert blip.inbox()[0]["status"] == "failed"


def test_identities_can_be_taken_on_trust(blip: Simulator, client: Client) -> None:
    blip.configure(strict_identities=False)
    client.send()
    assert blip.inbox()[0]["status"] == "consumed"


def test_what_is_no_template_fails(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    assert client.send(type="text/plain", content="hello").status_code == 202
    assert blip.inbox()[0]["reason"]["code"] == 131047


# Templates


IMAGE = {"link": "https://example.com/a.jpg"}
DOCUMENT = {"link": "https://example.com/a.pdf", "filename": "a.pdf"}
PLACE = {"latitude": "-19.9", "longitude": -43.9, "name": "Loja", "address": "Rua X, 1"}
MONEY = {"fallback_value": "R$ 10,00", "code": "BRL", "amount_1000": 10000}
URL_BUTTON = button("url", 1, {"type": "text", "text": "BR1"})
CARD = {
    "card_index": 0,
    "components": [
        header("image", IMAGE),
        button("quick_reply", "0", payload("A")),
    ],
}
CAROUSEL = {"type": "carousel", "cards": [CARD, CARD | {"card_index": 1}]}
PAID = {
    "type": "body",
    "parameters": [
        {"type": "text", "text": "Sofia"},
        {"type": "currency", "currency": MONEY},
        {"type": "date_time", "date_time": {"fallback_value": "3 de maio"}},
    ],
}
NAMED = {
    "type": "body",
    "parameters": [
        {"type": "text", "parameter_name": "due_date", "text": "10 de maio"},
        {"type": "text", "parameter_name": "customer", "text": "Paulo"},
    ],
}


def fits(name: str, *components: Json) -> Json:
    return content(*components, name=name)


@pytest.mark.parametrize(
    "sent",
    [
        fits("order_shipped", body("Maria", "981")),
        fits("order_photo", header("image", IMAGE), body("João")),
        fits("assembly_video", header("video", {"link": "http://e.com/a.mp4"}), body()),
        fits("assembly_video", header("video", {"link": "http://e.com/a"})),
        fits("invoice_issued", header("document", DOCUMENT), body("Ana", "R$ 1")),
        fits(
            "appointment_reminder",
            body("a", "b", "c"),
            button("quick_reply", 0, payload("Sim")),
            button("quick_reply", 1, payload("Sim")),
        ),
        fits("appointment_reminder", body("a", "b", "c")),
        fits("order_delayed", header("text", "984"), body("a", "b")),
        fits("track_order", body("a"), URL_BUTTON),
        fits(
            "discount_coupon",
            body("a", "b"),
            button("copy_code", "0", {"type": "coupon_code", "coupon_code": "SPRING"}),
        ),
        fits("pickup_point", header("location", PLACE), body("986")),
        fits("payment_reminder", NAMED),
        fits("payment_received", PAID),
        fits("seasonal_offers", body("Marina"), CAROUSEL),
    ],
)
def test_content_that_fits_arrives(blip: Simulator, client: Client, sent: Json) -> None:
    blip.know(PHONE)
    assert client.send(content=sent).status_code == 202
    assert (blip.inbox()[0]["status"], blip.inbox()[0]["reason"]) == ("consumed", None)


def changed(*path: str | int, to: Any = None, drop: bool = False, **more: Any) -> Json:
    """The usual content with one value changed, removed or added, by its path in the template."""
    sent = content()
    value: Any = sent["template"]
    for step in path[:-1]:
        value = value[step]
    if drop:
        del value[path[-1]]
    else:
        value[path[-1]] = to
    return sent | more


FIRST = ("components", 0, "parameters", 0)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({"type": "hsm", "hsm": {}}, 132012),
        ({"type": "template"}, 131008),
        (content() | {"type": "text"}, 131051),
        (content() | {"extra": 1}, 132012),
        (changed("element_name", to="order_shipped"), 132012),
        (changed("name", to="order_lost"), 132001),
        (changed("name", to="Order_Shipped"), 132001),
        (changed("name", to=1), 131009),
        (changed("name", drop=True), 131008),
        (changed("language", "code", to="pt-BR"), 132001),
        (changed("language", "code", to="en_US"), 132001),
        (changed("language", "policy", to="fallback"), 131009),
        (changed("language", "policy", drop=True), 131008),
        (changed("language", to="pt_BR"), 131009),
        (changed("namespace", to=""), 131009),
        (changed("components", to={}), 131009),
        (changed("components", to=[]), 132000),
        (changed("components", to=[body("a")]), 132000),
        (changed("components", to=[body("a", "b", "c")]), 132000),
        (changed("components", to=[body("a", "b"), body("a", "b")]), 132012),
        (changed("components", to=[body("a", "b"), {"type": "footer"}]), 132012),
        (changed("components", to=[body("a", "b"), CAROUSEL]), 132012),
        (changed("components", 0, "type", to="BODY"), 132012),
        (changed("components", 0, "index", to=0), 132012),
        (changed("components", 0, "parameters", drop=True), 131008),
        (changed(*FIRST, to={"Type": "text", "text": "a"}), 132012),
        (changed(*FIRST, to={"type": "text", "Text": "a"}), 132012),
        (changed(*FIRST, to={"type": "text", "text": "a", "parameter_name": "a"}), 132012),
        (changed(*FIRST, "text", to=""), 131008),
        (changed(*FIRST, "text", to=" "), 131008),
        (changed(*FIRST, "text", to="a\nb"), 132012),
        (changed(*FIRST, "text", to="a\tb"), 132012),
        (changed(*FIRST, "text", to="a     b"), 132012),
        (changed(*FIRST, "text", to=1), 132012),
        (changed(*FIRST, "text", to="x" * 1025), 132005),
        (changed(*FIRST, to={"type": "image", "image": IMAGE}), 132012),
        (content(body("a"), header("text", "x"), name="order_shipped"), 132000),
        (content(name="paused_template"), 132015),
        (content(name="disabled_template"), 132016),
        (content(body("a"), name="order_photo"), 132012),
        (content(header("video", {"link": "https://e.com/a.mp4"}), name="order_photo"), 132012),
        (content(header("image", {"url": "https://e.com/a.jpg"}), name="order_photo"), 132012),
        (content(header("image", {"link": "ftp://e.com/a.jpg"}), name="order_photo"), 131053),
        (content(header("image", {"link": "https:///a.jpg"}), name="order_photo"), 131053),
        (content(header("image", {"link": "http://[a.jpg"}), name="order_photo"), 131053),
        (content(header("image", {"link": "https://e.com/a b.jpg"}), name="order_photo"), 131053),
        (content(header("image", {"link": "https://e.com/a.GIF"}), name="order_photo"), 131053),
        (content(header("image", {"link": None}), name="order_photo"), 131053),
        (content(header("video", {"link": "https://youtu.be/x"}), name="assembly_video"), 131053),
        (
            content(header("video", {"link": "https://www.youtube.com/x"}), name="assembly_video"),
            131053,
        ),
        (content(header("document", DOCUMENT | {"filename": " "}), name="invoice_issued"), 131009),
        (content(header("document", IMAGE), name="invoice_issued"), 131053),
        (content(header("location", PLACE | {"latitude": "x"}), name="pickup_point"), 131009),
        (content(header("location", PLACE | {"latitude": 91}), name="pickup_point"), 131009),
        (content(header("location", {"latitude": 1}), name="pickup_point"), 131008),
        (content(header("text", "x" * 61), name="order_delayed"), 132005),
        (content(body("a", "b"), name="order_delayed"), 132000),
        (content(body("a", "b"), name="payment_reminder"), 131008),
        (content(body("a"), name="track_order"), 131008),
        (content(body("a"), URL_BUTTON | {"index": 0}, name="track_order"), 132000),
        (content(body("a"), URL_BUTTON | {"index": "10"}, name="track_order"), 131009),
        (content(body("a"), URL_BUTTON | {"index": True}, name="track_order"), 131009),
        (content(body("a"), URL_BUTTON | {"sub_type": "URL"}, name="track_order"), 132012),
        (content(body("a"), URL_BUTTON | {"parameters": []}, name="track_order"), 132000),
        (content(body("a"), URL_BUTTON, URL_BUTTON, name="track_order"), 132012),
        (content(body("a"), button("url", 1, payload("a")), name="track_order"), 132012),
        (
            content(
                body("a", "b"),
                button("copy_code", 0, {"type": "coupon_code", "coupon_code": "x" * 16}),
                name="discount_coupon",
            ),
            131009,
        ),
        (
            content(
                body("a", "b", "c"),
                button("quick_reply", 0, payload("")),
                name="appointment_reminder",
            ),
            131009,
        ),
        (content(body("a"), name="seasonal_offers"), 131008),
        (content(body("a"), CAROUSEL | {"cards": [CARD]}, name="seasonal_offers"), 132000),
        (content(body("a"), CAROUSEL | {"cards": [CARD, CARD]}, name="seasonal_offers"), 132012),
    ],
)
def test_content_that_does_not_fit_is_202_and_fails_later(
    blip: Simulator, client: Client, sent: Json, code: int
) -> None:
    blip.know(PHONE)
    answer = client.send(content=sent)
    assert (answer.status_code, answer.content) == (202, b"")
    (entry,) = blip.inbox()
    assert (entry["status"], entry["reason"]["code"]) == ("failed", code)
    assert f"(#{code})" in entry["reason"]["description"]


def broken(component: Json, index: int, **changes: Any) -> Json:
    other = deepcopy(component)
    parameter = other["parameters"][index]
    inner = parameter["type"]
    if inner in changes:
        parameter[inner] |= changes.pop(inner)
    parameter |= changes
    return other


@pytest.mark.parametrize(
    ("name", "component", "code"),
    [
        ("payment_received", broken(PAID, 1, currency={"amount_1000": 1.5}), 131009),
        ("payment_received", broken(PAID, 1, currency={"amount_1000": True}), 131009),
        ("payment_received", broken(PAID, 1, currency={"code": "R$"}), 131009),
        ("payment_received", broken(PAID, 1, currency={"fallback_value": ""}), 131008),
        ("payment_received", broken(PAID, 2, date_time={"day": 1}), 132012),
        ("payment_reminder", broken(NAMED, 0, parameter_name="when"), 132012),
        ("payment_reminder", broken(NAMED, 0, parameter_name="customer"), 132012),
    ],
)
def test_typed_and_named_parameters(
    blip: Simulator, client: Client, name: str, component: Json, code: int
) -> None:
    blip.know(PHONE)
    client.send(content=content(component, name=name))
    assert blip.inbox()[0]["reason"]["code"] == code


def test_reason_codes_can_be_wrapped_by_the_gateway(blip: Simulator, client: Client) -> None:
    blip.configure(reason_codes="gateway")
    blip.know(PHONE)
    client.send(content=content(name="order_lost"))
    reason = blip.inbox()[0]["reason"]
    assert reason["code"] == 81
    assert "(#132001)" in reason["description"]


def test_a_template_can_be_fixed_at_run_time(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    sent = content(body("a"), name="order_lost")
    client.send(content=sent)
    template = {"name": "order_lost", "language": "pt_BR", "body": 1}
    assert client.http.put("/_simulator/templates", json=template).status_code == 204
    client.send(content=sent)
    blip.put_templates(Template(name="order_lost", language="pt_BR", body=1, status="PAUSED"))
    client.send(content=sent)
    codes = [entry["reason"] and entry["reason"]["code"] for entry in blip.inbox()]
    assert codes == [132001, None, 132015]
    assert "order_lost" in client.http.get("/_simulator/templates").text


# Look-ups


def test_the_documented_look_up(client: Client) -> None:
    assert client.look_up(PHONE) == {
        "type": "application/vnd.lime.account+json",
        "resource": {
            "alternativeAccount": IDENTITY,
            "identity": IDENTITY,
            "phoneNumber": PHONE,
            "source": "WhatsApp",
        },
        "method": "get",
        "status": "success",
        "id": "c",
        "from": GATEWAY,
        "to": "simulated@msging.net",
        "metadata": {"#command.uri": f"lime://wa.gw.msging.net/accounts/{PHONE}"},
    }


@pytest.mark.parametrize(
    ("phone", "identity"),
    [
        ("+5531999998888", "553199998888"),
        ("%2B5531999998888", "553199998888"),
        ("+553199998888", "553199998888"),
        ("+5511999998888", "5511999998888"),
        ("+551199998888", "5511999998888"),
        ("+5528999998888", "5528999998888"),
        ("+5585999998888", "558599998888"),
        ("+553132221111", "553132221111"),
        ("+12025550123", "12025550123"),
        ("5531999998888", "5531999998888"),
        ("hello", "hello"),
    ],
)
def test_identities(client: Client, phone: str, identity: str) -> None:
    resource = client.look_up(phone)["resource"]
    assert resource["alternativeAccount"] == f"{identity}@wa.gw.msging.net"
    assert "fullName" not in resource


def test_a_look_up_without_plus_gives_nothing_out(blip: Simulator, client: Client) -> None:
    identity = client.look_up("553199998888")["resource"]["alternativeAccount"]
    client.send(identity)
    assert blip.inbox()[0]["reason"]["code"] == 42


@pytest.mark.parametrize(
    "phone",
    ["+", "+abc", "+55", "+553199", "+55319999988881234", "+999123456789", "+55-31-99999-8888"],
)
def test_no_phone_number_is_61(client: Client, phone: str) -> None:
    answer = client.look_up(phone)
    assert (answer["status"], answer["reason"]["code"]) == ("failure", 61)
    assert "resource" not in answer


def test_a_bot_without_whatsapp(blip: Simulator) -> None:
    bot = Bot(name="chat", whatsapp=False)
    blip.put_bot(bot)
    client = Client(blip, bot.key)
    assert client.look_up(PHONE)["reason"]["code"] == 81
    client.send()
    assert blip.inbox()[0]["reason"]["code"] == 81
    client.http.close()


def test_an_identity_can_be_any_string(blip: Simulator, client: Client) -> None:
    guid = "0f9c1a52-7c3f-4a43-b2d5-3f1e2d6f7a11@wa.gw.msging.net"
    blip.set_identity(PHONE, guid)
    assert client.look_up(PHONE)["resource"]["alternativeAccount"] == guid
    client.send(guid)
    assert blip.inbox()[0]["status"] == "consumed"


# Other commands


def test_ping(client: Client) -> None:
    answer = client.command("/ping", "postmaster@msging.net")
    assert (answer["status"], answer["type"]) == ("success", "application/vnd.lime.ping+json")
    assert answer["metadata"] == {"#command.uri": "lime://simulated@msging.net/ping"}


@pytest.mark.parametrize(
    ("to", "uri", "method", "code"),
    [
        (None, "ping", "get", 27),
        (None, "http://msging.net/ping", "get", 27),
        (None, "lime:/ping", "get", 27),
        (None, "/pi ng", "get", 27),
        (None, "lime://[", "get", 27),
        (None, "/contacts", "get", 62),
        (None, f"/accounts/{PHONE}", "get", 62),
        (GATEWAY, "/ping", "get", 62),
        (None, "/ping", "delete", 63),
        (GATEWAY, f"/accounts/{PHONE}", "delete", 63),
        (None, "/notifications?id=a", "delete", 63),
        (GATEWAY, "/message-templates", "delete", 63),
        (GATEWAY, "/message-templates/x", "get", 67),
        (None, "/message-templates", "get", 62),
        (GATEWAY, "/accounts/", "get", 67),
        (GATEWAY, f"/accounts/{PHONE}/x", "get", 67),
        (GATEWAY, f"lime://other.gw.msging.net/accounts/{PHONE}", "get", 67),
        (None, "/notifications/a", "get", 67),
        (None, "/notifications", "get", 64),
        (None, "/notifications?id=a&$take=101", "get", 64),
        (None, "/notifications?id=a&$take=0", "get", 64),
        (None, "/notifications?id=a&$skip=-1", "get", 64),
        (None, "/notifications?id=a&$skip=x", "get", 64),
        ("postmaster@elsewhere.net", "/ping", "get", 42),
    ],
)
def test_a_command_that_fails_is_200(
    client: Client, to: str | None, uri: str, method: str, code: int
) -> None:
    answer = client.command(uri, to, method=method)
    assert (answer["status"], answer["reason"]["code"], answer["id"]) == ("failure", code, "c")


def test_the_history(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    client.send(id="a:2")
    answer = client.command("/notifications?id=a:2", "postmaster@msging.net")
    assert answer["type"] == "application/vnd.lime.collection+json"
    resource = answer["resource"]
    assert resource["itemType"] == "application/vnd.lime.notification+json"
    assert resource["total"] == 4
    for item in resource["items"]:
        assert item["id"] == "a:2"
        assert item["metadata"]["#envelope.timestamp"].isdigit()
    events = sorted(client.history("a%3A2"))
    assert events == ["accepted", "consumed", "dispatched", "received"]


def test_the_history_is_paged(blip: Simulator, client: Client) -> None:
    blip.configure(receipts={"delays": {"dispatched": 0.001, "received": 0.002, "consumed": 0.003}})
    blip.know(PHONE)
    client.send()
    wait_until(lambda: len(client.history("m1")) == 4)
    assert client.history("m1", "&$skip=1&$take=2") == ["received", "dispatched"]
    assert client.history("m1", "&$skip=4") == []


def test_the_history_lags_and_forgets(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    client.send()
    blip.configure(history_lag_seconds=60)
    assert client.history("m1") == []
    blip.configure(history_lag_seconds=0, history_seconds=0)
    assert client.history("m1") == []
    blip.configure(history_seconds=3 * 24 * 3600)
    assert len(client.history("m1")) == 4


def test_the_history_fills_in_order_of_time(blip: Simulator, client: Client, clock: Clock) -> None:
    delays = {"dispatched": 10, "received": 20, "consumed": 30}
    blip.configure(history_lag_seconds=600, receipts={"delays": delays})
    blip.know(PHONE)
    client.send()
    clock.now += 599
    seen = [client.history("m1")]
    for seconds in (1, 10, 10, 10):
        clock.now += seconds
        seen.append(client.history("m1"))
    events = ["consumed", "received", "dispatched", "accepted"]
    assert seen == [events[4 - shown :] for shown in range(5)]


@pytest.mark.parametrize("rule", [{"empty": True}, {"failure": 67}, {"status": 500}])
def test_a_history_that_never_tells(blip: Simulator, client: Client, rule: Json) -> None:
    blip.know(PHONE)
    client.send()
    blip.add_fault(path="history", bot="simulated", **rule)
    for _ in range(2):
        answer = client.post("/commands", COMMAND | {"uri": "/notifications?id=m1"})
        assert answer.status_code == rule.get("status", 200)
        if "empty" in rule:
            assert answer.json()["resource"] == {
                "total": 0,
                "itemType": "application/vnd.lime.notification+json",
                "items": [],
            }
        elif "failure" in rule:
            assert answer.json()["reason"]["code"] == 67
    assert client.command("/ping")["status"] == "success"
    blip.clear_faults()
    assert len(client.history("m1")) == 4


def test_an_unknown_id_is_an_empty_collection_or_67(blip: Simulator, client: Client) -> None:
    assert client.history("unknown") == []
    blip.configure(unknown_history="failure")
    assert client.command("/notifications?id=unknown")["reason"]["code"] == 67


def test_a_bot_sees_its_own_history_only(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    client.send()
    other = Bot(name="other")
    blip.put_bot(other)
    stranger = Client(blip, other.key)
    assert stranger.history("m1") == []
    stranger.http.close()


def test_notifications_are_taken(blip: Simulator, client: Client) -> None:
    receipt = {"id": "in-1", "to": IDENTITY, "event": "consumed"}
    assert client.post("/notifications", receipt).status_code == 202
    assert blip.statistics()["notifications"] == {"consumed": 1}


# Receipts


class Webhook:
    """Takes receipts; `statuses` are the first answers, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.posted: list[tuple[dict[str, str], Json]] = []
        self.url = ""

    @contextmanager
    def serve(self) -> Iterator["Webhook"]:
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.posted.append((dict(self.headers), json.loads(raw)))
                self.send_response(webhook.statuses.pop(0) if webhook.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}/receipts"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def events(self) -> list[str]:
        return [receipt["event"] for _, receipt in self.posted]

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.posted) >= count)


@pytest.fixture
def webhook(blip: Simulator) -> Iterator[Webhook]:
    with Webhook().serve() as webhook:
        headers = {"X-Receipts-Secret": "s3cret"}
        blip.configure(
            receipts={
                "url": webhook.url,
                "headers": headers,
                "retry_seconds": 0.01,
                "delays": {"dispatched": 0.03, "received": 0.06, "consumed": 0.09},
            }
        )
        blip.know(PHONE)
        yield webhook


def idle(blip: Simulator) -> bool:
    return bool(blip.statistics()["receipts"]["waiting"] == 0)


def test_receipts_are_posted_in_order_with_the_secret(
    blip: Simulator, client: Client, webhook: Webhook
) -> None:
    # Of two that are under way at a time either may arrive first.
    blip.configure(receipts={"at_once": 1})
    client.send()
    webhook.wait_for(4)
    assert webhook.events() == ["accepted", "dispatched", "received", "consumed"]
    for headers, receipt in webhook.posted:
        assert headers["X-Receipts-Secret"] == "s3cret"
        assert headers["Content-Type"] == "application/json"
        assert (receipt["id"], receipt["to"]) == ("m1", "simulated@msging.net")
    assert webhook.posted[0][1]["from"] == "postmaster@msging.net/#az-iris6"
    assert webhook.posted[2][1]["from"] == IDENTITY


def test_a_failed_receipt_says_why(client: Client, webhook: Webhook) -> None:
    client.send(content=content(body("a")))
    webhook.wait_for(3)
    (failed,) = [receipt for _, receipt in webhook.posted if receipt["event"] == "failed"]
    assert failed["reason"]["code"] == 132000


def test_repeated_prefixed_and_addressed_receipts(
    blip: Simulator, client: Client, webhook: Webhook
) -> None:
    blip.configure(receipts={"duplicates": 2, "prefix": "fwd:fwd:", "instance": True})
    client.send()
    webhook.wait_for(12)
    assert webhook.events().count("consumed") == 3
    assert {receipt["id"] for _, receipt in webhook.posted} == {"fwd:fwd:m1"}
    assert {receipt["to"] for _, receipt in webhook.posted} == {"simulated@msging.net/instance-1"}
    assert len(client.history("m1")) == 4


def test_receipts_out_of_order(blip: Simulator, client: Client, webhook: Webhook) -> None:
    delays = {"dispatched": 0.1, "received": 0.2, "consumed": 0.3}
    blip.configure(receipts={"out_of_order": True, "delays": delays})
    for number in range(5):
        client.send(id=f"m{number}")
    webhook.wait_for(20)
    orders = {
        tuple(receipt["event"] for _, receipt in webhook.posted if receipt["id"] == f"m{number}")
        for number in range(5)
    }
    assert orders != {("accepted", "dispatched", "received", "consumed")}


def test_late_receipts_are_in_the_history_at_once(
    blip: Simulator, client: Client, webhook: Webhook
) -> None:
    blip.configure(receipts={"late_seconds": 7200})
    client.send()
    wait_until(lambda: len(client.history("m1")) == 4)
    assert webhook.posted == []
    assert blip.statistics()["receipts"]["waiting"] == 4


def test_refused_receipts_are_repeated_then_given_up(
    blip: Simulator, client: Client, webhook: Webhook
) -> None:
    blip.configure(
        receipts={"retries": 2, "delays": dict.fromkeys(("dispatched", "received", "consumed"))}
    )
    webhook.statuses = [500, 401]
    client.send(id="a")
    webhook.wait_for(3)
    webhook.statuses = [500] * 3
    client.send(id="b")
    wait_until(lambda: idle(blip))
    report = blip.statistics()["receipts"]
    assert (report["posted"], report["retried"], report["given_up"]) == (1, 4, 1)
    assert report["last_problem"].startswith("HTTP 500")
    assert len(webhook.posted) == 6


def test_an_unreachable_webhook_does_no_harm(blip: Simulator, client: Client) -> None:
    blip.configure(receipts={"url": "http://127.0.0.1:9/", "retries": 0})
    client.send()
    wait_until(lambda: idle(blip))
    assert blip.statistics()["receipts"]["given_up"] == 3
    assert len(client.history("m1")) == 3


def test_a_bot_without_webhook_has_its_history_only(blip: Simulator, webhook: Webhook) -> None:
    bot = Bot(name="builder", webhook=False)
    blip.put_bot(bot)
    client = Client(blip, bot.key)
    client.send()
    assert idle(blip)
    wait_until(lambda: "failed" in client.history("m1"))
    assert webhook.posted == []
    client.http.close()


# Throughput


def test_the_second_slides() -> None:
    meter = Meter()
    assert [meter.count(at) for at in (0.0, 0.5, 0.999, 1.0, 1.4, 1.5, 3.0)] == [
        1,
        2,
        3,
        3,
        4,
        4,
        1,
    ]
    assert meter.highest == 4


def test_over_the_plan_the_key_is_shut_for_every_path(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(messages_per_second=5))
    statuses = [client.send(id=str(number)).status_code for number in range(6)]
    assert statuses == [202] * 5 + [429]
    refused = client.post("/commands", COMMAND)
    assert (refused.status_code, refused.json()["code"]) == (429, 34)
    assert "Retry-After" not in refused.headers
    assert blip.statistics()["highest_per_second"]["simulated"]["messages"] == 6
    assert blip.statistics()["penalties"] == {"simulated": 1}
    assert len(blip.inbox()) == 5


def test_another_key_is_not_shut(blip: Simulator, client: Client) -> None:
    other = Bot(name="other")
    blip.put_bot(other)
    blip.put_bot(Bot(messages_per_second=0))
    assert client.send().status_code == 429
    stranger = Client(blip, other.key)
    assert stranger.send().status_code == 202
    stranger.http.close()


def test_commands_have_a_plan_of_their_own(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(commands_per_second=2))
    statuses = [client.post("/commands", COMMAND).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_the_penalty_ends(blip: Simulator, client: Client) -> None:
    blip.configure(penalty_seconds=1.1, retry_after=True)
    blip.put_bot(Bot(messages_per_second=1))
    client.send()
    refused = client.send()
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
    wait_until(lambda: client.post("/commands", COMMAND).status_code == 200)
    assert client.send().status_code == 202


@pytest.mark.parametrize(("prolonged", "after_130_seconds"), [(False, 202), (True, 429)])
def test_what_is_refused_may_prolong_the_penalty(
    blip: Simulator, client: Client, clock: Clock, prolonged: bool, after_130_seconds: int
) -> None:
    blip.configure(penalty_prolonged=prolonged)
    blip.put_bot(Bot(messages_per_second=1))
    assert [client.send().status_code for _ in range(2)] == [202, 429]
    clock.now += 100
    assert client.post("/commands", COMMAND).status_code == 429
    clock.now += 30
    assert client.send().status_code == after_130_seconds
    clock.now += 120
    assert client.send().status_code == 202
    assert blip.statistics()["penalties"] == {"simulated": 1}


def test_what_others_send_counts_against_the_plan(
    blip: Simulator, client: Client, clock: Clock
) -> None:
    traffic = {"messages_per_second": 2, "spacing": "even"}
    client.http.put("/_simulator/bots", json={"messages_per_second": 3, "traffic": traffic})
    clock.now += 1
    assert client.send().status_code == 202
    assert blip.statistics()["traffic"] == {"simulated": {"sent": 2, "refused": 0}}
    assert client.send().status_code == 429
    clock.now += 5
    seen = blip.statistics()
    assert seen["traffic"] == {"simulated": {"sent": 12, "refused": 10}}
    assert seen["highest_per_second"]["simulated"]["messages"] == 4
    assert len(blip.inbox()) == 1
    blip.clear()
    assert blip.statistics()["traffic"] == {"simulated": {"sent": 0, "refused": 0}}


def test_what_others_send_can_break_the_plan_alone(
    blip: Simulator, client: Client, clock: Clock
) -> None:
    blip.put_bot(Bot(messages_per_second=3, traffic=Traffic(messages_per_second=4)))
    other = Bot(name="other", messages_per_second=3)
    blip.put_bot(other)
    clock.now += 60
    stranger = Client(blip, other.key)
    assert (client.send().status_code, stranger.send().status_code) == (429, 202)
    stranger.http.close()


def drawn(until: float, seed: int, **traffic: Any) -> list[float]:
    return list(OtherTraffic(Traffic(**traffic), 0, Random(seed)).until(until))


def test_others_send_evenly_by_chance_or_in_bursts() -> None:
    even = drawn(10, 1, messages_per_second=2, spacing="even")
    assert even == [number / 2 for number in range(1, 21)]
    chance = drawn(10_000, 1, messages_per_second=2)
    assert chance == sorted(chance)
    assert chance == drawn(10_000, 1, messages_per_second=2)
    assert chance != drawn(10_000, 2, messages_per_second=2)
    assert len(chance) == pytest.approx(20_000, rel=0.05)
    seconds = {int(at) for at in chance}
    assert len(seconds) == pytest.approx(10_000 * (1 - 2.718**-2), rel=0.05)
    bursts = drawn(24_000, 1, messages_per_second=2, on_share=0.25)
    assert {int(at) // 60 % 4 for at in bursts} == {0}
    assert len(bursts) == pytest.approx(12_000, rel=0.05)


def test_others_are_drawn_on_where_they_were() -> None:
    whole, parts = (OtherTraffic(Traffic(messages_per_second=5), 0, Random(1)) for _ in range(2))
    drawn_in_parts = [at for until in range(101) for at in parts.until(until)]
    assert drawn_in_parts == list(whole.until(100))
    assert whole.sent == len(drawn_in_parts)


def test_the_plan_can_be_switched_off(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(messages_per_second=1))
    blip.configure(throttle=False)
    assert {client.send().status_code for _ in range(5)} == {202}
    assert blip.statistics()["highest_per_second"]["simulated"]["messages"] == 5


# Faults


def test_a_status_before_or_after_accepting(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="messages", status=503, times=1, headers={"X-A": "b"})
    blip.add_fault(path="messages", status=504, accept=True, times=1)
    blip.add_fault(path="messages", status=400, code=24, times=1)
    blip.add_fault(path="messages", status=302, headers={"Location": "/other"}, times=1)
    first = client.send(id="refused")
    assert (first.status_code, first.content, first.headers["X-A"]) == (503, b"", "b")
    assert client.send(id="taken").status_code == 504
    assert client.send(id="wrong").json()["code"] == 24
    assert client.send(id="moved").headers["Location"] == "/other"
    assert client.send(id="usual").status_code == 202
    assert [entry["id"] for entry in blip.inbox()] == ["taken", "usual"]


# Each may concern one request only: 401, 403 and 405 need not speak of the key or the bot.
POISON = [(401, None), (401, 34), (403, None), (403, 42), (403, 83), (403, 87), (404, None)]
POISON += [(404, 42), (405, None), (405, 63), (400, 21), (503, None)]


@pytest.mark.parametrize(("status", "code"), POISON)
@pytest.mark.parametrize(
    "match",
    [{"to": PHONE}, {"to": IDENTITY}, {"text": "order-7"}, {"template": "order_lost"}],
    ids=str,
)
def test_a_poison_message_alone_is_refused(
    blip: Simulator, client: Client, match: Json, status: int, code: int | None
) -> None:
    blip.know(PHONE)
    blip.add_fault(path="messages", **match, status=status, code=code)
    poison = content(body("Maria", 'order-7 "x"'), name="order_lost")
    for _ in range(2):
        answer = client.send(id="poison", content=poison)
        assert answer.status_code == status
        assert (answer.json()["code"] if answer.content else None) == code
        assert client.send("5511999998888@wa.gw.msging.net", id="other").status_code == 202
    assert [entry["id"] for entry in blip.inbox()] == ["other", "other"]


def test_a_poison_look_up_alone_fails(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="lookups", to=PHONE, failure=81)
    for _ in range(2):
        assert client.look_up(PHONE)["reason"]["code"] == 81
        assert client.look_up("+5511999998888")["status"] == "success"


def test_503_after_accepting(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="messages", status=503, accept=True, body="upstream connect error")
    answer = client.send()
    assert (answer.status_code, answer.text) == (503, "upstream connect error")
    assert len(blip.inbox()) == 1


@pytest.mark.parametrize("code", [131016, 1016, 131000])
def test_sporadic_failures_after_accepting(blip: Simulator, client: Client, code: int) -> None:
    blip.put_bot(Bot(messages_per_second=None))
    blip.know(PHONE)
    blip.add_fault(path="messages", receipt=code, probability=0.2)
    rounds: list[list[int | None]] = []
    for seed in (1, 1, 2):
        blip.configure(seed=seed)
        assert {client.send().status_code for _ in range(60)} == {202}
        inbox = blip.inbox(after=str(60 * len(rounds)))
        rounds.append([entry["reason"] and entry["reason"]["code"] for entry in inbox])
    assert {reason for seen in rounds for reason in seen} == {None, code}
    assert rounds[0] == rounds[1] != rounds[2]
    assert rounds[0].count(code) < 30


@pytest.mark.parametrize("accept", [False, True])
def test_a_dropped_connection(blip: Simulator, client: Client, accept: bool) -> None:
    blip.add_fault(path="messages", drop=True, accept=accept)
    with pytest.raises(httpx.RemoteProtocolError):
        client.send()
    assert len(blip.inbox()) == accept
    (request,) = blip.requests
    assert (request.status, request.accepted) == (0, accept)


@pytest.mark.parametrize("accept", [False, True])
def test_no_answer(blip: Simulator, client: Client, accept: bool) -> None:
    blip.add_fault(path="messages", hang=True, accept=accept)
    client.http.timeout = httpx.Timeout(0.2)
    with pytest.raises(httpx.ReadTimeout):
        client.send()
    assert len(blip.inbox()) == accept


def test_a_slow_answer(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="messages", latency_seconds=0.4, times=1)
    blip.add_fault(path="messages", answer_latency_seconds=0.4, times=1)
    client.http.timeout = httpx.Timeout(0.2)
    with pytest.raises(httpx.ReadTimeout):
        client.send(id="late")
    assert blip.inbox() == []
    with pytest.raises(httpx.ReadTimeout):
        client.send(id="at once")
    assert blip.inbox()[0]["id"] == "at once"
    assert [entry["id"] for entry in blip.wait_for_messages(2)] == ["at once", "late"]


def test_a_dribbled_answer(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="messages", dribble_seconds=0.002)
    answer = client.send()
    assert answer.status_code == 202
    assert answer.elapsed.total_seconds() > 0.05
    assert len(blip.inbox()) == 1


def test_a_truncated_answer(blip: Simulator, client: Client) -> None:
    blip.add_fault(truncate=True)
    for path, envelope in (("/messages", message()), ("/commands", COMMAND)):
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(path, envelope)
    assert len(blip.inbox()) == 1


def test_a_body_that_is_not_json(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="lookups", body="<html>", times=1)
    blip.add_fault(path="lookups", body={"status": "success"}, times=1)
    envelope = COMMAND | {"to": GATEWAY, "uri": f"/accounts/{PHONE}"}
    assert client.post("/commands", envelope).text == "<html>"
    assert client.post("/commands", envelope).json() == {"status": "success"}


def test_a_command_that_fails_on_purpose(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="lookups", failure=85, times=1)
    assert client.look_up(PHONE)["reason"]["code"] == 85
    client.send()
    assert client.look_up(PHONE)["status"] == "success"
    assert blip.inbox()[0]["reason"]["code"] == 42
    assert blip.statistics()["lookups"] == {PHONE: 2}


def test_receipts_on_purpose(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    blip.add_fault(path="messages", receipt=131056, times=1)
    blip.add_fault(path="messages", receipt=86, times=1)
    blip.add_fault(path="messages", events=["accepted"], times=1)
    blip.add_fault(path="messages", events=[], times=1)
    for _ in range(4):
        assert client.send().status_code == 202
    seen = [(e["status"], e["reason"] and e["reason"]["code"]) for e in blip.inbox()]
    assert seen == [("failed", 131056), ("failed", 86), ("accepted", None), ("posted", None)]


@pytest.mark.parametrize(
    ("rule", "struck"),
    [
        ({"path": "messages"}, "aabbcc"),
        ({"path": "commands"}, ""),
        ({"path": "*"}, "aabbcc"),
        ({"bot": "simulated"}, "aabbcc"),
        ({"bot": "other"}, ""),
        ({"template": "order_shipped"}, "aabbcc"),
        ({"template": "order_photo"}, ""),
        ({"to": PHONE}, "aabbcc"),
        ({"to": IDENTITY}, "aabbcc"),
        ({"to": "+5531999998887"}, ""),
        ({"path": "messages", "text": "Mari"}, "aabbcc"),
        ({"path": "messages", "text": "deterministic"}, "aabbcc"),
        ({"path": "messages", "text": "Maria981"}, ""),
        ({"probability": 0}, ""),
        ({"times": 3}, "aab"),
        ({"each": 1}, "abc"),
        ({"every": 2}, "abc"),
        ({"start": 60}, ""),
        ({"end": 0}, ""),
        ({"end": 60}, "aabbcc"),
    ],
)
def test_what_a_rule_matches(blip: Simulator, client: Client, rule: Json, struck: str) -> None:
    blip.know(PHONE)
    blip.add_fault(**rule, status=500)
    refused = [i for i in "aabbcc" if client.send(id=i).status_code == 500]
    assert "".join(refused) == struck


@pytest.mark.parametrize(
    ("path", "struck"),
    [
        ("commands", ["lookups", "history", "ping", "other"]),
        ("lookups", ["lookups"]),
        ("history", ["history"]),
        ("ping", ["ping"]),
        ("notifications", []),
    ],
)
def test_which_commands_a_rule_matches(
    blip: Simulator, client: Client, path: str, struck: list[str]
) -> None:
    blip.add_fault(path=path, status=500)
    uris = {
        "lookups": f"lime://wa.gw.msging.net/accounts/{PHONE}",
        "history": "/notifications?id=a",
        "ping": "/ping",
        "other": "/contacts",
    }
    refused = [
        kind
        for kind, uri in uris.items()
        if client.post(
            "/commands",
            COMMAND | {"uri": uri, "to": GATEWAY if kind == "lookups" else "postmaster@msging.net"},
        ).status_code
        == 500
    ]
    assert refused == struck


def test_a_probable_fault_strikes_sometimes(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(messages_per_second=None))
    blip.add_fault(path="messages", status=500, probability=0.5)
    statuses = [client.send().status_code for _ in range(60)]
    assert {202, 500} == set(statuses)


def test_rules_by_http(blip: Simulator, client: Client) -> None:
    rules = client.http
    first = rules.post("/_simulator/faults", json={"path": "messages", "status": 500}).json()
    rules.post("/_simulator/faults", json={"path": "ping", "failure": 1})
    assert client.send().status_code == 500
    assert rules.get("/_simulator/faults").json() == [
        {"number": 1, "strikes": 1, "path": "messages", "status": 500},
        {"number": 2, "strikes": 0, "path": "ping", "failure": 1},
    ]
    rules.delete("/_simulator/faults", params={"number": first["number"]})
    assert client.send().status_code == 202
    assert client.command("/ping")["reason"]["code"] == 1
    rules.delete("/_simulator/faults")
    assert client.command("/ping")["status"] == "success"
    assert blip.faults() == []


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("faults", {"path": "message", "status": 500}),
        ("faults", {"pth": "messages"}),
        ("faults", {"path": "messages", "failure": 1}),
        ("faults", {"code": 34}),
        ("faults", {"path": "messages", "empty": True}),
        ("faults", {"text": "Maria"}),
        ("faults", []),
        ("settings", {"latency": 1}),
        ("settings", {"receipts": {"urls": "x"}}),
        ("settings", {"distance": {"there": {"mean": 1}}}),
        ("settings", []),
        ("templates", {"name": "A", "language": "pt_BR"}),
        ("bots", {"key": "Key nonsense"}),
        ("bots", {"traffic": {"messages_per_second": 0}}),
        ("bots", {"traffic": {"messages_per_second": 1, "on_share": 0}}),
        ("identities", {"+55": 1}),
    ],
)
def test_a_wrong_order_is_400(client: Client, path: str, document: Any) -> None:
    method = "POST" if path == "faults" else "PUT"
    answer = client.http.request(method, f"/_simulator/{path}", json=document)
    assert answer.status_code == 400
    assert answer.text.strip()


def test_every_answer_can_be_slow(blip: Simulator, client: Client) -> None:
    blip.configure(latency_seconds=0.05, latency_jitter_seconds=0.01)
    for answer in (client.send(), client.post("/commands", COMMAND)):
        assert answer.elapsed.total_seconds() >= 0.05


# Distance. What takes an hour does not happen within a test.

HOUR = {"mean_seconds": 3600}


def test_what_comes_on_a_new_connection_counts_when_it_stands(
    blip: Simulator, client: Client
) -> None:
    assert client.send(id="first").status_code == 202
    blip.configure(distance={"set_up": HOUR})
    new = Client(blip)
    new.http.timeout = httpx.Timeout(30, read=0.1)
    with pytest.raises(httpx.ReadTimeout):
        new.send(id="second")
    assert client.send(id="third").status_code == 202
    assert [request.envelope["id"] for request in blip.requests] == ["first", "third"]
    blip.configure(distance={"set_up": {"mean_seconds": 0.02}})
    new.http.timeout = httpx.Timeout(30)
    answer = new.send(id="fourth")
    assert answer.status_code == 202
    assert answer.elapsed.total_seconds() >= 0.02
    assert [entry["id"] for entry in blip.inbox()] == ["first", "third", "fourth"]
    new.http.close()


def test_with_tls_a_client_waits_for_its_connection_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "blip.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Simulator(certificate=certificate) as blip:
        headers = {"Authorization": blip.key}
        kept = httpx.Limits(keepalive_expiry=60)
        with httpx.Client(base_url=blip.url, headers=headers, limits=kept, timeout=30) as http:
            assert http.post("/messages", json=message(id="first")).status_code == 202
            blip.configure(distance={"set_up": HOUR})
            with httpx.Client(base_url=blip.url, headers=headers, timeout=0.1) as new:
                with pytest.raises(httpx.ConnectTimeout):
                    new.post("/messages", json=message(id="second"))
                blip.configure(distance={"set_up": {"mean_seconds": 0.02}})
                new.timeout = httpx.Timeout(30)
                assert new.post("/messages", json=message(id="third")).status_code == 202
            blip.add_fault(path="messages", drop=True)
            with pytest.raises(httpx.TransportError):
                http.post("/messages", json=message(id="fourth"))
        ids = [request.envelope["id"] for request in blip.requests]
        assert ids == ["first", "third", "fourth"]


@pytest.mark.parametrize(("way", "accepted"), [("there", 0), ("back", 1)])
def test_a_request_counts_when_it_arrives(
    blip: Simulator, client: Client, way: str, accepted: int
) -> None:
    blip.configure(distance={way: HOUR})
    client.http.timeout = httpx.Timeout(30, read=0.1)
    with pytest.raises(httpx.ReadTimeout):
        client.send()
    wait_until(lambda: len(blip.inbox()) == accepted)
    assert len(blip.requests) == accepted
    highest = blip.statistics()["highest_per_second"]
    assert highest == (
        {"simulated": {"messages": 1, "notifications": 0, "commands": 0}} if accepted else {}
    )


def test_the_way_there_and_back_takes_time(blip: Simulator, client: Client) -> None:
    blip.configure(distance={"there": {"mean_seconds": 0.02}, "back": {"mean_seconds": 0.03}})
    for answer in (client.send(), client.post("/commands", COMMAND)):
        assert answer.elapsed.total_seconds() >= 0.05


def test_a_delay_varies_within_its_spread() -> None:
    delay = Delay(mean_seconds=0.1, spread_seconds=0.04)
    first, again, other = (
        [delay.draw(random) for _ in range(1_000)] for random in map(Random, (1, 1, 2))
    )
    assert first == again != other
    assert 0.06 <= min(first) < 0.065
    assert 0.135 < max(first) <= 0.14
    assert sum(first) / 1_000 == pytest.approx(0.1, rel=0.05)
    assert min(Delay(spread_seconds=1).draw(Random(1)) for _ in range(10)) >= 0


def test_a_seed_repeats_what_is_drawn(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(messages_per_second=None))
    blip.add_fault(path="messages", status=500, probability=0.5)
    rounds: list[list[int]] = []
    for changes in ({"seed": 1}, {"history_lag_seconds": 1}, {"seed": 1}, {"seed": 2}):
        client.http.put("/_simulator/settings", json=changes)
        rounds.append([client.send().status_code for _ in range(40)])
    first, without_seed, again, other = rounds
    assert first == again
    assert first not in (without_seed, other)


def test_unreachable_and_back(blip: Simulator, client: Client) -> None:
    with blip.unreachable(), pytest.raises(httpx.ConnectError):
        client.send()
    assert client.send().status_code == 202


def test_an_outage_by_http(client: Client) -> None:
    assert client.http.post("/_simulator/outage", json={"seconds": 0.3}).status_code == 204
    wait_until(lambda: not reachable(client))
    wait_until(lambda: reachable(client))


def reachable(client: Client) -> bool:
    try:
        return client.post("/commands", COMMAND).status_code == 200
    except httpx.TransportError:
        return False


# The numbers that always do the same


@pytest.mark.parametrize("phone", magic_numbers())
def test_a_magic_number_does_what_its_rule_says(
    blip: Simulator, client: Client, phone: str
) -> None:
    (rule,) = magic_numbers()[phone]
    found = client.look_up(phone)
    if rule.failure:
        assert found["reason"]["code"] == rule.failure
        return
    client.http.timeout = httpx.Timeout(0.3)
    try:
        status = client.send(found["resource"]["alternativeAccount"]).status_code
    except httpx.TransportError:
        status = 0
    no_answer = rule.drop or rule.hang
    assert status == (0 if no_answer else rule.status or 202)
    inbox = blip.inbox()
    assert len(inbox) == rule.accepts
    if rule.receipt:
        assert inbox[0]["reason"]["code"] == rule.receipt
    if rule.events is not None:
        assert [receipt["event"] for receipt in inbox[0]["receipts"]] == rule.events
    if rule.each:
        again = client.send(found["resource"]["alternativeAccount"])
        assert again.status_code == 202


@pytest.mark.parametrize(
    ("phone", "rule"),
    [
        ("+5531900000061", Fault(path="lookups", failure=61)),
        ("+5531900000083", Fault(path="lookups", failure=83)),
        ("+5531900000026", Fault(path="messages", receipt=131026)),
        ("+5531900000024", Fault(path="messages", status=400, code=24)),
        ("+5531900000056", Fault(path="messages", receipt=131056)),
        ("+5531900000086", Fault(path="messages", receipt=86)),
        ("+5531900000504", Fault(path="messages", status=504, accept=True, each=1)),
    ],
)
def test_the_numbers_that_others_rely_on(phone: str, rule: Fault) -> None:
    assert magic_numbers()[phone] == [rule]


# What is shown


def test_the_inbox_by_http(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    for identifier in "abc":
        client.send(id=identifier)
    inbox = "/_simulator/inbox"
    assert client.http.get(inbox).json() == blip.inbox()

    def ids(**query: Any) -> str:
        return "".join(entry["id"] for entry in client.http.get(inbox, params=query).json())

    assert (ids(id="b"), ids(after=2), ids(limit=2), ids(phone=PHONE)) == ("b", "c", "ab", "abc")
    assert (ids(bot="other"), ids(template="x"), ids(to=IDENTITY)) == ("", "", "abc")
    assert client.http.delete(inbox).status_code == 204
    assert blip.inbox() == []
    assert client.history("a") == []


def test_statistics(client: Client) -> None:
    client.look_up(PHONE)
    client.look_up(PHONE)
    client.look_up("+5511999998888")
    client.send()
    client.post("/messages", {})
    seen = client.http.get("/_simulator/statistics").json()
    assert seen["requests"] == {"/commands": {"200": 3}, "/messages": {"202": 1, "400": 1}}
    assert seen["lookups"] == {PHONE: 2, "+5511999998888": 1}
    assert seen["looked_up_never_sent"] == ["+5511999998888"]
    assert seen["kinds"] == {"lookups": 3, "messages": 1}
    assert seen["messages"] == {"accepted": 1, "distinct": 1, "repeated": {}}


def test_requests_side_by_side_are_counted(blip: Simulator, client: Client) -> None:
    # Long enough for all of them to begin, however busy the machine is.
    blip.configure(latency_seconds=2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: client.send(id=str(i)), range(4)))
    assert blip.statistics()["most_in_flight"] == {"/messages": 4}


def test_requests_are_kept_with_headers_and_body(blip: Simulator, client: Client) -> None:
    client.send()
    client.http.post("/messages", headers={"Authorization": "Key x"})
    first, second = blip.requests
    assert (first.path, first.kind, first.bot, first.status) == (
        "/messages",
        "messages",
        "simulated",
        202,
    )
    assert first.envelope["id"] == "m1"
    assert first.headers["authorization"] == blip.key
    assert (second.status, second.bot) == (401, None)


def test_settings_by_http(client: Client) -> None:
    changes = {"receipts": {"headers": {"Host": "h"}, "delays": {"consumed": None}}}
    client.http.put("/_simulator/settings", json=changes)
    settings = client.http.get("/_simulator/settings").json()
    assert settings["receipts"]["headers"] == {"Host": "h"}
    assert settings["receipts"]["delays"]["consumed"] is None
    assert settings["receipts"]["delays"]["received"] == 0
    assert settings["penalty_seconds"] == 120


def test_bots_and_identities_by_http(blip: Simulator, client: Client) -> None:
    client.http.put("/_simulator/bots", json={"name": "second", "messages_per_second": 1})
    assert [bot["name"] for bot in client.http.get("/_simulator/bots").json()] == [
        "simulated",
        "second",
    ]
    client.http.put("/_simulator/identities", json={PHONE: "x@wa.gw.msging.net"})
    answer = client.http.post("/_simulator/identities", json={"phone": PHONE})
    assert answer.json() == {"identity": "x@wa.gw.msging.net"}
    client.send("x@wa.gw.msging.net")
    assert blip.inbox()[0]["phone"] == PHONE


def test_as_a_process() -> None:
    arguments = ["--key", "Ym90OnNlY3JldA==", "--settings", '{"strict_identities": false}']
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "tests.local.blip", *arguments], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        assert started["keys"] == {"bot": "Key Ym90OnNlY3JldA=="}
        answer = httpx.post(
            f"{started['url']}/messages",
            json=message(),
            headers={"Authorization": started["keys"]["bot"]},
        )
        assert answer.status_code == 202
        assert httpx.get(f"{started['inbox']}inbox").json()[0]["bot"] == "bot"
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_as_a_process_with_tls(tmp_path: Path) -> None:
    certificate = tmp_path / "blip.pem"
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "tests.local.blip", "--certificate", str(certificate)],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        trusting = ssl.create_default_context(cafile=certificate)
        assert started["url"].startswith("https://")
        assert httpx.get(f"{started['inbox']}inbox", verify=trusting).json() == []
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 0


def test_help_tells_every_magic_number() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "tests.local.blip", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for phone, row in zip(magic_numbers(), MAGIC.values(), strict=True):
        assert f"{phone}  {row[0]}" in shown.stdout
