"""Runs the simulator: as a server in the current event loop, or in a thread for tests."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.local.blip import control
from tests.local.blip.control import Control
from tests.local.blip.distance import FarServer, certified
from tests.local.blip.lime import Json
from tests.local.blip.server import PATHS, Blip, Request
from tests.local.blip.settings import Bot, Settings
from tests.local.blip.templates import Template


class Server:
    """Serves one Blip on one port."""

    def __init__(
        self,
        blip: Blip,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: Path | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._blip = blip
        self._tls = certified(certificate, host) if certificate else None
        self._control = Control(blip, self._plan_outage)
        self._outage: asyncio.Task[None] | None = None
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen; a port of 0 becomes the one that the system chose."""
        self._server = FarServer(self._handle, self._blip.set_up_seconds, self._tls)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop_listening(self) -> None:
        """Close the port and every connection: clients are refused until start()."""
        if self._runner is not None:
            self._server.abort_set_ups()
            await self._runner.cleanup()
            self._runner = None

    def _plan_outage(self, seconds: float) -> None:
        async def outage() -> None:
            await asyncio.sleep(0.05)  # the request that wants it is answered first
            await self.stop_listening()
            await asyncio.sleep(seconds)
            await self.start()

        if self._outage is None or self._outage.done():
            self._outage = asyncio.create_task(outage())

    async def stop(self) -> None:
        if self._outage is not None:
            self._outage.cancel()
        self._blip.stop()
        await self.stop_listening()
        await self._blip.postman.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path in PATHS:
            return await self._blip.handle(request)
        if request.path.startswith(control.PREFIX):
            return await self._control.handle(request)
        return web.Response(status=404)


class Simulator:
    """The simulator in a thread of its own. Every method may be called from any thread.

    with Simulator() as blip:
        httpx.post(f"{blip.url}/messages", headers={"Authorization": blip.key}, json=...)
        assert blip.inbox()[0]["status"] == "consumed"

    Args:
        certificate: a file to write a certificate to. The simulator then speaks TLS only, and its
            clients trust it with SSL_CERT_FILE.

    Attributes:
        url: without a slash at the end.
        key: the first bot's whole Authorization header.
    """

    def __init__(
        self,
        *,
        bots: Sequence[Bot] | None = None,
        templates: list[Template] | None = None,
        settings: Settings | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: Path | None = None,
    ) -> None:
        self._bots = list(bots or [Bot()])
        self._blip = Blip(self._bots, templates, settings)
        self._server = Server(self._blip, host, port, certificate)
        self.key = self._bots[0].key

    def start(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="blip", daemon=True)
        self._thread.start()
        self._wait(self._server.start())
        return self

    def stop(self) -> None:
        self._wait(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def _call[T](self, function: Callable[[Blip], T]) -> T:
        async def run() -> T:
            return function(self._blip)

        return self._wait(run())

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def requests(self) -> list[Request]:
        """The requests on the three paths, oldest first, refused ones too."""
        return self._call(lambda blip: list(blip.requests))

    def inbox(self, **query: str) -> list[Json]:
        """The accepted messages; the query is that of GET /_simulator/inbox."""
        return self._call(lambda blip: control.inbox(blip, query))

    def statistics(self) -> Json:
        return self._call(lambda blip: blip.statistics())

    def add_fault(self, **rule: Any) -> int:
        """Add a rule with the members of `faults.Fault`; its number."""
        return self._call(lambda blip: control.add_fault(blip, rule)._number)

    def faults(self) -> list[Json]:
        return self._call(lambda blip: blip.faults.report())

    def clear_faults(self) -> None:
        self._call(lambda blip: blip.faults.remove())

    def clear(self) -> None:
        """Forget messages, look-ups, requests, counts and penalties; settings and rules stay."""
        self._call(lambda blip: blip.clear())

    def configure(self, **changes: Any) -> None:
        """Change settings: `configure(penalty_seconds=1, receipts={"url": ...})`."""
        self._call(lambda blip: blip.change(changes))

    def put_bot(self, bot: Bot) -> None:
        """Add a bot, or give one of that name another key or plan."""
        self._call(lambda blip: blip.put_bot(bot))

    def template(
        self, name: str | None, language: str | None, bot: str | None = None
    ) -> Template | None:
        """Return a bot's template, whatever its status; None if there is none.

        Without a bot, it is the template that every bot has.
        """
        return self._call(lambda blip: blip.registry.find(name, language, bot))

    def templates(self, bot: str) -> list[Template]:
        """Return the templates that a bot has now, however long the list that it reads lags."""
        return self._call(lambda blip: blip.registry.of(bot))

    def template_changes(self) -> int:
        """Return a number that counts up with every change of a template."""
        return self._call(lambda blip: blip.registry.changes)

    def put_templates(self, *templates: Template) -> None:
        """Add templates, or replace those of the same name and language."""
        self._call(lambda blip: blip.registry.put(list(templates)))

    def change_template(
        self, name: str, language: str | None = None, bot: str | None = None, **changes: Any
    ) -> list[Template]:
        """Change attributes of a template: `change_template("order_shipped", status="PAUSED")`.

        Args:
            name: its name.
            language: None: all languages that it has.
            bot: only this bot's; None: every bot's.
            changes: as in `templates.Template`.

        Raises:
            ValueError: there is no such template, or a change does not fit it.
        """
        return self._call(lambda blip: blip.registry.change(name, language, bot, changes))

    def remove_templates(
        self, name: str | None = None, language: str | None = None, bot: str | None = None
    ) -> None:
        """Remove templates, chosen as in `change_template`; without a name, all of them."""
        self._call(lambda blip: blip.registry.remove(name, language, bot))

    def set_identity(self, phone: str, identity: str) -> None:
        """Make look-ups of a number answer that identity."""
        self._call(lambda blip: blip.overrides.update({phone: identity}))

    def know(self, phone: str, bot: str | None = None) -> str:
        """Count a number as looked up, and give its identity."""
        return self._call(lambda blip: blip.know(phone, bot or self._bots[0].name))

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Refuse every connection meanwhile."""
        self._wait(self._server.stop_listening())
        try:
            yield
        finally:
            self._wait(self._server.start())

    def wait_for_messages(self, count: int, timeout_seconds: float = 60) -> list[Json]:
        """The inbox as soon as it holds so many messages, or TimeoutError."""
        wait_until(lambda: self._call(lambda blip: len(blip.messages)) >= count, timeout_seconds)
        return self.inbox()


def wait_until(condition: Callable[[], bool], timeout_seconds: float = 60) -> None:
    """Return when the condition holds, or raise TimeoutError."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {timeout_seconds} s")
        time.sleep(0.005)
