"""The processes of the deployed functions, and how to kill one: at random, or at a call.

Linux only: which process is behind a connection is read from /proc.
"""

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from tests.local.machine import HOST

type Side = Literal["before", "after"]

_NAME = b"AWS_LAMBDA_FUNCTION_NAME="
# The kernel's list leaves out a line now and then while connections come and go.
TRIES = 5
# What belongs to one connection only, and is made anew for the other one.
_PER_CONNECTION = {"host", "connection", "content-length", "transfer-encoding"}


@dataclass(frozen=True)
class Sandbox:
    """A process that runs a function.

    Attributes:
        function: its physical name.
    """

    pid: int
    function: str

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def sandboxes(home: Path) -> list[Sandbox]:
    """Return the sandboxes of a local stack: processes that work in its folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if not (process / "cwd").readlink().is_relative_to(home):
                continue
            variables = (process / "environ").read_bytes().split(b"\0")
            names = [each.removeprefix(_NAME) for each in variables if each.startswith(_NAME)]
            found += [Sandbox(int(process.name), name.decode()) for name in names]
    return found


def sandbox_behind(home: Path, port: int) -> Sandbox | None:
    """Return the sandbox at the other end of a connection, by that end's port, if it lives."""
    for _ in range(TRIES):
        socket = _socket_at(port)
        for sandbox in sandboxes(home):
            with contextlib.suppress(OSError):
                for descriptor in Path(f"/proc/{sandbox.pid}/fd").iterdir():
                    with contextlib.suppress(FileNotFoundError):
                        if str(descriptor.readlink()) == socket:
                            return sandbox
    return None


def _socket_at(port: int) -> str:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].partition(":")[2], 16) == port:
            return f"socket:[{fields[9]}]"
    return ""


class Killer:
    """A proxy between the functions and all that they call, which kills a sandbox at a call.

    It passes everything on as it is. Every call of the function under test is counted; at
    the one that was asked for, the process that made it gets SIGKILL: before the call goes on, or
    when its answer is there and the process has not seen it.
    """

    def __init__(self, home: Path, passed_on: Mapping[int, str]) -> None:
        """Make it.

        Args:
            home: the local stack's folder.
            passed_on: by port to listen on, where to.
        """
        self._home = home
        self._passed_on = passed_on
        self._function = ""
        self._kill_at: tuple[int | str, Side] | None = None
        self._calls: list[str] = []
        self._killed = threading.Event()

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="killer", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def watch(self, function: str, kill_at: tuple[int | str, Side] | None = None) -> None:
        """Count a function's calls from now on, and kill its sandbox at one of them.

        Args:
            function: its physical name; empty for none.
            kill_at: the call's number, from 1, or its name, and on which side of it.
        """
        self._killed.clear()
        self._calls, self._function, self._kill_at = [], function, kill_at

    def calls(self) -> list[str]:
        """Return the names of the calls counted so far."""
        return list(self._calls)

    def wait_for_kill(self, seconds: float) -> bool:
        """Return whether the sandbox was killed, as soon as it is."""
        return self._killed.wait(seconds)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
        )
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None))
        await self._runner.setup()
        for port in self._passed_on:
            await web.TCPSite(self._runner, HOST, port).start()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        assert transport
        body = await request.read()
        victim, side = self._count(request, body)
        if victim and side == "before":
            self._kill(victim)
            transport.abort()
            return web.Response()
        port = transport.get_extra_info("sockname")[1]
        try:
            async with self._session.request(
                request.method,
                f"{self._passed_on[port]}{request.path_qs}",
                data=body,
                headers=_without(request.headers),
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
        except aiohttp.ClientError:
            # The connection broke there, so it breaks here.
            transport.abort()
            return web.Response()
        finally:
            if victim:
                self._kill(victim)
        if victim:
            transport.abort()
        return web.Response(status=answer.status, body=content, headers=_without(answer.headers))

    def _count(self, request: web.BaseRequest, body: bytes) -> tuple[Sandbox | None, Side]:
        """Count a call. Return the sandbox to kill, if this is the call to kill it at."""
        assert request.transport
        if not self._function or self._killed.is_set():
            return None, "before"
        caller = sandbox_behind(self._home, request.transport.get_extra_info("peername")[1])
        if caller is None or caller.function != self._function:
            return None, "before"
        name = _name(request, body)
        self._calls.append(name)
        call, side = self._kill_at or (0, "before")
        return (caller if call in {len(self._calls), name} else None), side

    def _kill(self, victim: Sandbox) -> None:
        victim.kill()
        self._killed.set()


def _without(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _PER_CONNECTION}


def _name(request: web.BaseRequest, body: bytes) -> str:
    """Name a call: AWS's operation, with what it is done to; or BLiP's resource."""
    operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
    document = json.loads(body)
    if not operation:
        if request.path == "/messages":
            return "BLiP: send"
        return f"BLiP: {urlsplit(document['uri']).path.strip('/').partition('/')[0]}"
    subject = document.get("TableName") or document.get("QueueUrl", "").rpartition("/")[2]
    return f"{operation} {subject}".strip()
