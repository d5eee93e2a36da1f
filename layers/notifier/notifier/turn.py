"""What the notifications of one batch share: the time left, send slots, which bots may go on."""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from threading import Lock
from typing import Protocol

from notifier.bots import Bot
from notifier.records import Plan, Reservation

# Clocks of two sandboxes may differ by this much before a lease means nothing.
CLOCK_SKEW_SECONDS = 2.0
# A first free slot further away than this is not worth holding a thread for.
SLOT_HORIZON_SECONDS = 3.0
# A slot may be used this late: threads don't wake to the millisecond. More, and the messages that
# a stalled sandbox held up would all go out at once, which the 5 % left of the plan do not cover.
SLOT_GRACE_SECONDS = 0.03
SLOT_TRIES = 5
# A `Retry-After` beyond this is a mistake of somebody's.
LONGEST_PENALTY_SECONDS = 3600.0


class Clock(Protocol):
    """Wall clock in epoch seconds, and waiting."""

    def now(self) -> float:
        """Give the time."""

    def sleep(self, seconds: float) -> None:
        """Wait; no time at all for what lies in the past."""


class Meter(Protocol):
    """Measures what happens, for metrics; see `telemetry`."""

    def took(self, what: str, seconds: float) -> None:
        """Note how long something took."""

    def age(self, what: str, seconds: float) -> None:
        """Note how old something is."""

    def count(self, what: str, number: int = 1) -> None:
        """Note that something happened."""


class Reserve(Protocol):
    """Reserves slots of a bot's plan; see `aws.pacing`."""

    def __call__(
        self, bot: Bot, plan: Plan, count: int, horizon: float, *, probing: bool
    ) -> Reservation:
        """Give the slots, or none."""


class Still(StrEnum):
    """Why nothing of a bot goes out, for nobody knows how long."""

    BOT_SHUT = "bot_shut"  # its breaker is open
    MISCONFIGURED = "misconfigured"  # its entry in the secret is wrong
    PAUSED = "paused"  # an operator wants it so


class PutOff(Exception):  # noqa: N818 - no error: the notification waits, at no cost to it
    """Nothing can be done for a notification right now. Waiting is no attempt.

    Attributes:
        seconds: when to come back; None: when the bot may work again.
        still: why that is unknown, where it is.
        for_slot: others are before it in the bot's plan.
    """

    def __init__(
        self, seconds: float | None, still: Still = Still.BOT_SHUT, *, for_slot: bool = False
    ) -> None:
        super().__init__()
        self.seconds = seconds
        self.still = still
        self.for_slot = for_slot


class Slots:
    """Slots of one bot's plan: reserved for a whole batch with one call, taken one by one."""

    def __init__(self, reserve: Callable[[int], Reservation], clock: Clock) -> None:
        self._reserve = reserve
        self._clock = clock
        self._expected = 0
        self._free: deque[float] = deque()
        self._lock = Lock()

    def expect_one_more(self) -> None:
        """Say that one more will come, so that the next reservation serves it, too."""
        with self._lock:
            self._expected += 1

    def take(self) -> float:
        """Give the next slot, in epoch seconds. A slot that was missed is not made up for.

        Raises:
            PutOff: the bot is shut, or the first free slot too far away.
        """
        with self._lock:
            now = self._clock.now()
            while self._free and self._free[0] < now - SLOT_GRACE_SECONDS:
                self._free.popleft()
            if not self._free:
                reservation = self._reserve(max(1, self._expected))
                if not reservation.slots:
                    raise PutOff(reservation.come_back_in)
                self._free.extend(_usable(reservation.slots, self._clock.now()))
            self._expected = max(0, self._expected - 1)
            return self._free.popleft()


def _usable(slots: tuple[float, ...], now: float) -> list[float]:
    """Leave out the slots that passed while the answer was on its way.

    If all did, one is used now: else a slow answer would let nobody ever send.
    """
    return [slot for slot in slots if slot >= now - SLOT_GRACE_SECONDS] or [now]


class Turn:
    """One round of a batch.

    Attributes:
        lease_until: when every claim of this round ends by itself.
        probed: the bots whose breaker is open, and which are asked whether they work again.
        probing: those of them of which one notification tries.
        looked_up: the notifications for which BLiP was asked who the recipient is.
        posted: the notifications of which a send was begun.
    """

    def __init__(self, deadline: float, reserve: Reserve, clock: Clock) -> None:
        self.lease_until = deadline + CLOCK_SKEW_SECONDS
        self.probed: set[str] = set()
        self.probing: set[str] = set()
        self.looked_up: set[str] = set()
        self.posted: set[str] = set()
        self._deadline = deadline
        self._reserve = reserve
        self._clock = clock
        self._slots: dict[tuple[str, Plan, bool], Slots] = {}
        self._stopped: dict[str, tuple[float | None, Still]] = {}

    def needs(self, seconds: float) -> None:
        """Go on only if that much time is left.

        Raises:
            PutOff: it isn't. Another sandbox can start at once.
        """
        if self._deadline - self._clock.now() < seconds:
            raise PutOff(0)

    def expect(self, bot: Bot | None, *, known: bool) -> None:
        """Say before the threads start that one more notification of this bot is on its way."""
        if bot is not None:
            self._slots_of(bot, "messages", known=known).expect_one_more()
            if not known:
                self._slots_of(bot, "commands", known=known).expect_one_more()

    def wait_for_slot(self, bot: Bot, plan: Plan, *, known: bool) -> None:
        """Wait for this notification's place in the bot's plan.

        Whose recipient is known can send at once, the others when they have been looked up: each
        of the two groups reserves its own slots when its first one needs one.

        Raises:
            PutOff: the bot was stopped, has no slot soon, or this machine is too slow to use one.
        """
        slots = self._slots_of(bot, plan, known=known)
        for _ in range(SLOT_TRIES):
            self.check(bot.name)
            slot = slots.take()
            self._clock.sleep(slot - self._clock.now())
            self.check(bot.name)
            if self._clock.now() - slot <= SLOT_GRACE_SECONDS:
                return
            slots.expect_one_more()
        raise PutOff(1)

    def stop(self, bot: str, seconds: float | None, still: Still = Still.BOT_SHUT) -> None:
        """Let nothing more of this bot start in this round; None: for nobody knows how long."""
        self._stopped[bot] = (seconds, still)

    def check(self, bot: str) -> None:
        """Go on only if the bot was not stopped meanwhile.

        Raises:
            PutOff: it was.
        """
        if bot in self._stopped:
            raise PutOff(*self._stopped[bot])

    def _slots_of(self, bot: Bot, plan: Plan, *, known: bool) -> Slots:
        def reserve(count: int) -> Reservation:
            return self._reserve(
                bot, plan, count, SLOT_HORIZON_SECONDS, probing=bot.name in self.probing
            )

        return self._slots.setdefault((bot.name, plan, known), Slots(reserve, self._clock))
