"""Which requests are valid, and what an invalid one says."""

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from notifier.contract.parse import parse
from notifier.contract.request import NotificationRequest
from notifier.contract.template import (
    Currency,
    DateTime,
    HeaderDocument,
    HeaderImage,
    HeaderLocation,
    HeaderText,
    HeaderVideo,
    QuickReply,
    Template,
)
from notifier.domain.failures import Reason
from notifier.domain.notification import ledger_key, message_id
from tests.unit.contract.helpers import CURRENCY, LINK, Json, refused, request, with_template

EVENTS = Path(__file__).parents[3] / "events"


# --- What is accepted -----------------------------------------------------------------------------


def parsed(content: object) -> NotificationRequest:
    return parse(json.dumps(content)).request


def test_smallest_request_gets_the_defaults() -> None:
    assert parsed(request()) == NotificationRequest(
        id="order-981",
        to="+5531999998888",
        template=Template(
            name="order_shipped",
            language="pt_BR",
            namespace=None,
            header=None,
            body=None,
            buttons=[],
            components=None,
        ),
        bot="default",
        valid_until=None,
        if_unknown="resend",
        metadata={},
    )


def test_whole_request_is_read() -> None:
    content = with_template(
        namespace="a1b2_c3-d4",
        header={"type": "image", "link": LINK},
        body=["Maria", CURRENCY, {"type": "date_time", "fallback_value": "10 de maio"}],
        buttons=[{"type": "quick_reply", "payload": "YES", "index": 3}],
    ) | {
        "to": "+55 (31) 99999-8888",
        "bot": "billing",
        "valid_until": "2031-11-22T18:00:00.5-03:00",
        "if_unknown": "fail",
        "metadata": {"order": "981"},
    }
    assert parsed(content) == NotificationRequest(
        id="order-981",
        to="+5531999998888",
        template=Template(
            name="order_shipped",
            language="pt_BR",
            namespace="a1b2_c3-d4",
            header=HeaderImage(type="image", link=LINK),
            body=[
                "Maria",
                Currency(type="currency", fallback_value="R$ 10,00", code="BRL", amount_1000=10000),
                DateTime(type="date_time", fallback_value="10 de maio"),
            ],
            buttons=[QuickReply(type="quick_reply", payload="YES", index=3)],
        ),
        bot="billing",
        valid_until=datetime(2031, 11, 22, 21, 0, 0, 500000, tzinfo=UTC),
        if_unknown="fail",
        metadata={"order": "981"},
    )


def header(**fields: Any) -> Json:
    return with_template(header=fields)


@pytest.mark.parametrize(
    ("sent", "header"),
    [
        ({"type": "text", "text": "a" * 60}, HeaderText(type="text", text="a" * 60)),
        ({"type": "image", "link": LINK}, HeaderImage(type="image", link=LINK)),
        ({"type": "video", "link": LINK}, HeaderVideo(type="video", link=LINK)),
        (
            {"type": "document", "link": LINK, "filename": "boleto nº 1.pdf"},
            HeaderDocument(type="document", link=LINK, filename="boleto nº 1.pdf"),
        ),
        (
            {"type": "location", "latitude": -90, "longitude": 180, "name": "A", "address": "B"},
            HeaderLocation(type="location", latitude=-90, longitude=180, name="A", address="B"),
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_headers_are_read(sent: Json, header: object) -> None:
    assert parsed(with_template(header=sent)).template.header == header


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(request(id="A-z_0.9:~" + "x" * 119), id="longest id"),
        pytest.param(with_template(name="a" * 512), id="longest template name"),
        *(
            pytest.param(with_template(language=code), id=f"language {code}")
            for code in ("pt_BR", "en", "en_US", "fil", "es_419")
        ),
        pytest.param(with_template(body=[]), id="no positional values"),
        pytest.param(with_template(body={}), id="no named values"),
        pytest.param(with_template(body={"a": "1", "b_2": CURRENCY}), id="named values"),
        pytest.param(with_template(body=["a    b", " \u00e7\u2705\U0001f469 "]), id="four spaces"),
        pytest.param(
            with_template(
                buttons=[
                    {"type": "quick_reply", "payload": "x" * 256},
                    {"type": "url", "text": "x" * 2000},
                    {"type": "copy_code", "coupon": "x" * 15},
                ]
            ),
            id="longest buttons",
        ),
        pytest.param(
            with_template(buttons=[{"type": "quick_reply", "payload": "x"}] * 10), id="ten buttons"
        ),
        pytest.param(
            with_template(
                buttons=[
                    {"type": "quick_reply", "payload": "x", "index": 1},
                    {"type": "quick_reply", "payload": "x", "index": 0},
                ]
            ),
            id="two buttons swapped",
        ),
        pytest.param(
            with_template(components=[{"type": "flow", "anything": [1, None, {"a": 1.5}]}]),
            id="components",
        ),
        pytest.param(
            with_template(components=[{"type": "body"}], header=None, body=None, buttons=[]),
            id="components and nothing beside them",
        ),
        pytest.param(request(metadata={str(i): "v" * 256 for i in range(10)}), id="metadata"),
        pytest.param(request(metadata={"k" * 64: ""}), id="metadata at its limits"),
        pytest.param(request(valid_until="2031-11-22t18:00:00z"), id="RFC 3339 in lower case"),
        pytest.param(request(valid_until="2001-01-01T00:00:00Z"), id="past, which is not invalid"),
    ],
)
def test_valid_request_is_accepted(content: Json) -> None:
    parsed(content)


@pytest.mark.parametrize(
    "link",
    [
        LINK,
        "http://example.com",
        "HTTPS://EXAMPLE.COM/A?b=c#d",
        "https://example.com:8443/a",
        "https://example.com/watch?v=youtube.com",
        "https://notyoutube.com/a.mp4",
        "https://youtube.com.br/a.mp4",
        "https://bucket.s3.amazonaws.com/a.pdf?X-Amz-Signature=abc%20def",
        "https://[2001:db8::1]/a.png",
        "https://exämple.com/ação.png",
        "https://a.com/" + "x" * 1986,
    ],
    ids=lambda link: link[:40],
)
def test_allowed_links_are_accepted(link: str) -> None:
    header = parsed(with_template(header={"type": "video", "link": link})).template.header
    assert header == HeaderVideo(type="video", link=link)


def test_null_fields_are_left_out() -> None:
    full = request(bot=None, valid_until=None, if_unknown=None, metadata=None)
    full["template"] |= dict.fromkeys(("namespace", "header", "body", "buttons", "components"))
    assert parsed(full) == parsed(request())


def test_request_cannot_be_changed() -> None:
    frozen = parsed(request())
    with pytest.raises(ValidationError):
        frozen.to = "+5531900000000"  # type: ignore[misc]


# --- What is invalid ------------------------------------------------------------------------------


def broken_fields(content: object) -> dict[str, str]:
    refusal = refused(json.dumps(content))
    assert refusal.reason is Reason.INVALID
    return {error.field: error.problem for error in refusal.fields}


REQUIRED = "is required"
ID = "must be 1 to 128 of letters, digits and . _ : ~ -"
TO = "must be a phone number as a text, with + and the country code"
NAME = "must be 1 to 512 of lower-case letters, digits and _"
LANGUAGE = "must be a language code with an underscore, as in pt_BR or en"
HEADER = "must be an object with the type text, image, video, document or location"
BUTTON = "must be an object with the type quick_reply, url or copy_code"
BODY = "must be a list of values, or an object of named values"
VALUE = "must be a text, or an object with the type currency or date_time"
NEWLINE = "must not hold a newline"
TAB = "must not hold a tab"
SPACES = "must not hold more than four spaces in a row"
EMPTY = "must not be empty"
OBJECT = "must be an object"
LIST = "must be a list"
UNTIL = "must be a time with its offset, as in 2031-11-22T18:00:00-03:00"
SHORT = "must be a text of at most 256 characters"
INDEX = "must be a whole number from 0 to 9"
PARAMETER = "its name must be lower-case letters, digits and _, a letter first"
MIXED = "has components beside header, body or buttons: it is one or the others"


def button(**fields: Any) -> Json:
    return with_template(buttons=[fields])


place = partial(header, type="location", latitude=1, longitude=1, name="A", address="B")
answer = partial(button, type="quick_reply", payload="x")

INVALID: list[tuple[str, Json, dict[str, str]]] = [
    ("nothing", {}, {"id": REQUIRED, "to": REQUIRED, "template": REQUIRED}),
    ("null where required", request(id=None), {"id": REQUIRED}),
    ("empty id", request(id=""), {"id": ID}),
    ("long id", request(id="x" * 129), {"id": ID}),
    ("id with a slash", request(id="a/b"), {"id": ID}),
    ("id with a last newline", request(id="a\n"), {"id": ID}),
    ("id with an accent", request(id="é"), {"id": ID}),
    ("numeric id", request(id=981), {"id": ID}),
    ("numeric recipient", request(to=5531999998888), {"to": TO}),
    (
        "recipient without +",
        request(to="5531999998888"),
        {"to": "must start with + and the country code"},
    ),
    (
        "user id as recipient",
        request(to="BR.13491208655302741918"),
        {
            "to": "is a business-scoped user id (BSUID), WhatsApp's name for a person without a "
            "number: requests go to a phone number, with + and the country code"
        },
    ),
    ("short recipient", request(to="+5531"), {"to": "is too short for a number of its country"}),
    ("template is a name", request(template="order_shipped"), {"template": OBJECT}),
    ("template is a list", request(template=[]), {"template": OBJECT}),
    ("upper-case template", with_template(name="Order"), {"template.name": NAME}),
    ("long template", with_template(name="a" * 513), {"template.name": NAME}),
    ("language with a dash", with_template(language="pt-BR"), {"template.language": LANGUAGE}),
    ("language as object", with_template(language={"code": "en"}), {"template.language": LANGUAGE}),
    (
        "namespace with a space",
        with_template(namespace="a b"),
        {"template.namespace": "must be 1 to 128 of letters, digits, _ and -"},
    ),
    ("header is a text", with_template(header="Maria"), {"template.header": HEADER}),
    ("header is a list", with_template(header=[]), {"template.header": HEADER}),
    ("header without type", header(link=LINK), {"template.header": HEADER}),
    ("header of unknown type", header(type="audio", link=LINK), {"template.header": HEADER}),
    ("header of body's type", header(type="currency"), {"template.header": HEADER}),
    ("header with a strange type", header(type=[1]), {"template.header": HEADER}),
    (
        "header text too long",
        header(type="text", text="x" * 61),
        {"template.header.text": "must be a text of at most 60 characters"},
    ),
    ("header text with a tab", header(type="text", text="a\tb"), {"template.header.text": TAB}),
    ("image without link", header(type="image"), {"template.header.link": REQUIRED}),
    (
        "document without name",
        header(type="document", link=LINK),
        {"template.header.filename": REQUIRED},
    ),
    (
        "image with a name",
        header(type="image", link=LINK, filename="a"),
        {"template.header.filename": "unknown field"},
    ),
    (
        "latitude out of range",
        place(latitude=90.1),
        {"template.header.latitude": "must be a number of degrees from -90 to 90"},
    ),
    (
        "latitude as text",
        place(latitude="1"),
        {"template.header.latitude": "must be a number of degrees from -90 to 90"},
    ),
    (
        "longitude as boolean",
        place(longitude=True),
        {"template.header.longitude": "must be a number of degrees from -180 to 180"},
    ),
    ("place without address", place(address=None), {"template.header.address": REQUIRED}),
    ("body is a text", with_template(body="Maria"), {"template.body": BODY}),
    ("body is a number", with_template(body=0), {"template.body": BODY}),
    ("empty value", with_template(body=["a", ""]), {"template.body[1]": EMPTY}),
    ("blank value", with_template(body=[" \u00a0"]), {"template.body[0]": EMPTY}),
    ("newline", with_template(body=["a\nb"]), {"template.body[0]": NEWLINE}),
    ("carriage return", with_template(body=["a\rb"]), {"template.body[0]": NEWLINE}),
    ("line separator", with_template(body=["a\u2028b"]), {"template.body[0]": NEWLINE}),
    ("tab", with_template(body=["a\tb"]), {"template.body[0]": TAB}),
    ("five spaces", with_template(body=["a     b"]), {"template.body[0]": SPACES}),
    ("number as value", with_template(body=[1]), {"template.body[0]": VALUE}),
    ("boolean as value", with_template(body=[True]), {"template.body[0]": VALUE}),
    ("null as value", with_template(body=[None]), {"template.body[0]": VALUE}),
    ("list as value", with_template(body=[["a"]]), {"template.body[0]": VALUE}),
    ("object without type", with_template(body=[{"text": "a"}]), {"template.body[0]": VALUE}),
    ("object of type image", with_template(body=[{"type": "image"}]), {"template.body[0]": VALUE}),
    ("named: upper case", with_template(body={"Name": "a"}), {"template.body.Name": PARAMETER}),
    ("named: a digit first", with_template(body={"1st": "a"}), {"template.body.?": PARAMETER}),
    ("named: empty", with_template(body={"": "a"}), {"template.body.?": PARAMETER}),
    ("named: empty value", with_template(body={"a": ""}), {"template.body.a": EMPTY}),
    ("named: number", with_template(body={"a": 1}), {"template.body.a": VALUE}),
    (
        "currency",
        with_template(body=[CURRENCY | {"code": "brl", "amount_1000": 1.5}]),
        {
            "template.body[0].code": "must be an ISO 4217 code, as in BRL",
            "template.body[0].amount_1000": "must be a whole number: the amount times 1000",
        },
    ),
    (
        "named currency",
        with_template(body={"price": CURRENCY | {"fallback_value": "\n1"}}),
        {"template.body.price.fallback_value": NEWLINE},
    ),
    (
        "date without words",
        with_template(body=[{"type": "date_time", "timestamp": 1}]),
        {
            "template.body[0].fallback_value": REQUIRED,
            "template.body[0].timestamp": "unknown field",
        },
    ),
    ("buttons are an object", with_template(buttons={}), {"template.buttons": LIST}),
    ("button is a text", with_template(buttons=["YES"]), {"template.buttons[0]": BUTTON}),
    ("button of unknown type", button(type="call"), {"template.buttons[0]": BUTTON}),
    (
        "eleven buttons",
        with_template(buttons=[{"type": "quick_reply", "payload": "x"}] * 11),
        {"template.buttons": "must have at most 10 entries"},
    ),
    (
        "long payload",
        answer(payload="x" * 257),
        {"template.buttons[0].payload": "must be a text of 1 to 256 characters"},
    ),
    (
        "empty payload",
        answer(payload=""),
        {"template.buttons[0].payload": "must be a text of 1 to 256 characters"},
    ),
    ("empty end of link", button(type="url", text=""), {"template.buttons[0].text": EMPTY}),
    (
        "long end of link",
        button(type="url", text="x" * 2001),
        {"template.buttons[0].text": "must be a text of 1 to 2000 characters"},
    ),
    (
        "long coupon",
        button(type="copy_code", coupon="x" * 16),
        {"template.buttons[0].coupon": "must be a text of 1 to 15 characters"},
    ),
    ("index 10", answer(index=10), {"template.buttons[0].index": INDEX}),
    ("index -1", answer(index=-1), {"template.buttons[0].index": INDEX}),
    ("index as text", answer(index="0"), {"template.buttons[0].index": INDEX}),
    ("index as boolean", answer(index=True), {"template.buttons[0].index": INDEX}),
    (
        "two buttons at one index",
        with_template(
            buttons=[
                {"type": "quick_reply", "payload": "x", "index": 1},
                {"type": "url", "text": "x"},
            ]
        ),
        {"template.buttons": "has two buttons at index 1; without an index it is the position"},
    ),
    (
        "no components",
        with_template(components=[]),
        {"template.components": "must have at least 1 entry"},
    ),
    ("components as object", with_template(components={}), {"template.components": LIST}),
    (
        "component without type",
        with_template(components=[{"type": "body"}, {"Type": "body"}]),
        {"template.components[1]": "must have a type, as in body or carousel"},
    ),
    ("component as text", with_template(components=["a"]), {"template.components[0]": OBJECT}),
    *(
        (
            f"components and {name}",
            with_template(components=[{"type": "body"}], **{name: value}),
            {"template": MIXED},
        )
        for name, value in {
            "header": {"type": "text", "text": "a"},
            "body": [],
            "buttons": [{"type": "url", "text": "a"}],
        }.items()
    ),
    (
        "bot with a slash",
        request(bot="a/b"),
        {"bot": "must be 1 to 64 of letters, digits, _ and -"},
    ),
    ("empty bot", request(bot=""), {"bot": "must be 1 to 64 of letters, digits, _ and -"}),
    *(
        (f"valid_until {value}", request(valid_until=value), {"valid_until": UNTIL})
        for value in (
            "",
            "tomorrow",
            1924992000,
            "2031-11-22",
            "2031-11-22T18:00:00",
            "2031-11-22 18:00:00Z",
            "2031-11-22T18:00Z",
            "2031-02-30T18:00:00Z",
            "2031-11-22T24:01:00Z",
            "2031-11-22T18:00:00-0300",
            "2031-11-22T18:00:00+99:00",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "\u0662\u0660\u0663\u0661-11-22T18:00:00Z",
        )
    ),
    ("if_unknown", request(if_unknown="retry"), {"if_unknown": "must be resend or fail"}),
    ("if_unknown as boolean", request(if_unknown=True), {"if_unknown": "must be resend or fail"}),
    ("metadata as list", request(metadata=["a"]), {"metadata": OBJECT}),
    (
        "eleven entries of metadata",
        request(metadata={str(i): "x" for i in range(11)}),
        {"metadata": "must have at most 10 entries"},
    ),
    ("metadata with a number", request(metadata={"order": 981}), {"metadata.order": SHORT}),
    ("metadata with null", request(metadata={"order": None}), {"metadata.order": SHORT}),
    ("long metadata", request(metadata={"order": "x" * 257}), {"metadata.order": SHORT}),
    (
        "metadata without a name",
        request(metadata={"": "x"}),
        {"metadata.?": "its name must be of 1 to 64 characters"},
    ),
    (
        "a typo",
        {"id": "a", "to": "+5531999998888", "templte": {}},
        {"template": REQUIRED, "templte": "unknown field; did you mean template?"},
    ),
    (
        "a typo that is null",
        request(vaild_until=None),
        {"vaild_until": "unknown field; did you mean valid_until?"},
    ),
    (
        "a typo in the template",
        with_template(componets=[]),
        {"template.componets": "unknown field; did you mean components?"},
    ),
    (
        "a typo in the header",
        header(type="document", link=LINK, file_name="a"),
        {
            "template.header.filename": REQUIRED,
            "template.header.file_name": "unknown field; did you mean filename?",
        },
    ),
    (
        "a typo in a button",
        answer(indx=1),
        {"template.buttons[0].indx": "unknown field; did you mean index?"},
    ),
    ("a field of nowhere", request(priority=1), {"priority": "unknown field"}),
]


@pytest.mark.parametrize(
    ("content", "fields"), [pytest.param(*case, id=name) for name, *case in INVALID]
)
def test_every_broken_field_is_named_with_the_expected_value(
    content: Json, fields: dict[str, str]
) -> None:
    assert broken_fields(content) == fields


NO_HTTP = "must be an http or https link of at most 2000 characters"
NO_HOST = "must be an http or https link with a host"
UNREADABLE = "is not a link: its host or port cannot be read"
YOUTUBE = "must not be a YouTube link: WhatsApp needs the file itself"
BLANKS = "must not hold spaces, backslashes or control characters: encode them"


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("", NO_HTTP),
        (1, NO_HTTP),
        ("example.com/a.png", NO_HTTP),
        ("//example.com/a.png", NO_HTTP),
        ("ftp://example.com/a.png", NO_HTTP),
        ("s3://bucket/a.png", NO_HTTP),
        ("javascript:alert(1)", NO_HTTP),
        (" https://example.com/a.png", NO_HTTP),
        ("https://example.com/" + "x" * 2000, NO_HTTP),
        ("https://", NO_HOST),
        ("https:///a.png", NO_HOST),
        ("https://:80/a.png", NO_HOST),
        ("https://user@/a.png", NO_HOST),
        ("http://a[::1]/x.jpg", UNREADABLE),
        ("http://[::1]a/x.jpg", UNREADABLE),
        ("https://[::1/a.png", UNREADABLE),
        ("https://example.com:port/", UNREADABLE),
        ("https://example.com:99999/", UNREADABLE),
        ("https://example.com/a b.png", BLANKS),
        ("https://example.com/a\nb.png", BLANKS),
        ("https://example.com/a\u00a0b.png", BLANKS),
        ("https://youtu.be\\@example.com/", BLANKS),
        ("https://www.youtube.com/watch?v=WU9gzjhyrcc", YOUTUBE),
        ("http://youtu.be/WU9gzjhyrcc", YOUTUBE),
        ("https://youtube.com/a", YOUTUBE),
        ("https://m.youtube.com/a", YOUTUBE),
        ("https://YouTube.com./a", YOUTUBE),
        ("https://user@youtu.be:443/a", YOUTUBE),
        ("https://www.youtube-nocookie.com/embed/a", YOUTUBE),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("kind", ["image", "video", "document"])
def test_refused_links_name_the_problem(kind: str, link: object, problem: str) -> None:
    fields = {"type": kind, "link": link} | ({"filename": "a"} if kind == "document" else {})
    assert broken_fields(with_template(header=fields)) == {"template.header.link": problem}


def test_summary_is_one_line_with_the_first_three_fields() -> None:
    refusal = refused(json.dumps(with_template(body=["a\nb"] * 5)))
    assert refusal.detail == (
        "template.body[0]: must not hold a newline; template.body[1]: must not hold a newline; "
        "template.body[2]: must not hold a newline; and 2 more"
    )
    assert str(refusal) == refusal.detail


def test_at_most_twenty_broken_fields_are_listed_and_all_are_counted() -> None:
    refusal = refused(json.dumps(with_template(body=[""] * 1000)))
    assert len(refusal.fields) == 20
    assert refusal.detail.endswith("; and 997 more")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("order_number", "order_number"),
        ("a1b2c3d4", "a1b2c3d4"),
        ("+5531999998888", "?"),
        ("p5531999998888", "?"),
        ("p55_31_99", "?"),
        ("Maria da Silva", "?"),
        ("x" * 65, "?"),
        ("a\nb", "?"),
        ("\0text", ""),
        ("[key]", ""),
    ],
)
def test_unknown_names_from_a_producer_stay_out_of_the_errors(name: str, shown: str) -> None:
    (field,) = broken_fields(request(metadata={name: 1}))
    assert field == f"metadata.{shown}".rstrip(".")


# --- What may be said of a request that is not valid ----------------------------------------------


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (request(metadata=1), ("order-981", "default", "order_shipped")),
        (request(metadata=1, bot="billing"), ("order-981", "billing", "order_shipped")),
        (request(metadata=1, bot=None), ("order-981", "default", "order_shipped")),
        (request(id="a b"), (None, "default", "order_shipped")),
        (request(id="a\n"), (None, "default", "order_shipped")),
        (request(id=1), (None, "default", "order_shipped")),
        (request(bot="a b"), ("order-981", None, "order_shipped")),
        (request(bot=""), ("order-981", None, "order_shipped")),
        (request(template=1), ("order-981", "default", None)),
        (with_template(name=1), ("order-981", "default", None)),
        (with_template(name="Order"), ("order-981", "default", None)),
        (request(metadata={"a": "x" * 65536}), ("order-981", "default", "order_shipped")),
        ({}, (None, "default", None)),
        ([], (None, None, None)),
    ],
)
def test_id_bot_and_template_of_an_invalid_request_are_known_if_readable(
    content: object, known: tuple[str | None, ...]
) -> None:
    refusal = refused(json.dumps(content))
    assert (refusal.notification_id, refusal.bot, refusal.template) == known


# --- Hash and keys --------------------------------------------------------------------------------


def test_content_hash_ignores_order_and_white_space() -> None:
    content = request(metadata={"a": "é", "b": "1"})
    shuffled = dict(reversed(content.items())) | {"metadata": {"b": "1", "a": "é"}}
    plain = parse(json.dumps(content)).content_hash
    assert parse(json.dumps(shuffled, indent=4, ensure_ascii=False)).content_hash == plain


@pytest.mark.parametrize("correlation_id", ["checkout-7f3a", "00-4bf92f35-01", None])
def test_correlation_id_is_not_part_of_the_content_hash(correlation_id: str | None) -> None:
    parsed = parse(json.dumps(request(correlation_id=correlation_id)))

    assert parsed.request.correlation_id == correlation_id
    assert parsed.content_hash == parse(json.dumps(request())).content_hash


@pytest.mark.parametrize(
    "other",
    [request(id="order-982"), request(metadata={}), request(to="+55 31 99999-8888")],
    ids=["id", "a default written out", "the same number written otherwise"],
)
def test_other_content_has_another_hash(other: Json) -> None:
    assert parse(json.dumps(other)).content_hash != parse(json.dumps(request())).content_hash


def test_content_hash_of_a_sample_never_changes() -> None:
    """A release with another hash would call every repetition a conflict; hence the `1:`."""
    body = (EVENTS / "01-text.json").read_text(encoding="utf-8")
    assert parse(body).content_hash == (
        "1:05c437fc6254825fe990c142aef0a02626dd04668d1d9781f6db2c413890d982"
    )


def test_ledger_key_never_changes() -> None:
    assert ledger_key("default", "order-981-shipped") == "02a8c4fb-7dc7-5ca5-a2d4-50bebc023756"


def test_ledger_keys_are_uuids_and_differ_by_bot_and_id() -> None:
    keys = {ledger_key(bot, name) for bot in ("a", "a-b") for name in ("1", "2", "a", "a-b")}
    assert len(keys) == 8
    assert all(str(UUID(key)) == key for key in keys)


def test_each_generation_has_its_own_message_id() -> None:
    assert [message_id("key", generation) for generation in (1, 2, 3)] == ["key", "key:2", "key:3"]
