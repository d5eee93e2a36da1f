"""Receipts of bots that BLiP pushes none to: its event history is asked for them, on a schedule.

BLiP keeps events for three days. A message is asked about after minutes first, then at twice its
age each time and a last time shortly before BLiP forgets it, until it was received or has failed.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from itertools import batched
from typing import Any, Protocol

from notifier.bots import Bot, BotsSecretError, BrokenBot
from notifier.failures import Failure, Misconfigured, Throttled
from notifier.records import BotState, Plan, Poll, Reservation
from notifier.request import message_id
from notifier.turn import LONGEST_PENALTY_SECONDS, SLOT_HORIZON_SECONDS, Clock

logger = logging.getLogger(__name__)

# So many questions are under way together.
AT_ONCE = 20
# So many are read at a time: whole rounds, so that the next page is read when this one was asked.
PAGE = 50 * AT_ONCE
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


class Pacing(Protocol):
    """Keeps every bot to its plan."""

    def state(self, bot: str) -> BotState: ...
    def reserve(
        self, bot: Bot, plan: Plan, count: int, horizon: float, *, share: float, asking: bool
    ) -> Reservation: ...
    def shut(self, bot: Bot, plan: Plan, until: float) -> bool: ...


class Secrets(Protocol):
    """The bots, from their secret."""

    def bots(self) -> Mapping[str, Bot | BrokenBot]: ...


class Blip(Protocol):
    """The question to BLiP."""

    def events(
        self, bot: Bot, message_id: str, on_connected: Callable[[], None]
    ) -> list[dict[str, Any]]: ...


class ReceiptsQueue(Protocol):
    """Where receipts go, however they were learnt."""

    def put(self, envelopes: Sequence[dict[str, Any]]) -> None: ...


@dataclass(frozen=True, slots=True)
class Polling:
    """Asks for the receipts that are due."""

    ledger: Ledger
    pacing: Pacing
    secrets: Secrets
    blip: Blip
    receipts: ReceiptsQueue
    clock: Clock
    threads: Executor
    penalty_seconds: int

    def poll(self, deadline: float) -> int:
        """Ask for every bot without a webhook, as long as there is time; give the number asked."""
        try:
            bots = self.secrets.bots()
        except BotsSecretError as error:
            logger.error("no bot can be asked", extra={"problem": str(error)})
            return 0
        # Round and round, so that a bot with much to ask for does not keep the others waiting.
        waiting: deque[tuple[Bot, Iterator[tuple[Poll, ...]]]] = deque(
            (bot, batched(self._due(bot.name), AT_ONCE, strict=False))
            for bot in bots.values()
            if isinstance(bot, Bot) and bot.receipts == "history"
        )
        asked = 0
        while waiting and deadline - self.clock.now() > SLOT_HORIZON_SECONDS + ANSWER_SECONDS:
            bot, due = waiting.popleft()
            some = next(due, ())
            answered = self._round(bot, some, deadline) if some else 0
            asked += answered
            if some and answered == len(some):
                waiting.append((bot, due))
        return asked

    def _due(self, bot: str) -> Iterator[Poll]:
        """Give what is due, page after page: what was asked about is not due any more."""
        while polls := self.ledger.due(bot, PAGE):
            yield from polls
            if len(polls) < PAGE:
                return

    def _round(self, bot: Bot, due: Sequence[Poll], deadline: float) -> int:
        """Ask about a few messages side by side; give the number of those that BLiP answered."""
        share = self.pacing.state(bot.name).share("commands", bot.share, self.clock.now())
        slots = self.pacing.reserve(
            bot, "commands", len(due), SLOT_HORIZON_SECONDS, share=share, asking=True
        ).slots
        futures = [
            self.threads.submit(self._ask, bot, poll, slot)
            for poll, slot in zip(due, slots, strict=False)
            if deadline - slot > ANSWER_SECONDS
        ]
        wait(futures)
        return sum(future.result() for future in futures)

    def _ask(self, bot: Bot, poll: Poll, slot: float) -> bool:
        """Ask about one message; tell whether BLiP answered."""
        try:
            events = self.blip.events(
                bot,
                message_id(poll.key, poll.generation),
                lambda: self.clock.sleep(slot - self.clock.now()),
            )
        except Failure as failure:
            facts = {"bot": bot.name, "key": poll.key, "problem": failure.detail}
            logger.warning("not polled", extra=facts)
            self._not_answered(bot, poll, failure)
            return False
        if events:
            self.receipts.put(events)
        now = self.clock.now()
        last = poll.since + KEPT_SECONDS - LAST_QUESTION_SECONDS
        self.ledger.polled(poll, min(now + now - poll.since, last) if now < last else None)
        return True

    def _not_answered(self, bot: Bot, poll: Poll, failure: Failure) -> None:
        """Put a question off, so that it does not hold up the others; not for the bot's faults."""
        now = self.clock.now()
        if isinstance(failure, Throttled):
            seconds = failure.retry_after_seconds or self.penalty_seconds
            self.pacing.shut(bot, "commands", now + min(seconds, LONGEST_PENALTY_SECONDS))
        elif not isinstance(failure, Misconfigured):
            again = now + ASK_AGAIN_SECONDS
            self.ledger.polled(poll, again if again < poll.since + KEPT_SECONDS else None)
