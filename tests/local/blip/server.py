"""The three paths of BLiP's HTTP API: what becomes of a request, from its headers to its answer."""

import asyncio
import json
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from aiohttp import web

from tests.local.blip import accounts, lime
from tests.local.blip.faults import Fault, Faults
from tests.local.blip.lime import GATEWAY, SERVER, WHATSAPP_DOMAIN, Json
from tests.local.blip.listing import enriched, plain
from tests.local.blip.misfits import DESCRIPTIONS, MisfitError, check
from tests.local.blip.receipts import Message, Postman, timeline
from tests.local.blip.registry import Registry
from tests.local.blip.settings import Bot, Delay, Settings, Templates
from tests.local.blip.templates import Template, read
from tests.local.blip.throughput import OtherTraffic, Throttle

PATHS = frozenset({"/messages", "/notifications", "/commands"})
_KEPT_REQUESTS = 50_000
_MAX_PAGE = 100
_ACCOUNT = "application/vnd.lime.account+json"
_COLLECTION = "application/vnd.lime.collection+json"
_RECEIPT = "application/vnd.lime.notification+json"
_PING = "application/vnd.lime.ping+json"


@dataclass(slots=True)
class Request:
    """One request on the three paths, as `Simulator.requests` shows it.

    Attributes:
        kind: messages, notifications, lookups, history, templates, ping, other; empty if refused
            unread.
        status: of the answer; 0 where none was given.
        accepted: its envelope was processed.
        at, ended: epoch seconds, when it arrived and when its answer left.
    """

    path: str
    headers: Mapping[str, str] = field(repr=False)
    at: float
    body: bytes = b""
    bot: str | None = None
    kind: str = ""
    status: int = 0
    accepted: bool = False
    ended: float | None = None

    @property
    def envelope(self) -> Json:
        envelope: Json = json.loads(self.body)
        return envelope


@dataclass(slots=True)
class Answer:
    """What is written back."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, status: int, document: Any, headers: dict[str, str] | None = None) -> "Answer":
        body = json.dumps(document, ensure_ascii=False).encode()
        return cls(status, body, {"Content-Type": "application/json"} | (headers or {}))

    @classmethod
    def refusal(cls, status: int, code: int, description: str | None = None) -> "Answer":
        return cls.of(status, lime.reason(code, description))

    def raw(self) -> bytes:
        head = [f"HTTP/1.1 {self.status} Simulated", f"Content-Length: {len(self.body)}"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*head, "", ""]).encode() + self.body


class Blip:
    """The simulator's state and what it answers. Lives in one event loop."""

    def __init__(
        self,
        bots: Sequence[Bot],
        templates: list[Template] | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.bots: dict[str, Bot] = {}
        self.settings = settings or Settings()
        self.traffic: dict[str, OtherTraffic] = {}
        self.registry = Registry(read() if templates is None else templates)
        self.faults = Faults()
        self.postman = Postman()
        self.overrides: dict[str, str] = {}
        self._seed()
        self._keys: dict[str, Bot] = {}
        self._stopping = False
        self.clear()
        for bot in bots:
            self.put_bot(bot)

    def change(self, changes: dict[str, Any]) -> None:
        """Change some settings; a seed among them makes random numbers start anew."""
        self.settings = self.settings.changed(changes)
        if "seed" in changes:
            self._seed()

    def _seed(self) -> None:
        self._distances = self._random("distance")
        self._jitter = self._random("jitter")
        self.faults.random = self._random("faults")
        self.postman.random = self._random("receipts")
        for bot in self.bots.values():
            self._start_traffic(bot)

    def _random(self, purpose: str) -> Random:
        seed = self.settings.seed
        return Random() if seed is None else Random(f"{seed} {purpose}")

    def clear(self) -> None:
        """Forget messages, look-ups, requests, counts and penalties; settings and rules stay."""
        self.postman.forget()
        self.messages: list[Message] = []
        self.by_id: defaultdict[tuple[str, str], list[Message]] = defaultdict(list)
        self.given_out: dict[tuple[str, str], str] = {}
        self.requests: deque[Request] = deque(maxlen=_KEPT_REQUESTS)
        self.statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.kinds: Counter[str] = Counter()
        self.lookups: Counter[str] = Counter()
        self.never_sent: set[str] = set()
        self.marketing: Counter[tuple[str, str]] = Counter()
        self.consumed: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.most_in_flight: Counter[str] = Counter()
        self.throttles: defaultdict[str, Throttle] = defaultdict(Throttle)
        self.faults.restart_magic()
        for bot in self.bots.values():
            self._start_traffic(bot)

    def put_bot(self, bot: Bot) -> None:
        """Add a bot, or give one of that name another key, plan or traffic."""
        self._start_traffic(bot)
        self._keys = {key: other for key, other in self._keys.items() if other.name != bot.name}
        self._keys[bot.key] = bot
        self.bots[bot.name] = bot

    def _start_traffic(self, bot: Bot) -> None:
        self.traffic.pop(bot.name, None)
        if bot.traffic is not None:
            self.traffic[bot.name] = OtherTraffic(
                bot.traffic, time.monotonic(), self._random(f"traffic of {bot.name}")
            )

    def set_up_seconds(self) -> float:
        """Return how long the next connection takes to stand."""
        return self.settings.distance.set_up.draw(self._distances)

    def identity_of(self, phone: str) -> str:
        return self.overrides.get(phone) or accounts.identity_of(phone)

    def know(self, phone: str, bot: str) -> str:
        """Return out a number's identity without a look-up."""
        identity = self.identity_of(phone)
        self.given_out[bot, identity] = phone
        return identity

    def stop(self) -> None:
        """Release requests that hang."""
        self._stopping = True

    # One request

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request to one of PATHS."""
        path = request.path
        self.in_flight[path] += 1
        self.most_in_flight[path] = max(self.most_in_flight[path], self.in_flight[path])
        try:
            await self._travel(self.settings.distance.there)
            record = Request(path, request.headers, time.time())
            self.requests.append(record)
            answer, fault = await self._answer(request, record)
            record.status = answer.status if answer else 0
            record.ended = time.time()
            self.statuses[path][record.status] += 1
            await self._travel(self.settings.distance.back)
            return await self._write(request, answer, fault)
        finally:
            self.in_flight[path] -= 1

    async def _travel(self, delay: Delay) -> None:
        if seconds := delay.draw(self._distances):
            await asyncio.sleep(seconds)

    async def _answer(
        self, request: web.BaseRequest, record: Request
    ) -> tuple[Answer | None, Fault | None]:
        path = record.path
        if request.method != "POST":
            return Answer(405, headers={"Allow": "POST"}), None
        bot = self._keys.get(request.headers.get("Authorization", ""))
        if bot is None:
            return Answer.refusal(401, 13), None
        record.bot = bot.name
        if request.headers.get("Content-Type") not in _CONTENT_TYPES[path]:
            return Answer.refusal(415, 23, "The Content-Type has to be application/json"), None
        if refused := self._refuse(bot, path.removeprefix("/")):
            return refused, None
        try:
            record.body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return Answer.refusal(413, 21, "The envelope is larger than 1 MiB"), None
        try:
            envelope = lime.parse(path, record.body, bot.identity)
        except lime.InvalidEnvelopeError as error:
            return Answer.of(error.status, error.reason), None
        match path:
            case "/messages":
                return await self._message(bot, envelope, record, request)
            case "/commands":
                return await self._command(bot, envelope, record, request)
            case _:
                record.kind = "notifications"

                def consume() -> Answer:
                    self.consumed[envelope["event"]] += 1
                    return Answer(202)

                fault = self._fault(bot, record, (None, None), None, envelope["id"])
                return await self._misbehave(fault, record, request, consume), fault

    def _refuse(self, bot: Bot, kind: str) -> Answer | None:
        settings = self.settings
        now = time.monotonic()
        self._count_traffic(bot, now)
        seconds = self._over_the_plan(bot, kind, now)
        if seconds is None or not settings.throttle:
            return None
        refusal = Answer.refusal(429, 34)
        if settings.retry_after:
            refusal.headers["Retry-After"] = str(int(seconds) + 1)
        return refusal

    def _over_the_plan(self, bot: Bot, kind: str, at: float) -> float | None:
        settings = self.settings
        limit = bot.limit(kind) if settings.throttle else None
        return self.throttles[bot.name].refuses(
            kind, limit, settings.penalty_seconds, at, prolonged=settings.penalty_prolonged
        )

    def _count_traffic(self, bot: Bot, now: float) -> None:
        """Count against the plan what others have sent with the bot's key until now."""
        if traffic := self.traffic.get(bot.name):
            for at in traffic.until(now):
                traffic.refused += self._over_the_plan(bot, "messages", at) is not None

    def _fault(
        self,
        bot: Bot,
        record: Request,
        recipient: tuple[str | None, str | None],
        template: str | None,
        key: str | None,
        content: Any = None,
    ) -> Fault | None:
        self.kinds[record.kind] += 1
        return self.faults.find(
            record.kind, bot.name, recipient, template, key, content, time.monotonic()
        )

    async def _misbehave(
        self,
        fault: Fault | None,
        record: Request,
        request: web.BaseRequest,
        process: Callable[[], Answer],
    ) -> Answer | None:
        """Process the envelope, or not, as the fault wants it; None is no answer."""
        settings = self.settings
        seconds = settings.latency_seconds
        seconds += self._jitter.random() * settings.latency_jitter_seconds
        if fault:
            seconds += fault.latency_seconds + self._jitter.random() * fault.jitter_seconds
        if seconds:
            await asyncio.sleep(seconds)
        if fault is None:
            record.accepted = True
            return process()
        answer = Answer(202 if record.path != "/commands" else 200)
        if fault.accepts:
            record.accepted = True
            answer = process()
        if fault.answer_latency_seconds:
            await asyncio.sleep(fault.answer_latency_seconds)
        if fault.hang:
            while not (self._stopping or _gone(request)):  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.05)
        if fault.hang or fault.drop:
            return None
        if fault.status is not None:
            return _answer_of(fault, fault.status)
        if fault.body is not None or fault.headers:
            return _answer_of(fault, answer.status)
        return answer

    async def _write(
        self, request: web.BaseRequest, answer: Answer | None, fault: Fault | None
    ) -> web.StreamResponse:
        transport = request.transport
        if answer is not None and not (fault and (fault.truncate or fault.dribble_seconds)):
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
        if answer is not None and fault is not None and transport is not None:
            raw = answer.raw()
            raw = raw[: -(len(answer.body) // 2) or len(raw) // 2] if fault.truncate else raw
            step = 1 if fault.dribble_seconds else len(raw)
            for start in range(0, len(raw), step):
                if self._stopping or transport.is_closing():
                    break
                transport.write(raw[start : start + step])
                await asyncio.sleep(fault.dribble_seconds)
            transport.close()
        elif transport is not None:
            transport.abort()
        return web.Response()

    # Messages

    async def _message(
        self, bot: Bot, envelope: Json, record: Request, request: web.BaseRequest
    ) -> tuple[Answer | None, Fault | None]:
        record.kind = "messages"
        identity = envelope["to"]
        phone = self.given_out.get((bot.name, identity))
        content = envelope["content"]
        template, _ = _template_of(content)
        fault = self._fault(bot, record, (phone, identity), template, envelope.get("id"), content)

        def process() -> Answer:
            self._accept(bot, envelope, record.body, phone, template, fault)
            return Answer(202)

        return await self._misbehave(fault, record, request, process), fault

    def _accept(
        self,
        bot: Bot,
        envelope: Json,
        raw: bytes,
        phone: str | None,
        template: str | None,
        fault: Fault | None,
    ) -> None:
        identifier = envelope.get("id")
        before = self.by_id.get((bot.name, identifier)) if identifier else None
        if before and self.settings.deduplicate:
            return
        if phone:
            self.never_sent.discard(phone)
        now = time.time()
        receipts = self.settings.receipts
        reason = self._failure(bot, envelope, phone, fault)
        message = Message(
            number=len(self.messages) + 1,
            id=identifier,
            bot=bot.name,
            to=envelope["to"],
            phone=phone,
            template=template,
            raw=raw,
            at=now,
            repeated=bool(before),
            events=timeline(
                now,
                receipts.delays,
                reason=reason,
                only=fault.events if fault else None,
            )
            if identifier
            else (),
        )
        self.messages.append(message)
        limit = self.settings.templates.pause_after_failures
        if reason and limit:
            self.registry.count_failure(bot.name, *_template_of(envelope["content"]), limit)
        if identifier:
            self.by_id[bot.name, identifier].append(message)
            if receipts.url and bot.webhook:
                self.postman.announce(message, receipts, now)

    def _failure(
        self, bot: Bot, envelope: Json, phone: str | None, fault: Fault | None
    ) -> Json | None:
        """Why the message will not arrive."""
        if not bot.whatsapp:
            return lime.reason(81)
        if not envelope["to"].partition("/")[0].endswith(f"@{WHATSAPP_DOMAIN}"):
            return lime.reason(42)
        if phone is None and self.settings.strict_identities:
            return lime.reason(42, "Destination not found: no look-up gave out this identity")
        if fault and fault.receipt is not None:
            return self._whatsapp_reason(fault.receipt, None)
        if envelope["type"] != "application/json":
            return self._whatsapp_reason(131047, None)
        try:
            template = check(envelope["content"], partial(self.registry.find, bot=bot.name))
        except MisfitError as misfit:
            return self._whatsapp_reason(misfit.code, misfit.description)
        if bot.marketing is not None and template.category == "MARKETING":
            recipient = (bot.name, envelope["to"])
            self.marketing[recipient] += 1
            if bot.marketing.first is None or self.marketing[recipient] <= bot.marketing.first:
                return self._whatsapp_reason(bot.marketing.code, None)
        return None

    def _whatsapp_reason(self, code: int, description: str | None) -> Json:
        if code in lime.DESCRIPTIONS:
            return lime.reason(code)
        description = description or f"(#{code}) {DESCRIPTIONS.get(code, 'WhatsApp error')}"
        return lime.reason(code if self.settings.reason_codes == "meta" else 81, description)

    # Commands

    async def _command(
        self, bot: Bot, envelope: Json, record: Request, request: web.BaseRequest
    ) -> tuple[Answer | None, Fault | None]:
        node, _, _ = envelope.get("to", SERVER).partition("/")
        record.kind, subject, answer = self._resource(bot, node, envelope)
        recipient: tuple[str | None, str | None] = (None, None)
        if record.kind == "lookups":
            recipient = (subject, self.identity_of(subject))
            self.lookups[subject] += 1
        template = subject if record.kind == "templates" else None
        fault = self._fault(bot, record, recipient, template, subject)

        def process() -> Answer:
            if fault and fault.failure is not None:
                document = _failure(fault.failure)
            elif fault and fault.empty:
                is_history = record.kind == "history"
                document = _collection([]) if is_history else self._listed([], 0)
            else:
                document = answer()
            origin = f"{node}/#az-iris4" if node == SERVER else node
            uri = envelope["uri"]
            absolute = uri if "://" in uri else f"lime://{bot.identity}{uri}"
            return Answer.of(
                200,
                document
                | {
                    "method": envelope["method"],
                    "id": envelope.get("id"),
                    "from": origin,
                    "to": bot.identity,
                    "metadata": {"#command.uri": absolute},
                },
            )

        return await self._misbehave(fault, record, request, process), fault

    def _resource(self, bot: Bot, node: str, envelope: Json) -> tuple[str, str, Callable[[], Json]]:
        """A command's kind, what it asks about, and what answers it."""
        method = envelope["method"]
        uri = _uri(envelope["uri"])
        if uri is None:
            return "other", "", partial(_failure, 27)
        name, _, rest = uri.path[1:].partition("/")
        match node, name:
            case (lime.GATEWAY, "accounts"):
                if uri.netloc not in ("", WHATSAPP_DOMAIN):
                    return "other", "", partial(_failure, 67)
                phone = unquote(rest)
                if not phone or "/" in rest:
                    return "other", "", partial(_failure, 67)
                if method != "get":
                    return "other", "", partial(_failure, 63)
                return "lookups", phone, partial(self._look_up, bot, phone)
            case (lime.GATEWAY, "message-templates" | "message-templates-enriched"):
                if rest:
                    return "other", "", partial(_failure, 67)
                if method != "get":
                    return "other", "", partial(_failure, 63)
                query = parse_qs(uri.query)
                wanted = query.get("templateName", [""])[0]
                is_enriched = name == "message-templates-enriched"
                missing = self.settings.templates.without_enriched
                if is_enriched and missing is not None:
                    return "templates", wanted, partial(_failure, missing)
                answer = partial(self._templates, bot, query, wanted, is_enriched=is_enriched)
                return "templates", wanted, answer
            case (lime.SERVER, "notifications"):
                if rest:
                    return "other", "", partial(_failure, 67)
                if method != "get":
                    return "other", "", partial(_failure, 63)
                query = parse_qs(uri.query)
                return "history", query.get("id", [""])[0], partial(self._history, bot, query)
            case (lime.SERVER, "ping"):
                if method != "get":
                    return "other", "", partial(_failure, 63)
                return "ping", "", partial(_success, _PING, {})
            case _ if node in (GATEWAY, SERVER):
                return "other", "", partial(_failure, 62)
            case _:
                return "other", "", partial(_failure, 42)

    def _look_up(self, bot: Bot, phone: str) -> Json:
        if not bot.whatsapp:
            return _failure(81, "The bot has no WhatsApp channel")
        identity = f"{phone}@{WHATSAPP_DOMAIN}"
        if phone.startswith("+"):
            if problem := accounts.problem_with(phone):
                return _failure(61, problem)
            identity = self.know(phone, bot.name)
            self.never_sent.add(phone)
        return _success(
            _ACCOUNT,
            {
                "alternativeAccount": identity,
                "identity": identity,
                "phoneNumber": phone if phone.startswith("+") else f"+{phone}",
                "source": "WhatsApp",
            },
        )

    def _templates(
        self, bot: Bot, query: dict[str, list[str]], wanted: str, *, is_enriched: bool
    ) -> Json:
        if not bot.whatsapp:
            return _failure(81, "The bot has no WhatsApp channel")
        page = _page(query)
        if page is None:
            return _failure(64)
        settings = self.settings.templates
        found = [
            (version, template)
            for version in self.registry.listed(bot.name, time.time() - settings.lag_seconds)
            if (template := version.template) and _is_wanted(template.name, wanted, settings)
        ]
        if not settings.skip:
            page = slice(0, page.stop - page.start)
        items = [
            enriched(template, version.at, settings.otp_button) if is_enriched else plain(template)
            for version, template in found[page]
        ]
        return self._listed(items, len(found))

    def _listed(self, items: list[Json], total: int) -> Json:
        match self.settings.templates.envelope:
            case "data":
                return _success("application/json", {"data": items})
            case "items":
                collection = {"total": total, "itemType": "application/json", "items": items}
                return _success(_COLLECTION, collection)
            case "list":
                return _success("application/json", items)

    def _history(self, bot: Bot, query: dict[str, list[str]]) -> Json:
        settings = self.settings
        identifier = query.get("id", [""])[0]
        page = _page(query)
        if not identifier or page is None:
            return _failure(64)
        now = time.time()
        oldest, newest = now - settings.history_seconds, now - settings.history_lag_seconds
        items = [
            (event.at, message.receipt(event))
            for message in self.by_id.get((bot.name, identifier), ())
            for event in message.events
            if oldest <= event.at <= newest
        ]
        if not items and settings.unknown_history == "failure":
            return _failure(67)
        items.sort(key=lambda item: item[0], reverse=True)
        return _collection([receipt for _, receipt in items[page]], len(items))

    # What was seen

    def statistics(self) -> Json:
        """Counts since the start or the last clear()."""
        for bot in self.bots.values():
            self._count_traffic(bot, time.monotonic())
        distinct = len(self.by_id) + sum(message.id is None for message in self.messages)
        repeated = {f"{bot}/{i}": len(m) for (bot, i), m in self.by_id.items() if len(m) > 1}
        return {
            "messages": {
                "accepted": len(self.messages),
                "distinct": distinct,
                "repeated": repeated,
            },
            "requests": {
                path: {str(status): count for status, count in counts.items()}
                for path, counts in self.statuses.items()
            },
            "kinds": dict(self.kinds),
            "lookups": dict(self.lookups),
            "looked_up_never_sent": sorted(self.never_sent),
            "notifications": dict(self.consumed),
            "highest_per_second": {
                bot: {kind: meter.highest for kind, meter in throttle.meters.items()}
                for bot, throttle in self.throttles.items()
            },
            "traffic": {
                name: {"sent": traffic.sent, "refused": traffic.refused}
                for name, traffic in self.traffic.items()
            },
            "penalties": {bot: throttle.penalties for bot, throttle in self.throttles.items()},
            "most_in_flight": dict(self.most_in_flight),
            "receipts": self.postman.report(),
        }


_CONTENT_TYPES = {
    path: ("application/json", f"application/vnd.lime.{path[1:-1]}+json") for path in PATHS
}


def _uri(text: str) -> SplitResult | None:
    """An absolute lime:// URI or a relative one, split; None for any other text."""
    try:
        uri = urlsplit(text)
    except ValueError:
        return None
    lime_or_relative = (uri.scheme == "lime" and uri.netloc) or not (uri.scheme or uri.netloc)
    spaces = re.search(r"\s", text)
    return uri if lime_or_relative and uri.path.startswith("/") and not spaces else None


def _page(query: dict[str, list[str]]) -> slice | None:
    """Return what `$skip` and `$take` choose; None if they cannot be used."""
    try:
        skip = int(query.get("$skip", ["0"])[0])
        take = int(query.get("$take", [str(_MAX_PAGE)])[0])
    except ValueError:
        return None
    return slice(skip, skip + take) if skip >= 0 and 0 < take <= _MAX_PAGE else None


def _is_wanted(name: str, wanted: str, settings: Templates) -> bool:
    match settings.name_filter:
        case "exact":
            return wanted in ("", name)
        case "contains":
            return wanted in name
        case "ignored":
            return True


def _success(mime: str, resource: Json | list[Json]) -> Json:
    return {"type": mime, "resource": resource, "status": "success"}


def _collection(items: list[Json], total: int = 0) -> Json:
    return _success(_COLLECTION, {"total": total, "itemType": _RECEIPT, "items": items})


def _failure(code: int, description: str | None = None) -> Json:
    return {"status": "failure", "reason": lime.reason(code, description)}


def _template_of(content: Any) -> tuple[str | None, str | None]:
    """Return the name and the language of the template that a content names."""
    template = content.get("template") if isinstance(content, dict) else None
    name = template.get("name") if isinstance(template, dict) else None
    language = template.get("language") if isinstance(template, dict) else None
    code = language.get("code") if isinstance(language, dict) else None
    return name if isinstance(name, str) else None, code if isinstance(code, str) else None


def _answer_of(fault: Fault, status: int) -> Answer:
    if fault.code is not None:
        return Answer.of(status, lime.reason(fault.code), fault.headers)
    if isinstance(fault.body, str):
        return Answer(status, fault.body.encode(), dict(fault.headers))
    if fault.body is not None:
        return Answer.of(status, fault.body, fault.headers)
    return Answer(status, headers=dict(fault.headers))


def _gone(request: web.BaseRequest) -> bool:
    return request.transport is None or request.transport.is_closing()
