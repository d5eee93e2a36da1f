"""The adapters on the simulated tables and queues, and on moto's."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, cast

import pytest
from botocore.exceptions import ClientError
from moto.sqs import models as moto_queues

from notifier.aws import queues
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.identities import DynamoDbIdentities
from notifier.aws.queues import DeadLettersQueue, RequestsQueue, queued_request
from notifier.aws.refusals import DynamoDbRefusals
from notifier.aws.secrets import SecretsManagerBots
from notifier.aws.table import Item, Table
from notifier.aws.templates import DynamoDbTemplates
from notifier.domain.bot_state import BotState
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import (
    Claim,
    LedgerEntry,
)
from notifier.domain.notification import Notification
from notifier.domain.receipts import Receipt
from notifier.domain.status import Status
from tests.integration.conftest import Aws, Stack
from tests.support.adapters import (
    CountingIdentities,
    CountingTable,
    FakeSecretsManager,
    RecordingBotStates,
    WholeLedger,
)
from tests.support.clock import Clock
from tests.support.queues import FakeDeadLetters, FakeRequests

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
LEASE = 30.0
TTL, NEGATIVE_TTL = 6 * 86_400, 86_400


class Backend(Protocol):
    """A place for state, and the adapters of several sandboxes on it."""

    clock: Clock

    def ledger(self) -> Any: ...
    def identities(self, *, uniform: Callable[[float, float], float] = max) -> Any: ...
    def refusals(self) -> Any: ...
    def templates(self) -> Any: ...
    def bot_states(self) -> Any: ...
    def secrets(self) -> Any: ...
    def letters(self) -> Any: ...
    def moved(self, body: str) -> None: ...
    def requests(self) -> Any: ...
    def requested(self) -> list[tuple[str, int | None, int]]: ...
    def put_secret(self, text: str) -> None: ...
    def item(self, table: str, key: str) -> Item: ...
    def change(self, table: str, key: str, **attributes: Any) -> None: ...


class Fakes:
    """The adapters on simulated tables, and the queues in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._tables = {"ledger": CountingTable(), "identities": CountingTable()}
        self._text = "{}"
        self._letters = FakeDeadLetters()
        self._letters.now = self.clock.now
        self._requests = FakeRequests()

    def ledger(self) -> WholeLedger:
        return WholeLedger(self._tables["ledger"], self.clock.now)

    def refusals(self) -> DynamoDbRefusals:
        return DynamoDbRefusals(self._tables["ledger"], self.clock.now)

    def identities(self, *, uniform: Callable[[float, float], float] = max) -> CountingIdentities:
        return CountingIdentities(
            self._tables["identities"],
            now=self.clock.now,
            ttl_seconds=TTL,
            negative_ttl_seconds=NEGATIVE_TTL,
            uniform=uniform,
        )

    def templates(self) -> DynamoDbTemplates:
        return DynamoDbTemplates(self._tables["identities"], self.clock.now)

    def bot_states(self) -> RecordingBotStates:
        return RecordingBotStates(self._tables["identities"], self.clock.now)

    def secrets(self) -> SecretsManagerBots:
        client: Any = FakeSecretsManager(lambda: self._text)
        return SecretsManagerBots(client, "bots", self.clock.now)

    def letters(self) -> FakeDeadLetters:
        return self._letters

    def moved(self, body: str) -> None:
        self._letters.moved(body)

    def requests(self) -> FakeRequests:
        return self._requests

    def requested(self) -> list[tuple[str, int | None, int]]:
        return [(each.body, each.generation, each.redrives) for each in self._requests.redriven]

    def put_secret(self, text: str) -> None:
        self._text = text

    def item(self, table: str, key: str) -> Item:
        return self._tables[table].get(key)

    def change(self, table: str, key: str, **attributes: Any) -> None:
        self._tables[table].items[key] |= attributes


class RealOnes:
    """The adapters, on moto."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self._aws = aws
        self._monkeypatch = monkeypatch

    def table(self, name: str, dynamodb: Any = None) -> Table:
        return Table(dynamodb or self._aws.dynamodb, name)

    def ledger(self, dynamodb: Any = None) -> WholeLedger:
        return WholeLedger(self.table("ledger", dynamodb), self.clock.now)

    def refusals(self, dynamodb: Any = None) -> DynamoDbRefusals:
        return DynamoDbRefusals(self.table("ledger", dynamodb), self.clock.now)

    def identities(
        self, *, uniform: Callable[[float, float], float] = max, dynamodb: Any = None
    ) -> DynamoDbIdentities:
        return DynamoDbIdentities(
            self.table("identities", dynamodb),
            templates=self.templates(dynamodb),
            now=self.clock.now,
            ttl_seconds=TTL,
            negative_ttl_seconds=NEGATIVE_TTL,
            uniform=uniform,
        )

    def templates(self, dynamodb: Any = None) -> DynamoDbTemplates:
        return DynamoDbTemplates(self.table("identities", dynamodb), self.clock.now)

    def bot_states(self, dynamodb: Any = None) -> DynamoDbBotStates:
        return DynamoDbBotStates(self.table("identities", dynamodb), self.clock.now)

    def secrets(self) -> SecretsManagerBots:
        return SecretsManagerBots(self._aws.secrets_manager, self._aws.secret, self.clock.now)

    def letters(self) -> DeadLettersQueue:
        # moto's queue goes by our clock, too, and has nothing to wait for then.
        self._monkeypatch.setattr(queues, "LONG_POLL_SECONDS", 0)
        self._monkeypatch.setattr(moto_queues, "unix_time", self.clock.now)
        self._monkeypatch.setattr(moto_queues, "unix_time_millis", lambda: 1000 * self.clock.now())
        return DeadLettersQueue(self._aws.sqs, self._aws.dead_letters_url, self.clock.now)

    def moved(self, body: str) -> None:
        self._aws.sqs.send_message(QueueUrl=self._aws.dead_letters_url, MessageBody=body)

    def requests(self) -> RequestsQueue:
        return RequestsQueue(self._aws.sqs, self._aws.requests_url)

    def requested(self) -> list[tuple[str, int | None, int]]:
        stack = Stack(self._aws, cast("Any", None))
        queued = [queued_request(record) for record in stack.receive()]
        return [(each.body, each.generation, each.redrives) for each in queued]

    def put_secret(self, text: str) -> None:
        self._aws.put_bots(text)

    def item(self, table: str, key: str) -> Item:
        return self.table(table).get(key)

    def change(self, table: str, key: str, **attributes: Any) -> None:
        names = {f"#{name}": name for name in attributes}
        values = {f":{name}": value for name, value in attributes.items()}
        assignments = ", ".join(f"#{name} = :{name}" for name in attributes)
        assert names
        self.table(table).update(key, f"SET {assignments}", "", values)


def claim(
    backend: Backend,
    notification: Notification,
    status: Status = Status.CLAIMED,
    lease: float = LEASE,
) -> Claim | LedgerEntry:
    found = backend.ledger().claim(notification, status, backend.clock.now() + lease)
    assert isinstance(found, Claim | LedgerEntry)
    return found


def claimed(backend: Backend, notification: Notification, status: Status = Status.CLAIMED) -> Claim:
    found = claim(backend, notification, status)
    assert isinstance(found, Claim), found
    return found


def entry(backend: Backend, notification: Notification) -> Item:
    return backend.item("ledger", notification.key)


def of_generation(notification: Notification, generation: int | None) -> Notification:
    return replace(notification, queued=replace(notification.queued, generation=generation))


def bring_to(backend: Backend, notification: Notification, status: Status) -> None:
    """Bring a notification, of which the ledger knows nothing, to a status."""
    ledger = backend.ledger()
    start = Status.SENDING if status is not Status.CLAIMED else Status.CLAIMED
    taken = claimed(backend, notification, start)
    match status:
        case Status.CLAIMED | Status.SENDING:
            pass
        case Status.RETRYING:
            ledger.release(taken, attempted=True)
        case Status.UNKNOWN:
            ledger.mark_unknown(taken)
        case Status.CANCELLED:
            ledger.release(taken, attempted=True)
            ledger.cancel(notification.request.bot, notification.request.id)
        case Status.FAILED | Status.REJECTED | Status.EXPIRED:
            ledger.mark_failed(taken, status, Reason.REJECTED, 21)
        case Status.WAITING:
            ledger.mark_sent(taken, None)
            until = backend.clock.now() + HOUR
            assert ledger.wait(notification.key, 1, until, "rate limited", 131056)
        case _:
            ledger.mark_sent(taken, None)
            if status is not Status.SENT:
                moved, _ = ledger.advance(Receipt(notification.key, 1, status))
                assert moved
    assert entry(backend, notification)["status"] == status


class LostAnswers:
    """DynamoDB whose every first answer gets lost: boto3 asks again, and finds its own write."""

    def __init__(self, dynamodb: Any) -> None:
        self._dynamodb = dynamodb

    def update_item(self, **parameters: Any) -> Any:
        with contextlib.suppress(ClientError):
            self._dynamodb.update_item(**parameters)
        return self._dynamodb.update_item(**parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dynamodb, name)


def state(backend: Backend, bot: str = "default") -> BotState:
    found = backend.identities().read([], [bot], [])[1].get(bot, BotState())
    assert isinstance(found, BotState)
    return found
