"""What became of a request: the result for SQS, the dead letter, the log line."""

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from notifier.contract.problems import InvalidRequest
from notifier.domain.dead_letters import DeadLetters, FailureDetails
from notifier.domain.failures import Reason, Rejected
from notifier.domain.ledger_entries import Claim, Control, Refusal
from notifier.domain.notification import Notification, QueuedRequest
from notifier.domain.status import Status, final_status
from notifier.use_cases.send_notification.ports import Ledger, Refusals

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """What this delivery of a request came to; counted, and logged with the notification's id."""

    SENT = "sent"
    DUPLICATE = "duplicate"
    CANCELLED = "cancelled"
    DEAD_LETTER = "dead_letter"
    RETRYING = "retrying"
    REFUSED = "refused"  # as if the bot were misconfigured; but it answers
    UNKNOWN = "unknown"
    UNSETTLED = "unsettled"
    SETTLED = "settled"
    DENIED = "denied"
    THROTTLED = "throttled"
    MISCONFIGURED = "misconfigured"
    BREAKER_OPEN = "breaker_open"
    PAUSED = "paused"
    COOLING_DOWN = "cooling_down"
    TEMPLATE_PAUSED = "template_paused"
    RETRY_LATER = "retry_later"
    CRASHED = "crashed"


# Found out before anything was tried.
_NEVER_TRIED = frozenset(
    {Reason.EXPIRED, Reason.WAITED_TOO_LONG, Reason.UNKNOWN_BOT, Reason.NOT_ALLOWED}
)
_BY_TEMPLATE = frozenset({Reason.TEMPLATE_MISMATCH, Reason.TEMPLATE_UNAVAILABLE})
_PHASES = {Status.CLAIMED: "look-up", Status.SENDING: "send"}


@dataclass(frozen=True, slots=True)
class Result:
    """What becomes of one record of the batch.

    Attributes:
        retry_in: in how many seconds SQS shall deliver it again; None: it is done.
        reason: of a dead letter.
        detail: one sentence for a person.
        no_answer: BLiP was asked, and did not answer definitely; five of these open the breaker.
        on_hold: it only waits for its bot, which is paused, throttled or does not work.
        sent_as: the bot, and the message that was sent.
    """

    queued: QueuedRequest
    outcome: Outcome
    notification: Notification | None = None
    retry_in: float | None = None
    reason: Reason | None = None
    detail: str | None = None
    no_answer: bool = False
    on_hold: bool = False
    sent_as: tuple[str, Control] | None = None


def logged(
    notification: Notification,
    outcome: Outcome,
    *,
    retry_in: float | None = None,
    reason: Reason | None = None,
    detail: str | None = None,
    no_answer: bool = False,
    on_hold: bool = False,
    sent_as: tuple[str, Control] | None = None,
) -> Result:
    """Return the result of a notification, which is logged; see `Result` for the arguments."""
    facts: dict[str, object] = {
        "retry_in": retry_in and round(retry_in, 1),
        "reason": reason,
        "detail": detail,
    } | notification.log_context()
    logger.info(
        outcome.value, extra={name: fact for name, fact in facts.items() if fact is not None}
    )
    return Result(
        notification.queued,
        outcome,
        notification,
        retry_in=retry_in,
        reason=reason,
        detail=detail,
        no_answer=no_answer,
        on_hold=on_hold,
        sent_as=sent_as,
    )


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Ends requests that cannot be delivered: always the dead letter first, then the ledger.

    A crash in between repeats the dead letter and loses nothing.
    """

    ledger: Ledger
    refusals: Refusals
    dead_letters: DeadLetters

    def give_up(self, notification: Notification, claim: Claim, failure: Rejected) -> Result:
        """End a notification that cannot succeed."""
        by_template = failure.reason in _BY_TEMPLATE
        if by_template or (failure.reason in _NEVER_TRIED and claim.status is Status.CLAIMED):
            claim = replace(claim, attempts=claim.attempts - 1)
        self._dead_letter(
            notification.queued,
            notification.kept_body,
            failure,
            bot=notification.request.bot,
            notification_id=notification.request.id,
            template=notification.request.template.name,
            phase="template" if by_template else _PHASES.get(claim.status, "settle"),
            generation=claim.generation,
            attempts=claim.attempts,
        )
        status = final_status(failure.reason)
        self.ledger.mark_failed(claim, status, failure.reason, failure.code)
        return _dead(notification, failure)

    def refuse_conflict(self, notification: Notification) -> Result:
        """Keep a second content of an id apart; the notification that has the id is undisturbed."""
        failure = Rejected(
            Reason.ID_CONFLICT,
            "another request with other content has this id: use a new id for other content",
        )
        request = notification.request
        refusal = Refusal(
            notification.queued.record_id, failure.reason, request.metadata, request.correlation_id
        )
        self._refuse(
            notification.queued,
            notification.kept_body,
            failure,
            refusal,
            bot=request.bot,
            notification_id=request.id,
            template=request.template.name,
            phase="claim",
        )
        return _dead(notification, failure)

    def dead_letter_invalid(self, queued: QueuedRequest, failure: InvalidRequest) -> Result:
        """Keep a request that cannot be understood, with its reasons."""
        self._refuse(
            queued,
            queued.body,
            failure,
            Refusal(queued.record_id, failure.reason, correlation_id=failure.correlation_id),
            bot=failure.bot,
            notification_id=failure.notification_id,
            template=failure.template,
            phase="contract",
        )
        facts = {
            "reason": failure.reason.value,
            "notification_id": failure.notification_id,
            "bot": failure.bot,
            "correlation_id": failure.correlation_id,
            "record_id": queued.record_id,
            "detail": failure.detail,
        }
        logger.warning("dead letter", extra=facts)
        return Result(queued, Outcome.DEAD_LETTER, reason=failure.reason)

    def _refuse(
        self,
        queued: QueuedRequest,
        body: str,
        failure: Rejected,
        refusal: Refusal,
        *,
        bot: str | None,
        notification_id: str | None,
        template: str | None,
        phase: str,
    ) -> None:
        """Put a dead letter, once for each SQS message where its id is readable.

        It has no generation: a redrive of it must not take the place of the one that has the id.
        """
        name = (bot or "default", notification_id) if notification_id is not None else None
        if name is not None and self.refusals.holds(*name, queued.record_id):
            return
        self._dead_letter(
            queued,
            body,
            failure,
            bot=bot,
            notification_id=notification_id,
            template=template,
            phase=phase,
        )
        if name is not None:
            self.refusals.keep(*name, refusal)

    def _dead_letter(
        self,
        queued: QueuedRequest,
        body: str,
        failure: Rejected,
        *,
        bot: str | None,
        notification_id: str | None,
        template: str | None,
        phase: str,
        generation: int | None = None,
        attempts: int = 0,
    ) -> None:
        by_fields = isinstance(failure, InvalidRequest) or failure.fields
        details = FailureDetails(
            detail=failure.detail,
            code=failure.code,
            template=template,
            phase=phase,
            attempts=attempts,
            possibly_sent=failure.reason is Reason.OUTCOME_UNKNOWN,
            redrives=queued.redrives,
            fields=failure.fields if by_fields else None,
        )
        self.dead_letters.put(
            body,
            failure.reason,
            details,
            bot=bot,
            notification_id=notification_id,
            generation=generation,
        )


def expired(valid_until: float, what: str) -> Rejected:
    """Return why a request is not sent that was valid until then, in epoch seconds."""
    moment = datetime.fromtimestamp(valid_until, UTC).isoformat()
    return Rejected(Reason.EXPIRED, f"valid until {moment}, {what}")


def _dead(notification: Notification, failure: Rejected) -> Result:
    return logged(notification, Outcome.DEAD_LETTER, reason=failure.reason, detail=failure.detail)
