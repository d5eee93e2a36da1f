"""What the notifications of one round share: the time left, send slots, which bots may go on."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from threading import Lock
from typing import Any, Protocol

from notifier.domain.bot_state import BotState, HoldReason, Plan, Reservation
from notifier.domain.bots import Bot
from notifier.domain.clock import Clock
from notifier.domain.failures import Failure
from notifier.domain.templates import RegisteredTemplate
from notifier.use_cases.slots import SLOT_HORIZON_SECONDS, RetryLater, Slots

# What one call to BLiP may take, and the ledger's write after it.
CALL_SECONDS = 10.0
SETTLE_SECONDS = 2.0
# Clocks of two sandboxes may differ by this much before a lease means nothing.
CLOCK_SKEW_SECONDS = 2.0
# Nothing is begun whose slot is further away: other sandboxes reserve meanwhile, and what gets no
# slot then has opened its connection in vain.
START_HORIZON_SECONDS = 2.0


class Reserve(Protocol):
    """Reserves slots of a bot's plan; see `aws.bot_state`."""

    def __call__(
        self, bot: Bot, plan: Plan, count: int, horizon: float, *, share: float, probing: bool
    ) -> Reservation:
        """Return up to `count` slots, or none."""


class Once:
    """Questions that several notifications of a round have in common: the first one asks.

    The others wait for its answer, or get the failure that it got.
    """

    def __init__(self) -> None:
        self._locks: defaultdict[Hashable, Any] = defaultdict(Lock)
        self._answers: dict[Hashable, Any] = {}
        self._lock = Lock()

    def ask[Answer](self, question: Hashable, call: Callable[[], Answer]) -> Answer:
        """Return the answer to a question; call for it if it was not asked before.

        Raises:
            Failure, RetryLater: as the call did.
        """
        with self._lock:
            lock = self._locks[question]
        with lock:
            if question not in self._answers:
                try:
                    self._answers[question] = call()
                except (Failure, RetryLater) as failure:
                    self._answers[question] = failure
            answer = self._answers[question]
        if isinstance(answer, Failure | RetryLater):
            raise answer
        return answer  # type: ignore[no-any-return] # what the question's call has returned


class Round:
    """One round of a batch.

    Attributes:
        began: when the round began.
        lease_until: when every claim of this round ends by itself.
        states: the bots, as they were read at the start of the round.
        templates: by bot and name, what the registry knows of them.
        probed: the bots whose breaker is open, and which are asked whether they work again.
        probing: those of them of which one notification tries.
        looked_up: the notifications for which BLiP was asked who the recipient is.
        posted: the notifications of which a send was begun, and when.
        once: questions that they have in common.
    """

    def __init__(
        self,
        deadline: float,
        states: Mapping[str, BotState],
        templates: Mapping[tuple[str, str], RegisteredTemplate],
        reserve: Reserve,
        clock: Clock,
    ) -> None:
        self.began = clock.now()
        self.lease_until = deadline + CLOCK_SKEW_SECONDS
        self.states = states
        self.templates = templates
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
        self._on_hold: dict[str, tuple[float | None, HoldReason | None]] = {}

    def state(self, bot: str) -> BotState:
        """Return what is known of a bot."""
        return self.states.get(bot) or BotState()

    def share(self, bot: Bot, plan: Plan) -> float:
        """Return the share of the bot's plan that is in force."""
        return self.state(bot.name).share(plan, bot.share, self._clock.now())

    def needs(self, seconds: float) -> None:
        """Go on only if that much time is left.

        Raises:
            RetryLater: it isn't. Another sandbox can start at once.
        """
        if self._deadline - self._clock.now() < seconds:
            raise RetryLater(0)

    def admit(self, bot: Bot) -> None:
        """Go on only if one more notification of this bot can have its slot soon.

        Raises:
            RetryLater: its slot would be too far away.
        """
        now = self._clock.now()
        interval = 1 / (self.share(bot, "messages") * bot.messages_per_second)
        free_in = max(0.0, self.state(bot.name).next_message_at - now)
        slot_in = free_in + self._admitted[bot.name] * interval
        if slot_in > START_HORIZON_SECONDS:
            raise RetryLater(slot_in, for_slot=True)
        self._admitted[bot.name] += 1

    def expect(self, bot: Bot | None, *, known: bool) -> None:
        """Count before the threads start that one more notification of this bot is on its way."""
        if bot is not None:
            self._slots_of(bot, "messages", known=known).expect_one_more()
            if not known:
                self._slots_of(bot, "commands", known=known).expect_one_more()

    def reserve_ahead(self, bot: Bot) -> None:
        """Reserve a slot for one known recipient while it is claimed."""
        with suppress(Exception):  # whatever it was, taking the slot reserves again and meets it
            self._slots_of(bot, "messages", known=True).reserve_ahead()

    def wait_for_slot(self, bot: Bot, plan: Plan, *, known: bool, after: float) -> None:
        """Wait for this notification's place in the bot's plan.

        A notification whose recipient is known can be sent at once, the others when they have been
        looked up: each of the two groups reserves its own slots when its first one needs one.

        Args:
            bot: the bot whose plan it is.
            plan: which of its plans.
            known: which group.
            after: how much time has to be left then.

        Raises:
            RetryLater: the bot is on hold, has no slot soon, or this machine is too slow.
        """

        def go_on() -> None:
            self.check(bot.name)
            self.needs(after)

        self._slots_of(bot, plan, known=known).wait(go_on, after)

    def hold(
        self, bot: str, seconds: float | None, why: HoldReason | None = HoldReason.BREAKER_OPEN
    ) -> None:
        """Stop starting work for this bot in this round. `None` seconds: indefinitely."""
        self._on_hold[bot] = (seconds, why)

    def check(self, bot: str) -> None:
        """Go on only if the bot was not put on hold meanwhile.

        Raises:
            RetryLater: it was.
        """
        if bot in self._on_hold:
            raise RetryLater(*self._on_hold[bot])

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
