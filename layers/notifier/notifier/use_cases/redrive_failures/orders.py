"""What an operator can ask for, and which dead letters that selects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from notifier.contract.request import NotificationRequest
from notifier.contract.template import CODE_REMOVED
from notifier.domain.dead_letters import DeadLetter
from notifier.domain.failures import Reason

# SQS itself has moved it: it carries no reason of ours.
RECEIVES_EXHAUSTED = "receives_exhausted"
REASONS = (*(reason.value for reason in Reason), RECEIVES_EXHAUSTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOrder:
    """List dead letters; a filter that is left out selects all.

    Attributes:
        reasons: with any of these reasons.
        bot: of this bot.
        template: with this template.
        ids: of the notifications with any of these ids.
        minimum_age_seconds: that failed so long ago, or earlier.
        maximum_age_seconds: that failed so long ago, or later.
        each: report each dead letter, not only how many there are.
    """

    reasons: Sequence[str] = REASONS
    bot: str | None = None
    template: str | None = None
    ids: Sequence[str] | None = None
    minimum_age_seconds: int | None = None
    maximum_age_seconds: int | None = None
    each: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RedriveOrder(ListOrder):
    """Put dead letters back.

    Attributes:
        limit: at most so many.
        dry_run: only report what would be put back.
        force: also what cannot succeed.
    """

    limit: int | None = None
    dry_run: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A dead letter with what its body says.

    Attributes:
        request: its request; None if it is invalid.
        problem: why it is invalid; None if it is valid.
    """

    dead_letter: DeadLetter
    reason: str
    template: str | None
    request: NotificationRequest | None
    problem: InvalidRequest | None


def read(dead_letter: DeadLetter) -> Candidate:
    """Add to a dead letter what its body says: those that SQS moved say nothing else."""
    request, problem = _request(dead_letter.body)
    template = dead_letter.failure.get("template")
    if request is not None:
        dead_letter = replace(dead_letter, bot=request.bot, notification_id=request.id)
        template = request.template.name
    return Candidate(
        dead_letter, dead_letter.reason or RECEIVES_EXHAUSTED, template, request, problem
    )


def _request(body: str) -> tuple[NotificationRequest | None, InvalidRequest | None]:
    try:
        return parse(body).request, None
    except InvalidRequest as problem:
        return None, problem


def selects(order: ListOrder, candidate: Candidate, now: float) -> bool:
    """Return whether an order asks for a dead letter."""
    dead_letter = candidate.dead_letter
    age = now - dead_letter.failed_at
    return (
        candidate.reason in order.reasons
        and order.bot in {None, dead_letter.bot}
        and order.template in {None, candidate.template}
        and (order.ids is None or dead_letter.notification_id in order.ids)
        and (order.minimum_age_seconds is None or age >= order.minimum_age_seconds)
        and (order.maximum_age_seconds is None or age <= order.maximum_age_seconds)
    )


def hopeless(candidate: Candidate, now: float) -> str | None:
    """Return why a dead letter cannot succeed; None if it may."""
    request, problem = candidate.request, candidate.problem
    if problem is not None and any(error.problem == CODE_REMOVED for error in problem.fields):
        return "its one-time code is not kept: publish a new request, with a new id"
    if request is None or candidate.reason in {Reason.MALFORMED, Reason.INVALID}:
        return f"it is {problem.reason if problem else candidate.reason}: publish it anew, fixed"
    if candidate.reason == Reason.ID_CONFLICT:
        return "its id belongs to another content: give it an id of its own"
    passed = request.valid_until is not None and request.valid_until.timestamp() <= now
    if passed or candidate.reason == Reason.EXPIRED:
        return "it has expired"
    return None
