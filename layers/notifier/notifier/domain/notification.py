"""A request on its queue, a notification, and its names at BLiP and in the ledger."""

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from notifier.domain.templates import Category

if TYPE_CHECKING:
    # Only then: the webhook's function loads nothing of the contract with its libraries.
    from notifier.contract.request import NotificationRequest


# Stands in a request that is kept, in place of its one-time code. The contract refuses it.
REMOVED = "(removed)"
# For how long a one-time code may be sent that has no `valid_until`.
ONE_TIME_CODE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request as it lies on the queue.

    Attributes:
        record_id: SQS's message id: names the record in the batch, never the notification.
        receipt_handle: SQS's handle for changing its visibility or deleting it.
        body: exactly what came in.
        published_at: when it was put on the queue, in epoch seconds.
        generation: the generation that failed, where this is a redrive.
        redrives: how often it was put back.
        waited_since: when a wait began that it had in the ledger before; None if it had none.
        receive_count: how often SQS has delivered it, this time included.
    """

    record_id: str
    receipt_handle: str
    body: str
    published_at: float
    generation: int | None = None
    redrives: int = 0
    waited_since: float | None = None
    receive_count: int = 1

    @property
    def known_since(self) -> float:
        """Since when it is on the queue, or waited for that in the ledger."""
        return self.published_at if self.waited_since is None else self.waited_since


@dataclass(frozen=True, slots=True)
class Notification:
    """A valid request with its key in the ledger.

    Attributes:
        category: of its template, as the registry has it; None if that is not known.
    """

    queued: QueuedRequest
    request: "NotificationRequest"
    content_hash: str
    key: str
    category: Category | None = None

    @property
    def valid_until(self) -> float | None:
        """Until when it may be sent, in epoch seconds; None for as long as it takes."""
        moment = self.request.valid_until
        if moment is not None:
            return moment.timestamp()
        has_code = self.request.template.otp is not None
        return self.queued.published_at + ONE_TIME_CODE_SECONDS if has_code else None

    @property
    def kept_body(self) -> str:
        """The request as the ledger and dead letters keep it: as it came, but for a code."""
        template = self.request.template
        if template.otp is None:
            return self.queued.body
        without = self.request.model_copy(
            update={"template": template.model_copy(update={"otp": REMOVED})}
        )
        return without.model_dump_json(exclude_unset=True)

    def log_context(self) -> dict[str, object]:
        """What every log line about it names."""
        return {
            "notification_id": self.request.id,
            "bot": self.request.bot,
            "key": self.key,
            "correlation_id": self.request.correlation_id,
        }

    @property
    def recipient(self) -> tuple[str, str]:
        """The recipient as the identities' table keys it: bot and phone number."""
        return (self.request.bot, self.request.to)

    @property
    def template(self) -> tuple[str, str]:
        """The template as the registry keys it: bot and name."""
        return (self.request.bot, self.request.template.name)


# Never changed: the keys of the ledger and the message ids that BLiP knows hang on it.
_LEDGER_NAMESPACE = UUID("a95e10f3-1655-4f62-80bf-53417ca820db")


def ledger_key(bot: str, notification_id: str) -> str:
    """Return the key of a notification in the ledger; a bot's name holds no `/`."""
    return str(uuid5(_LEDGER_NAMESPACE, f"{bot}/{notification_id}"))


def message_id(key: str, generation: int) -> str:
    """Return the id that BLiP gets: each generation has one of its own."""
    return key if generation == 1 else f"{key}:{generation}"
