"""The outcome table: what each answer of BLiP means, for a message and for a look-up.

Written out from the design, not from the code, and asked of the client whole.
"""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from notifier.blip.client import BlipClient
from notifier.contract.template import Template
from notifier.domain.bots import Bot
from notifier.domain.failures import (
    Failure,
    Misconfigured,
    Reason,
    Rejected,
    Throttled,
    Transient,
    Unknown,
)
from tests.support.builders import KEY, PHONE

BOT = Bot(name="default", base_url="http://127.0.0.1", key=KEY)
TEMPLATE = Template(name="order_shipped", language="pt_BR")

# LIME's reason codes (lime-csharp, ReasonCodes.cs; 60 is in BLiP's documentation only).
LIME = [1, *range(11, 19), *range(21, 28), *range(31, 36), *range(41, 45), 51, *range(60, 68), 71]
LIME += [*range(81, 88), 101]

# What BLiP says about a message, as a bare reason in a 400.
MESSAGE = {
    1: Unknown,
    11: Misconfigured,
    12: Misconfigured,
    13: Misconfigured,
    14: Misconfigured,
    15: Misconfigured,
    16: Transient,
    17: Misconfigured,
    18: Misconfigured,
    21: Rejected,
    22: Rejected,
    23: Rejected,
    24: Rejected,
    25: Rejected,
    26: Rejected,
    27: Rejected,
    31: Misconfigured,
    32: Misconfigured,
    33: Rejected,
    34: Throttled,
    35: Misconfigured,
    41: Transient,
    42: Rejected,
    43: Misconfigured,
    44: Transient,
    51: Transient,
    60: Rejected,
    61: Transient,
    62: Rejected,
    63: Rejected,
    64: Rejected,
    65: Rejected,
    66: Rejected,
    67: Rejected,
    71: Rejected,
    81: Transient,
    82: Rejected,
    83: Rejected,
    84: Rejected,
    85: Transient,
    86: Unknown,
    87: Rejected,
    101: Unknown,
}

# What a look-up fails with, HTTP 200. It sends nothing, so nothing about it is unknown. 81 is not
# here: it takes two of them.
LOOK_UP = {code: kind for code, kind in MESSAGE.items() if code != 81} | {
    1: Transient,
    33: Misconfigured,
    # That BLiP does not do this look-up for this bot says nothing about the number.
    62: Misconfigured,
    63: Misconfigured,
    65: Misconfigured,
    66: Misconfigured,
    82: Misconfigured,
    84: Misconfigured,
    86: Transient,
    101: Transient,
}
ABOUT_THE_NUMBER = {64, 67, 83}

# HTTP statuses, with no body. A message and a look-up.
STATUSES: dict[int, tuple[type[Failure], type[Failure]]] = {
    **dict.fromkeys((300, 301, 302, 303, 304, 307, 308), (Misconfigured, Misconfigured)),
    **dict.fromkeys((401, 403, 404, 405, 415), (Misconfigured, Misconfigured)),
    **dict.fromkeys((400, 402, 406, 409, 410, 411, 412, 413, 414), (Rejected, Rejected)),
    **dict.fromkeys((416, 417, 418, 421, 422, 423, 424, 426, 428), (Rejected, Rejected)),
    **dict.fromkeys((431, 451, 499), (Rejected, Rejected)),
    408: (Unknown, Transient),
    429: (Throttled, Throttled),
    **dict.fromkeys((500, 501, 502, 503, 504, 505, 507, 508, 511), (Unknown, Transient)),
    **dict.fromkeys((520, 522, 524, 599), (Unknown, Transient)),
}

type Handler = Callable[[httpx.Request], httpx.Response]


def at_once() -> None:
    """Wait for no slot."""


def client(handler: Handler) -> BlipClient:
    return BlipClient(1, 10, transport=httpx.MockTransport(handler))


def answering(status: int, document: Any = None) -> Handler:
    if document is None:
        return lambda _: httpx.Response(status)
    return lambda _: httpx.Response(status, json=document)


def send(handler: Handler) -> Failure | None:
    try:
        client(handler).send(BOT, "id", "5531@wa.gw.msging.net", TEMPLATE, at_once)
    except Failure as failure:
        return failure
    return None


def look_up(handler: Handler) -> Failure | str:
    try:
        return client(handler).look_up(BOT, PHONE, at_once)
    except Failure as failure:
        return failure


def failing(code: int | None, description: str = "no text") -> Handler:
    reason = {"description": description} | ({"code": code} if code is not None else {})
    return answering(200, {"method": "get", "status": "failure", "reason": reason})


def in_turn(*handlers: Handler) -> Handler:
    left = list(handlers)

    def handle(request: httpx.Request) -> httpx.Response:
        return left.pop(0)(request)

    return handle


def test_tables_hold_every_lime_code() -> None:
    assert sorted(MESSAGE) == LIME
    assert sorted({*LOOK_UP, 81}) == LIME


@pytest.mark.parametrize(("code", "expected"), MESSAGE.items())
def test_refused_message_fails_as_its_code_says(code: int, expected: type[Failure]) -> None:
    failure = send(answering(400, {"code": code, "description": "no text"}))

    assert type(failure) is expected
    assert failure.code == code


@pytest.mark.parametrize(("code", "expected"), LOOK_UP.items())
def test_failed_look_up_fails_as_its_code_says(code: int, expected: type[Failure]) -> None:
    failure = look_up(failing(code))

    assert type(failure) is expected
    assert failure.code == code
    if isinstance(failure, Rejected):
        about_the_number = failure.reason is Reason.NOT_A_PHONE_NUMBER
        assert about_the_number == (code in ABOUT_THE_NUMBER)


@pytest.mark.parametrize(
    "text",
    [
        "The string supplied did not seem to be a phone number.",
        "The string supplied is too short to be a phone number.",
        "The string supplied is too long to be a phone number.",
        "Missing or invalid default region.",
    ],
)
def test_processing_error_in_libphonenumber_words_concerns_the_number(text: str) -> None:
    failure = look_up(failing(61, text))

    assert isinstance(failure, Rejected)
    assert failure.reason is Reason.NOT_A_PHONE_NUMBER
    assert failure.code == 61


@pytest.mark.parametrize("text", ["", "An error occurred", "The channel is busy"])
def test_processing_error_in_other_words_is_transient(text: str) -> None:
    assert type(look_up(failing(61, text))) is Transient


def test_message_refused_in_libphonenumber_words_is_transient() -> None:
    words = "The string supplied did not seem to be a phone number."

    assert type(send(answering(400, {"code": 61, "description": words}))) is Transient


@pytest.mark.parametrize("status", STATUSES)
def test_http_status_alone_decides_the_failure(status: int) -> None:
    of_message, of_look_up = STATUSES[status]

    message, command = send(answering(status)), look_up(answering(status))

    assert type(message) is of_message
    assert type(command) is of_look_up
    assert message.code == status
    assert isinstance(command, Failure)
    assert command.code == status


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_means_that_the_message_was_accepted(status: int) -> None:
    assert send(answering(status)) is None


@pytest.mark.parametrize("status", [200, 202])
@pytest.mark.parametrize("document", [{}, [], "x", 1, {"status": "failure"}, {"status": None}])
def test_look_up_without_success_is_transient(status: int, document: Any) -> None:
    assert type(look_up(answering(status, document))) is Transient


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 500, 502, 503, 504])
@pytest.mark.parametrize(("code", "expected"), MESSAGE.items())
def test_code_of_a_refused_message_takes_precedence_over_its_status(
    status: int, code: int, expected: type[Failure]
) -> None:
    if code == 34 and status in {401, 403}:
        expected = Misconfigured  # the two contradict each other: a ping decides

    assert type(send(answering(status, {"code": code}))) is expected


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
@pytest.mark.parametrize(("code", "expected"), LOOK_UP.items())
def test_code_of_a_refused_look_up_takes_precedence_over_its_status(
    status: int, code: int, expected: type[Failure]
) -> None:
    if code == 34 and status in {401, 403}:
        expected = Misconfigured

    assert type(look_up(answering(status, {"code": code}))) is expected


@pytest.mark.parametrize("status", [502, 503, 504])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("no healthy upstream", Transient),
        (
            "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            Transient,
        ),
        ("… before headers. reset reason: connection failure", Transient),
        ("… before headers. reset reason: remote connection failure, transport failure", Transient),
        ("… before headers. reset reason: connection termination", Unknown),
        ("… headers. retried and the latest reset reason: connection failure", Unknown),
        ("… headers. retried and the latest reset reason: overflow", Unknown),
        ("… before headers. reset reason: connection timeout", Unknown),
        ("upstream request timeout", Unknown),
        ("<html>Bad Gateway</html>", Unknown),
    ],
)
def test_proxy_text_decides_whether_the_message_was_forwarded(
    status: int, words: str, expected: type[Failure]
) -> None:
    assert type(send(lambda _: httpx.Response(status, text=words))) is expected
    assert type(look_up(lambda _: httpx.Response(status, text=words))) is Transient


def test_proxy_text_counts_only_with_its_own_statuses() -> None:
    assert type(send(lambda _: httpx.Response(500, text="no healthy upstream"))) is Unknown


@pytest.mark.parametrize("code", [1, 86, 101])
def test_status_503_with_an_ambiguous_code_is_an_unknown_outcome(code: int) -> None:
    assert type(send(answering(503, {"code": code}))) is Unknown


@pytest.mark.parametrize("code", [0, -1, 2, 19, 40, 68, 88, 99, 102, 130429, 131056, 10**40])
def test_unknown_code_leaves_the_decision_to_the_status(code: int) -> None:
    assert type(send(answering(400, {"code": code}))) is Rejected
    assert type(send(answering(500, {"code": code}))) is Unknown
    assert type(send(answering(503, {"code": code}))) is Unknown
    # A look-up sends nothing, so it can be repeated.
    assert type(look_up(failing(code))) is Transient
    assert type(look_up(answering(400, {"code": code}))) is Rejected


@pytest.mark.parametrize("reason", [None, "text", 7, [], {}, {"code": "61"}, {"code": None}])
def test_reason_in_an_unknown_form_is_ignored(reason: Any) -> None:
    assert type(send(answering(400, {"reason": reason}))) is Rejected
    assert type(look_up(answering(200, {"status": "failure", "reason": reason}))) is Transient


def test_look_up_without_a_gateway_is_repeated_once() -> None:
    handler = in_turn(failing(81), answering(200, found("5531@wa.gw.msging.net")))

    assert look_up(handler) == "5531@wa.gw.msging.net"


def test_second_look_up_without_a_gateway_means_that_the_bot_has_no_whatsapp() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return failing(81)(request)

    failure = look_up(handler)

    assert type(failure) is Misconfigured
    assert failure.code == 81
    assert len(asked) == 2


def test_second_answer_of_another_kind_is_read_by_itself() -> None:
    for second, expected in ((failing(34), Throttled), (failing(51), Transient)):
        assert type(look_up(in_turn(failing(81), second))) is expected


def found(identity: Any, member: str = "alternativeAccount") -> dict[str, Any]:
    return {"status": "success", "resource": {member: identity}}


@pytest.mark.parametrize("member", ["alternativeAccount", "identity"])
def test_identity_is_returned_unchanged(member: str) -> None:
    for identity in (
        "553199998888@wa.gw.msging.net",
        "0f8e4a52-1c7b-4f0e-9a3b-6d2f5c1e7a90@wa.gw.msging.net",
        "BR.13491208655302741918@wa.gw.msging.net",
    ):
        assert look_up(answering(200, found(identity, member))) == identity


@pytest.mark.parametrize(
    "identity",
    [
        None,
        7,
        "",
        "553199998888",
        "@wa.gw.msging.net",
        "553199998888@msging.net",
        "553199998888@wa.gw.msging.net.example.com",
        "553199998888@wa.gw.msging.net/instance",
        "553199998888@waxgwxmsgingxnet",
        "a b@wa.gw.msging.net",
        "a@b@wa.gw.msging.net",
        "553199998888@wa.gw.msging.net\n",
    ],
)
def test_identity_that_is_not_whatsapp_is_never_sent_to(identity: Any) -> None:
    assert type(look_up(answering(200, found(identity)))) is Transient


@pytest.mark.parametrize("resource", [None, [], "text", {}, {"phoneNumber": PHONE}])
def test_success_without_an_identity_is_transient(resource: Any) -> None:
    answer = answering(200, {"status": "success", "resource": resource})

    assert type(look_up(answer)) is Transient


def test_other_member_is_used_if_the_first_has_no_identity() -> None:
    resource = {"alternativeAccount": "5531@tunnel.net", "identity": "5531@wa.gw.msging.net"}

    assert look_up(answering(200, {"status": "success", "resource": resource})) == (
        "5531@wa.gw.msging.net"
    )


# Every way an exchange can break: for a message. A look-up is asked again, except where no URL can.
BROKEN = {
    httpx.ConnectError: Transient,
    httpx.ConnectTimeout: Transient,
    httpx.PoolTimeout: Transient,
    httpx.ProxyError: Transient,
    httpx.UnsupportedProtocol: Misconfigured,
    httpx.ReadTimeout: Unknown,
    httpx.WriteTimeout: Unknown,
    httpx.ReadError: Unknown,
    httpx.WriteError: Unknown,
    httpx.CloseError: Unknown,
    httpx.LocalProtocolError: Unknown,
    httpx.RemoteProtocolError: Unknown,
    httpx.DecodingError: Unknown,
    httpx.TooManyRedirects: Unknown,
    # Not raised themselves by httpx of today: whatever is not known to be safe is unknown.
    httpx.RequestError: Unknown,
    httpx.TransportError: Unknown,
    httpx.TimeoutException: Unknown,
    httpx.NetworkError: Unknown,
    httpx.ProtocolError: Unknown,
}


def subclasses(error: type[Exception]) -> Iterator[type[Exception]]:
    yield error
    for kind in error.__subclasses__():
        yield from subclasses(kind)


def test_table_holds_every_transport_error() -> None:
    known = {kind for kind in subclasses(httpx.RequestError) if kind.__module__ == "httpx"}

    assert set(BROKEN) == known


@pytest.mark.parametrize(("error", "expected"), BROKEN.items())
def test_transport_error_decides_the_failure(
    error: type[httpx.RequestError], expected: type[Failure]
) -> None:
    def break_off(request: httpx.Request) -> httpx.Response:
        raise error(f"about {PHONE}", request=request)

    failure = send(break_off)

    assert type(failure) is expected
    assert PHONE not in failure.detail
    of_look_up = Misconfigured if error is httpx.UnsupportedProtocol else Transient
    assert type(look_up(break_off)) is of_look_up


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        ("7", 7.0),
        (None, None),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("Wed, 21 Oct 2031 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_seconds_and_as_a_date(
    header: str | None, seconds: float | None
) -> None:
    headers = {} if header is None else {"Retry-After": header}

    for failure in (
        send(lambda _: httpx.Response(429, headers=headers)),
        look_up(lambda _: httpx.Response(429, headers=headers)),
    ):
        assert isinstance(failure, Throttled)
        assert failure.retry_after_seconds == seconds


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_failures_hold_no_text_of_blip(status: int) -> None:
    words = {"code": 21, "description": f"{PHONE} Maria {KEY}"}

    for failure in (send(answering(status, words)), look_up(answering(status, words))):
        assert isinstance(failure, Failure)
        for secret in (PHONE, "Maria", KEY):
            assert secret not in failure.detail
            assert secret not in str(failure)
