"""Finds what is held about one phone number, and erases it.

A run reads the whole ledger, page by page, then the dead letters. Every step may be repeated, so a
run that ends half way is simply run again. What is erased leaves a
tombstone without anything personal, so that a copy of its request that is still on a queue is not
sent; a mark does the same for requests that no function has taken up yet.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from notifier.contract.parse import read_kept
from notifier.contract.phone import normalise
from notifier.domain.clock import WallClock
from notifier.domain.dead_letters import DeadLetter
from notifier.domain.ledger_entries import LedgerPage

logger = logging.getLogger(__name__)

# Where a run goes on that has read the whole ledger.
LETTERS = "letters"
# A page of the ledger takes less, with what has to be erased; so does a batch of dead letters.
STEP_SECONDS = 10.0
# A dead letter stays in flight for longer than a run takes, so that a run receives it once.
VISIBILITY_SECONDS = 120
# The next run continues with the rest: the dead letters seen stay in flight until then.
PUT_ASIDE_SECONDS = 900


class Ledger(Protocol):
    """Of the ledger, what forgetting needs."""

    def matches(self, recipient: str, after: str | None) -> LedgerPage: ...
    def erase(self, key: str) -> None: ...


class Identities(Protocol):
    """Of the identities, what forgetting needs."""

    def holds(self, recipient: tuple[str, str]) -> bool: ...
    def erase(self, recipient: tuple[str, str]) -> None: ...
    def mark_forgotten(self, phone: str) -> None: ...


class DeadLetters(Protocol):
    """A queue of dead letters."""

    def receive(self, visibility_seconds: int) -> list[DeadLetter]: ...
    def change_visibility(self, handles: Sequence[str], seconds: int) -> None: ...
    def delete(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]: ...


class OrderError(Exception):
    """The event cannot be understood. The text names the field, and holds no number."""


class Order(BaseModel):
    """What an operator asks for.

    Attributes:
        to: the number, as producers write it.
        dry_run: only report what would be erased.
        continue_from: what the answer before said.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    to: Annotated[str, AfterValidator(normalise)]
    dry_run: bool = True
    continue_from: Annotated[str, Field(pattern=rf"^({LETTERS}|[0-9a-f-]{{36}})$")] | None = None


def read_order(event: object) -> Order:
    """Read an operator's order.

    Raises:
        OrderError: names the first field that is wrong.
    """
    try:
        return Order.model_validate(event)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(map(str, problem["loc"])) or "the event"
        match problem["type"]:
            case "extra_forbidden":
                problem_text = "unknown field"
            case "value_error":
                problem_text = str(problem["ctx"]["error"])
            case _:
                problem_text = problem["msg"].replace("Input should be", "must be")
        raise OrderError(f"{path}: {problem_text}") from None


type What = Literal["notifications", "identities", "dead_letters"]


@dataclass(slots=True)
class Report:
    """What a run has found and erased.

    Attributes:
        scanned: how many notifications and dead letters.
        possible: delivered notifications to a number with the same last four digits. Nothing more
            of the number is left of them, so whether they are this person's cannot be known.
        continue_from: where the next run has to go on; None if everything was scanned.
    """

    scanned: int = 0
    possible: int = 0
    found: dict[What, int] = field(
        default_factory=lambda: {"notifications": 0, "identities": 0, "dead_letters": 0}
    )
    erased: dict[What, int] = field(
        default_factory=lambda: {"notifications": 0, "identities": 0, "dead_letters": 0}
    )
    continue_from: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "scanned": self.scanned,
            "possible": self.possible,
            "found": self.found,
            "erased": self.erased,
            "continue_from": self.continue_from,
        }


@dataclass(frozen=True, slots=True)
class Forgetting:
    """Finds and erases what is held about one number."""

    ledger: Ledger
    identities: Identities
    queues: Sequence[DeadLetters]
    clock: WallClock

    def run(self, order: Order, deadline: float) -> Report:
        """Go as far as time allows.

        Args:
            order: what was asked for.
            deadline: when the sandbox will be stopped, in epoch seconds.
        """
        report = Report(continue_from=order.continue_from)
        if order.continue_from is None and not order.dry_run:
            # First of all, so that whatever a function takes up from here on is not sent.
            self.identities.mark_forgotten(order.to)
        if order.continue_from != LETTERS:
            self._look_through_ledger(order, report, deadline)
        if report.continue_from == LETTERS:
            self._look_through_letters(order, report, deadline)
        return report

    def _look_through_ledger(self, order: Order, report: Report, deadline: float) -> None:
        bots: set[str] = set()
        while True:
            page = self.ledger.matches(order.to, report.continue_from)
            report.scanned += page.scanned
            for held in page.matches:
                recipient = (held.bot, order.to)
                # Before the notification, which leads here.
                if held.bot not in bots:
                    bots.add(held.bot)
                    self._identity(recipient, order, report)
                if not held.body:
                    report.possible += 1
                elif _is_about(held.body, order.to):
                    report.found["notifications"] += 1
                    if not order.dry_run:
                        self.ledger.erase(held.key)
                        report.erased["notifications"] += 1
                        logger.info("forgotten", extra={"key": held.key})
                        # And after it: it may have been looked up a moment ago.
                        self._identity(recipient, order, report)
            report.continue_from = page.last or LETTERS
            if page.last is None or self.clock.now() + STEP_SECONDS > deadline:
                return

    def _identity(self, recipient: tuple[str, str], order: Order, report: Report) -> None:
        """Erase what a bot knows of the number. An identity never outlives its notification."""
        if not self.identities.holds(recipient):
            return
        report.found["identities"] += 1
        if not order.dry_run:
            self.identities.erase(recipient)
            report.erased["identities"] += 1

    def _look_through_letters(self, order: Order, report: Report, deadline: float) -> None:
        for queue in self.queues:
            if not self._look_through(queue, order, report, deadline):
                return
        report.continue_from = None

    def _look_through(
        self, queue: DeadLetters, order: Order, report: Report, deadline: float
    ) -> bool:
        """Look at every visible dead letter once; return whether time was enough."""
        seen: dict[str, str] = {}
        gone: set[str] = set()
        finished = False
        # Making dead letters visible again takes as many calls as receiving them.
        last_look = (self.clock.now() + deadline - STEP_SECONDS) / 2
        try:
            while self.clock.now() < last_look:
                received = queue.receive(VISIBILITY_SECONDS)
                new = [letter for letter in received if letter.letter_id not in seen]
                seen |= {letter.letter_id: letter.receipt_handle for letter in received}
                if not new:
                    finished = True
                    break
                report.scanned += len(new)
                found = [letter for letter in new if _is_about(letter.body, order.to)]
                report.found["dead_letters"] += len(found)
                if found and not order.dry_run:
                    deleted = queue.delete(found)
                    gone |= {letter.letter_id for letter in deleted}
                    report.erased["dead_letters"] += len(deleted)
        finally:
            kept = [handle for letter_id, handle in seen.items() if letter_id not in gone]
            queue.change_visibility(kept, 0 if finished else PUT_ASIDE_SECONDS)
        return finished


def _is_about(body: str, number: str) -> bool:
    """Return whether a request goes to a number, or an invalid one holds it."""
    kept = read_kept(body)
    if kept is not None:
        return kept.request.to == number
    return number.removeprefix("+") in re.sub(r"[^0-9]", "", body)
