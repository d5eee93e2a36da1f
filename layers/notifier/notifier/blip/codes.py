"""What BLiP's answers mean: one table for messages, one for commands, both by LIME's codes.

What a receipt means stands in `receipts`.

The codes are those of LIME's `ReasonCodes` (takenet/lime-csharp). Not every code can come with
every answer; all are named, so that none is judged by accident.
"""

import re

from notifier.domain.failures import Failure, Misconfigured, Rejected, Throttled, Transient, Unknown

LIME_CODES = {
    1: "general error",
    11: "session error",
    12: "session registration error",
    13: "session authentication failed",
    14: "session unregister failed",
    15: "session: invalid action for the state",
    16: "session negotiation timed out",
    17: "session: invalid negotiation options",
    18: "session: invalid mode",
    21: "validation error",
    22: "empty document",
    23: "invalid MIME type",
    24: "invalid status",
    25: "invalid identity",
    26: "invalid recipients",
    27: "invalid method or URI",
    31: "authorisation error",
    32: "unauthorised sender",
    33: "destination account not found",
    34: "envelope quota exceeded",
    35: "permission required",
    41: "routing error",
    42: "destination not found",
    43: "gateway not found",
    44: "route not found",
    51: "dispatch error",
    60: "invalid list identifier",
    61: "processing error",
    62: "resource not supported",
    63: "method not supported",
    64: "invalid argument",
    65: "invalid session mode",
    66: "not allowed",
    67: "resource not found",
    71: "content type not supported",
    81: "gateway error",
    82: "gateway: content type not supported",
    83: "gateway: destination not found",
    84: "gateway: functionality not supported",
    85: "gateway: request limit reached",
    86: "gateway: operation timed out",
    87: "destination blocked the sender",
    101: "application error",
}

# A refused message. 1, 86 and 101 don't say on which side of the hand-over they happened.
MESSAGE: dict[int, type[Failure]] = {
    **dict.fromkeys((1, 86, 101), Unknown),
    **dict.fromkeys((16, 41, 44, 51, 61, 81, 85), Transient),
    34: Throttled,
    **dict.fromkeys((11, 12, 13, 14, 15, 17, 18, 31, 32, 35, 43), Misconfigured),
    **dict.fromkeys((21, 22, 23, 24, 25, 26, 27, 33, 42), Rejected),
    **dict.fromkeys((60, 62, 63, 64, 65, 66, 67, 71, 82, 83, 84, 87), Rejected),
}

# A failed command: a look-up, a question, a ping. It sends nothing, so nothing about it is
# unknown. What is permanent for the number stands in NOT_A_PHONE_NUMBER below.
COMMAND: dict[int, type[Failure]] = {
    **dict.fromkeys((1, 16, 41, 44, 51, 61, 81, 85, 86, 101), Transient),
    34: Throttled,
    **dict.fromkeys((11, 12, 13, 14, 15, 17, 18, 31, 32, 33, 35, 43), Misconfigured),
    **dict.fromkeys((62, 63, 65, 66, 82, 84), Misconfigured),
    **dict.fromkeys((21, 22, 23, 24, 25, 26, 27, 42, 60, 71, 87), Rejected),
    **dict.fromkeys((64, 67, 83), Rejected),
}

# Look-up failures that are BLiP's result on the number itself.
NOT_A_PHONE_NUMBER = frozenset({64, 67, 83})
# 61 on a look-up carries libphonenumber's text when the number is the problem; with any other
# text it is BLiP's own trouble.
PROCESSING_ERROR = 61
PHONE_TEXTS = ("phone number", "default region")
# With 401 or 403 it contradicts the status: a ping shows which of the two is true.
QUOTA_EXCEEDED = 34
# 81 on a look-up, twice: the key belongs to a bot without a WhatsApp channel.
GATEWAY_ERROR = 81


# A question about stored events to which this is the answer has none: the same as an empty list.
NOT_FOUND = 67
# Who answers a ping, or a question for the enriched list of templates, with one of these does not
# know it, but is there and took the key.
NOT_KNOWN = frozenset({62, 63, 67})
# Of a list of templates, which no page describes, that BLiP does not know it may be said so, too.
NO_LIST = NOT_KNOWN | {27, 64, 66, 84}


def about_the_number(code: int | None, description: str) -> bool:
    """Return whether a failed look-up speaks about the number, and not about BLiP or the bot."""
    if code == PROCESSING_ERROR:
        return any(text in description.lower() for text in PHONE_TEXTS)
    return code in NOT_A_PHONE_NUMBER


# What a proxy in front of BLiP says when it did not pass the request on (Envoy's response flags UH,
# UF and UO). Without these words its 502, 503 or 504 may also mean that the answer was lost:
# Envoy answers 503 when the connection ends after the request was written (UC).
# What it says of its last try says nothing of those before ("retried and the latest reset reason").
_NEVER_PASSED_ON = re.compile(
    r"no healthy upstream|(?<!latest )reset reason: (?:(?:remote|local) )?connection failure|"
    r"(?<!latest )reset reason: overflow"
)


def refused_message(status: int, code: int | None, text: str = "") -> type[Failure]:
    """Return what an answer to a message means that is not a 2xx.

    LIME's code decides, where the body has one: LIME has read the message. Else the HTTP status.

    Args:
        status: the HTTP status.
        code: LIME's reason code.
        text: the body, for what a proxy says in plain words.
    """
    if status == 429:
        return Throttled
    if status < 400 or (status in {401, 403} and code == QUOTA_EXCEEDED):
        return Misconfigured
    by_code = MESSAGE.get(code) if code is not None else None
    if by_code is not None:
        return by_code
    if status in {401, 403, 404, 405, 415}:
        return Misconfigured
    if status in {502, 503, 504} and _NEVER_PASSED_ON.search(text):
        return Transient
    return Unknown if status == 408 or status >= 500 else Rejected


def failed_command(status: int, code: int | None) -> type[Failure]:
    """Return what it means that a command did not succeed, by LIME code, then HTTP status."""
    if status == 429:
        return Throttled
    if status >= 500 or status == 408:
        return Transient
    if 300 <= status < 400 or (status in {401, 403} and code == QUOTA_EXCEEDED):
        return Misconfigured
    by_code = COMMAND.get(code) if code is not None else None
    if by_code is not None:
        return by_code
    if status in {401, 403, 404, 405, 415}:
        return Misconfigured
    return Rejected if status >= 400 else Transient
