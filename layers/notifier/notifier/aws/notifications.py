"""The ledger as people see it: the status API's look and cancellation, and a person's erasure."""

from typing import TYPE_CHECKING, Any

from notifier.aws.ledger_items import (
    AS_FOUND,
    KEPT_SECONDS,
    NOTHING,
    as_found,
    details_of,
    has_lapsed,
    timeline_entry,
)
from notifier.aws.table import Item, Table, milliseconds
from notifier.contract.phone import mask
from notifier.domain.ledger_entries import LedgerPage, NotificationDetails, RecipientMatch
from notifier.domain.notification import ledger_key
from notifier.domain.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

# What sending would need is kept no more. It lives anew until no copy can be on a queue.
_CANCEL = """
SET #status = :status, #id = :id, bot = :bot, generation = :generation, updated_at = :now,
    attempts = if_not_exists(attempts, :zero), metadata = if_not_exists(metadata, :empty),
    created_at = if_not_exists(created_at, :now), expires_at = :expires_at,
    timeline = list_append(if_not_exists(timeline, :none), :event)
REMOVE #token, lease_until, #request, reason, code, in_flight_until, waits, wake_shard, wake_at
"""
# Of an id whose item has outlived its time, what was before is another notification's.
_CANCEL_AS_NEW = """
SET #status = :status, #id = :id, bot = :bot, generation = :generation, updated_at = :now,
    attempts = :zero, metadata = :empty, created_at = :now, expires_at = :expires_at,
    timeline = list_append(:none, :event)
REMOVE #token, lease_until, #request, reason, code, in_flight_until, content_hash, template,
    category, recipient, correlation_id, redrives, denials, control, control_at, late, poll_bot,
    poll_since, poll_at, waits, wake_shard, wake_at
"""
_FORGET = """
SET #status = :status, forgotten = :forgotten, updated_at = :now, expires_at = :expires_at
REMOVE #id, bot, content_hash, #request, template, category, recipient, metadata, correlation_id,
    attempts, redrives, #token, lease_until, in_flight_until, denials, control, control_at, waits,
    wake_shard, wake_at, reason, code, timeline, late, poll_bot, poll_since, poll_at, created_at
"""


class DynamoDbNotifications:
    """The ledger's table, for requests about a notification or a person. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now

    def details(self, bot: str, notification_id: str) -> NotificationDetails | None:
        """Return a notification's details; None if the ledger has no entry of it."""
        item = self._table.get(ledger_key(bot, notification_id))
        if not item or item["expires_at"] <= round(self._now()):
            return None
        return details_of(bot, notification_id, item)

    def cancel(self, bot: str, notification_id: str) -> NotificationDetails:
        """Cancel a notification that has not gone out; return its details either way.

        An id without an entry is cancelled in advance: its request may be on the queue.
        """
        now = self._now()
        key = ledger_key(bot, notification_id)

        def values(generation: int) -> dict[str, Any]:
            return timeline_entry(self._now(), Status.CANCELLED, generation) | {
                ":id": notification_id,
                ":bot": bot,
                ":generation": generation,
                ":zero": 0,
                ":empty": {},
                ":expires_at": round(now) + KEPT_SECONDS,
            }

        moved, found = self._table.update(key, _CANCEL, NOTHING, values(0))
        if not moved and has_lapsed(found, now):
            _, found = self._table.update(
                key, _CANCEL_AS_NEW, AS_FOUND, values(0) | as_found(found)
            )
        elif not moved and _has_not_gone_out(found, now):
            _, found = self._table.update(
                key, _CANCEL, AS_FOUND, values(found["generation"]) | as_found(found)
            )
        if not found:  # DynamoDB has swept it meanwhile
            return self.cancel(bot, notification_id)
        return details_of(bot, notification_id, found)

    def matches(self, recipient: str, after: str | None) -> LedgerPage:
        """Return the entries on one page of the ledger that may be a recipient's.

        Args:
            recipient: the number.
            after: where the page before ended.
        """
        items, scanned, last = self._table.scan(
            "#recipient = :mask",
            {":mask": mask(recipient)},
            ["key", "bot", "request", "recipient"],
            after,
        )
        held = [RecipientMatch(item["key"], item["bot"], item.get("request", "")) for item in items]
        return LedgerPage(held, scanned, last)

    def erase(self, key: str) -> None:
        """Erase all of a notification but that it must not be sent, until no copy can be queued."""
        now = self._now()
        self._table.update(
            key,
            _FORGET,
            "attribute_exists(#key)",
            {
                ":status": Status.CANCELLED,
                ":forgotten": True,
                ":now": milliseconds(now),
                ":expires_at": round(now) + KEPT_SECONDS,
            },
        )


def _has_not_gone_out(item: Item, now: float) -> bool:
    """Return whether nothing of it is under way, nor out, nor on the dead-letters queue."""
    match item["status"]:
        case Status.CANCELLED:
            return False
        case Status.RETRYING | Status.WAITING:
            return True
        case Status.CLAIMED:
            return bool(item["lease_until"] < milliseconds(now))
        case _:
            return False
