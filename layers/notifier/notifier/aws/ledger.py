"""The ledger: one DynamoDB item per notification, every write under a condition.

    key            uuid5 of bot and id (partition key)
    id, bot        the producer's words for it
    status         see `domain.status`
    generation     1, and one more for each redrive
    attempts       how often it was claimed to be sent in this generation
    content_hash   of the producer's JSON
    request        the body as it came, until the notification is delivered
    template       its name
    recipient      the masked number
    metadata, correlation_id  the producer's
    token          of the claim that holds it
    lease_until    when that claim ends
    in_flight_until  of an unknown: the last instant at which the send can have been under way
    denials        how often BLiP's history denied a send of this generation
    control, control_at  of an unknown: the message that the history has to show before it can
                   deny this one, and when that was sent
    postponed      the generation that was put back because of a rate limit
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

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from notifier.aws.table import Item, Table, milliseconds
from notifier.contract.phone import mask
from notifier.domain.failures import Reason, crash_facts
from notifier.domain.ledger_entries import (
    Change,
    Claim,
    ClaimLost,
    Control,
    LedgerEntry,
    LedgerPage,
    NotificationDetails,
    Poll,
    RecipientMatch,
)
from notifier.domain.notification import Notification, ledger_key
from notifier.domain.receipts import Receipt
from notifier.domain.status import UNDELIVERED, Status, before

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

KEPT_SECONDS = 45 * 86_400
# boto3 has tried three times at each of them.
TAKE_BACK_TRIES = 4
# No longer, so that a table that hangs does not use up the time of the batch.
TAKE_BACK_SECONDS = 4.0

# Each clause of the claim's condition by name.
_NOTHING = "attribute_not_exists(#key)"
_NOT_EXPIRED = "expires_at > :now_seconds"
_SAME_CONTENT = "content_hash = :content_hash"
_WAITS = "#status = :retrying"
_ABANDONED = "(#status = :claimed AND lease_until < :now)"
_FREE = f"{_NOTHING} OR ({_NOT_EXPIRED} AND {_SAME_CONTENT} AND ({_WAITS} OR {_ABANDONED}))"

_CLAIMED = """
SET #status = :status, #token = :token, lease_until = :lease_until, updated_at = :now,
    #id = :id, bot = :bot, content_hash = :content_hash, #request = :request, template = :template,
    recipient = :recipient, metadata = :metadata, correlation_id = :correlation_id,
    created_at = if_not_exists(created_at, :now),
"""
_CLAIM = f"""{_CLAIMED}
    generation = if_not_exists(generation, :generation),
    attempts = if_not_exists(attempts, :none) + :one,
    redrives = if_not_exists(redrives, :redrives),
    expires_at = if_not_exists(expires_at, :expires_at)
"""
# A redrive, or an id that comes again after its item's time: everything anew.
_RESTART = f"""{_CLAIMED}
    generation = :generation, attempts = :one, redrives = :redrives, expires_at = :expires_at
REMOVE reason, code, in_flight_until, denials, control, control_at, poll_bot, poll_at, poll_since
"""
# Of an id whose item has outlived its time, what was before is another notification's.
_AS_NEW = f"{_RESTART.rstrip()}, timeline, late, postponed".replace(
    "if_not_exists(created_at, :now)", ":now"
)
# What sending would need is kept no more. It lives anew until no copy can be on a queue.
_CANCEL = """
SET #status = :status, #id = :id, bot = :bot, generation = :generation, updated_at = :now,
    attempts = if_not_exists(attempts, :zero), metadata = if_not_exists(metadata, :empty),
    created_at = if_not_exists(created_at, :now), expires_at = :expires_at,
    timeline = list_append(if_not_exists(timeline, :none), :event)
REMOVE #token, lease_until, #request, reason, code, in_flight_until, postponed
"""
# Of an id whose item has outlived its time, what was before is another notification's.
_CANCEL_AS_NEW = """
SET #status = :status, #id = :id, bot = :bot, generation = :generation, updated_at = :now,
    attempts = :zero, metadata = :empty, created_at = :now, expires_at = :expires_at,
    timeline = list_append(:none, :event)
REMOVE #token, lease_until, #request, reason, code, in_flight_until, postponed, content_hash,
    template, recipient, correlation_id, redrives, denials, control, control_at, late, poll_bot,
    poll_since, poll_at
"""
_FORGET = """
SET #status = :status, forgotten = :forgotten, updated_at = :now, expires_at = :expires_at
REMOVE #id, bot, content_hash, #request, template, recipient, metadata, correlation_id, attempts,
    redrives, #token, lease_until, in_flight_until, denials, control, control_at, postponed,
    reason, code, timeline, late, poll_bot, poll_since, poll_at, created_at
"""
_AS_FOUND = (
    "#status = :found_status AND generation = :found_generation AND updated_at = :found_update"
)
_HELD = "generation = :generation AND #token = :token"
_NOT_FORGOTTEN = "attribute_not_exists(forgotten)"


class DynamoDbLedger:
    """The ledger's table. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now

    def read(self, key: str) -> LedgerEntry | None:
        """Return what the ledger holds of a notification, as it stands now.

        Of one whose recipient was forgotten it holds nothing that anybody may go by.
        """
        item = self._table.get(key)
        return None if not item or "forgotten" in item else _standing(item)

    def details(self, bot: str, notification_id: str) -> NotificationDetails | None:
        """Return how it goes with a notification; None if the ledger does not know it."""
        item = self._table.get(ledger_key(bot, notification_id))
        if not item or item["expires_at"] <= round(self._now()):
            return None
        return _account(bot, notification_id, item)

    def cancel(self, bot: str, notification_id: str) -> NotificationDetails:
        """Take a notification back that has not gone out, or tell what stands in the way.

        What is not known yet is cancelled in advance: its request may be on the queue.
        """
        now = self._now()
        key = ledger_key(bot, notification_id)

        def values(generation: int) -> dict[str, Any]:
            return self._event(Status.CANCELLED, generation) | {
                ":id": notification_id,
                ":bot": bot,
                ":generation": generation,
                ":zero": 0,
                ":empty": {},
                ":expires_at": round(now) + KEPT_SECONDS,
            }

        moved, found = self._table.update(key, _CANCEL, _NOTHING, values(0))
        if not moved and _has_lapsed(found, now):
            _, found = self._table.update(
                key, _CANCEL_AS_NEW, _AS_FOUND, values(0) | _as_found(found)
            )
        elif not moved and _has_not_gone_out(found, now):
            _, found = self._table.update(
                key, _CANCEL, _AS_FOUND, values(found["generation"]) | _as_found(found)
            )
        if not found:  # DynamoDB has swept it meanwhile
            return self.cancel(bot, notification_id)
        return _account(bot, notification_id, found)

    def matches(self, recipient: str, after: str | None) -> LedgerPage:
        """Look through a page of the ledger for what may be a recipient's.

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
        """Leave of a notification only that it must not be sent, for as long as it may come."""
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

    def claim(
        self, notification: Notification, status: Status, lease_until: float
    ) -> Claim | LedgerEntry:
        """Take a notification for sending, or tell what stands in the way.

        One conditional write. A redrive, and an id whose item has outlived its time, take two.
        A write whose answer is not known is taken back, so that the notification does not count as
        one that may have gone out.
        """
        token = uuid4().hex
        try:
            return self._claim_as(token, notification, status, lease_until)
        except (BotoCoreError, ClientError):
            self._take_back(notification.key, token)
            raise

    def _claim_as(
        self, token: str, notification: Notification, status: Status, lease_until: float
    ) -> Claim | LedgerEntry:
        now = self._now()
        asked_generation = notification.queued.generation
        values = {
            ":status": status,
            ":token": token,
            ":lease_until": milliseconds(lease_until),
            ":now": milliseconds(now),
            ":id": notification.request.id,
            ":bot": notification.request.bot,
            ":content_hash": notification.content_hash,
            ":request": notification.queued.body,
            ":template": notification.request.template.name,
            ":recipient": mask(notification.request.to),
            ":metadata": notification.request.metadata,
            ":correlation_id": notification.request.correlation_id,
            ":generation": (asked_generation or 0) + 1,
            ":redrives": notification.queued.redrives,
            ":one": 1,
            ":expires_at": round(now) + KEPT_SECONDS,
        }
        free = {
            ":none": 0,
            ":now_seconds": round(now),
            ":retrying": Status.RETRYING,
            ":claimed": Status.CLAIMED,
        }
        _, found = self._table.update(notification.key, _CLAIM, _FREE, values | free)
        if found.get("token") == token:
            return _claim(found)

        # What was cancelled stays so for as long as it can be found at all.
        lapsed = _has_lapsed(found, now)
        redriven = found["status"] in UNDELIVERED and found["generation"] == asked_generation
        if lapsed or redriven:
            _, found = self._table.update(
                notification.key,
                _AS_NEW if lapsed else _RESTART,
                _AS_FOUND,
                values | _as_found(found),
            )
            if found.get("token") == token:
                return _claim(found)
            if not found:  # DynamoDB has swept it meanwhile
                return self._claim_as(token, notification, status, lease_until)
        return _standing(found)

    def complete_cancelled(self, notification: Notification) -> None:
        """Add to what was cancelled in advance what its status event needs, now that it is here."""
        self._table.update(
            notification.key,
            "SET template = :template, metadata = :metadata, correlation_id = :correlation_id",
            f"#status = :cancelled AND attribute_not_exists(template) AND {_NOT_FORGOTTEN}",
            {
                ":cancelled": Status.CANCELLED,
                ":template": notification.request.template.name,
                ":metadata": notification.request.metadata,
                ":correlation_id": notification.request.correlation_id,
            },
        )

    def release_unsent(self, claim: Claim) -> None:
        """Return back what was claimed and surely not sent, after a failure of AWS."""
        self._take_back(claim.key, claim.token)

    def _take_back(self, key: str, token: str) -> None:
        """Undo a claim. If that cannot be written either, the claim ends with its lease."""
        started = self._now()
        for _ in range(TAKE_BACK_TRIES):
            if self._now() - started > TAKE_BACK_SECONDS:
                return
            try:
                self._table.update(
                    key,
                    "SET #status = :retrying, updated_at = :now, attempts = attempts - :one"
                    " REMOVE #token, lease_until",
                    "#token = :token AND #status IN (:claimed, :sending)",
                    {
                        ":retrying": Status.RETRYING,
                        ":claimed": Status.CLAIMED,
                        ":sending": Status.SENDING,
                        ":token": token,
                        ":now": milliseconds(self._now()),
                        ":one": 1,
                    },
                )
            except (BotoCoreError, ClientError) as error:
                logger.warning("claim not taken back", extra={"key": key, **crash_facts(error)})
            else:
                return

    def start_sending(self, claim: Claim, lease_until: float) -> Claim:
        """Say that the POST may be under way from now on.

        Raises:
            ClaimLost: another sandbox has the notification; nothing may be sent.
        """
        held, found = self._table.update(
            claim.key,
            "SET #status = :status, lease_until = :lease_until, updated_at = :now",
            "#token = :token AND #status IN (:claimed, :status)",
            {
                ":status": Status.SENDING,
                ":claimed": Status.CLAIMED,
                ":token": claim.token,
                ":lease_until": milliseconds(lease_until),
                ":now": milliseconds(self._now()),
            },
            returning=False,
        )
        if not held:
            raise ClaimLost(claim.key, forgotten="forgotten" in found)
        return replace(claim, status=Status.SENDING)

    def mark_sent(self, claim: Claim, poll_at: float | None) -> None:
        """Record that BLiP took it. That is a fact, even if another sandbox has the claim.

        Args:
            claim: the notification.
            poll_at: when to ask for its receipts, if they don't come by themselves.
        """
        poll = ""
        values: dict[str, Any] = _named(before(Status.SENT))
        if poll_at is not None:
            poll = ", poll_bot = bot, poll_since = :now, poll_at = :poll_at"
            values[":poll_at"] = milliseconds(poll_at)
        condition = (
            f"generation = :generation AND #status IN ({', '.join(_named(before(Status.SENT)))})"
        )
        self._settle(claim, Status.SENT, condition, change=poll, values=values)

    def mark_unknown(self, claim: Claim) -> None:
        """Record that it may have gone out, until now at the latest."""
        self._settle(claim, Status.UNKNOWN, _HELD, change=", in_flight_until = :now")

    def release(self, claim: Claim, *, attempted: bool) -> None:
        """Return it back for a later attempt: it surely did not go out."""
        change = "" if attempted else ", attempts = attempts - :one"
        values = {} if attempted else {":one": 1}
        self._settle(claim, Status.RETRYING, _HELD, change=change, values=values)

    def mark_failed(self, claim: Claim, status: Status, reason: Reason, code: int | None) -> None:
        """Record that it ended without delivery. Its dead letter is on the queue already."""
        self._settle(
            claim,
            status,
            _HELD,
            change=", reason = :reason, code = :code, attempts = :attempts",
            values={":reason": reason, ":code": code, ":attempts": claim.attempts},
            reason=reason,
        )

    def claim_unknown(self, standing: LedgerEntry, lease_until: float) -> Claim | None:
        """Take an unknown to settle it; None if another sandbox does.

        What was `sending` when its sandbox ended is an unknown from here on.
        """
        token = uuid4().hex
        _, found = self._table.update(
            standing.key,
            "SET #status = :unknown, #token = :token, lease_until = :lease_until,"
            " in_flight_until = :in_flight_until, updated_at = :now",
            "generation = :generation AND (#status = :unknown OR #status = :sending)"
            " AND (attribute_not_exists(lease_until) OR lease_until < :now)",
            {
                ":unknown": Status.UNKNOWN,
                ":sending": Status.SENDING,
                ":token": token,
                ":lease_until": milliseconds(lease_until),
                ":in_flight_until": milliseconds(standing.in_flight_until),
                ":now": milliseconds(self._now()),
                ":generation": standing.generation,
            },
        )
        return _claim(found) if found.get("token") == token else None

    def mark_not_sent(self, claim: Claim) -> None:
        """Record that an unknown never went out, by BLiP's own word; it may be sent again."""
        self._settle(
            claim,
            Status.RETRYING,
            _HELD,
            change=", denials = if_not_exists(denials, :none_yet) + :one",
            values={":none_yet": 0, ":one": 1},
        )

    def release_unknown(self, claim: Claim) -> None:
        """Return an unknown back unsettled, to be asked about later, bound to its control."""
        change = "REMOVE #token, lease_until"
        values: dict[str, Any] = {":token": claim.token}
        if claim.control is not None:
            change = f"SET control = :control, control_at = :control_at {change}"
            values |= {
                ":control": claim.control.message_id,
                ":control_at": milliseconds(claim.control.at),
            }
        self._table.update(claim.key, change, "#token = :token", values)

    def advance(self, receipt: Receipt) -> tuple[bool, LedgerEntry | None]:
        """Move the status forward as far as the receipt says.

        That the person has it is true whatever the generation, and final. Everything else counts
        for the current generation only; of an older one it is kept beside the timeline. A receipt
        that cannot be of the notification's bot changes nothing.

        Returns:
            Whether it moved, and the notification as it stands now; None if the ledger does not
            know it, or its recipient was forgotten.
        """
        status = receipt.status
        earlier = _named(before(status))
        condition = f"#status IN ({', '.join(earlier)}) AND {_NOT_FORGOTTEN}"
        delivered = status in {Status.RECEIVED, Status.CONSUMED}
        values: dict[str, Any] = earlier | self._event(status, receipt.generation)
        if delivered:
            change = (
                " REMOVE #token, lease_until, #request, reason, code, poll_bot, poll_at, poll_since"
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
        standing = _standing(found)
        late = standing.generation > receipt.generation and receipt.may_be_of(standing.bot)
        if late and not moved:
            self._keep_late(receipt)
        return moved, standing

    def fail(self, receipt: Receipt, reason: Reason, *, postponed: bool) -> bool:
        """Record that a message was not delivered; what follows from it is done already."""
        values: dict[str, Any] = _named(before(Status.FAILED))
        condition = f"#status IN ({', '.join(values)}) AND generation = :generation"
        # Put back it has not ended: without a reason it is no status event.
        ended = None if postponed else reason
        values |= self._event(Status.FAILED, receipt.generation, ended)
        values |= {
            ":generation": receipt.generation,
            ":reason": reason,
            ":code": receipt.code,
        }
        change = ""
        if postponed:
            change = ", postponed = :generation"
        moved, _ = self._table.update(
            receipt.key,
            "SET #status = :status, updated_at = :now, reason = :reason, code = :code,"
            f" timeline = list_append(if_not_exists(timeline, :none), :event){change}"
            " REMOVE #token, lease_until, poll_bot, poll_at, poll_since",
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
        """Say when to ask next; None: never again. Unless it has ended meanwhile."""
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
        """Keep what came too late to change anything, but not without end."""
        event = self._event(receipt.status, receipt.generation)
        self._table.update(
            receipt.key,
            "SET late = list_append(if_not_exists(late, :none), :event)",
            f"(attribute_not_exists(late) OR size(late) < :most) AND {_NOT_FORGOTTEN}",
            {":event": event[":event"], ":none": [], ":most": 100},
        )

    def _event(
        self, status: Status, generation: int, reason: Reason | None = None
    ) -> dict[str, Any]:
        now = milliseconds(self._now())
        return {
            ":status": status,
            ":now": now,
            ":none": [],
            ":event": [[status, generation, now, reason]],
        }

    def _settle(
        self,
        claim: Claim,
        status: Status,
        condition: str,
        *,
        change: str = "",
        values: dict[str, Any] | None = None,
        reason: Reason | None = None,
    ) -> None:
        standing: dict[str, Any] = {":generation": claim.generation}
        if ":token" in condition:
            standing[":token"] = claim.token
        held, found = self._table.update(
            claim.key,
            "SET #status = :status, updated_at = :now,"
            f" timeline = list_append(if_not_exists(timeline, :none), :event){change}"
            " REMOVE #token, lease_until",
            condition,
            self._event(status, claim.generation, reason) | standing | (values or {}),
            returning=False,
        )
        if not held and found.get("status") not in {status, *_LATER.get(status, ())}:
            # The claim ended while we worked: what the ledger holds is newer than we are.
            logger.warning(
                "not settled",
                extra={
                    "notification_id": found.get("id"),
                    "bot": found.get("bot"),
                    "key": claim.key,
                    "status": status,
                    "standing": found.get("status"),
                },
            )


# A receipt may overtake the answer to the send: then there is nothing left to settle.
_LATER = {Status.SENT: [status for status in Status if Status.SENT in before(status)]}


def _named(statuses: list[Status]) -> dict[str, Any]:
    """Name statuses as values of an expression."""
    return {f":{status.value}": status for status in statuses}


def _as_found(item: Item) -> dict[str, Any]:
    return {
        ":found_status": item["status"],
        ":found_generation": item["generation"],
        ":found_update": item["updated_at"],
    }


def _has_lapsed(item: Item, now: float) -> bool:
    """Return whether an item has outlived its time, so that its id is free again."""
    return bool(item["expires_at"] <= round(now) and item["status"] != Status.CANCELLED)


def _has_not_gone_out(item: Item, now: float) -> bool:
    """Return whether nothing of it is under way, nor out, nor on the dead-letters queue."""
    match item["status"]:
        case Status.CANCELLED:
            return False
        case Status.RETRYING:
            return True
        case Status.CLAIMED:
            return bool(item["lease_until"] < milliseconds(now))
        case Status.FAILED:  # put back because of a rate limit, it waits for its next generation
            return bool(item.get("postponed") == item["generation"])
        case _:
            return False


def _account(bot: str, notification_id: str, item: Item) -> NotificationDetails:
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
        recipient=item.get("recipient"),
        reason=Reason(item["reason"]) if item.get("reason") else None,
        code=item.get("code"),
        metadata=item.get("metadata", {}),
        correlation_id=item.get("correlation_id"),
    )


def _claim(item: Item) -> Claim:
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


def _standing(item: Item) -> LedgerEntry:
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
        postponed=item.get("postponed", 0),
        redrives=item.get("redrives", 0),
        metadata=item.get("metadata", {}),
        forgotten="forgotten" in item,
        correlation_id=item.get("correlation_id"),
        sent_at=_sent_at(item),
    )


def _sent_at(item: Item) -> float:
    """Find on the timeline when BLiP took this generation's message."""
    for status, generation, at, _ in item.get("timeline", ()):
        if status == Status.SENT and generation == item["generation"]:
            return float(at) / 1000
    return 0.0
