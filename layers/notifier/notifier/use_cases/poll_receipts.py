"""Receipts of bots that have no webhook: BLiP's event history is asked for them, on a schedule.

BLiP keeps events for three days. A message is asked about after minutes first, then at twice its
age each time and a last time shortly before BLiP forgets it, until it was received or has failed.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from itertools import batched
from typing import Any, Protocol

from notifier.domain.bots import Bot
from notifier.domain.clock import Clock
from notifier.domain.failures import Failure, Misconfigured, Throttled
from notifier.domain.ledger_entries import Poll
from notifier.domain.notification import message_id
from notifier.use_cases.asking import BotStates, Secrets, command_slots, usable_bots
from notifier.use_cases.slots import SLOT_HORIZON_SECONDS, RetryLater, Slots, cooldown

logger = logging.getLogger(__name__)

# At most so many questions are under way together. BLiP answers within a quarter of a second, and
# the writes after it take half as long: with half as many, a plan of 200 a second is not used.
CONCURRENCY = 100
# No more slots are reserved at a time than the plan has in so long: look-ups wait behind them.
ROUND_SECONDS = 1.0
# So many answers are written by one thread, with as few calls to the queue as there can be.
KEPT_TOGETHER = 10
# So many are read at a time: whole rounds, so that the next page is read when this one was asked.
PAGE = 10 * CONCURRENCY
KEPT_SECONDS = 3 * 86_400
# The last question comes so long before BLiP forgets.
LAST_QUESTION_SECONDS = 3600
# When to ask again after a question that failed.
ASK_AGAIN_SECONDS = 900.0
# What one question takes at most: the call, and the writes after it.
ANSWER_SECONDS = 15.0


class Ledger(Protocol):
    """Of the ledger, what polling needs."""

    def due(self, bot: str, count: int) -> list[Poll]: ...
    def polled(self, poll: Poll, next_at: float | None) -> None: ...


class Blip(Protocol):
    """The question to BLiP."""

    def events(
        self, bot: Bot, message_id: str, on_connected: Callable[[], None]
    ) -> list[dict[str, Any]]: ...


class ReceiptsQueue(Protocol):
    """The queue of receipts. `put_all` returns the positions of those that SQS did not take."""

    def put_all(self, envelopes: Sequence[dict[str, Any]]) -> set[int]: ...


@dataclass(frozen=True, slots=True)
class Polled:
    """What a run has done.

    Attributes:
        asked: the number of messages that BLiP answered for.
        late_seconds: for how long the longest due question had been due; None without a bot to ask.
    """

    asked: int
    late_seconds: float | None


@dataclass(frozen=True, slots=True)
class Polling:
    """Asks for the receipts that are due."""

    ledger: Ledger
    bot_states: BotStates
    secrets: Secrets
    blip: Blip
    receipts: ReceiptsQueue
    clock: Clock
    threads: Executor
    cooldown_seconds: int

    def poll(self, deadline: float) -> Polled:
        """Ask for every bot without a webhook, as long as there is time."""
        # Round and round, so that a bot with much to ask for does not keep the others waiting.
        waiting: deque[tuple[Bot, Iterator[tuple[Poll, ...]]]] = deque(
            (bot, batched(self._due(bot.name), _at_once(bot), strict=False))
            for bot in usable_bots(self.secrets)
            if bot.receipts == "history"
        )
        asked, late = 0, 0.0 if waiting else None
        while waiting and deadline - self.clock.now() > SLOT_HORIZON_SECONDS + ANSWER_SECONDS:
            bot, due = waiting.popleft()
            some = next(due, ())
            if some and late is not None:
                late = max(late, self.clock.now() - some[0].due_at)
            answered = self._round(bot, some, deadline) if some else 0
            asked += answered
            if some and answered == len(some):
                waiting.append((bot, due))
        return Polled(asked, late)

    def _due(self, bot: str) -> Iterator[Poll]:
        """Return what is due, page after page: what was asked about is not due any more."""
        while polls := self.ledger.due(bot, PAGE):
            yield from polls
            if len(polls) < PAGE:
                return

    def _round(self, bot: Bot, due: Sequence[Poll], deadline: float) -> int:
        """Ask about some messages side by side; return the number of those that are done."""
        state = self.bot_states.state(bot.name)
        if state.paused or state.throttled_until > self.clock.now():
            return 0
        slots = command_slots(self.bot_states, bot, state, self.clock, for_receipts=True)
        for _ in due:
            slots.expect_one_more()
        asking = [
            (poll, self.threads.submit(self._ask, bot, poll, slots, deadline)) for poll in due
        ]
        wait([future for _, future in asking])
        answered = [
            (poll, events) for poll, future in asking if (events := future.result()) is not None
        ]
        keeping = [
            self.threads.submit(self._keep, some)
            for some in batched(answered, KEPT_TOGETHER, strict=False)
        ]
        wait(keeping)
        return sum(future.result() for future in keeping)

    def _ask(
        self, bot: Bot, poll: Poll, slots: Slots, deadline: float
    ) -> list[dict[str, Any]] | None:
        """Ask about one message; None if BLiP did not answer, or there is no slot for it."""

        def go_on() -> None:
            if deadline - self.clock.now() <= ANSWER_SECONDS:
                raise RetryLater(0)

        asked_about = message_id(poll.key, poll.generation)
        try:
            return self.blip.events(bot, asked_about, lambda: slots.wait(go_on))
        except RetryLater:
            return None
        except Failure as failure:
            facts = {"bot": bot.name, "key": poll.key, "problem": failure.detail}
            logger.warning("not polled", extra=facts)
            self._not_answered(bot, poll, failure)
            return None

    def _keep(self, answers: Sequence[tuple[Poll, list[dict[str, Any]]]]) -> int:
        """Put the receipts on the queue, then record when to ask next; return for how many.

        A message of which SQS did not take everything stays due.
        """
        envelopes = [(poll, event) for poll, events in answers for event in events]
        refused = self.receipts.put_all([event for _, event in envelopes]) if envelopes else set()
        due_still = {envelopes[number][0] for number in refused}
        done = [poll for poll, _ in answers if poll not in due_still]
        for poll in done:
            now = self.clock.now()
            last = poll.since + KEPT_SECONDS - LAST_QUESTION_SECONDS
            self.ledger.polled(poll, min(now + now - poll.since, last) if now < last else None)
        return len(done)

    def _not_answered(self, bot: Bot, poll: Poll, failure: Failure) -> None:
        """Put a question off, so that it does not hold up the others; not for the bot's faults."""
        now = self.clock.now()
        if isinstance(failure, Throttled):
            until = now + cooldown(failure, self.cooldown_seconds)
            self.bot_states.start_cooldown(bot, "commands", until)
        elif not isinstance(failure, Misconfigured):
            again = now + ASK_AGAIN_SECONDS
            self.ledger.polled(poll, again if again < poll.since + KEPT_SECONDS else None)


def _at_once(bot: Bot) -> int:
    """Return how many questions one round of a bot has."""
    return max(1, min(CONCURRENCY, int(bot.commands_per_second * ROUND_SECONDS)))
