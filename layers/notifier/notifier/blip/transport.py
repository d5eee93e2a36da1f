"""HTTP connections to BLiP with two properties that httpx alone does not give.

Every call has a total deadline: httpx's read timeout starts anew with each packet, so an answer
that drips would hold a thread for ever. And a connection that lay idle for longer than
MAX_IDLE_SECONDS of wall clock is not used again: a frozen sandbox's monotonic clock may stand
still, and a POST on a socket that the other side closed meanwhile has an unknown outcome.
"""

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

MAX_IDLE_SECONDS = 15.0

_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


@contextmanager
def total_deadline(seconds: float) -> Iterator[None]:
    """Let everything that the block does over the network end within `seconds`."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def _within(timeout: float | None, expired: type[Exception]) -> float | None:
    remaining = _deadline.get() - time.monotonic()
    if remaining <= 0:
        raise expired("the call's total deadline has passed")
    if remaining == float("inf"):
        return timeout
    return remaining if timeout is None else min(timeout, remaining)


class _Stream(httpcore.NetworkStream):
    """A socket that knows the deadline of the call it works for, and when it was last used."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._used_at = time.time()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, _within(timeout, httpcore.ReadTimeout))
        self._used_at = time.time()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _within(timeout, httpcore.WriteTimeout))
        self._used_at = time.time()

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
        if info == "is_readable" and time.time() - self._used_at > MAX_IDLE_SECONDS:
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
        limit = _within(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_tcp(host, port, limit, local_address, socket_options))


class Transport(httpx.HTTPTransport):
    """httpx's own transport over connections that keep the deadline. Retries nothing."""

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
