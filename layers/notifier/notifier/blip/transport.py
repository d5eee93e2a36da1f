"""HTTP connections to BLiP with three properties that httpx alone does not have.

Every call has a total deadline: httpx's read timeout starts anew with each packet, so an answer
that drips would hold a thread forever.

A call can wait for its send slot when the connection stands, before its first byte is written. If
it waited earlier, TCP's and TLS's handshakes would delay the first message of each new connection,
and one second would hold more messages than the plan allows. httpcore's trace hooks come too late
for this: after its deadline such a wait ends in `WriteTimeout`, and a connection that BLiP closes
meanwhile in `RemoteProtocolError`, as if a byte had left.

A connection that was idle for longer than MAX_IDLE_SECONDS of wall clock is not used again: a
frozen sandbox's monotonic clock may stand still, and a POST on a socket that the other side closed
meanwhile has an unknown outcome.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

MAX_IDLE_SECONDS = 15.0
# None is used again that would pass this limit while its call waits for a slot.
MAX_IDLE_BEFORE_WAIT_SECONDS = 12.0


@dataclass(slots=True)
class _Call:
    """One call.

    Attributes:
        deadline: when all of it has to have ended, by the monotonic clock.
        on_connected: what happens before its first byte is written; None once it has happened.
    """

    deadline: float
    on_connected: Callable[[], None] | None


_call: ContextVar[_Call | None] = ContextVar("call", default=None)


@contextmanager
def call(seconds: float, on_connected: Callable[[], None] | None = None) -> Iterator[None]:
    """Limit everything that the block does over the network to `seconds` in total.

    Args:
        seconds: the limit. The time that `on_connected` takes does not count.
        on_connected: called when the connection stands, before the first byte is written. What it
            raises ends the call, and nothing was written.
    """
    token = _call.set(_Call(time.monotonic() + seconds, on_connected))
    try:
        yield
    finally:
        _call.reset(token)


def _within(timeout: float | None, expired: type[Exception]) -> float | None:
    call = _call.get()
    if call is None:
        return timeout
    remaining = call.deadline - time.monotonic()
    if remaining <= 0:
        raise expired("the call's total deadline has passed")
    return remaining if timeout is None else min(timeout, remaining)


class _Stream(httpcore.NetworkStream):
    """A socket that knows the call it works for, and when it was last used."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._used_at = time.time()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, _within(timeout, httpcore.ReadTimeout))
        self._used_at = time.time()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._wait_before_first_byte()
        self._stream.write(buffer, _within(timeout, httpcore.WriteTimeout))
        self._used_at = time.time()

    def _wait_before_first_byte(self) -> None:
        call = _call.get()
        if call is None or call.on_connected is None:
            return
        on_connected, call.on_connected = call.on_connected, None
        began = time.monotonic()
        on_connected()
        call.deadline += time.monotonic() - began
        if time.time() - self._used_at > MAX_IDLE_SECONDS or _is_closed(
            self._stream.get_extra_info("socket")
        ):
            raise httpcore.ConnectError("the connection was closed before anything was written")

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        limit = _within(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, limit))

    def get_extra_info(self, info: str) -> Any:
        # httpcore asks this of an idle connection before it uses it again: "readable" means that
        # the other side hung up, and the connection is dropped.
        idle = time.time() - self._used_at
        if info == "is_readable" and idle > MAX_IDLE_BEFORE_WAIT_SECONDS:
            return True
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers, all of them together within `timeout`.

        The backend alone has the timeout for each address: four dead ones would take four times
        as long. The resolver cannot be interrupted; the template limits it by `RES_OPTIONS`.
        """
        limit = _within(timeout, httpcore.ConnectTimeout)
        ends_at = float("inf") if limit is None else time.monotonic() + limit
        addresses = _addresses(host, port)
        failure: Exception = httpcore.ConnectError("the host has no address")
        for number, address in enumerate(addresses):
            remaining = ends_at - time.monotonic()
            if remaining <= 0:
                raise httpcore.ConnectTimeout("no address answered in time")
            share = None if limit is None else remaining / (len(addresses) - number)
            try:
                return _Stream(
                    self._backend.connect_tcp(address, port, share, local_address, socket_options)
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the other side closed a connection, or spoke first, which HTTP does not.

    "Readable" would not do: after a TLS 1.3 handshake the server's session tickets are. Reading
    takes them in, and finds no data behind them.
    """
    connection.settimeout(0)
    try:
        connection.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    return True


def _addresses(host: str, port: int) -> list[str]:
    """Return a host's addresses in the resolver's order."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Transport(httpx.HTTPTransport):
    """httpx's own transport over connections that keep the deadline. Retries nothing."""

    _pool: httpcore.ConnectionPool

    def __init__(self, max_connections: int) -> None:
        ssl_context = httpx.create_ssl_context()  # reads a long file: once is enough
        super().__init__(verify=ssl_context)
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=MAX_IDLE_SECONDS,
            network_backend=_Backend(),
        )

    def is_connected(self, url: str) -> bool:
        """Return whether a call to this URL needs no new connection."""
        origin = httpcore.URL(url).origin
        return any(
            connection.is_idle()
            and connection.can_handle_request(origin)
            and not connection.has_expired()
            for connection in self._pool.connections
        )
