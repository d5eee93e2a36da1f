"""The run: it receives every dead letter once, and does with it what was ordered.

It works on several threads. What it has seen stays in flight, for minutes at a time and renewed
while the run lasts, so that SQS delivers each dead letter once; at the end it is made visible
again. After a run that was killed, that happens by itself.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

from notifier.domain.clock import WallClock
from notifier.domain.dead_letters import DeadLetter
from notifier.use_cases.redrive_failures.orders import (
    Candidate,
    ListOrder,
    RedriveOrder,
    hopeless,
    read,
    selects,
)
from notifier.use_cases.redrive_failures.report import RedriveOutcome, Report

# The threads of one run.
MAX_THREADS = 32
# For so long a dead letter is in flight at a time, and invisible after a run that was killed.
VISIBILITY_SECONDS = 300
# Its time in flight is renewed when so little is left: for a hundred thousand that takes a minute.
RENEWED_SECONDS = 120
# SQS delivers no more while 120,000 are in flight, and does not say so to a long poll.
MAX_HELD = 100_000


class DeadLetters(Protocol):
    """The queue of the dead letters. `delete` returns those that are gone."""

    def depth(self) -> tuple[int, int]: ...
    def receive(self, visibility_seconds: int) -> list[DeadLetter]: ...
    def change_visibility(self, handles: Sequence[str], seconds: int) -> None: ...
    def delete(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]: ...


class Requests(Protocol):
    """The queue that requests come from. `redrive` returns those that it took."""

    def redrive(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]: ...


@dataclass(slots=True)
class _Run:
    """What the threads of one run share.

    Attributes:
        began: what failed later is left to the next run.
        depth: how many dead letters there were at the start, visible or in flight.
        lock: held for every change of the following, and never during a call.
        seen: the ids of all dead letters that SQS delivered.
        handles: by id, SQS's receipt handle of those that are still on the queue.
        in_flight: ids that were received together, with the time when SQS delivers them again.
        taken: how many dead letters were selected to go.
        stopped: whether the threads have to end.
    """

    order: ListOrder
    began: float
    depth: int
    report: Report
    lock: Lock = field(default_factory=Lock)
    seen: set[str] = field(default_factory=set)
    handles: dict[str, str] = field(default_factory=dict)
    in_flight: deque[tuple[float, list[str]]] = field(default_factory=deque)
    taken: int = 0
    stopped: bool = False

    def see(self, received: Sequence[DeadLetter], until: float) -> list[DeadLetter]:
        """Record what SQS delivered; return what is new and failed before the run began."""
        # SQS may deliver a message twice, although it is in flight.
        new = {each.letter_id: each for each in received if each.letter_id not in self.seen}
        for dead_letter in received:
            if dead_letter.letter_id in new or dead_letter.letter_id in self.handles:
                self.handles[dead_letter.letter_id] = dead_letter.receipt_handle
        self.seen |= new.keys()
        if new:
            self.in_flight.append((until, list(new)))
        old = [dead_letter for dead_letter in new.values() if dead_letter.failed_at <= self.began]
        self.report.scanned += len(old)
        self.report.more |= len(self.handles) > MAX_HELD
        return old

    def due(self, now: float) -> list[str]:
        """Return ids whose time in flight has to be renewed by now; none if there are none."""
        if self.in_flight and self.in_flight[0][0] - now < RENEWED_SECONDS:
            return self.in_flight.popleft()[1]
        return []

    def left(self) -> float:
        """Return how many dead letters may still go."""
        if not isinstance(self.order, RedriveOrder) or self.order.limit is None:
            return float("inf")
        return self.order.limit - self.taken

    def over(self) -> bool:
        """Return whether a thread has to end, though SQS may deliver more.

        The depth is a bound: what SQS itself moves here meanwhile looks like an old dead letter.
        """
        enough = self.report.scanned >= self.depth or self.left() <= 0
        return enough or self.report.more or self.stopped


@dataclass(frozen=True, slots=True)
class Redrive:
    """Lists dead letters, and puts them back.

    Attributes:
        threads: at least MAX_THREADS of them.
        progress: called with the dead letters scanned so far, and with about how many there are.
    """

    dead_letters: DeadLetters
    requests: Requests
    clock: WallClock
    threads: Executor
    progress: Callable[[int, int], None]

    def run(self, order: ListOrder) -> Report:
        """Receive every visible dead letter once, and do with it what was ordered.

        What fails while the run is under way is left to the next one: a request that is put back
        and fails again at once would go round and round.
        """
        visible, in_flight = self.dead_letters.depth()
        began = self.clock.now()
        run = _Run(order, began, visible + in_flight, Report(in_flight, order.each))
        scanning = [self.threads.submit(self._scan, run) for _ in range(MAX_THREADS)]
        try:
            for thread in scanning:
                thread.result()
        finally:
            run.stopped = True
            for thread in scanning:
                thread.exception()
            handles = list(run.handles.values())
            releasing = [
                self.threads.submit(
                    self.dead_letters.change_visibility, handles[number::MAX_THREADS], 0
                )
                for number in range(MAX_THREADS)
            ]
            for thread in releasing:
                thread.result()
        return run.report

    def _scan(self, run: _Run) -> None:
        """Receive dead letters until there is nothing new; one thread of a run."""
        while not run.stopped:
            self._renew(run)
            until = self.clock.now() + VISIBILITY_SECONDS
            received = self.dead_letters.receive(VISIBILITY_SECONDS)
            with run.lock:
                new = run.see(received, until)
                going = self._select(new, run)
                self.progress(run.report.scanned, run.depth)
            if going:
                self._put_back(going, run)
            with run.lock:
                if not new or run.over():
                    return

    def _renew(self, run: _Run) -> None:
        while True:
            now = self.clock.now()
            with run.lock:
                due = run.due(now)
                handles = [run.handles[one] for one in due if one in run.handles]
            if not due:
                return
            self.dead_letters.change_visibility(handles, VISIBILITY_SECONDS)
            with run.lock:
                run.in_flight.append((now + VISIBILITY_SECONDS, due))

    def _select(self, dead_letters: Sequence[DeadLetter], run: _Run) -> list[Candidate]:
        """Report on some dead letters; return those that have to be put back."""
        now = self.clock.now()
        order, report = run.order, run.report
        going: list[Candidate] = []
        for candidate in map(read, dead_letters):
            if not selects(order, candidate, now):
                continue
            if not isinstance(order, RedriveOrder):
                report.add(candidate, RedriveOutcome.LISTED)
                continue
            why = None if order.force else hopeless(candidate, now)
            if why is not None:
                report.add(candidate, RedriveOutcome.REFUSED, why)
            elif run.left() > 0:
                run.taken += 1
                if order.dry_run:
                    report.add(candidate, RedriveOutcome.WOULD_REDRIVE)
                else:
                    going.append(candidate)
        return going

    def _put_back(self, going: Sequence[Candidate], run: _Run) -> None:
        """Put back, then delete: a request on both queues does no harm, one on neither is lost."""
        taken = self.requests.redrive([candidate.dead_letter for candidate in going])
        done = {dead_letter.letter_id for dead_letter in taken}
        self.dead_letters.delete(taken)  # one that stays there does no harm
        with run.lock:
            for candidate in going:
                outcome = (
                    RedriveOutcome.REDRIVEN
                    if candidate.dead_letter.letter_id in done
                    else RedriveOutcome.NOT_TAKEN
                )
                run.report.add(candidate, outcome)
            for letter_id in done:
                run.handles.pop(letter_id, None)
