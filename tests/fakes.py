"""The world in memory: a clock that moves when told, tables, a secret, BLiP, dead letters.

What holds state here behaves as its adapter does: `tests/integration/test_adapters.py` holds both
to one suite, and compares their items. Items have the attributes that the tables have.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import count
from threading import RLock
from typing import Any
from uuid import uuid4

from boto3.dynamodb.types import TypeSerializer

from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.identities import DynamoDbIdentities
from notifier.aws.ledger import DynamoDbLedger
from notifier.aws.notifications import DynamoDbNotifications
from notifier.aws.outbox import ledger_write
from notifier.aws.queues import _short
from notifier.aws.receipts_ledger import DynamoDbReceiptsLedger
from notifier.aws.refusals import DynamoDbRefusals
from notifier.contract.parse import parse
from notifier.contract.template import Template
from notifier.domain.bot_state import BotState, Plan, Reservation
from notifier.domain.bots import Bot, Bots, InvalidBot, parse_bots
from notifier.domain.dead_letters import DeadLetter, FailureDetails
from notifier.domain.failures import Failure, Reason
from notifier.domain.ledger_entries import LedgerWrite
from notifier.domain.notification import Notification, QueuedRequest, ledger_key
from notifier.domain.receipts import Receipt
from notifier.domain.recipients import Identity
from notifier.domain.status import Status
from notifier.domain.status_events import Publication, StatusEvent
from notifier.use_cases.publish_status_events import DEFAULT_PUBLISHED, Publisher
from notifier.use_cases.record_receipt import Receipts
from notifier.use_cases.send_notification.batch import SendNotifications
from notifier.use_cases.send_notification.outcomes import Result
from notifier.use_cases.send_notification.waits import Policy, Waits
from tests.faults.dynamodb import DirectAws, SimTable

type Item = dict[str, Any]
type Recipient = tuple[str, str]

# The key of the bots below: base64 of bot:secret.
KEY = "Key Ym90OnNlY3JldA=="
OTHER_KEY = "Key Ym90Om90aGVy"


class Clock:
    """Stands still until somebody sleeps; sleepers in several threads sleep at the same time."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._lock = RLock()
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            until = self._now + seconds
            with self._lock:
                self.slept.append(seconds)
                self._now = max(self._now, until)

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


class OneAfterTheOther(Executor):
    """Runs what is submitted at once, in this thread: what happens has one order."""

    def submit[**P, R](
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]:
        future: Future[R] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - as every executor does
            future.set_exception(error)
        return future


class FakeTable(SimTable):
    """The simulated table without a simulation. `writes` counts, also those that did not hold."""

    def __init__(self) -> None:
        # Nothing asks for the time but a sweep, which never comes here.
        super().__init__("table", DirectAws(lambda: 0.0), page=PAGE_SIZE)
        self.writes = 0

    def get_many(self, keys: list[str]) -> tuple[list[Item], set[str]]:
        # Items that a test has put there may lack their key.
        return [self.get(key) | {"key": key} for key in keys if key in self.items], set()

    def update(
        self,
        key: str,
        update: str,
        condition: str,
        values: dict[str, Any],
        *,
        returning: bool = True,
    ) -> tuple[bool, Item]:
        self.writes += 1
        return super().update(key, update, condition, values, returning=returning)


# How many items one page of a scan has.
PAGE_SIZE = 3


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


class WholeLedger(DynamoDbLedger, DynamoDbReceiptsLedger, DynamoDbNotifications):
    """The ledger for tests that play several functions at once."""


class FakeIdentities(DynamoDbIdentities):
    """The real ones, with the template's parameters, which count their reads."""

    def __init__(
        self,
        table: FakeTable,
        *,
        now: Callable[[], float],
        ttl_seconds: int = 518_400,
        negative_ttl_seconds: int = 86_400,
        uniform: Callable[[float, float], float] = max,
    ) -> None:
        super().__init__(
            table,
            now=now,
            ttl_seconds=ttl_seconds,
            negative_ttl_seconds=negative_ttl_seconds,
            uniform=uniform,
        )
        self.reads = 0

    def read(
        self, recipients: Iterable[Recipient], bots: Iterable[str]
    ) -> tuple[dict[Recipient, Identity], dict[str, BotState]]:
        self.reads += 1
        return super().read(recipients, bots)


class FakeBotStates(DynamoDbBotStates):
    """The real one, which notes what was reserved."""

    def __init__(self, table: FakeTable, now: Callable[[], float]) -> None:
        super().__init__(table, now)
        self.reservations: list[tuple[str, Plan, int]] = []

    def reserve(self, bot: Bot, plan: Plan, count: int, *args: Any, **kwargs: Any) -> Reservation:
        self.reservations.append((bot.name, plan, count))
        return super().reserve(bot, plan, count, *args, **kwargs)


class FakeSecrets:
    """See `notifier.aws.secrets`. `text` is a function, so that the secret can change."""

    def __init__(self, text: Callable[[], str], now: Callable[[], float]) -> None:
        self._text = text
        self._now = now
        self._bots: Bots = {}
        self._fetched_at = float("-inf")
        self._lock = RLock()
        self.fetches = 0

    def bots(self) -> Bots:
        return self._not_older_than(300)

    def fresh(self, name: str, stale: Bot | None) -> Bot | InvalidBot | None:
        bot = self._bots.get(name)
        return bot if bot != stale else self._not_older_than(10).get(name)

    def _not_older_than(self, seconds: float) -> Bots:
        with self._lock:
            if self._now() - self._fetched_at > seconds:
                self.fetches += 1
                self._bots = parse_bots(self._text())
                self._fetched_at = self._now()
            return self._bots


@dataclass(frozen=True)
class Sent:
    """A message that BLiP was given."""

    bot: Bot
    message_id: str
    identity: str
    template: Template
    at: float


class FakeBlip:
    """Answers every call, unless told what to raise.

    Attributes:
        look_ups: every number asked for, refused or not.
        sent: every message handed over, refused or not.
        taken: those of them that BLiP took.
        call_seconds: what each call takes.
        before_look_up, before_send, before_history, before_ping: called with each call's bot,
            before it is answered; what they raise is what the call raises.
        stored: what the history knows, by message id.
        asked: the message ids that the history was asked about.
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
        self.before_ping: Callable[[Bot], None] = lambda _: None
        self.stored: dict[str, list[Receipt]] = {}
        self.asked: list[str] = []
        self.pings = 0

    def is_connected(self, _: Bot) -> bool:
        return bool(self.taken)

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

    def ping(self, bot: Bot) -> None:
        self.pings += 1
        self._clock.sleep(self.call_seconds)
        self.before_ping(bot)


def identity_of(phone: str) -> str:
    """Return what the fake BLiP calls a number: nobody could guess it."""
    return f"wa-{phone[::-1].rstrip('+')}@wa.gw.msging.net"


def raises(*failures: Exception) -> Callable[[Bot], None]:
    """Raise these, one per call; then nothing any more."""
    left = list(failures)

    def strike(_: Bot) -> None:
        if left:
            raise left.pop(0)

    return strike


def always(failure: Callable[[], Failure]) -> Callable[[Bot], None]:
    """Raise such a failure at every call."""

    def strike(_: Bot) -> None:
        raise failure()

    return strike


class FakeMeter:
    """See `notifier.telemetry`."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.counts: Counter[str] = Counter()

    def took(self, what: str, seconds: float) -> None:
        self.times[what].append(seconds)

    def share(self, what: str, share: float) -> None:
        self.times[what].append(share)

    def age(self, what: str, seconds: float) -> None:
        self.times[what].append(seconds)

    def count(self, what: str, number: int = 1) -> None:
        if number:
            self.counts[what] += number


@dataclass(frozen=True)
class Letter:
    """A dead letter."""

    body: str
    reason: Reason
    failure: dict[str, Any]
    bot: str | None
    notification_id: str | None
    generation: int | None


@dataclass
class _Kept:
    """A dead letter on its queue; `letter` is None for what SQS itself has moved there."""

    letter_id: str
    body: str
    letter: Letter | None
    at: float
    visible_at: float = 0.0
    receive_count: int = 0

    @property
    def handle(self) -> str:
        return f"{self.letter_id}/{self.receive_count}"


class FakeDeadLetters:
    """See `notifier.aws.queues`. `before_put` is called first, and may raise."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self.before_put: Callable[[], None] = lambda: None
        self._kept: dict[str, _Kept] = {}

    @property
    def letters(self) -> list[Letter]:
        return [kept.letter for kept in self._kept.values() if kept.letter]

    def put(
        self,
        body: str,
        reason: Reason,
        failure: FailureDetails,
        *,
        bot: str | None,
        notification_id: str | None,
        generation: int | None,
    ) -> None:
        self.before_put()
        written = json.loads(_short(failure))
        letter = Letter(body, reason, written, bot, notification_id, generation)
        self._keep(body, letter)

    def moved(self, body: str) -> None:
        """What SQS does with a message that was received too often."""
        self._keep(body, None)

    def _keep(self, body: str, letter: Letter | None) -> None:
        letter_id = str(uuid4())
        self._kept[letter_id] = _Kept(letter_id, body, letter, self.now())

    def depth(self) -> tuple[int, int]:
        hidden = sum(kept.visible_at > self.now() for kept in self._kept.values())
        return len(self._kept) - hidden, hidden

    def receive(self, visibility_seconds: int) -> list[DeadLetter]:
        visible = [kept for kept in self._kept.values() if kept.visible_at <= self.now()][:10]
        for kept in visible:
            kept.visible_at = self.now() + visibility_seconds
            kept.receive_count += 1
        return [_dead_letter(kept) for kept in visible]

    def change_visibility(self, handles: Iterable[str], seconds: int) -> None:
        for kept in self._handled(handles):
            kept.visible_at = self.now() + seconds

    def delete(self, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        gone = {kept.letter_id for kept in self._handled(each.receipt_handle for each in letters)}
        for letter_id in gone:
            del self._kept[letter_id]
        return [letter for letter in letters if letter.letter_id in gone]

    def _handled(self, handles: Iterable[str]) -> list[_Kept]:
        by_handle = {kept.handle: kept for kept in self._kept.values()}
        return [by_handle[handle] for handle in handles if handle in by_handle]


def _dead_letter(kept: _Kept) -> DeadLetter:
    if kept.letter is None:
        return DeadLetter(kept.letter_id, kept.handle, kept.body, None, kept.at)
    return DeadLetter(
        kept.letter_id,
        kept.handle,
        kept.body,
        kept.letter.reason.value,
        kept.at,
        bot=kept.letter.bot,
        notification_id=kept.letter.notification_id,
        generation=kept.letter.generation,
        redrives=kept.letter.failure.get("redrives", 0),
        failure=kept.letter.failure,
    )


class FakeRequests:
    """The requests queue, as far as requests are put back.

    Attributes:
        put_backs: by the stack itself: body, generation and delay.
        put_back_redrives: how often an operator had put each of those back before.
        redriven: by an operator, as requests on the queue.
        refuses: tells of which bodies this queue wants to know nothing.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self.put_backs: list[tuple[str, int, int]] = []
        self.put_back_redrives: list[int] = []
        self.redriven: list[QueuedRequest] = []
        self.refuses: Callable[[str], bool] = lambda _: False

    def enqueue_next_generation(
        self,
        body: str,
        *,
        bot: str,
        generation: int,
        redrives: int,
        delay_seconds: int,
    ) -> None:
        assert bot
        self.put_backs.append((body, generation, delay_seconds))
        self.put_back_redrives.append(redrives)

    def redrive(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        taken = [letter for letter in letters if not self.refuses(letter.body)]
        self.redriven += [
            QueuedRequest(
                str(uuid4()),
                "receipt",
                letter.body,
                self.now(),
                generation=letter.generation,
                redrives=letter.redrives + 1,
            )
            for letter in taken
        ]
        return taken


_typed = TypeSerializer().serialize


def stream_record(key: str, number: int, before: Item, after: Item) -> Item:
    """Return a write as Lambda's event of the ledger's stream has it; an empty item is none."""
    images = {
        name: {attribute: _typed(value) for attribute, value in ({"key": key} | item).items()}
        for name, item in (("OldImage", before), ("NewImage", after))
        if item
    }
    return {"dynamodb": {"Keys": {"key": {"S": key}}, "SequenceNumber": str(number)} | images}


class FakeStatusEvents:
    """The event bus; takes every event, and keeps what upstream hears in `told`.

    Attributes:
        outcome: what becomes of an event.
        calls: the events of each call.
    """

    def __init__(self) -> None:
        self.told: list[StatusEvent] = []
        self.calls: list[list[StatusEvent]] = []
        self.outcome: Callable[[StatusEvent], Publication] = lambda _: Publication.TAKEN

    def put(self, events: Sequence[StatusEvent]) -> list[Publication]:
        self.calls.append(list(events))
        outcomes = [self.outcome(event) for event in events]
        taken = zip(events, outcomes, strict=True)
        self.told += [event for event, outcome in taken if outcome is Publication.TAKEN]
        return outcomes


class FakeUnpublished:
    """The queue of what cannot be published; it takes a key unless it is `down`."""

    def __init__(self) -> None:
        self.down = False
        self.kept: list[tuple[str, str, str]] = []

    def put(self, write: LedgerWrite, problem: str) -> bool:
        if not self.down:
            self.kept.append((write.key, write.sequence_number, problem))
        return not self.down


@dataclass
class World:
    """Everything that sandboxes share. `sandbox()` makes one more of them.

    Each write of the ledger is published at once, as its stream would have it in the end.

    Attributes:
        bots: the secret's content; a text stands for itself.
        published: the statuses that upstream wants to hear of.
    """

    clock: Clock = field(default_factory=Clock)
    ledger_table: FakeTable = field(default_factory=FakeTable)
    identities_table: FakeTable = field(default_factory=FakeTable)
    dead_letters: FakeDeadLetters = field(default_factory=FakeDeadLetters)
    requests: FakeRequests = field(default_factory=FakeRequests)
    events: FakeStatusEvents = field(default_factory=FakeStatusEvents)
    unpublished: FakeUnpublished = field(default_factory=FakeUnpublished)
    published: Collection[Status] = DEFAULT_PUBLISHED
    meter: FakeMeter = field(default_factory=FakeMeter)
    bots: Any = field(default_factory=lambda: {"default": {"key": KEY, "namespace": "ns"}})
    in_flight: int = 0
    blip: FakeBlip = field(init=False)

    def __post_init__(self) -> None:
        self.blip = FakeBlip(self.clock)
        self.dead_letters.now = self.requests.now = self.clock.now
        self.ledger_table.on_write = self._publish
        self._writes = count(1)

    def _publish(self, key: str, before: Item, after: Item) -> None:
        write = ledger_write(stream_record(key, next(self._writes), before, after))
        assert not write.problem
        assert self.publisher().publish([write], float("inf")) is None

    def publisher(self) -> Publisher:
        """Build what the function on the ledger's stream uses."""
        return Publisher(
            self.events, self.unpublished, self.meter, self.clock, self.published, uniform=max
        )

    def sandbox(
        self,
        *,
        threads: Executor | None = None,
        uniform: Callable[[float, float], float] = max,
        **policy: Any,
    ) -> "Sandbox":
        """Build what runs in one sandbox. `uniform` gives the upper bound unless told otherwise."""
        return Sandbox(self, threads or OneAfterTheOther(), uniform, Policy(**policy))

    def queued(
        self,
        body: str | Mapping[str, Any],
        *,
        generation: int | None = None,
        age: float = 0.0,
        receive_count: int = 1,
    ) -> QueuedRequest:
        """Return a request as it lies on the queue, for `age` seconds."""
        text = body if isinstance(body, str) else json.dumps(body)
        record_id = str(uuid4())
        published_at = self.clock.now() - age
        return QueuedRequest(
            record_id,
            f"receipt of {record_id}",
            text,
            published_at,
            generation=generation,
            receive_count=receive_count,
        )

    def secret(self) -> str:
        return self.bots if isinstance(self.bots, str) else json.dumps(self.bots)

    def know(self, phone: str, bot: str = "default") -> None:
        """Let the identities hold a number."""
        good_until = self.clock.now() + 500_000
        self.identities_table.items[f"{bot}/{phone}"] = {
            "key": f"{bot}/{phone}",
            "address": identity_of(phone),
            "good_until": _ms(good_until),
            "expires_at": round(good_until),
        }

    def entry(self, body: Mapping[str, Any]) -> Item:
        """Return the ledger's item of a request; empty if there is none."""
        return self.ledger_table.get(ledger_key(body.get("bot", "default"), body["id"]))


class Sandbox:
    """The use case with its own memory, over a world that it shares."""

    def __init__(
        self,
        world: World,
        threads: Executor,
        uniform: Callable[[float, float], float],
        policy: Policy,
    ) -> None:
        now = world.clock.now
        self._world = world
        self.ledger = WholeLedger(world.ledger_table, now)
        self.identities = FakeIdentities(world.identities_table, now=now)
        self.bot_states = FakeBotStates(world.identities_table, now)
        self.secrets = FakeSecrets(world.secret, now)
        self.receipts = Receipts(
            self.ledger,
            self.identities,
            self.bot_states,
            world.requests,
            world.dead_letters,
            world.meter,
            now,
        )
        self.delivery = SendNotifications(
            ledger=self.ledger,
            refusals=DynamoDbRefusals(world.ledger_table, now),
            identities=self.identities,
            bot_states=self.bot_states,
            secrets=self.secrets,
            blip=world.blip,
            dead_letters=world.dead_letters,
            receipts=self.receipts,
            in_flight=lambda: world.in_flight,
            meter=world.meter,
            clock=world.clock,
            threads=threads,
            max_threads=32,
            waits=Waits(policy, uniform),
        )

    def deliver(
        self, *requests: str | Mapping[str, Any] | QueuedRequest, seconds: float = 30
    ) -> list[Result]:
        """Deliver one batch, with so much time left; the results in the order of the requests."""
        batch: Sequence[QueuedRequest] = [
            request if isinstance(request, QueuedRequest) else self._world.queued(request)
            for request in requests
        ]
        results = self.delivery.deliver(batch, self._world.clock.now() + seconds)
        by_record = {result.queued.record_id: result for result in results}
        assert len(results) == len(by_record) == len(batch)
        return [by_record[queued.record_id] for queued in batch]


def a_failure(**changes: Any) -> FailureDetails:
    """Return the details of a failure; `changes` are its attributes."""
    details: dict[str, Any] = {
        "detail": "It went wrong.",
        "code": None,
        "template": "order_shipped",
        "phase": "send",
        "attempts": 1,
        "possibly_sent": False,
        "redrives": 0,
    }
    return FailureDetails(**details | changes)


def a_request(**changes: Any) -> dict[str, Any]:
    """A valid request; every call gives another notification to the same person."""
    return {
        "id": f"order-{uuid4()}",
        "to": "+5531999998888",
        "template": {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981"]},
    } | changes


def a_notification(
    queued: QueuedRequest | None = None, *, generation: int | None = None, **changes: Any
) -> Notification:
    """The request above, parsed."""
    if queued is None:
        body = json.dumps({"id": "order-1"} | a_request(**{"id": "order-1"} | changes))
        queued = QueuedRequest("record", "receipt", body, 1_800_000_000.0, generation)
    parsed = parse(queued.body)
    key = ledger_key(parsed.request.bot, parsed.request.id)
    return Notification(queued, parsed.request, parsed.content_hash, key)
