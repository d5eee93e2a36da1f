"""The ledger as receipts write it: the status they report, and which are asked for next."""

from typing import TYPE_CHECKING, Any

from notifier.aws.ledger_items import NOT_FORGOTTEN, entry_of, one_of, timeline_entry
from notifier.aws.table import Table, milliseconds
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import LedgerEntry, Poll
from notifier.domain.receipts import Receipt
from notifier.domain.status import Status, before

if TYPE_CHECKING:
    from collections.abc import Callable


class DynamoDbReceiptsLedger:
    """The ledger's table, for receipts. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now

    def read(self, key: str) -> LedgerEntry | None:
        """Return the ledger's entry of a notification; None once its recipient was erased."""
        item = self._table.get(key)
        return None if not item or "forgotten" in item else entry_of(item)

    def advance(self, receipt: Receipt) -> tuple[bool, LedgerEntry | None]:
        """Move the status forward as far as the receipt says.

        That the person has it is true whatever the generation, and final. Everything else counts
        for the current generation only; of an older one it is kept beside the timeline. A receipt
        that cannot be of the notification's bot changes nothing.

        Returns:
            Whether it moved, and the entry as it is now; None if the ledger has none, or its
            recipient was erased.
        """
        status = receipt.status
        earlier, values = one_of(before(status))
        condition = f"{earlier} AND {NOT_FORGOTTEN}"
        delivered = status in {Status.RECEIVED, Status.CONSUMED}
        values |= timeline_entry(self._now(), status, receipt.generation)
        if delivered:
            change = (
                " REMOVE #token, lease_until, #request, reason, code, poll_bot, poll_at,"
                " poll_since, waits, wake_shard, wake_at"
            )
        else:
            condition += " AND generation = :generation"
            values[":generation"] = receipt.generation
            change = " REMOVE #token, lease_until"
        if receipt.bots:
            bots = {f":bot{number}": bot for number, bot in enumerate(receipt.bots)}
            condition += f" AND bot IN ({', '.join(bots)})"
            values |= bots
        moved, found = self._table.update(
            receipt.key,
            "SET #status = :status, updated_at = :now,"
            f" timeline = list_append(if_not_exists(timeline, :none), :event){change}",
            condition,
            values,
        )
        if not found or "forgotten" in found:
            return False, None
        entry = entry_of(found)
        late = entry.generation > receipt.generation and receipt.may_be_of(entry.bot)
        if late and not moved:
            self._keep_late(receipt)
        return moved, entry

    def fail(self, receipt: Receipt, reason: Reason) -> bool:
        """Record that a message was not delivered. Its dead letter is on the queue already."""
        earlier, values = one_of(before(Status.FAILED))
        condition = f"{earlier} AND generation = :generation"
        values |= timeline_entry(self._now(), Status.FAILED, receipt.generation, reason)
        values |= {
            ":generation": receipt.generation,
            ":reason": reason,
            ":code": receipt.code,
        }
        moved, _ = self._table.update(
            receipt.key,
            "SET #status = :status, updated_at = :now, reason = :reason, code = :code,"
            " timeline = list_append(if_not_exists(timeline, :none), :event)"
            " REMOVE #token, lease_until, poll_bot, poll_at, poll_since, waits",
            condition,
            values,
        )
        return moved

    def due(self, bot: str, count: int) -> list[Poll]:
        """Return messages of a bot whose receipts should be asked for by now, longest due first."""
        items = self._table.query(
            "polls",
            "poll_bot = :bot AND poll_at <= :now",
            {":bot": bot, ":now": milliseconds(self._now())},
            count,
        )
        return [
            Poll(
                key=item["key"],
                generation=item["generation"],
                since=item["poll_since"] / 1000,
                due_at=item["poll_at"] / 1000,
            )
            for item in items
        ]

    def polled(self, poll: Poll, next_at: float | None) -> None:
        """Record when to ask next, unless the notification has ended; None: never again."""
        change = "REMOVE poll_bot, poll_at, poll_since"
        values: dict[str, Any] = {":generation": poll.generation}
        if next_at is not None:
            change = "SET poll_at = :next_at"
            values[":next_at"] = milliseconds(next_at)
        self._table.update(
            poll.key,
            change,
            "attribute_exists(poll_bot) AND generation = :generation",
            values,
        )

    def _keep_late(self, receipt: Receipt) -> None:
        """Record a receipt that came too late to change anything; at most 100 are kept."""
        event = timeline_entry(self._now(), receipt.status, receipt.generation)
        self._table.update(
            receipt.key,
            "SET late = list_append(if_not_exists(late, :none), :event)",
            f"(attribute_not_exists(late) OR size(late) < :most) AND {NOT_FORGOTTEN}",
            {":event": event[":event"], ":none": [], ":most": 100},
        )
