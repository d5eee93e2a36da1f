"""The ledger's stream: each write of an item, and the status events that it stands for.

An item stands for the same events however often it is read, so what a write adds is what the new
image stands for and the old one does not. Only the attributes that an event needs are read.
"""

from collections.abc import Mapping
from typing import Any

from notifier.aws.table import Item, item_of
from notifier.domain.failures import Reason, crash_facts
from notifier.domain.ledger_entries import LedgerWrite
from notifier.domain.status import BY_RECEIPT, PUBLISHABLE, SENT_OR_LATER, Status
from notifier.domain.status_events import StatusEvent

# How the key of a refused request's item ends; before it stands the key that its id names.
REFUSED = ":refused"


def ledger_write(record: Mapping[str, Any]) -> LedgerWrite:
    """Read one record of the event that Lambda makes of the ledger's stream.

    If a record cannot be understood, its `problem` says why. It raises nothing: an exception would
    stop every record after it.
    """
    change = record["dynamodb"]
    key, number = change["Keys"]["key"]["S"], change["SequenceNumber"]
    try:
        old, new = item_of(change.get("OldImage", {})), item_of(change.get("NewImage", {}))
        return LedgerWrite(key, number, tuple(_added(old, new)))
    except Exception as crash:  # noqa: BLE001 - whatever it was, the records after it go on
        return LedgerWrite(key, number, problem=str(crash_facts(crash)["error"]))


def _added(old: Item, new: Item) -> list[StatusEvent]:
    """Return the status events that a write adds."""
    if new.get("restored_at") != old.get("restored_at"):
        return []  # copied back from a backup: it was published in its own time
    known = {event.entry for event in status_events(old)}
    return [event for event in status_events(new) if event.entry not in known]


def status_events(item: Item) -> list[StatusEvent]:
    """Return every status event that an item of the ledger stands for, in their order.

    - A receipt may overtake BLiP's answer to the send. It shows that BLiP took the message: where
      no `sent` came before it, it stands for one. So does `waiting`, which is not published itself.
    - What was cancelled before its request came is published when it has come.
    """
    events: list[StatusEvent] = []
    if "refusals" in item:
        return [_refusal(item, *refusal) for refusal in item["refusals"]]
    taken: set[int] = set()
    for name, generation, at, cause in item.get("timeline", ()):
        status, reason = Status(name), Reason(cause) if cause else None
        by_receipt = status is Status.WAITING or reason in BY_RECEIPT
        if (status in SENT_OR_LATER or by_receipt) and generation not in taken:
            taken.add(generation)
            if status is not Status.SENT:
                events.append(_event(item, Status.SENT, generation, at))
        waits_for_request = status is Status.CANCELLED and "template" not in item
        if status in PUBLISHABLE and not waits_for_request:
            events.append(_event(item, status, generation, at, reason))
    return events


def _event(
    item: Item, status: Status, generation: int, at: int, reason: Reason | None = None
) -> StatusEvent:
    return StatusEvent(
        key=item["key"],
        notification_id=item["id"],
        bot=item["bot"],
        status=status,
        generation=generation,
        time=at / 1000,
        reason=reason,
        metadata=item.get("metadata", {}),
        correlation_id=item.get("correlation_id"),
        category=item.get("category"),
    )


def _refusal(
    item: Item,
    _: str,
    reason: str,
    at: int,
    correlation_id: str | None,
    metadata: dict[str, str],
) -> StatusEvent:
    return StatusEvent(
        key=item["key"].removesuffix(REFUSED),
        notification_id=item["id"],
        bot=item["bot"],
        status=Status.REJECTED,
        generation=0,  # of no notification: the one that has the id goes on undisturbed
        time=at / 1000,
        reason=Reason(reason),
        metadata=metadata,
        correlation_id=correlation_id,
    )
