"""The ledger as waits write it: a next generation lies in it until a time, whatever the reason."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from notifier.aws.ledger_items import entry_of, one_of, timeline_entry
from notifier.aws.table import Item, Table, milliseconds
from notifier.domain.ledger_entries import Due, LedgerEntry
from notifier.domain.status import Status, before

if TYPE_CHECKING:
    from collections.abc import Callable

# The index has a partition for each first character of a key: none of them takes all writes, and
# no bot has to be known to find what waits.
SHARDS = "0123456789abcdef"


class DynamoDbWaitingLedger:
    """The ledger's table, for waits. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now

    def wait(
        self, key: str, generation: int, until: float, kind: str, code: int | None = None
    ) -> bool:
        """Put the next generation to wait; return False if this one has gone on or ended.

        Args:
            key: the notification.
            generation: the one that stands in the ledger.
            until: when the next one may be put on the queue, in epoch seconds.
            kind: the kind of wait, which is added to the row's.
            code: BLiP's or WhatsApp's, if one is the cause.
        """
        earlier, values = one_of(before(Status.WAITING))
        moved, _ = self._table.update(
            key,
            "SET #status = :status, updated_at = :now, code = :code,"
            " timeline = list_append(if_not_exists(timeline, :none), :event),"
            " waits = list_append(if_not_exists(waits, :none), :kinds),"
            " wake_shard = :wake_shard, wake_at = :wake_at"
            " REMOVE #token, lease_until, poll_bot, poll_at, poll_since",
            f"{earlier} AND generation = :generation",
            timeline_entry(self._now(), Status.WAITING, generation)
            | values
            | {
                ":generation": generation,
                ":code": code,
                ":kinds": [kind],
                ":wake_shard": key[0],
                ":wake_at": milliseconds(until),
            },
            returning=False,
        )
        return moved

    def due_waits(self, shard: str, count: int, after: Due | None) -> list[Due]:
        """Return the waits of a shard that are over, longest due first.

        Args:
            shard: one of SHARDS.
            count: at most so many.
            after: where the page before ended; None for the first one.
        """
        last: Item | None = None
        if after is not None:
            last = {"key": after.key, "wake_shard": shard, "wake_at": milliseconds(after.due_at)}
        items = self._table.query(
            "waits",
            "wake_shard = :shard AND wake_at <= :now",
            {":shard": shard, ":now": milliseconds(self._now())},
            count,
            after=last,
        )
        return [Due(item["key"], item["wake_at"] / 1000) for item in items]

    def read_waiting(self, keys: Sequence[str]) -> tuple[list[LedgerEntry], list[str]]:
        """Read what these notifications need to be put on the queue.

        The index lags behind the table, so some may wait no more: those are left out, as is what
        DynamoDB does not read now. All of them are found again if they are still due.

        Returns:
            The entries, and the keys of the items that cannot be read or hold no request.
        """
        now = milliseconds(self._now())
        items, _ = self._table.get_many(list(keys))
        entries, unreadable = [], []
        for item in items:
            # One that was woken by another run meanwhile may wait again, for a day.
            if item.get("wake_at", now + 1) > now:
                continue
            try:
                entry = entry_of(item)
            except (KeyError, TypeError, ValueError):
                unreadable.append(item["key"])
                continue
            texts = item.get("request"), item.get("bot")
            is_usable = all(isinstance(text, str) and text for text in texts)
            if is_usable and entry.status is Status.WAITING:
                entries.append(entry)
            else:
                unreadable.append(entry.key)
        return entries, unreadable

    def woken(self, entry: LedgerEntry) -> None:
        """Record that the next generation is on the queue, unless it has begun or ended there."""
        self._table.update(
            entry.key,
            "REMOVE wake_shard, wake_at",
            "#status = :waiting AND generation = :generation",
            {":waiting": Status.WAITING, ":generation": entry.generation},
            returning=False,
        )
