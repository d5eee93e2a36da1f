"""The BLiP simulator: which content fits a template."""

from copy import deepcopy
from typing import Any

import pytest

from tests.integration.simulator.client import Client, Json, body, content, header
from tests.local.blip import Simulator, Template
from tests.support.builders import PHONE


def button(sub_type: str, index: Any, parameter: Json) -> Json:
    return {"type": "button", "sub_type": sub_type, "index": index, "parameters": [parameter]}


def code_button(code: str) -> Json:
    return button("url", 0, {"type": "text", "text": code})


def payload(text: str) -> Json:
    return {"type": "payload", "payload": text}


IMAGE = {"link": "https://example.com/a.jpg"}
DOCUMENT = {"link": "https://example.com/a.pdf", "filename": "a.pdf"}
PLACE = {"latitude": "-19.9", "longitude": -43.9, "name": "Loja", "address": "Rua X, 1"}
MONEY = {"fallback_value": "R$ 10,00", "code": "BRL", "amount_1000": 10000}
CODE_BUTTON = code_button("123456")
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
        fits("login_code", body("123456"), CODE_BUTTON),
    ],
)
def test_content_that_fits_is_consumed(blip: Simulator, client: Client, sent: Json) -> None:
    blip.know(PHONE)
    assert client.send(content=sent).status_code == 202
    assert (blip.inbox()[0]["status"], blip.inbox()[0]["reason"]) == ("consumed", None)


def changed(*path: str | int, to: Any = None, drop: bool = False, **more: Any) -> Json:
    """Return the usual content with the value at a path changed, removed or added."""
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
        (content(body("123456"), name="login_code"), 131008),
        (content(CODE_BUTTON, name="login_code"), 132000),
        (content(body("654321"), CODE_BUTTON, name="login_code"), 131009),
        (content(body("1" * 16), code_button("1" * 16), name="login_code"), 131009),
        (
            content(body("123456"), CODE_BUTTON | {"sub_type": "copy_code"}, name="login_code"),
            132012,
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
def test_parameters_can_be_typed_and_named(
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


def test_template_can_be_changed_at_run_time(blip: Simulator, client: Client) -> None:
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
