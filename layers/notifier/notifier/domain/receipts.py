"""What BLiP reports about a message that was sent."""

from dataclasses import dataclass
from enum import StrEnum

from notifier.domain.status import Status


class FailureKind(StrEnum):
    """What follows when a receipt says that a message failed."""

    PERMANENT = "permanent"
    RATE_LIMITED = "rate limited"  # a rate limit: one more generation, after a while
    SPORADIC = "sporadic"  # WhatsApp's own trouble; of many, the bot's number is down
    UNREACHABLE = "unreachable"  # the recipient is not to be had under this identity
    NUMBER_DOWN = "number down"  # it speaks for the bot's whole WhatsApp number
    POSSIBLY_SENT = "possibly sent"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What BLiP reports about a message that we sent.

    Attributes:
        key: the notification.
        generation: the generation of the message.
        status: `accepted`, `dispatched`, `received`, `consumed` or `failed`.
        undelivered: for `failed`: what follows.
        code: for `failed`: BLiP's or WhatsApp's reason code.
        detail: for `failed`: the code's meaning, in a sentence.
        bots: those whose secret was shown with it at the webhook; empty if it may be of any bot.
    """

    key: str
    generation: int
    status: Status
    failure_kind: FailureKind = FailureKind.PERMANENT
    code: int | None = None
    detail: str = ""
    bots: tuple[str, ...] = ()

    def may_be_of(self, bot: str) -> bool:
        """Return whether a bot's messages may be reported on with the secret that was shown."""
        return not self.bots or bot in self.bots
