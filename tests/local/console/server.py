"""Serves the console on one port of this machine, in a thread of its own.

A page is rendered here and can be read without JavaScript. With it, what has changed comes as
server-sent events, rendered by the same templates.

Only the console's own pages may make a browser send something here: every request has to name
this machine as its host, and a POST the console as its origin. A browser runs no script and takes
no style but those in `static/`.
"""

import asyncio
import json
import mimetypes
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.local.console.pages import Pages, Tab
from tests.local.console.sources import Sources
from tests.local.console.state import State
from tests.local.console.tabs import TABS
from tests.local.events import listening
from tests.local.machine import HOST
from tests.local.stack import SIMULATED_BOTS, LocalStack

# How often what is new is looked for while a page is open.
LIVE_SECONDS = 0.25
MAX_FORM_BYTES = 1024 * 1024

_STATIC = Path(__file__).with_name("static")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not `no-referrer`: a browser would hide the origin of the console's own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

type _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Console:
    """The page of the local stack.

    with Console(sources) as console:
        print(console.url)
    """

    def __init__(self, sources: Sources, port: int = 0) -> None:
        """Make it.

        Args:
            sources: the stack.
            port: where it listens; 0: the system chooses.
        """
        self._pages = Pages(State(sources), TABS)
        self._port = port

    @property
    def url(self) -> str:
        """Its address, with a slash at the end."""
        return f"http://{HOST}:{self._port}/"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="console", daemon=True)
        self._thread.start()
        self._wait(self._start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wait(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start(self) -> None:
        self._stopping = asyncio.Event()
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_FORM_BYTES)
        app.on_response_prepare.append(_add_headers)
        app.router.add_get("/", _to_first_tab)
        for file in _STATIC.iterdir():
            app.router.add_get(f"/static/{file.name}", _answered_with(file))
        for tab in TABS:
            app.router.add_get(f"/{tab.name}", self._page(tab))
            app.router.add_get(f"/{tab.name}/live", self._live(tab))
            for path in tab.forms:
                app.router.add_post(f"/{tab.name}{path}", self._form(tab, path))
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self._port).start()
        self._port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        self._stopping.set()
        await self._runner.cleanup()
        await self._loop.shutdown_default_executor()

    # What is asked for

    def _page(self, tab: Tab) -> _Handler:
        async def show(request: web.Request) -> web.StreamResponse:
            return await asyncio.to_thread(self._pages.page, tab.name, request.query)

        return show

    def _form(self, tab: Tab, path: str) -> _Handler:
        async def take(request: web.Request) -> web.StreamResponse:
            form = await request.post()
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            return await asyncio.to_thread(tab.forms[path], self._pages, fields)

        return take

    def _live(self, tab: Tab) -> _Handler:
        async def follow(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            # The browser tells the last one when it connects again by itself.
            seen = request.headers.get("Last-Event-ID") or request.query.get("after", "")
            if request.query.get("run") != self._pages.state.run or not seen.isdecimal():
                await response.write(_event("reload", {}, 0))
                return response
            after = int(seen)
            while not self._stopping.is_set():
                now, news = await asyncio.to_thread(
                    self._pages.news, tab.name, request.query, after
                )
                if news:
                    await response.write(b"".join(_event(name, of, now) for name, of in news))
                after = now
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), LIVE_SECONDS)
            return response

        return follow

    # Who asks

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Refuse what another site makes a browser send here."""
        hosts = (f"{HOST}:{self._port}", f"localhost:{self._port}")
        if request.host not in hosts:
            return web.Response(status=421, text=f"This is {self.url}, and no other host.\n")
        if request.method not in {"GET", "HEAD"}:
            origin = request.headers.get("Origin", f"http://{request.host}")
            site = request.headers.get("Sec-Fetch-Site", "same-origin")
            if origin != f"http://{request.host}" or site != "same-origin":
                text = f"Only a page of {self.url} may send a form here.\n"
                return web.Response(status=403, text=text)
        return await handler(request)


@contextmanager
def console_of(stack: LocalStack, port: int = 0) -> Iterator[Console]:
    """Serve the console of a local stack; 0: the system chooses the port."""
    ledger = stack.aws.dynamodb.describe_table(TableName=stack.ledger_table)["Table"]
    clients = {
        "sqs": stack.aws.sqs,
        "dynamodb": stack.aws.dynamodb,
        "dynamodbstreams": stack.aws.client("dynamodbstreams"),
    }
    stream = ledger["LatestStreamArn"]
    with listening(stack.aws) as heard:
        sources = Sources(clients, stack.resources, stream, heard, stack.simulator, SIMULATED_BOTS)
        with Console(sources, port) as console:
            yield console


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


def _answered_with(file: Path) -> _Handler:
    """Return what answers with a file, which is read now.

    aiohttp's own way leaves the file open if the browser goes away meanwhile.
    """
    content, (content_type, _) = file.read_bytes(), mimetypes.guess_type(file.name)

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=content, content_type=content_type)

    return answer


async def _to_first_tab(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound(f"/{TABS[0].name}")


def _event(name: str, content: dict[str, Any], version: int) -> bytes:
    return f"event: {name}\nid: {version}\ndata: {json.dumps(content)}\n\n".encode()
