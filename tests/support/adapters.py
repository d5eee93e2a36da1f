"""The real adapters on the simulated tables, which count their calls; a secret and a meter."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.identities import DynamoDbIdentities
from notifier.aws.ledger import DynamoDbLedger
from notifier.aws.notifications import DynamoDbNotifications
from notifier.aws.receipts_ledger import DynamoDbReceiptsLedger
from notifier.aws.table import Item
from notifier.aws.templates import DynamoDbTemplates, TemplateName
from notifier.aws.waiting_ledger import DynamoDbWaitingLedger
from notifier.domain.bot_state import BotState, Plan, Reservation
from notifier.domain.bots import Bot
from notifier.domain.recipients import Identity
from notifier.domain.templates import RegisteredTemplate
from tests.support.simulated_aws.dynamodb import DirectAws, SimTable

# The number of items in one page of a scan.
PAGE_SIZE = 3


class CountingTable(SimTable):
    """The simulated table without a simulation. `writes` also counts failed conditions."""

    def __init__(self) -> None:
        # Only a sweep of expired items would read the clock, and none happens here.
        super().__init__("table", DirectAws(lambda: 0.0), page=PAGE_SIZE)
        self.writes = 0

    def get_many(self, keys: list[str]) -> tuple[list[Item], set[str]]:
        # Items that a test has written may lack their key.
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


type Recipient = tuple[str, str]


class WholeLedger(
    DynamoDbLedger, DynamoDbReceiptsLedger, DynamoDbWaitingLedger, DynamoDbNotifications
):
    """The ledger for tests that play several functions at once."""


class CountingIdentities(DynamoDbIdentities):
    """The real adapter with the template's parameters; counts its reads."""

    def __init__(
        self,
        table: CountingTable,
        *,
        now: Callable[[], float],
        ttl_seconds: int = 518_400,
        negative_ttl_seconds: int = 86_400,
        uniform: Callable[[float, float], float] = max,
    ) -> None:
        self.templates = DynamoDbTemplates(table, now)
        super().__init__(
            table,
            templates=self.templates,
            now=now,
            ttl_seconds=ttl_seconds,
            negative_ttl_seconds=negative_ttl_seconds,
            uniform=uniform,
        )
        self.reads = 0

    def read(
        self,
        recipients: Iterable[Recipient],
        bots: Iterable[str],
        templates: Iterable[TemplateName],
    ) -> tuple[
        dict[Recipient, Identity], dict[str, BotState], dict[TemplateName, RegisteredTemplate]
    ]:
        self.reads += 1
        return super().read(recipients, bots, templates)


class RecordingBotStates(DynamoDbBotStates):
    """The real adapter; records every reservation."""

    def __init__(self, table: CountingTable, now: Callable[[], float]) -> None:
        super().__init__(table, now)
        self.reservations: list[tuple[str, Plan, int]] = []

    def reserve(self, bot: Bot, plan: Plan, count: int, *args: Any, **kwargs: Any) -> Reservation:
        self.reservations.append((bot.name, plan, count))
        return super().reserve(bot, plan, count, *args, **kwargs)


class FakeSecretsManager:
    """A client for the bots' secret. `text` is a function, so that the secret can change."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self.fetches = 0

    def get_secret_value(self, **_: str) -> dict[str, str]:
        self.fetches += 1
        return {"SecretString": self._text()}


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
