"""An outage of hours, and a backlog that takes half an hour even at the plan's full rate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.faults.blip import Account, BlipFaults, Fault
from tests.faults.world import Faults, Settings, World
from tests.support.builders import a_request

# The product keeps 10 % below the plan.
SHARE_OF_PLAN = 0.90
# The right to probe is for 30 seconds; how long after its write the ping leaves, varies.
SHORTEST_BETWEEN_PROBES = 29.0


def request(number: int, bot: str = "default") -> dict[str, Any]:
    """Return a request to a recipient of its own."""
    return a_request(id=f"{bot}-{number}", to=f"+55319{number:08}", bot=bot)


@dataclass
class Outage:
    """The result of an outage.

    Attributes:
        spent: attempts counted while the breaker was open.
        shortest_between_probes: in seconds.
        back_after: how long after its end the first message went out, in seconds.
        drained_in: how long after that the last one did.
        drained_at: messages per second, from the time when all requests may return.
    """

    requests: int
    hours: float
    fault: Fault
    letters: int = 0
    spent: int = 0
    probes: int = 0
    shortest_between_probes: float = 0.0
    back_after: float = 0.0
    drained_in: float = 0.0
    most_in_flight: int = 0
    most_receives: int = 0
    most_per_second: int = 0
    broken: list[str] = field(default_factory=list)


def outage(requests: int, hours: float, fault: Fault, seed: int = 1) -> Outage:
    """Run an outage of BLiP for hours with so many requests waiting, and the time after it."""
    result = Outage(requests, hours, fault)
    bot = Account("default")
    start = 1_800_000_000.0
    begins, ends = start + 60, start + 60 + hours * 3600
    faults = Faults(blip=BlipFaults(spells=[(begins, ends, fault, None)]))
    with World(seed, bots=[bot], faults=faults) as world:
        # A few before, so that it strikes in the middle of work; most while it lasts.
        for number in range(requests):
            share = number / requests
            at = begins - 5 + 5 * share / 0.02 if share < 0.02 else begins + 60 * share
            world.publish_at(at, request(number))
        world.run_until(lambda: bool(_bot(world).get("broken")), at_most=3600, every=1)
        # What was under way when the breaker opened ends first.
        world.run(45)
        before = _attempts(world)
        world.run(ends - world.simulation.now - 1)
        result.spent = _attempts(world) - before
        sent_before = len(world.blip.sent)
        result.probes = len(world.blip.pings["default"])
        result.back_after = world.run_until(
            lambda: len(world.blip.sent) > sent_before, at_most=7200, every=1
        )
        world.run_until(lambda: len(world.blip.sent) == requests, at_most=86_400)
        times = sorted(sent[0].at for sent in world.blip.sent.values())
        result.drained_in = times[-1] - ends - result.back_after
        world.settle()
        pings = world.blip.pings["default"]
        gaps = [later - earlier for earlier, later in pairwise(pings)]
        result.shortest_between_probes = min(gaps, default=0.0)
        result.letters = len(world.invariants.letters)
        result.most_in_flight = world.requests.most_in_flight
        result.most_receives = world.requests.most_receives
        result.most_per_second = bot.most_per_second["messages"]
        result.broken = world.invariants.broken()
    return result


def _bot(world: World, name: str = "default") -> Mapping[str, Any]:
    return world.tables["identities"].items.get(f"bot:{name}", {})


def _attempts(world: World) -> int:
    return sum(item["attempts"] for item in world.tables["ledger"].items.values())


@dataclass
class Backlog:
    """How a backlog was drained.

    Attributes:
        rate: messages per second from the first to the last.
        share: of the configured rate.
        throttled: answers 429.
        second_waits: how long the second bot's requests waited until BLiP had them, in seconds.
    """

    requests: int
    per_second: float
    rate: float = 0.0
    share: float = 0.0
    throttled: int = 0
    most_per_second: int = 0
    receives_per_request: float = 0.0
    most_receives: int = 0
    second_waits: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def backlog(
    requests: int,
    *,
    per_second: float = 50,
    second: int = 0,
    known: bool = True,
    concurrency: int = 5,
    seed: int = 1,
) -> Backlog:
    """Drain so many requests of one bot; `second` more arrive for another bot."""
    result = Backlog(requests, per_second)
    bots = [Account("default", per_second), Account("clinic")]
    with World(seed, bots=bots, settings=Settings(concurrency=concurrency)) as world:
        for number in range(requests):
            body = request(number)
            if known:
                world.know(body["to"])
            world.publish(body)
        published: dict[str, float] = {}
        chance = world.simulation.random
        for number in range(second):
            body = request(requests + number, "clinic")
            at = world.simulation.now + chance.uniform(30, 30 + requests / per_second * 0.8)
            published[body["to"]] = at
            world.publish_at(at, body)
        world.settle(at_most=2 * requests / per_second + 86_400)
        sent = [messages[0] for messages in world.blip.sent.values()]
        first = sorted(message.at for message in sent if message.bot == "default")
        result.rate = (len(first) - 1) / (first[-1] - first[0])
        result.share = result.rate / (SHARE_OF_PLAN * per_second)
        result.second_waits = sorted(
            message.at - published[message.phone] for message in sent if message.bot == "clinic"
        )
        result.throttled = sum(bot.throttled for bot in bots)
        result.most_per_second = bots[0].most_per_second["messages"]
        result.receives_per_request = world.requests.receive_count / (requests + second)
        result.most_receives = world.requests.most_receives
        result.broken = world.invariants.broken()
    return result
