"""What BLiP reports about a message that was sent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from notifier.domain.status import Status


class FailureKind(StrEnum):
    """What follows when a receipt says that a message failed."""

    PERMANENT = "permanent"
    OPTED_OUT = "opted out"  # the recipient wants no marketing
    RATE_LIMITED = "rate limited"  # a rate limit: one more generation, after a while
    SPORADIC = "sporadic"  # WhatsApp's own trouble; of many, the bot's number is down
    TEMPLATE_PAUSED = "template paused"  # it speaks for all messages of the template
    CAPPED = "recipient capped"  # WhatsApp has sent the recipient enough marketing for now
    PERHAPS_CAPPED = "perhaps capped"  # of marketing it may be a cap; else UNREACHABLE
    ACCOUNT_LIMITED = "account limited"  # it speaks for the marketing of the bot's account
    UNREACHABLE = "unreachable"  # the recipient is not to be had under this identity
    NUMBER_DOWN = "number down"  # it speaks for the bot's whole WhatsApp number
    POSSIBLY_SENT = "possibly sent"


# Rate limits and troubles are over after minutes.
SHORT_WAIT_SECONDS = (300.0, 900.0)
_ONCE = frozenset({FailureKind.RATE_LIMITED, FailureKind.SPORADIC})
MAX_WAITS_FOR_TEMPLATE = 20
# A cap is over after a day, or lasts longer; and what it capped should not come back all at once.
LONG_WAITS_HOURS = (24.0, 48.0, 96.0)
MAX_JITTER = 0.1
_LONG = frozenset({FailureKind.CAPPED, FailureKind.PERHAPS_CAPPED, FailureKind.ACCOUNT_LIMITED})


def wait_seconds(
    kind: FailureKind, waits: Sequence[str], uniform: Callable[[float, float], float]
) -> float | None:
    """Return for how long a message that failed should wait to be sent again; None: it should not.

    Args:
        kind: of the failure.
        waits: the kinds of the waits before it, since it was published or redriven.
        uniform: a random number between two bounds.
    """
    if kind in _ONCE:
        return None if waits and waits[-1] in _ONCE else uniform(*SHORT_WAIT_SECONDS)
    if kind is FailureKind.TEMPLATE_PAUSED:
        is_enough = waits.count(kind) >= MAX_WAITS_FOR_TEMPLATE
        return None if is_enough else uniform(*SHORT_WAIT_SECONDS)
    long_waits = sum(wait in _LONG for wait in waits)
    if kind not in _LONG or long_waits >= len(LONG_WAITS_HOURS):
        return None
    return 3600 * LONG_WAITS_HOURS[long_waits] * uniform(1, 1 + MAX_JITTER)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What BLiP reports about a message that we sent.

    Attributes:
        key: the notification.
        generation: the generation of the message.
        status: `accepted`, `dispatched`, `received`, `consumed` or `failed`.
        failure_kind: for `failed`: what follows.
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
