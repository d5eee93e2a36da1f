"""The statuses of a notification and the moves allowed between them. Pure: no clock, no I/O."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol

from notifier.domain.failures import Reason


class Status(StrEnum):
    """Where a notification stands in the ledger."""

    CLAIMED = "claimed"
    SENDING = "sending"
    RETRYING = "retrying"
    UNKNOWN = "unknown"
    SENT = "sent"
    ACCEPTED = "accepted"
    DISPATCHED = "dispatched"
    WAITING = "waiting"
    RECEIVED = "received"
    CONSUMED = "consumed"
    FAILED = "failed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class HasStatus(Protocol):
    """Anything with a status."""

    @property
    def status(self) -> Status:
        """Where it stands."""


# BLiP took it: another request for it is a duplicate.
SENT_OR_LATER = frozenset(
    {Status.SENT, Status.ACCEPTED, Status.DISPATCHED, Status.RECEIVED, Status.CONSUMED}
)
# It ended without delivery: only a redrive starts it again, as the next generation.
UNDELIVERED = frozenset({Status.FAILED, Status.REJECTED, Status.EXPIRED})
# Only a request that names their generation starts these, as the next one. What is `waiting` has
# its next generation in the ledger until a time.
STARTS_BY_GENERATION = UNDELIVERED | {Status.WAITING}
# The statuses that can be published.
PUBLISHABLE = SENT_OR_LATER | UNDELIVERED | {Status.CANCELLED}
# Those that the stream's filter passes. `waiting` is not published, and may be the first word that
# BLiP took a message.
STREAMED = PUBLISHABLE | {Status.WAITING}
# With these reasons a failure follows from a receipt: BLiP took the message.
BY_RECEIPT = frozenset({Reason.UNDELIVERED, Reason.RECIPIENT_CAPPED, Reason.OPTED_OUT})
# `cancelled` is neither: it was taken back before it went out, or is all that is left of one whose
# recipient was forgotten. No request and no redrive starts it again.

# The order in which receipts move a status forward, never back. What stands before `sent` is ours;
# a receipt shows that BLiP has the message, wherever we were.
_RANKS = {
    Status.CLAIMED: 0,
    Status.SENDING: 0,
    Status.RETRYING: 0,
    Status.UNKNOWN: 0,
    Status.SENT: 1,
    Status.ACCEPTED: 2,
    Status.DISPATCHED: 3,
    Status.WAITING: 4,
    Status.FAILED: 4,
    Status.REJECTED: 4,
    Status.EXPIRED: 4,
    Status.CANCELLED: 4,
    Status.RECEIVED: 5,
    Status.CONSUMED: 6,
}


def before(status: Status) -> list[Status]:
    """Return the statuses that a receipt of this status may replace."""
    return [other for other, rank in _RANKS.items() if rank < _RANKS[status]]


def latest[Reported: HasStatus](reported: Iterable[Reported]) -> Reported:
    """Return, of several reports about one message, the one that goes furthest."""
    return max(reported, key=lambda report: _RANKS[report.status])


def final_status(reason: Reason) -> Status:
    """Return the status in which a notification ends that became a dead letter for this reason."""
    match reason:
        case Reason.EXPIRED:
            return Status.EXPIRED
        case (
            Reason.UNKNOWN_BOT
            | Reason.NOT_A_PHONE_NUMBER
            | Reason.NOT_ALLOWED
            | Reason.TEMPLATE_MISMATCH
            | Reason.TEMPLATE_UNAVAILABLE
            | Reason.REJECTED
            | Reason.MALFORMED
            | Reason.INVALID
            | Reason.ID_CONFLICT
        ):
            return Status.REJECTED
        case (
            Reason.UNDELIVERED
            | Reason.RECIPIENT_CAPPED
            | Reason.OPTED_OUT
            | Reason.OUTCOME_UNKNOWN
            | Reason.RETRIES_EXHAUSTED
            | Reason.WAITED_TOO_LONG
        ):
            return Status.FAILED
