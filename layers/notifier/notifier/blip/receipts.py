"""What BLiP reports later about a message: LIME's "notifications", here called receipts.

    {"id": "<message id>", "from": "…", "to": "…", "event": "failed",
     "reason": {"code": 131026, "description": "…"}}

They come more than once and in any order. On their way through routers the id gets `fwd:` in
front (docs.blip.ai, notifications; seen in public code). Codes come in three families: LIME's (up
to 101), WhatsApp's on-premises API (400 to 2999) and its Cloud API (above, and a few small ones);
WhatsApp's may stand in the description alone, behind a LIME code.
"""

import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from notifier.blip.codes import LIME_CODES
from notifier.domain.receipts import FailureKind, Receipt
from notifier.domain.status import Status

_EVENTS = {
    "accepted": Status.ACCEPTED,
    "dispatched": Status.DISPATCHED,
    "received": Status.RECEIVED,
    "consumed": Status.CONSUMED,
    "failed": Status.FAILED,
}
# LIME knows these too; they say nothing about delivery. The first two are obsolete.
_OTHER_EVENTS = frozenset({"validated", "authorized", "deleted"})

# Our message ids are UUIDs of version 5; the bot's other messages mostly have version 4.
_OURS = re.compile(
    r"([0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})"
    r"(?::([1-9][0-9]{0,8}))?"
)
# As WhatsApp writes it, `(#131026) …`, or a number that can hardly be anything else.
_CODE_INSIDE = re.compile(r"(?<=#)[0-9]{1,6}\b|\b(?:13[0-9]{4}|80007)\b")
# LIME's codes, and WhatsApp's that share their range, say less than a code in the description.
_LARGEST_VAGUE_CODE = 101
_LARGEST_CODE = 10**9


class Envelope(Enum):
    """What kind of LIME envelope comes to the webhook."""

    RECEIPT = auto()
    OTHER = auto()  # an inbound message, a command: not for us, and no mistake
    INVALID = auto()


def kind(document: object) -> Envelope:
    """Return what a webhook's body is; in LIME its members say so."""
    if not isinstance(document, dict):
        return Envelope.INVALID
    if "content" in document:
        return Envelope.OTHER
    if "event" in document:
        event = document["event"]
        if not isinstance(event, str):
            return Envelope.INVALID
        if event in _OTHER_EVENTS:
            return Envelope.OTHER
        named = isinstance(document.get("id"), str)
        return Envelope.RECEIPT if event in _EVENTS and named else Envelope.INVALID
    if "method" in document or "state" in document:
        return Envelope.OTHER
    return Envelope.INVALID


def reduced(document: dict[str, Any]) -> dict[str, Any]:
    """Return of a receipt what recording it needs. The recipient's number is not among that."""
    return {name: document[name] for name in ("id", "event", "reason") if name in document}


def receipt(document: object) -> Receipt | None:
    """Read a receipt; None if it is none, or about a message that is not ours."""
    if not isinstance(document, dict) or kind(document) is not Envelope.RECEIPT:
        return None
    ours = _OURS.fullmatch(re.sub(r"^(?:fwd:)+", "", document["id"]))
    if ours is None:
        return None
    key, generation = ours[1], int(ours[2] or 1)
    status = _EVENTS[document["event"]]
    if status is not Status.FAILED:
        return Receipt(key, generation, status)
    code = failure_code(document.get("reason"))
    if code is None:
        return Receipt(key, generation, status, detail="BLiP reports a failure without a code")
    failure_kind, meaning = FAILED.get(code, (FailureKind.PERMANENT, "a code that we do not know"))
    detail = f"BLiP reports reason {code}: {meaning}"
    return Receipt(key, generation, status, failure_kind, code, detail)


def failure_code(reason: object) -> int | None:
    """Return the most specific code: WhatsApp's, if there is one, else LIME's."""
    if not isinstance(reason, dict):
        return None
    code = reason.get("code")
    if not isinstance(code, int) or isinstance(code, bool) or abs(code) > _LARGEST_CODE:
        code = None
    if code is None or code <= _LARGEST_VAGUE_CODE or code not in FAILED:
        inside = [int(text) for text in _CODE_INSIDE.findall(str(reason.get("description", "")))]
        if inside:
            return min(inside, key=lambda one: (one not in FAILED, one <= _LARGEST_VAGUE_CODE))
    return code


def _all(failure_kind: FailureKind, meanings: dict[int, str]) -> Iterable[tuple[int, Any]]:
    return ((code, (failure_kind, meaning)) for code, meaning in meanings.items())


# What follows from the code of a failed receipt. Sources: LIME's ReasonCodes; Meta's error pages
# for the on-premises and the Cloud API; where more follows than a dead letter, it stands beside the
# code. A code that stands nowhere here is for good, too.
FAILED: dict[int, tuple[FailureKind, str]] = dict(
    [
        *_all(FailureKind.PERMANENT, LIME_CODES),
        *_all(
            FailureKind.PERMANENT,
            {
                # Cloud, in the range of LIME's
                0: "WhatsApp did not accept BLiP's token",
                3: "access denied: capability",
                10: "access denied: permission",
                100: "a parameter is not valid",
                190: "BLiP's token for WhatsApp has expired",
                # on-premises
                400: "bad request",
                408: "the message expired",
                410: "the message expired",
                430: "certificate error",
                431: "certificate error",
                432: "certificate error",
                433: "certificate error",
                470: "more than 24 hours since the recipient wrote",
                480: "the recipient's identity has changed",
                500: "WhatsApp's generic error",
                1000: "generic error",
                1001: "message too long",
                1002: "invalid recipient type",
                1004: "resource already exists",
                1005: "access denied",
                1006: "resource not found",
                1007: "recipient blocked",
                1008: "a required parameter is missing",
                1009: "a parameter's value is not valid",
                1010: "a parameter is not required",
                1011: "service not ready",
                1012: "not valid for this type of recipient",
                1014: "internal error",
                1017: "not the primary master",
                1018: "not the primary coreapp",
                1021: "bad user",
                1022: "webhook URL not configured",
                1023: "database error",
                1024: "password change required",
                1025: "invalid request",
                1028: "upload failed",
                2000: "number of parameters differs from the template",
                2001: "the template does not exist",
                2002: "a parameter has a wrong format",
                2003: "the template's media has a wrong format",
                2004: "the template cannot be received",
                2005: "the template's text is too long",
                # Cloud
                130497: "the account may not write to this country",
                131005: "access denied",
                131008: "a required parameter is missing",
                131009: "a parameter's value is not valid",
                131021: "the recipient is the sender",
                131030: "the recipient is not on the test number's list",
                131037: "the display name is not approved",
                131045: "certificate error",
                131047: "more than 24 hours since the recipient wrote",
                131051: "message type not supported",
                131052: "the media cannot be downloaded",
                131053: "the media cannot be uploaded",
                132000: "number of parameters differs from the template",
                132001: "the template does not exist in this language, or is not approved",
                132005: "the template's text is too long",
                132007: "the template's content breaks a WhatsApp policy",
                132008: "a parameter's value is not valid",
                132012: "a parameter has a wrong format",
                132016: "the template is disabled",
                132068: "the flow is blocked",
                132069: "the flow is throttled",
                133010: "the number is not registered",
                133016: "too many registrations of the number",
                135000: "WhatsApp's generic error, often a wrong parameter",
                137000: "the recipient's identity key has changed",
            },
        ),
        *_all(
            FailureKind.RATE_LIMITED,
            {
                4: "rate limit of WhatsApp's application",
                34: "envelope quota exceeded",
                85: "gateway: request limit reached",
                429: "rate limit reached",
                1015: "too many requests",
                80007: "rate limit of the WhatsApp account",
                130429: "rate limit of the number",
                131056: "too many messages to this recipient in a short time",
            },
        ),
        *_all(
            FailureKind.SPORADIC,
            {
                2: "WhatsApp's service is down",
                1016: "WhatsApp is overloaded",
                131000: "WhatsApp's generic error",
                131016: "WhatsApp is not available",
                131057: "the account is under maintenance",
            },
        ),
        *_all(
            FailureKind.CAPPED,
            {
                # Meta's error pages: not delivered for now, nor if sent again at once; pywa's
                # errors: to be tried after longer and longer waits, from a day on
                131049: "WhatsApp limits marketing to this recipient",
                # Meta's page on marketing experiments; on-premises the same
                130472: "the recipient is part of an experiment",
                472: "the recipient is part of an experiment",
            },
        ),
        # BLiP's community (topics 4207, 4410): the limit of marketing shows up as this code, too
        *_all(
            FailureKind.PERHAPS_CAPPED,
            {131026: "the recipient cannot be reached on WhatsApp"},
        ),
        *_all(
            FailureKind.ACCOUNT_LIMITED,
            {
                # Meta's error pages: too many were blocked or reported; on-premises the same
                131048: "spam rate limit of the number",
                471: "spam rate limit of the number",
                # pywa's errors: a penalty on the account for wrongly classified templates
                131064: "messaging limit because of violations of the templates' classification",
                # Meta's error pages: the account has to turn it on
                131063: "marketing templates are not enabled for the Cloud API",
            },
        ),
        # Meta's page on pausing templates: for three or six hours, because of low quality
        *_all(FailureKind.TEMPLATE_PAUSED, {132015: "the template is paused"}),
        # Meta's error pages: the recipient chose to have no marketing of this business
        *_all(FailureKind.OPTED_OUT, {131050: "the recipient stopped marketing messages"}),
        *_all(
            FailureKind.UNREACHABLE,
            {
                33: "destination account not found",
                42: "destination not found",
                83: "gateway: destination not found",
                1013: "the recipient is not on WhatsApp",
                1026: "the recipient cannot receive this message",
                131062: "this kind of recipient is not supported",
            },
        ),
        *_all(
            FailureKind.NUMBER_DOWN,
            {
                368: "the WhatsApp account is blocked for policy violations",
                402: "the WhatsApp account has a payment problem",
                1031: "the WhatsApp account is locked",
                131031: "the WhatsApp account is locked",
                131042: "the WhatsApp account has a payment problem",
            },
        ),
        *_all(FailureKind.POSSIBLY_SENT, {86: "gateway: operation timed out"}),
    ]
)
