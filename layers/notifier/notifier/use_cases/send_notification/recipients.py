"""Phone number to WhatsApp identity: from the cache, or by one look-up for all sandboxes."""

from dataclasses import dataclass

from notifier.domain.bots import Bot
from notifier.domain.clock import Clock, Meter
from notifier.domain.failures import Misconfigured, Reason, Rejected, Throttled, Transient
from notifier.domain.notification import Notification
from notifier.domain.recipients import Identity
from notifier.use_cases.send_notification.breaker import Breaker
from notifier.use_cases.send_notification.ports import Blip, Identities
from notifier.use_cases.send_notification.round import CALL_SECONDS, SETTLE_SECONDS, Round
from notifier.use_cases.send_notification.waits import Waits
from notifier.use_cases.slots import RetryLater

# A look-up may be tried twice; its lease outlives both tries.
LOOK_UP_LEASE_SECONDS = 2 * CALL_SECONDS + SETTLE_SECONDS
LOOK_UP_RACE_SECONDS = 2.0
LOOK_UP_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Recipients:
    """Finds out how WhatsApp calls a recipient."""

    identities: Identities
    blip: Blip
    breaker: Breaker
    meter: Meter
    clock: Clock
    waits: Waits

    def identify(
        self, notification: Notification, bot: Bot, identity: Identity | None, this_round: Round
    ) -> str:
        """Return the recipient's identity. BLiP is asked by one sandbox at a time per recipient.

        Many look-ups without a send get a number banned, so a look-up starts only if enough time
        is left for the send, too.
        """
        self.meter.count("identity_miss" if identity is None else "identity_hit")
        if identity is not None:
            return _address(identity)
        lease = self.identities.lease(notification.recipient, LOOK_UP_LEASE_SECONDS)
        if isinstance(lease, Identity):
            return _address(lease)
        if lease is None:
            return _address(self._found_by_another(notification))
        try:
            address = self.breaker.with_fresh_key(
                bot, lambda bot: self._look_up(notification, bot, this_round)
            )
        except Rejected as failure:
            if failure.reason is Reason.NOT_A_PHONE_NUMBER:
                self.identities.store(lease, Identity(None, failure.code))
            else:
                self.identities.release(lease)
            raise
        except (RetryLater, Transient, Throttled, Misconfigured):
            self.identities.release(lease)
            raise
        self.identities.store(lease, Identity(address))
        return address

    def _look_up(self, notification: Notification, bot: Bot, this_round: Round) -> str:
        time_for_both = 2 * (CALL_SECONDS + SETTLE_SECONDS)
        this_round.check(bot.name)
        this_round.needs(time_for_both)

        def on_connected() -> None:
            this_round.wait_for_slot(bot, "commands", known=False, after=time_for_both)
            this_round.looked_up.add(notification.key)

        return self.blip.look_up(bot, notification.request.to, on_connected)

    def _found_by_another(self, notification: Notification) -> Identity:
        """Watch the table for what another sandbox is looking up.

        Raises:
            RetryLater: it takes too long; the request comes back, and asks BLiP no second time.
        """
        give_up_at = self.clock.now() + LOOK_UP_RACE_SECONDS
        while self.clock.now() < give_up_at:
            self.clock.sleep(LOOK_UP_POLL_SECONDS)
            identity = self.identities.get(notification.recipient)
            if identity is not None:
                return identity
        raise RetryLater(self.waits.uniform(1, 5))


def _address(identity: Identity) -> str:
    if identity.address is None:
        raise Rejected(
            Reason.NOT_A_PHONE_NUMBER,
            "BLiP's look-up says that the recipient is not a phone number on WhatsApp",
            code=identity.code,
        )
    return identity.address
