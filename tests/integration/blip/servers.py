"""Servers that do worse than the simulator, and calls to them."""

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from notifier.blip.client import BlipClient
from notifier.contract.template import Template
from notifier.domain.bots import Bot
from notifier.domain.failures import (
    Failure,
)
from tests.support.builders import KEY

PHONE = "+5511999998888"
IDENTITY = "5511999998888@wa.gw.msging.net"
TEMPLATE = Template(name="order_shipped", language="pt_BR", body=["Maria", "981"])
TAKEN = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
SURELY_SECONDS = 20.0


def at(port: int, scheme: str = "http") -> Bot:
    return Bot(name="default", base_url=f"{scheme}://127.0.0.1:{port}", key=KEY)


def at_once() -> None:
    """Do not wait for a slot."""


def send(client: BlipClient, bot: Bot, message_id: str = "id") -> Failure | None:
    try:
        client.send(bot, message_id, IDENTITY, TEMPLATE, at_once)
    except Failure as failure:
        return failure
    return None


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
        """Return one request; raise EOFError if no more arrives."""
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
    """Return a server that answers each request with these parts until it closes."""

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
