"""The product in a simulated world: everything real but AWS, BLiP, the clock and the threads.

The real composition roots build the real use cases with the real adapters; the names through which
they reach the outside are replaced while a world is open. What each part stands in for:

    simulation.py   clock, threads, sandboxes that are killed
    dynamodb.py     the tables        sqs.py    the queues and Lambda's mapping
    stream.py       the ledger's stream         events.py  the event bus
    blip.py         BLiP              here      secrets, webhook, operator
"""

import base64
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from typing import Any, Self
from unittest import mock

from notifier.aws.refusals import DynamoDbRefusals
from notifier.aws.table import Item
from notifier.domain.notification import ledger_key
from notifier.entrypoints import poll_receipts as polling_root
from notifier.entrypoints import publish_status_events as publishing_root
from notifier.entrypoints import record_receipt as recording_root
from notifier.entrypoints import send_notification as sending_root
from notifier.entrypoints import sync_templates as syncing_root
from notifier.entrypoints import wake_notifications as waking_root
from notifier.settings import (
    PollReceiptsSettings,
    PublishStatusEventsSettings,
    RecordReceiptSettings,
    SendNotificationSettings,
    SyncTemplatesSettings,
    WakeNotificationsSettings,
)
from notifier.use_cases.get_notification import Notifications, TooLate
from tests.faults.blip import (
    Account,
    BlipFaults,
    HistorySettings,
    Network,
    SimBlip,
    identity_of,
)
from tests.faults.events import BusFaults, SimEventBus
from tests.faults.invariants import Invariants
from tests.support.adapters import WholeLedger
from tests.support.simulated_aws.dynamodb import ERRORS, Aws, AwsError, AwsFaults, SimTable
from tests.support.simulated_aws.simulation import (
    Process,
    SimFuture,
    SimLock,
    SimThreads,
    Simulation,
)
from tests.support.simulated_aws.sqs import (
    EventSourceMapping,
    Message,
    Queue,
    QueueFaults,
    Sandbox,
    SimSqs,
)
from tests.support.simulated_aws.stream import Record, Stream, StreamFaults, StreamMapping, deployed

BOTS = "bots"
# Timelines as another version of the code might write them.
NOT_UNDERSTOOD: list[Any] = [
    [["sent", 1, "soon", None]],
    [["teleported", 1, 1_800_000_000_000, None]],
    [["failed", 1, 1_800_000_000_000, "for a reason of its own"]],
    [{"status": "sent"}],
    5,
]
# What the code may log about AWS's faults.
FORESEEN = {*ERRORS, "ClientError"}


@dataclass(frozen=True)
class Faults:
    """Everything that can go wrong.

    Attributes:
        killed_per_batch: a sandbox is killed in the middle of a batch.
        receipts_lost, receipts_twice: on the way from BLiP to the receipts queue.
        skew: by how many seconds sandboxes' clocks differ from the true time at most.
        wakes_late: by how many seconds a thread that waits for a time wakes late at most: a sandbox
            has only a share of a processor.
    """

    aws: AwsFaults = field(default_factory=AwsFaults)
    requests: QueueFaults = field(default_factory=QueueFaults)
    receipts: QueueFaults = field(default_factory=QueueFaults)
    stream: StreamFaults = field(default_factory=StreamFaults)
    bus: BusFaults = field(default_factory=BusFaults)
    blip: BlipFaults = field(default_factory=BlipFaults)
    killed_per_batch: float = 0.0
    receipts_lost: float = 0.0
    receipts_twice: float = 0.0
    skew: float = 0.0
    wakes_late: float = 0.0


@dataclass(frozen=True)
class Settings:
    """How the stack is deployed, where it differs from the template's defaults.

    Attributes:
        all_receipts: status events are published for `accepted` and `dispatched`, too.
        groups: requests come with SQS's `MessageGroupId`; what comes through SNS has none.
        secret: what stands in the secret beside each bot's key and plan.
        registry: the templates are synced every quarter of an hour, the first time at once.
        manual: nothing happens until `step` is called, and calls take as long as they are let.
    """

    concurrency: int = 5
    timeout: float = 30.0
    policy: Mapping[str, int] = field(default_factory=dict)
    webhook: bool = True
    history: HistorySettings = field(default_factory=HistorySettings)
    latency: tuple[float, float] = (0.04, 0.25)
    network: Network = field(default_factory=Network)
    all_receipts: bool = False
    groups: bool = True
    secret: Mapping[str, Any] = field(default_factory=dict)
    registry: bool = False
    manual: bool = False


# The template's parameters.
POLICY = {
    "cooldown_seconds": 120,
    "breaker_wait_seconds": 600,
    "backoff_base_seconds": 5,
    "backoff_max_seconds": 900,
    "settle_window_seconds": 900,
    "max_attempts": 20,
    "max_wait_seconds": 604_800,
    "identity_ttl_seconds": 518_400,
    "identity_negative_ttl_seconds": 86_400,
}


class World:
    """The deployed stack with its surroundings.

    Attributes:
        outcomes: what the functions counted.
        bus: what was published on it.
        unforeseen: errors that no code expects, whatever fails outside.
        waking_errors: how runs of the function failed that wakes what has waited.
    """

    def __init__(
        self,
        seed: int,
        *,
        bots: Iterable[Account] | None = None,
        faults: Faults | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.faults = faults = faults or Faults()
        self.settings = settings = settings or Settings()
        self.simulation = Simulation(seed, manual=settings.manual)
        aws = Aws(self.simulation, faults.aws)
        self.tables = {name: SimTable(name, aws) for name in ("ledger", "identities")}
        self.requests = Queue(self.simulation, "requests", faults=faults.requests, approximate=True)
        self.receipts = Queue(self.simulation, "receipts", max_receives=100, faults=faults.receipts)
        self.dead_letters = Queue(self.simulation, "dead-letters")
        self.unpublished = Queue(self.simulation, "unpublished")
        self.stream = Stream(self.simulation)
        self.tables["ledger"].on_write = self._written
        self.bots = {account.name: account for account in bots or [Account("default")]}
        self.blip = SimBlip(
            self.simulation,
            {_key(name): bot for name, bot in self.bots.items()},
            faults=faults.blip,
            history=settings.history,
            latency=settings.latency,
            network=settings.network,
            manual_receipts=settings.manual,
        )
        self.blip.on_receipt = self._push
        self.outcomes: Counter[str] = Counter()
        self.unforeseen: list[str] = []
        self.waking_errors: list[Exception] = []
        self.aws = aws
        self.bus = SimEventBus(self.simulation, faults.bus, self._fails)
        self._clients: dict[str, Any] = {
            "sqs": SimSqs(
                aws,
                {
                    "requests": self.requests,
                    "receipts": self.receipts,
                    "dead-letters": self.dead_letters,
                    "unpublished": self.unpublished,
                },
            ),
            "secretsmanager": SimpleNamespace(get_secret_value=self._secret),
            "events": self.bus,
            "dynamodb": object(),
        }
        self._sandboxes = 0
        self._planned = 0
        self._patches = ExitStack()
        self.invariants = Invariants(self)

    def __enter__(self) -> Self:
        random.seed(self.simulation.random.random())
        made = SimpleNamespace(now=self.now, sleep=self._sleep)
        clock = mock.Mock(return_value=made, now=self.now)  # made, and used as it is
        names = {
            "boto3": SimpleNamespace(client=lambda name, **_: self._clients[name]),
            "Table": lambda _, name: self.tables[name],
            "SystemClock": clock,
            "ThreadPoolExecutor": lambda _: SimThreads(self.simulation),
            "BlipClient": lambda *_: self.blip,
        }
        for root in (
            sending_root,
            recording_root,
            publishing_root,
            polling_root,
            syncing_root,
            waking_root,
        ):
            for name, value in names.items():
                if hasattr(root, name):
                    self._patches.enter_context(mock.patch.object(root, name, value))
        for module in (
            "notifier.use_cases.slots",
            "notifier.use_cases.send_notification.round",
            "notifier.aws.memory",
            "notifier.aws.cached_secret",
        ):
            self._patches.enter_context(mock.patch(f"{module}.Lock", self._lock))
        self._patches.enter_context(mock.patch("notifier.use_cases.poll_receipts.wait", _wait))
        self._patches.enter_context(mock.patch("notifier.telemetry.count", self._count))
        self._patches.enter_context(mock.patch("notifier.telemetry.count_by", _nothing))
        unmeasured = SimpleNamespace(add_metric=_nothing)
        self._patches.enter_context(mock.patch("notifier.telemetry.metrics", unmeasured))
        self._patches.enter_context(_Logged(self._log))
        self._patches.enter_context(self.simulation)
        automatic = not self.settings.manual
        self.sending = EventSourceMapping(
            self.simulation,
            self._sender,
            self.requests,
            concurrency=self.settings.concurrency,
            timeout=self.settings.timeout,
            killed_per_batch=self.faults.killed_per_batch,
            automatic=automatic,
        )
        self.recording = EventSourceMapping(
            self.simulation,
            self._recorder,
            self.receipts,
            concurrency=self.settings.concurrency,
            killed_per_batch=self.faults.killed_per_batch,
            automatic=automatic,
        )
        self.publishing = StreamMapping(
            self.simulation,
            self._publisher,
            self.stream,
            deployed(),
            timeout=deployed().timeout,
            on_dropped=self._dropped,
            faults=self.faults.stream,
            killed_per_batch=self.faults.killed_per_batch,
            automatic=automatic,
        )
        if not self.settings.webhook:
            self._poll_every_minute()
        if self.settings.registry:
            self._sync_every_quarter_of_an_hour()
        if automatic:
            self._wake_every_minute()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._patches.close()

    def now(self) -> float:
        """Return the time on the calling process's clock."""
        process = self.simulation.process
        return self.simulation.now + (process.skew if process else 0.0)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            late = self.simulation.random.uniform(0, self.faults.wakes_late)
            self.simulation.sleep(seconds + late)

    # --- what happens from outside ----------------------------------------------------------------

    def publish(self, request: Mapping[str, Any] | str) -> Message:
        """Put a request on the queue, now."""
        body = request if isinstance(request, str) else json.dumps(request)
        group = "default" if isinstance(request, str) else request.get("bot", "default")
        self.invariants.published(body)
        return self.requests.send(body, group=str(group) if self.settings.groups else "")

    def publish_at(self, time: float, request: Mapping[str, Any] | str) -> None:
        """Put a request on the queue, later."""
        self.later(time, lambda: self.publish(request))

    def later(self, time: float, action: Callable[[], object]) -> None:
        """Do something at a time; nothing is quiet before."""
        self._planned += 1

        def happen() -> None:
            self._planned -= 1
            action()

        self.simulation.at(time, happen)

    def redrive(self, letter: Message, *, with_attributes: bool = True) -> Message:
        """Redrive a dead letter as the SQS console does; attributes may get lost."""
        self.dead_letters.delete(f"{letter.number}/0")
        self.invariants.redriven(letter)
        attributes = letter.attributes if with_attributes else {}
        return self.requests.send(letter.body, attributes, group="default")

    def cancel(self, notification_id: str, bot: str = "default") -> None:
        """Take a notification back, as its producer may; too late or not."""
        notifications = Notifications(
            WholeLedger(self.tables["ledger"], self.now),
            DynamoDbRefusals(self.tables["ledger"], self.now),
        )

        def cancel() -> None:
            with suppress(TooLate):
                notifications.cancel(bot, notification_id)

        self.simulation.spawn(self._process("producer"), cancel)

    def forget(self, request: Mapping[str, Any]) -> None:
        """Erase what the ledger holds of a notification, if it was delivered."""
        key = _key_of(request)
        if self.entry(request).get("status") in {"received", "consumed"}:
            ledger = WholeLedger(self.tables["ledger"], self.now)
            self.simulation.spawn(self._process("operator"), lambda: ledger.erase(key))
            self.later(self.simulation.now + 10, _nothing)  # until that is done

    def restore(self, key: str) -> None:
        """Lose an item with the table, and copy it back from a backup, as an operator does.

        With it comes one that was there before this world, and all published by then.
        """
        item = self.tables["ledger"].items.get(key, {})
        if "timeline" not in item:
            return
        item = item | {"restored_at": round(self.simulation.now * 1000)}
        # What waited is not sent by itself.
        if item.pop("wake_shard", None):
            self.invariants.left_waiting.add(key)
            del item["wake_at"]
        self._put(key, item)
        before = f"{item['id']}-before"
        another = ledger_key(item["bot"], before)
        self._put(another, item | {"key": another, "id": before})

    def poison(self) -> None:
        """Put an unreadable item with events into the ledger."""
        number = len(self.invariants.poison)
        key = ledger_key("default", f"poison-{number}")
        item = {
            "key": key,
            "id": f"poison-{number}",
            "bot": "default",
            "status": "sent",
            "generation": 1,
            "template": "order_shipped",
            "timeline": NOT_UNDERSTOOD[number % len(NOT_UNDERSTOOD)],
            "expires_at": round(self.simulation.now) + 45 * 86_400,
        }
        self.invariants.poison[key] = 0
        self._put(key, item)

    def _put(self, key: str, item: Item) -> None:
        self.tables["ledger"].put(key, item)
        self._written(key, {}, item)

    def wake(self) -> None:
        """Run the function once that wakes what has waited; it looks into no empty shard."""
        shards = [shard for shard, found in self.tables["ledger"].indexes["waits"].items() if found]
        with mock.patch.object(waking_root, "SHARDS", shards):
            function = waking_root.wake_notifications(
                WakeNotificationsSettings(ledger_table="ledger", requests_queue_url="requests")
            )
        end = self.simulation.now + 58
        process = self._process("waker")

        def run() -> None:
            try:
                function.handle(self._context(end))
            except Exception as error:  # noqa: BLE001 - Lambda counts it, and the next run goes on
                self.waking_errors.append(error)

        self.simulation.spawn(process, run)
        self.simulation.at(end, lambda: self.simulation.kill(process))
        if self.simulation.random.random() < self.faults.killed_per_batch:
            killed_at = self.simulation.now + self.simulation.random.uniform(0, 0.5)
            self.simulation.at(killed_at, lambda: self.simulation.kill(process))

    def letters(self) -> list[Message]:
        """Return all dead letters."""
        return self.dead_letters.waiting()

    def entry(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ledger's item of a request; empty if there is none."""
        return self.tables["ledger"].items.get(_key_of(request), {})

    def know(self, phone: str, bot: str = "default") -> None:
        """Store a number's identity."""
        good_until = self.simulation.now + 500_000
        self.tables["identities"].items[f"{bot}/{phone}"] = {
            "key": f"{bot}/{phone}",
            "address": identity_of(phone),
            "good_until": round(good_until * 1000),
            "expires_at": round(good_until),
        }

    def trust_history(self, bot: str = "default") -> None:
        """Record that the bot's history goes as far as it has to."""
        key, seen = f"bot:{bot}", self.simulation.now + 100 * 86_400
        self.tables["identities"].items[key] = {"key": key, "history_seen": round(seen * 1000)}

    # --- running ----------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Run the world for so long."""
        self.simulation.run(seconds)

    def run_until(
        self, condition: Callable[[], bool], *, at_most: float, every: float = 10.0
    ) -> float:
        """Run the world until the condition holds; return the seconds that took.

        Raises:
            TimeoutError: it did not come to hold.
        """
        start = self.simulation.now
        while not condition():
            if self.simulation.now - start > at_most:
                raise TimeoutError(f"not so after {at_most:g} simulated seconds")
            self.simulation.run(every)
        return self.simulation.now - start

    def let_go(self) -> None:
        """Leave the manual mode: from here on events happen by themselves."""
        self.simulation.let_go()
        self.blip.manual_receipts = False
        self.sending.let_go()
        self.recording.let_go()
        self.publishing.let_go()
        self._wake_every_minute()

    def settle(self, *, at_most: float = 86_400) -> float:
        """Run the world until nothing is left to be done; return the seconds that took.

        What never ends is no error here: the invariants find it.
        """
        start = self.simulation.now
        while self.simulation.now - start <= at_most:
            if self.requests.exhausted:
                break
            if not self._still():
                self.simulation.run(10)
            elif self.next_wake is None:
                break
            else:  # all that is left waits
                self.simulation.run(max(10, self.next_wake - self.simulation.now))
        return self.simulation.now - start

    @property
    def next_wake(self) -> float | None:
        """When the next wait is over; None if nothing waits."""
        shards = self.tables["ledger"].indexes["waits"].values()
        return min((entries[0][0] / 1000 for entries in shards if entries), default=None)

    def quiet(self) -> bool:
        """Return whether nothing is left to be done."""
        return self._still() and self.next_wake is None

    def _still(self) -> bool:
        """Return whether nothing is left to be done but what waits."""
        return not (
            self.requests.messages
            or self.receipts.messages
            or self.sending.busy
            or self.recording.busy
            or self.publishing.busy
            or self.publishing.waiting
            or self.blip.pending_receipts
            or self._planned
        )

    # --- the functions' surroundings --------------------------------------------------------------

    def _process(self, name: str) -> Process:
        self._sandboxes += 1
        skew = self.simulation.random.uniform(-self.faults.skew, self.faults.skew)
        return Process(f"{name} {self._sandboxes}", skew)

    def _sender(self) -> Sandbox:
        policy = POLICY | dict(self.settings.policy)
        function = sending_root.send_notification(
            SendNotificationSettings(
                ledger_table="ledger",
                identities_table="identities",
                requests_queue_url="requests",
                dead_letters_queue_url="dead-letters",
                bots_secret_arn=BOTS,
                maximum_concurrency=self.settings.concurrency,
                allowed_recipients="+",
                ledger_restored_at="1970-01-01T00:00:00Z",
                **policy,
            )
        )
        return Sandbox(
            self._process("sender"), lambda event, end: function.handle(event, self._context(end))
        )

    def _recorder(self) -> Sandbox:
        function = recording_root.record_receipt(
            RecordReceiptSettings(
                ledger_table="ledger",
                identities_table="identities",
                dead_letters_queue_url="dead-letters",
            )
        )
        return Sandbox(self._process("recorder"), lambda event, _: function.handle(event))

    def _fails(self, call: str) -> AwsError | None:
        return self.aws.fails(call)

    def _publisher(self) -> Sandbox:
        function = publishing_root.publish_status_events(
            PublishStatusEventsSettings(
                event_bus="bus",
                unpublished_queue_url="unpublished",
                publish_all_receipts=self.settings.all_receipts,
            )
        )
        return Sandbox(
            self._process("publisher"),
            lambda event, end: function.handle(event, self._context(end)),
        )

    def _written(self, key: str, before: Item, after: Item) -> None:
        record = self.stream.write(key, before, after)
        self.invariants.written(key, before, after, record.number if record else 0)

    def _dropped(self, record: Record) -> None:
        """Say where it was, as Lambda does to the mapping's destination."""
        number = str(record.number)
        batch = {"startSequenceNumber": number, "endSequenceNumber": number, "batchSize": 1}
        self.unpublished.send(json.dumps({"DDBStreamBatchInfo": batch}))

    def _poll_every_minute(self) -> None:
        function = polling_root.poll_receipts(
            PollReceiptsSettings(
                ledger_table="ledger",
                identities_table="identities",
                bots_secret_arn=BOTS,
                receipts_queue_url="receipts",
                cooldown_seconds=POLICY["cooldown_seconds"],
            )
        )

        def poll() -> None:
            end = self.simulation.now + 58
            process = self._process("poller")
            self.simulation.spawn(process, lambda: function.handle(self._context(end)))
            self.simulation.at(end, lambda: self.simulation.kill(process))
            self.simulation.at(self.simulation.now + 60, poll)

        self.simulation.at(self.simulation.now + 60, poll)

    def _sync_every_quarter_of_an_hour(self) -> None:
        function = syncing_root.sync_templates(
            SyncTemplatesSettings(
                identities_table="identities",
                bots_secret_arn=BOTS,
                event_bus="bus",
                cooldown_seconds=POLICY["cooldown_seconds"],
            )
        )

        def sync() -> None:
            end = self.simulation.now + 120
            process = self._process("syncer")
            self.simulation.spawn(process, lambda: function.handle(self._context(end)))
            self.simulation.at(end, lambda: self.simulation.kill(process))
            self.simulation.at(self.simulation.now + 900, sync)

        self.simulation.at(self.simulation.now, sync)

    def _wake_every_minute(self) -> None:
        """Wake what is due; a run that would find nothing is left out."""

        def wake() -> None:
            now = self.simulation.now
            self.simulation.at(now + 60, wake)
            if self.next_wake is not None and self.next_wake <= now + self.faults.skew:
                self.wake()

        self.simulation.at(self.simulation.now + 60, wake)

    def _context(self, end: float) -> Any:
        return SimpleNamespace(
            get_remaining_time_in_millis=lambda: max(0, int((end - self.simulation.now) * 1000))
        )

    def _secret(self, **arguments: Any) -> dict[str, Any]:
        assert arguments == {"SecretId": BOTS}

        def get() -> dict[str, Any]:
            bots = {
                bot.name: {
                    "key": key,
                    "messages_per_second": bot.messages_per_second,
                    "commands_per_second": bot.commands_per_second,
                    "receipts": "webhook" if self.settings.webhook else "history",
                    **self.settings.secret,
                }
                for key, bot in self.blip.accounts.items()
            }
            return {"SecretString": json.dumps(bots)}

        return self.aws.call("secrets.get", get, 0.02)

    def _push(self, envelope: dict[str, Any], bot: str) -> None:
        """Bring a receipt to the receipts queue, as the webhook does."""
        assert bot
        chance = self.simulation.random
        if not self.settings.webhook or chance.random() < self.faults.receipts_lost:
            return
        times = 2 if chance.random() < self.faults.receipts_twice else 1
        for _ in range(times):
            self.receipts.send(
                json.dumps(envelope),
                delay=chance.choice([0, 0, 0, 1, 5, 60]) if self.faults.receipts_twice else 0,
            )

    def _lock(self) -> SimLock:
        return SimLock(self.simulation)

    def _count(self, what: Iterable[str]) -> None:
        self.outcomes.update(map(str, what))

    def _log(self, record: logging.LogRecord) -> None:
        error = getattr(record, "error", None)
        if error is not None and error not in FORESEEN:
            stack = "".join(getattr(record, "stack", ()))
            self.unforeseen.append(f"{record.getMessage()}: {error}\n{stack}")


def _key_of(request: Mapping[str, Any]) -> str:
    return ledger_key(str(request.get("bot", "default")), str(request["id"]))


def _nothing(*_: object) -> None:
    pass


def _wait(futures: Iterable[SimFuture]) -> None:
    for future in futures:
        future.exception()


class _Logged(ExitStack):
    """Sends the package's errors to a function, and nothing of it to a terminal."""

    def __init__(self, log: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._log = log

    def __enter__(self) -> Self:
        logger = logging.getLogger("notifier")
        handler = logging.Handler(logging.ERROR)
        handler.emit = self._log  # type: ignore[method-assign,assignment] # all that a handler does
        self.enter_context(mock.patch.object(logger, "handlers", [handler]))
        self.enter_context(mock.patch.object(logger, "propagate", False))
        self.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        return super().__enter__()


def _key(name: str) -> str:
    return "Key " + base64.b64encode(f"{name}:secret".encode()).decode()
