"""Our JSON against that of BLiP's own document, field by field, and what it has no example of."""

import json
from pathlib import Path
from typing import Any

import pytest

from notifier.blip import envelopes
from notifier.contract.parse import parse
from notifier.contract.template import Template
from tests.support.builders import a_request

DOCUMENT = Path(__file__).parent / "document"

type Json = Any

# What the document leaves to its reader.
PLACEHOLDERS = {
    "{{NAMESPACE}}": "a1b2c3d4_namespace",
    "{{MESSAGE_TEMPLATE_NAME}}": "pedido_enviado",
}
OUR_ID = "0e9b6e6c-7bd5-5a2c-9f3c-0d4f2d6f8a11"

# Every request of the document that sends something, and the request of ours that asks for it.
SENDS: dict[str, dict[str, Any]] = {
    "2-text": {"body": ["parâmetro1", "parâmetro2"]},
    "3-image": {
        "header": {
            "type": "image",
            "link": "https://www.blip.ai/wp-content/uploads/2018/02/logo-blip.png",
        },
        "body": [],
    },
    "4-video": {
        "header": {
            "type": "video",
            "link": "http://techslides.com/demos/sample-videos/small.mp4",
        },
        "body": [],
    },
    "5-document": {
        "header": {
            "type": "document",
            "link": "http://www.orimi.com/pdf-test.pdf",
            "filename": "take.pdf",
        },
        "body": ["BLiP"],
    },
    "6-quick-reply": {
        "body": ["Uma mensagem qualquer. Gostaria de responder?"],
        "buttons": [
            {"type": "quick_reply", "payload": "Sim"},
            {"type": "quick_reply", "payload": "Sim"},
        ],
    },
}

# Where we differ from the document, on purpose: path, its value, ours, both as JSON.
_ABSENT = ""
_OWN_ID = {("id", '"{{RANDOM_ID}}"', f'"{OUR_ID}"')}  # so that receipts find the notification
_TYPO = {  # WhatsApp's keys are case-sensitive
    ("content.template.components[0].parameters[1].Type", '"text"', _ABSENT),
    ("content.template.components[0].parameters[1].type", _ABSENT, '"text"'),
}
DIFFERENCES = {
    "2-text": _OWN_ID | _TYPO,
    "3-image": _OWN_ID,
    "4-video": _OWN_ID,
    "5-document": _OWN_ID,
    "6-quick-reply": _OWN_ID,
}


def documented(name: str) -> Json:
    text = (DOCUMENT / f"{name}.json").read_text(encoding="utf-8")
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    return json.loads(text)


def leaves(value: Json, path: str = "") -> dict[str, str]:
    """Return every value by its path, as JSON. Empty lists and objects are values too."""
    found: dict[str, str] = {}
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            found |= leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            found |= leaves(inner, f"{path}[{number}]")
    else:
        found[path] = json.dumps(value)
    return found


def differences(theirs: Json, ours: Json) -> set[tuple[str, str, str]]:
    left, right = leaves(theirs), leaves(ours)
    return {
        (path, left.get(path, _ABSENT), right.get(path, _ABSENT))
        for path in left.keys() | right.keys()
        if left.get(path) != right.get(path)
    }


def template(**parts: Any) -> Template:
    """Return the template of a request as a producer would write it."""
    name = PLACEHOLDERS["{{MESSAGE_TEMPLATE_NAME}}"]
    body = json.dumps(a_request(template={"name": name, "language": "pt_BR"} | parts))
    return parse(body).request.template


def components(**parts: Any) -> Json:
    return envelopes.components(template(**parts))


@pytest.mark.parametrize("name", SENDS)
def test_message_equals_the_documented_one(name: str) -> None:
    theirs = documented(name)

    ours = envelopes.message(
        OUR_ID, theirs["to"], template(**SENDS[name]), PLACEHOLDERS["{{NAMESPACE}}"]
    )

    assert differences(theirs, ours) == DIFFERENCES[name]


def test_every_documented_request_is_compared() -> None:
    shown = {path.stem for path in DOCUMENT.glob("*.json")}

    assert shown == {"1-look-up", "1-look-up-answer", *SENDS}


def test_look_up_equals_the_documented_one() -> None:
    theirs = documented("1-look-up")

    ours = envelopes.look_up(OUR_ID, "+5531999998888")

    assert differences(theirs, ours) == {
        ("id", '"a456-42665544000-0123e4567-e89b-12d3"', f'"{OUR_ID}"')
    }


def test_comparison_tells_json_types_apart() -> None:
    assert differences({"a": [0], "b": 1}, {"a": [False], "b": "1"}) == {
        ("a[0]", "0", "false"),
        ("b", "1", '"1"'),
    }
    assert differences({"a": [], "b": 1}, {"b": 1}) == {("a", "[]", _ABSENT)}
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) == set()


def test_template_namespace_takes_precedence_over_the_bot_s() -> None:
    named = envelopes.message(OUR_ID, "x@wa.gw.msging.net", template(namespace="own"), "the_bot_s")

    assert named["content"]["template"]["namespace"] == "own"


def test_message_without_a_namespace_omits_the_member() -> None:
    bare = envelopes.message(OUR_ID, "x@wa.gw.msging.net", template(), None)

    assert bare["content"]["template"] == {
        "name": "pedido_enviado",
        "language": {"code": "pt_BR", "policy": "deterministic"},
        "components": [],
    }


def test_metadata_is_never_sent_to_blip() -> None:
    request = parse(json.dumps(a_request(metadata={"order": "981"}))).request

    message = envelopes.message(OUR_ID, "x@wa.gw.msging.net", request.template, None)

    assert set(message) == {"id", "to", "type", "content"}


def test_text_header_is_one_text_parameter() -> None:
    assert components(header={"type": "text", "text": "Maria"}) == [
        {"type": "header", "parameters": [{"type": "text", "text": "Maria"}]}
    ]


def test_location_header_has_its_coordinates_as_strings() -> None:
    header = {
        "type": "location",
        "latitude": -19.92,
        "longitude": -43,
        "name": "Loja",
        "address": "Rua X, 1",
    }

    (component,) = components(header=header)

    assert component == {
        "type": "header",
        "parameters": [
            {
                "type": "location",
                "location": {
                    "latitude": "-19.9200000",
                    "longitude": "-43.0000000",
                    "name": "Loja",
                    "address": "Rua X, 1",
                },
            }
        ],
    }


def test_named_parameters_keep_their_names_and_order() -> None:
    (component,) = components(body={"pedido": "981", "cliente": "Maria"})

    assert component["parameters"] == [
        {"type": "text", "parameter_name": "pedido", "text": "981"},
        {"type": "text", "parameter_name": "cliente", "text": "Maria"},
    ]


def test_currency_and_date_parameters_keep_their_fields() -> None:
    (component,) = components(
        body=[
            {"type": "currency", "fallback_value": "R$ 10,00", "code": "BRL", "amount_1000": 10000},
            {"type": "date_time", "fallback_value": "10/10/2031"},
        ]
    )

    assert component["parameters"] == [
        {
            "type": "currency",
            "currency": {"fallback_value": "R$ 10,00", "code": "BRL", "amount_1000": 10000},
        },
        {"type": "date_time", "date_time": {"fallback_value": "10/10/2031"}},
    ]


def test_buttons_keep_their_position_unless_they_name_an_index() -> None:
    url, coupon, reply = components(
        buttons=[
            {"type": "url", "text": "981"},
            {"type": "copy_code", "coupon": "25OFF"},
            {"type": "quick_reply", "payload": "CONFIRM", "index": 5},
        ]
    )

    assert url == {
        "type": "button",
        "sub_type": "url",
        "index": 0,
        "parameters": [{"type": "text", "text": "981"}],
    }
    assert coupon == {
        "type": "button",
        "sub_type": "copy_code",
        "index": 1,
        "parameters": [{"type": "coupon_code", "coupon_code": "25OFF"}],
    }
    assert reply["index"] == 5


def test_one_time_code_fills_body_and_button() -> None:
    code = {"type": "text", "text": "418205"}

    assert components(otp="418205") == [
        {"type": "body", "parameters": [code]},
        {"type": "button", "sub_type": "url", "index": 0, "parameters": [code]},
    ]


def test_custom_components_are_passed_on_unchanged() -> None:
    own = [{"type": "carousel", "cards": [{"card_index": 0, "components": [{"X": None}]}]}]

    assert components(components=own) == own
