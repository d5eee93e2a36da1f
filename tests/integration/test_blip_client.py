"""The client over real sockets: the simulator's faults, and servers that do worse."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from notifier.blip import client as client_module
from notifier.blip import transport as transport_module
from notifier.blip.client import CONNECT_SECONDS, BlipClient
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
from tests.local.blip import Bot as SimulatedBot
from tests.local.blip import Simulator
from tests.support.builders import KEY

PHONE = "+5511999998888"
IDENTITY = "5511999998888@wa.gw.msging.net"
HUGE = {"type": "carousel", "cards": "x" * 20_000_000}
TEMPLATE = Template(name="order_shipped", language="pt_BR", body=["Maria", "981"])
TAKEN = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"

# What a call may take where the test waits for its end; and by when it has ended on any machine.
# Nothing here ends by itself before that.
CALL_SECONDS = 1.0
SURELY_SECONDS = 20.0


@pytest.fixture
def client() -> Iterator[BlipClient]:
    """A client whose calls may take as long as in production."""
    with contextlib.closing(BlipClient(4, 10)) as client:
        yield client


@pytest.fixture
def hasty() -> Iterator[BlipClient]:
    """A client whose calls may take CALL_SECONDS."""
    with contextlib.closing(BlipClient(4, CALL_SECONDS)) as client:
        yield client


@pytest.fixture
def bot(blip: Simulator) -> Bot:
    return Bot(name="default", base_url=blip.url, key=blip.key)


def at(port: int, scheme: str = "http") -> Bot:
    return Bot(name="default", base_url=f"{scheme}://127.0.0.1:{port}", key=KEY)


def at_once() -> None:
    """Wait for no slot."""


def bot_at(url: str) -> Bot:
    """Return a bot at an address that no secret may hold: without TLS, and not this machine's."""
    return Bot(name="default", key=KEY).model_copy(update={"base_url": url})


def send(client: BlipClient, bot: Bot, message_id: str = "id") -> Failure | None:
    try:
        client.send(bot, message_id, IDENTITY, TEMPLATE, at_once)
    except Failure as failure:
        return failure
    return None


def look_up(client: BlipClient, bot: Bot) -> Failure | str:
    try:
        return client.look_up(bot, PHONE, at_once)
    except Failure as failure:
        return failure


@contextlib.contextmanager
def ends_soon() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SURELY_SECONDS


type Script = Callable[[socket.socket], None]


@dataclass
class Server:
    """Accepts connections on loopback and lets a script have each of them.

    Attributes:
        requests: the head and body of every request that `answering` has read.
        connections: how many were accepted.
        closed: how many of them the script has done with.
    """

    script: Script
    listener: socket.socket = field(
        default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=16)
    )
    connections: int = 0
    closed: int = 0
    requests: list[bytes] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def bot(self) -> Bot:
        return at(self.listener.getsockname()[1])

    def __enter__(self) -> "Server":
        self.listener.settimeout(0.05)
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for thread in self.threads:
            thread.join()
        self.listener.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self.threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.closing.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self.listener.accept()
                self.connections += 1
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(0.05)
        with connection, contextlib.suppress(OSError, EOFError):
            self.script(connection)
        self.closed += 1

    def request(self, connection: socket.socket) -> bytes:
        """Read one request; EOFError if none comes any more."""
        data = b""
        while not _complete(data):
            if self.closing.is_set():
                raise EOFError
            with contextlib.suppress(TimeoutError):
                some = connection.recv(65536)
                if not some:
                    raise EOFError
                data += some
        return data


def _complete(data: bytes) -> bool:
    head, blank, body = data.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    return bool(blank) and len(body) >= lengths[0]


def answering(*parts: bytes, every_seconds: float = 0, close: bool = False) -> Server:
    """A server that answers every request with these parts, and then again, until it closes."""

    def script(connection: socket.socket) -> None:
        while True:
            server.requests.append(server.request(connection))
            for part in parts:
                connection.sendall(part)
                if server.closing.wait(every_seconds):
                    return
            if close:
                return

    server = Server(script)
    return server


# --- The wait for a slot --------------------------------------------------------------------------


class NotNowError(Exception):
    """Raised while a call waits for its slot."""


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so in another thread."""
    while not condition():
        time.sleep(0.001)


def stop() -> None:
    raise NotNowError


def test_slot_is_waited_for_when_the_connection_stands_and_before_the_first_byte(
    client: BlipClient,
) -> None:
    seen: list[tuple[int, int]] = []
    with answering(TAKEN) as server:

        def look() -> None:
            until(lambda: server.connections == 1)
            seen.append((server.connections, len(server.requests)))

        client.send(server.bot, "id", IDENTITY, TEMPLATE, look)
        client.send(server.bot, "id", IDENTITY, TEMPLATE, look)

        assert seen == [(1, 0), (1, 1)]
        assert len(server.requests) == 2


def test_call_that_is_stopped_while_it_waits_writes_nothing(client: BlipClient) -> None:
    with answering(TAKEN) as server:
        with pytest.raises(NotNowError):
            client.send(server.bot, "id", IDENTITY, TEMPLATE, stop)
        with pytest.raises(NotNowError):
            client.look_up(server.bot, PHONE, stop)
        with pytest.raises(NotNowError):
            client.events(server.bot, "id", stop)
        assert send(client, server.bot) is None

        assert len(server.requests) == 1


def test_wait_for_a_slot_does_not_count_against_the_deadline(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that the wait moves by a minute, and nothing else."""
    moved = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr(
        transport_module,
        "time",
        SimpleNamespace(monotonic=lambda: monotonic() + moved[0], time=time.time),
    )

    def wait() -> None:
        moved[0] += 60

    with answering(TAKEN) as server:
        client.send(server.bot, "id", IDENTITY, TEMPLATE, wait)


def test_connection_that_is_closed_while_a_call_waits_was_surely_not_written_to(
    client: BlipClient,
) -> None:
    closed = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.close()
        closed.set()

    with Server(script) as server, pytest.raises(Transient, match="ConnectError"):
        client.send(server.bot, "id", IDENTITY, TEMPLATE, lambda: until(closed.is_set))


def test_connection_on_which_the_server_speaks_first_is_not_written_to(client: BlipClient) -> None:
    spoken = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        spoken.set()
        server.closing.wait()

    server = Server(script)
    with server, pytest.raises(Transient, match="ConnectError"):
        client.send(server.bot, "id", IDENTITY, TEMPLATE, lambda: until(spoken.is_set))


def test_connection_that_a_frozen_sandbox_held_for_too_long_is_not_written_to(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze() -> None:
        frozen = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + 16)
        monkeypatch.setattr(transport_module, "time", frozen)

    with answering(TAKEN) as server, pytest.raises(Transient, match="ConnectError"):
        client.send(server.bot, "id", IDENTITY, TEMPLATE, freeze)


def test_tls_session_tickets_are_no_reason_to_drop_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS 1.3 servers send them right after the handshake, so the socket is readable."""
    certificate = a_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    wrapped, close = threading.Event(), threading.Event()

    def script(connection: socket.socket) -> None:
        connection.settimeout(10)
        with context.wrap_socket(connection, server_side=True) as encrypted:
            wrapped.set()  # the tickets are on their way
            if close.is_set():
                return
            server.request(encrypted)
            encrypted.sendall(TAKEN)

    server = Server(script)
    with contextlib.closing(BlipClient(4, 10)) as client, server:
        bot = at(server.listener.getsockname()[1], "https")
        client.send(bot, "id", IDENTITY, TEMPLATE, lambda: until(wrapped.is_set))

        close.set()
        wrapped.clear()
        with pytest.raises(Transient, match="ConnectError"):
            client.send(bot, "id", IDENTITY, TEMPLATE, lambda: until(lambda: server.closed == 2))


def a_certificate(folder: Path) -> Path:
    """Write a key and its own certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    path = folder / "certificate.pem"
    path.write_bytes(pem)
    return path


# --- Where a host has several addresses -----------------------------------------------------------


def test_all_addresses_of_a_host_share_one_time_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[tuple[str, float]] = []

    def connect(_: object, host: str, _port: int, timeout: float, *__: object) -> None:
        tried.append((host, timeout))
        raise httpcore.ConnectTimeout

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    addresses = [(0, 0, 0, "", (f"10.0.0.{number}", 80)) for number in range(1, 5)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)

    with contextlib.closing(BlipClient(1, 10)) as client:
        failure = send(client, bot_at("http://blip.example"))

    assert type(failure) is Transient
    assert [host for host, _ in tried] == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
    assert tried[0][1] == pytest.approx(CONNECT_SECONDS / 4, rel=0.1)
    assert tried[3][1] <= CONNECT_SECONDS


def test_next_address_is_tried_when_one_refuses(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(TAKEN) as server:
        port = server.listener.getsockname()[1]
        # Nothing listens on the first one's port.
        addresses = [(0, 0, 0, "", ("127.0.0.2", port)), (0, 0, 0, "", ("127.0.0.1", port))]
        resolve = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *args, **kwargs: (
                addresses if host == "blip.example" else resolve(host, *args, **kwargs)
            ),
        )
        bot = bot_at(f"http://blip.example:{port}")

        assert send(client, bot) is None


def test_host_without_an_address_was_surely_not_written_to(client: BlipClient) -> None:
    assert type(send(client, bot_at("http://nowhere.invalid"))) is Transient


# --- What an exchange comes to --------------------------------------------------------------------


def test_a_look_up_and_a_send_arrive_as_blip_wants_them(
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


def test_a_base_url_may_end_with_a_slash(client: BlipClient, blip: Simulator) -> None:
    assert send(client, Bot(name="default", base_url=f"{blip.url}/", key=blip.key)) is None


def test_nobody_listens(client: BlipClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    assert type(send(client, at(port))) is Transient
    assert type(look_up(client, at(port))) is Transient


def test_a_name_that_cannot_be_resolved(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    bot = Bot(name="default", base_url="https://http.msging.net", key=KEY)

    assert type(send(client, bot)) is Transient
    assert type(look_up(client, bot)) is Transient


def test_a_connection_that_is_never_accepted(hasty: BlipClient) -> None:
    # A full backlog: the kernel drops what else comes.
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())

        with ends_soon():
            assert type(send(hasty, at(listener.getsockname()[1]))) is Transient


def test_no_connection_is_waited_for_longer_than_for_blip_itself(
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
        while not silent.connections:
            time.sleep(0.005)
        # The only connection is in use: this one never started.
        assert type(send(client, silent.bot)) is Transient
        silent.closing.set()
        first.join()


def test_tls_where_there_is_none(client: BlipClient) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Server(script) as server:
        secure = at(server.listener.getsockname()[1], "https")

        assert type(send(client, secure)) is Transient


@pytest.mark.parametrize("accepted", [False, True])
def test_a_connection_dropped_without_an_answer(
    client: BlipClient, blip: Simulator, bot: Bot, *, accepted: bool
) -> None:
    """From here the two look the same: it may have gone out."""
    blip.know(PHONE)
    blip.add_fault(drop=True, accept=accepted)

    assert type(send(client, bot)) is Unknown
    assert len(blip.inbox()) == accepted
    # A look-up may simply be asked again.
    assert type(look_up(client, bot)) is Transient


def test_a_connection_dropped_before_the_request_is_read(client: BlipClient) -> None:
    """Whether the client sees it before its first byte or after it is chance."""
    with Server(lambda _: None) as server:
        assert type(send(client, server.bot)) in {Unknown, Transient}


@pytest.mark.parametrize("part", [b"", b"HTT", b"HTTP/1.1 202 Acc", TAKEN[:-2]])
def test_an_answer_that_ends_in_its_head(client: BlipClient, part: bytes) -> None:
    with answering(part, close=True) as server:
        assert type(send(client, server.bot)) is Unknown


@pytest.mark.parametrize("garbage", [b"\x00\xff\xfe" * 40, b"220 mail ESMTP\r\n", b"{}\r\n\r\n"])
def test_an_answer_that_is_no_http(client: BlipClient, garbage: bytes) -> None:
    with answering(garbage, close=True) as server:
        assert type(send(client, server.bot)) is Unknown
        assert type(look_up(client, server.bot)) is Transient


@pytest.mark.parametrize("accepted", [False, True])
def test_no_answer_within_the_call_s_time(
    hasty: BlipClient, blip: Simulator, bot: Bot, *, accepted: bool
) -> None:
    blip.add_fault(hang=True, accept=accepted)

    with ends_soon():
        assert type(send(hasty, bot)) is Unknown
        assert type(look_up(hasty, bot)) is Transient


def test_an_answer_that_drips_is_cut_off(hasty: BlipClient, blip: Simulator, bot: Bot) -> None:
    """Every byte comes in time; all of them together don't."""
    blip.add_fault(dribble_seconds=CALL_SECONDS / 4)

    with ends_soon():
        assert type(send(hasty, bot)) is Unknown
        assert type(look_up(hasty, bot)) is Transient


def test_taken_with_a_body_that_never_ends() -> None:
    """The status says it all."""
    drops = [b"x"] * 100
    head = b"HTTP/1.1 202 Accepted\r\nContent-Length: 1000\r\n\r\n"
    # Long enough for the head to come, however busy the machine is.
    patient = contextlib.closing(BlipClient(4, 4.0))
    with answering(head, *drops, every_seconds=1.0) as server, patient as client, ends_soon():
        assert send(client, server.bot) is None


def test_taken_with_a_body_that_breaks_off(client: BlipClient) -> None:
    with answering(b"HTTP/1.1 202 Accepted\r\nContent-Length: 9\r\n\r\nx", close=True) as server:
        assert send(client, server.bot) is None


def test_taken_with_a_body_that_cannot_be_unpacked(client: BlipClient) -> None:
    head = b"HTTP/1.1 202 Accepted\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n"
    with answering(head + b"text") as server:
        assert send(client, server.bot) is None


def test_a_refusal_whose_reason_breaks_off_is_still_a_refusal(client: BlipClient) -> None:
    head = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 99\r\n\r\n"
    with answering(head + b'{"code"', close=True) as server:
        assert type(send(client, server.bot)) is Misconfigured


def test_a_request_too_long_for_a_connection_that_closes(client: BlipClient) -> None:
    """The server stops reading: what it has read, nobody knows."""
    huge = Template(name="order_shipped", language="pt_BR", components=[HUGE])

    def script(connection: socket.socket) -> None:
        connection.recv(10)

    with Server(script) as server, pytest.raises(Unknown):
        client.send(server.bot, "id", IDENTITY, huge, at_once)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(503, Unknown), (500, Unknown), (502, Unknown), (504, Unknown), (408, Unknown)],
)
def test_blip_is_in_trouble(
    client: BlipClient, blip: Simulator, bot: Bot, status: int, expected: type[Failure]
) -> None:
    blip.add_fault(status=status)

    failure = send(client, bot)

    assert type(failure) is expected
    assert failure.code == status
    assert type(look_up(client, bot)) is Transient


def test_over_the_plan_with_a_word_how_long(client: BlipClient, blip: Simulator) -> None:
    blip.configure(retry_after=True, penalty_seconds=77)
    blip.put_bot(SimulatedBot(name="slow", messages_per_second=1, commands_per_second=0))
    slow = SimulatedBot(name="slow")
    bot = Bot(name="default", base_url=blip.url, key=slow.key)

    failure = look_up(client, bot)

    assert isinstance(failure, Throttled)
    assert failure.code == 34
    assert failure.retry_after_seconds == pytest.approx(77, abs=1.5)


def test_over_the_plan_without_a_word_how_long(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.add_fault(status=429)

    for failure in (send(client, bot), look_up(client, bot)):
        assert isinstance(failure, Throttled)
        assert failure.retry_after_seconds is None


def test_a_key_that_blip_does_not_know(client: BlipClient, blip: Simulator) -> None:
    bot = Bot(name="default", base_url=blip.url, key=KEY)

    for failure in (send(client, bot), look_up(client, bot)):
        assert isinstance(failure, Misconfigured)
        assert failure.code == 13
        assert KEY not in failure.detail


def test_a_redirect_is_not_followed(client: BlipClient, blip: Simulator, bot: Bot) -> None:
    blip.add_fault(status=307, headers={"Location": f"{blip.url}/messages?again"})

    assert type(send(client, bot)) is Misconfigured
    assert type(look_up(client, bot)) is Misconfigured
    assert len(blip.requests) == 2


def test_a_path_that_blip_does_not_have(client: BlipClient) -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot Found"
    with answering(answer) as server:
        assert type(send(client, server.bot)) is Misconfigured
        assert type(look_up(client, server.bot)) is Misconfigured


@pytest.mark.parametrize("body", ["<html>", "", "null", "[1]", '{"status": "succ', "\ufeff{}"])
def test_a_look_up_answered_with_something_else(
    client: BlipClient, blip: Simulator, bot: Bot, body: str
) -> None:
    blip.add_fault(status=200, body=body)

    assert type(look_up(client, bot)) is Transient


def test_a_look_up_answered_without_an_identity(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.add_fault(status=200, body={"status": "success", "resource": {"phoneNumber": PHONE}})

    assert type(look_up(client, bot)) is Transient


def test_a_look_up_answered_with_an_identity_of_another_channel(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.set_identity(PHONE, "5511999998888@tunnel.msging.net")

    assert type(look_up(client, bot)) is Transient


def test_an_identity_without_a_single_digit_of_the_number(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.set_identity(PHONE, "d3b07384-d9a0-4c9b@wa.gw.msging.net")

    assert look_up(client, bot) == "d3b07384-d9a0-4c9b@wa.gw.msging.net"


def test_a_number_that_blip_does_not_take_for_one(
    client: BlipClient, blip: Simulator, bot: Bot
) -> None:
    blip.add_fault(path="lookups", failure=61)

    failure = look_up(client, bot)

    assert isinstance(failure, Rejected)
    assert failure.reason is Reason.NOT_A_PHONE_NUMBER


def test_a_bot_without_whatsapp(client: BlipClient, blip: Simulator) -> None:
    deaf = SimulatedBot(name="deaf", whatsapp=False)
    blip.put_bot(deaf)

    failure = look_up(client, Bot(name="default", base_url=blip.url, key=deaf.key))

    assert isinstance(failure, Misconfigured)
    assert failure.code == 81
    assert "WhatsApp channel" in failure.detail
    assert blip.statistics()["lookups"] == {PHONE: 2}


def test_the_templates_of_a_bot(client: BlipClient, bot: Bot) -> None:
    assert ("order_shipped", "pt_BR", "APPROVED") in client.templates(bot)


def test_a_bot_without_whatsapp_has_no_templates(client: BlipClient, blip: Simulator) -> None:
    blip.put_bot(SimulatedBot(name="sub", key="Key c3ViOnNlY3JldA==", whatsapp=False))

    with pytest.raises(Misconfigured, match="router's key"):
        client.templates(Bot(name="sub", base_url=blip.url, key="Key c3ViOnNlY3JldA=="))


def test_a_gateway_that_fails_once(client: BlipClient, blip: Simulator, bot: Bot) -> None:
    blip.add_fault(path="lookups", failure=81, times=1)

    assert look_up(client, bot) == IDENTITY


def test_nothing_is_repeated_by_itself(client: BlipClient, blip: Simulator, bot: Bot) -> None:
    for fault in ({"drop": True}, {"status": 503}, {"status": 500}, {"truncate": True}):
        blip.clear()
        blip.clear_faults()
        blip.add_fault(path="messages", **fault)

        assert send(client, bot) is not None
        assert len(blip.requests) == 1


def test_cookies_of_blip_s_load_balancer_stay_there(client: BlipClient) -> None:
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


# --- Connections ----------------------------------------------------------------------------------


def test_a_connection_is_used_again(client: BlipClient) -> None:
    with answering(TAKEN) as server:
        for _ in range(3):
            assert send(client, server.bot) is None

        assert server.connections == 1


def test_a_connection_that_idled_for_long_is_not_used_again(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen sandbox's monotonic clock stands still: only the wall clock tells."""
    wall_clock, frozen_for = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: wall_clock() + frozen_for[0])
    with answering(TAKEN) as server:
        assert send(client, server.bot) is None

        frozen_for[0] += 11
        assert send(client, server.bot) is None
        assert server.connections == 1

        frozen_for[0] += 15.5
        assert send(client, server.bot) is None
        assert server.connections == 2

        # From its last use it counts, not from its first.
        frozen_for[0] += 11
        assert send(client, server.bot) is None
        assert server.connections == 2


def test_a_connection_that_was_closed_meanwhile_is_not_used_again(client: BlipClient) -> None:
    with answering(TAKEN, close=True) as server:
        assert send(client, server.bot) is None
        while any(thread.is_alive() for thread in server.threads[1:]):
            time.sleep(0.005)

        assert send(client, server.bot) is None
        assert server.connections == 2


def test_a_client_is_connected_from_its_first_call_on(client: BlipClient) -> None:
    with answering(TAKEN) as server:
        assert not client.is_connected(server.bot)
        assert send(client, server.bot) is None

        assert client.is_connected(server.bot)
        # No other host's call has a use for it, nor another scheme's.
        port = server.listener.getsockname()[1]
        assert not client.is_connected(at(port + 1))
        assert not client.is_connected(bot_at(f"http://localhost:{port}"))
        assert not client.is_connected(at(port, "https"))
        assert server.connections == 1


def test_a_client_whose_connection_has_idled_is_not_connected(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall_clock, frozen_for = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: wall_clock() + frozen_for[0])
    with answering(TAKEN) as server:
        assert send(client, server.bot) is None
        frozen_for[0] += 11
        assert client.is_connected(server.bot)
        frozen_for[0] += 1.5

        assert not client.is_connected(server.bot)


def test_a_client_is_not_connected_once_the_server_has_hung_up(client: BlipClient) -> None:
    hang_up = threading.Event()

    def script(connection: socket.socket) -> None:
        server.request(connection)
        connection.sendall(TAKEN)
        hang_up.wait(SURELY_SECONDS)

    server = Server(script)
    with server:
        assert send(client, server.bot) is None
        assert client.is_connected(server.bot)

        hang_up.set()
        while server.closed == 0:
            time.sleep(0.005)

        assert not client.is_connected(server.bot)


def test_a_client_whose_only_connection_is_in_use_is_not_connected(client: BlipClient) -> None:
    with answering(b"") as silent:
        calling = threading.Thread(target=send, args=(client, silent.bot))
        calling.start()
        while not silent.requests:
            time.sleep(0.005)

        assert not client.is_connected(silent.bot)
        silent.closing.set()
        calling.join()


def test_calls_run_side_by_side(client: BlipClient, blip: Simulator, bot: Bot) -> None:
    # Long enough for all of them to begin, however busy the machine is.
    blip.configure(latency_seconds=2)
    threads = [
        threading.Thread(
            target=client.send, args=(bot, f"id-{number}", IDENTITY, TEMPLATE, at_once)
        )
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(blip.inbox()) == 4
    assert blip.statistics()["most_in_flight"]["/messages"] == 4


def test_one_call_s_deadline_is_not_another_s(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, passed = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed[0])
    with answering(TAKEN) as server:
        for _ in range(4):
            assert send(client, server.bot) is None
            passed[0] += 0.6 * 10

        assert server.connections == 1


def test_a_connection_that_failed_is_not_kept(client: BlipClient, blip: Simulator) -> None:
    bot = Bot(name="default", base_url=blip.url, key=blip.key)
    blip.add_fault(path="messages", truncate=True, times=1)
    send(client, bot)

    assert send(client, bot) is None
