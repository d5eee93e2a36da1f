"""The bot's item: the one thing that all sandboxes share. It keeps every bot to its plan.

    key                bot:NAME (partition key, in the identities' table)
    next_messages_at   epoch microseconds: the first send slot that nobody has
    next_commands_at   likewise for look-ups and questions
    shut_until         epoch milliseconds: nothing goes to BLiP before (the penalty)
    broken             why the breaker is open; absent while it is closed
    paused             epoch milliseconds: since when an operator keeps it still; absent otherwise
    failing            the notifications that failed in a row without a definite answer
    probe_until        epoch milliseconds: nobody probes an open breaker before
    number_down_at     epoch milliseconds: when a receipt said that the number cannot deliver
    tried_at           epoch milliseconds: when, since then, BLiP took a message again

Slots are evenly spaced and never made up for when missed, so no second holds more of them than the
plan allows, however many sandboxes there are.
"""

from typing import TYPE_CHECKING

from notifier.aws.table import Item, Table, milliseconds
from notifier.records import BotState, Plan, Reservation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from notifier.bots import Bot

# Clocks and networks are not exact: what is spaced evenly here may arrive a little closer there.
SHARE_OF_PLAN = 0.95
MICROSECONDS = 1_000_000
# So many different notifications in a row without a definite answer open the breaker.
FAILING_IN_A_ROW = 5
PROBE_SECONDS = 30.0
# A number that cannot deliver is tried so seldom; and a receipt, one that is polled for too, has
# come by then.
NUMBER_DOWN_SECONDS = 600.0
# Who meets a pause in the middle of a batch comes back so soon, and then sees it in time.
PAUSED_SECONDS = 60.0

_NOT_SHUT = (
    "(attribute_not_exists(shut_until) OR shut_until <= :now_ms) AND attribute_not_exists(paused)"
)
_NOT_BROKEN = "attribute_not_exists(broken)"
_NOT_BROKEN_OR_NUMBER_DOWN = f"({_NOT_BROKEN} OR attribute_exists(number_down_at))"


def bot_key(bot: str) -> str:
    """Give the key of a bot's item. Identities' keys hold a `/`, this never does."""
    return f"bot:{bot}"


def bot_state(item: Item) -> BotState:
    """Read a bot's item."""
    return BotState(
        shut_until=item.get("shut_until", 0) / 1000,
        broken=item.get("broken", ""),
        paused="paused" in item,
        failing=len(item.get("failing", ())),
        next_message_at=item.get("next_messages_at", 0) / MICROSECONDS,
    )


class DynamoDbPacing:
    """The bots' items. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now

    def reserve(
        self,
        bot: "Bot",
        plan: Plan,
        count: int,
        horizon: float,
        *,
        probing: bool = False,
        asking: bool = False,
    ) -> Reservation:
        """Reserve `count` slots of the bot's plan, the first at most `horizon` seconds away.

        Who is `asking` for receipts gets some while the number is down: they can tell that it is.

        One conditional write while the bot is idle, or busy within the horizon; two at a change
        from one to the other. None while the bot is shut, or its breaker open and this no probe.
        """
        per_second = bot.messages_per_second if plan == "messages" else bot.commands_per_second
        interval = -(-MICROSECONDS // (SHARE_OF_PLAN * per_second))
        now = self._now()
        now_us = round(now * MICROSECONDS)
        taken = round(count * interval)
        times = {":now": now_us, ":now_ms": milliseconds(now)}
        open_enough = _NOT_BROKEN_OR_NUMBER_DOWN if asking else _NOT_BROKEN
        allowed = _NOT_SHUT if probing else f"{_NOT_SHUT} AND {open_enough}"

        following = f"next_{plan}_at"
        idle, item = self._table.update(
            bot_key(bot.name),
            f"SET {following} = :end",
            f"(attribute_not_exists({following}) OR {following} <= :now) AND {allowed}",
            times | {":end": now_us + taken},
        )
        if idle:
            return _slots(now_us, interval, count)
        busy, item = self._table.update(
            bot_key(bot.name),
            f"SET {following} = {following} + :taken",
            f"{following} > :now AND {following} <= :horizon AND {allowed}",
            times | {":taken": taken, ":horizon": now_us + round(horizon * MICROSECONDS)},
        )
        if busy:
            return _slots(item[following] - taken, interval, count)
        state = bot_state(item)
        if state.paused:
            return Reservation((), PAUSED_SECONDS)
        answers = asking and "number_down_at" in item
        if state.broken and not probing and not answers:
            return Reservation((), None)
        free_at = max(state.shut_until, item.get(following, now_us) / MICROSECONDS)
        return Reservation((), max(0.0, free_at - now))

    def shut(self, bot: str, until: float) -> None:
        """Let nobody speak to BLiP as this bot before `until`, in any sandbox."""
        self._table.update(
            bot_key(bot),
            "SET shut_until = :until",
            "attribute_not_exists(shut_until) OR shut_until < :until",
            {":until": milliseconds(until)},
        )

    def open_breaker(self, bot: str, why: str) -> None:
        """Stop everything of this bot until a probe shows that it works again."""
        self._table.update(bot_key(bot), "SET broken = :why REMOVE failing", "", {":why": why})

    def number_down(self, bot: str, why: str) -> None:
        """Stop everything of this bot: a receipt says that its number cannot deliver.

        BLiP answers pings and takes messages all the while, so nobody tries for a while.
        """
        now = self._now()
        self._table.update(
            bot_key(bot),
            "SET broken = :why, number_down_at = :now, probe_until = :until"
            " REMOVE failing, tried_at",
            "",
            {
                ":why": why,
                ":now": milliseconds(now),
                ":until": milliseconds(now + NUMBER_DOWN_SECONDS),
            },
        )

    def close_breaker(self, bot: str, *, sent: bool) -> bool:
        """Let the bot's requests go again after a probe; tell whether it was enough for that.

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
        """Count notifications that failed without a definite answer; tell whether it was enough.

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
        """Keep a bot still until it is resumed: nothing is looked up, sent or asked."""
        now = milliseconds(self._now())
        self._table.update(
            bot_key(bot), "SET paused = if_not_exists(paused, :now)", "", {":now": now}
        )

    def resume(self, bot: str) -> None:
        """Let a bot work again at once, if it was paused or if its breaker is open."""
        self._table.update(
            bot_key(bot),
            "REMOVE paused, broken, failing, number_down_at, tried_at, probe_until",
            "",
            {},
        )

    def probe(self, bot: str) -> bool:
        """Take the right to probe an open breaker; nobody else has it for PROBE_SECONDS."""
        now = self._now()
        mine, _ = self._table.update(
            bot_key(bot),
            "SET probe_until = :until",
            "attribute_exists(broken) AND"
            " (attribute_not_exists(probe_until) OR probe_until <= :now)",
            {":until": milliseconds(now + PROBE_SECONDS), ":now": milliseconds(now)},
        )
        return mine


def _slots(first: int, interval: float, count: int) -> Reservation:
    return Reservation(tuple((first + number * interval) / MICROSECONDS for number in range(count)))
