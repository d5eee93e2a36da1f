"""One notification, from top to bottom: check, claim, fit the template, identify, send, settle.

What follows from a failure is decided here, in `_send_claimed`; what a failure *is*, by `blip`.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from notifier.domain.bots import Bot, InvalidBot
from notifier.domain.clock import Clock, Meter
from notifier.domain.failures import (
    Misconfigured,
    Reason,
    Rejected,
    Throttled,
    Transient,
    Unknown,
)
from notifier.domain.ledger_entries import Claim, ClaimLost, Control, LedgerEntry
from notifier.domain.notification import Notification, message_id
from notifier.domain.recipients import Identity
from notifier.domain.status import SENT_OR_LATER, STARTS_BY_GENERATION, Status
from notifier.use_cases.send_notification.breaker import Breaker
from notifier.use_cases.send_notification.outcomes import (
    Outcome,
    Outcomes,
    Result,
    expired,
    logged,
)
from notifier.use_cases.send_notification.ports import Blip, Identities, Ledger
from notifier.use_cases.send_notification.recipients import Recipients
from notifier.use_cases.send_notification.reconciliation import (
    FIRST_POLL_SECONDS,
    Reconciliation,
)
from notifier.use_cases.send_notification.round import CALL_SECONDS, SETTLE_SECONDS, Round
from notifier.use_cases.send_notification.templates import Templates
from notifier.use_cases.send_notification.waits import MAX_WAIT_SECONDS, Waits
from notifier.use_cases.slots import RetryLater

if TYPE_CHECKING:
    from notifier.domain.bot_state import Plan


@dataclass(frozen=True, slots=True)
class Delivery:
    """Delivers single notifications; its parts are shared by the threads of a batch."""

    ledger: Ledger
    identities: Identities
    blip: Blip
    templates: Templates
    recipients: Recipients
    reconciliation: Reconciliation
    breaker: Breaker
    outcomes: Outcomes
    meter: Meter
    clock: Clock
    waits: Waits

    def bot_for(
        self, notification: Notification, bot: Bot | InvalidBot | None, this_round: Round
    ) -> Bot | None:
        """Return the bot of a notification; None if it does not exist, or the request is rejected.

        Raises:
            RetryLater: it has to wait for its bot, or for its template.
        """
        try:
            self.templates.hold(notification, this_round)
            return self.breaker.admit(bot, this_round)
        except RetryLater:
            if self.rejection(notification):  # it ends now: SQS would delete it silently one day
                return None
            raise

    def claim(
        self,
        notification: Notification,
        bot: Bot | None,
        identity: Identity | None,
        this_round: Round,
    ) -> Claim | Result:
        """Claim a notification for sending, or return the result that prevents it."""
        known = identity is not None and identity.address is not None
        known = known and bot is not None and not self.rejection(notification)
        status = Status.SENDING if known else Status.CLAIMED
        found = self.ledger.claim(notification, status, this_round.lease_until)
        now = self.clock.now()
        if isinstance(found, Claim):
            if found.attempts == 1:
                waited = now - notification.queued.published_at
                self.meter.took("published_to_claimed", waited)
            return found

        if found.status is Status.CANCELLED:
            return self._cancelled(notification, found)
        if found.content_hash != notification.content_hash:
            return self.outcomes.refuse_conflict(notification)
        if found.status in SENT_OR_LATER or found.status in STARTS_BY_GENERATION:
            return logged(notification, Outcome.DUPLICATE)
        if found.lease_until > now:
            wait = self.waits.jittered(found.lease_until - now)
            return logged(notification, Outcome.RETRY_LATER, retry_in=wait)
        if found.status not in {Status.UNKNOWN, Status.SENDING}:
            # It was released between the two reads.
            return logged(notification, Outcome.RETRY_LATER, retry_in=1)
        can_be_asked_at = found.in_flight_until + self.waits.policy.settle_window_seconds
        if can_be_asked_at > now:
            wait = self.waits.for_settling(can_be_asked_at - now)
            return logged(notification, Outcome.UNSETTLED, retry_in=wait)
        claimed = self.ledger.claim_unknown(found, this_round.lease_until)
        return claimed or logged(notification, Outcome.RETRY_LATER, retry_in=30)

    def deliver(
        self,
        notification: Notification,
        claim: Claim,
        bot: Bot | None,
        identity: Identity | None,
        this_round: Round,
    ) -> Result:
        """Bring one claimed notification to its end, or as near to it as possible now."""
        if claim.status is Status.UNKNOWN:
            return self.reconciliation.reconcile(notification, claim, bot, this_round)
        try:
            rejected = self.rejection(notification)
            if rejected is None and bot is not None:
                return self._send_claimed(notification, claim, bot, identity, this_round)
            failure = rejected or _unknown_bot(notification)
            return self.outcomes.give_up(notification, claim, failure)
        except Exception:  # whatever it was, it is raised again
            # The ledger must not say "may have been sent" of a notification that surely was not.
            if notification.key not in this_round.posted:
                self.ledger.release_unsent(claim)
            raise

    def _send_claimed(
        self,
        notification: Notification,
        claim: Claim,
        bot: Bot,
        identity: Identity | None,
        this_round: Round,
    ) -> Result:
        """Send one claimed notification; there is one `except` per consequence of a failure."""
        known = claim.status is Status.SENDING
        claimed_at = self.clock.now()
        try:
            self.templates.check(notification, bot, this_round)
            address = self.recipients.identify(notification, bot, identity, this_round)
            if not known:
                claim = self.ledger.start_sending(claim, this_round.lease_until)
            self._send(notification, claim, bot, address, this_round, known=known)
        except RetryLater as wait:
            self.ledger.release(claim, attempted=False)
            return self.breaker.retry_later(notification, wait)
        except ClaimLost as lost:
            return self._lost(notification, lost)
        except Rejected as failure:
            return self.outcomes.give_up(notification, claim, failure)
        except Transient as failure:
            return self._retry(notification, claim, failure)
        except Throttled as failure:
            self.ledger.release(claim, attempted=False)
            plan: Plan = "messages" if claim.status is Status.SENDING else "commands"
            return self.breaker.throttled(notification, bot, plan, failure, this_round)
        except Misconfigured as failure:
            return self._misconfigured(notification, claim, bot, failure, this_round)
        except Unknown as failure:
            self.ledger.mark_unknown(claim)
            return logged(
                notification,
                Outcome.UNKNOWN,
                retry_in=min(MAX_WAIT_SECONDS, self.waits.policy.settle_window_seconds + 1),
                detail=failure.detail,
                no_answer=True,
            )
        poll_at = self.clock.now() + FIRST_POLL_SECONDS if bot.receipts == "history" else None
        self.ledger.mark_sent(claim, poll_at)
        self.meter.took("claimed_to_sent", self.clock.now() - claimed_at)
        control = Control(
            message_id(claim.key, claim.generation), this_round.posted[notification.key]
        )
        return logged(notification, Outcome.SENT, sent_as=(bot.name, control))

    def _send(
        self,
        notification: Notification,
        claim: Claim,
        bot: Bot,
        address: str,
        this_round: Round,
        *,
        known: bool,
    ) -> None:
        """Send it in its slot, unless it may not be sent any more when the slot comes."""
        time_for_it = CALL_SECONDS + SETTLE_SECONDS

        def on_connected() -> None:
            this_round.wait_for_slot(bot, "messages", known=known, after=time_for_it)
            if rejected := self.rejection(notification):
                raise rejected
            this_round.posted[notification.key] = self.clock.now()

        def send(bot: Bot) -> None:
            this_round.check(bot.name)
            this_round.needs(time_for_it)
            self.blip.send(
                bot,
                message_id(claim.key, claim.generation),
                address,
                notification.request.template,
                on_connected,
            )

        try:
            self.breaker.with_fresh_key(bot, send)
        except (RetryLater, Transient, Throttled, Misconfigured):
            # Surely not sent, even if the ledger cannot be written now.
            this_round.posted.pop(notification.key, None)
            raise

    # --- what follows -----------------------------------------------------------------------------

    def rejection(self, notification: Notification) -> Rejected | None:
        """Return why a notification may not be sent, whatever happens; None if it may."""
        request, policy, now = notification.request, self.waits.policy, self.clock.now()
        valid_until = notification.valid_until
        if valid_until is not None and valid_until <= now:
            return expired(valid_until, "which has passed")
        if now - notification.queued.published_at >= policy.max_wait_seconds:
            days = policy.max_wait_seconds / 86_400
            return Rejected(Reason.WAITED_TOO_LONG, f"it lay on the queue for {days:g} days")
        if notification.queued.known_since < policy.ledger_restored_at:
            return Rejected(
                Reason.OUTCOME_UNKNOWN,
                "it is older than the ledger's restoration from a backup, and may have been sent",
            )
        if not request.to.startswith(policy.allowed_recipients):
            return Rejected(
                Reason.NOT_ALLOWED,
                "this stack may not send to the recipient: its parameter AllowedRecipients names "
                "those that it may",
            )
        return None

    def _cancelled(self, notification: Notification, found: LedgerEntry) -> Result:
        """Send nothing. If it was cancelled in advance, its status event waits for the request."""
        if not (found.template or found.forgotten):
            self.ledger.complete_cancelled(notification)
        return logged(notification, Outcome.CANCELLED)

    def _lost(self, notification: Notification, lost: ClaimLost) -> Result:
        if lost.forgotten:  # while the recipient was looked up: nothing else would erase it
            self.identities.erase(notification.recipient)
        return logged(notification, Outcome.RETRY_LATER, retry_in=self.waits.uniform(5, 10))

    def _retry(
        self,
        notification: Notification,
        claim: Claim,
        failure: Transient | Misconfigured,
        outcome: Outcome = Outcome.RETRYING,
        *,
        no_answer: bool = True,
    ) -> Result:
        """Release it for the next attempt, or give up after the last one."""
        if claim.attempts >= self.waits.policy.max_attempts:
            exhausted = Rejected(
                Reason.RETRIES_EXHAUSTED,
                f"{claim.attempts} attempts failed, the last one: {failure.detail}",
                code=failure.code,
            )
            ended = self.outcomes.give_up(notification, claim, exhausted)
            return replace(ended, no_answer=no_answer)
        self.ledger.release(claim, attempted=True)
        wait = self.waits.for_retry(claim.attempts, notification.valid_until, self.clock.now())
        return logged(
            notification, outcome, retry_in=wait, detail=failure.detail, no_answer=no_answer
        )

    def _misconfigured(
        self,
        notification: Notification,
        claim: Claim,
        bot: Bot,
        failure: Misconfigured,
        this_round: Round,
    ) -> Result:
        """Find out by one ping per round whether the bot is wrong, or only this notification.

        If the ping is answered, this was an attempt of the notification. Five different ones in a
        row open the breaker all the same: a bot without a WhatsApp channel answers pings. Only
        first attempts count for that, because a later one says nothing new about the bot.
        """
        if bot.name in this_round.probing:  # it has answered the probe's ping
            if self.breaker.blames_notification(notification, this_round):
                return self._retry(notification, claim, failure, Outcome.REFUSED, no_answer=False)
        else:
            try:
                is_wrong = self.breaker.is_wrong(bot, this_round)
            except RetryLater as wait:
                self.ledger.release(claim, attempted=False)
                return self.breaker.retry_later(notification, wait)
            except Throttled as throttled:
                self.ledger.release(claim, attempted=False)
                return self.breaker.throttled(notification, bot, "commands", throttled, this_round)
            if not is_wrong:
                first = claim.attempts == 1
                return self._retry(notification, claim, failure, Outcome.REFUSED, no_answer=first)
        self.ledger.release(claim, attempted=False)
        return self.breaker.open(notification, bot, failure, this_round)


def _unknown_bot(notification: Notification) -> Rejected:
    name = notification.request.bot
    return Rejected(
        Reason.UNKNOWN_BOT,
        f"the bots' secret has no entry {name!r}: add it, or fix the request",
    )
