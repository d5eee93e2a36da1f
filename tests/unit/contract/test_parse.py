"""From the body of a message to a request: JSON, sizes and wrappers."""

import base64
import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from notifier.contract.parse import MAX_BODY_BYTES, MAX_REQUEST_BYTES, parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.failures import Reason
from tests.unit.contract.helpers import CURRENCY, LINK, Json, refused, request, with_template

# --- What is malformed ----------------------------------------------------------------------------


MALFORMED: list[tuple[str, str, str]] = [
    ("empty", "", "the body is not JSON: EOF"),
    ("spaces", "   ", "the body is not JSON: EOF"),
    ("plain text", "hello", "the body is not JSON: expected value"),
    ("cut off", '{"id": "a', "the body is not JSON: EOF"),
    ("two objects", "{} {}", "the body is not JSON: trailing characters"),
    ("trailing comma", '{"id": "a",}', "the body is not JSON: "),
    ("single quotes", "{'id': 'a'}", "the body is not JSON: "),
    ("XML", "<request/>", "the body is not JSON: "),
    ("control characters", '{"id": "\x01\x02\x00"}', "the body is not JSON: control character"),
    ("only control characters", "\x00\x01\x1f", "the body is not JSON: "),
    ("byte order mark", "\ufeff{}", "the body starts with a byte order mark: leave it out"),
    ("lone surrogate", '{"id": "\ud800"}', "the body is not UTF-8"),
    ("escaped lone surrogate", '{"id": "\\ud800"}', "the body is not JSON: "),
    ("escaped lone low surrogate", '{"id": "\\udc00"}', "the body is not JSON: "),
    ("NaN", '{"id": NaN}', "the body is not JSON: "),
    ("Infinity", '{"id": Infinity}', "the body is not JSON: "),
    ("-Infinity", '{"id": -Infinity}', "the body is not JSON: "),
    ("infinite", '{"id": 1e999}', "the request holds a number too large for JSON"),
    ("endless number", f'{{"id": {"9" * 5000}}}', "the body is not JSON: number out of range"),
    ("deep list", "[" * 50_000, "the body is not JSON: recursion limit exceeded"),
    ("deep object", '{"a":' * 40_000, "the body is not JSON: recursion limit exceeded"),
    *(
        (f"a JSON value: {text}", text, "the body is not a JSON object")
        for text in ("null", "true", "0", "-1.5e3", '"text"', "[]", "[{}]")
    ),
    ("1 MB", json.dumps(request(metadata={"a": "x" * 2**20})), "the body is larger than 256 KiB"),
    ("1 MB of spaces", " " * 2**20, "the body is larger than 256 KiB"),
    ("1 MB of nothing", "\x00" * 2**20, "the body is larger than 256 KiB"),
]


@pytest.mark.parametrize(
    ("body", "detail"), [pytest.param(*case, id=name) for name, *case in MALFORMED]
)
def test_malformed_body_is_refused_with_its_detail(body: str, detail: str) -> None:
    refusal = refused(body)
    assert refusal.reason is Reason.MALFORMED
    assert refusal.detail.startswith(detail)
    assert refusal.fields == ()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"id": "a", "id": "b"}', id="equal names"),
        pytest.param('{"\\u0000": "\\u0000"}', id="null character"),
        pytest.param(f'{{"id": {"9" * 4000}}}', id="4000 digits"),
        pytest.param('{"id": 1e-999}', id="almost zero"),
        pytest.param(json.dumps({"": ""}), id="empty name"),
        pytest.param(json.dumps({str(i): i for i in range(5000)}), id="5000 fields"),
    ],
)
def test_unusual_objects_are_invalid(body: str) -> None:
    assert refused(body).reason is Reason.INVALID


def test_last_of_two_equal_names_counts() -> None:
    body = json.dumps(request()).replace('"id"', '"id": "first", "id"', 1)
    assert parse(body).request.id == "order-981"


def sized(size: int) -> Json:
    content = request(template={"name": "a", "language": "en", "components": [{"type": ""}]})
    padding = size - len(json.dumps(content, separators=(",", ":")))
    content["template"]["components"][0]["type"] = "x" * padding
    return content


def test_request_may_have_64_kib_as_compact_json() -> None:
    parse(json.dumps(sized(MAX_REQUEST_BYTES), indent=8))
    refusal = refused(json.dumps(sized(MAX_REQUEST_BYTES + 1)))
    assert refusal.reason is Reason.MALFORMED
    assert refusal.detail == "the request is larger than 64 KiB"


def test_request_size_is_counted_in_bytes() -> None:
    content = request(metadata={"a": "é" * (MAX_REQUEST_BYTES // 2)})
    refusal = refused(json.dumps(content, ensure_ascii=False))
    assert refusal.detail == "the request is larger than 64 KiB"


def test_body_may_have_256_kib() -> None:
    body = json.dumps(request())
    parse(body + " " * (MAX_BODY_BYTES - len(body)))
    assert refused(body + " " * (MAX_BODY_BYTES - len(body) + 1)).reason is Reason.MALFORMED


# --- Wrappers -------------------------------------------------------------------------------------


def sns(content: object) -> Json:
    return {"Type": "Notification", "TopicArn": "arn", "Message": json.dumps(content), "id": "sns"}


def event_bridge(content: object) -> Json:
    return {"detail-type": "Order", "source": "shop", "id": "event", "detail": content}


def cloud_event(content: object) -> Json:
    return {"specversion": "1.0", "id": "ce", "source": "/", "type": "t", "data": content}


def cloud_event_text(content: object) -> Json:
    return cloud_event(json.dumps(content))


def cloud_event_base64(content: object) -> Json:
    event = cloud_event(None)
    del event["data"]
    return event | {"data_base64": base64.b64encode(json.dumps(content).encode()).decode()}


WRAPPERS = [sns, event_bridge, cloud_event, cloud_event_text, cloud_event_base64]
type Wrapper = Callable[[object], Json]


@pytest.mark.parametrize("outer", WRAPPERS)
@pytest.mark.parametrize("inner", [*WRAPPERS, None])
def test_wrappers_are_removed(outer: Wrapper, inner: Wrapper | None) -> None:
    content = request(metadata={"café": "ção"})
    wrapped = outer(inner(content) if inner else content)
    assert parse(json.dumps(wrapped)) == parse(json.dumps(content))


def test_at_most_three_wrappers_are_removed() -> None:
    three = sns(event_bridge(cloud_event(request())))
    parse(json.dumps(three))
    refusal = refused(json.dumps(event_bridge(three)))
    assert refusal.reason is Reason.MALFORMED
    assert refusal.detail == "the body has more than three wrappers around the request"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_invalid_request_in_a_wrapper_is_invalid(wrapper: Wrapper) -> None:
    refusal = refused(json.dumps(wrapper(request(metadata=1))))
    assert refusal.reason is Reason.INVALID
    assert refusal.notification_id == "order-981"
    assert [error.field for error in refusal.fields] == ["metadata"]


@pytest.mark.parametrize(
    ("wrapped", "detail"),
    [
        pytest.param(
            sns(1) | {"Message": request()},
            "the SNS wrapper must have the Type Notification and a Message text",
            id="SNS: object as message",
        ),
        pytest.param(
            {"Type": "Notification", "TopicArn": "arn"},
            "the SNS wrapper must have the Type Notification and a Message text",
            id="SNS: no message",
        ),
        pytest.param(
            {"Type": "SubscriptionConfirmation", "TopicArn": "arn", "Message": "You have chosen"},
            "the SNS wrapper must have the Type Notification and a Message text",
            id="SNS: no notification",
        ),
        pytest.param(
            sns(1) | {"Message": "hello"},
            "the Message of the SNS wrapper is not JSON: expected value at line 1 column 1",
            id="SNS: plain text",
        ),
        pytest.param(
            sns([]), "the Message of the SNS wrapper is not a JSON object", id="SNS: a list"
        ),
        pytest.param(
            sns(1) | {"Message": "\ufeff{}"},
            "the Message of the SNS wrapper starts with a byte order mark: leave it out",
            id="SNS: byte order mark",
        ),
        pytest.param(
            {"detail-type": "a", "source": "b"},
            "the EventBridge wrapper must have a detail-type and a detail object",
            id="EventBridge: no detail",
        ),
        pytest.param(
            event_bridge("{}"),
            "the EventBridge wrapper must have a detail-type and a detail object",
            id="EventBridge: text",
        ),
        pytest.param(
            {"source": "b", "detail": {}},
            "the EventBridge wrapper must have a detail-type and a detail object",
            id="EventBridge: no detail-type",
        ),
        pytest.param(
            cloud_event({}) | {"specversion": "0.3"},
            "the CloudEvents wrapper must have the specversion 1.0",
            id="CloudEvents: old",
        ),
        pytest.param(
            cloud_event({}) | {"specversion": 1.0},
            "the CloudEvents wrapper must have the specversion 1.0",
            id="CloudEvents: version as number",
        ),
        pytest.param(
            {"specversion": "1.0"},
            "the CloudEvents wrapper has no data object",
            id="CloudEvents: no data",
        ),
        pytest.param(
            cloud_event(None),
            "the CloudEvents wrapper has no data object",
            id="CloudEvents: null",
        ),
        pytest.param(
            cloud_event({}) | {"data_base64": "e30="},
            "the CloudEvents wrapper has both data and data_base64",
            id="CloudEvents: twice",
        ),
        pytest.param(
            cloud_event("hello"),
            "the data of the CloudEvents wrapper is not JSON: expected value at line 1 column 1",
            id="CloudEvents: plain text",
        ),
        *(
            pytest.param(
                {"specversion": "1.0", "data_base64": text},
                "the data_base64 of the CloudEvents wrapper is not base64",
                id=f"CloudEvents: {name}",
            )
            for name, text in {"cut base64": "e30", "no base64": "{}", "accents": "ção="}.items()
        ),
        pytest.param(
            {"specversion": "1.0", "data_base64": base64.b64encode(b'"\xff"').decode()},
            "the data_base64 of the CloudEvents wrapper is not JSON: invalid unicode code point"
            " at line 1 column 3",
            id="CloudEvents: bytes that are no UTF-8",
        ),
    ],
)
def test_broken_wrapper_is_malformed_and_the_detail_says_why(wrapped: Json, detail: str) -> None:
    refusal = refused(json.dumps(wrapped))
    assert refusal.reason is Reason.MALFORMED
    assert refusal.detail == detail


# --- Whatever the body is -------------------------------------------------------------------------


RICH = with_template(
    namespace="a",
    header={"type": "document", "link": LINK, "filename": "a.pdf"},
    body=["Maria", CURRENCY, {"type": "date_time", "fallback_value": "hoje"}],
    buttons=[{"type": "quick_reply", "payload": "x", "index": 3}, {"type": "url", "text": "x"}],
) | {
    "bot": "default",
    "valid_until": "2031-11-22T18:00:00-03:00",
    "if_unknown": "fail",
    "metadata": {"order": "981"},
}


def judged(body: str) -> InvalidRequest | None:
    """Return the refusal; anything else that comes out of `parse` fails the calling test."""
    try:
        parse(body)
    except InvalidRequest as error:
        refusal = error
    else:
        return None
    assert refusal.reason in {Reason.MALFORMED, Reason.INVALID}
    assert (refusal.reason is Reason.INVALID) == bool(refusal.fields)
    assert "\n" not in refusal.detail
    for broken in refusal.fields:
        assert not broken.problem.startswith(("Input", "Value"))  # pydantic's own sentences
        assert "\0" not in broken.field
    return refusal


def test_rich_request_is_valid() -> None:
    assert judged(json.dumps(RICH)) is None


@given(st.text(alphabet=st.characters()))
@example("\udfff")
def test_any_text_is_parsed_or_refused(body: str) -> None:
    judged(body)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_any_json_is_parsed_or_refused(value: object) -> None:
    judged(json.dumps(value))


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    entries: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    return [path, *(found for key, entry in entries for found in places(entry, (*path, key)))]


def replaced(path: tuple[str | int, ...], value: object) -> object:
    if not path:
        return value
    content: Any = deepcopy(RICH)
    target = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return content


@given(st.sampled_from(places(RICH)), JSON_VALUES)
def test_any_json_anywhere_in_a_request_is_parsed_or_refused(
    path: tuple[str | int, ...], value: object
) -> None:
    judged(json.dumps(replaced(path, value)))


@given(st.sampled_from(WRAPPERS), JSON_VALUES)
def test_any_json_in_a_wrapper_is_parsed_or_refused(wrapper: Wrapper, value: object) -> None:
    judged(json.dumps(wrapper(value)))


CANARY = "Zuleica 98765 4321"


@pytest.mark.parametrize("value", [CANARY, [CANARY], {CANARY: CANARY}, {"type": CANARY}])
@pytest.mark.parametrize("path", places(RICH), ids=str)
def test_errors_hold_no_value_of_the_request(path: tuple[str | int, ...], value: object) -> None:
    refusal = judged(json.dumps(replaced(path, value)))
    if refusal is not None:
        text = f"{refusal.detail} {refusal.fields} {refusal.notification_id} {refusal.template}"
        assert not any(word in text for word in CANARY.split())
