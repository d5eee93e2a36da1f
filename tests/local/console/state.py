"""What the console knows of the stack, and how it learns it: only while a page is looked at.

- The ledger's stream has every write of a notification, with the request as it came, which the
  ledger itself keeps until the notification is delivered only.
- The simulator has what arrived on the phones.
- The simulator has the bots' templates as well, and the identities' table what the stack knows of
  them.
- A queue of its own has the status events, by a rule of the event bus.
- The dead letters are read when their number changes, and given back at once.

Every change counts `State.version` up and leaves it in what has changed: a page that was made at
one version asks for what is newer.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from threading import RLock
from typing import Any

import phonenumbers
from botocore.exceptions import BotoCoreError, ClientError

from notifier.aws.outbox import REFUSED
from notifier.aws.queues import DeadLettersQueue
from notifier.aws.table import Item as Attributes
from notifier.aws.table import item_of
from notifier.contract.parse import parse, read_kept
from notifier.contract.problems import InvalidRequest
from notifier.contract.request import NotificationRequest
from notifier.domain.dead_letters import DeadLetter
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import Change
from notifier.domain.notification import ledger_key, message_id
from notifier.domain.status import SENT_OR_LATER, UNDELIVERED, Status
from notifier.use_cases.redrive_failures.orders import RECEIVES_EXHAUSTED
from tests.local.blip import Template
from tests.local.console import whatsapp
from tests.local.console.bot_templates import BotTemplates
from tests.local.console.sources import Sources
from tests.local.console.whatsapp import Bubble

type Json = dict[str, Any]

# What is in flight for the console can be seen again after so long, should it be killed meanwhile.
READING_SECONDS = 30
# A page that is live asks more often than that; several pages share one answer.
FRESH_SECONDS = 0.2
# If no page has asked for so long, dead letters may have gone and others come: as many as before.
UNWATCHED_SECONDS = 2.0
_UNDER_WAY = frozenset({Status.CLAIMED, Status.SENDING, Status.RETRYING, Status.UNKNOWN})


@dataclass(slots=True)
class Notification:
    """What the ledger holds of a notification.

    Attributes:
        body: the request as it is kept: as it came, but for a one-time code that was sent. Empty if
            it was never seen, or its recipient was forgotten.
        content_hash: distinguishes a repetition from another content under the same id.
        wakes_at: until when its next generation waits, in epoch seconds; None where none does.
    """

    key: str
    id: str = ""
    bot: str = ""
    status: Status = Status.CLAIMED
    generation: int = 1
    attempts: int = 0
    template: str = ""
    recipient: str = ""
    reason: Reason | None = None
    code: int | None = None
    timeline: tuple[Change, ...] = ()
    created_at: float = 0.0
    wakes_at: float | None = None
    body: str = ""
    content_hash: str = ""
    request: NotificationRequest | None = None

    def update(self, item: Attributes) -> None:
        """Take over a new image of its item."""
        self.status, self.generation = Status(item["status"]), item["generation"]
        self.id, self.bot = item.get("id", ""), item.get("bot", "")
        self.content_hash = item.get("content_hash", "")
        self.attempts, self.code = item.get("attempts", 0), item.get("code")
        self.template, self.recipient = item.get("template", ""), item.get("recipient", "")
        self.reason = Reason(item["reason"]) if item.get("reason") else None
        self.timeline = tuple(
            Change(Status(status), generation, at / 1000, Reason(reason) if reason else None)
            for status, generation, at, reason in item.get("timeline", ())
        )
        self.created_at = (item.get("created_at") or item["updated_at"]) / 1000
        self.wakes_at = item["wake_at"] / 1000 if "wake_at" in item else None
        if item.get("forgotten"):
            self.body, self.request = "", None
        elif body := item.get("request"):
            kept = read_kept(body)
            self.body, self.request = body, kept.request if kept else None

    @property
    def number(self) -> str:
        """The recipient's phone number, masked if the request was never seen."""
        return self.request.to if self.request else self.recipient

    def changes(self, generation: int) -> list[Change]:
        """Return the timeline of one generation."""
        return [change for change in self.timeline if change.generation == generation]


@dataclass(slots=True)
class Message:
    """One message to a phone: a generation of a notification, arrived or on its way.

    Attributes:
        ref: the id that BLiP knows it by.
        order: counts up in the order in which messages were first seen.
        notification: None for a message that somebody else sent to the simulator.
        deliveries: how it arrived, in the simulator's form; more than one is the same id twice.
    """

    ref: str
    order: int
    generation: int = 1
    version: int = 0
    notification: Notification | None = None
    deliveries: list[Json] = field(default_factory=list)
    bubble: Bubble = field(default_factory=Bubble)

    @property
    def id(self) -> str:
        """The producer's id; of a message of somebody else, BLiP's."""
        return self.notification.id if self.notification else self.ref

    @property
    def bot(self) -> str:
        return self.notification.bot if self.notification else str(self.deliveries[0]["bot"])

    @property
    def template(self) -> str:
        if self.notification:
            return self.notification.template
        return str(self.deliveries[0]["template"] or "")

    @property
    def number(self) -> str:
        """The recipient's, as exactly as it is known."""
        if self.deliveries:
            return str(self.deliveries[0]["phone"] or self.deliveries[0]["to"])
        return self.notification.number if self.notification else ""

    @property
    def at(self) -> float:
        """When BLiP took it; until then, when its notification was taken up."""
        if self.deliveries:
            return datetime.fromisoformat(self.deliveries[0]["accepted_at"]).timestamp()
        return self.notification.created_at if self.notification else 0.0

    @property
    def place(self) -> tuple[float, int]:
        return (self.at, self.order)

    @property
    def status(self) -> str:
        if self.notification is None:
            return str(self.deliveries[-1]["status"])
        if self.notification.generation == self.generation:
            return self.notification.status
        changes = self.notification.changes(self.generation)
        return changes[-1].status if changes else Status.UNKNOWN

    @property
    def reason(self) -> str:
        """Why it was not delivered; empty if it was, or is on its way."""
        if self.notification is None:
            reason = self.deliveries[-1]["reason"]
            return f"{reason['code']}: {reason['description']}" if reason else ""
        if self.notification.generation == self.generation:
            return self.notification.reason or ""
        changes = self.notification.changes(self.generation)
        return (changes and changes[-1].reason) or ""

    @property
    def searched(self) -> str:
        words = (self.id, self.ref, self.bot, self.template, self.number, self.status, self.reason)
        return "\n".join((*words, self.bubble.text))


@dataclass(slots=True)
class Letter:
    """A dead letter.

    Attributes:
        ref: SQS's message id.
    """

    letter: DeadLetter
    order: int
    version: int
    request: NotificationRequest | None
    wrong: InvalidRequest | None

    @classmethod
    def of(cls, letter: DeadLetter, order: int, version: int) -> "Letter":
        try:
            return cls(letter, order, version, parse(letter.body).request, None)
        except InvalidRequest as wrong:
            kept = read_kept(letter.body)
            if kept is not None:
                return cls(letter, order, version, kept.request, None)
            return cls(letter, order, version, None, wrong)

    @property
    def ref(self) -> str:
        return self.letter.letter_id

    @property
    def reason(self) -> str:
        return self.letter.reason or RECEIVES_EXHAUSTED

    @property
    def id(self) -> str:
        known = self.request.id if self.request else self.wrong and self.wrong.notification_id
        return known or self.letter.notification_id or ""

    @property
    def bot(self) -> str:
        known = self.request.bot if self.request else self.wrong and self.wrong.bot
        return known or self.letter.bot or ""

    @property
    def template(self) -> str:
        known = self.request.template.name if self.request else self.wrong and self.wrong.template
        return known or str(self.letter.failure.get("template") or "")

    @property
    def number(self) -> str:
        return self.request.to if self.request else ""

    @property
    def detail(self) -> str:
        return str(self.letter.failure.get("detail") or "")

    @property
    def code(self) -> str:
        return str(self.letter.failure.get("code") or "")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The broken fields, each with what is wrong with it."""
        entries = self.letter.failure.get("fields")
        return [
            (str(entry.get("field") or "the request"), str(entry.get("problem") or ""))
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict)
        ]

    @property
    def at(self) -> float:
        return self.letter.failed_at

    @property
    def place(self) -> tuple[float, int]:
        return (self.at, self.order)

    @property
    def searched(self) -> str:
        words = (self.id, self.bot, self.template, self.number, self.reason, self.detail, self.code)
        return "\n".join(words)


@dataclass(slots=True)
class StatusEvent:
    """A status event as it went out.

    Attributes:
        notification: whose it is, if the ledger has it: the event names no number.
    """

    detail: Json
    order: int
    version: int
    notification: Notification | None

    @property
    def ref(self) -> str:
        return f"event-{self.order}"

    @property
    def at(self) -> float:
        return datetime.fromisoformat(self.detail["time"]).timestamp()

    @property
    def place(self) -> tuple[float, int]:
        # As they go out, whenever it was that they tell of.
        return (0.0, self.order)

    @property
    def number(self) -> str:
        return self.notification.number if self.notification else ""

    @property
    def searched(self) -> str:
        names = ("id", "bot", "status", "reason", "correlation_id", "event_id")
        words = [str(self.detail.get(name) or "") for name in names]
        if self.notification:
            words += [self.notification.template, self.number]
        return "\n".join(words)


class State:
    """Everything that is shown. Thread-safe under its lock.

    Attributes:
        run: another one in every process; a page of an earlier one has to be loaded anew.
        version: counts up with every change.
        messages, letters, events: oldest first.
        templates: what each bot has.
        gone: what is no more, with the version since when.
        problem: why the stack could not be asked the last time; empty if it could.
    """

    def __init__(self, sources: Sources, now: Callable[[], float] = time.time) -> None:
        self.sources = sources
        self.lock = RLock()
        self.run = secrets.token_hex(4)
        self.version = 1
        self.notifications: dict[str, Notification] = {}
        self.messages: dict[str, Message] = {}
        self.letters: dict[str, Letter] = {}
        self.events: list[StatusEvent] = []
        self.gone: list[tuple[int, str]] = []
        self.templates = BotTemplates(sources, self._next, self._gone)
        self.problem = ""
        self._ledger = _Stream(sources.client("dynamodbstreams"), sources.stream)
        self._dead_letters = DeadLettersQueue(
            sources.client("sqs"), sources.physical_id("DeadLettersQueue"), now
        )
        self._depth: tuple[int, int] | None = None
        self._last_view: Json = {}
        self._orders = 0
        self._fresh_until = 0.0

    def refresh(self) -> None:
        """Learn what has happened since the last time."""
        with self.lock:
            now = time.monotonic()
            if now < self._fresh_until:
                return
            if now > self._fresh_until + UNWATCHED_SECONDS:
                self._depth = None
            try:
                self._read_ledger()
                self._read_simulator()
                self._read_events()
                self._read_dead_letters()
                self.templates.refresh()
                self.problem = ""
            except (BotoCoreError, ClientError) as error:
                self.problem = f"The local AWS does not answer: {error}"
            self._fresh_until = time.monotonic() + FRESH_SECONDS

    def known(self, bot: str, notification_id: str) -> Notification | None:
        """Return the notification that has an id already."""
        return self.notifications.get(ledger_key(bot, notification_id))

    def _template(
        self, name: str | None, language: str | None, simulated: str | None
    ) -> Template | None:
        """Return a template of a bot, which has the simulator's name."""
        simulator = self.sources.simulator
        return simulator.template(name, language, simulated) if simulator else None

    def letter_of(self, key: str) -> Letter | None:
        """Return the last dead letter of a notification, by its key in the ledger."""
        letters = sorted(self.letters.values(), key=lambda letter: letter.order, reverse=True)
        return next((one for one in letters if ledger_key(one.bot, one.id) == key), None)

    def publish(self, body: str, group: str) -> None:
        """Put a request on the queue as it stands, in a group of SQS's fair queues.

        Raises:
            ClientError: SQS does not take it.
        """
        queue = self.sources.physical_id("RequestsQueue")
        self.sources.client("sqs").send_message(
            QueueUrl=queue, MessageBody=body, MessageGroupId=group
        )

    def redrive[T](self, run: Callable[[Sources], T]) -> T:
        """Run something that receives dead letters while nothing here does."""
        with self.lock:
            self._depth, self._fresh_until = None, 0.0
            return run(self.sources)

    def change_template(self, ref: str, changes: Json) -> None:
        """Change a template at BLiP, so that the next page shows it.

        Raises:
            ValueError: there is no such template, or a change does not fit it.
        """
        with self.lock:
            self.templates.change(ref, changes)
            self._fresh_until = 0.0

    def preview(self, request: NotificationRequest) -> Bubble:
        """Return what a request will look like on the phone."""
        wanted = request.template
        simulated = self.sources.bots.get(request.bot)
        return whatsapp.of_request(wanted, self._template(wanted.name, wanted.language, simulated))

    def _next(self) -> int:
        self.version += 1
        return self.version

    def _gone(self, ref: str) -> None:
        self.gone.append((self._next(), ref))

    def _order(self) -> int:
        self._orders += 1
        return self._orders

    # The ledger

    def _read_ledger(self) -> None:
        for key, item in self._ledger.read():
            if key.endswith(REFUSED) or item.get("status") in UNDELIVERED:
                self._depth = None
            if key.endswith(REFUSED) or "status" not in item:
                continue  # a refused request has no place of its own; nor has what was deleted
            notification = self.notifications.setdefault(key, Notification(key))
            notification.update(item)
            self._place(notification)

    def _place(self, notification: Notification) -> None:
        """Move its messages with it, and make one for a generation that is new."""
        ref = message_id(notification.key, notification.generation)
        is_sent = any(
            change.status in SENT_OR_LATER
            for change in notification.changes(notification.generation)
        )
        is_shown = is_sent or notification.status in _UNDER_WAY | {Status.CANCELLED}
        message = self.messages.get(ref)
        if message is None and is_shown and notification.id:
            message = self._message(ref, notification, notification.generation)
        elif message and not message.deliveries and not is_shown:
            del self.messages[ref]
            self._gone(ref)
        for generation in range(1, notification.generation + 1):
            own = self.messages.get(message_id(notification.key, generation))
            if own:
                own.notification, own.generation = notification, generation
                own.version = self._next()
        if message and not message.deliveries and notification.request:
            message.bubble = self.preview(notification.request)

    def _message(self, ref: str, notification: Notification | None, generation: int) -> Message:
        message = Message(ref, self._order(), generation, self._next(), notification)
        self.messages[ref] = message
        return message

    # What arrived

    def _read_simulator(self) -> None:
        if self.sources.simulator is None:
            return
        last = self._last_view.get("number", 0)
        views = self.sources.simulator.inbox(after=str(max(0, last - 1)))
        if last and (not views or views[0]["accepted_at"] != self._last_view["accepted_at"]):
            self._forget_deliveries()
            views = self.sources.simulator.inbox()
        elif last:
            views = views[1:]
        for view in views:
            self._last_view = view
            self._deliver(view)

    def _deliver(self, view: Json) -> None:
        ref = view["id"] or f"number-{view['number']}"
        message = self.messages.get(ref)
        if message is None:
            key, _, generation = ref.partition(":")
            message = self._message(
                ref,
                self.notifications.get(key),
                int(generation) if generation.isdecimal() else 1,
            )
        message.deliveries.append(view)
        message.version = self._next()
        known = self._template(view["template"], view["language"], view["bot"])
        message.bubble = whatsapp.of_content(view["envelope"]["content"], known)

    def _forget_deliveries(self) -> None:
        """Follow the simulator, whose inbox was cleared."""
        self._last_view = {}
        for ref in [ref for ref, message in self.messages.items() if message.deliveries]:
            del self.messages[ref]
            self._gone(ref)

    # Events

    def _read_events(self) -> None:
        for detail in self.sources.heard.collect()[len(self.events) :]:
            notification = self.known(detail["bot"], detail["id"])
            self.events.append(StatusEvent(detail, self._order(), self._next(), notification))

    # Dead letters

    def _read_dead_letters(self) -> None:
        """Read them again if their number has changed, or some could not be seen the last time."""
        visible, in_flight = self._dead_letters.depth()
        if (visible, in_flight) == self._depth:
            return
        seen: dict[str, DeadLetter] = {}
        try:
            while len(seen) < visible:
                letters = self._dead_letters.receive(READING_SECONDS)
                new = {each.letter_id: each for each in letters if each.letter_id not in seen}
                if not new:
                    break
                seen |= new
        finally:
            handles = [letter.receipt_handle for letter in seen.values()]
            self._dead_letters.change_visibility(handles, 0)
        for ref, letter in seen.items():
            if ref not in self.letters:
                self.letters[ref] = Letter.of(letter, self._order(), self._next())
        # What is in flight elsewhere, or was missed, is still there or was taken off: the next time
        # shows it. It would else stay unseen until their number changes again.
        is_whole = in_flight == 0 and len(seen) == visible
        if is_whole:
            for ref in self.letters.keys() - seen.keys():
                del self.letters[ref]
                self._gone(ref)
        self._depth = (visible, in_flight) if is_whole else None


class _Stream:
    """The ledger's stream from its beginning. The local AWS has one shard for a table."""

    def __init__(self, client: Any, arn: str) -> None:
        self._client = client
        self._arn = arn
        self._iterator: str | None = None
        self._last: str | None = None

    def read(self) -> Iterator[tuple[str, Attributes]]:
        """Yield the key and the new image of each write since the last time."""
        while True:
            answer = self._records()
            records = answer["Records"]
            self._iterator = answer.get("NextShardIterator")
            for record in records:
                change = record["dynamodb"]
                self._last = change["SequenceNumber"]
                yield change["Keys"]["key"]["S"], item_of(change.get("NewImage", {}))
            if not records:
                return

    def _records(self) -> Json:
        # An iterator lasts for a quarter of an hour, and nobody may have looked for longer.
        with suppress(self._client.exceptions.ExpiredIteratorException):
            if self._iterator is not None:
                return self._get()
        described = self._client.describe_stream(StreamArn=self._arn)
        where: Json = {"ShardIteratorType": "TRIM_HORIZON"}
        if self._last is not None:
            where = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": self._last}
        answer = self._client.get_shard_iterator(
            StreamArn=self._arn,
            ShardId=described["StreamDescription"]["Shards"][0]["ShardId"],
            **where,
        )
        self._iterator = answer["ShardIterator"]
        return self._get()

    def _get(self) -> Json:
        answer: Json = self._client.get_records(ShardIterator=self._iterator)
        return answer


def shown_number(number: str) -> str:
    """Return a phone number as people write it; anything else as it is."""
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return number
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
