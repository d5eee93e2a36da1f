"""What sandboxes share, and a sandbox."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast
from uuid import uuid4

from notifier.aws.outbox import ledger_write
from notifier.aws.refusals import DynamoDbRefusals
from notifier.aws.secrets import SecretsManagerBots
from notifier.aws.table import Item
from notifier.aws.templates import DynamoDbTemplates
from notifier.domain.notification import QueuedRequest, ledger_key
from notifier.domain.status import Status
from notifier.use_cases.publish_status_events import DEFAULT_PUBLISHED, Publisher
from notifier.use_cases.record_receipt import Receipts
from notifier.use_cases.send_notification.batch import SendNotifications
from notifier.use_cases.send_notification.outcomes import Result
from notifier.use_cases.send_notification.waits import Policy, Waits
from tests.support.adapters import (
    CountingIdentities,
    CountingTable,
    FakeMeter,
    FakeSecretsManager,
    RecordingBotStates,
    WholeLedger,
)
from tests.support.blip import FakeBlip, identity_of
from tests.support.builders import KEY, stream_record
from tests.support.clock import Clock
from tests.support.queues import FakeDeadLetters, FakeRequests, FakeStatusEvents, FakeUnpublished


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


class InlineExecutor(Executor):
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


@dataclass
class World:
    """What sandboxes share. `sandbox()` builds one more of them.

    Each write of the ledger is published at once, as its stream would have it in the end.

    Attributes:
        bots: the secret's content; a text stands for itself.
        published: the statuses that are published.
    """

    clock: Clock = field(default_factory=Clock)
    ledger_table: CountingTable = field(default_factory=CountingTable)
    identities_table: CountingTable = field(default_factory=CountingTable)
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
        """Build the publisher of the function on the ledger's stream."""
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
        """Build one sandbox. By default `uniform` returns the upper bound."""
        return Sandbox(self, threads or InlineExecutor(), uniform, Policy(**policy))

    def queued(
        self,
        body: str | Mapping[str, Any],
        *,
        generation: int | None = None,
        age: float = 0.0,
        receive_count: int = 1,
    ) -> QueuedRequest:
        """Return a request as it is received after `age` seconds on the queue."""
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
        """Store a number's identity."""
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
        self.identities = CountingIdentities(world.identities_table, now=now)
        self.registry = self.identities.templates
        self.bot_states = RecordingBotStates(world.identities_table, now)
        self.secrets_manager = FakeSecretsManager(world.secret)
        self.secrets = SecretsManagerBots(cast("Any", self.secrets_manager), "bots", now)
        self.receipts = Receipts(
            ledger=self.ledger,
            waiting=self.ledger,
            identities=self.identities,
            bot_states=self.bot_states,
            templates=DynamoDbTemplates(world.identities_table, now),
            dead_letters=world.dead_letters,
            meter=world.meter,
            now=now,
        )
        self.delivery = SendNotifications(
            ledger=self.ledger,
            refusals=DynamoDbRefusals(world.ledger_table, now),
            identities=self.identities,
            bot_states=self.bot_states,
            secrets=self.secrets,
            blip=world.blip,
            registry=self.registry,
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
        """Deliver one batch with so much time left. Return the results in request order."""
        batch: Sequence[QueuedRequest] = [
            request if isinstance(request, QueuedRequest) else self._world.queued(request)
            for request in requests
        ]
        results = self.delivery.deliver(batch, self._world.clock.now() + seconds)
        by_record = {result.queued.record_id: result for result in results}
        assert len(results) == len(by_record) == len(batch)
        return [by_record[queued.record_id] for queued in batch]
