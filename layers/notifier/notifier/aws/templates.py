"""What all sandboxes know of a bot's templates, in the bot's item."""

from typing import TYPE_CHECKING

from notifier.aws.bot_state import bot_key
from notifier.aws.table import Table, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable

# The bot's item is read with every batch, so it holds no more of them.
MOST_PAUSED = 100


class DynamoDbTemplates:
    """The bots' items, for their templates. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now

    def pause(self, bot: str, name: str, language: str) -> None:
        """Record that WhatsApp has paused a template."""
        paused = f"{name}/{language}@{milliseconds(self._now())}"
        self._table.update(
            bot_key(bot),
            "ADD paused_templates :elements",
            "attribute_not_exists(paused_templates) OR size(paused_templates) < :most",
            {":elements": {paused}, ":most": MOST_PAUSED},
        )
