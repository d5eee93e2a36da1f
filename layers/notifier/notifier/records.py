"""The plain values that the use cases and the adapters hand each other. Times in epoch seconds."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from notifier.failures import Reason
from notifier.lifecycle import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    # The webhook's function knows records, and nothing of the contract with its libraries.
    from notifier.request import NotificationRequest

# How fast the share of a plan climbs back after a penalty: 0.02 an hour.
SHARE_PER_SECOND = 0.02 / 3600


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request as it lies on the queue.

    Attributes:
        record_id: SQS's message id: names the record in the batch, never the notification.
        receipt_handle: what SQS wants back to hide or delete it.
        body: exactly what came in.
        published_at: when it was put on the queue, in epoch seconds.
        generation: the generation that failed, where this is a redrive.
        redrives: how often it was put back.
        receives: how often SQS has delivered it, this time included.
    """

    record_id: str
    receipt_handle: str
    body: str
    published_at: float
    generation: int | None = None
    redrives: int = 0
    receives: int = 1


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as it lies on its queue.

    Attributes:
        letter_id: SQS's message id.
        receipt_handle: what SQS wants back to hide or delete it.
        body: exactly what came in.
        reason: why it is there; None where SQS itself has moved it.
        failed_at: since when, in epoch seconds.
        bot: what is known of it, as the two below; None where nothing is.
        generation: the one that failed.
        redrives: how often the request had been put back when it failed.
        failure: the details, as they were put down.
    """

    letter_id: str
    receipt_handle: str
    body: str
    reason: str | None
    failed_at: float
    bot: str | None = None
    notification_id: str | None = None
    generation: int | None = None
    redrives: int = 0
    failure: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notification:
    """A valid request with its key in the ledger."""

    queued: QueuedRequest
    request: "NotificationRequest"
    content_hash: str
    key: str

    @property
    def recipient(self) -> tuple[str, str]:
        """Whom it goes to, as the identities know it: bot and phone number."""
        return (self.request.bot, self.request.to)


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
class Standing:
    """What the ledger holds of a notification, when it stands in the way or is asked for.

    Attributes:
        lease_until: when the claim on it ends; 0 where there is none.
        in_flight_until: of an unknown: the last instant at which the send can have been under way.
        body: the request as it came; empty once it has been delivered.
        postponed: the generation that was put back because of a rate limit; 0 if none was.
        redrives: how often the request had been put back when this generation began.
        correlation_id: the producer's, of the request that was claimed last.
        sent_at: when BLiP took the message of this generation; 0 where it has not.
        forgotten: the recipient was, and nothing else is left.
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
    postponed: int = 0
    redrives: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    correlation_id: str | None = None
    sent_at: float = 0.0
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """What whoever asks for a notification is told: all but the number and the parameters.

    Attributes:
        attempts: how often it was claimed to be sent in this generation.
        timeline: the changes of status, oldest first, with receipts that came too late to be one.
        template: its name; None where no request has come yet, or the recipient was forgotten.
        recipient: the masked number; None likewise.
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
    recipient: str | None = None
    reason: Reason | None = None
    code: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    correlation_id: str | None = None


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
class Held:
    """A notification that may be a recipient's, by the last four digits of the number.

    Attributes:
        body: the request as it came; empty once it has been delivered.
    """

    key: str
    bot: str
    body: str


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the ledger.

    Attributes:
        looked_at: how many notifications it has.
        last: where it ended; None if nothing follows it.
    """

    held: list[Held]
    looked_at: int
    last: str | None


@dataclass(frozen=True, slots=True)
class Identity:
    """What BLiP says of a recipient: how WhatsApp calls it, or that it is no phone number.

    Attributes:
        address: the identity, opaque; None where BLiP refused the number.
        code: BLiP's reason code for the refusal.
        forgotten_at: when the recipient was forgotten; nothing else is known then.
    """

    address: str | None
    code: int | None = None
    forgotten_at: float | None = None


@dataclass(frozen=True, slots=True)
class LookUpLease:
    """The right to look a recipient up, held by nobody else until it ends."""

    recipient: tuple[str, str]
    token: str


class Still(StrEnum):
    """Why nothing of a bot goes out."""

    BOT_SHUT = "bot_shut"  # its breaker is open
    MISCONFIGURED = "misconfigured"  # its entry in the secret is wrong, or missing
    PAUSED = "paused"  # an operator wants it so
    IN_PENALTY = "in_penalty"  # BLiP has throttled it


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
class BotState:
    """What all sandboxes know of a bot.

    Attributes:
        shut_until: nothing goes to BLiP before this (the penalty); 0 if nothing is in the way.
        broken: why the breaker is open; empty while it is closed.
        paused: an operator has stopped it.
        failing: how many notifications in a row have failed without a definite answer.
        next_message_at: the first free send slot.
        missing_since: since when the bots' secret lacks its entry; 0 if it does not.
        shares: by plan, the share of it that was left after the last penalty, and since when.
        controls: messages that BLiP took lately, the older first: what its history should show.
        history_seen: BLiP's history has shown a message that was sent then, or later.
    """

    shut_until: float = 0.0
    broken: str = ""
    paused: bool = False
    failing: int = 0
    next_message_at: float = 0.0
    missing_since: float = 0.0
    shares: "Mapping[Plan, tuple[float, float]]" = field(default_factory=dict)
    controls: "tuple[Control, ...]" = ()
    history_seen: float = 0.0

    def share(self, plan: "Plan", ceiling: float, now: float) -> float:
        """Return the share of a plan that may be used now.

        It climbs back by itself: whoever reads it computes it, and nothing is written.

        Args:
            plan: which plan.
            ceiling: the bot's own share.
            now: the time.
        """
        if plan not in self.shares:
            return ceiling
        share, since = self.shares[plan]
        return min(ceiling, share + SHARE_PER_SECOND * max(0.0, now - since))


@dataclass(frozen=True, slots=True)
class Reservation:
    """Slots, evenly spaced, perhaps fewer than asked for; or none.

    Attributes:
        come_back_in: without slots: seconds until one may be free; None while the breaker is open.
        why: without slots: why the bot is still; None if its first free slot is too far away.
    """

    slots: tuple[float, ...]
    come_back_in: float | None = 0.0
    why: Still | None = None


type Plan = Literal["messages", "commands"]


class ClaimLost(Exception):  # noqa: N818 - no error: somebody else has the notification now
    """A write that holds only under our claim came after the claim had ended.

    Attributes:
        forgotten: because somebody had the recipient forgotten.
    """

    def __init__(self, key: str, *, forgotten: bool = False) -> None:
        super().__init__(key)
        self.forgotten = forgotten


class Undelivered(StrEnum):
    """What follows when a receipt says that a message failed."""

    FOR_GOOD = "for good"
    LATER = "later"  # a rate limit: one more generation, after a while
    SPORADIC = "sporadic"  # WhatsApp's own trouble: likewise; of many, the bot's number is down
    UNREACHABLE = "unreachable"  # the recipient is not to be had under this identity
    NUMBER_DOWN = "number down"  # it speaks for the bot's whole WhatsApp number
    POSSIBLY_SENT = "possibly sent"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What BLiP reports about a message that we sent.

    Attributes:
        key: the notification.
        generation: the generation of the message.
        status: `accepted`, `dispatched`, `received`, `consumed` or `failed`.
        undelivered: for `failed`: what follows.
        code: for `failed`: BLiP's or WhatsApp's reason code.
        detail: for `failed`: the code's meaning, in a sentence.
        bots: those whose secret was shown with it at the webhook; empty if it may be of any bot.
    """

    key: str
    generation: int
    status: Status
    undelivered: Undelivered = Undelivered.FOR_GOOD
    code: int | None = None
    detail: str = ""
    bots: tuple[str, ...] = ()

    def may_be_of(self, bot: str) -> bool:
        """Return whether a bot's messages may be reported on with the secret that was shown."""
        return not self.bots or bot in self.bots


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """A change of status, as upstream systems hear of it. No phone number, no parameter.

    Attributes:
        key: the notification; with generation, status and reason it names the event.
        time: when it changed. With these four it is one entry of the ledger.
    """

    key: str
    notification_id: str
    bot: str
    status: Status
    generation: int
    time: float
    reason: Reason | None
    metadata: dict[str, str]
    correlation_id: str | None = None

    @property
    def entry(self) -> tuple[Status, int, float, Reason | None]:
        """What tells it from the other events of its notification."""
        return (self.status, self.generation, self.time, self.reason)


class Publication(StrEnum):
    """What became of an event that was put on the bus."""

    TAKEN = "taken"
    REFUSED = "refused"  # for its own sake, and would be for ever
    NOT_NOW = "not now"  # the bus is throttled or away, or lets nobody in


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
