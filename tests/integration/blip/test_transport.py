"""The client's connections over real sockets: slots, addresses, reuse."""

import contextlib
import socket
import ssl
import threading
import time
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

from notifier.blip import transport as transport_module
from notifier.blip.client import CONNECT_SECONDS, BlipClient
from notifier.domain.bots import Bot
from notifier.domain.failures import (
    Transient,
)
from tests.integration.blip.servers import (
    IDENTITY,
    PHONE,
    SURELY_SECONDS,
    TAKEN,
    TEMPLATE,
    Server,
    answering,
    at,
    at_once,
    send,
)
from tests.local.blip import Simulator, wait_until
from tests.support.builders import KEY

# --- The wait for a slot --------------------------------------------------------------------------


def test_slot_is_awaited_on_an_open_connection_before_the_first_byte(
    client: BlipClient,
) -> None:
    seen: list[tuple[int, int]] = []
    with answering(TAKEN) as server:

        def look() -> None:
            wait_until(lambda: server.connections == 1)
            seen.append((server.connections, len(server.requests)))

        client.send(server.bot, "id", IDENTITY, TEMPLATE, look)
        client.send(server.bot, "id", IDENTITY, TEMPLATE, look)

        assert seen == [(1, 0), (1, 1)]
        assert len(server.requests) == 2


class NotNowError(Exception):
    """Raised while a call waits for its slot."""


def stop() -> None:
    raise NotNowError


def test_call_stopped_during_its_wait_writes_nothing(client: BlipClient) -> None:
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


def test_connection_closed_during_a_wait_was_certainly_not_written_to(
    client: BlipClient,
) -> None:
    closed = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.close()
        closed.set()

    with Server(script) as server, pytest.raises(Transient, match="ConnectError"):
        client.send(server.bot, "id", IDENTITY, TEMPLATE, lambda: wait_until(closed.is_set))


def test_connection_on_which_the_server_speaks_first_is_not_written_to(client: BlipClient) -> None:
    spoken = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        spoken.set()
        server.closing.wait()

    server = Server(script)
    with server, pytest.raises(Transient, match="ConnectError"):
        client.send(server.bot, "id", IDENTITY, TEMPLATE, lambda: wait_until(spoken.is_set))


def test_connection_held_too_long_by_a_frozen_sandbox_is_not_written_to(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze() -> None:
        frozen = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + 16)
        monkeypatch.setattr(transport_module, "time", frozen)

    with answering(TAKEN) as server, pytest.raises(Transient, match="ConnectError"):
        client.send(server.bot, "id", IDENTITY, TEMPLATE, freeze)


def a_certificate(folder: Path) -> Path:
    """Write a key and a self-signed certificate for 127.0.0.1. Return the file."""
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


def test_tls_session_tickets_do_not_drop_a_connection(
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
        client.send(bot, "id", IDENTITY, TEMPLATE, lambda: wait_until(wrapped.is_set))

        close.set()
        wrapped.clear()
        with pytest.raises(Transient, match="ConnectError"):
            client.send(
                bot, "id", IDENTITY, TEMPLATE, lambda: wait_until(lambda: server.closed == 2)
            )


# --- Where a host has several addresses -----------------------------------------------------------


def bot_at(url: str) -> Bot:
    """Return a bot at an address that no secret may hold: without TLS, and not this machine's."""
    return Bot(name="default", key=KEY).model_copy(update={"base_url": url})


def test_all_addresses_of_a_host_share_one_connect_timeout(
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


def test_next_address_is_tried_if_one_refuses(
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


def test_host_without_an_address_was_certainly_not_written_to(client: BlipClient) -> None:
    assert type(send(client, bot_at("http://nowhere.invalid"))) is Transient


# --- Connections ----------------------------------------------------------------------------------


@pytest.fixture
def frozen_for(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return for how long only the wall clock went on: the sandbox was frozen meanwhile."""
    wall_clock, seconds = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: wall_clock() + seconds[0])
    return seconds


def test_connection_is_reused(client: BlipClient) -> None:
    with answering(TAKEN) as server:
        for _ in range(3):
            assert send(client, server.bot) is None

        assert server.connections == 1


def test_idle_connection_is_not_reused_after_its_limit(
    client: BlipClient, frozen_for: list[float]
) -> None:
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


def test_connection_closed_by_the_server_is_not_reused(client: BlipClient) -> None:
    with answering(TAKEN, close=True) as server:
        assert send(client, server.bot) is None
        wait_until(lambda: not any(thread.is_alive() for thread in server.threads[1:]))

        assert send(client, server.bot) is None
        assert server.connections == 2


def test_client_is_connected_from_its_first_call_on(client: BlipClient) -> None:
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


def test_client_with_an_idle_connection_is_not_connected(
    client: BlipClient, frozen_for: list[float]
) -> None:
    with answering(TAKEN) as server:
        assert send(client, server.bot) is None
        frozen_for[0] += 11
        assert client.is_connected(server.bot)
        frozen_for[0] += 1.5

        assert not client.is_connected(server.bot)


def test_client_is_not_connected_after_the_server_hung_up(client: BlipClient) -> None:
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
        wait_until(lambda: server.closed == 1)

        assert not client.is_connected(server.bot)


def test_client_whose_only_connection_is_in_use_is_not_connected(client: BlipClient) -> None:
    with answering(b"") as silent:
        calling = threading.Thread(target=send, args=(client, silent.bot))
        calling.start()
        wait_until(lambda: bool(silent.requests))

        assert not client.is_connected(silent.bot)
        silent.closing.set()
        calling.join()


def test_calls_run_concurrently(client: BlipClient, blip: Simulator, bot: Bot) -> None:
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


def test_each_call_has_its_own_deadline(
    client: BlipClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, passed = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed[0])
    with answering(TAKEN) as server:
        for _ in range(4):
            assert send(client, server.bot) is None
            passed[0] += 0.6 * 10

        assert server.connections == 1


def test_failed_connection_is_not_kept(client: BlipClient, blip: Simulator) -> None:
    bot = Bot(name="default", base_url=blip.url, key=blip.key)
    blip.add_fault(path="messages", truncate=True, times=1)
    send(client, bot)

    assert send(client, bot) is None
