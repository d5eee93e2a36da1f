"""Publishes changes of status: the ledger's stream to the event bus.

The ledger is the only truth about what was sent, and its stream a queue of what changed: each write
once, in order by notification, for a day. What is published twice has the same `event_id`.

Nothing that one record does may stop those after it: what cannot be understood, and what the bus
refuses for its own sake, goes by its key to a queue with an alarm. Only a bus that does not answer
stops them all, until it does.
"""

import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from notifier.domain.ledger_entries import LedgerWrite
from notifier.domain.status import PUBLISHABLE, Status
from notifier.domain.status_events import Publication, StatusEvent

if TYPE_CHECKING:
    from notifier.domain.clock import Clock, Meter

logger = logging.getLogger(__name__)

ALL_PUBLISHED = PUBLISHABLE
# `accepted` and `dispatched` mean nothing to a business.
DEFAULT_PUBLISHED = PUBLISHABLE - {Status.ACCEPTED, Status.DISPATCHED}

# What EventBridge takes in one call.
CALL_EVENTS = 10
# How often a bus that does not take an event is tried before the batch comes back, and the longest
# wait before each.
WAITS_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)
# What one call may take, with boto3's own tries, and writing to the queue after it.
CALL_SECONDS = 20.0


class StatusEvents(Protocol):
    """The event bus. Returns what became of each event."""

    def put(self, events: Sequence[StatusEvent]) -> list[Publication]: ...


class Unpublished(Protocol):
    """Keeps the keys of what cannot be published. Returns whether it has taken one."""

    def put(self, write: LedgerWrite, problem: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes what the ledger's writes add, one batch at a time."""

    events: StatusEvents
    unpublished: Unpublished
    meter: "Meter"
    clock: "Clock"
    published: Collection[Status] = DEFAULT_PUBLISHED
    uniform: Callable[[float, float], float] = random.uniform

    def publish(self, writes: Sequence[LedgerWrite], deadline: float) -> str | None:
        """Publish a batch of writes of one shard, in their order by notification.

        Args:
            writes: the batch.
            deadline: when the sandbox will be stopped, in epoch seconds.

        Returns:
            The sequence number from which the batch has to come again; None if it is done.
        """
        problems = {write.sequence_number: write.problem for write in writes if write.problem}
        again = self._publish_events(writes, deadline, problems)
        for write in writes:
            # What comes again would be set aside each time that it does.
            if write.sequence_number == again:
                break
            problem = problems.get(write.sequence_number)
            if problem and not self._set_aside(write, problem):
                return write.sequence_number
        return again

    def _publish_events(
        self, writes: Sequence[LedgerWrite], deadline: float, problems: dict[str, str]
    ) -> str | None:
        """Publish the events of a batch; what the bus refuses for ever is added to the problems."""
        pending = dict(
            enumerate(
                (write, event)
                for write in writes
                for event in write.events
                if event.status in self.published
            )
        )
        waits = iter(WAITS_SECONDS)
        while pending and self.clock.now() + CALL_SECONDS < deadline:
            call = _call(pending)
            done = self._put([pending[position] for position in call], problems)
            for position in [one for one, is_done in zip(call, done, strict=True) if is_done]:
                del pending[position]
            if not all(done):
                wait = next(waits, None)
                if wait is None:
                    break
                self.clock.sleep(self.uniform(wait / 2, wait))
        return next((write.sequence_number for write, _ in pending.values()), None)

    def _put(
        self, call: Sequence[tuple[LedgerWrite, StatusEvent]], problems: dict[str, str]
    ) -> list[bool]:
        """Publish some events with one call; return which of them are done."""
        done = []
        outcomes = self.events.put([event for _, event in call])
        for (write, event), outcome in zip(call, outcomes, strict=True):
            if outcome is Publication.REFUSED:
                problems[write.sequence_number] = "the event bus refuses it"
            elif outcome is Publication.TAKEN:
                self.meter.took("changed_to_published", self.clock.now() - event.time)
            done.append(outcome is not Publication.NOT_NOW)
        return done

    def _set_aside(self, write: LedgerWrite, problem: str) -> bool:
        """Keep the key of a write that can never be published; return whether that was possible."""
        facts = {"key": write.key, "sequence_number": write.sequence_number, "problem": problem}
        logger.error("not publishable", extra=facts)
        self.meter.count("status_event_unpublished")
        return self.unpublished.put(write, problem)


def _call(pending: Mapping[int, tuple[LedgerWrite, StatusEvent]]) -> list[int]:
    """Choose the next events for one call, by position.

    Of each notification the earliest only: EventBridge may take an event and refuse the one before.
    """
    call: dict[str, int] = {}
    for position, (_, event) in pending.items():
        call.setdefault(event.key, position)
        if len(call) == CALL_EVENTS:
            break
    return list(call.values())
