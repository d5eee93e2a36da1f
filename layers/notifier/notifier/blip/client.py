"""The calls to BLiP. Each returns its result or raises one of `failures`; none is repeated here.

A call that takes a place in the bot's plan is given `on_connected`: it is called once per POST,
when the connection stands and before the first byte is written, and waits there for the slot. What
it raises ends the call, and nothing was written.

BLiP's HTTP API: `POST /messages` answers 202 to whatever looks like a message, `POST /commands`
answers 200 with a LIME `status` inside, success and failure alike (docs.blip.ai, HTTP).
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from uuid import uuid4

import httpx
from pydantic_core import from_json, to_json

from notifier.blip import envelopes
from notifier.blip.codes import (
    GATEWAY_ERROR,
    LIME_CODES,
    NO_LIST,
    NOT_FOUND,
    NOT_KNOWN,
    about_the_number,
    failed_command,
    refused_message,
)
from notifier.blip.envelopes import WHATSAPP_DOMAIN, Json
from notifier.blip.receipts import receipt, reduced
from notifier.blip.templates import entries, read
from notifier.blip.transport import Transport, call
from notifier.contract.template import Template
from notifier.domain.bots import Bot
from notifier.domain.failures import (
    Failure,
    Misconfigured,
    Reason,
    Rejected,
    Throttled,
    Transient,
    Unknown,
)
from notifier.domain.notification import message_id as id_of_message
from notifier.domain.receipts import Receipt
from notifier.domain.templates import RegisteredTemplate

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
# A proxy's own words are short.
MAX_TEXT_BYTES = 500
NO_CHANNEL = (
    "BLiP cannot look numbers up for this bot: its key belongs to a bot without a WhatsApp channel "
    "(with a router, use the router's key)"
)

_IDENTITY = re.compile(rf"[^\"&'/:<>@\s]{{1,1023}}@{re.escape(WHATSAPP_DOMAIN)}")

# What a broken exchange says about a message. `ConnectError` covers DNS and TLS too; after a
# connection stands, bytes may have left, whatever the error is called.
BROKEN_EXCHANGE: dict[type[httpx.RequestError], type[Failure]] = {
    httpx.ConnectError: Transient,
    httpx.ConnectTimeout: Transient,
    httpx.PoolTimeout: Transient,
    httpx.ProxyError: Transient,
    httpx.UnsupportedProtocol: Misconfigured,
    httpx.ReadTimeout: Unknown,
    httpx.WriteTimeout: Unknown,
    httpx.ReadError: Unknown,
    httpx.WriteError: Unknown,
    httpx.CloseError: Unknown,
    httpx.LocalProtocolError: Unknown,
    httpx.RemoteProtocolError: Unknown,
    httpx.DecodingError: Unknown,
    httpx.TooManyRedirects: Unknown,
}


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back: HTTP status, the JSON object in the body (or nothing), LIME's reason.

    Attributes:
        text: how the body begins; never logged.
    """

    status: int
    body: Json
    text: str
    retry_after_seconds: float | None

    @property
    def code(self) -> int | None:
        code = self._reason.get("code")
        return code if isinstance(code, int) else None

    @property
    def description(self) -> str:
        return str(self._reason.get("description", ""))

    @property
    def _reason(self) -> Json:
        """A command carries its reason inside; a refusal is a bare reason."""
        reason = self.body.get("reason", self.body)
        return reason if isinstance(reason, dict) else {}


class BlipClient:
    """Speaks to BLiP for every bot of a sandbox, over one pool of connections. Thread-safe."""

    def __init__(
        self,
        max_connections: int,
        call_seconds: float,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Make the client; `call_seconds` is all that one call may take."""
        self._call_seconds = call_seconds
        self._transport = transport or Transport(max_connections)
        self._http = httpx.Client(
            transport=self._transport,
            timeout=httpx.Timeout(call_seconds, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
            headers={"Accept": "application/json", "Content-Type": "application/json"},
            # One client serves every bot: a cookie that one got has no business with another.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            trust_env=False,
        )

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def is_connected(self, bot: Bot) -> bool:
        """Return whether a call for this bot needs no new connection."""
        transport = self._transport
        return isinstance(transport, Transport) and transport.is_connected(bot.base_url)

    def look_up(self, bot: Bot, phone: str, on_connected: Callable[[], None]) -> str:
        """Return the WhatsApp identity of a phone number in E.164.

        It is an opaque string: it need not contain the number's own digits.

        Raises:
            Rejected: BLiP says that this is no phone number (`not_a_phone_number`), or refuses.
            Transient: no answer, or one that may be another the next time.
            Throttled: over the plan for commands.
            Misconfigured: wrong key, wrong URL, or a bot without a WhatsApp channel.
        """
        try:
            return self._look_up(bot, phone, on_connected)
        except Transient as failure:
            if failure.code != GATEWAY_ERROR:
                raise
        try:
            return self._look_up(bot, phone, on_connected)
        except Transient as failure:
            if failure.code != GATEWAY_ERROR:
                raise
            raise Misconfigured(NO_CHANNEL, code=failure.code) from None

    def send(
        self,
        bot: Bot,
        message_id: str,
        identity: str,
        template: Template,
        on_connected: Callable[[], None],
    ) -> None:
        """Send a template to an identity. Returns when BLiP has taken it.

        Raises:
            Rejected: BLiP refuses it, and would again.
            Transient: it surely did not go out.
            Throttled: over the plan for messages; it did not go out.
            Misconfigured: wrong key or URL; it did not go out.
            Unknown: it may have gone out.
        """
        envelope = envelopes.message(message_id, identity, template, bot.namespace)
        try:
            answer = self._post(bot, "/messages", envelope, on_connected)
        except httpx.RequestError as error:
            failure = BROKEN_EXCHANGE.get(type(error), Unknown)
            raise failure(f"sending: {type(error).__name__}") from error
        if _is_success(answer.status):
            return
        kind = refused_message(answer.status, answer.code, answer.text)
        raise _failure(kind, "the message", answer)

    def history(self, bot: Bot, message_id: str, on_connected: Callable[[], None]) -> list[Receipt]:
        """Return what BLiP has stored about a message. An empty list says that it has nothing.

        Raises:
            Rejected, Transient, Throttled, Misconfigured: there is no answer to go by.
        """
        events = self.events(bot, message_id, on_connected)
        receipts = [
            about
            for event in events
            if (about := receipt(event)) is not None
            and id_of_message(about.key, about.generation) == message_id
        ]
        if events and not receipts:
            raise Transient("BLiP's history answered with events of another message")
        return receipts

    def events(self, bot: Bot, message_id: str, on_connected: Callable[[], None]) -> list[Json]:
        """Return the receipts that BLiP has stored about a message, as LIME's JSON, reduced.

        Raises:
            Rejected, Transient, Throttled, Misconfigured: there is no answer to go by.
        """
        answer = self._command(bot, envelopes.history(str(uuid4()), message_id), on_connected)
        if not _succeeded(answer):
            if _is_success(answer.status) and answer.code == NOT_FOUND:
                return []
            raise _failure(failed_command(answer.status, answer.code), "the question", answer)
        resource = answer.body.get("resource")
        items = resource.get("items") if isinstance(resource, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise Transient("BLiP's history answered without a list of events")
        return [reduced(item) for item in items]

    def ping(self, bot: Bot) -> None:
        """Ask whether BLiP answers this bot at all.

        Raises:
            Rejected, Transient, Throttled, Misconfigured: it doesn't.
        """
        answer = self._command(bot, envelopes.ping(str(uuid4())))
        answered = _succeeded(answer) or (_is_success(answer.status) and answer.code in NOT_KNOWN)
        if not answered:
            raise _failure(failed_command(answer.status, answer.code), "the ping", answer)

    def templates(
        self, bot: Bot, asked_at: float, on_connected: Callable[[], None]
    ) -> dict[str, RegisteredTemplate]:
        """Return the bot's message templates, by name; each page of them is a call of its own.

        Args:
            bot: whose.
            asked_at: the time, before this call.
            on_connected: called for each page.

        Raises:
            Misconfigured: wrong key, wrong URL, or a bot without a WhatsApp channel.
            Rejected, Transient, Throttled: there is no answer to go by, or not a whole one.
        """
        listed = read(self._entries(bot, None, on_connected), asked_at)
        if listed.unreadable:
            facts = {"bot": bot.name, "unreadable": listed.unreadable}
            logger.warning("templates that cannot be read", extra=facts)
        return listed.templates

    def template(
        self, bot: Bot, name: str, asked_at: float, on_connected: Callable[[], None]
    ) -> RegisteredTemplate | None:
        """Return one template of the bot; None if BLiP lists none of this name.

        Arguments and errors are those of `templates`.
        """
        return read(self._entries(bot, name, on_connected), asked_at).templates.get(name)

    def _entries(
        self, bot: Bot, name: str | None, on_connected: Callable[[], None]
    ) -> Iterator[object]:
        """Return what BLiP lists: the enriched list, or the plain one where it knows no other."""
        uri = envelopes.TEMPLATES_ENRICHED
        answer = self._list(bot, uri, 0, name, on_connected)
        if not _succeeded(answer):
            uri = envelopes.TEMPLATES
            answer = self._list(bot, uri, 0, name, on_connected)
        if not _succeeded(answer) and not (name is not None and answer.code == NOT_FOUND):
            raise _failure(failed_command(answer.status, answer.code), "the question", answer)

        def more(skip: int) -> object:
            return _resource(self._list(bot, uri, skip, name, on_connected))

        return entries(_resource(answer), more)

    def _list(
        self, bot: Bot, uri: str, skip: int, name: str | None, on_connected: Callable[[], None]
    ) -> _Answer:
        """Return a page of the list, or the answer that BLiP does not know the list."""
        envelope = envelopes.templates(str(uuid4()), uri, skip, name)
        answer = self._command(bot, envelope, on_connected)
        if _succeeded(answer):
            return answer
        if _is_success(answer.status) and answer.code in NO_LIST:
            return answer
        if _is_success(answer.status) and answer.code == GATEWAY_ERROR:
            raise Misconfigured(NO_CHANNEL, code=answer.code)
        raise _failure(failed_command(answer.status, answer.code), "the question", answer)

    def _look_up(self, bot: Bot, phone: str, on_connected: Callable[[], None]) -> str:
        answer = self._command(bot, envelopes.look_up(str(uuid4()), phone), on_connected)
        if not _succeeded(answer):
            if answer.status < 500 and about_the_number(answer.code, answer.description):
                raise Rejected(
                    Reason.NOT_A_PHONE_NUMBER,
                    "BLiP's look-up says that the recipient is not a phone number on WhatsApp",
                    code=answer.code,
                )
            raise _failure(failed_command(answer.status, answer.code), "the look-up", answer)
        resource = answer.body.get("resource")
        if isinstance(resource, dict):
            for member in ("alternativeAccount", "identity"):
                identity = resource.get(member)
                if isinstance(identity, str) and _IDENTITY.fullmatch(identity):
                    return identity
        raise Transient("BLiP's look-up succeeded without a WhatsApp identity in its answer")

    def _command(
        self, bot: Bot, envelope: Json, on_connected: Callable[[], None] | None = None
    ) -> _Answer:
        """Post a command. It changes nothing, so a broken exchange only means: ask again."""
        try:
            return self._post(bot, "/commands", envelope, on_connected)
        except httpx.UnsupportedProtocol as error:
            raise Misconfigured("the bot's base URL cannot be used") from error
        except httpx.RequestError as error:
            raise Transient(f"asking BLiP: {type(error).__name__}") from error

    def _post(
        self, bot: Bot, path: str, envelope: Json, on_connected: Callable[[], None] | None
    ) -> _Answer:
        url = bot.base_url.rstrip("/") + path
        with (
            call(self._call_seconds, on_connected),
            self._http.stream(
                "POST", url, content=to_json(envelope), headers={"Authorization": bot.key}
            ) as response,
        ):
            try:
                body = response.read()
            except httpx.RequestError:
                # The status has come, and for a message it says all. What it lacks is the reason.
                body = b""
            return _Answer(
                response.status_code,
                _object(body),
                body[:MAX_TEXT_BYTES].decode(errors="replace"),
                _seconds(response.headers.get("Retry-After")),
            )


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _succeeded(answer: _Answer) -> bool:
    """Return whether a command succeeded: HTTP 200 alone says only that it was answered."""
    return _is_success(answer.status) and answer.body.get("status") == "success"


def _resource(answer: _Answer) -> object:
    """Return what a page of a list holds; nothing is found where the list has no more."""
    if _succeeded(answer):
        return answer.body.get("resource")
    if answer.code == NOT_FOUND:
        return []
    raise _failure(failed_command(answer.status, answer.code), "the question", answer)


def _failure(kind: type[Failure], what: str, answer: _Answer) -> Failure:
    """Make the failure out of the answer. BLiP's own text may repeat values: it stays out."""
    meaning = LIME_CODES.get(answer.code) if answer.code is not None else None
    detail = f"BLiP refused {what}: HTTP {answer.status}"
    if answer.code is not None:
        detail += f", reason {answer.code}" + (f" ({meaning})" if meaning else "")
    code = answer.code if answer.code is not None else answer.status
    if issubclass(kind, Rejected):
        return kind(Reason.REJECTED, detail, code=code)
    if issubclass(kind, Throttled):
        return kind(detail, code=code, retry_after_seconds=answer.retry_after_seconds)
    return kind(detail, code=code)


def _object(body: bytes) -> Json:
    try:
        document = from_json(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.isdecimal() else None
