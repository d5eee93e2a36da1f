"""Dead letters."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from notifier.domain.failures import FieldError, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureDetails:
    """Where and how a request failed, as its dead letter records it.

    Attributes:
        detail: one sentence for a person.
        code: BLiP's reason code, the HTTP status or WhatsApp's code, if there is one.
        template: the template's name, if it is readable.
        phase: `contract`, `claim`, `template`, `look-up`, `send`, `settle` or `receipt`.
        attempts: how often the generation was tried.
        possibly_sent: whether the recipient may have got the message all the same.
        redrives: how often the request had been put back before it failed.
        fields: every broken field of a request that breaks the contract or its template; None for
            any other failure.
    """

    detail: str
    code: int | None
    template: str | None
    phase: str
    attempts: int
    possibly_sent: bool
    redrives: int
    fields: tuple[FieldError, ...] | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as it is read from its queue.

    Attributes:
        letter_id: SQS's message id.
        receipt_handle: SQS's handle for changing its visibility or deleting it.
        body: exactly what came in.
        reason: why it is there; None if SQS itself moved it.
        failed_at: when it failed, in epoch seconds.
        bot: the request's bot; None if it is not readable.
        notification_id: the request's id; None if it is not readable.
        generation: the one that failed.
        redrives: how often the request had been put back when it failed.
        failure: `FailureDetails` as they were written. Everyone with access to the queue can write
            there, so nothing is taken for granted about them.
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
        failure: FailureDetails,
        *,
        bot: str | None,
        notification_id: str | None,
        generation: int | None,
    ) -> None:
        """Put one; see `aws.queues`."""
