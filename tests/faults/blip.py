"""BLiP as the product sees it: plans, cooldown, look-ups, messages, history, receipts, faults.

It stands in for the HTTP exchange only: `notifier.blip.client` itself writes the envelopes and
judges the answers, so that a wrong table of codes is found here.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit
from weakref import WeakKeyDictionary

import httpx

from notifier.blip.client import BlipClient, _Answer
from notifier.blip.transport import MAX_IDLE_SECONDS
from notifier.contract.template import Template
from notifier.domain.bots import Bot
from notifier.domain.failures import Unknown
from tests.support.simulated_aws.simulation import Process, Simulation

type Kind = Literal["messages", "lookups", "history", "templates", "ping"]
# What may happen to a call. `refused`: no connection. `unavailable`: a proxy's 503, which says that
# it never left. `throttled`: 429 out of the blue. `unauthorized`: 401. `dropped`: the connection
# breaks before BLiP has read it. `swallowed`: accepted, and the connection breaks. `gateway`:
# accepted, and 504. `cut_off`: accepted, and a proxy's 503. `slow`: accepted, and the answer may
# come too late.
type Fault = Literal[
    "refused",
    "unavailable",
    "throttled",
    "unauthorized",
    "dropped",
    "swallowed",
    "gateway",
    "cut_off",
    "slow",
]
# An HTTP status, and LIME's code in the body.
type Refusal = tuple[int, int | None]

COOLDOWN_SECONDS = 120.0
HISTORY_SECONDS = 3 * 86_400
CALL_SECONDS = 10.0
# A ping so soon after a refusal is no probe: it distinguishes a wrong bot from a wrong message.
DOUBT_SECONDS = 25.0
# What Envoy says.
NEVER_LEFT = "no healthy upstream"
CUT_OFF = (
    "upstream connect error or disconnect/reset before headers. "
    "reset reason: connection termination"
)


@dataclass
class BlipFaults:
    """What goes wrong at BLiP and on the way to it.

    Attributes:
        rates: how often each fault strikes, as probabilities.
        spells: from when to when one fault strikes every call, and which; of one bot, or of all.
        sporadic: how often a message fails for a reason of WhatsApp's own, by the receipt's code.
    """

    rates: Mapping[Fault, float] = field(default_factory=dict)
    spells: list[tuple[float, float, Fault, str | None]] = field(default_factory=list)
    sporadic: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """The way from a sandbox to BLiP; times in seconds, each a mean and how far it varies.

    Attributes:
        set_up: TCP's and TLS's handshakes of a new connection.
        round_trip: from there to here and back; each way takes half of one.
        closes_after: the other side closes a connection that was idle for so long.
    """

    set_up: tuple[float, float] = (0.08, 0.04)
    round_trip: tuple[float, float] = (0.04, 0.02)
    closes_after: float = 60.0


# Every connection stands at once.
NO_SET_UP = Network(set_up=(0, 0))


@dataclass(eq=False)
class _Connection:
    number: int
    used_at: float


@dataclass
class Fate:
    """What becomes of the messages to a recipient.

    Attributes:
        a_number: look-ups find it.
        refused: BLiP refuses every message.
        look_up, message: how BLiP refuses every look-up, and every message.
        failing: the codes with which messages fail, one after the other; then they are received.
        silent: the messages are delivered, but no receipt says so.
    """

    a_number: bool = True
    refused: bool = False
    look_up: Refusal | None = None
    message: Refusal | None = None
    failing: Sequence[int] = ()
    silent: bool = False


@dataclass
class Accepted:
    """A message that BLiP took.

    Attributes:
        began_at: when the sandbox wrote its first byte.
    """

    message_id: str
    bot: str
    phone: str
    began_at: float
    at: float


class Chat:
    """What else uses up a bot's plan for messages: its live conversations.

    Attributes:
        busiest: the most of them within any second.
    """

    def __init__(
        self,
        per_second: float,
        *,
        since: float,
        seed: int,
        share: float = 1.0,
        spell: float = 60.0,
        even: bool = False,
    ) -> None:
        """Make a process of messages.

        Args:
            per_second: how many there are while there are any.
            since: when it begins.
            seed: of its chance.
            share: the part of the time in which there are any.
            spell: how long they last at a time, in seconds.
            even: evenly spaced; else at random, as Poisson has it.
        """
        self.busiest = 0
        self._per_second = per_second
        self._share = share
        self._spell = spell
        self._even = even
        self._random = Random(seed)
        self._next = self._all(since)
        self._following = next(self._next)
        self._recent: deque[float] = deque()

    def until(self, now: float) -> Iterator[float]:
        """Yield when each of those was that have come since the last time."""
        while self._following <= now:
            at = self._following
            while self._recent and self._recent[0] <= at - 1:
                self._recent.popleft()
            self._recent.append(at)
            self.busiest = max(self.busiest, len(self._recent))
            yield at
            self._following = next(self._next)

    def _all(self, at: float) -> Iterator[float]:
        chance, ends = self._random, at
        while True:
            if at >= ends:
                silence = self._spell * (1 - self._share) / self._share
                at += chance.expovariate(1 / silence) if silence else 0.0
                ends = at + self._spell
            at += 1 / self._per_second if self._even else chance.expovariate(self._per_second)
            if at < ends or self._share == 1:
                yield at


@dataclass
class Account:
    """A bot at BLiP.

    Attributes:
        channel: it has a WhatsApp channel; without one BLiP answers its pings, and no look-up.
        prolonged: a refused call during a cooldown starts the cooldown again.
        chat: what else uses its plan.
        templates: what BLiP lists, as its enriched list has it.
        paused: the names of templates whose messages WhatsApp fails because it has paused them.
        throttled: how many calls of ours were answered 429.
        cooldowns: the start of each cooldown.
        most_per_second: the most calls within any second, by plan.
    """

    name: str
    messages_per_second: float = 50
    commands_per_second: float = 200
    channel: bool = True
    prolonged: bool = False
    chat: Chat | None = None
    templates: list[dict[str, Any]] = field(default_factory=list)
    paused: set[str] = field(default_factory=set)
    throttled_until: float = 0.0
    throttled: int = 0
    cooldowns: list[float] = field(default_factory=list)
    most_per_second: dict[str, int] = field(default_factory=lambda: {"messages": 0, "commands": 0})
    recent: dict[str, deque[float]] = field(
        default_factory=lambda: {"messages": deque(), "commands": deque()}
    )

    def over(self, plan: str, now: float) -> bool:
        """Count a call; return whether it is refused."""
        if plan == "messages" and self.chat is not None:
            for at in self.chat.until(now):
                self._count(plan, at)
        refused = self._count(plan, now)
        self.throttled += refused
        return refused

    def shut(self, now: float) -> None:
        """Start a cooldown, or start it again."""
        if self.throttled_until <= now:
            self.cooldowns.append(now)
        self.throttled_until = now + COOLDOWN_SECONDS

    def _count(self, plan: str, at: float) -> bool:
        limit = self.messages_per_second if plan == "messages" else self.commands_per_second
        recent = self.recent[plan]
        while recent and recent[0] <= at - max(1, 1 / limit):
            recent.popleft()
        recent.append(at)
        self.most_per_second[plan] = max(self.most_per_second[plan], len(recent))
        if self.throttled_until > at:
            if self.prolonged:
                self.shut(at)
            return True
        if len(recent) > max(1, limit):
            self.shut(at)
        return self.throttled_until > at


@dataclass(slots=True)
class _Reply:
    """What comes back, after so many seconds; or how the connection broke."""

    answer: _Answer | None = None
    broken: type[httpx.RequestError] = httpx.ReadError
    seconds: float = 0.0


@dataclass
class HistorySettings:
    """BLiP's event history, which fills in the order of time.

    Attributes:
        kept: without it, every answer is empty.
        answers: without it, every answer is an error.
        lag: how long an event takes to appear at most.
        least_lag: how long it takes at least.
    """

    kept: bool = True
    answers: bool = True
    lag: float = 300.0
    least_lag: float = 0.0


class SimBlip(BlipClient):
    """All of BLiP, and the connections of every sandbox to it.

    Attributes:
        fates: by phone number; all others receive everything.
        next_faults: what happens to the next calls of a kind, whatever the rates say.
        sent: the messages taken, by id.
        posts: how many messages were begun to be sent, by id.
        set_ups: how many connections were made.
        doubtful: ids of messages whose sender heard nothing definite.
        denied: how often the history answered that it has nothing, by message id.
        denied_falsely: ids for which it did so although BLiP had taken the message.
        failed: the failed receipts that were made, by message id.
        pings: when each bot was probed.
        checks: when each bot was pinged because of what it had just answered.
        read: which share of the delivered messages is read.
        on_accept: called for every message taken.
        on_receipt: called for every receipt that is pushed; a second parameter says which bot's.
        manual_receipts: nothing becomes of a message until `report` says so.
    """

    def __init__(
        self,
        simulation: Simulation,
        accounts: Mapping[str, Account],
        *,
        faults: BlipFaults | None = None,
        history: HistorySettings | None = None,
        latency: tuple[float, float] = (0.04, 0.25),
        network: Network | None = None,
        manual_receipts: bool = False,
    ) -> None:
        self.simulation = simulation
        self.accounts = accounts  # by key
        self.faults = faults or BlipFaults()
        self.history_settings = history or HistorySettings()
        self.latency = latency
        self.network = network or Network()
        self.manual_receipts = manual_receipts
        self.read = 0.7
        self.fates: dict[str, Fate] = {}
        self.next_faults: dict[Kind, deque[Fault]] = defaultdict(deque)
        self.sent: dict[str, list[Accepted]] = defaultdict(list)
        self.posts: dict[str, int] = defaultdict(int)
        self.doubtful: set[str] = set()
        self.denied: dict[str, int] = defaultdict(int)
        self.denied_falsely: set[str] = set()
        self.failed: dict[str, list[int]] = defaultdict(list)
        self.pings: dict[str, list[float]] = defaultdict(list)
        self.checks: dict[str, list[float]] = defaultdict(list)
        # When a sandbox last learnt that a bot does not work.
        self._doubted: WeakKeyDictionary[Process, dict[str, float]] = WeakKeyDictionary()
        self.look_ups = 0
        self.questions = 0
        self.set_ups = 0
        self.on_accept: Callable[[Accepted], None] = lambda _: None
        self.on_receipt: Callable[[dict[str, Any], str], None] = lambda *_: None
        self.pending_receipts = 0
        self._failures: dict[str, int] = defaultdict(int)
        # By message: when an event happened, since when the history shows it, the event.
        self._stored: dict[str, list[tuple[float, float, dict[str, Any]]]] = defaultdict(list)
        self._shown_until: dict[str, float] = defaultdict(float)
        self._pools: WeakKeyDictionary[Process, list[_Connection]] = WeakKeyDictionary()
        self._numbers = count()

    # --- the client's calls -----------------------------------------------------------------------

    def close(self) -> None:
        """There is nothing to close."""

    def send(
        self,
        bot: Bot,
        message_id: str,
        identity: str,
        template: Template,
        on_connected: Callable[[], None],
    ) -> None:
        try:
            super().send(bot, message_id, identity, template, on_connected)
        except Unknown:
            self.doubtful.add(message_id)
            raise

    def ping(self, bot: Bot) -> None:
        now = self.simulation.now
        doubted_at = self._doubted.get(self._process, {}).get(bot.name, float("-inf"))
        pings = self.checks if now - doubted_at < DOUBT_SECONDS else self.pings
        pings[bot.name].append(now)
        super().ping(bot)

    def _post(
        self,
        bot: Bot,
        path: str,
        envelope: dict[str, Any],
        on_connected: Callable[[], None] | None,
    ) -> _Answer:
        kind = _kind(path, envelope)
        ordered = bool(self.next_faults[kind])
        fault = self._fault(kind, bot)
        connection = self._connected(kind, fault)
        try:
            if on_connected is not None:
                on_connected()
        except Exception:
            if ordered and fault is not None:
                self.next_faults[kind].appendleft(fault)  # nothing was written: it has not struck
            raise
        now = self.simulation.now
        # Nothing was written: the real transport looks whether the other side has hung up.
        if now - connection.used_at > min(MAX_IDLE_SECONDS, self.network.closes_after):
            raise httpx.ConnectError("the connection was closed before anything was written")
        if kind == "messages":
            self.posts[envelope["id"]] += 1
        reply = self._exchange(kind, bot, envelope, fault)
        if reply.answer is None:
            raise reply.broken("the connection broke")
        connection.used_at = self.simulation.now
        self._pool.append(connection)
        if kind != "ping" and (
            reply.answer.status in {401, 403, 404, 405} or reply.answer.code == 81
        ):
            self._doubted.setdefault(self._process, {})[bot.name] = self.simulation.now
        return reply.answer

    # --- the way there and back -------------------------------------------------------------------

    @property
    def _process(self) -> Process:
        process = self.simulation.process
        assert process is not None
        return process

    @property
    def _pool(self) -> list[_Connection]:
        return self._pools.setdefault(self._process, [])

    def is_connected(self, _: Bot) -> bool:
        limit = min(MAX_IDLE_SECONDS, self.network.closes_after)
        return any(self.simulation.now - one.used_at <= limit for one in self._pool)

    def _connected(self, kind: Kind, fault: Fault | None) -> _Connection:
        """Return a connection that stands: one that is still warm, or a new one."""
        chance, now = self.simulation.random, self.simulation.now
        if fault == "refused":
            seconds = chance.choice([0.01, 3.0])
            self.simulation.call(f"blip.{kind}", lambda: None, there=seconds)
            raise httpx.ConnectError("no connection")
        pool = self._pool
        limit = min(MAX_IDLE_SECONDS, self.network.closes_after)
        pool[:] = [connection for connection in pool if now - connection.used_at <= limit]
        if pool:
            oldest = min(pool, key=lambda connection: connection.number)
            pool.remove(oldest)
            return oldest
        self.set_ups += 1
        self.simulation.sleep(_about(chance, self.network.set_up))
        return _Connection(next(self._numbers), self.simulation.now)

    def _fault(self, kind: Kind, bot: Bot) -> Fault | None:
        if self.next_faults[kind]:
            return self.next_faults[kind].popleft()
        now = self.simulation.now
        for start, end, fault, name in self.faults.spells:
            if start <= now < end and name in {None, bot.name}:
                return fault
        if self.faults.rates:
            fate = self.simulation.random.random()
            for fault, rate in self.faults.rates.items():
                fate -= rate
                if fate < 0:
                    return fault
        return None

    def _exchange(
        self, kind: Kind, bot: Bot, envelope: dict[str, Any], fault: Fault | None
    ) -> _Reply:
        chance = self.simulation.random
        there, back = (_about(chance, self.network.round_trip) / 2 for _ in range(2))
        began_at = self.simulation.now

        def arrive() -> _Reply:
            account = self.accounts.get(bot.key)
            if account is None or fault == "unauthorized":
                return _Reply(_refusal((401, None)))
            now = self.simulation.now
            if fault == "throttled":
                account.shut(now)
            if account.over("messages" if kind == "messages" else "commands", now):
                return _Reply(_refusal((429, None)))
            if fault == "unavailable":
                return _Reply(_Answer(503, {}, NEVER_LEFT, None))
            # Without an answer the sender cannot know whether BLiP has read it.
            dropped = kind == "messages" and fault == "dropped"
            answer = None if dropped else self._answer(kind, account, envelope, began_at)
            return self._on_its_way(answer, fault)

        def seconds(reply: _Reply) -> float:
            takes = max(reply.seconds, chance.uniform(*self.latency)) + back
            if there + takes > CALL_SECONDS:
                reply.answer, reply.broken = None, httpx.ReadTimeout
                return CALL_SECONDS - there
            return takes

        reply: _Reply = self.simulation.call(f"blip.{kind}", arrive, there=there, back=seconds)
        return reply

    def _on_its_way(self, answer: _Answer | None, fault: Fault | None) -> _Reply:
        """Return what becomes of an answer: it may get lost, or be another's."""
        chance = self.simulation.random
        match fault:
            case "dropped" | "swallowed":
                return _Reply(None, seconds=chance.uniform(0, 12))
            case "gateway":
                return _Reply(_Answer(504, {}, "upstream request timeout", None), seconds=5)
            case "cut_off":
                return _Reply(_Answer(503, {}, CUT_OFF, None), seconds=chance.uniform(0, 5))
            case "slow":
                return _Reply(answer, seconds=chance.uniform(3, 14))
            case _:
                return _Reply(answer)

    # --- what it answers --------------------------------------------------------------------------

    def _answer(
        self, kind: Kind, account: Account, envelope: dict[str, Any], began_at: float
    ) -> _Answer:
        match kind:
            case "messages":
                return self._message(account, envelope, began_at)
            case "lookups":
                return self._looked_up(account, envelope["uri"].rpartition("/")[2])
            case "history":
                return self._asked(envelope["uri"].partition("id=")[2].partition("&")[0])
            case "templates":
                return _listed(account, parse_qs(urlsplit(envelope["uri"]).query))
            case "ping":
                return _success({})

    def _message(self, account: Account, envelope: dict[str, Any], began_at: float) -> _Answer:
        phone = phone_of(envelope["to"])
        fate = self.fates.get(phone, _ORDINARY)
        if fate.refused:
            return _refusal((400, 21))
        if fate.message is not None:
            return _refusal(fate.message)
        is_paused = envelope["content"]["template"]["name"] in account.paused
        accepted = Accepted(envelope["id"], account.name, phone, began_at, 0.0)
        self._accept(accepted, TEMPLATE_PAUSED if is_paused else None)
        return _Answer(202, {}, "", None)

    def _looked_up(self, account: Account, phone: str) -> _Answer:
        self.look_ups += 1
        fate = self.fates.get(phone, _ORDINARY)
        if not account.channel:
            return _refusal((200, 81))
        if fate.look_up is not None:
            return _refusal(fate.look_up)
        if not fate.a_number:
            return _refusal((200, 61), "The string supplied did not seem to be a phone number.")
        return _success({"identity": identity_of(phone)})

    def _asked(self, message_id: str) -> _Answer:
        self.questions += 1
        if not self.history_settings.answers:
            return _Answer(500, {}, "", None)
        now = self.simulation.now
        found = [
            envelope
            for at, shown_at, envelope in self._stored.get(message_id, ())
            if shown_at <= now < at + HISTORY_SECONDS
        ]
        if not found:
            self.denied[message_id] += 1
            if message_id in self.sent:
                self.denied_falsely.add(message_id)
        return _success({"total": len(found), "items": found})

    def shows(self, message_id: str, since: float) -> bool:
        """Return whether the history has shown a message since a time, and still does."""
        now = self.simulation.now
        return any(
            shown_at <= since and now < at + HISTORY_SECONDS
            for at, shown_at, _ in self._stored.get(message_id, ())
        )

    def keeps_all(self, message_id: str) -> bool:
        """Return whether the history has, or will show, all that happened to a message."""
        stored = self._stored.get(message_id)
        return stored is not None and self.simulation.now < stored[0][0] + HISTORY_SECONDS

    # --- what becomes of messages -----------------------------------------------------------------

    def _accept(self, accepted: Accepted, fails_with: int | None = None) -> None:
        accepted.at = self.simulation.now
        self.sent[accepted.message_id].append(accepted)
        self.on_accept(accepted)
        if self.manual_receipts:
            self.report(accepted, "accepted", pushed=False)
            return
        chance = self.simulation.random
        fate = self.fates.get(accepted.phone, _ORDINARY)
        self._later(accepted, "accepted", chance.uniform(0, 0.2))
        self._later(accepted, "dispatched", chance.uniform(0.1, 1))
        if fails_with is not None:
            self._later(accepted, "failed", chance.uniform(0.5, 3), fails_with)
            return
        if fate.silent:
            return
        failed_before = self._failures[accepted.message_id[:36]]
        if failed_before < len(fate.failing):
            self._failures[accepted.message_id[:36]] += 1
            self._later(accepted, "failed", chance.uniform(0.5, 3), fate.failing[failed_before])
            return
        for code, rate in self.faults.sporadic.items():
            if chance.random() < rate:
                self._later(accepted, "failed", chance.uniform(0.5, 3), code)
                return
        self._later(accepted, "received", chance.uniform(0.5, 5))
        if chance.random() < self.read:
            self._later(accepted, "consumed", chance.uniform(2, 600))

    def _later(
        self, accepted: Accepted, event: str, seconds: float, code: int | None = None
    ) -> None:
        self.pending_receipts += 1

        def happen() -> None:
            self.pending_receipts -= 1
            self.report(accepted, event, code)

        self.simulation.at(self.simulation.now + seconds, happen)

    def report(
        self, accepted: Accepted, event: str, code: int | None = None, *, pushed: bool = True
    ) -> None:
        """Report an event of a message: it gets into the history, and a receipt is pushed."""
        if code is not None:
            self.failed[accepted.message_id].append(code)
        envelope: dict[str, Any] = {
            "id": accepted.message_id,
            "from": identity_of(accepted.phone),
            "to": f"{accepted.bot}@msging.net",
            "event": event,
        }
        if code is not None:
            envelope["reason"] = {"code": code, "description": "failed"}
        settings = self.history_settings
        if settings.kept:
            now = self.simulation.now
            lag = self.simulation.random.uniform(settings.least_lag, settings.lag)
            shown_at = max(self._shown_until[accepted.bot], now + lag)
            self._shown_until[accepted.bot] = shown_at
            self._stored[accepted.message_id].append((now, shown_at, envelope))
        if pushed:
            self.on_receipt(envelope, accepted.bot)


_ORDINARY = Fate()
# WhatsApp's code of a message whose template it has paused.
TEMPLATE_PAUSED = 132015


def _kind(path: str, envelope: dict[str, Any]) -> Kind:
    if path == "/messages":
        return "messages"
    uri: str = envelope["uri"]
    if uri == "/ping":
        return "ping"
    if uri.startswith("/message-templates"):
        return "templates"
    return "history" if uri.startswith("/notifications?") else "lookups"


def described(name: str, status: str = "APPROVED", category: str = "UTILITY") -> dict[str, Any]:
    """Describe a template with two variables as BLiP's enriched list does."""
    return {
        "name": name,
        "language": "pt_BR",
        "category": category,
        "status": status,
        "components": [{"type": "BODY", "text": "Olá, {{1}}! O pedido {{2}} saiu."}],
    }


def _listed(account: Account, query: dict[str, list[str]]) -> _Answer:
    """Return a page of a bot's templates."""
    if not account.channel:
        return _refusal((200, 81))
    wanted = query.get("templateName")
    found = [each for each in account.templates if wanted is None or each["name"] in wanted]
    skip, take = int(query["$skip"][0]), int(query["$take"][0])
    return _success({"total": len(found), "data": found[skip : skip + take]})


def _success(resource: dict[str, Any]) -> _Answer:
    return _Answer(200, {"status": "success", "resource": resource}, "", None)


def _refusal(refusal: Refusal, description: str = "no") -> _Answer:
    """Return a refusal as BLiP writes it: a command's failure inside a 200, else a bare reason."""
    status, code = refusal
    reason = {} if code is None else {"code": code, "description": description}
    body = {"status": "failure", "reason": reason} if status == 200 else reason
    return _Answer(status, body, "", None)


def _about(chance: Random, around: tuple[float, float]) -> float:
    mean, spread = around
    return chance.uniform(mean - spread, mean + spread)


def identity_of(phone: str) -> str:
    """Return BLiP's identity of a number; it cannot be derived from the digits."""
    return f"{phone[::-1].rstrip('+')}@wa.gw.msging.net"


def phone_of(identity: str) -> str:
    """Return the number of an identity."""
    return "+" + identity.partition("@")[0][::-1]
