"""The ledger as sending writes it: claims, and what became of them."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from notifier.aws.ledger_items import (
    AS_FOUND,
    KEPT_SECONDS,
    NOT_FORGOTTEN,
    NOTHING,
    as_found,
    claim_of,
    entry_of,
    has_lapsed,
    one_of,
    timeline_entry,
)
from notifier.aws.table import Table, milliseconds
from notifier.contract.phone import mask
from notifier.domain.failures import Reason, crash_facts
from notifier.domain.ledger_entries import Claim, ClaimLost, LedgerEntry
from notifier.domain.notification import Notification
from notifier.domain.status import STARTS_BY_GENERATION, Status, before

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# boto3 has tried three times at each of them.
TAKE_BACK_TRIES = 4
# No longer, so that a table that hangs does not use up the time of the batch.
TAKE_BACK_SECONDS = 4.0

# Each clause of the claim's condition by name.
_NOT_EXPIRED = "expires_at > :now_seconds"
_SAME_CONTENT = "content_hash = :content_hash"
_WAITS = "#status = :retrying"
_ABANDONED = "(#status = :claimed AND lease_until < :now)"
_FREE = f"{NOTHING} OR ({_NOT_EXPIRED} AND {_SAME_CONTENT} AND ({_WAITS} OR {_ABANDONED}))"

_CLAIMED = """
SET #status = :status, #token = :token, lease_until = :lease_until, updated_at = :now,
    #id = :id, bot = :bot, content_hash = :content_hash, #request = :request, template = :template,
    category = :category, recipient = :recipient, metadata = :metadata,
    correlation_id = :correlation_id, created_at = if_not_exists(created_at, :now),
"""
_CLAIM = f"""{_CLAIMED}
    generation = if_not_exists(generation, :generation),
    attempts = if_not_exists(attempts, :none) + :one,
    redrives = if_not_exists(redrives, :redrives),
    expires_at = if_not_exists(expires_at, :expires_at)
"""
# A redrive, the end of a wait, or an id that comes again after its item's time: everything anew.
_RESTART = f"""{_CLAIMED}
    generation = :generation, attempts = :one, redrives = :redrives, expires_at = :expires_at
REMOVE reason, code, in_flight_until, denials, control, control_at, poll_bot, poll_at, poll_since,
    wake_shard, wake_at
"""
# Of an id whose item has outlived its time, what was before is another notification's.
_AS_NEW = f"{_RESTART.rstrip()}, timeline, late, waits".replace(
    "if_not_exists(created_at, :now)", ":now"
)
_HELD = "generation = :generation AND #token = :token"
# A receipt may overtake the answer to the send: then there is nothing left to settle.
_LATER = {Status.SENT: [status for status in Status if Status.SENT in before(status)]}


class DynamoDbLedger:
    """The ledger's table, for sending. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now

    def claim(
        self, notification: Notification, status: Status, lease_until: float
    ) -> Claim | LedgerEntry:
        """Claim a notification for sending, or return the entry that prevents it.

        A claim is one conditional write. A next generation, and an id whose item has expired, take
        two. A write whose answer is not known is taken back, so that the notification does not
        count as one that may have gone out.
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
            ":request": notification.kept_body,
            ":template": notification.request.template.name,
            ":category": notification.category,
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
            return claim_of(found)

        # What was cancelled stays so for as long as it can be found at all.
        lapsed = has_lapsed(found, now)
        next_one = (
            found["status"] in STARTS_BY_GENERATION and found["generation"] == asked_generation
        )
        if lapsed or next_one:
            _, found = self._table.update(
                notification.key,
                _AS_NEW if lapsed else _RESTART,
                AS_FOUND,
                values | as_found(found),
            )
            if found.get("token") == token:
                return claim_of(found)
            if not found:  # DynamoDB has swept it meanwhile
                return self._claim_as(token, notification, status, lease_until)
        return entry_of(found)

    def complete_cancelled(self, notification: Notification) -> None:
        """Add to what was cancelled in advance what its status event needs, now that it is here."""
        self._table.update(
            notification.key,
            "SET template = :template, metadata = :metadata, correlation_id = :correlation_id",
            f"#status = :cancelled AND attribute_not_exists(template) AND {NOT_FORGOTTEN}",
            {
                ":cancelled": Status.CANCELLED,
                ":template": notification.request.template.name,
                ":metadata": notification.request.metadata,
                ":correlation_id": notification.request.correlation_id,
            },
        )

    def release_unsent(self, claim: Claim) -> None:
        """Release a claim after a failure of AWS: the message surely did not go out."""
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
        """Record that the POST may be under way from now on.

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
        not_yet_sent, values = one_of(before(Status.SENT))
        if poll_at is not None:
            poll = ", poll_bot = bot, poll_since = :now, poll_at = :poll_at"
            values[":poll_at"] = milliseconds(poll_at)
        condition = f"generation = :generation AND {not_yet_sent}"
        self._settle(claim, Status.SENT, condition, change=poll, values=values)

    def mark_unknown(self, claim: Claim) -> None:
        """Record that it may have gone out, until now at the latest."""
        self._settle(claim, Status.UNKNOWN, _HELD, change=", in_flight_until = :now")

    def release(self, claim: Claim, *, attempted: bool) -> None:
        """Release a claim for a later attempt: the message surely did not go out."""
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

    def claim_unknown(self, entry: LedgerEntry, lease_until: float) -> Claim | None:
        """Claim an unknown in order to settle it; return None if another sandbox has it.

        What was `sending` when its sandbox ended is an unknown from here on.
        """
        token = uuid4().hex
        _, found = self._table.update(
            entry.key,
            "SET #status = :unknown, #token = :token, lease_until = :lease_until,"
            " in_flight_until = :in_flight_until, updated_at = :now",
            "generation = :generation AND (#status = :unknown OR #status = :sending)"
            " AND (attribute_not_exists(lease_until) OR lease_until < :now)",
            {
                ":unknown": Status.UNKNOWN,
                ":sending": Status.SENDING,
                ":token": token,
                ":lease_until": milliseconds(lease_until),
                ":in_flight_until": milliseconds(entry.in_flight_until),
                ":now": milliseconds(self._now()),
                ":generation": entry.generation,
            },
        )
        return claim_of(found) if found.get("token") == token else None

    def mark_not_sent(self, claim: Claim) -> None:
        """Record that an unknown never went out, as BLiP's history says; it may be sent again."""
        self._settle(
            claim,
            Status.RETRYING,
            _HELD,
            change=", denials = if_not_exists(denials, :none_yet) + :one",
            values={":none_yet": 0, ":one": 1},
        )

    def release_unknown(self, claim: Claim) -> None:
        """Release an unknown that is not settled yet, bound to its control message."""
        change = "REMOVE #token, lease_until"
        values: dict[str, Any] = {":token": claim.token}
        if claim.control is not None:
            change = f"SET control = :control, control_at = :control_at {change}"
            values |= {
                ":control": claim.control.message_id,
                ":control_at": milliseconds(claim.control.at),
            }
        self._table.update(claim.key, change, "#token = :token", values)

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
        held_by: dict[str, Any] = {":generation": claim.generation}
        if ":token" in condition:
            held_by[":token"] = claim.token
        held, found = self._table.update(
            claim.key,
            "SET #status = :status, updated_at = :now,"
            f" timeline = list_append(if_not_exists(timeline, :none), :event){change}"
            f" REMOVE #token, lease_until{', waits' if reason else ''}",
            condition,
            timeline_entry(self._now(), status, claim.generation, reason)
            | held_by
            | (values or {}),
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
                    "found": found.get("status"),
                },
            )
