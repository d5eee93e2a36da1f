"""What polling and syncing share: the bots they can ask, and the slots they ask them in."""

import logging
from collections.abc import Mapping
from typing import Protocol

from notifier.domain.bot_state import BotState, Plan, Reservation
from notifier.domain.bots import Bot, BotsSecretError, InvalidBot
from notifier.domain.clock import Clock
from notifier.use_cases.slots import SLOT_HORIZON_SECONDS, Slots

logger = logging.getLogger(__name__)


class Secrets(Protocol):
    """The bots, from their secret."""

    def bots(self) -> Mapping[str, Bot | InvalidBot]: ...


class BotStates(Protocol):
    """Keeps every bot to its plan."""

    def state(self, bot: str) -> BotState: ...
    def reserve(
        self, bot: Bot, plan: Plan, count: int, horizon: float, *, share: float, asking: bool
    ) -> Reservation: ...
    def start_cooldown(self, bot: Bot, plan: Plan, until: float) -> bool: ...


def usable_bots(secrets: Secrets) -> list[Bot]:
    """Return the bots whose entry in the secret is valid; none if the secret as a whole is not."""
    try:
        bots = secrets.bots()
    except BotsSecretError as error:
        logger.error("no bot can be asked", extra={"problem": str(error)})
        return []
    return [bot for bot in bots.values() if isinstance(bot, Bot)]


def command_slots(
    bot_states: BotStates, bot: Bot, state: BotState, clock: Clock, *, for_receipts: bool
) -> Slots:
    """Return slots of the bot's plan for commands; `for_receipts` also while its number is down."""

    def reserve(count: int, _: float) -> Reservation:
        share = state.share("commands", bot.share, clock.now())
        return bot_states.reserve(
            bot, "commands", count, SLOT_HORIZON_SECONDS, share=share, asking=for_receipts
        )

    return Slots(reserve, clock)
