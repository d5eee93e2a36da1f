"""Distance, neighbours, slow plans and bad luck: one function per row of `make faults`.

Each takes its size, so that a short form of it is a test, and returns what came of it in a
sentence, with what did not keep its bound.
"""

import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Literal, cast
from unittest import mock

from notifier.aws import queues
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.contract.parse import parse
from notifier.domain.bots import Bot
from notifier.domain.failures import Reason
from notifier.domain.notification import ledger_key, message_id
from notifier.use_cases.send_notification import batch, waits
from notifier.use_cases.send_notification.round import START_HORIZON_SECONDS
from notifier.use_cases.slots import SLOT_HORIZON_SECONDS
from tests.faults import stories
from tests.faults.blip import (
    COOLDOWN_SECONDS,
    Account,
    BlipFaults,
    Chat,
    Fate,
    Fault,
    HistorySettings,
    Network,
    Refusal,
)
from tests.faults.events import ALWAYS, BusFaults
from tests.faults.long_runs import request
from tests.faults.world import POLICY, Faults, Settings, World
from tests.support.simulated_aws import sqs
from tests.support.simulated_aws.dynamodb import ERRORS, AwsError, AwsFaults, DirectAws, SimTable
from tests.support.simulated_aws.stream import MAX_BACKOFF_SECONDS

START = 1_800_000_000.0
DAY = 86_400.0
FAR = Network(set_up=(0.3, 0.1), round_trip=(0.1, 0.05))


@dataclass
class Came:
    """What came of a row.

    Attributes:
        told: in a sentence.
        broken: which bounds were not kept.
    """

    told: str = ""
    broken: list[str] = field(default_factory=list)

    def check(self, what: str, *, held: bool) -> None:
        """Note a bound that was not kept."""
        if not held:
            self.broken.append(what)


def _bot(world: World, bot: str = "default") -> dict[str, Any]:
    return world.tables["identities"].items.setdefault(f"bot:{bot}", {"key": f"bot:{bot}"})


def _publish(
    world: World,
    numbers: Iterable[int],
    *,
    per_second: float | None = None,
    bot: str = "default",
    known: bool = True,
    **more: Any,
) -> dict[str, float]:
    """Publish a request for each number, evenly or all at once; return when, by phone."""
    published: dict[str, float] = {}
    for order, number in enumerate(numbers):
        body = request(number, bot) | more
        if known:
            world.know(body["to"], bot)
        at = world.simulation.now + (order / per_second if per_second else 0)
        published[body["to"]] = at
        world.publish_at(at, body)
    return published


def _waits(world: World, published: Mapping[str, float]) -> list[float]:
    """Return how long requests waited until BLiP had them the first time, sorted."""
    first: dict[str, float] = {}
    for messages in world.blip.sent.values():
        for message in messages:
            first[message.phone] = min(message.at, first.get(message.phone, message.at))
    return sorted(first[phone] - at for phone, at in published.items() if phone in first)


def _p99(waits: Sequence[float]) -> float:
    return waits[int(0.99 * len(waits))] if waits else float("inf")


def _once_more(world: World) -> list[str]:
    return [f"{sent_as} twice" for sent_as, taken in world.blip.sent.items() if len(taken) > 1]


# --- Distance -------------------------------------------------------------------------------------


def distance(
    *, requests: int = 1000, seeds: Iterable[int] = range(20), most_seconds: float = 25
) -> Came:
    """A far BLiP, every connection cold at first and again after an idle spell."""
    came, slowest, throttled, set_ups = Came(), 0.0, 0, 0
    for known in (True, False):
        for seed in seeds:
            bot = Account("default")
            settings = Settings(network=FAR)
            # Of a sandbox's share of a processor: later than that, and slots are missed.
            faults = Faults(wakes_late=0.03)
            with World(seed, bots=[bot], faults=faults, settings=settings) as world:
                for spell in range(2):
                    published = _publish(
                        world, range(spell * requests, (spell + 1) * requests), known=known
                    )
                    world.settle()
                    took = max(_waits(world, published), default=float("inf"))
                    slowest = max(slowest, took)
                    name = f"{'known' if known else 'new'}, seed {seed}, spell {spell + 1}"
                    came.check(f"{name}: {took:.1f} s", held=took <= most_seconds)
                    world.run(60)
                throttled += bot.throttled
                set_ups += world.blip.set_ups
                came.check(
                    f"{'known' if known else 'new'}, seed {seed}: {bot.throttled} throttled",
                    held=bot.throttled == 0,
                )
                came.broken += world.invariants.broken()
    came.told = (
        f"{requests} drained in {slowest:.1f} s at most, {throttled} throttled; "
        f"{set_ups} connections were set up"
    )
    return came


# --- Live chat ------------------------------------------------------------------------------------

CHATS: dict[str, dict[str, Any]] = {
    "bursts": {"share": 0.3},
    "even bursts": {"share": 0.3, "even": True},
    "always": {},
}
PLAN = 50.0
CHAT_PER_SECOND = 15.0


@dataclass
class _Paced:
    """How a backlog went beside a chat.

    Attributes:
        per_second: of our own messages that BLiP took.
        left: the plan less the chat's busiest second.
    """

    penalties: list[float]
    per_second: float
    left: float

    def judge(self, came: Came, name: str, hours: float) -> str:
        """Hold it against the bounds; return it as a sentence."""
        by_hour = [
            sum(start <= (at - START) / 3600 < end for at in self.penalties)
            for start, end in ((0, 1), (1, 2), (2, 24))
        ]
        for count, most, when in zip(
            by_hour, (6, 2, 10), ("first hour", "second", "next 22 h"), strict=True
        ):
            came.check(f"{name}: {count} penalties in the {when}", held=count <= most)
        # Of less than two hours the first penalties are too large a part.
        came.check(
            f"{name}: {self.per_second:.1f} a second, {self.left:g} were left",
            held=self.per_second >= 0.75 * self.left or hours < 2,
        )
        return (
            f"{name}, {hours:g} h: {'+'.join(map(str, by_hour))} penalties, "
            f"{self.per_second:.1f} a second of {self.left:g}"
        )


def live_chat(*, hours: float = 2, kind: str = "bursts", seed: int = 1) -> Came:
    """The whole product beside a chat that it does not see, with a backlog throughout."""
    chat = Chat(CHAT_PER_SECOND, since=START, seed=seed, **CHATS[kind])
    bot = Account("default", PLAN, 4 * PLAN, chat=chat)
    came, number = Came(), 0
    with World(seed, bots=[bot]) as world:
        world.blip.fates = _Silent()
        while (ran := world.simulation.now - START) < hours * 3600:
            while len(world.requests.messages) < 10 * PLAN:
                body = request(number)
                world.know(body["to"])
                world.publish(body)
                number += 1
            world.run(1)
        rate = len(world.blip.sent) / ran
        result = _Paced(bot.penalties, rate, PLAN - chat.busiest)
        came.told = result.judge(came, kind, hours)
        came.broken += world.invariants.broken(quiet=False)
    return came


class _Silent(dict[str, Fate]):
    """Nobody's messages are received: no receipts, which have nothing to do with the pace."""

    def get(self, _: object, __: object = None) -> Any:
        return Fate(silent=True)


def paced_chat(
    *, hours: float = 24, kind: str = "bursts", seed: int = 1, prolonged: bool = False
) -> Came:
    """A day beside a chat, with of the product only what decides on its pace.

    That is `aws.bot_state` on the simulated table and the share of the plan in force; the batches
    of five sandboxes are drawn up here. A day of the whole product would take over an hour.
    """
    chat = Chat(CHAT_PER_SECOND, since=START, seed=seed, **CHATS[kind])
    account = Account("default", PLAN, 4 * PLAN, chat=chat, prolonged=prolonged)
    bot = Bot(name="default", key="Key secret", messages_per_second=PLAN)
    here = SimpleNamespace(now=START, random=Random(seed))
    bot_states = DynamoDbBotStates(SimTable("bots", DirectAws(lambda: here.now)), lambda: here.now)
    sent = 0
    sandboxes = [(START, number) for number in range(5)]
    arrivals: list[tuple[float, int]] = []  # when, by which sandbox
    stopped: dict[int, float] = {}  # until when a sandbox sends nothing, by its own 429
    while here.now - START < hours * 3600:
        at, sandbox = heapq.heappop(sandboxes)
        while arrivals and arrivals[0][0] <= at:
            arrived_at, sender = heapq.heappop(arrivals)
            if arrived_at < stopped.get(sender, 0):
                continue
            if not account.over("messages", arrived_at):
                sent += 1
                continue
            here.now = arrived_at + here.random.uniform(0.02, 0.25)
            stopped[sender] = here.now + COOLDOWN_SECONDS
            bot_states.start_cooldown(bot, "messages", here.now + COOLDOWN_SECONDS)
        here.now = at
        state = bot_states.state(bot.name)
        slots: tuple[float, ...] = ()
        wait = max(0.0, state.throttled_until - at)
        if wait:
            wait += here.random.uniform(0, 5)
        elif (ahead := state.next_message_at - at) > START_HORIZON_SECONDS:
            wait = ahead - START_HORIZON_SECONDS
        else:
            share = state.share("messages", bot.share, at)
            reservation = bot_states.reserve(bot, "messages", 10, SLOT_HORIZON_SECONDS, share=share)
            slots, wait = reservation.slots, reservation.retry_in or 0.0
        for slot in slots:
            heapq.heappush(arrivals, (slot + here.random.uniform(0.01, 0.06), sandbox))
        done_at = max(slots, default=at + wait) + here.random.uniform(0.05, 0.3)
        heapq.heappush(sandboxes, (done_at, sandbox))
    came = Came()
    result = _Paced(account.penalties, sent / (hours * 3600), PLAN - chat.busiest)
    came.told = result.judge(came, kind, hours)
    return came


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
    """One in a hundred is refused for what it is, and says so in misleading words."""
    came = Came()
    slowest: list[str] = []
    for kind in kinds:
        where, refusal, reason = POISONS[kind]
        with World(seed, bots=[Account("default")]) as world:
            published = _publish(
                world, range(requests), per_second=per_second, known=where == "message"
            )
            poisoned = [phone for number, phone in enumerate(published) if number % 100 == 50]
            fate = Fate(message=refusal) if where == "message" else Fate(look_up=refusal)
            world.blip.fates |= dict.fromkeys(poisoned, fate)
            world.settle(at_most=7 * DAY)
            waits = _waits(world, published)
            letters = [_reason(letter) for letter in world.invariants.letters]
            came.check(f"{kind}: {len(waits)} sent", held=len(waits) == requests - len(poisoned))
            came.check(f"{kind}: p99 {_p99(waits):.1f} s", held=_p99(waits) <= 10)
            came.check(
                f"{kind}: dead letters {letters[:3]}", held=letters == [reason] * len(poisoned)
            )
            came.broken += [f"{kind}: {what}" for what in world.invariants.broken()]
            slowest.append(f"{kind} {_p99(waits):.1f} s")
    came.told = "the others' p99: " + ", ".join(slowest)
    return came


def poison_alone(*, kinds: Iterable[str] = ("403", "look-up 81"), seed: int = 1) -> Came:
    """A bot has worked, then an outage opened its breaker, and what waits is poison only."""
    came = Came()
    took: list[str] = []
    for kind in kinds:
        where, refusal, reason = POISONS[kind]
        faults = Faults(blip=BlipFaults(spells=[(START + 60, START + 1800, "refused", None)]))
        with World(seed, bots=[Account("default")], faults=faults) as world:
            _publish(world, range(3), per_second=0.1)
            world.run(30)
            poisoned = _publish(world, range(3, 13), known=where == "message")
            fate = Fate(message=refusal) if where == "message" else Fate(look_up=refusal)
            world.blip.fates |= dict.fromkeys(poisoned, fate)
            seconds = world.settle(at_most=8 * DAY)
            letters = [_reason(letter) for letter in world.invariants.letters]
            came.check(f"{kind} alone: {letters[:3]}", held=letters == [reason] * len(poisoned))
            came.check(f"{kind} alone: took {seconds / DAY:.1f} days", held=seconds <= 3 * DAY)
            took.append(f"{kind} {seconds / 3600:.1f} h")
    came.told = "left alone behind an open breaker they ended after " + ", ".join(took)
    return came


def _reason(letter: sqs.Message) -> str:
    return letter.attributes["reason"]["StringValue"]


def wrong_bot(*, requests: int = 500, hours: float = 3, seed: int = 1) -> Came:
    """A key that is really wrong, and a bot without a channel: nothing becomes a dead letter."""
    came = Came()
    for kind in ("wrong key", "no channel"):
        bot = Account("default", channel=kind != "no channel")
        faults = BlipFaults()
        if kind == "wrong key":
            faults.spells.append((START, START + hours * 3600, "unauthorized", None))
        with World(seed, bots=[bot], faults=Faults(blip=faults)) as world:
            published = _publish(world, range(requests), per_second=10, known=kind == "wrong key")
            world.run(hours * 3600)
            came.check(f"{kind}: it sent something", held=not world.blip.sent)
            bot.channel = True
            world.settle(at_most=3 * DAY)
            letters = len(world.invariants.letters)
            came.check(f"{kind}: {letters} dead letters", held=letters == 0)
            sent = len(_waits(world, published))
            came.check(f"{kind}: {sent} sent in the end", held=sent == requests)
            came.broken += [f"{kind}: {what}" for what in world.invariants.broken()]
    came.told = f"a wrong key and no channel for {hours:g} h: no dead letter"
    return came


# --- Sporadic failures ----------------------------------------------------------------------------

SPORADIC = (131016, 1016, 131000)


def sporadic(
    *, requests: int = 10_000, per_second: float = 10, rate: float = 0.001, seed: int = 1
) -> Came:
    """Once in a while WhatsApp itself fails: it tells nothing about the bot's number."""
    came = Came()
    slowest, failures = 0.0, 0
    for code in SPORADIC:
        faults = Faults(blip=BlipFaults(sporadic={code: rate}))
        with World(seed, bots=[Account("default")], faults=faults) as world:
            published = _publish(world, range(requests), per_second=per_second)
            world.settle(at_most=3 * DAY)
            waits = _waits(world, published)
            slowest = max(slowest, _p99(waits))
            came.check(f"{code}: p99 {_p99(waits):.1f} s", held=_p99(waits) <= 60)
            came.check(f"{code}: {len(waits)} sent", held=len(waits) == requests)
            failed = [key for key in world.blip.failed if ":" not in key]
            failures += len(failed)
            came.check(f"{code}: none failed", held=bool(failed))
            again = [key for key in failed if f"{key}:2" not in world.blip.sent]
            came.check(f"{code}: {len(again)} were not sent once more", held=not again)
            came.broken += [f"{code}: {what}" for what in world.invariants.broken()]
    came.told = f"p99 {slowest:.1f} s, {failures} failed and went out once more"
    return came


# --- Starvation -----------------------------------------------------------------------------------


def starvation(
    *,
    waiting: int = 130_000,
    others: int = 600,
    states: Iterable[str] = ("penalty", "paused", "broken"),
    lead: float = 120,
    groups: Iterable[bool] = (True, False),
    concurrency: int = 5,
    scale: int = 1,
    seed: int = 1,
) -> Came:
    """One bot's requests fill what SQS allows in flight; another's come at ten a second.

    Args:
        waiting: how many there are of the one that stands still.
        others: how many there are of the other.
        states: why it stands still.
        lead: for how long it has done so before the others come, in seconds.
        groups: whether requests come with SQS's `MessageGroupId`.
        concurrency: how many batches are worked on at a time.
        scale: every limit of SQS, the product's own, and the times between them, are so much
            smaller: batches are as fast as ever, so that the queue is full so much sooner.
        seed: of chance.
    """
    came = Came()
    slowest: list[str] = []
    with ExitStack() as smaller:
        for module, name, value in (
            (sqs, "MAX_IN_FLIGHT", sqs.MAX_IN_FLIGHT // scale),
            (sqs, "FIGURES_SECONDS", sqs.FIGURES_SECONDS / scale),
            (queues, "IN_FLIGHT_SECONDS", queues.IN_FLIGHT_SECONDS / scale),
            (waits, "CROWDED", waits.CROWDED // scale),
            (batch, "FULL", batch.FULL // scale),
            (waits, "CROWDED_SECONDS", tuple(each / scale for each in waits.CROWDED_SECONDS)),
            (batch, "HOLD_STILL_SECONDS", batch.HOLD_STILL_SECONDS / scale),
        ):
            smaller.enter_context(mock.patch.object(module, name, value))
        for state, grouped in product(states, groups):
            name = f"{state}{'' if grouped else ', no groups'}"
            settings = Settings(concurrency=concurrency, groups=grouped)
            p99 = _starved(state, waiting, others, lead, seed, came, name, settings)
            slowest.append(f"{name} {p99:.1f} s")
            came.check(f"{name}: p99 {p99:.1f} s", held=p99 <= (5 if grouped else 180 / scale))
    came.told = "the other's p99: " + ", ".join(slowest)
    return came


def _starved(
    state: str,
    waiting: int,
    others: int,
    lead: float,
    seed: int,
    came: Came,
    name: str,
    settings: Settings,
) -> float:
    fault: Fault = "throttled" if state == "penalty" else "refused"
    faults = Faults(blip=BlipFaults(spells=[(START, START + DAY, fault, "default")]))
    bots = [Account("default"), Account("clinic")]
    with World(seed, bots=bots, faults=faults, settings=settings) as world:
        if state == "paused":
            _bot(world)["paused"] = round(START * 1000)
        for number in range(waiting):
            body = request(number)
            world.know(body["to"])
            world.publish(body)
        world.run(lead)
        numbers = range(waiting, waiting + others)
        published = _publish(world, numbers, per_second=10, bot="clinic")
        with suppress(TimeoutError):
            world.run_until(lambda: len(_waits(world, published)) == others, at_most=1800)
        waits = _waits(world, published)
        came.check(f"{name}: {len(waits)} of {others} sent", held=len(waits) == others)
        most = world.requests.most_in_flight
        came.check(f"{name}: {most} in flight", held=most <= sqs.MAX_IN_FLIGHT)
        came.broken += world.invariants.broken(quiet=False)
        return _p99(waits) if len(waits) == others else float("inf")


# --- A lagging history ----------------------------------------------------------------------------

HISTORIES = {
    "three hours behind": HistorySettings(lag=3 * 3600, least_lag=3 * 3600),
    "never answering": HistorySettings(answers=False),
    "always empty": HistorySettings(kept=False),
}


def lagging_history(
    *, requests: int = 3000, histories: Iterable[str] = HISTORIES, seed: int = 1
) -> Came:
    """One send in twenty goes unanswered, taken or not, and the history is of little help."""
    came = Came()
    told: list[str] = []
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
                    w.blip.fates = _Silent()
                    _publish(w, range(count), per_second=per_second, if_unknown="resend")
                    w.settle(at_most=count / per_second + 5 * DAY)
                    twice = _once_more(w)
                    came.check(f"{name}: {len(twice)} twice", held=not twice)
                    came.broken += [f"{name}: {what}" for what in w.invariants.broken()]
                    letters = w.invariants.letters
                    reasons = {_reason(letter) for letter in letters}
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
                    told.append(f"{name}: {again} denied, {len(letters)} letters")
    came.told = "0 twice, 0 lost; " + "; ".join(told)
    return came


# --- Errors of AWS --------------------------------------------------------------------------------


def aws_errors(
    *,
    tales: Iterable[str] | None = None,
    errors: Iterable[str] = ERRORS,
    requests: int = 2000,
    seed: int = 1,
) -> Came:
    """Every error of botocore's at every call of every story, before and after its effect.

    Then a storm of them; and that an error at one record's calls hurts no other record.
    """
    came, points = Came(), 0
    for name in tales or stories.STORIES:
        story = stories.STORIES[name]
        calls = [call.partition(": ")[2] for call in stories.calls(story)]
        for number, call in enumerate(calls):
            if call.startswith("blip."):
                continue
            for error in errors:
                for happens in (0, 1):
                    points += 1
                    found = stories.failed_at(story, number, AwsError(error, happens))
                    side = "after" if happens else "before"
                    came.broken += [
                        f"{name}, {error} {side} {number + 1}. {call}: {x}" for x in found
                    ]
    _aws_storm(came, requests, seed)
    others = _one_record(came, seed)
    came.told = (
        f"{points} failing calls in stories, a storm of {requests}; beside a failing record the "
        f"other nine went out within {others:.1f} s"
    )
    return came


def _aws_storm(came: Came, requests: int, seed: int) -> None:
    """Many calls fail. What was never posted must not be told as possibly sent."""
    aws = AwsFaults(repeated=0.02, failed=0.03, slow=0.02, stale=0.2)
    faults = Faults(aws=aws, bus=BusFaults(calls=aws, throttled=[(*ALWAYS, 0.02)]))
    bots = [Account("default"), Account("clinic")]
    with World(seed, bots=bots, faults=faults) as world:
        for bot, if_unknown in (("default", "fail"), ("clinic", "resend")):
            half = range(requests // 2)
            _publish(world, half, per_second=20, bot=bot, known=False, if_unknown=if_unknown)
        world.settle(at_most=5 * DAY)
        twice = _once_more(world)
        came.check(f"storm: {twice[:3]}", held=not twice)
        never = [
            letter
            for letter in world.invariants.letters
            if _reason(letter) == Reason.OUTCOME_UNKNOWN and not _posted(world, letter)
        ]
        came.check(f"storm: {len(never)} outcome_unknown were never posted", held=not never)
        came.broken += [f"storm: {what}" for what in world.invariants.broken()]


def _posted(world: World, letter: sqs.Message) -> bool:
    asked = parse(letter.body).request
    generation = int(letter.attributes["generation"]["StringValue"])
    return bool(world.blip.posts.get(message_id(ledger_key(asked.bot, asked.id), generation)))


def _one_record(came: Came, seed: int) -> float:
    """An error at each call that concerns one record of ten; return the others' longest wait."""
    slowest = 0.0
    calls = ("ledger.update", "identities.update", "ledger.get")
    for call in calls:
        for error in ERRORS:
            for happens in (0, 1):
                with World(seed, bots=[Account("default")]) as world:
                    left = [AwsError(error, happens)]

                    def fail(point: str, call: str = call, left: list[AwsError] = left) -> Any:
                        # Who everybody is, is read for the whole batch.
                        own = point.startswith(call) and not point.endswith(".get_many")
                        return left.pop() if left and own else None

                    world.aws.fails = fail
                    # Before a failure is recorded, the ledger is read.
                    world.blip.fates[request(0)["to"]] = Fate(failing=[131047])
                    published = _publish(world, range(10), known=call != "identities.get")
                    world.settle(at_most=DAY)
                    waits = _waits(world, published)
                    name = f"{error} at one {call}, {'after' if happens else 'before'}"
                    came.check(f"{name}: {len(waits)} of 10 sent", held=len(waits) == 10)
                    nine = max(waits[:9], default=float("inf"))
                    came.check(f"{name}: the others waited {nine:.1f} s", held=nine <= 15)
                    slowest = max(slowest, nine)
                    came.check(f"{name}: it never happened", held=not left)
                    came.broken += [f"{name}: {what}" for what in world.invariants.broken()]
    return slowest


# --- Slow plans -----------------------------------------------------------------------------------

# The template's parameters that decide on waits, with their bounds.
TEMPLATE = Path(__file__).parents[2] / "template.yaml"
_BOUND = re.compile(r"^    (MinValue|MaxValue): (\d+)", re.MULTILINE)


def bounds() -> dict[str, tuple[int, int]]:
    """Return the bounds of the template's numeric parameters, as settings are named."""
    found = {}
    parameters = TEMPLATE.read_text(encoding="utf-8").partition("\nResources:")[0]
    for name, text in re.findall(r"^  (\w+):\n((?:    .*\n)+)", parameters, re.MULTILINE):
        values = dict(_BOUND.findall(text))
        if len(values) == 2:
            setting = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
            found[setting] = int(values["MinValue"]), int(values["MaxValue"])
    return found


def _settings() -> Iterator[tuple[str, Settings]]:
    """Yield the stack with each parameter at both bounds, and with all of them."""
    limits = {name: both for name, both in bounds().items() if name in {*POLICY, *STACK}}
    yield "as it is", Settings()
    for side, which in (("least", 0), ("most", 1)):
        for name, both in limits.items():
            yield f"{name} {both[which]}", _with({name: both[which]})
        yield f"all {side}", _with({name: both[which] for name, both in limits.items()})


STACK = {"maximum_concurrency": "concurrency", "function_timeout_seconds": "timeout"}


def _with(values: Mapping[str, int]) -> Settings:
    stack = {STACK[name]: value for name, value in values.items() if name in STACK}
    policy = {name: value for name, value in values.items() if name in POLICY}
    return Settings(**cast("Any", stack), policy=policy)


WEEK = 7 * DAY
MAX_RECEIVES = 700
# What keeps a request waiting for a week.
WAITS = ("for a slot", "outage", "penalties", "history fails")


def slow_plan(
    *,
    plans: Iterable[float] = (0.1, 0.3, 1),
    requests: int = 60,
    waits: Iterable[str] = WAITS,
    week: float = WEEK,
    only: Callable[[str], bool] = lambda _: True,
    seed: int = 1,
) -> Came:
    """Slow plans, and waits of a week, with every parameter at both of its bounds."""
    came, most, count = Came(), 0, 0
    for name, settings in _settings():
        if not only(name):
            continue
        for plan in plans:
            count += 1
            most = max(
                most, _slow(came, f"{name}, {plan:g} a second", settings, plan, requests, seed)
            )
        for wait in waits:
            count += 1
            most = max(most, _waiting(came, f"{name}, {wait}", settings, wait, week, seed))
    came.told = f"no time-out, {most} receive_count at most, in {count} runs"
    return came


def _slow(came: Came, name: str, settings: Settings, plan: float, requests: int, seed: int) -> int:
    bot = Account("default", plan, plan)
    with World(seed, bots=[bot], settings=settings) as world:
        published = _publish(world, range(requests // 2))
        _publish(world, range(requests // 2, requests), known=False)
        world.settle(at_most=WEEK)
        return _judge_waits(came, name, world, bot, len(published))


def _waiting(came: Came, name: str, settings: Settings, wait: str, week: float, seed: int) -> int:
    """A few requests wait for a week, or until their time is over."""
    bot = Account("default")
    spells: list[Any] = []
    if wait != "for a slot":
        fault = {"outage": "refused", "penalties": "throttled", "history fails": "dropped"}[wait]
        spells.append((START, START + 10 * DAY, fault, None))
    faults = Faults(blip=BlipFaults(spells=spells))
    settings = replace(settings, history=HistorySettings(answers=False))
    with World(seed, bots=[bot], settings=settings, faults=faults) as world:
        if wait == "for a slot":

            def hold() -> None:
                # Others have every slot of the next ten seconds.
                _bot(world)["next_messages_at"] = round((world.simulation.now + 10) * 1_000_000)
                world.simulation.at(world.simulation.now + 5, hold)

            hold()
        _publish(world, range(4))
        world.run(week)
        return _judge_waits(came, name, world, None, 0)


def _judge_waits(came: Came, name: str, world: World, bot: Account | None, requests: int) -> int:
    receive_count = world.requests.most_receives
    came.check(f"{name}: {receive_count} receive_count", held=receive_count <= MAX_RECEIVES)
    timeouts = world.sending.timeouts
    came.check(f"{name}: {timeouts} time-outs", held=timeouts == 0)
    came.check(f"{name}: SQS gave up", held=not world.requests.exhausted)
    if bot is not None:
        came.check(f"{name}: {bot.throttled} throttled", held=bot.throttled == 0)
        early = [
            _reason(letter)
            for letter in world.invariants.letters
            if _reason(letter) not in {Reason.WAITED_TOO_LONG}
        ]
        came.check(f"{name}: {early[:3]}", held=not early)
        came.check(f"{name}: nothing of {requests} sent", held=bool(world.blip.sent))
    return receive_count


# --- The outbox -----------------------------------------------------------------------------------

# What the publisher cannot be blamed for: the function is called once a second.
EVENT_SECONDS = 10.0


def outbox(*, requests: int = 10_000, hours: float = 2, seed: int = 1) -> Came:
    """EventBridge is away for hours; and then it, or an item, is poison."""
    came = Came()
    calm = _without_a_bus(came, requests, hours, seed, away=False)
    away = _without_a_bus(came, requests, hours, seed, away=True)
    came.check(
        f"p99 {away.sent_in:.3f} s, {calm.sent_in:.3f} s without the outage",
        held=away.sent_in <= 1.1 * calm.sent_in + 0.1,
    )
    came.check(f"published {away.done_in:.0f} s after the outage", held=away.done_in <= 300)
    others = _poison_in_the_stream(came, 300, seed)
    came.told = (
        f"{requests} sent with a p99 of {away.sent_in:.2f} s, {calm.sent_in:.2f} s without the "
        f"outage; {away.events} events published within {away.done_in:.0f} s after it, "
        f"{away.repeated} of them twice; beside poison the others' p99 is {others:.1f} s"
    )
    return came


@dataclass
class _Outbox:
    """What came of an outage of the bus: seconds, and how many events."""

    sent_in: float
    done_in: float
    events: int
    repeated: int


def _without_a_bus(came: Came, requests: int, hours: float, seed: int, *, away: bool) -> _Outbox:
    name = "outage" if away else "calm"
    ends = START + hours * 3600
    faults = Faults(bus=BusFaults(away=[(START, ends)] if away else []))
    with World(seed, bots=[Account("default")], faults=faults) as world:
        published = _publish(world, range(requests), per_second=requests / (hours * 3600))
        world.run(ends - world.simulation.now)
        early = len(world.bus.told)
        came.check(f"{name}: {early} events", held=(early == 0) is away)
        waits = _waits(world, published)
        done_in = world.run_until(
            lambda: world.publishing.age < EVENT_SECONDS, at_most=DAY, every=1
        )
        world.settle()
        twice = _once_more(world)
        came.check(f"{name}: {len(waits)} sent until its end", held=len(waits) >= requests - 1)
        came.check(f"{name}: {twice[:3]}", held=not twice)
        came.check(
            f"{name}: {len(world.invariants.letters)} letters", held=not world.invariants.letters
        )
        publishing = world.publishing
        lost = [*publishing.dropped, *publishing.errors, *world.unpublished.waiting()]
        came.check(f"{name}: {lost[:3]}", held=not lost and not publishing.timeouts)
        came.broken += [f"{name}: {what}" for what in world.invariants.broken()]
        ids = Counter(each["event_id"] for told in world.bus.told.values() for each in told)
        repeated = sum(times > 1 for times in ids.values())
        return _Outbox(_p99(waits), done_in, len(ids), repeated)


def _poison_in_the_stream(came: Came, requests: int, seed: int) -> float:
    """One item nobody understands, two notifications whose events the bus refuses for ever.

    While the bus is away for some minutes, what cannot be published is put aside once all the same.
    Returns how long the others' events took, all but one of a hundred.
    """
    never, too_large = (request(number)["id"] for number in (10, 20))
    away = (START + 60, START + 360)
    bus = BusFaults(never={never}, too_large={too_large}, away=[away])
    took: list[float] = []
    with World(seed, bots=[Account("default")], faults=Faults(bus=bus)) as world:
        held = world.bus.on_event

        def listen(detail: dict[str, Any]) -> None:
            held(detail)
            changed_at = datetime.fromisoformat(detail["time"]).timestamp()
            if not away[0] - EVENT_SECONDS < changed_at < away[1] + MAX_BACKOFF_SECONDS:
                took.append(world.simulation.now - changed_at)

        world.bus.on_event = listen
        _publish(world, range(requests), per_second=requests / 600)
        world.later(START + 5, world.poison)
        # In every shard's batch that the bus does not take, one and another.
        for number in range(16):
            world.publish_at(away[0], request(requests + number))
            world.later(away[0] + 0.3, world.poison)
        world.settle()
        p99 = _p99(sorted(took))
        came.check(f"poison: the others' p99 is {p99:.1f} s", held=p99 <= EVENT_SECONDS)
        aside = [json.loads(message.body) for message in world.unpublished.waiting()]
        keys = {facts["key"] for facts in aside}
        expected = {
            *world.invariants.poison,
            *(ledger_key("default", each) for each in (never, too_large)),
        }
        came.check(f"poison: {keys} on the queue", held=keys == expected)
        most = Counter(facts["sequence_number"] for facts in aside).most_common(1)
        came.check(f"poison: put aside again and again: {most}", held=most[0][1] <= 3)
        came.broken += [f"poison: {what}" for what in world.invariants.broken()]
    return p99
