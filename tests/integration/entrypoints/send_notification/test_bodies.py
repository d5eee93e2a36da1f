"""Any body at all through the function whole: a dead letter with its reason, or a send.

Never an exception out of the handler, never a record that is lost, never a body that is changed.
How each body is understood, `tests/unit/contract/` shows.
"""

import base64
import json
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notifier.domain.failures import Reason
from tests.integration.conftest import Stack
from tests.local.blip import Bot
from tests.support.builders import a_request
from tests.support.lambda_runtime import a_context


@pytest.fixture
def unhurried(stack: Stack) -> Stack:
    """Return a stack with a plan that delays no request: these tests are about bodies."""
    stack.blip.configure(throttle=False)
    plan = {"messages_per_second": 100_000, "commands_per_second": 100_000}
    bot = Bot(name="simulated")
    stack.aws.put_bots({"default": {"base_url": stack.blip.url, "key": bot.key} | plan})
    stack.sandbox()
    return stack


def handle(stack: Stack, bodies: list[str], **attributes: Any) -> None:
    """Hand the bodies over as one batch, and account for every one of them."""
    records = [
        {
            "messageId": str(uuid4()),
            "receiptHandle": "handle",
            "body": body,
            "attributes": {"SentTimestamp": "9999999999999", "ApproximateReceiveCount": "1"},
            "messageAttributes": attributes,
        }
        for body in bodies
    ]
    stack.aws.calls.clear()

    answer = stack.functions[0].handle({"Records": records}, a_context())

    assert answer == {"batchItemFailures": []}
    letters = stack.aws.dead_letters()
    assert {letter["reason"] for letter in letters} <= {reason.value for reason in Reason}
    assert all(letter["failure"]["detail"] for letter in letters)
    sent = {item["request"] for item in stack.aws.ledger() if item["status"] == "sent"}
    ended = Counter(letter["body"] for letter in letters)
    ended += Counter(body for body in bodies if body in sent)
    assert ended == Counter(bodies)


def a_body(**changes: Any) -> str:
    return json.dumps(a_request(**changes))


def template(**parts: Any) -> dict[str, Any]:
    return {"name": "order_shipped", "language": "pt_BR"} | parts


def wrapped(body: str, times: int = 1) -> str:
    for _ in range(times):
        body = json.dumps({"Type": "Notification", "TopicArn": "arn", "Message": body})
    return body


def deep(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


NO_JSON = [
    " ",
    "\n",
    "\t\r\n",
    "nul",
    "\ufeff",
    "\ufeff" + a_body(),
    "'{}'",
    "{'id': 'a'}",
    "{id: 1}",
    '{"id": "a",}',
    "// comment\n{}",
    "{} {}",
    "{}\n{}",
    a_body() + "x",
    a_body()[:-1],
    a_body()[1:],
    '{"a": NaN}',
    '{"a": Infinity}',
    '{"a": "\\ud800"}',
    '{"a": "\\udc00\\ud800"}',
    '{"a": "\\x00"}',
    '{"a": "line\nbreak"}',
    "{" * 5000,
    "[" * 100_000,
    deep(5000),
    '"' * 1001,
    "<?xml version='1.0'?><request/>",
    "<!DOCTYPE html>",
    base64.b64encode(a_body().encode()).decode(),
    a_body().encode().decode("utf-16-le", "replace"),
    "id=order-981&to=%2B5531999998888",
    "%s%n%x{0}{request}${jndi:ldap://127.0.0.1/a}",
    "'; DROP TABLE ledger; --",
    "🤷" * 1000,
    "\u202e\u200b\u2028\u2029",
    "x" * 262_144,
]
NO_REQUEST = [
    "null",
    "true",
    "0",
    "-0.0",
    "1e308",
    "9" * 4000,
    '""',
    "[]",
    "[{}]",
    "{}",
    deep(100),
    '{"": ""}',
    '{"__proto__": {"id": "a"}}',
    '{"id": null, "to": null, "template": null}',
    '{"id": {}, "to": [], "template": 7}',
    '{"id": "a", "id": "b"}',
    a_body(id=""),
    a_body(id="../../etc/passwd"),
    a_body(id="a" * 129),
    a_body(id="ação"),
    a_body(id="a\n"),
    a_body(id="\x00"),
    a_body(id=7),
    a_body(to=""),
    a_body(to="5531999998888"),
    a_body(to="+"),
    a_body(to="+55319999988889999999"),
    a_body(to="+" + "9" * 10_000),
    a_body(to="+\uff15\uff15\uff13\uff11\uff19\uff19\uff19\uff19\uff19\uff18\uff18\uff18\uff18"),
    a_body(to=5531999998888),
    a_body(template=None),
    a_body(template=template(body=["", "981"])),
    a_body(template=template(body=["a\nb"])),
    a_body(template=template(body=["a" + " " * 5 + "b"])),
    a_body(template=template(body=["\x00\x01\x02"], buttons=[{}] * 11)),
    a_body(template=template(body={"A": "b"})),
    a_body(template=template(body=[1, 2.5, None, True, {}, []])),
    a_body(template=template(name="a" * 513)),
    a_body(template=template(header={"type": "image", "link": "javascript:alert(1)"})),
    a_body(template=template(header={"type": "video", "link": "https://youtu.be/WU9gzjhyrcc"})),
    a_body(template=template(components=[[[[[]]]]])),
    a_body(template=template(components=[{"type": "body", "x": "y" * 70_000}])),
    a_body(bot="a/b"),
    a_body(bot=""),
    a_body(bot="x" * 65),
    a_body(bot="nobody"),
    a_body(valid_until="tomorrow"),
    a_body(valid_until="9999-99-99T99:99:99Z"),
    a_body(valid_until="0001-01-01T00:00:00+23:59"),
    a_body(valid_until=10**30),
    a_body(if_unknown="perhaps"),
    a_body(metadata={"a": 1}),
    a_body(metadata={str(number): "x" for number in range(11)}),
    a_body(metadata={"": "x"}),
    a_body(unknown="field"),
    a_body(**{"+5531999998888": "Maria"}),
    wrapped(a_body(), 4),
    wrapped("not JSON"),
    wrapped("[]", 2),
    '{"Type": "Notification"}',
    '{"Type": "Notification", "Message": null}',
    '{"detail-type": "x", "detail": "text"}',
    '{"specversion": "1.0"}',
    '{"specversion": "1.0", "data": null}',
    '{"specversion": "1.0", "data_base64": "!"}',
    '{"specversion": "2.0", "data": {}}',
]


def good_ones() -> list[str]:
    """Return valid requests in unusual forms."""
    plain = a_request(metadata={"ключ": "значение", "emoji": "🎉", "empty": ""})
    indented = json.dumps(plain, indent=8, ensure_ascii=False)
    everything = "\u0001 \u00a0ação 🎉 \u202e txt %s {0} ${x} </script> ' \" \\ &amp;"
    return [
        indented,
        " \n\t" + a_body() + "\r\n ",
        a_body(to=" +55 (31) 9\u20119999\u20138888 "),
        a_body(template=template(body=[everything, "9" * 1000])),
        a_body(template=template(body=["a", "b"]), valid_until="2099-12-31T23:59:59.999999+14:00"),
        a_body(id="." * 128),
        a_body(id="~:_-." + str(uuid4())),
        wrapped(a_body(), 3),
        json.dumps({"detail-type": "x", "source": "y", "detail": a_request()}),
        json.dumps(
            {
                "specversion": "1.0",
                "data_base64": base64.b64encode(a_body().encode()).decode(),
            }
        ),
        a_body(template=template(components=[{"type": "body", "deep": json.loads(deep(60))}])),
        a_body(template=template(components=[{"type": "body", "number": 1.7e308}])),
        a_body(template=template(body=["x" * 60_000, "y"])),
        a_body(template=template(body={"a" * 5000: "b"})),
        a_body().replace("Maria", "\\u004d\\u0061\\ud83c\\udf89"),
        a_body().replace('{"id"', '{"bot": "nobody", "bot": "default", "id"', 1),
    ]


def test_corpus_of_malformed_bodies_ends_in_dead_letters_or_sends(unhurried: Stack) -> None:
    corpus = [*NO_JSON, *NO_REQUEST, *good_ones()]
    assert len(set(corpus)) == len(corpus)
    for start in range(0, len(corpus), 10):
        handle(unhurried, corpus[start : start + 10])

    assert len(unhurried.blip.inbox()) == len(good_ones())


def test_corpus_is_refused_with_the_right_reason(unhurried: Stack) -> None:
    """What is no JSON object is malformed; what is one is read to the end."""
    for body in ("nul", "[]", '{"a": NaN}', "[" * 100_000):
        unhurried.deliver(body)
        assert [letter["reason"] for letter in unhurried.aws.dead_letters()] == ["malformed"]
    for body in ("{}", a_body(to="+"), a_body(metadata={"a": 1})):
        unhurried.deliver(body)
        assert [letter["reason"] for letter in unhurried.aws.dead_letters()] == ["invalid"]


@pytest.mark.parametrize(
    "attribute",
    [
        {"stringValue": "9" * 1000, "dataType": "Number"},
        {"stringValue": "-1", "dataType": "Number"},
        {"stringValue": "one\n", "dataType": "String"},
        {"binaryValue": "AAAA", "dataType": "Binary"},
        {},
    ],
    ids=str,
)
def test_unusual_attributes_are_ignored(unhurried: Stack, attribute: dict[str, str]) -> None:
    handle(unhurried, [a_body(), "not JSON"], generation=attribute, redrives=attribute, x=attribute)


def accepted_by_sqs(text: str) -> bool:
    """Return whether SQS accepts a text: at least one character, and only those of XML 1.0."""
    return bool(text) and all(
        letter in "\t\n\r"
        or " " <= letter <= "\ud7ff"
        or "\ue000" <= letter <= "\ufffd"
        or letter >= "\U00010000"
        for letter in text
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["id", "to", "template", "bot", "valid_until", "if_unknown", "metadata", "x"]
)


@st.composite
def nearly_requests(draw: st.DrawFn) -> str:
    """Return a valid request with a random change, which may leave it valid."""
    body = a_request()
    place = draw(st.sampled_from([body, body["template"]]))
    place[draw(FIELDS | st.sampled_from(list(body["template"])))] = draw(VALUES)
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    cut = draw(st.integers(0, len(text)))
    return draw(
        st.sampled_from(
            [text, text, text, text[:cut], text[:cut] + text[cut + 1 :], wrapped(text), text * 2]
        )
    )


BODIES = st.one_of(
    st.text(min_size=1),
    st.binary(min_size=1).map(lambda data: data.decode("latin-1")),
    st.binary(min_size=1).map(lambda data: data.decode("utf-8", "replace")),
    st.binary(min_size=2).map(lambda data: data.decode("utf-16", "replace")),
    st.binary(min_size=1).map(lambda data: base64.b64encode(data).decode()),
    VALUES.map(json.dumps),
    nearly_requests(),
    nearly_requests(),
).filter(accepted_by_sqs)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(bodies=st.lists(BODIES, min_size=1, max_size=10))
def test_any_bodies_end_in_dead_letters_or_sends(unhurried: Stack, bodies: list[str]) -> None:
    handle(unhurried, bodies)
