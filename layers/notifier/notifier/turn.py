"""What the notifications of one batch share: the time left, send slots, which bots may go on."""

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from threading import Lock
from typing import Any, Protocol

from notifier.bots import Bot
from notifier.failures import Failure
from notifier.records import BotState, Plan, Reservation, Still

# Clocks of two sandboxes may differ by this much before a lease means nothing.
CLOCK_SKEW_SECONDS = 2.0
# A first free slot further away than this is not worth holding a thread and a connection for.
SLOT_HORIZON_SECONDS = 3.0
# Nothing is begun whose slot is further away: other sandboxes reserve meanwhile, and what gets no
# slot then has opened its connection in vain.
START_HORIZON_SECONDS = 2.0
# A slot may be used this late: threads don't wake to the millisecond. More, and the messages that
# a stalled sandbox held up would all go out at once, which the rest of the plan does not cover.
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

    def share(self, what: str, share: float) -> None:
        """Note a share, as a number from 0 to 1."""

    def count(self, what: str, number: int = 1) -> None:
        """Note that something happened."""


class Reserve(Protocol):
    """Reserves slots of a bot's plan; see `aws.pacing`."""

    def __call__(
        self, bot: Bot, plan: Plan, count: int, horizon: float, *, share: float, probing: bool
    ) -> Reservation:
        """Return up to `count` slots, or none."""


class PutOff(Exception):  # noqa: N818 - no error: the notification waits, at no cost to it
    """Nothing can be done for a notification right now. Waiting is no attempt.

    Attributes:
        seconds: when to come back; None: when the bot may work again.
        why: the bot is still, for this reason; None if it is not.
        for_slot: others are before it in the bot's plan.
    """

    def __init__(
        self, seconds: float | None, why: Still | None = None, *, for_slot: bool = False
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

    def take(self, after: float = 0) -> float:
        """Return the next slot, in epoch seconds. A slot that was missed is not made up for.

        Args:
            after: how much time has to be left at the slot.

        Raises:
            PutOff: the bot is still, or the first free slot too far away.
        """
        with self._lock:
            self._fill(after)
            self._expected = max(0, self._expected - 1)
            return self._free.popleft()

    def reserve_ahead(self) -> None:
        """Reserve what is expected before it is taken.

        Raises:
            PutOff: as `take` does.
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
                wait, why = reservation.come_back_in, reservation.why
                raise PutOff(wait, why, for_slot=why is None)
            self._free.extend(_usable(reservation.slots, self._clock.now()))

    def wait(self, go_on: Callable[[], None], after: float = 0) -> None:
        """Wait for a slot, and for another one if this machine was too slow to use it.

        Args:
            go_on: asked before and after each wait; raises where nothing may start any more.
            after: how much time has to be left at the slot.

        Raises:
            PutOff: as `take` and `go_on` do, or no slot of several could be used.
        """
        for _ in range(SLOT_TRIES):
            go_on()
            slot = self.take(after)
            self._clock.sleep(slot - self._clock.now())
            go_on()
            if self._clock.now() - slot <= SLOT_GRACE_SECONDS:
                return
            self.expect_one_more()
        raise PutOff(1, for_slot=True)


def _usable(slots: tuple[float, ...], now: float) -> list[float]:
    """Leave out the slots that passed while the answer was on its way.

    If all did, one is used now: else a slow answer would let nobody ever send.
    """
    return [slot for slot in slots if slot >= now - SLOT_GRACE_SECONDS] or [now]


class Once:
    """Questions that several notifications of a batch have in common: the first one asks.

    The others wait for its answer, and get the failure that it got.
    """

    def __init__(self) -> None:
        self._locks: defaultdict[Hashable, Any] = defaultdict(Lock)
        self._answers: dict[Hashable, Any] = {}
        self._lock = Lock()

    def ask[Answer](self, question: Hashable, call: Callable[[], Answer]) -> Answer:
        """Return the answer to a question; call for it if nobody has yet.

        Raises:
            Failure: as the call did.
        """
        with self._lock:
            lock = self._locks[question]
        with lock:
            if question not in self._answers:
                try:
                    self._answers[question] = call()
                except Failure as failure:
                    self._answers[question] = failure
            answer = self._answers[question]
        if isinstance(answer, Failure):
            raise answer
        return answer  # type: ignore[no-any-return] # what the question's call has returned


class Turn:
    """One round of a batch.

    Attributes:
        lease_until: when every claim of this round ends by itself.
        states: the bots, as they were read at the start of the round.
        probed: the bots whose breaker is open, and which are asked whether they work again.
        probing: those of them of which one notification tries.
        looked_up: the notifications for which BLiP was asked who the recipient is.
        posted: the notifications of which a send was begun, and when.
        once: questions that they have in common.
    """

    def __init__(
        self, deadline: float, states: Mapping[str, BotState], reserve: Reserve, clock: Clock
    ) -> None:
        self.lease_until = deadline + CLOCK_SKEW_SECONDS
        self.states = states
        self.probed: set[str] = set()
        self.probing: set[str] = set()
        self.looked_up: set[str] = set()
        self.posted: dict[str, float] = {}
        self.once = Once()
        self._deadline = deadline
        self._reserve = reserve
        self._clock = clock
        self._admitted: defaultdict[str, int] = defaultdict(int)
        self._slots: dict[tuple[str, Plan, bool], Slots] = {}
        self._stopped: dict[str, tuple[float | None, Still | None]] = {}

    def state(self, bot: str) -> BotState:
        """Return what is known of a bot."""
        return self.states.get(bot, BotState())

    def share(self, bot: Bot, plan: Plan) -> float:
        """Return the share of the bot's plan that is in force."""
        return self.state(bot.name).share(plan, bot.share, self._clock.now())

    def needs(self, seconds: float) -> None:
        """Go on only if that much time is left.

        Raises:
            PutOff: it isn't. Another sandbox can start at once.
        """
        if self._deadline - self._clock.now() < seconds:
            raise PutOff(0)

    def admit(self, bot: Bot) -> None:
        """Go on only if one more notification of this bot can have its slot soon.

        Raises:
            PutOff: its slot would be too far away.
        """
        now = self._clock.now()
        interval = 1 / (self.share(bot, "messages") * bot.messages_per_second)
        free_in = max(0.0, self.state(bot.name).next_message_at - now)
        slot_in = free_in + self._admitted[bot.name] * interval
        if slot_in > START_HORIZON_SECONDS:
            raise PutOff(slot_in, for_slot=True)
        self._admitted[bot.name] += 1

    def expect(self, bot: Bot | None, *, known: bool) -> None:
        """Count before the threads start that one more notification of this bot is on its way."""
        if bot is not None:
            self._slots_of(bot, "messages", known=known).expect_one_more()
            if not known:
                self._slots_of(bot, "commands", known=known).expect_one_more()

    def reserve_ahead(self, bot: Bot) -> None:
        """Reserve a slot for one known recipient while it is claimed. A failure shows later."""
        with suppress(Exception):
            self._slots_of(bot, "messages", known=True).reserve_ahead()

    def wait_for_slot(self, bot: Bot, plan: Plan, *, known: bool, after: float) -> None:
        """Wait for this notification's place in the bot's plan.

        Whose recipient is known can send at once, the others when they have been looked up: each
        of the two groups reserves its own slots when its first one needs one.

        Args:
            bot: whose plan.
            plan: which of its plans.
            known: which group.
            after: how much time has to be left then.

        Raises:
            PutOff: the bot was stopped, has no slot soon, or this machine is too slow to use one.
        """

        def go_on() -> None:
            self.check(bot.name)
            self.needs(after)

        self._slots_of(bot, plan, known=known).wait(go_on, after)

    def stop(self, bot: str, seconds: float | None, why: Still | None = Still.BOT_SHUT) -> None:
        """Start nothing more of this bot in this round. `None` seconds: indefinitely."""
        self._stopped[bot] = (seconds, why)

    def check(self, bot: str) -> None:
        """Go on only if the bot was not stopped meanwhile.

        Raises:
            PutOff: it was.
        """
        if bot in self._stopped:
            raise PutOff(*self._stopped[bot])

    def _slots_of(self, bot: Bot, plan: Plan, *, known: bool) -> Slots:
        def reserve(count: int, after: float) -> Reservation:
            left = self._deadline - after - self._clock.now()
            return self._reserve(
                bot,
                plan,
                count,
                max(0.0, min(SLOT_HORIZON_SECONDS, left)),
                share=self.share(bot, plan),
                probing=bot.name in self.probing,
            )

        return self._slots.setdefault((bot.name, plan, known), Slots(reserve, self._clock))
