"""LIME, as BLiP speaks it over HTTP: well-formed envelopes, and the reasons for refusing others."""

import json
import re
from typing import Any

type Json = dict[str, Any]

SERVER = "postmaster@msging.net"
GATEWAY = "postmaster@wa.gw.msging.net"
WHATSAPP_DOMAIN = "wa.gw.msging.net"

DESCRIPTIONS = {
    1: "General error",
    13: "Invalid authorization header",
    16: "The session negotiation timed out",
    21: "The envelope is not valid",
    22: "The document is empty",
    23: "The MIME type is not valid",
    24: "The status is not valid",
    25: "The node is not valid",
    26: "The recipients are not valid",
    27: "The method or the URI is not valid",
    31: "Authorization error",
    32: "The sender is not authorized",
    33: "The destination account was not found",
    34: "The envelope quota threshold has been exceeded",
    35: "A permission is required",
    41: "Routing error",
    42: "Destination not found",
    43: "Gateway not found",
    44: "Route not found",
    51: "Dispatch error",
    61: "The string supplied did not seem to be a phone number.",
    62: "The resource is not supported",
    63: "The method is not supported",
    64: "An argument is not valid",
    66: "The command is not allowed",
    67: "The resource was not found",
    71: "The message content type is not supported",
    81: "Gateway error",
    82: "The content type is not supported by the gateway",
    83: "The destination was not found in the gateway",
    84: "The functionality is not supported by the gateway",
    85: "The gateway request limit was reached",
    86: "The gateway switch operation timed out",
    87: "The destination has blocked the originator",
    101: "Application error",
}

METHODS = frozenset({"get", "set", "merge", "delete", "subscribe", "unsubscribe", "observe"})
EVENTS = frozenset(
    {"accepted", "dispatched", "received", "consumed", "failed", "deleted"}
    | {"authorized", "validated"}  # obsolete, but part of LIME
)

_NODE = re.compile(r"(?:([^\"&'/:<>@]{1,1023})@)?([^/@]{1,1023})(?:/(.{1,1023}))?")
_MIME = re.compile(r"[-\w]+/[-\w.]+(\+\w+)?", re.ASCII)
_COMMON = frozenset({"id", "from", "pp", "to", "metadata"})
_MEMBERS = {
    "/messages": _COMMON | {"type", "content"},
    "/notifications": _COMMON | {"event", "reason"},
    "/commands": _COMMON | {"method", "uri", "type", "resource", "status", "reason"},
}


class InvalidEnvelopeError(Exception):
    """An envelope that BLiP refuses with 400 (401 for a foreign sender) and a bare reason."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.reason = reason(code, description)
        self.status = 401 if code == 32 else 400


def reason(code: int, description: str | None = None) -> Json:
    return {"code": code, "description": description or DESCRIPTIONS.get(code, f"Reason {code}")}


def parse(path: str, body: bytes, bot: str) -> Json:
    """Read the envelope posted to `path` by `bot`, an identity, or raise InvalidEnvelopeError."""
    try:
        envelope = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidEnvelopeError(21, "The body is not JSON in UTF-8") from None
    if not isinstance(envelope, dict):
        raise InvalidEnvelopeError(21, "The body is not an envelope")
    foreign = envelope.keys() - _MEMBERS[path]
    if foreign:
        names = ", ".join(sorted(foreign))
        raise InvalidEnvelopeError(21, f"An envelope for {path} has no member {names}")
    _check_common(envelope)
    sender = envelope.get("from")
    if sender is not None and sender.partition("/")[0] != bot:
        raise InvalidEnvelopeError(32, DESCRIPTIONS[32])
    _CHECKS[path](envelope)
    return envelope


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _check_common(envelope: Json) -> None:
    identifier = envelope.get("id")
    if "id" in envelope and not (isinstance(identifier, str) and identifier):
        raise InvalidEnvelopeError(21, "The id is not a string")
    for member in ("from", "pp", "to"):
        if member in envelope:
            node = envelope[member]
            if not isinstance(node, str) or not _NODE.fullmatch(node):
                raise InvalidEnvelopeError(25, f"'{member}' is not a node")
    metadata = envelope.get("metadata", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidEnvelopeError(21, "The metadata is not an object of strings")


def _check_message(envelope: Json) -> None:
    if "to" not in envelope:
        raise InvalidEnvelopeError(26, "A message needs 'to'")
    _check_document(envelope, "content")


def _check_document(envelope: Json, member: str) -> None:
    mime = envelope.get("type")
    if not isinstance(mime, str) or not _MIME.fullmatch(mime):
        raise InvalidEnvelopeError(23, "'type' is missing or not a MIME type")
    content = envelope.get(member)
    if content is None:
        raise InvalidEnvelopeError(22, f"'{member}' is missing")
    if mime.endswith("json") != isinstance(content, dict | list):
        raise InvalidEnvelopeError(21, f"'{member}' is not what its type says")


def _check_notification(envelope: Json) -> None:
    if "id" not in envelope:
        raise InvalidEnvelopeError(21, "A notification needs the id of its message")
    if envelope.get("event") not in EVENTS:
        raise InvalidEnvelopeError(21, "The event is missing or unknown")
    if envelope["event"] == "failed" and not isinstance(envelope.get("reason"), dict):
        raise InvalidEnvelopeError(21, "A failed notification needs a reason")


def _check_command(envelope: Json) -> None:
    method = envelope.get("method")
    if method not in METHODS:
        raise InvalidEnvelopeError(27, "The method is missing or not one of LIME's")
    if "id" not in envelope and method != "observe":
        raise InvalidEnvelopeError(21, "A command needs an id")
    if "status" in envelope or "reason" in envelope:
        raise InvalidEnvelopeError(24, "A request has neither status nor reason")
    if not isinstance(envelope.get("uri"), str):
        raise InvalidEnvelopeError(27, "A command needs a URI")
    if method in {"set", "merge", "observe"}:
        _check_document(envelope, "resource")


_CHECKS = {
    "/messages": _check_message,
    "/notifications": _check_notification,
    "/commands": _check_command,
}
