"""Slots of a bot's plan, which a batch reserves together and takes one by one."""

from collections import deque
from collections.abc import Callable
from threading import Lock

from notifier.domain.bot_state import HoldReason, Reservation
from notifier.domain.clock import Clock
from notifier.domain.failures import Throttled

# A first free slot further away than this is not worth holding a thread and a connection for.
SLOT_HORIZON_SECONDS = 3.0
# A slot may be used this late: threads don't wake to the millisecond. More, and the messages that
# a stalled sandbox held up would all go out at once, which the rest of the plan does not cover.
SLOT_GRACE_SECONDS = 0.03
SLOT_TRIES = 5
# A `Retry-After` beyond this is a mistake.
MAX_COOLDOWN_SECONDS = 3600.0


def cooldown(failure: Throttled, default_seconds: float) -> float:
    """Return for how many seconds a bot is left alone: what BLiP asks for, or the default."""
    return min(failure.retry_after_seconds or default_seconds, MAX_COOLDOWN_SECONDS)


class RetryLater(Exception):
    """Nothing can be done for a notification right now. Waiting is no attempt.

    Attributes:
        seconds: when to come back; None: when the bot may work again.
        why: the bot is still, for this reason; None if it is not.
        for_slot: others are before it in the bot's plan.
    """

    def __init__(
        self, seconds: float | None, why: HoldReason | None = None, *, for_slot: bool = False
    ) -> None:
        super().__init__()
        self.seconds = seconds
        self.why = why
        self.for_slot = for_slot


class Slots:
    """Slots of one bot's plan: reserved for a whole batch with one call, taken one by one."""

    def __init__(self, reserve: Callable[[int, float], Reservation], clock: Clock) -> None:
        self._reserve = reserve
        self._clock = clock
        self._expected = 0
        self._free: deque[float] = deque()
        self._lock = Lock()

    def expect_one_more(self) -> None:
        """Count one more that will come, so that the next reservation serves it, too."""
        with self._lock:
            self._expected += 1

    def take(self, after: float) -> float:
        """Return the next slot, in epoch seconds. A slot that was missed is not made up for.

        Args:
            after: how much time has to be left at the slot.

        Raises:
            RetryLater: the bot is still, or the first free slot too far away.
        """
        with self._lock:
            self._fill(after)
            self._expected = max(0, self._expected - 1)
            return self._free.popleft()

    def reserve_ahead(self) -> None:
        """Reserve what is expected before it is taken.

        Raises:
            RetryLater: as `take` does.
        """
        with self._lock:
            self._fill(0)

    def _fill(self, after: float) -> None:
        now = self._clock.now()
        while self._free and self._free[0] < now - SLOT_GRACE_SECONDS:
            self._free.popleft()
        if not self._free:
            reservation = self._reserve(max(1, self._expected), after)
            if not reservation.slots:
                wait, why = reservation.retry_in, reservation.why
                raise RetryLater(wait, why, for_slot=why is None)
            self._free.extend(_usable(reservation.slots, self._clock.now()))

    def wait(self, go_on: Callable[[], None], after: float = 0) -> None:
        """Wait for a slot, and for another one if this machine was too slow to use it.

        Args:
            go_on: asked before and after each wait; raises where nothing may start any more.
            after: how much time has to be left at the slot.

        Raises:
            RetryLater: as `take` and `go_on` do, or no slot of several could be used.
        """
        for _ in range(SLOT_TRIES):
            go_on()
            slot = self.take(after)
            self._clock.sleep(slot - self._clock.now())
            go_on()
            if self._clock.now() - slot <= SLOT_GRACE_SECONDS:
                return
            self.expect_one_more()
        raise RetryLater(1, for_slot=True)


def _usable(slots: tuple[float, ...], now: float) -> list[float]:
    """Leave out the slots that passed while the answer was on its way.

    If all did, one is used now: else a slow answer would keep every request from being sent.
    """
    return [slot for slot in slots if slot >= now - SLOT_GRACE_SECONDS] or [now]
