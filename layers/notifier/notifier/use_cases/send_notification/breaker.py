"""Which bots may send: on hold, in a cooldown, behind an open breaker, or ready."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial

from notifier.domain.bot_state import BotState, HoldReason, Plan
from notifier.domain.bots import Bot, BotsSecretError, InvalidBot
from notifier.domain.clock import Clock, Meter
from notifier.domain.failures import Failure, Misconfigured, Reason, Throttled, crash_facts
from notifier.domain.notification import Notification
from notifier.domain.recipients import Identity
from notifier.use_cases.send_notification.outcomes import Outcome, Result, logged
from notifier.use_cases.send_notification.ports import Blip, BotStates, Secrets
from notifier.use_cases.send_notification.round import CALL_SECONDS, SETTLE_SECONDS, Round
from notifier.use_cases.send_notification.waits import Waits
from notifier.use_cases.slots import RetryLater, cooldown

logger = logging.getLogger(__name__)

# For how long a bot that has worked may be missing from the secret before it is an unknown bot.
MISSING_SECONDS = 900.0
DAY_SECONDS = 86_400

type Bots = Mapping[str, Bot | InvalidBot | None]


@dataclass(frozen=True, slots=True)
class Breaker:
    """Opens, closes and probes the bots' breakers, which all sandboxes share."""

    bot_states: BotStates
    secrets: Secrets
    blip: Blip
    meter: Meter
    clock: Clock
    threads: Executor
    waits: Waits

    # --- before a round ---------------------------------------------------------------------------

    def bots(self, names: Iterable[str]) -> Bots:
        """Return the bots of these names; None for a name that the secret does not hold."""
        try:
            bots = self.secrets.bots()
            return {
                name: bots[name] if name in bots else self.secrets.fresh(name, None)
                for name in names
            }
        except BotsSecretError as error:
            return {name: InvalidBot(name, str(error)) for name in names}

    def without_gaps(self, bots: Bots, states: Mapping[str, BotState]) -> Bots:
        """Return the bots; one that has worked and is missing now may be back soon.

        The secret may have been written without it by mistake. Its requests wait for
        MISSING_SECONDS; then it is an unknown bot, as a name that never was is at once.
        """
        complete = dict(bots)
        for name, state in states.items():
            if bots[name] is not None:
                if state.missing_since:
                    self.note(name, partial(self.bot_states.found, name))
                continue
            since = state.missing_since or self.note(name, partial(self.bot_states.missing, name))
            since = since or self.clock.now()
            if self.clock.now() - since < MISSING_SECONDS:
                problem = f"the bots' secret has no entry {name!r} any more"
                complete[name] = InvalidBot(name, problem)
        return complete

    def probe_all(self, bots: Bots, this_round: Round) -> dict[str, Future[None]]:
        """Start to try the bots whose breakers are open, side by side."""
        now = self.clock.now()
        probes = {
            name: self.threads.submit(self._probe, bot, this_round)
            for name, bot in bots.items()
            if isinstance(bot, Bot)
            and (state := this_round.state(name)).broken
            and not state.paused
            and state.throttled_until <= now
        }
        this_round.probed.update(probes)
        return probes

    def wait_for(self, probes: Mapping[str, Future[None]], this_round: Round) -> None:
        """Wait for the probes; a crash holds its bot."""
        for name, probe in probes.items():
            if crash := probe.exception():
                logger.error("the probe crashed", extra={"bot": name, **crash_facts(crash)})
                this_round.hold(name, None)

    def _probe(self, bot: Bot, this_round: Round) -> None:
        """Try whether a bot works again. If BLiP answers, exactly one notification may go on."""
        try:
            this_round.needs(CALL_SECONDS + SETTLE_SECONDS)
        except RetryLater:
            this_round.hold(bot.name, 0, None)
            return
        if not self.bot_states.probe(bot.name):
            this_round.hold(bot.name, None)  # another sandbox is trying
            return
        try:
            self.with_fresh_key(bot, self.blip.ping)
        except Throttled as failure:
            self.start_cooldown(bot, "commands", failure, this_round)
        except Failure as failure:
            logger.warning(
                "the breaker stays open", extra={"bot": bot.name, "problem": failure.detail}
            )
            # So that the alarm says "wrong key" rather than "outage" for as long as it is wrong.
            wrong = isinstance(failure, Misconfigured)
            reason = HoldReason.MISCONFIGURED if wrong else HoldReason.BREAKER_OPEN
            this_round.hold(bot.name, None, reason)

    def admit(self, bot: Bot | InvalidBot | None, this_round: Round) -> Bot | None:
        """Return the bot if it can send now; None for one that does not exist.

        Raises:
            RetryLater: it is on hold, invalid, or has no slot free soon.
        """
        if bot is None:
            return None
        if isinstance(bot, InvalidBot):
            logger.error("the bot cannot be used", extra={"bot": bot.name, "problem": bot.problem})
            raise RetryLater(None, HoldReason.MISCONFIGURED)
        now = self.clock.now()
        state = this_round.state(bot.name)
        if state.paused:
            raise RetryLater(None, HoldReason.PAUSED)
        if state.throttled_until > now:
            wait = self.waits.jittered(state.throttled_until - now, 5)
            raise RetryLater(wait, HoldReason.COOLING_DOWN)
        if state.broken:
            this_round.check(bot.name)
            if bot.name not in this_round.probed or bot.name in this_round.probing:
                raise RetryLater(None, HoldReason.BREAKER_OPEN)
            this_round.probing.add(bot.name)
        this_round.admit(bot)
        return bot

    # --- during a round ---------------------------------------------------------------------------

    def with_fresh_key[Answer](self, bot: Bot, call: Callable[[Bot], Answer]) -> Answer:
        """Call BLiP; if it refuses the key or the URL, once more with the secret read afresh."""
        try:
            return call(bot)
        except Misconfigured:
            try:
                fresh = self.secrets.fresh(bot.name, bot)
            except BotsSecretError as error:
                raise Misconfigured(str(error)) from None
            if not isinstance(fresh, Bot) or fresh == bot:
                raise
            return call(fresh)

    def throttled(
        self,
        notification: Notification,
        bot: Bot,
        plan: Plan,
        failure: Throttled,
        this_round: Round,
    ) -> Result:
        """Start the bot's cooldown; return the result of the request that BLiP throttled."""
        seconds = self.start_cooldown(bot, plan, failure, this_round)
        return logged(
            notification,
            Outcome.THROTTLED,
            retry_in=self.waits.for_cooldown(seconds),
            detail=failure.detail,
            on_hold=True,
        )

    def start_cooldown(self, bot: Bot, plan: Plan, failure: Throttled, this_round: Round) -> float:
        """Keep every sandbox away from the bot for the cooldown; return its seconds."""
        seconds = cooldown(failure, self.waits.policy.cooldown_seconds)
        this_round.hold(bot.name, seconds, HoldReason.COOLING_DOWN)
        if self.bot_states.start_cooldown(bot, plan, self.clock.now() + seconds):
            self.meter.count("cooldown_began")
        return seconds

    def retry_later(self, notification: Notification, wait: RetryLater) -> Result:
        """Return the result of a request that nothing can be done for right now."""
        seconds = self.waits.for_bot() if wait.seconds is None else wait.seconds
        if wait.for_slot:
            seconds += self.waits.slot_jitter(notification, self.clock.now())
        return logged(
            notification,
            Outcome.RETRY_LATER if wait.why is None else Outcome(wait.why),
            retry_in=seconds,
            on_hold=wait.why is not None,
        )

    def is_wrong(self, bot: Bot, this_round: Round) -> bool:
        """Return whether a bot does not answer a ping either, asked once per round.

        Raises:
            RetryLater: there is no time left to ask.
            Throttled: BLiP throttles the bot.
        """
        this_round.needs(CALL_SECONDS + SETTLE_SECONDS)
        try:
            this_round.once.ask(
                ("ping", bot.name), lambda: self.with_fresh_key(bot, self.blip.ping)
            )
        except Throttled:
            raise
        except Failure:
            return True
        return False

    def blames_notification(self, notification: Notification, this_round: Round) -> bool:
        """Return whether a refusal while the bot is probed is an attempt of the notification.

        Usually it is none, because the bot may have no channel. But if only notifications are left
        that BLiP refuses, nothing else would ever close the breaker. So it is one if the
        notification is a day old, and the bot has worked since a day before it was published.
        """
        published_at = notification.queued.published_at
        controls = this_round.state(notification.request.bot).controls
        worked = bool(controls) and controls[-1].at > published_at - DAY_SECONDS
        return worked and self.clock.now() - published_at > DAY_SECONDS

    def open(
        self, notification: Notification, bot: Bot, failure: Failure, this_round: Round
    ) -> Result:
        """Open the breaker of a bot that is misconfigured; return the result of its request."""
        logger.error(
            "the bot is misconfigured: its requests wait",
            extra={"bot": bot.name, "problem": failure.detail},
        )
        this_round.hold(bot.name, None)
        self.bot_states.open_breaker(bot.name, failure.detail)
        return logged(
            notification,
            Outcome.MISCONFIGURED,
            retry_in=self.waits.for_bot(),
            on_hold=True,
        )

    # --- after a round ----------------------------------------------------------------------------

    def update(
        self,
        results: Iterable[Result],
        identities: Mapping[tuple[str, str], Identity],
        this_round: Round,
    ) -> None:
        """Open and close breakers by what became of this round, without a call if all is well.

        Args:
            results: what became of it.
            identities: which recipients were known before, so that BLiP was not asked for them.
            this_round: knows for which bots this was a probe.
        """
        answered, failing = _answers(results, identities)
        sent = {
            result.notification.request.bot
            for result in results
            if result.notification is not None and result.outcome is Outcome.SENT
        }
        for bot in answered:
            if bot in this_round.probing:
                if self.note(bot, partial(self.bot_states.close_breaker, bot, sent=bot in sent)):
                    logger.warning("the bot works again", extra={"bot": bot})
            elif this_round.state(bot).failing:
                self.note(bot, partial(self.bot_states.answered, bot))
        for bot in failing.keys() - answered:
            if self.note(bot, partial(self.bot_states.failed, bot, failing[bot])):
                logger.error("the breaker is open", extra={"bot": bot})

    def note[Answer](self, bot: str, write: Callable[[], Answer]) -> Answer | None:
        """Write to a bot's item and return the answer; None if that fails, which is only logged.

        The next batch can write the same. What this round has sent is sent, and must not come back.
        """
        try:
            return write()
        except Exception as crash:  # noqa: BLE001 - whatever it was, it is logged and repeatable
            logger.error("the bot's item was not written", extra={"bot": bot, **crash_facts(crash)})
            return None


def _answers(
    results: Iterable[Result], identities: Mapping[tuple[str, str], Identity]
) -> tuple[set[str], dict[str, set[str]]]:
    """Return the bots of which BLiP gave a definite answer; and by bot what it gave none for."""
    answered: set[str] = set()
    failing: dict[str, set[str]] = defaultdict(set)
    for result in results:
        if result.notification is None:
            continue
        bot = result.notification.request.bot
        looked_up = result.notification.recipient not in identities
        if (
            result.outcome is Outcome.SENT
            or result.reason is Reason.REJECTED
            or (result.reason is Reason.NOT_A_PHONE_NUMBER and looked_up)
        ):
            answered.add(bot)
        elif result.no_answer:
            failing[bot].add(result.notification.key)
    return answered, failing
