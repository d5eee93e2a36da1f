"""Dead letters."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from notifier.domain.failures import Reason


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


class DeadLetters(Protocol):
    """Keeps what cannot be delivered, with the reason."""

    def put(
        self,
        body: str,
        reason: Reason,
        failure: dict[str, Any],
        *,
        bot: str | None,
        notification_id: str | None,
        generation: int | None,
    ) -> None:
        """Put one; see `aws.queues`."""
