"""Reads a message body into a request that keeps to the contract, or says what is wrong with it."""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from notifier.contract.problems import InvalidRequest, invalid, malformed
from notifier.contract.request import NotificationRequest
from notifier.contract.template import CODE_REMOVED
from notifier.domain.notification import REMOVED

MAX_REQUEST_BYTES = 64 * 1024
MAX_BODY_BYTES = 256 * 1024
MAX_WRAPPERS = 3


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request that keeps to the contract.

    Attributes:
        request: what it asks for, with the recipient in E.164.
        content_hash: of the producer's own object without its wrappers and its correlation id, so
            that a later release of this contract does not change it. It distinguishes a
            repetition from another content under the same id. A one-time code is left out: it has
            so few digits that the hash would give it away.
    """

    request: NotificationRequest
    content_hash: str


def parse(body: str) -> Parsed:
    """Read a message body: take off its wrappers, then hold it to the contract.

    Raises:
        InvalidRequest: it is malformed (not UTF-8, not a JSON object, too large, a broken
            wrapper), or invalid, with every broken field.
    """
    content = _unwrapped(body)
    try:
        canonical = _canonical(content)
    except ValueError:
        raise malformed("the request holds a number too large for JSON", content) from None
    if len(canonical) > MAX_REQUEST_BYTES:
        raise malformed("the request is larger than 64 KiB", content)
    try:
        request = NotificationRequest.model_validate(content)
    except ValidationError as error:
        raise invalid(error, content) from None
    if "correlation_id" in content or request.template.otp is not None:
        hashed = {k: v for k, v in content.items() if k != "correlation_id"}
        if request.template.otp is not None:
            hashed["template"] = content["template"] | {"otp": REMOVED}
        canonical = _canonical(hashed)
    return Parsed(request, f"1:{hashlib.sha256(canonical).hexdigest()}")


@dataclass(frozen=True, slots=True)
class Kept:
    """A request as the ledger or a dead letter keeps it.

    Attributes:
        request: without the one-time code that is not kept.
        is_whole: False if a code is missing, so that it cannot be sent.
    """

    request: NotificationRequest
    is_whole: bool


def read_kept(body: str) -> Kept | None:
    """Read a request that was kept; None if the contract has changed since, or there is none."""
    try:
        return Kept(parse(body).request, is_whole=True)
    except InvalidRequest as refused:
        if [error.problem for error in refused.fields] != [CODE_REMOVED]:
            return None
    content = _unwrapped(body)
    template = {name: part for name, part in content["template"].items() if name != "otp"}
    request = NotificationRequest.model_validate(content | {"template": template})
    return Kept(request, is_whole=False)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _unwrapped(body: str) -> dict[str, Any]:
    try:
        encoded = body.encode()
    except UnicodeEncodeError:
        raise malformed("the body is not UTF-8") from None
    if len(encoded) > MAX_BODY_BYTES:
        raise malformed("the body is larger than 256 KiB")
    content = _json_object(encoded, "the body")
    for _ in range(MAX_WRAPPERS):
        inner = _taken_off(content)
        if inner is None:
            return content
        content = inner
    if _taken_off(content) is not None:
        raise malformed("the body has more than three wrappers around the request")
    return content


def _taken_off(content: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a wrapper holds, None for what is no wrapper."""
    match content:
        case {"Type": "Notification", "Message": str(message)}:
            return _json_object(message.encode(), "the Message of the SNS wrapper")
        case {"TopicArn": _} | {"Type": "Notification"}:
            raise malformed("the SNS wrapper must have the Type Notification and a Message text")
        case {"detail-type": _, "detail": dict(detail)}:
            return detail
        case {"detail-type": _} | {"detail": _, "source": _}:
            raise malformed("the EventBridge wrapper must have a detail-type and a detail object")
        case {"specversion": version}:
            if version != "1.0":
                raise malformed("the CloudEvents wrapper must have the specversion 1.0")
            return _cloud_event_data(content)
        case _:
            return None


def _cloud_event_data(event: dict[str, Any]) -> dict[str, Any]:
    match event:
        case {"data": _, "data_base64": _}:
            raise malformed("the CloudEvents wrapper has both data and data_base64")
        case {"data": dict(data)}:
            return data
        case {"data": str(text)}:
            return _json_object(text.encode(), "the data of the CloudEvents wrapper")
        case {"data_base64": str(encoded)}:
            what = "the data_base64 of the CloudEvents wrapper"
            try:
                return _json_object(base64.b64decode(encoded, validate=True), what)
            except ValueError:
                raise malformed(f"{what} is not base64") from None
        case _:
            raise malformed("the CloudEvents wrapper has no data object")


def _json_object(text: bytes, what: str) -> dict[str, Any]:
    if text.startswith(b"\xef\xbb\xbf"):
        raise malformed(f"{what} starts with a byte order mark: leave it out")
    try:
        content = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise malformed(f"{what} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise malformed(f"{what} is not a JSON object")
    return content
