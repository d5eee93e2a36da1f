"""The queues and the event bus in memory.

They are lists in a fixed order. The simulated queues of `simulated_aws` deliver in any order and
need a simulation to wait in, so tests of single batches do without them; `DeadLettersQueue` and
`RequestsQueue` pass the same suite as these (`tests/integration/aws/test_queues.py`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from notifier.aws.queues import _short
from notifier.domain.dead_letters import DeadLetter, FailureDetails
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import LedgerEntry, LedgerWrite
from notifier.domain.notification import QueuedRequest
from notifier.domain.status_events import Publication, StatusEvent


@dataclass(frozen=True)
class Letter:
    """A dead letter."""

    body: str
    reason: Reason
    failure: dict[str, Any]
    bot: str | None
    notification_id: str | None
    generation: int | None


@dataclass
class _Kept:
    """A dead letter on its queue; its content is None if SQS itself has moved the message there."""

    letter_id: str
    body: str
    letter: Letter | None
    at: float
    visible_at: float = 0.0
    receive_count: int = 0

    @property
    def handle(self) -> str:
        return f"{self.letter_id}/{self.receive_count}"


class FakeDeadLetters:
    """See `notifier.aws.queues`. `before_put` is called first, and may raise."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self.before_put: Callable[[], None] = lambda: None
        self._kept: dict[str, _Kept] = {}

    @property
    def letters(self) -> list[Letter]:
        return [kept.letter for kept in self._kept.values() if kept.letter]

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
        self.before_put()
        written = json.loads(_short(failure))
        letter = Letter(body, reason, written, bot, notification_id, generation)
        self._keep(body, letter)

    def moved(self, body: str) -> None:
        """Do what SQS does with a message that was received too often."""
        self._keep(body, None)

    def _keep(self, body: str, letter: Letter | None) -> None:
        letter_id = str(uuid4())
        self._kept[letter_id] = _Kept(letter_id, body, letter, self.now())

    def depth(self) -> tuple[int, int]:
        hidden = sum(kept.visible_at > self.now() for kept in self._kept.values())
        return len(self._kept) - hidden, hidden

    def receive(self, visibility_seconds: int) -> list[DeadLetter]:
        visible = [kept for kept in self._kept.values() if kept.visible_at <= self.now()][:10]
        for kept in visible:
            kept.visible_at = self.now() + visibility_seconds
            kept.receive_count += 1
        return [_dead_letter(kept) for kept in visible]

    def change_visibility(self, handles: Iterable[str], seconds: int) -> None:
        for kept in self._handled(handles):
            kept.visible_at = self.now() + seconds

    def delete(self, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        gone = {kept.letter_id for kept in self._handled(each.receipt_handle for each in letters)}
        for letter_id in gone:
            del self._kept[letter_id]
        return [letter for letter in letters if letter.letter_id in gone]

    def _handled(self, handles: Iterable[str]) -> list[_Kept]:
        by_handle = {kept.handle: kept for kept in self._kept.values()}
        return [by_handle[handle] for handle in handles if handle in by_handle]


def _dead_letter(kept: _Kept) -> DeadLetter:
    if kept.letter is None:
        return DeadLetter(kept.letter_id, kept.handle, kept.body, None, kept.at)
    return DeadLetter(
        kept.letter_id,
        kept.handle,
        kept.body,
        kept.letter.reason.value,
        kept.at,
        bot=kept.letter.bot,
        notification_id=kept.letter.notification_id,
        generation=kept.letter.generation,
        redrives=kept.letter.failure.get("redrives", 0),
        failure=kept.letter.failure,
    )


class FakeRequests:
    """The requests queue, as far as requests are enqueued again.

    Attributes:
        woken: next generations, as they are on the queue.
        redriven: the requests that an operator redrove, as they are on the queue.
        refuses: whether this queue refuses a body.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self.woken: list[QueuedRequest] = []
        self.redriven: list[QueuedRequest] = []
        self.refuses: Callable[[str], bool] = lambda _: False

    def redrive(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        taken = [letter for letter in letters if not self.refuses(letter.body)]
        self.redriven += [
            QueuedRequest(
                str(uuid4()),
                "receipt",
                letter.body,
                self.now(),
                generation=letter.generation,
                redrives=letter.redrives + 1,
            )
            for letter in taken
        ]
        return taken

    def wake(self, entries: Sequence[LedgerEntry]) -> list[LedgerEntry]:
        taken = [entry for entry in entries if not self.refuses(entry.body)]
        self.woken += [
            QueuedRequest(
                str(uuid4()),
                "receipt",
                entry.body,
                self.now(),
                generation=entry.generation,
                redrives=entry.redrives,
                waited_since=entry.waits_since,
            )
            for entry in taken
        ]
        return taken


class FakeStatusEvents:
    """The event bus; accepts every event unless `outcome` says otherwise.

    Attributes:
        published: the accepted events.
        outcome: the answer to an event.
        calls: the events of each call.
    """

    def __init__(self) -> None:
        self.published: list[StatusEvent] = []
        self.calls: list[list[StatusEvent]] = []
        self.outcome: Callable[[StatusEvent], Publication] = lambda _: Publication.TAKEN

    def put(self, events: Sequence[StatusEvent]) -> list[Publication]:
        self.calls.append(list(events))
        outcomes = [self.outcome(event) for event in events]
        taken = zip(events, outcomes, strict=True)
        self.published += [event for event, outcome in taken if outcome is Publication.TAKEN]
        return outcomes


class FakeUnpublished:
    """The queue of unpublished keys; it accepts a key unless it is `down`."""

    def __init__(self) -> None:
        self.down = False
        self.kept: list[tuple[str, str, str]] = []

    def put(self, write: LedgerWrite, problem: str) -> bool:
        if not self.down:
            self.kept.append((write.key, write.sequence_number, problem))
        return not self.down
