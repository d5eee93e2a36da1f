"""Poison, sporadic failures and a lagging history."""

from collections.abc import Iterable
from typing import Any, Literal, cast

from notifier.domain.failures import Reason
from tests.faults.blip import (
    Account,
    BlipFaults,
    Fate,
    HistorySettings,
    Refusal,
)
from tests.faults.hardships.rows import (
    DAY,
    START,
    Came,
    Silent,
    p99_of,
    publish,
    reason_of,
    sent_twice,
    waited,
)
from tests.faults.world import Faults, Settings, World

# --- Poison ---------------------------------------------------------------------------------------


# How BLiP refuses a message, or a look-up, and the reason of the dead letter that it ends as.
POISONS: dict[str, tuple[Literal["message", "look-up"], Refusal, Reason]] = {
    "403": ("message", (403, None), Reason.RETRIES_EXHAUSTED),
    "404": ("message", (404, None), Reason.RETRIES_EXHAUSTED),
    "405": ("message", (405, None), Reason.RETRIES_EXHAUSTED),
    "look-up 81": ("look-up", (200, 81), Reason.RETRIES_EXHAUSTED),
    "401 with 34": ("message", (401, 34), Reason.RETRIES_EXHAUSTED),
    "403 with 42": ("message", (403, 42), Reason.REJECTED),
    "403 with 83": ("message", (403, 83), Reason.REJECTED),
    "403 with 87": ("message", (403, 87), Reason.REJECTED),
}


def poison(
    *, requests: int = 3000, per_second: float = 10, kinds: Iterable[str] = POISONS, seed: int = 1
) -> Came:
    """Refuse one message in a hundred with an error that seems to concern the bot."""
    came = Came()
    slowest: list[str] = []
    for kind in kinds:
        where, refusal, reason = POISONS[kind]
        with World(seed, bots=[Account("default")]) as world:
            published = publish(
                world, range(requests), per_second=per_second, known=where == "message"
            )
            poisoned = [phone for number, phone in enumerate(published) if number % 100 == 50]
            fate = Fate(message=refusal) if where == "message" else Fate(look_up=refusal)
            world.blip.fates |= dict.fromkeys(poisoned, fate)
            world.settle(at_most=7 * DAY)
            waits = waited(world, published)
            letters = [reason_of(letter) for letter in world.invariants.letters]
            came.check(f"{kind}: {len(waits)} sent", held=len(waits) == requests - len(poisoned))
            came.check(f"{kind}: p99 {p99_of(waits):.1f} s", held=p99_of(waits) <= 10)
            came.check(
                f"{kind}: dead letters {letters[:3]}", held=letters == [reason] * len(poisoned)
            )
            came.broken += [f"{kind}: {what}" for what in world.invariants.broken()]
            slowest.append(f"{kind} {p99_of(waits):.1f} s")
    came.summary = "the others' p99: " + ", ".join(slowest)
    return came


def poison_alone(*, kinds: Iterable[str] = ("403", "look-up 81"), seed: int = 1) -> Came:
    """Leave only poison waiting behind a breaker that an outage opened."""
    came = Came()
    took: list[str] = []
    for kind in kinds:
        where, refusal, reason = POISONS[kind]
        faults = Faults(blip=BlipFaults(spells=[(START + 60, START + 1800, "refused", None)]))
        with World(seed, bots=[Account("default")], faults=faults) as world:
            publish(world, range(3), per_second=0.1)
            world.run(30)
            poisoned = publish(world, range(3, 13), known=where == "message")
            fate = Fate(message=refusal) if where == "message" else Fate(look_up=refusal)
            world.blip.fates |= dict.fromkeys(poisoned, fate)
            seconds = world.settle(at_most=8 * DAY)
            letters = [reason_of(letter) for letter in world.invariants.letters]
            came.check(f"{kind} alone: {letters[:3]}", held=letters == [reason] * len(poisoned))
            came.check(f"{kind} alone: took {seconds / DAY:.1f} days", held=seconds <= 3 * DAY)
            took.append(f"{kind} {seconds / 3600:.1f} h")
    came.summary = "left alone behind an open breaker they ended after " + ", ".join(took)
    return came


def wrong_bot(*, requests: int = 500, hours: float = 3, seed: int = 1) -> Came:
    """Use a wrong key and a bot without a channel: no request may become a dead letter."""
    came = Came()
    for kind in ("wrong key", "no channel"):
        bot = Account("default", channel=kind != "no channel")
        faults = BlipFaults()
        if kind == "wrong key":
            faults.spells.append((START, START + hours * 3600, "unauthorized", None))
        with World(seed, bots=[bot], faults=Faults(blip=faults)) as world:
            published = publish(world, range(requests), per_second=10, known=kind == "wrong key")
            world.run(hours * 3600)
            came.check(f"{kind}: it sent something", held=not world.blip.sent)
            bot.channel = True
            world.settle(at_most=3 * DAY)
            letters = len(world.invariants.letters)
            came.check(f"{kind}: {letters} dead letters", held=letters == 0)
            sent = len(waited(world, published))
            came.check(f"{kind}: {sent} sent in the end", held=sent == requests)
            came.broken += [f"{kind}: {what}" for what in world.invariants.broken()]
    came.summary = f"a wrong key and no channel for {hours:g} h: no dead letter"
    return came


# --- Sporadic failures ----------------------------------------------------------------------------


SPORADIC = (131016, 1016, 131000)


def sporadic(
    *, requests: int = 10_000, per_second: float = 10, rate: float = 0.001, seed: int = 1
) -> Came:
    """Make WhatsApp itself fail occasionally, which says nothing about the bot's number."""
    came = Came()
    slowest, failures = 0.0, 0
    for code in SPORADIC:
        faults = Faults(blip=BlipFaults(sporadic={code: rate}))
        with World(seed, bots=[Account("default")], faults=faults) as world:
            published = publish(world, range(requests), per_second=per_second)
            world.settle(at_most=3 * DAY)
            waits = waited(world, published)
            slowest = max(slowest, p99_of(waits))
            came.check(f"{code}: p99 {p99_of(waits):.1f} s", held=p99_of(waits) <= 60)
            came.check(f"{code}: {len(waits)} sent", held=len(waits) == requests)
            failed = [key for key in world.blip.failed if ":" not in key]
            failures += len(failed)
            came.check(f"{code}: none failed", held=bool(failed))
            again = [key for key in failed if f"{key}:2" not in world.blip.sent]
            came.check(f"{code}: {len(again)} were not sent once more", held=not again)
            came.broken += [f"{code}: {what}" for what in world.invariants.broken()]
    came.summary = f"p99 {slowest:.1f} s, {failures} failed and went out once more"
    return came


# --- A lagging history ----------------------------------------------------------------------------


HISTORIES = {
    "three hours behind": HistorySettings(lag=3 * 3600, least_lag=3 * 3600),
    "never answering": HistorySettings(answers=False),
    "always empty": HistorySettings(kept=False),
}


def lagging_history(
    *, requests: int = 3000, histories: Iterable[str] = HISTORIES, seed: int = 1
) -> Came:
    """Leave one send in twenty unanswered, accepted or not, with a history that lags."""
    came = Came()
    summary: list[str] = []
    for kind in histories:
        for flow in ("steady", "first message", "one a day"):
            count = {"steady": requests, "first message": 1, "one a day": 6}[flow]
            per_second = {"steady": 1.0, "first message": 1.0, "one a day": 1 / DAY}[flow]
            for taken in ("swallowed", "dropped"):
                name = f"{kind}, {flow}, {taken}"
                rates = {"swallowed": 0.025, "dropped": 0.025} if flow == "steady" else {}
                settings = Settings(history=HISTORIES[kind])
                faults = Faults(blip=BlipFaults(rates=cast("Any", rates)), receipts_lost=1.0)
                with World(seed, bots=[Account("default")], faults=faults, settings=settings) as w:
                    if flow != "steady":
                        w.blip.next_faults["messages"].append(cast("Any", taken))
                    elif taken == "dropped":
                        continue  # has both
                    w.blip.fates = Silent()
                    publish(w, range(count), per_second=per_second, if_unknown="resend")
                    w.settle(at_most=count / per_second + 5 * DAY)
                    twice = sent_twice(w)
                    came.check(f"{name}: {len(twice)} twice", held=not twice)
                    came.broken += [f"{name}: {what}" for what in w.invariants.broken()]
                    letters = w.invariants.letters
                    reasons = {reason_of(letter) for letter in letters}
                    came.check(f"{name}: {reasons}", held=reasons <= {Reason.OUTCOME_UNKNOWN})
                    again = w.outcomes["denied"]
                    if kind == "three hours behind" and flow == "steady":
                        # Once only: what got lost a second time as well is not sent again.
                        posts = w.blip.posts
                        lost = [key for key in posts if posts[key] < 2 and key not in w.blip.sent]
                        came.check(f"{name}: {again} sent again", held=again > 0)
                        came.check(f"{name}: {len(lost)} were not", held=not lost)
                    elif kind != "three hours behind" or flow == "first message":
                        came.check(f"{name}: {again} sent again", held=again == 0)
                    summary.append(f"{name}: {again} denied, {len(letters)} letters")
    came.summary = "0 twice, 0 lost; " + "; ".join(summary)
    return came
