"""The client over real sockets: what each exchange comes to."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from notifier.blip import client as client_module
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
from notifier.domain.templates import Category, TemplateStatus
from tests.integration.blip.servers import (
    IDENTITY,
    PHONE,
    SURELY_SECONDS,
    TAKEN,
    Server,
    answering,
    at,
    at_once,
    send,
)
from tests.local.blip import Bot as SimulatedBot
from tests.local.blip import Simulator, wait_until
from tests.support.builders import KEY
from tests.support.templates import translations

HUGE = {"type": "carousel", "cards": "x" * 20_000_000}

# What a call may take where the test waits for its end; and by when it has ended on any machine.
# Nothing here ends by itself before that.
CALL_SECONDS = 1.0


@pytest.fixture
def hasty() -> Iterator[BlipClient]:
    """A client whose calls may take CALL_SECONDS."""
    with contextlib.closing(BlipClient(4, CALL_SECONDS)) as client:
        yield client


def look_up(client: BlipClient, bot: Bot) -> Failure | str:
    try:
        return client.look_up(bot, PHONE, at_once)
    except Failure as failure:
        return failure


def test_look_up_and_send_have_the_documented_form(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    identity = look_up(client, bot)
    assert identity == IDENTITY

    assert send(client, bot, "message-1") is None

    (message,) = blip.inbox()
    assert message["id"] == "message-1"
    assert message["to"] == IDENTITY
    assert message["phone"] == PHONE
    for request in blip.requests:
        assert request.headers["Content-Type"] == "application/json"
        assert request.headers["Authorization"] == blip.key
        assert "Cookie" not in request.headers
    asked = blip.requests[0].envelope
    assert asked["uri"] == f"lime://wa.gw.msging.net/accounts/{PHONE}"
    assert asked["to"] == "postmaster@wa.gw.msging.net"


def test_base_url_may_end_with_a_slash(client: BlipClient, blip: Simulator) -> None:
    assert send(client, Bot(name="default", base_url=f"{blip.url}/", key=blip.key)) is None


def test_refused_connection_was_certainly_not_sent(client: BlipClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    assert type(send(client, at(port))) is Transient
    assert type(look_up(client, at(port))) is Transient


def test_unresolvable_name_was_certainly_not_sent(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    bot = Bot(name="default", base_url="https://http.msging.net", key=KEY)

    assert type(send(client, bot)) is Transient
    assert type(look_up(client, bot)) is Transient


@contextlib.contextmanager
def ends_soon() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SURELY_SECONDS


def test_connection_that_is_never_accepted_was_certainly_not_sent(hasty: BlipClient) -> None:
    # A full backlog: the kernel drops what else comes.
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())

        with ends_soon():
            assert type(send(hasty, at(listener.getsockname()[1]))) is Transient


def test_call_without_a_free_connection_was_certainly_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", CALL_SECONDS)
    with (
        answering(b"") as silent,
        contextlib.closing(BlipClient(1, 60)) as client,
        ends_soon(),
    ):
        first = threading.Thread(target=send, args=(client, silent.bot))
        first.start()
        wait_until(lambda: silent.connections == 1)
        # The only connection is in use: this one never started.
        assert type(send(client, silent.bot)) is Transient
        silent.closing.set()
        first.join()


def test_tls_against_a_plain_server_was_certainly_not_sent(client: BlipClient) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Server(script) as server:
        secure = at(server.listener.getsockname()[1], "https")

        assert type(send(client, secure)) is Transient


@pytest.mark.parametrize("accepted", [False, True])
def test_connection_dropped_without_an_answer_is_an_unknown_outcome(
    client: BlipClient, blip: Simulator, bot: Bot, *, accepted: bool
) -> None:
    """From here the two look the same: it may have gone out."""
    blip.know(PHONE)
    blip.add_fault(drop=True, accept=accepted)

    assert type(send(client, bot)) is Unknown
    assert len(blip.inbox()) == accepted
    # A look-up may simply be asked again.
    assert type(look_up(client, bot)) is Transient


def test_connection_dropped_before_the_request_is_read_is_a_failure(client: BlipClient) -> None:
    """Whether the client sees it before its first byte or after it is chance."""
    with Server(lambda _: None) as server:
        assert type(send(client, server.bot)) in {Unknown, Transient}


@pytest.mark.parametrize("part", [b"", b"HTT", b"HTTP/1.1 202 Acc", TAKEN[:-2]])
def test_answer_cut_off_in_its_head_is_an_unknown_outcome(client: BlipClient, part: bytes) -> None:
    with answering(part, close=True) as server:
        assert type(send(client, server.bot)) is Unknown


@pytest.mark.parametrize("garbage", [b"\x00\xff\xfe" * 40, b"220 mail ESMTP\r\n", b"{}\r\n\r\n"])
def test_answer_that_is_not_http_is_an_unknown_outcome(client: BlipClient, garbage: bytes) -> None:
    with answering(garbage, close=True) as server:
        assert type(send(client, server.bot)) is Unknown
        assert type(look_up(client, server.bot)) is Transient


@pytest.mark.parametrize("accepted", [False, True])
def test_missing_answer_ends_at_the_call_s_deadline(
    hasty: BlipClient, blip: Simulator, bot: Bot, *, accepted: bool
) -> None:
    blip.add_fault(hang=True, accept=accepted)

    with ends_soon():
        assert type(send(hasty, bot)) is Unknown
        assert type(look_up(hasty, bot)) is Transient


def test_dripping_answer_is_cut_off_at_the_deadline(
    hasty: BlipClient, blip: Simulator, bot: Bot
) -> None:
    """Every byte comes in time; all of them together don't."""
    blip.add_fault(dribble_seconds=CALL_SECONDS / 4)

    with ends_soon():
        assert type(send(hasty, bot)) is Unknown
        assert type(look_up(hasty, bot)) is Transient


def test_accepted_message_with_an_endless_body_is_sent() -> None:
    """The status says it all."""
    drops = [b"x"] * 100
    head = b"HTTP/1.1 202 Accepted\r\nContent-Length: 1000\r\n\r\n"
    # Long enough for the head to come, however busy the machine is.
    patient = contextlib.closing(BlipClient(4, 4.0))
    with answering(head, *drops, every_seconds=1.0) as server, patient as client, ends_soon():
        assert send(client, server.bot) is None


def test_accepted_message_with_a_truncated_body_is_sent(client: BlipClient) -> None:
    with answering(b"HTTP/1.1 202 Accepted\r\nContent-Length: 9\r\n\r\nx", close=True) as server:
        assert send(client, server.bot) is None


def test_accepted_message_with_an_undecodable_body_is_sent(client: BlipClient) -> None:
    head = b"HTTP/1.1 202 Accepted\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n"
    with answering(head + b"text") as server:
        assert send(client, server.bot) is None


def test_refusal_with_a_truncated_reason_is_a_refusal(client: BlipClient) -> None:
    head = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 99\r\n\r\n"
    with answering(head + b'{"code"', close=True) as server:
        assert type(send(client, server.bot)) is Misconfigured


def test_long_request_on_a_closing_connection_is_an_unknown_outcome(client: BlipClient) -> None:
    """The server stops reading; how much it has read is unknown."""
    huge = Template(name="order_shipped", language="pt_BR", components=[HUGE])

    def script(connection: socket.socket) -> None:
        connection.recv(10)

    with Server(script) as server, pytest.raises(Unknown):
        client.send(server.bot, "id", IDENTITY, huge, at_once)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(503, Unknown), (500, Unknown), (502, Unknown), (504, Unknown), (408, Unknown)],
)
def test_server_error_is_an_unknown_outcome(
    client: BlipClient, blip: Simulator, bot: Bot, status: int, expected: type[Failure]
) -> None:
    blip.add_fault(status=status)

    failure = send(client, bot)

    assert type(failure) is expected
    assert failure.code == status
    assert type(look_up(client, bot)) is Transient


def test_throttling_with_retry_after_names_the_seconds(client: BlipClient, blip: Simulator) -> None:
    blip.configure(retry_after=True, penalty_seconds=77)
    blip.put_bot(SimulatedBot(name="slow", messages_per_second=1, commands_per_second=0))
    slow = SimulatedBot(name="slow")
    bot = Bot(name="default", base_url=blip.url, key=slow.key)

    failure = look_up(client, bot)

    assert isinstance(failure, Throttled)
    assert failure.code == 34
    assert failure.retry_after_seconds == pytest.approx(77, abs=1.5)


def test_throttling_without_retry_after_names_no_seconds(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.add_fault(status=429)

    for failure in (send(client, bot), look_up(client, bot)):
        assert isinstance(failure, Throttled)
        assert failure.retry_after_seconds is None


def test_unknown_key_is_misconfigured(client: BlipClient, blip: Simulator) -> None:
    bot = Bot(name="default", base_url=blip.url, key=KEY)

    for failure in (send(client, bot), look_up(client, bot)):
        assert isinstance(failure, Misconfigured)
        assert failure.code == 13
        assert KEY not in failure.detail


def test_redirect_is_not_followed(client: BlipClient, blip: Simulator, bot: Bot) -> None:
    blip.add_fault(status=307, headers={"Location": f"{blip.url}/messages?again"})

    assert type(send(client, bot)) is Misconfigured
    assert type(look_up(client, bot)) is Misconfigured
    assert len(blip.requests) == 2


def test_unknown_path_is_misconfigured(client: BlipClient) -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found"
    with answering(answer) as server:
        assert type(send(client, server.bot)) is Misconfigured
        assert type(look_up(client, server.bot)) is Misconfigured


@pytest.mark.parametrize("body", ["<html>", "", "null", "[1]", '{"status": "succ', "\ufeff{}"])
def test_look_up_answered_with_another_document_is_transient(
    client: BlipClient, blip: Simulator, bot: Bot, body: str
) -> None:
    blip.add_fault(status=200, body=body)

    assert type(look_up(client, bot)) is Transient


def test_look_up_answered_without_an_identity_is_transient(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.add_fault(status=200, body={"status": "success", "resource": {"phoneNumber": PHONE}})

    assert type(look_up(client, bot)) is Transient


def test_look_up_answered_with_another_channel_is_transient(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.set_identity(PHONE, "5511999998888@tunnel.msging.net")

    assert type(look_up(client, bot)) is Transient


def test_identity_need_not_contain_the_number(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.set_identity(PHONE, "d3b07384-d9a0-4c9b@wa.gw.msging.net")

    assert look_up(client, bot) == "d3b07384-d9a0-4c9b@wa.gw.msging.net"


def test_number_that_blip_refuses_is_not_a_phone_number(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.add_fault(path="lookups", failure=61)

    failure = look_up(client, bot)

    assert isinstance(failure, Rejected)
    assert failure.reason is Reason.NOT_A_PHONE_NUMBER


def test_bot_without_whatsapp_is_misconfigured(client: BlipClient, blip: Simulator) -> None:
    deaf = SimulatedBot(name="deaf", whatsapp=False)
    blip.put_bot(deaf)

    failure = look_up(client, Bot(name="default", base_url=blip.url, key=deaf.key))

    assert isinstance(failure, Misconfigured)
    assert failure.code == 81
    assert "WhatsApp channel" in failure.detail
    assert blip.statistics()["lookups"] == {PHONE: 2}


def test_templates_of_a_bot_are_listed(client: BlipClient, blip: Simulator, bot: Bot) -> None:
    slots: list[None] = []
    templates = client.templates(bot, 1.5, lambda: slots.append(None))

    template = templates["order_shipped"]
    # One place in the plan for each question.
    assert len(slots) == len(blip.requests) > 0
    assert template.asked_at == 1.5
    assert template.translations["pt_BR"].status is TemplateStatus.APPROVED
    assert client.template(bot, "order_shipped", 1.5, at_once) == template
    assert client.template(bot, "no_such_template", 1.5, at_once) is None


@pytest.mark.parametrize(
    "how",
    [
        {"envelope": "data"},
        {"envelope": "items"},
        {"envelope": "list"},
        {"skip": False},
        {"name_filter": "contains"},
        {"name_filter": "ignored"},
    ],
    ids=str,
)
def test_templates_are_the_same_in_every_form_of_the_list(
    client: BlipClient, blip: Simulator, bot: Bot, how: dict[str, object]
) -> None:
    blip.configure(templates=how)
    templates = client.templates(bot, 1.5, at_once)

    assert {
        (name, language): translation
        for name, template in templates.items()
        for language, translation in template.translations.items()
    } == translations()
    assert client.template(bot, "order_shipped", 1.5, at_once) == templates["order_shipped"]
    assert client.template(bot, "no_such_template", 1.5, at_once) is None


@pytest.mark.parametrize("code", [62, 67])
def test_templates_of_the_plain_list_have_a_status_only(
    client: BlipClient, blip: Simulator, bot: Bot, code: int
) -> None:
    blip.configure(templates={"without_enriched": code})
    templates = client.templates(bot, 1.5, at_once)

    assert {name for name, _ in translations()} == set(templates)
    paused = templates["paused_template"].translations["pt_BR"]
    assert (paused.status, paused.is_understood) == (TemplateStatus.PAUSED, False)
    assert paused.category is Category.MARKETING
    assert client.template(bot, "no_such_template", 1.5, at_once) is None


def test_templates_of_a_bot_without_whatsapp_are_misconfigured(
    client: BlipClient, blip: Simulator
) -> None:
    blip.put_bot(SimulatedBot(name="sub", key="Key c3ViOnNlY3JldA==", whatsapp=False))
    bot = Bot(name="sub", base_url=blip.url, key="Key c3ViOnNlY3JldA==")

    with pytest.raises(Misconfigured, match="router's key"):
        client.templates(bot, 1.5, at_once)


def test_gateway_that_fails_once_is_asked_again(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.add_fault(path="lookups", failure=81, times=1)

    assert look_up(client, bot) == IDENTITY


def test_failed_calls_are_not_repeated(client: BlipClient, blip: Simulator, bot: Bot) -> None:
    for fault in ({"drop": True}, {"status": 503}, {"status": 500}, {"truncate": True}):
        blip.clear()
        blip.clear_faults()
        blip.add_fault(path="messages", **fault)

        assert send(client, bot) is not None
        assert len(blip.requests) == 1


def test_cookies_of_blip_are_not_kept(client: BlipClient) -> None:
    """One client serves every bot: a cookie of the one has no business with the other."""
    heads: list[bytes] = []

    def script(connection: socket.socket) -> None:
        while True:
            heads.append(server.request(connection))
            connection.sendall(TAKEN[:-2] + b"Set-Cookie: affinity=1; Path=/\r\n\r\n")

    server = Server(script)
    with server:
        assert send(client, server.bot) is None
        assert send(client, server.bot) is None

    assert len(heads) == 2
    assert not any(b"cookie" in head.lower() for head in heads)
