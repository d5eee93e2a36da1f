"""Distance, and live chat beside the product."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

from notifier.aws.bot_state import DynamoDbBotStates
from notifier.domain.bots import Bot
from notifier.use_cases.send_notification.round import START_HORIZON_SECONDS
from notifier.use_cases.slots import SLOT_HORIZON_SECONDS
from tests.faults.blip import (
    COOLDOWN_SECONDS,
    Account,
    Chat,
    Network,
)
from tests.faults.hardships.rows import START, Came, Silent, publish, waited
from tests.faults.long_runs import request
from tests.faults.world import Faults, Settings, World
from tests.support.simulated_aws.dynamodb import DirectAws, SimTable

FAR = Network(set_up=(0.3, 0.1), round_trip=(0.1, 0.05))


# --- Distance -------------------------------------------------------------------------------------


def distance(
    *, requests: int = 1000, seeds: Iterable[int] = range(20), most_seconds: float = 25
) -> Came:
    """Simulate a distant BLiP with connections that are cold at first and after idle times."""
    came, slowest, throttled, set_ups = Came(), 0.0, 0, 0
    for known in (True, False):
        for seed in seeds:
            bot = Account("default")
            settings = Settings(network=FAR)
            # Of a sandbox's share of a processor: later than that, and slots are missed.
            faults = Faults(wakes_late=0.03)
            with World(seed, bots=[bot], faults=faults, settings=settings) as world:
                for spell in range(2):
                    published = publish(
                        world, range(spell * requests, (spell + 1) * requests), known=known
                    )
                    world.settle()
                    took = max(waited(world, published), default=float("inf"))
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
    came.summary = (
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

    cooldowns: list[float]
    per_second: float
    left: float

    def judge(self, came: Came, name: str, hours: float) -> str:
        """Check the bounds. Return the result as a sentence."""
        by_hour = [
            sum(start <= (at - START) / 3600 < end for at in self.cooldowns)
            for start, end in ((0, 1), (1, 2), (2, 24))
        ]
        for count, most, when in zip(
            by_hour, (6, 2, 10), ("first hour", "second", "next 22 h"), strict=True
        ):
            came.check(f"{name}: {count} cooldowns in the {when}", held=count <= most)
        # Of less than two hours the first cooldowns are too large a part.
        came.check(
            f"{name}: {self.per_second:.1f} a second, {self.left:g} were left",
            held=self.per_second >= 0.75 * self.left or hours < 2,
        )
        return (
            f"{name}, {hours:g} h: {'+'.join(map(str, by_hour))} cooldowns, "
            f"{self.per_second:.1f} a second of {self.left:g}"
        )


def live_chat(*, hours: float = 2, kind: str = "bursts", seed: int = 1) -> Came:
    """Run the whole product with a backlog beside a chat that it does not see."""
    chat = Chat(CHAT_PER_SECOND, since=START, seed=seed, **CHATS[kind])
    bot = Account("default", PLAN, 4 * PLAN, chat=chat)
    came, number = Came(), 0
    with World(seed, bots=[bot]) as world:
        world.blip.fates = Silent()
        while (ran := world.simulation.now - START) < hours * 3600:
            while len(world.requests.messages) < 10 * PLAN:
                body = request(number)
                world.know(body["to"])
                world.publish(body)
                number += 1
            world.run(1)
        rate = len(world.blip.sent) / ran
        result = _Paced(bot.cooldowns, rate, PLAN - chat.busiest)
        came.summary = result.judge(came, kind, hours)
        came.broken += world.invariants.broken(quiet=False)
    return came


def paced_chat(
    *, hours: float = 24, kind: str = "bursts", seed: int = 1, prolonged: bool = False
) -> Came:
    """Simulate a day beside a chat with only the part of the product that sets its pace.

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
    result = _Paced(account.cooldowns, sent / (hours * 3600), PLAN - chat.busiest)
    came.summary = result.judge(came, kind, hours)
    return came
