"""BLiP as the product sees it: plans and penalty, look-ups, messages, history, receipts, faults.

It stands in for `notifier.blip.client`: a call gives its result or raises one of the failures.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from notifier.blip.receipts import receipt
from notifier.bots import Bot
from notifier.failures import (
    Failure,
    Misconfigured,
    Reason,
    Rejected,
    Throttled,
    Transient,
    Unknown,
)
from notifier.records import Receipt
from notifier.request import Template
from tests.faults.simulation import Simulation

type Kind = Literal["messages", "lookups", "history", "ping"]
# What may happen to a call. `refused`: no connection. `unavailable`: 503. `throttled`: 429 out of
# the blue. `unauthorized`: 401. `dropped`: the connection breaks before BLiP has read it.
# `swallowed`: accepted, and the connection breaks. `gateway`: accepted, and 504. `slow`: accepted,
# and the answer may come too late.
type Fault = Literal[
    "refused",
    "unavailable",
    "throttled",
    "unauthorized",
    "dropped",
    "swallowed",
    "gateway",
    "slow",
]

PENALTY_SECONDS = 120.0
HISTORY_SECONDS = 3 * 86_400
CALL_SECONDS = 10.0


@dataclass
class BlipFaults:
    """What goes wrong at BLiP and on the way to it.

    Attributes:
        rates: how often each fault strikes, as probabilities.
        spells: from when to when one fault strikes every call, and which; of one bot, or of all.
    """

    rates: Mapping[Fault, float] = field(default_factory=dict)
    spells: list[tuple[float, float, Fault, str | None]] = field(default_factory=list)


@dataclass
class Fate:
    """What becomes of the messages to a recipient.

    Attributes:
        a_number: look-ups find it.
        refused: BLiP refuses every message.
        failing: the codes with which messages fail, one after the other; then they are received.
        silent: the messages are delivered, but no receipt says so.
    """

    a_number: bool = True
    refused: bool = False
    failing: Sequence[int] = ()
    silent: bool = False


@dataclass
class Accepted:
    """A message that BLiP took.

    Attributes:
        began_at: when the sandbox began to send it.
    """

    message_id: str
    bot: str
    phone: str
    began_at: float
    at: float


@dataclass
class Account:
    """A bot at BLiP.

    Attributes:
        throttled: how many calls were answered 429.
        most_per_second: the most calls within any second, by plan.
    """

    name: str
    messages_per_second: float = 50
    commands_per_second: float = 200
    shut_until: float = 0.0
    throttled: int = 0
    most_per_second: dict[str, int] = field(default_factory=lambda: {"messages": 0, "commands": 0})
    recent: dict[str, deque[float]] = field(
        default_factory=lambda: {"messages": deque(), "commands": deque()}
    )

    def over(self, plan: str, now: float) -> bool:
        """Count a call; tell whether it is one too many."""
        recent = self.recent[plan]
        while recent and recent[0] <= now - 1:
            recent.popleft()
        recent.append(now)
        self.most_per_second[plan] = max(self.most_per_second[plan], len(recent))
        limit = self.messages_per_second if plan == "messages" else self.commands_per_second
        if len(recent) > limit:
            self.shut_until = now + PENALTY_SECONDS
        return self.shut_until > now


@dataclass(slots=True)
class _Reply:
    """What comes back, after so many seconds."""

    value: Any = None
    failure: Failure | None = None
    seconds: float = 0.05


@dataclass
class HistorySettings:
    """BLiP's event history.

    Attributes:
        kept: without it, every answer is empty.
        lag: how long an event takes to appear at most.
    """

    kept: bool = True
    lag: float = 300.0


class SimBlip:
    """All of BLiP.

    Attributes:
        fates: by phone number; everybody else gets everything.
        next_faults: what happens to the next calls of a kind, whatever the rates say.
        sent: the messages taken, by id.
        posts: how many messages were begun to be sent, by id.
        doubtful: ids of messages whose sender heard nothing definite.
        denied: how often the history answered that it has nothing, by message id.
        denied_falsely: ids for which it did so although BLiP had taken the message.
        failed: the failed receipts that were made, by message id.
        pings: when each bot was pinged.
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
        manual_receipts: bool = False,
    ) -> None:
        self.simulation = simulation
        self.accounts = accounts  # by key
        self.faults = faults or BlipFaults()
        self.history_settings = history or HistorySettings()
        self.latency = latency
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
        self.look_ups = 0
        self.questions = 0
        self.on_accept: Callable[[Accepted], None] = lambda _: None
        self.on_receipt: Callable[[dict[str, Any], str], None] = lambda *_: None
        self.pending_receipts = 0
        self._failures: dict[str, int] = defaultdict(int)
        self._stored: dict[str, list[tuple[float, dict[str, Any]]]] = defaultdict(list)

    # --- the client's calls -----------------------------------------------------------------------

    def close(self) -> None:
        """There is nothing to close."""

    def look_up(self, bot: Bot, phone: str) -> str:
        def answer(_: Account) -> _Reply:
            self.look_ups += 1
            if not self.fates.get(phone, _ORDINARY).a_number:
                failure = Rejected(Reason.NOT_A_PHONE_NUMBER, "no phone number", code=61)
                return _Reply(failure=failure)
            return _Reply(identity_of(phone))

        identity: str = self._command("lookups", bot, answer)
        return identity

    def send(self, bot: Bot, message_id: str, identity: str, template: Template) -> None:
        assert template
        self.posts[message_id] += 1
        phone = phone_of(identity)
        began_at = self.simulation.now
        fault = self._fault("messages", bot)

        def answer(account: Account) -> _Reply:
            if self.fates.get(phone, _ORDINARY).refused:
                return _Reply(failure=Rejected(Reason.REJECTED, "refused", code=21))
            # Who heard nothing does not know either whether BLiP has read it yet.
            if fault != "dropped":
                self._accept(Accepted(message_id, account.name, phone, began_at, 0.0))
            broken = Unknown("the connection broke")
            match fault:
                case "dropped" | "swallowed":
                    return _Reply(failure=broken, seconds=self.simulation.random.uniform(0, 12))
                case "gateway":
                    return _Reply(failure=Unknown("HTTP 504", code=504), seconds=5)
                case "slow":
                    return _Reply(seconds=self.simulation.random.uniform(3, 14))
                case _:
                    return _Reply()

        try:
            self._exchange("messages", bot, fault, answer, late=Unknown)
        except Unknown:
            self.doubtful.add(message_id)
            raise

    def history(self, bot: Bot, message_id: str) -> list[Receipt]:
        return [
            about for event in self.events(bot, message_id) if (about := receipt(event)) is not None
        ]

    def events(self, bot: Bot, message_id: str) -> list[dict[str, Any]]:
        def answer(_: Account) -> _Reply:
            self.questions += 1
            now = self.simulation.now
            found = [
                envelope
                for stored_at, envelope in self._stored.get(message_id, ())
                if stored_at <= now < stored_at + HISTORY_SECONDS
            ]
            if not found:
                self.denied[message_id] += 1
                if message_id in self.sent:
                    self.denied_falsely.add(message_id)
            return _Reply(found)

        events: list[dict[str, Any]] = self._command("history", bot, answer)
        return events

    def ping(self, bot: Bot) -> None:
        self.pings[bot.name].append(self.simulation.now)
        self._command("ping", bot, lambda _: _Reply())

    # --- the way there and back -------------------------------------------------------------------

    def _command(self, kind: Kind, bot: Bot, answer: Callable[[Account], _Reply]) -> Any:
        fault = self._fault(kind, bot)

        def faulty(account: Account) -> _Reply:
            reply = answer(account)
            if fault in {"dropped", "swallowed", "gateway"}:
                return _Reply(failure=Transient("no answer"), seconds=5)
            if fault == "slow":
                reply.seconds = self.simulation.random.uniform(3, 14)
            return reply

        return self._exchange(kind, bot, fault, faulty, late=Transient)

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
        self,
        kind: Kind,
        bot: Bot,
        fault: Fault | None,
        answer: Callable[[Account], _Reply],
        *,
        late: type[Failure],
    ) -> Any:
        chance = self.simulation.random
        there = chance.uniform(0.005, 0.025)

        def arrive() -> _Reply:
            if fault == "refused":
                seconds = chance.choice([0.01, 3.0])
                return _Reply(failure=Transient("no connection"), seconds=seconds)
            account = self.accounts.get(bot.key)
            if account is None or fault == "unauthorized":
                return _Reply(failure=Misconfigured("HTTP 401", code=401))
            if fault == "throttled":
                account.shut_until = self.simulation.now + PENALTY_SECONDS
            if account.over("messages" if kind == "messages" else "commands", self.simulation.now):
                account.throttled += 1
                return _Reply(failure=Throttled("HTTP 429", code=34))
            if fault == "unavailable":
                return _Reply(failure=Transient("HTTP 503", code=503))
            reply = answer(account)
            reply.seconds = max(reply.seconds, chance.uniform(*self.latency))
            if there + reply.seconds > CALL_SECONDS:
                return _Reply(failure=late("too late"), seconds=CALL_SECONDS - there)
            return reply

        reply: _Reply = self.simulation.call(
            f"blip.{kind}", arrive, there=there, back=lambda reply: reply.seconds
        )
        if reply.failure is not None:
            raise reply.failure
        return reply.value

    # --- what becomes of messages -----------------------------------------------------------------

    def _accept(self, accepted: Accepted) -> None:
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
        if fate.silent:
            return
        failed_before = self._failures[accepted.message_id[:36]]
        if failed_before < len(fate.failing):
            self._failures[accepted.message_id[:36]] += 1
            self._later(accepted, "failed", chance.uniform(0.5, 3), fate.failing[failed_before])
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
        """Let something happen to a message: it gets into the history, and a receipt is pushed."""
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
            stored_at = self.simulation.now + self.simulation.random.uniform(0, settings.lag)
            self._stored[accepted.message_id].append((stored_at, envelope))
        if pushed:
            self.on_receipt(envelope, accepted.bot)


_ORDINARY = Fate()


def identity_of(phone: str) -> str:
    """Give what BLiP calls a number: nobody could guess it."""
    return f"{phone[::-1].rstrip('+')}@wa.gw.msging.net"


def phone_of(identity: str) -> str:
    """Whose identity it is."""
    return "+" + identity.partition("@")[0][::-1]
