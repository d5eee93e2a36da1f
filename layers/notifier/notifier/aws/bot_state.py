"""Keeps every bot to its plan, and still while it does not work: the writes of its item.

Slots are evenly spaced and never made up for when missed, so no second holds more of them than the
share of the plan allows, however many sandboxes there are.
"""

from typing import TYPE_CHECKING, Any

from notifier.aws.bot_items import MICROSECONDS, bot_key, bot_state
from notifier.aws.table import Item, Table, milliseconds
from notifier.domain.bot_state import BotState, HoldReason, Plan, Reservation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from notifier.domain.bots import Bot
    from notifier.domain.ledger_entries import Control

# What a cooldown leaves of the share that was in force, and what is left at least.
SHARE_AFTER_COOLDOWN = 0.8
LEAST_SHARE = 0.1
# A reservation meets those of other sandboxes; then it looks again.
RESERVE_TRIES = 3
# So many different notifications within so long, and so large a part of what was sent meanwhile:
# then WhatsApp's trouble is the number's.
DOWN_NOTIFICATIONS = 5
DOWN_SECONDS = 1800.0
DOWN_PART = 0.1
# So many different notifications in a row without a definite answer open the breaker.
FAILING_IN_A_ROW = 5
PROBE_SECONDS = 30.0
# A number that cannot deliver is tried so seldom; and a receipt, one that is polled for too, has
# come by then.
NUMBER_DOWN_SECONDS = 600.0
# Who meets a pause in the middle of a batch comes back so soon, and then sees it in time.
PAUSED_SECONDS = 60.0

_NOT_HELD = (
    "(attribute_not_exists(throttled_until) OR throttled_until <= :now_ms)"
    " AND attribute_not_exists(paused)"
)
_COUNTED = ", reserved = if_not_exists(reserved, :none) + :count"
_NOT_BROKEN = "attribute_not_exists(broken)"
_NOT_BROKEN_OR_NUMBER_DOWN = f"({_NOT_BROKEN} OR attribute_exists(number_down_at))"


class DynamoDbBotStates:
    """The bots' items. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now

    def state(self, bot: str) -> BotState:
        """Read a bot's item as it stands now."""
        return bot_state(self._table.get(bot_key(bot)))

    def reserve(
        self,
        bot: "Bot",
        plan: Plan,
        count: int,
        horizon: float,
        *,
        share: float,
        probing: bool = False,
        asking: bool = False,
    ) -> Reservation:
        """Reserve up to `count` slots of the bot's plan, all within `horizon` seconds.

        One conditional write while no other sandbox uses the plan, two while one does. There are no
        slots while the bot is paused or in a cooldown, nor while its breaker is open, except for
        its probe.

        Args:
            bot: whose plan.
            plan: which of its plans.
            count: how many slots.
            horizon: how far away the last one may be.
            share: the share of the plan that is in force.
            probing: the one notification that tries a bot whose breaker is open.
            asking: for receipts. While the number is down, only they show that it still is.
        """
        interval = _interval(bot, plan, share)
        now = self._now()
        now_us = round(now * MICROSECONDS)
        end_us = now_us + round(horizon * MICROSECONDS)
        open_enough = _NOT_BROKEN_OR_NUMBER_DOWN if asking else _NOT_BROKEN
        allowed = _NOT_HELD if probing else f"{_NOT_HELD} AND {open_enough}"
        following = f"next_{plan}_at"
        counting = _COUNTED if plan == "messages" else ""
        item: Item = {}
        for _ in range(RESERVE_TRIES):
            first = max(now_us, item.get(following, 0))
            fit = min(count, int((end_us - first) // interval) + 1)
            if fit < 1 or _stands_still(item, now, probing=probing, asking=asking):
                break
            taken = round(fit * interval)
            values = {":now": now_us, ":now_ms": milliseconds(now)}
            values |= {":none": 0, ":count": fit} if counting else {}
            if first == now_us:
                held, item = self._table.update(
                    bot_key(bot.name),
                    f"SET {following} = :end{counting}",
                    f"(attribute_not_exists({following}) OR {following} <= :now) AND {allowed}",
                    values | {":end": now_us + taken},
                )
            else:
                held, item = self._table.update(
                    bot_key(bot.name),
                    f"SET {following} = {following} + :taken{counting}",
                    f"{following} > :now AND {following} <= :latest AND {allowed}",
                    values | {":taken": taken, ":latest": end_us - round((fit - 1) * interval)},
                )
            if held:
                return _slots(item[following] - taken, interval, fit)
        return _none(item, following, now, probing=probing, asking=asking)

    def start_cooldown(self, bot: "Bot", plan: Plan, until: float) -> bool:
        """Stop everything of this bot until then, in every sandbox: BLiP has throttled it.

        The first 429 of a cooldown lowers the share of the plan, the others only prolong it. Return
        whether this was the first.
        """
        now = self._now()
        share = max(
            LEAST_SHARE, SHARE_AFTER_COOLDOWN * self.state(bot.name).share(plan, bot.share, now)
        )
        first, _ = self._table.update(
            bot_key(bot.name),
            f"SET throttled_until = :until, {plan}_share = :share, {plan}_share_at = :now",
            "attribute_not_exists(throttled_until) OR throttled_until <= :now",
            {
                ":until": milliseconds(until),
                ":share": round(share * MICROSECONDS),
                ":now": milliseconds(now),
            },
        )
        if not first:
            self._table.update(
                bot_key(bot.name),
                "SET throttled_until = :until",
                "throttled_until < :until",
                {":until": milliseconds(until)},
            )
        return first

    def missing(self, bot: str) -> float:
        """Record that the bots' secret lacks this bot; return since when it does."""
        _, item = self._table.update(
            bot_key(bot),
            "SET missing_since = if_not_exists(missing_since, :now)",
            "attribute_exists(#key)",
            {":now": milliseconds(self._now())},
        )
        return float(item.get("missing_since", 0)) / 1000

    def found(self, bot: str) -> None:
        """Record that the bots' secret has this bot again."""
        self._table.update(bot_key(bot), "REMOVE missing_since", "attribute_exists(#key)", {})

    def keep_control(self, bot: str, control: "Control", older_than: float) -> None:
        """Keep a message that BLiP took, and the one before it; not if the newest is not so old."""
        self._table.update(
            bot_key(bot),
            "SET control_before = if_not_exists(control, :id),"
            " control_before_at = if_not_exists(control_at, :at), control = :id, control_at = :at",
            "attribute_not_exists(control_at) OR control_at < :older_than",
            {
                ":id": control.message_id,
                ":at": milliseconds(control.at),
                ":older_than": milliseconds(older_than),
            },
        )

    def history_shows(self, bot: str, sent_at: float) -> None:
        """Record that BLiP's history has shown a message that was sent then, or later."""
        self._table.update(
            bot_key(bot),
            "SET history_seen = :at",
            "attribute_not_exists(history_seen) OR history_seen < :at",
            {":at": milliseconds(sent_at)},
        )

    def open_breaker(self, bot: str, why: str) -> None:
        """Stop everything of this bot until a probe shows that it works again."""
        self._table.update(bot_key(bot), "SET broken = :why REMOVE failing", "", {":why": why})

    def number_down(self, bot: str, why: str) -> None:
        """Stop everything of this bot: a receipt says that its number cannot deliver.

        BLiP answers pings and takes messages all the while, so nothing is tried for a while.
        """
        now = self._now()
        self._table.update(
            bot_key(bot),
            "SET broken = :why, number_down_at = :now, probe_until = :until"
            " REMOVE failing, tried_at, down, down_since, down_count, down_reserved",
            "",
            {
                ":why": why,
                ":now": milliseconds(now),
                ":until": milliseconds(now + NUMBER_DOWN_SECONDS),
            },
        )

    def number_in_trouble(self, bot: str, key: str, sent_at: float, why: str) -> bool:
        """Count a notification whose receipt speaks of WhatsApp's own trouble.

        A few such receipts say nothing about the number. DOWN_NOTIFICATIONS different ones
        within DOWN_SECONDS do, if they are DOWN_PART of what was sent meanwhile: the number is
        down. Return whether it is. A message that was sent before the first of them counts for
        nothing: what was sent along with it is not known.
        """
        now = self._now()
        item = self._table.get(bot_key(bot))
        values: dict[str, Any] = {":now": milliseconds(now), ":one": 1}
        if milliseconds(now - DOWN_SECONDS) >= item.get("down_since", 0):
            self._table.update(
                bot_key(bot),
                "SET down_since = :now, down_reserved = :reserved, down_count = :one, down = :keys",
                "",
                values | {":reserved": item.get("reserved", 0), ":keys": {key}},
            )
            return False
        if milliseconds(sent_at) < item["down_since"]:
            return False
        few = len(item["down"]) < DOWN_NOTIFICATIONS
        held, item = self._table.update(
            bot_key(bot),
            f"SET down_count = down_count + :one{' ADD down :keys' if few else ''}",
            "down_since = :since",
            {":one": 1, ":since": item["down_since"]} | ({":keys": {key}} if few else {}),
        )
        if not held or len(item["down"]) < DOWN_NOTIFICATIONS:
            return False
        if item["down_count"] < DOWN_PART * (item.get("reserved", 0) - item["down_reserved"]):
            return False
        self.number_down(bot, why)
        return True

    def close_breaker(self, bot: str, *, sent: bool) -> bool:
        """Release the bot's requests after a probe; return whether it was enough for that.

        Where the number was down only what was `sent` is a try, and it takes a second one, after
        the first one's receipt would have come. When it was probed is not forgotten: it may break
        again within seconds.
        """
        enough = "attribute_not_exists(number_down_at)"
        closed, _ = self._table.update(
            bot_key(bot),
            "REMOVE broken, failing, number_down_at, tried_at",
            f"{enough} OR attribute_exists(tried_at)" if sent else enough,
            {},
        )
        if sent and not closed:
            now = self._now()
            self._table.update(
                bot_key(bot),
                "SET tried_at = :now, probe_until = :until",
                "attribute_exists(number_down_at)",
                {":now": milliseconds(now), ":until": milliseconds(now + NUMBER_DOWN_SECONDS)},
            )
        return closed

    def answered(self, bot: str) -> None:
        """Forget what failed in a row. A breaker that opened meanwhile stays open."""
        self._table.update(bot_key(bot), "REMOVE failing", "", {})

    def failed(self, bot: str, keys: "Iterable[str]") -> bool:
        """Count notifications that failed without a definite answer; return whether it is open.

        A set: the same notification again counts once. An open breaker counts no more.
        """
        counted, item = self._table.update(
            bot_key(bot), "ADD failing :keys", _NOT_BROKEN, {":keys": set(keys)}
        )
        if not counted:
            return True
        count = len(item["failing"])
        if count < FAILING_IN_A_ROW:
            return False
        self.open_breaker(bot, f"{count} notifications in a row had no definite answer")
        return True

    def pause(self, bot: str) -> None:
        """Pause a bot until it is resumed: nothing is looked up, sent or asked."""
        now = milliseconds(self._now())
        self._table.update(
            bot_key(bot), "SET paused = if_not_exists(paused, :now)", "", {":now": now}
        )

    def resume(self, bot: str) -> None:
        """Resume a bot at once, if it was paused or its breaker is open."""
        self._table.update(
            bot_key(bot),
            "REMOVE paused, broken, failing, number_down_at, tried_at, probe_until",
            "",
            {},
        )

    def probe(self, bot: str) -> bool:
        """Take the right to probe an open breaker, exclusively for PROBE_SECONDS."""
        now = self._now()
        mine, _ = self._table.update(
            bot_key(bot),
            "SET probe_until = :until",
            "attribute_exists(broken) AND"
            " (attribute_not_exists(probe_until) OR probe_until <= :now)",
            {":until": milliseconds(now + PROBE_SECONDS), ":now": milliseconds(now)},
        )
        return mine


def _interval(bot: "Bot", plan: Plan, share: float) -> float:
    """Return the microseconds between two slots of a bot's plan."""
    per_second = bot.messages_per_second if plan == "messages" else bot.commands_per_second
    return -(-MICROSECONDS // (share * per_second))


def _slots(first: int, interval: float, count: int) -> Reservation:
    return Reservation(tuple((first + number * interval) / MICROSECONDS for number in range(count)))


def _stands_still(item: Item, now: float, *, probing: bool, asking: bool) -> bool:
    """Return whether a bot may not use its plan at all."""
    state = bot_state(item)
    answers = asking and "number_down_at" in item
    broken = state.broken and not probing and not answers
    return bool(state.paused or broken or state.throttled_until > now)


def _none(item: Item, following: str, now: float, *, probing: bool, asking: bool) -> Reservation:
    """Return why there are no slots."""
    state = bot_state(item)
    if not _stands_still(item, now, probing=probing, asking=asking):
        free_in = item.get(following, 0) / MICROSECONDS - now
        return Reservation((), max(0.0, free_in))
    if state.paused:
        return Reservation((), PAUSED_SECONDS, HoldReason.PAUSED)
    if state.throttled_until > now:
        return Reservation((), state.throttled_until - now, HoldReason.COOLING_DOWN)
    return Reservation((), None, HoldReason.BREAKER_OPEN)
