"""A BLiP in memory, which answers every call unless a test makes it raise."""

from collections.abc import Callable
from dataclasses import dataclass

from notifier.contract.template import Template
from notifier.domain.bots import Bot
from notifier.domain.failures import Failure
from notifier.domain.receipts import Receipt
from notifier.domain.templates import RegisteredTemplate, Translation
from tests.support.clock import Clock


@dataclass(frozen=True)
class Sent:
    """A message as BLiP received it."""

    bot: Bot
    message_id: str
    identity: str
    template: Template
    at: float


class FakeBlip:
    """Answers every call, unless one of its `before_` functions raises.

    Attributes:
        look_ups: every number looked up, refused or not.
        sent: every message received, refused or not.
        taken: the messages that BLiP accepted.
        call_seconds: the duration of each call.
        before_look_up, before_send, before_history, before_templates, before_ping: called with
            each call's bot, before it is answered; what they raise is what the call raises.
        listed: the templates, by name and language; each call describes them as they are then.
        asked_templates: the names in the queries for one template; None for a query for all.
        stored: the receipts in the history, by message id.
        asked: the message ids of the history queries.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.look_ups: list[str] = []
        self.sent: list[Sent] = []
        self.taken: list[Sent] = []
        self.call_seconds = 0.0
        self.before_look_up: Callable[[Bot], None] = lambda _: None
        self.before_send: Callable[[Bot], None] = lambda _: None
        self.before_history: Callable[[Bot], None] = lambda _: None
        self.before_templates: Callable[[Bot], None] = lambda _: None
        self.before_ping: Callable[[Bot], None] = lambda _: None
        self.stored: dict[str, list[Receipt]] = {}
        self.asked: list[str] = []
        self.listed: dict[tuple[str, str], Translation] = {}
        self.asked_templates: list[str | None] = []
        self.pings = 0

    def is_connected(self, bot: Bot) -> bool:
        return any(sent.bot == bot for sent in self.taken)

    def look_up(self, bot: Bot, phone: str, on_connected: Callable[[], None]) -> str:
        on_connected()
        self.look_ups.append(phone)
        self._clock.sleep(self.call_seconds)
        self.before_look_up(bot)
        return identity_of(phone)

    def send(
        self,
        bot: Bot,
        message_id: str,
        identity: str,
        template: Template,
        on_connected: Callable[[], None],
    ) -> None:
        on_connected()
        sent = Sent(bot, message_id, identity, template, self._clock.now())
        self.sent.append(sent)
        self._clock.sleep(self.call_seconds)
        self.before_send(bot)
        self.taken.append(sent)

    def history(self, bot: Bot, message_id: str, on_connected: Callable[[], None]) -> list[Receipt]:
        on_connected()
        self.asked.append(message_id)
        self._clock.sleep(self.call_seconds)
        self.before_history(bot)
        return self.stored.get(message_id, [])

    def templates(
        self, bot: Bot, asked_at: float, on_connected: Callable[[], None]
    ) -> dict[str, RegisteredTemplate]:
        on_connected()
        self.asked_templates.append(None)
        self._clock.sleep(self.call_seconds)
        self.before_templates(bot)
        return self._registered(asked_at)

    def template(
        self, bot: Bot, name: str, asked_at: float, on_connected: Callable[[], None]
    ) -> RegisteredTemplate | None:
        on_connected()
        self.asked_templates.append(name)
        self._clock.sleep(self.call_seconds)
        self.before_templates(bot)
        return self._registered(asked_at).get(name)

    def _registered(self, asked_at: float) -> dict[str, RegisteredTemplate]:
        translations: dict[str, dict[str, Translation]] = {}
        for (name, language), translation in self.listed.items():
            translations.setdefault(name, {})[language] = translation
        return {
            name: RegisteredTemplate(name, asked_at, languages)
            for name, languages in translations.items()
        }

    def ping(self, bot: Bot) -> None:
        self.pings += 1
        self._clock.sleep(self.call_seconds)
        self.before_ping(bot)


def identity_of(phone: str) -> str:
    """Return the identity of a number at the fake BLiP; it cannot be derived from the digits."""
    return f"wa-{phone[::-1].rstrip('+')}@wa.gw.msging.net"


def raises(*failures: Exception) -> Callable[[Bot], None]:
    """Return a function that raises these, one per call, and then nothing."""
    left = list(failures)

    def strike(_: Bot) -> None:
        if left:
            raise left.pop(0)

    return strike


def always(failure: Callable[[], Failure]) -> Callable[[Bot], None]:
    """Return a function that raises such a failure at every call."""

    def strike(_: Bot) -> None:
        raise failure()

    return strike
