"""A send whose outcome is unknown: BLiP's history shows whether it went out after all."""

from dataclasses import dataclass, replace
from functools import partial

from notifier.domain.bot_state import BotState
from notifier.domain.bots import Bot
from notifier.domain.clock import Clock
from notifier.domain.failures import (
    Failure,
    Misconfigured,
    Reason,
    Rejected,
    Throttled,
    Transient,
)
from notifier.domain.ledger_entries import Claim, Control
from notifier.domain.notification import Notification, message_id
from notifier.domain.receipts import Receipt
from notifier.domain.status import latest
from notifier.use_cases.send_notification.breaker import Breaker
from notifier.use_cases.send_notification.outcomes import (
    Outcome,
    Outcomes,
    Result,
    expired,
    logged,
)
from notifier.use_cases.send_notification.ports import Blip, BotStates, Ledger, Receipts
from notifier.use_cases.send_notification.round import (
    CALL_SECONDS,
    CLOCK_SKEW_SECONDS,
    SETTLE_SECONDS,
    Round,
)
from notifier.use_cases.send_notification.waits import Waits
from notifier.use_cases.slots import RetryLater

# BLiP's history goes back three days: it cannot deny what may have gone out before that.
HISTORY_SECONDS = 3 * 86_400
# When the first question for receipts is worth asking (they lag by minutes).
FIRST_POLL_SECONDS = 300
# After so long a message that was sent before the unknown serves as its control, too.
WITHOUT_LATER_MESSAGE_SECONDS = 6 * 3600
# A send was begun at most so long before its lease ended (`FunctionTimeoutSeconds`).
MAX_LEASE_SECONDS = 900 + 2 * CLOCK_SKEW_SECONDS


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Settles unknown sends, and keeps the messages by which a history can be tested."""

    ledger: Ledger
    bot_states: BotStates
    blip: Blip
    receipts: Receipts
    breaker: Breaker
    outcomes: Outcomes
    clock: Clock
    waits: Waits

    def reconcile(
        self, notification: Notification, claim: Claim, bot: Bot | None, this_round: Round
    ) -> Result:
        """Ask BLiP's history about an unknown, then settle it, send again, or give up."""
        if bot is None:
            return self._ask_later(notification, claim)
        asked_about = message_id(claim.key, claim.generation)
        try:
            receipts = self.breaker.with_fresh_key(
                bot, lambda bot: self._history(asked_about, bot, this_round)
            )
        except Throttled as failure:
            self.ledger.release_unknown(claim)
            return self.breaker.throttled(notification, bot, "commands", failure, this_round)
        except RetryLater as wait:
            self.ledger.release_unknown(claim)
            return self.breaker.retry_later(notification, wait)
        except (Rejected, Transient, Misconfigured) as failure:  # none of them is an answer
            return self._ask_later(notification, claim, failure.detail)
        if not receipts:
            return self._not_shown(notification, claim, bot, this_round)
        self._history_shows(bot, claim.in_flight_until - MAX_LEASE_SECONDS, this_round)
        if bot.receipts == "history":
            self.ledger.mark_sent(claim, self.clock.now() + FIRST_POLL_SECONDS)
        self.receipts.record(latest(receipts))
        return logged(notification, Outcome.SETTLED)

    def keep_controls(self, results: list[Result], this_round: Round) -> None:
        """Keep a message of this round for each bot, by which its history can be tested later.

        At most one write per bot and third of a settle window.
        """
        older_than = self.clock.now() - self.waits.policy.settle_window_seconds / 3
        sent = [result.sent_as for result in results if result.sent_as is not None]
        for bot, control in dict(reversed(sent)).items():
            controls = this_round.state(bot).controls
            if not controls or controls[-1].at < older_than:
                keep = partial(self.bot_states.keep_control, bot, control, older_than)
                self.breaker.note(bot, keep)

    def _history(self, asked_about: str, bot: Bot, this_round: Round) -> list[Receipt]:
        time_for_it = CALL_SECONDS + SETTLE_SECONDS
        this_round.needs(time_for_it)
        return self.blip.history(
            bot,
            asked_about,
            lambda: this_round.wait_for_slot(bot, "commands", known=True, after=time_for_it),
        )

    def _history_shows(self, bot: Bot, sent_at: float, this_round: Round) -> None:
        """Record how far BLiP's history goes, unless that is known."""
        if sent_at > this_round.state(bot.name).history_seen:
            self.bot_states.history_shows(bot.name, sent_at)

    def _ask_later(
        self, notification: Notification, claim: Claim, detail: str | None = None
    ) -> Result:
        """Ask again later; give up what BLiP's history no longer holds."""
        if self.clock.now() - claim.in_flight_until >= HISTORY_SECONDS:
            return self._give_up(notification, claim)
        self.ledger.release_unknown(claim)
        return logged(
            notification,
            Outcome.UNSETTLED,
            retry_in=self.waits.for_settling(),
            detail=detail,
        )

    def _not_shown(
        self, notification: Notification, claim: Claim, bot: Bot, this_round: Round
    ) -> Result:
        """Believe an empty history only if the history shows a control message of that time.

        The history may lag, or its answer may be unreadable: an empty answer alone would send
        every unknown twice. That it fills in the order of time is inferred, not documented.
        """
        now = self.clock.now()
        if now - claim.in_flight_until >= HISTORY_SECONDS:
            return self._give_up(notification, claim)
        resend = notification.request.if_unknown == "resend" and claim.denials == 0
        known_by = claim.in_flight_until + CLOCK_SKEW_SECONDS
        if not resend or this_round.state(bot.name).history_seen >= known_by:
            return self._denied(notification, claim)
        for_long = now - claim.in_flight_until >= WITHOUT_LATER_MESSAGE_SECONDS
        control = _control(claim, this_round.state(bot.name), now)
        if control is None:
            if for_long:
                return self._give_up(notification, claim)
            return self._ask_later(notification, claim)
        is_later = control.at >= known_by
        if (is_later or for_long) and self._is_shown(control, bot, this_round):
            return self._denied(notification, claim)
        # The bot's controls are replaced every few minutes. This one is kept with the unknown, so
        # that it can grow old enough to be shown.
        bound = replace(claim, control=control) if is_later else claim
        return self._ask_later(notification, bound)

    def _is_shown(self, control: Control, bot: Bot, this_round: Round) -> bool:
        """Ask BLiP's history about a message that BLiP surely took, once for the whole round."""
        try:
            shown = this_round.once.ask(
                control.message_id, lambda: self._history(control.message_id, bot, this_round)
            )
        except Throttled as failure:
            self.breaker.start_cooldown(bot, "commands", failure, this_round)
            return False
        except (Failure, RetryLater):  # none of them is an answer
            return False
        if shown:
            self._history_shows(bot, control.at, this_round)
        return bool(shown)

    def _denied(self, notification: Notification, claim: Claim) -> Result:
        """Send it again, once, if the producer wants that: BLiP never received it."""
        valid_until = notification.valid_until
        if valid_until is not None and valid_until <= self.clock.now():
            return self.outcomes.give_up(notification, claim, expired(valid_until, "never sent"))
        if notification.request.if_unknown == "resend" and claim.denials == 0:
            self.ledger.mark_not_sent(claim)
            return logged(notification, Outcome.DENIED, retry_in=0)
        return self._give_up(notification, claim)

    def _give_up(self, notification: Notification, claim: Claim) -> Result:
        minutes = self.waits.policy.settle_window_seconds / 60
        failure = Rejected(
            Reason.OUTCOME_UNKNOWN,
            f"it may have been sent; BLiP's history did not show it within {minutes:g} minutes",
        )
        return self.outcomes.give_up(notification, claim, failure)


def _control(claim: Claim, state: BotState, now: float) -> Control | None:
    """Return the message that the history has to show before it can deny an unknown.

    It is the one that is kept with the unknown; else the older one of those that were sent after
    it; else the newest one before it, as long as BLiP keeps it.
    """
    if claim.control is not None:
        return claim.control
    known_by = claim.in_flight_until + CLOCK_SKEW_SECONDS
    later = [control for control in state.controls if control.at >= known_by]
    kept = [control for control in state.controls if now - control.at < HISTORY_SECONDS]
    return later[0] if later else kept[-1] if kept else None
