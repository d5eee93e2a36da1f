"""A one-time code: what it may be, what it stands beside, and where it is not."""

import json
from dataclasses import replace
from typing import Any

import pytest

from notifier.contract.parse import parse, read_kept
from notifier.contract.template import CODE_REMOVED
from notifier.domain.notification import REMOVED
from tests.support.builders import PHONE, a_notification
from tests.unit.contract.helpers import LINK, Json, refused, request, with_template
from tests.unit.contract.test_documents import REQUEST_VALIDATOR

CODE = "418205"


def of_code(code: str = CODE, **fields: Any) -> Json:
    return with_template(otp=code) | fields


@pytest.mark.parametrize("code", ["1234", CODE, "aB3dE", "x" * 15])
def test_code_of_4_to_15_letters_and_digits_is_accepted(code: str) -> None:
    content = of_code(code)
    assert parse(json.dumps(content)).request.template.otp == code
    REQUEST_VALIDATOR.validate(content)


@pytest.mark.parametrize(
    "code", ["", "123", "x" * 16, "12 34", "12-34", "1234\n", "ação1", "\u0661\u0662\u0663\u0664"]
)
def test_any_other_code_is_refused_without_showing_it(code: str) -> None:
    content = of_code(code)
    (error,) = refused(json.dumps(content)).fields
    assert (error.field, error.problem) == ("template.otp", "must be 4 to 15 letters and digits")
    assert not REQUEST_VALIDATOR.is_valid(content)


@pytest.mark.parametrize("code", [123456, ["1234"], {"code": "1234"}, True])
def test_code_is_a_text(code: object) -> None:
    content = with_template(otp=code)
    (error,) = refused(json.dumps(content)).fields
    assert (error.field, error.problem) == ("template.otp", "must be 4 to 15 letters and digits")
    assert not REQUEST_VALIDATOR.is_valid(content)


@pytest.mark.parametrize(
    "beside",
    [
        {"header": {"type": "image", "link": LINK}},
        {"body": ["1234"]},
        {"body": []},
        {"buttons": [{"type": "url", "text": "1234"}]},
        {"components": [{"type": "body"}]},
    ],
    ids=["header", "body", "empty body", "buttons", "components"],
)
def test_code_stands_beside_no_other_part(beside: Json) -> None:
    content = with_template(otp=CODE, **beside)
    (error,) = refused(json.dumps(content)).fields
    assert error.field == "template"
    assert error.problem.startswith("has otp beside header, body, buttons or components")
    assert not REQUEST_VALIDATOR.is_valid(content)


def test_code_stands_beside_parts_that_are_left_out() -> None:
    content = with_template(otp=CODE, header=None, body=None, buttons=[], components=None)
    assert parse(json.dumps(content)).request.template.otp == CODE
    REQUEST_VALIDATOR.validate(content)
    without = with_template(otp=None, body=["Maria"])
    assert parse(json.dumps(without)).request.template.otp is None
    REQUEST_VALIDATOR.validate(without)


def test_removed_code_is_refused_with_the_way_out() -> None:
    (error,) = refused(json.dumps(of_code(REMOVED))).fields
    assert (error.field, error.problem) == ("template.otp", CODE_REMOVED)


# --- Content --------------------------------------------------------------------------------------


def content_hash(content: Json) -> str:
    return parse(json.dumps(content)).content_hash


def test_code_is_no_part_of_the_content() -> None:
    first = content_hash(of_code())
    assert content_hash(of_code("999999")) == first
    assert content_hash(of_code(correlation_id="a")) == first
    assert content_hash(of_code(valid_until="2099-01-01T00:00:00Z")) != first
    assert content_hash(request()) != first


def test_code_is_in_no_representation() -> None:
    parsed = parse(json.dumps(of_code()))
    assert CODE not in repr(parsed)
    assert CODE not in str(parsed.request)


# --- What is kept ---------------------------------------------------------------------------------


def test_kept_body_is_the_request_without_the_code() -> None:
    content = of_code(to="+55 (31) 99999-8888", metadata={"a": "b"})
    notification = a_notification(**content)
    kept = json.loads(notification.kept_body)
    assert CODE not in notification.kept_body
    assert kept == content | {"to": PHONE, "template": content["template"] | {"otp": REMOVED}}


def test_kept_body_of_a_wrapped_request_is_the_request_itself() -> None:
    content = of_code(valid_until="2099-01-01T00:00:00-03:00")
    wrapped = {"Type": "Notification", "TopicArn": "arn", "Message": json.dumps(content)}
    queued = replace(a_notification().queued, body=json.dumps(wrapped))
    notification = a_notification(queued)
    assert CODE not in notification.kept_body
    kept = json.loads(notification.kept_body)
    assert kept["template"]["otp"] == REMOVED
    assert kept["valid_until"] == "2099-01-01T03:00:00Z"


def test_kept_body_of_any_other_request_is_as_it_came() -> None:
    notification = a_notification()
    assert notification.kept_body == notification.queued.body


def test_kept_request_without_its_code_can_still_be_read() -> None:
    kept = read_kept(a_notification(**of_code(metadata={"a": "b"})).kept_body)
    assert kept is not None
    assert not kept.is_whole
    assert (kept.request.to, kept.request.metadata) == (PHONE, {"a": "b"})
    template = kept.request.template
    assert (template.name, template.language) == ("order_shipped", "pt_BR")
    assert template.otp is None


def test_kept_request_of_any_other_kind_is_whole() -> None:
    notification = a_notification()
    kept = read_kept(notification.kept_body)
    assert kept is not None
    assert kept.is_whole
    assert kept.request == notification.request


@pytest.mark.parametrize(
    "body", ["{", json.dumps(of_code("12")), json.dumps(of_code(REMOVED, to="12"))]
)
def test_kept_request_that_breaks_the_contract_is_none(body: str) -> None:
    assert read_kept(body) is None


def test_code_is_valid_for_ten_minutes_if_the_request_does_not_say() -> None:
    notification = a_notification(**of_code())
    assert notification.valid_until == notification.queued.published_at + 600
    until = a_notification(**of_code(valid_until="2099-01-01T00:00:00Z"))
    assert until.valid_until == until.request.valid_until.timestamp()  # type: ignore[union-attr]
    assert a_notification().valid_until is None
