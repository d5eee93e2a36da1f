"""What the ledger holds of a notification. Times in epoch seconds."""

from dataclasses import dataclass, field

from notifier.domain.failures import Reason
from notifier.domain.status import Status
from notifier.domain.status_events import StatusEvent


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a notification, held by one conditional write.

    Attributes:
        key: the notification.
        generation: which round of sending this is; 1, and one more per redrive.
        attempts: how often it was claimed to be sent in this generation, this time included.
        token: what the ledger must still hold for our writes to count.
        status: `claimed`; `sending` once the POST may be under way; `unknown` while it is settled.
        in_flight_until: of an unknown: the last instant at which the send can have been under way.
        denials: how often BLiP's history has denied a send of this generation.
        control: of an unknown: the message that the history has to show before it can deny it.
    """

    key: str
    generation: int
    attempts: int
    token: str
    status: Status
    in_flight_until: float = 0.0
    denials: int = 0
    control: "Control | None" = None


@dataclass(frozen=True, slots=True)
class Control:
    """A message that BLiP took, by which its history is tested.

    Attributes:
        message_id: as it was sent.
        at: it was sent then, or later.
    """

    message_id: str
    at: float


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What the ledger holds of a notification.

    Attributes:
        lease_until: when the claim on it ends; 0 where there is none.
        in_flight_until: of an unknown: the last instant at which the send can have been under way.
        body: the request as it came; empty once it has been delivered.
        waits: the kinds of wait that this generation follows on, in their order; a dead letter
            ends the row.
        waits_since, wakes_at: from when until when its next generation waits; None where none does.
        category: the template's when it was claimed, as WhatsApp names it; None if not known.
        redrives: how often the request had been put back when this generation began.
        correlation_id: the producer's, of the request that was claimed last.
        sent_at: when BLiP took the message of this generation; 0 where it has not.
        forgotten: the recipient was erased, and nothing else is left.
    """

    key: str
    notification_id: str
    bot: str
    status: Status
    generation: int
    content_hash: str
    attempts: int
    lease_until: float
    in_flight_until: float
    template: str
    body: str = ""
    reason: Reason | None = None
    waits: tuple[str, ...] = ()
    waits_since: float | None = None
    wakes_at: float | None = None
    category: str | None = None
    redrives: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    correlation_id: str | None = None
    sent_at: float = 0.0
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class NotificationDetails:
    """A notification as the status API returns it, without phone number or parameters.

    Attributes:
        attempts: how often it was claimed to be sent in this generation.
        timeline: the changes of status, oldest first, with receipts that came too late to be one.
        template: its name; None where no request has come yet, or the recipient was forgotten.
        category: of the template; None where the registry did not have it.
        recipient: the masked number; None where no request has come yet, or it was forgotten.
        wakes_at: until when its next generation waits; None where none does.
    """

    notification_id: str
    bot: str
    status: Status
    generation: int
    attempts: int
    timeline: "tuple[Change, ...]"
    created_at: float | None
    updated_at: float
    template: str | None = None
    category: str | None = None
    recipient: str | None = None
    reason: Reason | None = None
    code: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    correlation_id: str | None = None
    wakes_at: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of status, as it stands on a notification's timeline.

    Attributes:
        reason: why it ended without delivery; None where it did not.
    """

    status: Status
    generation: int
    at: float
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was refused, though its id is readable: it has no place of its own.

    Attributes:
        record_id: SQS's message id.
        reason: `invalid` or `id_conflict`.
        metadata: the request's, where it is valid.
    """

    record_id: str
    reason: Reason
    metadata: dict[str, str] = field(default_factory=dict)
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class RecipientMatch:
    """A notification that may be a recipient's, by the last four digits of the number.

    Attributes:
        body: the request as it came; empty once it has been delivered.
    """

    key: str
    bot: str
    body: str


@dataclass(frozen=True, slots=True)
class LedgerPage:
    """A part of the ledger.

    Attributes:
        scanned: how many notifications it has.
        last: where it ended; None if nothing follows it.
    """

    matches: list[RecipientMatch]
    scanned: int
    last: str | None


class ClaimLost(Exception):
    """A write that holds only under our claim came after the claim had ended.

    Attributes:
        forgotten: because the recipient was forgotten.
    """

    def __init__(self, key: str, *, forgotten: bool = False) -> None:
        super().__init__(key)
        self.forgotten = forgotten


@dataclass(frozen=True, slots=True)
class Poll:
    """A message whose receipts are asked for.

    Attributes:
        since: when it was sent, in epoch seconds.
        due_at: when it should be asked about, in epoch seconds.
    """

    key: str
    generation: int
    since: float
    due_at: float


@dataclass(frozen=True, slots=True)
class Due:
    """A notification whose wait is over.

    Attributes:
        due_at: since when, in epoch seconds.
    """

    key: str
    due_at: float


@dataclass(frozen=True, slots=True)
class LedgerWrite:
    """One write of the ledger, from its stream.

    Attributes:
        key: of the item.
        sequence_number: its place in the stream.
        events: the status events that it adds, in their order.
        problem: why it cannot be understood; empty if it can.
    """

    key: str
    sequence_number: str
    events: tuple[StatusEvent, ...] = ()
    problem: str = ""
