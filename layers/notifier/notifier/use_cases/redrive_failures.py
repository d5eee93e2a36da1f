"""Dead letters: what lies there, which of it to put back, and putting it back.

A letter is put on the requests queue first and taken off its own then: a run that dies in between
leaves both, and the letter's `generation` makes the second sending of it a duplicate. So a redrive
may be repeated, also beside another one.

A run looks at the whole queue on several threads. What it has seen stays hidden, for minutes at a
time and renewed while the run lasts, so that SQS shows each letter once; at the end it is given
back. After a run that was killed, SQS shows its letters again by itself.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from threading import Lock
from typing import Any, Protocol

from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from notifier.contract.request import NotificationRequest
from notifier.domain.clock import WallClock
from notifier.domain.dead_letters import DeadLetter
from notifier.domain.failures import Reason

# What SQS itself has moved to the dead letters carries no reason of ours.
RECEIVES_EXHAUSTED = "receives_exhausted"
REASONS = (*(reason.value for reason in Reason), RECEIVES_EXHAUSTED)

# So many threads work on one run.
MAX_THREADS = 32
# For so long a letter is hidden at a time, and cannot be seen after a run that was killed.
VISIBILITY_SECONDS = 300
# Hidden again when so little is left of it: a hundred thousand take a minute.
RENEWED_SECONDS = 120
# SQS shows no more while 120,000 are hidden, and does not say so to a long poll.
MAX_HELD = 100_000


class DeadLetters(Protocol):
    """The queue of the dead letters."""

    def depth(self) -> tuple[int, int]: ...
    def receive(self, visibility_seconds: int) -> list[DeadLetter]: ...
    def change_visibility(self, handles: Sequence[str], seconds: int) -> None: ...
    def delete(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]: ...


class Requests(Protocol):
    """The queue that requests come from. Gives the letters that it took."""

    def redrive(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]: ...


# --- what an operator can ask for -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOrder:
    """List letters; what is left out chooses all.

    Attributes:
        reasons: any of these.
        bot: of this bot.
        template: with this template.
        ids: of the notifications with any of these ids.
        minimum_age_seconds: that failed so long ago, or earlier.
        maximum_age_seconds: that failed so long ago, or later.
        each: report each letter, not only how many there are.
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
    """Put letters back.

    Attributes:
        limit: at most so many.
        dry_run: only report what would be put back.
        force: also what cannot succeed.
    """

    limit: int | None = None
    dry_run: bool = True
    force: bool = False


# --- what became of it ----------------------------------------------------------------------------


class RedriveOutcome(StrEnum):
    """What a run does with a letter that was chosen."""

    LISTED = "listed"
    WOULD_REDRIVE = "would_redrive"
    REDRIVEN = "redriven"
    REFUSED = "refused"
    NOT_TAKEN = "not_taken"  # SQS did not take it; a log line says why


@dataclass(frozen=True, slots=True)
class Chosen:
    """A letter that was chosen, with what its body tells, too."""

    letter: DeadLetter
    reason: str
    template: str | None
    fate: RedriveOutcome = RedriveOutcome.LISTED
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
        scanned: how many letters, chosen or not.
        hidden: about how many were in flight elsewhere meanwhile.
        more: whether there are more than SQS can hide at a time; the rest was not looked at.
    """

    hidden: int
    each: bool
    scanned: int = 0
    more: bool = False
    fates: dict[RedriveOutcome, int] = field(default_factory=dict)
    groups: dict[tuple[RedriveOutcome, str, str | None, str | None, str | None], _Group] = field(
        default_factory=dict
    )
    letters: list[dict[str, Any]] = field(default_factory=list)

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
        """Return it as JSON; the largest group first."""
        told: dict[str, Any] = {
            "scanned": self.scanned,
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
            told["letters"] = sorted(self.letters, key=lambda letter: str(letter["failed_at"]))
        return told


# --- the use case ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """What the threads of one run share.

    Attributes:
        began: what failed later is left to the next run.
        depth: how many letters there were at the start, hidden or not.
        lock: held for every change of the following, and never during a call.
        seen: the ids of all letters that SQS showed.
        handles: by id, what SQS wants back, of those that are still on the queue.
        hidden: ids of letters that were hidden together, with the time when SQS shows them again.
        taken: how many letters were chosen to go.
        stopped: whether the threads have to end.
    """

    order: ListOrder
    began: float
    depth: int
    report: Report
    lock: Lock = field(default_factory=Lock)
    seen: set[str] = field(default_factory=set)
    handles: dict[str, str] = field(default_factory=dict)
    hidden: deque[tuple[float, list[str]]] = field(default_factory=deque)
    taken: int = 0
    stopped: bool = False

    def see(self, received: Sequence[DeadLetter], until: float) -> list[DeadLetter]:
        """Note what SQS showed; return what is new and failed before the run began."""
        # SQS may show a letter twice, although it is hidden.
        new = {each.letter_id: each for each in received if each.letter_id not in self.seen}
        for letter in received:
            if letter.letter_id in new or letter.letter_id in self.handles:
                self.handles[letter.letter_id] = letter.receipt_handle
        self.seen |= new.keys()
        if new:
            self.hidden.append((until, list(new)))
        old = [letter for letter in new.values() if letter.failed_at <= self.began]
        self.report.scanned += len(old)
        self.report.more |= len(self.handles) > MAX_HELD
        return old

    def due(self, now: float) -> list[str]:
        """Return the ids that have to be hidden again by now; none if none have."""
        if self.hidden and self.hidden[0][0] - now < RENEWED_SECONDS:
            return self.hidden.popleft()[1]
        return []

    def left(self) -> float:
        """Return how many letters may still go."""
        if not isinstance(self.order, RedriveOrder) or self.order.limit is None:
            return float("inf")
        return self.order.limit - self.taken

    def over(self) -> bool:
        """Return whether a thread has to end, though SQS may show more.

        The depth is a bound: a letter that SQS itself moves here meanwhile seems to be an old one.
        """
        enough = self.report.scanned >= self.depth or self.left() <= 0
        return enough or self.report.more or self.stopped


@dataclass(frozen=True, slots=True)
class Redrive:
    """Lists dead letters, and puts them back.

    Attributes:
        threads: at least MAX_THREADS of them.
        progress: called with the letters looked at so far, and with about how many there are.
    """

    dead_letters: DeadLetters
    requests: Requests
    clock: WallClock
    threads: Executor
    progress: Callable[[int, int], None]

    def run(self, order: ListOrder) -> Report:
        """Look at every letter that can be seen, once, and do with it what was asked for.

        What fails while the run is under way is left to the next one: a letter that is put back
        and fails again at once would go round and round.
        """
        visible, hidden = self.dead_letters.depth()
        began = self.clock.now()
        run = _Run(order, began, visible + hidden, Report(hidden, order.each))
        looking = [self.threads.submit(self._look, run) for _ in range(MAX_THREADS)]
        try:
            for thread in looking:
                thread.result()
        finally:
            run.stopped = True
            for thread in looking:
                thread.exception()
            handles = list(run.handles.values())
            giving_back = [
                self.threads.submit(
                    self.dead_letters.change_visibility, handles[number::MAX_THREADS], 0
                )
                for number in range(MAX_THREADS)
            ]
            for thread in giving_back:
                thread.result()
        return run.report

    def _look(self, run: _Run) -> None:
        """Receive letters until there is nothing new; one thread of a run."""
        while not run.stopped:
            self._hide_again(run)
            until = self.clock.now() + VISIBILITY_SECONDS
            received = self.dead_letters.receive(VISIBILITY_SECONDS)
            with run.lock:
                new = run.see(received, until)
                going = self._choose(new, run)
                self.progress(run.report.scanned, run.depth)
            if going:
                self._put_back(going, run)
            with run.lock:
                if not new or run.over():
                    return

    def _hide_again(self, run: _Run) -> None:
        while True:
            now = self.clock.now()
            with run.lock:
                due = run.due(now)
                handles = [run.handles[one] for one in due if one in run.handles]
            if not due:
                return
            self.dead_letters.change_visibility(handles, VISIBILITY_SECONDS)
            with run.lock:
                run.hidden.append((now + VISIBILITY_SECONDS, due))

    def _choose(self, letters: Sequence[DeadLetter], run: _Run) -> list[Chosen]:
        """Report on some letters; return those that have to be put back."""
        now = self.clock.now()
        order, report = run.order, run.report
        going: list[Chosen] = []
        for letter in letters:
            request, wrong = _read(letter)
            chosen = _chosen(letter, request)
            if not _matches(chosen, order, now):
                continue
            if not isinstance(order, RedriveOrder):
                report.add(chosen)
                continue
            why = None if order.force else _hopeless(chosen, request, wrong, now)
            if why is not None:
                report.add(replace(chosen, fate=RedriveOutcome.REFUSED, why=why))
            elif run.left() > 0:
                run.taken += 1
                if order.dry_run:
                    report.add(replace(chosen, fate=RedriveOutcome.WOULD_REDRIVE))
                else:
                    going.append(chosen)
        return going

    def _put_back(self, going: Sequence[Chosen], run: _Run) -> None:
        """In this order: a letter that is on both queues does no harm, one on neither is lost."""
        taken = self.requests.redrive([chosen.letter for chosen in going])
        done = {letter.letter_id for letter in taken}
        self.dead_letters.delete(taken)  # one that stays there does no harm
        with run.lock:
            for chosen in going:
                fate = (
                    RedriveOutcome.REDRIVEN
                    if chosen.letter.letter_id in done
                    else RedriveOutcome.NOT_TAKEN
                )
                run.report.add(replace(chosen, fate=fate))
            for letter_id in done:
                run.handles.pop(letter_id, None)


def _read(letter: DeadLetter) -> tuple[NotificationRequest | None, InvalidRequest | None]:
    try:
        return parse(letter.body).request, None
    except InvalidRequest as wrong:
        return None, wrong


def _chosen(letter: DeadLetter, request: NotificationRequest | None) -> Chosen:
    """Add to a letter what its body tells: those that SQS has moved say nothing else."""
    template = letter.failure.get("template")
    if request is not None:
        letter = replace(letter, bot=request.bot, notification_id=request.id)
        template = request.template.name
    return Chosen(letter, letter.reason or RECEIVES_EXHAUSTED, template)


def _matches(chosen: Chosen, order: ListOrder, now: float) -> bool:
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
    chosen: Chosen, request: NotificationRequest | None, wrong: InvalidRequest | None, now: float
) -> str | None:
    """Return why a letter cannot succeed; None if it may."""
    if request is None or chosen.reason in {Reason.MALFORMED, Reason.INVALID}:
        return f"it is {wrong.reason if wrong else chosen.reason}: publish it anew, fixed"
    if chosen.reason == Reason.ID_CONFLICT:
        return "its id belongs to another content: give it an id of its own"
    passed = request.valid_until is not None and request.valid_until.timestamp() <= now
    if passed or chosen.reason == Reason.EXPIRED:
        return "it has expired"
    return None


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
