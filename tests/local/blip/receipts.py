"""A message that was accepted, its events, and the receipts posted about them."""

import asyncio
import json
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

import aiohttp

from tests.local.blip.lime import SERVER, Json
from tests.local.blip.settings import Delays, Receipts

_EDGE = f"{SERVER}/#az-iris6"


@dataclass(slots=True, frozen=True)
class Event:
    """Something that happens to a message at a time, which may still be to come."""

    name: str
    at: float
    reason: Json | None = None


@dataclass(slots=True, frozen=True)
class Message:
    """One accepted message. The same id accepted twice is two of these, as on the phone.

    Attributes:
        number: counts up from 1.
        phone: the number whose look-up gave out `to`.
        raw: the envelope as it came.
        at: when it was accepted, in epoch seconds.
    """

    number: int
    id: str | None
    bot: str
    to: str
    phone: str | None
    template: str | None
    raw: bytes = field(repr=False)
    at: float
    repeated: bool
    events: tuple[Event, ...]

    def happened(self, now: float) -> list[Event]:
        return [event for event in self.events if event.at <= now]

    def view(self, now: float) -> Json:
        """The message as the inbox shows it."""
        envelope = json.loads(self.raw)
        content = envelope["content"]
        sent = content.get("template") if isinstance(content, dict) else None
        sent = sent if isinstance(sent, dict) else {}
        language = sent.get("language")
        happened = self.happened(now)
        return {
            "number": self.number,
            "id": self.id,
            "bot": self.bot,
            "to": self.to,
            "phone": self.phone,
            "template": self.template,
            "language": language.get("code") if isinstance(language, dict) else None,
            "components": sent.get("components"),
            "envelope": envelope,
            "repeated": self.repeated,
            "accepted_at": _iso(self.at),
            "status": happened[-1].name if happened else "posted",
            "reason": happened[-1].reason if happened else None,
            "receipts": [
                {"event": event.name, "at": _iso(event.at)}
                | ({"reason": event.reason} if event.reason else {})
                for event in happened
            ],
        }

    def receipt(self, event: Event) -> Json:
        """The event as a LIME notification."""
        far = event.name in ("received", "consumed")
        receipt: Json = {
            "id": self.id,
            "from": self.to if far else _EDGE,
            "to": f"{self.bot}@msging.net",
            "event": event.name,
            "metadata": {
                "$elapsedTimeToStorage": "00:00:00.0012345",
                "#message.to": self.to,
                "#message.uniqueId": str(uuid.UUID(int=self.number)),
                "#envelope.timestamp": str(int(event.at * 1000)),
                "#envelope.storageDate": _iso(event.at),
            },
        }
        if far:
            receipt["metadata"]["#wa.timestamp"] = str(int(event.at))
        if event.reason:
            receipt["reason"] = event.reason
        return receipt


def timeline(
    at: float, delays: Delays, *, reason: Json | None, only: list[str] | None
) -> tuple[Event, ...]:
    """The events of a message accepted at that time; `only` leaves the others out."""
    planned: list[tuple[str, float | None]] = [
        ("accepted", delays.accepted),
        ("dispatched", delays.dispatched),
    ]
    if reason is None:
        planned += [("received", delays.received), ("consumed", delays.consumed)]
    else:
        planned += [("failed", delays.failed)]
    return tuple(
        Event(name, at + delay, reason if name == "failed" else None)
        for name, delay in planned
        if delay is not None and (only is None or name in only)
    )


class Postman:
    """Posts receipts to the bots' webhook.

    Attributes:
        counts: `posted` (answered 2xx), `retried`, `given_up`.
        last_problem: why the last post did not succeed.
        random: what the order of receipts is drawn from.
    """

    def __init__(self) -> None:
        self.random = Random()
        self.counts: Counter[str] = Counter()
        self.last_problem: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self._gates: dict[int, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    def announce(self, message: Message, settings: Receipts, now: float) -> None:
        """Plan the posts of a message's events."""
        loop = asyncio.get_running_loop()
        times = [event.at for event in message.events]
        if settings.out_of_order:
            self.random.shuffle(times)
        for event, at in zip(message.events, times, strict=True):
            for _ in range(1 + settings.duplicates):
                self._plan(
                    loop, max(0.0, at - now) + settings.late_seconds, message, event, settings
                )

    def _plan(
        self,
        loop: asyncio.AbstractEventLoop,
        delay: float,
        message: Message,
        event: Event,
        settings: Receipts,
    ) -> None:
        def start() -> None:
            self._timers.discard(timer)
            task = loop.create_task(self._post(message, event, settings))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        timer = loop.call_later(delay, start)
        self._timers.add(timer)

    async def _post(self, message: Message, event: Event, settings: Receipts) -> None:
        receipt = message.receipt(event)
        receipt["id"] = f"{settings.prefix}{receipt['id']}"
        if settings.instance:
            receipt["to"] += "/instance-1"
        body = json.dumps(receipt).encode()
        for attempt in range(settings.retries + 1):
            if attempt:
                self.counts["retried"] += 1
                await asyncio.sleep(settings.retry_seconds * 2 ** (attempt - 1))
            async with self._gates.setdefault(
                settings.at_once, asyncio.Semaphore(settings.at_once)
            ):
                problem = await self._try(body, settings)
            if problem is None:
                self.counts["posted"] += 1
                return
            self.last_problem = problem
        self.counts["given_up"] += 1

    async def _try(self, body: bytes, settings: Receipts) -> str | None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=10)
            )
        try:
            async with self._session.post(
                settings.url or "",
                data=body,
                headers={"Content-Type": "application/json"} | settings.headers,
                timeout=aiohttp.ClientTimeout(total=settings.timeout_seconds),
                allow_redirects=False,
            ) as answer:
                text = await answer.text(errors="replace")
                return None if answer.status < 300 else f"HTTP {answer.status}: {text[:200]}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"{type(error).__name__}: {error}"

    def forget(self) -> None:
        """Drop what is not posted yet."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        self.forget()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def report(self) -> dict[str, Any]:
        counts = {name: self.counts[name] for name in ("posted", "retried", "given_up")}
        waiting = len(self._timers) + len(self._tasks)
        return counts | {"waiting": waiting, "last_problem": self.last_problem}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
