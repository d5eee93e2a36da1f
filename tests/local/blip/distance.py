"""The way to BLiP: connections that take a while to stand, with TLS or without."""

import asyncio
import datetime
import ipaddress
import ssl
import tempfile
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from pathlib import Path
from typing import cast

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class FarServer(web.Server):
    """An aiohttp server whose connections stand only some time after the system accepted them.

    The system completes TCP's handshake by itself, so that much cannot be delayed. Until the
    connection stands, nothing is read from it. With TLS that is the client's own set-up: its
    handshake is not answered, and it has not written a request yet. Without TLS, the client takes
    the connection for ready and writes its first request, which arrives when the connection stands.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], object],
        set_up_seconds: Callable[[], float],
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(handler, access_log=None)  # type: ignore[arg-type]
        self.set_up_seconds = set_up_seconds
        self.tls = tls
        self.setting_up: set[asyncio.Transport] = set()

    def __call__(self) -> web.RequestHandler:
        seconds = self.set_up_seconds()
        if not seconds and self.tls is None:
            return super().__call__()
        connection = _SettingUp(self, super().__call__(), seconds)
        return cast("web.RequestHandler", connection)  # all that asyncio needs is a protocol

    def abort_set_ups(self) -> None:
        """Drop the connections that do not stand yet."""
        for transport in list(self.setting_up):
            transport.abort()


class _SettingUp(asyncio.Protocol):
    """Holds a new connection, then hands it to its protocol."""

    def __init__(self, server: FarServer, handler: web.RequestHandler, seconds: float) -> None:
        self._server = server
        self._handler = handler
        self._seconds = seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        transport.pause_reading()
        self._server.setting_up.add(transport)
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._seconds, self._stand, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._timer.cancel()
        self._server.setting_up.discard(self._transport)

    def _stand(self, transport: asyncio.Transport) -> None:
        self._server.setting_up.discard(transport)
        protocol: asyncio.Protocol | SSLProtocol = self._handler
        if self._server.tls is not None:
            loop = asyncio.get_running_loop()
            protocol = SSLProtocol(
                loop,
                self._handler,
                self._server.tls,
                None,  # type: ignore[arg-type] # asyncio allows it: no waiter
                server_side=True,
            )
        transport.set_protocol(cast("asyncio.Protocol", protocol))
        protocol.connection_made(transport)
        transport.resume_reading()


def certified(certificate: Path, host: str) -> ssl.SSLContext:
    """Write a new certificate that is its own authority, and return a context that has its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "BLiP simulator")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    certificate.write_bytes(signed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(secret + signed)
        file.flush()
        context.load_cert_chain(file.name)
    return context
