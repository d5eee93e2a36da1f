"""Dead letters: what lies there, which of it to put back, and putting it back.

A letter is put on the requests queue first and taken off its own then: whoever dies in between
leaves both, and the letter's `generation` makes the second sending of it a duplicate. So a redrive
may be repeated, also beside another one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
)

from notifier.failures import Reason
from notifier.records import DeadLetter
from notifier.request import NotificationRequest, Unusable, ledger_key, parse

logger = logging.getLogger(__name__)

# What SQS itself has moved to the dead letters carries no reason of ours.
RECEIVES_EXHAUSTED = "receives_exhausted"
REASONS = (*(reason.value for reason in Reason), RECEIVES_EXHAUSTED)

# A letter that was looked at is hidden for longer than a run takes, so that a run sees it once; if
# the run dies, the letter is back after that.
HIDDEN_SECONDS = 120
# What one run could not get through, the next one does: the letters seen stay hidden until then.
PUT_ASIDE_SECONDS = 300
# What a run still needs at its end: for a batch under way, and to give back each letter.
ENDING_SECONDS = 10.0
GIVING_BACK_SECONDS = 0.01
# An answer of Lambda holds 6 MB.
MOST_LETTERS_TOLD = 1000


class DeadLetters(Protocol):
    """The queue of the dead letters."""

    def hidden(self) -> int: ...
    def receive(self, hidden_seconds: int) -> list[DeadLetter]: ...
    def hide(self, handles: Sequence[str], seconds: int) -> None: ...
    def delete(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]: ...


class Requests(Protocol):
    """The queue that requests come from. Gives the letters that it took."""

    def redrive(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]: ...


class Clock(Protocol):
    """Tells the time, in epoch seconds."""

    def now(self) -> float: ...


# --- what an operator can ask for -----------------------------------------------------------------


class OrderError(Exception):
    """What was asked for cannot be understood. The text names the field."""


def _known_reason(reason: str) -> str:
    if reason not in REASONS:
        raise ValueError(f"must be one of {', '.join(REASONS)}")
    return reason


class Selection(BaseModel):
    """Which letters; what is left out chooses all.

    Attributes:
        reasons: any of these.
        bot: of this bot.
        template: with this template.
        ids: of the notifications with any of these ids.
        minimum_age_seconds: that failed so long ago, or earlier.
        maximum_age_seconds: that failed so long ago, or later.
        each: tell each letter, not only how many there are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reasons: Annotated[list[Annotated[str, AfterValidator(_known_reason)]], Field(min_length=1)] = (
        list(REASONS)
    )
    bot: str | None = None
    template: str | None = None
    ids: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None
    minimum_age_seconds: Annotated[int, Field(ge=0)] | None = None
    maximum_age_seconds: Annotated[int, Field(ge=0)] | None = None
    each: bool = False


class ListOrder(Selection):
    """Tell what lies there."""

    action: Literal["list"]


class RedriveOrder(Selection):
    """Put back.

    Attributes:
        limit: at most so many.
        dry_run: only tell what would be put back.
        force: also what cannot succeed.
    """

    action: Literal["redrive"]
    limit: Annotated[int, Field(ge=1)] | None = None
    dry_run: bool = True
    force: bool = False


type Order = ListOrder | RedriveOrder
_ORDER: TypeAdapter[Order] = TypeAdapter(
    Annotated[ListOrder | RedriveOrder, Discriminator("action")]
)


def read_order(event: object) -> Order:
    """Understand what an operator asks for.

    Raises:
        OrderError: names the first field that is wrong.
    """
    try:
        return _ORDER.validate_python(event)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        path = "".join(
            f"[{step}]" if isinstance(step, int) else step for step in problem["loc"][1:]
        )
        match problem["type"]:
            case "union_tag_not_found" | "union_tag_invalid":
                sentence = "action: must be list or redrive"
            case "extra_forbidden":
                sentence = f"{path}: unknown field"
            case "value_error":
                sentence = f"{path}: {problem['ctx']['error']}"
            case _:
                told = problem["msg"].replace("Input should be", "must be")
                sentence = f"{path or 'the event'}: {told}"
        raise OrderError(sentence) from None


# --- what became of it ----------------------------------------------------------------------------


class Fate(StrEnum):
    """What a run does with a letter that was chosen."""

    LISTED = "listed"
    WOULD_GO = "would_go"
    REDRIVEN = "redriven"
    REFUSED = "refused"
    NOT_TAKEN = "not_taken"  # SQS did not take it; the log says why


@dataclass(frozen=True, slots=True)
class Chosen:
    """A letter that was chosen, with what its body tells, too."""

    letter: DeadLetter
    reason: str
    template: str | None
    fate: Fate = Fate.LISTED
    why: str | None = None


@dataclass(slots=True)
class _Group:
    count: int = 0
    oldest: float = float("inf")
    newest: float = 0.0


@dataclass(slots=True)
class Report:
    """What a run has seen and done.

    Attributes:
        looked_at: how many letters, chosen or not.
        hidden: about how many somebody else was looking at meanwhile.
        more: whether time ran out before the end; run it again.
    """

    hidden: int
    each: bool
    looked_at: int = 0
    more: bool = False
    fates: dict[Fate, int] = field(default_factory=dict)
    groups: dict[tuple[Fate, str, str | None, str | None, str | None], _Group] = field(
        default_factory=dict
    )
    letters: list[dict[str, Any]] = field(default_factory=list)
    not_told: int = 0

    def add(self, chosen: Chosen) -> None:
        """Take in what became of a letter."""
        self.fates[chosen.fate] = self.fates.get(chosen.fate, 0) + 1
        letter = chosen.letter
        group = self.groups.setdefault(
            (chosen.fate, chosen.reason, letter.bot, chosen.template, chosen.why), _Group()
        )
        group.count += 1
        group.oldest = min(group.oldest, letter.failed_at)
        group.newest = max(group.newest, letter.failed_at)
        if not self.each:
            return
        if len(self.letters) == MOST_LETTERS_TOLD:
            self.not_told += 1
            return
        self.letters.append(
            {
                "fate": chosen.fate,
                "why": chosen.why,
                "id": letter.notification_id,
                "bot": letter.bot,
                "template": chosen.template,
                "reason": chosen.reason,
                "code": letter.failure.get("code"),
                "detail": letter.failure.get("detail"),
                "failed_at": _iso(letter.failed_at),
                "generation": letter.generation,
                "redrives": letter.redrives,
            }
        )

    def as_json(self) -> dict[str, Any]:
        """Write it for whoever asked; the largest group first."""
        told: dict[str, Any] = {
            "looked_at": self.looked_at,
            "hidden": self.hidden,
            "more": self.more,
            "groups": [
                {
                    "fate": fate,
                    "reason": reason,
                    "bot": bot,
                    "template": template,
                    "why": why,
                    "count": group.count,
                    "oldest": _iso(group.oldest),
                    "newest": _iso(group.newest),
                }
                for (fate, reason, bot, template, why), group in sorted(
                    self.groups.items(), key=lambda item: (item[0][0], -item[1].count)
                )
            ],
        }
        if self.each:
            told |= {"letters": self.letters, "not_told": self.not_told}
        return told


# --- the use case ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Redrive:
    """Lists dead letters, and puts them back."""

    dead_letters: DeadLetters
    requests: Requests
    clock: Clock

    def run(self, order: Order, deadline: float) -> Report:
        """Look at every letter that can be seen, once, and do with it what was asked for.

        What fails while the run is under way is left to the next one: a letter that is put back
        and fails again at once would go round and round.

        Args:
            order: what was asked for.
            deadline: when the sandbox will be stopped, in epoch seconds.
        """
        began = self.clock.now()
        report = Report(self.dead_letters.hidden(), order.each)
        # All letters by what SQS wants back; for those that are still on the queue.
        seen: dict[str, str] = {}
        done: set[str] = set()
        try:
            while _left(order, report) > 0:
                ending = ENDING_SECONDS + GIVING_BACK_SECONDS * len(seen)
                if self.clock.now() + ending > deadline:
                    report.more = True
                    break
                received = self.dead_letters.receive(HIDDEN_SECONDS)
                # SQS may show a letter twice, although it is hidden.
                by_id = {letter.letter_id: letter for letter in received}
                new = [letter for letter_id, letter in by_id.items() if letter_id not in seen]
                seen |= {letter.letter_id: letter.receipt_handle for letter in received}
                if not new:
                    break
                old = [letter for letter in new if letter.failed_at <= began]
                report.looked_at += len(old)
                done |= self._handle(old, order, report)
        finally:
            handles = [handle for letter_id, handle in seen.items() if letter_id not in done]
            self.dead_letters.hide(handles, PUT_ASIDE_SECONDS if report.more else 0)
        return report

    def _handle(self, letters: Sequence[DeadLetter], order: Order, report: Report) -> set[str]:
        """Do what was asked for with some letters; give the ids of those that are done."""
        now = self.clock.now()
        going: list[Chosen] = []
        for letter in letters:
            request, wrong = _read(letter)
            chosen = _chosen(letter, request)
            if not _matches(chosen, order, now):
                continue
            if isinstance(order, ListOrder):
                report.add(chosen)
                continue
            why = None if order.force else _hopeless(chosen, request, wrong, now)
            if why is not None:
                report.add(replace(chosen, fate=Fate.REFUSED, why=why))
            elif len(going) < _left(order, report):
                going.append(chosen)
        if not isinstance(order, RedriveOrder) or not going:
            return set()
        if order.dry_run:
            for chosen in going:
                report.add(replace(chosen, fate=Fate.WOULD_GO))
            return set()
        return self._put_back(going, report)

    def _put_back(self, going: Sequence[Chosen], report: Report) -> set[str]:
        """In this order: a letter that is on both queues does no harm, one on neither is lost."""
        taken = self.requests.redrive([chosen.letter for chosen in going])
        done = {letter.letter_id for letter in taken}
        for chosen in going:
            fate = Fate.REDRIVEN if chosen.letter.letter_id in done else Fate.NOT_TAKEN
            report.add(replace(chosen, fate=fate))
            _log(chosen, fate)
        self.dead_letters.delete(taken)  # one that stays there does no harm
        return done


def _left(order: Order, report: Report) -> float:
    """Tell how many letters may still go."""
    if isinstance(order, ListOrder) or order.limit is None:
        return float("inf")
    going = (Fate.WOULD_GO, Fate.REDRIVEN, Fate.NOT_TAKEN)
    return order.limit - sum(report.fates.get(fate, 0) for fate in going)


def _read(letter: DeadLetter) -> tuple[NotificationRequest | None, Unusable | None]:
    try:
        return parse(letter.body).request, None
    except Unusable as wrong:
        return None, wrong


def _chosen(letter: DeadLetter, request: NotificationRequest | None) -> Chosen:
    """Add to a letter what its body tells: those that SQS has moved say nothing else."""
    template = letter.failure.get("template")
    if request is not None:
        letter = replace(letter, bot=request.bot, notification_id=request.id)
        template = request.template.name
    return Chosen(letter, letter.reason or RECEIVES_EXHAUSTED, template)


def _matches(chosen: Chosen, order: Order, now: float) -> bool:
    letter = chosen.letter
    age = now - letter.failed_at
    return (
        chosen.reason in order.reasons
        and order.bot in {None, letter.bot}
        and order.template in {None, chosen.template}
        and (order.ids is None or letter.notification_id in order.ids)
        and (order.minimum_age_seconds is None or age >= order.minimum_age_seconds)
        and (order.maximum_age_seconds is None or age <= order.maximum_age_seconds)
    )


def _hopeless(
    chosen: Chosen, request: NotificationRequest | None, wrong: Unusable | None, now: float
) -> str | None:
    """Tell why a letter cannot succeed; None if it may."""
    if request is None or chosen.reason in {Reason.MALFORMED, Reason.INVALID}:
        return f"it is {wrong.reason if wrong else chosen.reason}: publish it anew, mended"
    if chosen.reason == Reason.ID_CONFLICT:
        return "its id belongs to another content: give it an id of its own"
    passed = request.valid_until is not None and request.valid_until.timestamp() <= now
    if passed or chosen.reason == Reason.EXPIRED:
        return "it has expired"
    return None


def _log(chosen: Chosen, fate: Fate) -> None:
    letter = chosen.letter
    facts: dict[str, object] = {"reason": chosen.reason, "generation": letter.generation}
    if letter.bot and letter.notification_id:
        facts |= {
            "notification_id": letter.notification_id,
            "bot": letter.bot,
            "key": ledger_key(letter.bot, letter.notification_id),
        }
    logger.info(fate.value, extra=facts)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
