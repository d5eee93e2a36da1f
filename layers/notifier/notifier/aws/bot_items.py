"""The bots' items in the identities' table: the one thing that all sandboxes share.

key                bot:NAME (partition key, in the identities' table)
next_messages_at   epoch microseconds: the first free send slot
next_commands_at   epoch microseconds: the first free slot for look-ups and history queries
throttled_until    epoch milliseconds: nothing goes to BLiP before (the cooldown)
broken             why the breaker is open; absent while it is closed
paused             epoch milliseconds: since when an operator has paused it; absent otherwise
failing            the notifications that failed in a row without a definite answer
probe_until        epoch milliseconds: an open breaker is not probed before
number_down_at     epoch milliseconds: when a receipt said that the number cannot deliver
tried_at           epoch milliseconds: when, since then, BLiP took a message again
reserved           how many slots for messages were ever reserved
down, down_since   some notifications whose receipts spoke of WhatsApp's own trouble; since when
down_count         how many such receipts there were
down_reserved      what `reserved` was then
messages_share, commands_share  millionths of the plan that were left after the last cooldown
messages_share_at, commands_share_at  epoch milliseconds: since when
missing_since      epoch milliseconds: since when the bots' secret lacks its entry
control, control_at  a message that BLiP took, epoch milliseconds at which it was sent or later
control_before, control_before_at  the one before it
history_seen       epoch milliseconds: BLiP's history has shown a message sent then or later
paused_templates   what WhatsApp has paused: a set of NAME/LANGUAGE@EPOCH_MILLISECONDS
templates_synced_at  epoch milliseconds: when BLiP was last asked for all templates
"""

from typing import TYPE_CHECKING

from notifier.aws.table import Item
from notifier.domain.bot_state import BotState, Plan
from notifier.domain.ledger_entries import Control

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MICROSECONDS = 1_000_000


def bot_key(bot: str) -> str:
    """Return the key of a bot's item. Identities' keys hold a `/`, this never does."""
    return f"bot:{bot}"


def bot_state(item: Item) -> BotState:
    """Read a bot's item."""
    plans: tuple[Plan, ...] = ("messages", "commands")
    return BotState(
        throttled_until=item.get("throttled_until", 0) / 1000,
        broken=item.get("broken", ""),
        paused="paused" in item,
        failing=len(item.get("failing", ())),
        next_message_at=item.get("next_messages_at", 0) / MICROSECONDS,
        missing_since=item.get("missing_since", 0) / 1000,
        shares={
            plan: (item[f"{plan}_share"] / MICROSECONDS, item[f"{plan}_share_at"] / 1000)
            for plan in plans
            if f"{plan}_share" in item
        },
        controls=tuple(
            Control(item[name], item[f"{name}_at"] / 1000)
            for name in ("control_before", "control")
            if name in item
        ),
        history_seen=item.get("history_seen", 0) / 1000,
        paused_templates=_paused(item.get("paused_templates", ())),
        templates_synced_at=item.get("templates_synced_at", 0) / 1000,
    )


def paused_template(name: str, language: str, since: int) -> str:
    """Write one element of `paused_templates`; `since` is in epoch milliseconds."""
    return f"{name}/{language}@{since}"


def paused_since(element: str) -> float:
    """Return since when an element of `paused_templates` holds, in epoch seconds."""
    return int(element.rpartition("@")[2]) / 1000


def _paused(elements: "Iterable[str]") -> "Mapping[tuple[str, str], float]":
    paused: dict[tuple[str, str], float] = {}
    for element in elements:
        name, _, language = element.rpartition("@")[0].partition("/")
        since = max(paused.get((name, language), 0.0), paused_since(element))
        paused[name, language] = since
    return paused
