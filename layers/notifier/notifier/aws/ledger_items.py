"""The ledger: one DynamoDB item per notification, every write under a condition.

Four modules write it: `ledger.py` (sending), `receipts_ledger.py` (receipts), `waiting_ledger.py`
(what waits to be sent again) and `notifications.py` (the status API and erasure). This one holds
what they share: the attributes, the clauses of conditions, and how an item is read.

    key            uuid5 of bot and id (partition key)
    id, bot        the producer's words for it
    status         see `domain.status`
    generation     1, and one more for each redrive
    attempts       how often it was claimed to be sent in this generation
    content_hash   of the producer's JSON
    request        the body as it came, without a one-time code, until the notification is delivered
    template       its name
    category       of the template, as the registry had it at the claim
    recipient      the masked number
    metadata, correlation_id  the producer's
    token          of the claim that holds it
    lease_until    when that claim ends
    in_flight_until  of an unknown: the last instant at which the send can have been under way
    denials        how often BLiP's history denied a send of this generation
    control, control_at  of an unknown: the message that the history has to show before it can
                   deny this one, and when that was sent
    waits          the kinds of wait that this generation follows on; a dead letter ends the row
    wake_shard, wake_at  of a `waiting` one: when its next generation may be put on the queue, in
                   the index's shard; gone when it is there
    redrives       how often the request had been put back when this generation began
    reason, code   why it ended without delivery
    timeline       the changes of status: a list of [status, generation, time, reason]
    late           receipts of an older generation that changed nothing, in the same form
    poll_bot, poll_since, poll_at  of a message whose receipts are asked for: whose, sent when,
                   to be asked next when
    created_at, updated_at
    expires_at     epoch seconds, time to live
    forgotten      the recipient was; only the key, status, generation and times are left
    restored_at    when it was copied back from a backup

A write that adds to the timeline is a status event: the table's stream carries it to the function
PublishStatusEvents (`outbox.py`). The same table holds refused requests (`refusals.py`).

Other times are epoch milliseconds. DynamoDB sweeps expired items late, so every condition looks
at `expires_at` itself.
"""

from typing import Any

from notifier.aws.table import Item, milliseconds
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import Change, Claim, Control, LedgerEntry, NotificationDetails
from notifier.domain.status import Status

KEPT_SECONDS = 45 * 86_400

# Clauses of conditions, by name.
NOTHING = "attribute_not_exists(#key)"
NOT_FORGOTTEN = "attribute_not_exists(forgotten)"
AS_FOUND = (
    "#status = :found_status AND generation = :found_generation AND updated_at = :found_update"
)


def as_found(item: Item) -> dict[str, Any]:
    """Return the values of AS_FOUND: the item must not have changed since it was read."""
    return {
        ":found_status": item["status"],
        ":found_generation": item["generation"],
        ":found_update": item["updated_at"],
    }


def one_of(statuses: list[Status]) -> tuple[str, dict[str, Any]]:
    """Return the condition that the status is one of these, and its values."""
    values: dict[str, Any] = {f":{status.value}": status for status in statuses}
    return f"#status IN ({', '.join(values)})", values


def timeline_entry(
    now: float, status: Status, generation: int, reason: Reason | None = None
) -> dict[str, Any]:
    """Return the values of an update that sets a status and adds it to the timeline."""
    at = milliseconds(now)
    return {
        ":status": status,
        ":now": at,
        ":none": [],
        ":event": [[status, generation, at, reason]],
    }


def has_lapsed(item: Item, now: float) -> bool:
    """Return whether an item has expired, so that its id is free again."""
    return bool(item["expires_at"] <= round(now) and item["status"] != Status.CANCELLED)


def claim_of(item: Item) -> Claim:
    """Return the claim that an item is held by."""
    return Claim(
        key=item["key"],
        generation=item["generation"],
        attempts=item["attempts"],
        token=item["token"],
        status=Status(item["status"]),
        in_flight_until=item.get("in_flight_until", 0) / 1000,
        denials=item.get("denials", 0),
        control=Control(item["control"], item["control_at"] / 1000) if "control" in item else None,
    )


def entry_of(item: Item) -> LedgerEntry:
    """Return what an item says of its notification."""
    lease_until = item.get("lease_until", 0) / 1000
    sending = item["status"] == Status.SENDING
    return LedgerEntry(
        key=item["key"],
        # What was cancelled in advance, or forgotten, has no content.
        notification_id=item.get("id", ""),
        bot=item.get("bot", ""),
        status=Status(item["status"]),
        generation=item["generation"],
        content_hash=item.get("content_hash", ""),
        attempts=item.get("attempts", 0),
        lease_until=lease_until,
        in_flight_until=lease_until if sending else item.get("in_flight_until", 0) / 1000,
        template=item.get("template", ""),
        body=item.get("request", ""),
        reason=Reason(item["reason"]) if item.get("reason") else None,
        waits=tuple(item.get("waits", ())),
        # Nothing else is written while it waits.
        waits_since=item["updated_at"] / 1000 if "wake_at" in item else None,
        wakes_at=_wakes_at(item),
        category=item.get("category"),
        redrives=item.get("redrives", 0),
        metadata=item.get("metadata", {}),
        forgotten="forgotten" in item,
        correlation_id=item.get("correlation_id"),
        sent_at=_sent_at(item),
    )


def details_of(bot: str, notification_id: str, item: Item) -> NotificationDetails:
    """Return what the status API may show of an item."""
    return NotificationDetails(
        notification_id=notification_id,
        bot=bot,
        status=Status(item["status"]),
        generation=item["generation"],
        attempts=item.get("attempts", 0),
        timeline=tuple(
            Change(Status(status), generation, at / 1000, Reason(reason) if reason else None)
            for status, generation, at, reason in sorted(
                [*item.get("timeline", ()), *item.get("late", ())], key=lambda entry: entry[2]
            )
        ),
        created_at=item["created_at"] / 1000 if "created_at" in item else None,
        updated_at=item["updated_at"] / 1000,
        template=item.get("template"),
        category=item.get("category"),
        recipient=item.get("recipient"),
        reason=Reason(item["reason"]) if item.get("reason") else None,
        code=item.get("code"),
        metadata=item.get("metadata", {}),
        correlation_id=item.get("correlation_id"),
        wakes_at=_wakes_at(item),
    )


def _wakes_at(item: Item) -> float | None:
    return item["wake_at"] / 1000 if "wake_at" in item else None


def _sent_at(item: Item) -> float:
    """Find on the timeline when BLiP took this generation's message."""
    for status, generation, at, _ in item.get("timeline", ()):
        if status == Status.SENT and generation == item["generation"]:
            return float(at) / 1000
    return 0.0
