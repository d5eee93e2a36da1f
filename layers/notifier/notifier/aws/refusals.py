"""Requests that were refused though their id is readable: `invalid`, or an id that is taken.

    key            of the notification that the id names, and `:refused`
    id, bot        as the request says
    status         `rejected`
    refusals       the last ten: [SQS message id, reason, time, correlation id, metadata]
    updated_at     epoch milliseconds, as the time of a refusal
    expires_at     epoch seconds, time to live

They lie in the ledger's table, so that the status API finds them and the stream publishes them.
"""

from typing import TYPE_CHECKING, Any

from notifier.aws.outbox import REFUSED
from notifier.aws.table import Item, Table, milliseconds
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import Change, NotificationDetails, Refusal
from notifier.domain.notification import ledger_key
from notifier.domain.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

# As long as SQS keeps the dead letter.
KEPT_SECONDS = 14 * 86_400
MAX_REFUSALS = 10

_KEEP = """
SET #id = :id, bot = :bot, #status = :rejected, refusals = {refusals},
    updated_at = :now, expires_at = :expires_at
"""
_ONE_MORE = _KEEP.format(refusals="list_append(if_not_exists(refusals, :none), :one)")
_INSTEAD = _KEEP.format(refusals=":refusals")


class DynamoDbRefusals:
    """What the ledger's table holds of refused requests. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now

    def holds(self, bot: str, notification_id: str, record_id: str) -> bool:
        """Return whether this very message was refused before, so that its dead letter is there."""
        item = self._table.get(_key(bot, notification_id))
        return any(refusal[0] == record_id for refusal in item.get("refusals", ()))

    def keep(self, bot: str, notification_id: str, refusal: Refusal) -> None:
        """Keep a refusal, of which the dead letter is on its queue by now; the last ten remain."""
        key, now = _key(bot, notification_id), self._now()
        own = [
            refusal.record_id,
            refusal.reason,
            milliseconds(now),
            refusal.correlation_id,
            refusal.metadata,
        ]
        values: dict[str, Any] = {
            ":id": notification_id,
            ":bot": bot,
            ":rejected": Status.REJECTED,
            ":now": milliseconds(now),
            ":expires_at": round(now) + KEPT_SECONDS,
        }
        kept = False
        while not kept:
            kept, found = self._table.update(
                key,
                _ONE_MORE,
                "attribute_not_exists(refusals) OR size(refusals) < :most",
                values | {":none": [], ":one": [own], ":most": MAX_REFUSALS},
            )
            if not kept:
                full = found["refusals"]
                kept, _ = self._table.update(
                    key,
                    _INSTEAD,
                    "refusals = :found",
                    values | {":refusals": [*full[1:], own], ":found": full},
                )

    def details(self, bot: str, notification_id: str) -> NotificationDetails | None:
        """Return what was refused under an id; None if nothing was, or it is 14 days old."""
        item = self._table.get(_key(bot, notification_id))
        if not item or item["expires_at"] <= round(self._now()):
            return None
        return _account(item)


def _key(bot: str, notification_id: str) -> str:
    return ledger_key(bot, notification_id) + REFUSED


def _account(item: Item) -> NotificationDetails:
    changes = tuple(
        Change(Status.REJECTED, 0, at / 1000, Reason(reason))
        for _, reason, at, _, _ in item["refusals"]
    )
    *_, (_, reason, _, correlation_id, metadata) = item["refusals"]
    return NotificationDetails(
        notification_id=item["id"],
        bot=item["bot"],
        status=Status.REJECTED,
        generation=0,
        attempts=0,
        timeline=changes,
        created_at=changes[0].at,
        updated_at=changes[-1].at,
        reason=Reason(reason),
        metadata=metadata,
        correlation_id=correlation_id,
    )
