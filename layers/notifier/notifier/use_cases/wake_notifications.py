"""Waits that are over: the next generations are put on the requests queue, on a schedule.

The queue comes first, then the ledger: a crash in between repeats a generation, and its claim
makes the repetition a duplicate.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from heapq import merge
from itertools import batched
from typing import Protocol

from notifier.domain.clock import WallClock
from notifier.domain.failures import crash_facts
from notifier.domain.ledger_entries import Due, LedgerEntry

logger = logging.getLogger(__name__)

# One call to SQS takes ten. Each batch is read, put and recorded by one thread.
BATCH = 10
CONCURRENCY = 32
# So many are found by one query.
PAGE = 100
# What is begun no later than so long before the end ends in time, unless AWS hangs.
ROUND_SECONDS = 10.0


class Ledger(Protocol):
    """Of the ledger, what waking needs."""

    def due_waits(self, shard: str, count: int, after: Due | None) -> list[Due]: ...
    def read_waiting(self, keys: Sequence[str]) -> tuple[list[LedgerEntry], list[str]]: ...
    def woken(self, entry: LedgerEntry) -> None: ...


class Requests(Protocol):
    """The queue that requests come from. `wake` returns those that SQS took."""

    def wake(self, entries: Sequence[LedgerEntry]) -> list[LedgerEntry]: ...


@dataclass(frozen=True, slots=True)
class Woken:
    """What a run has done.

    Attributes:
        woken: the number of notifications whose next generation is on the queue.
        unreadable: the number of items that cannot be read. They stay due.
        crashed: the number of notifications that an error of ours or of AWS left due.
        late_seconds: for how long the longest wait had been over; 0 where none was.
    """

    woken: int = 0
    unreadable: int = 0
    crashed: int = 0
    late_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Waking:
    """Puts on the queue what has waited long enough, longest due first."""

    ledger: Ledger
    requests: Requests
    clock: WallClock
    threads: Executor
    shards: Sequence[str]

    def wake(self, deadline: float) -> Woken:
        """Wake as many as there is time for. What is left stays due."""
        woken = unreadable = crashed = 0
        late = 0.0
        due = merge(*(self._due(shard) for shard in self.shards), key=lambda one: one.due_at)
        for some in batched(due, BATCH * CONCURRENCY, strict=False):
            late = max(late, self.clock.now() - some[0].due_at)
            for done in self.threads.map(self._wake, batched(some, BATCH, strict=False)):
                woken += done.woken
                unreadable += done.unreadable
                crashed += done.crashed
            if deadline - self.clock.now() <= ROUND_SECONDS:
                break
        return Woken(woken, unreadable, crashed, late)

    def _due(self, shard: str) -> Iterator[Due]:
        """Return what is due in a shard, page after page."""
        last: Due | None = None
        while page := self.ledger.due_waits(shard, PAGE, last):
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1]

    def _wake(self, due: Sequence[Due]) -> Woken:
        """Wake a batch. What cannot be done for it now hurts no other."""
        taken: list[LedgerEntry] = []
        woken = 0
        try:
            entries, unreadable = self.ledger.read_waiting([one.key for one in due])
            for key in unreadable:
                logger.error("waits, and cannot be read", extra={"key": key})
            taken = self.requests.wake(entries)
            for entry in taken:
                self.ledger.woken(entry)
                woken += 1
        except Exception as crash:  # noqa: BLE001 - whatever it was, it hurts this batch only
            logger.error("not woken", extra=crash_facts(crash))
            return Woken(woken, crashed=len(due) - woken)
        return Woken(woken, len(unreadable))
