"""Tables that are compared with moto's."""

import itertools

from notifier.aws.table import Item, Table
from tests.support.clock import Clock
from tests.support.simulated_aws.dynamodb import DirectAws, SimTable

keys = map(str, itertools.count())


def simulated_table() -> SimTable:
    return SimTable("plain", DirectAws(Clock().now))


def due(table: Table, bot: str, most: int = 10) -> list[Item]:
    condition = "poll_bot = :bot AND poll_at <= :now"
    return table.query("polls", condition, {":bot": bot, ":now": 100}, most)
