"""What all sandboxes share of a bot. Times in epoch seconds."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notifier.domain.ledger_entries import Control

# The longest that WhatsApp pauses a template for.
PAUSE_SECONDS = 6 * 3600.0
# How fast the share of a plan climbs back after a cooldown: 0.02 an hour.
SHARE_PER_SECOND = 0.02 / 3600


type Plan = Literal["messages", "commands"]


class HoldReason(StrEnum):
    """Why nothing of a bot, or of one of its templates, goes out."""

    BREAKER_OPEN = "breaker_open"  # its breaker is open
    MISCONFIGURED = "misconfigured"  # its entry in the secret is wrong, or missing
    PAUSED = "paused"  # an operator wants it so
    COOLING_DOWN = "cooling_down"  # BLiP has throttled it
    TEMPLATE_PAUSED = "template_paused"  # not all of the bot: WhatsApp has paused the template


@dataclass(frozen=True, slots=True)
class BotState:
    """What all sandboxes know of a bot.

    Attributes:
        throttled_until: when its cooldown ends, until which nothing goes to BLiP; 0 without one.
        broken: why the breaker is open; empty while it is closed.
        paused: an operator has stopped it.
        failing: how many notifications in a row have failed without a definite answer.
        next_message_at: the first free send slot.
        missing_since: since when the bots' secret lacks its entry; 0 if it does not.
        shares: by plan, the share of it that was left after the last cooldown, and since when.
        controls: messages that BLiP took lately, the older first: what its history should show.
        history_seen: BLiP's history has shown a message that was sent then, or later.
        paused_templates: by name and language, since when WhatsApp has paused them.
        templates_synced_at: when BLiP was last asked for all of its templates; 0 if it never was.
    """

    throttled_until: float = 0.0
    broken: str = ""
    paused: bool = False
    failing: int = 0
    next_message_at: float = 0.0
    missing_since: float = 0.0
    shares: "Mapping[Plan, tuple[float, float]]" = field(default_factory=dict)
    controls: "tuple[Control, ...]" = ()
    history_seen: float = 0.0
    paused_templates: "Mapping[tuple[str, str], float]" = field(default_factory=dict)
    templates_synced_at: float = 0.0

    def holds(self, template: str, language: str, now: float) -> bool:
        """Return whether a template is paused.

        The registry ends a pause. If it has not been synced since, the pause ends by itself: else
        one receipt would hold the template for good where BLiP lists no templates.
        """
        since = self.paused_templates.get((template, language))
        if since is None:
            return False
        return self.templates_synced_at > since or now - since < PAUSE_SECONDS

    def share(self, plan: "Plan", ceiling: float, now: float) -> float:
        """Return the share of a plan that may be used now.

        It climbs back by itself: it is computed when it is read, and nothing is written.

        Args:
            plan: which plan.
            ceiling: the bot's own share.
            now: the time.
        """
        if plan not in self.shares:
            return ceiling
        share, since = self.shares[plan]
        return min(ceiling, share + SHARE_PER_SECOND * max(0.0, now - since))


@dataclass(frozen=True, slots=True)
class Reservation:
    """Slots, evenly spaced, perhaps fewer than asked for; or none.

    Attributes:
        retry_in: without slots: seconds until one may be free; None while the breaker is open.
        why: without slots: why the bot is still; None if its first free slot is too far away.
    """

    slots: tuple[float, ...]
    retry_in: float | None = 0.0
    why: HoldReason | None = None
