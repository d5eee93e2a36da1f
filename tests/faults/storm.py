"""Requests of every kind, with everything going wrong at once."""

import random
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from notifier.domain.notification import ledger_key
from tests.faults.blip import Account, BlipFaults, Chat, Fate, HistorySettings, described
from tests.faults.events import ALWAYS, BusFaults
from tests.faults.world import Faults, Settings, World
from tests.support.builders import a_request
from tests.support.simulated_aws.dynamodb import AwsFaults
from tests.support.simulated_aws.sqs import Message, QueueFaults
from tests.support.simulated_aws.stream import StreamFaults

START = 1_800_000_000.0
# What is published, by weight.
KINDS = {
    "ordinary": 680,
    "published twice": 40,
    "other content under the same id": 10,
    "soon out of date": 40,
    "out of date": 10,
    "malformed": 5,
    "invalid": 5,
    "unknown bot": 5,
    "no phone number": 10,
    "refused by BLiP": 5,
    "refused in misleading words": 5,
    "one-time code": 20,
    "one-time code, and another one": 5,
    "receipt: failed for good": 20,
    "receipt: cannot be reached": 10,
    "receipt: rate limit, once": 20,
    "receipt: rate limit, always": 5,
    "receipt: possibly sent": 5,
    "receipt: capped, once": 10,
    "receipt: capped, always": 5,
    "receipt: capped and limited": 5,
    "receipt: capped, and soon out of date": 5,
    "receipt: template paused": 5,
    "receipt: marketing, perhaps capped": 5,
    "receipt: opted out": 5,
    "no receipt": 20,
    "two to one person": 30,
    "taken back": 15,
    "taken back in advance": 10,
    "forgotten": 10,
    "refused by the event bus": 5,
    "restored": 5,
}
# What BLiP lists. A receipt pauses one of them until the next sync.
TEMPLATES = [described("order_shipped"), described("week_of_offers", category="MARKETING")]
# What concerns one notification, and reads as if the bot were wrong.
MISLEADING = [
    Fate(message=(401, 34)),
    Fate(message=(403, None)),
    Fate(message=(403, 42)),
    Fate(message=(404, None)),
    Fate(message=(405, None)),
    Fate(look_up=(200, 81)),
]
FAILING = {
    "receipt: failed for good": (131047,),
    "receipt: cannot be reached": (131026,),
    "receipt: rate limit, once": (131056,),
    "receipt: rate limit, always": (131056, 131056, 131056),
    "receipt: possibly sent": (86,),
    "receipt: capped, once": (131049,),
    # Until it is given up, and twice once it is redriven; its dead letter lies there for days.
    "receipt: capped, always": (131049,) * 6,
    "receipt: capped and limited": (131056, 131049, 131048, 131056),
    "receipt: capped, and soon out of date": (130472, 130472),
    "receipt: template paused": (132015, 132015),
    "receipt: marketing, perhaps capped": (131026, 131049, 131026),
    "receipt: opted out": (131050,),
}

WEATHER = Faults(
    aws=AwsFaults(repeated=0.005, failed=0.002, slow=0.005, stale=0.2),
    requests=QueueFaults(shown_twice=0.01, comes_back=0.01),
    receipts=QueueFaults(shown_twice=0.01, comes_back=0.01),
    killed_per_batch=0.02,
    stream=StreamFaults(repeated=0.02, late=0.02),
    bus=BusFaults(
        calls=AwsFaults(repeated=0.02, failed=0.05, slow=0.02),
        throttled=[(*ALWAYS, 0.02)],
    ),
    receipts_lost=0.05,
    receipts_twice=0.1,
    skew=0.005,
    wakes_late=0.02,
)
BLIP_WEATHER = BlipFaults(
    rates={
        "refused": 0.01,
        "unavailable": 0.01,
        "dropped": 0.01,
        "swallowed": 0.01,
        "gateway": 0.005,
        "cut_off": 0.005,
        "slow": 0.01,
    },
    sporadic={131016: 0.001, 1016: 0.001, 131000: 0.001},
)
# A message that the history cannot decide about is given up when the history has dropped it; one
# that is capped each time has waited for a week by then.
MAX_SECONDS = 15 * 86_400


@dataclass(frozen=True)
class Storm:
    """One storm.

    Attributes:
        history: BLiP's history can be asked, and receipts come; else neither.
        if_unknown: what the producers want, or a mixture.
        per_second: how fast requests are published; above the plan, so that a backlog grows.
        all_receipts: status events are published for `accepted` and `dispatched`, too.
        redriven: which share of the dead letters an operator puts back.
    """

    requests: int
    seed: int = 1
    history: bool = True
    if_unknown: Literal["resend", "fail"] | None = None
    per_second: float = 150
    plan: float = 100
    all_receipts: bool = False
    redriven: float = 0.3


@dataclass
class Result:
    """What came of a storm."""

    requests: int
    seconds: float
    broken: list[str]
    outcomes: Counter[str]
    letters: Counter[str]
    sent_twice: int
    lost: int
    killed: int
    throttled: int
    most_receives: int


def weather(rng: random.Random, storm: Storm, start: float) -> Faults:
    """Return faults at all times, and periods of a wrong key, an outage and a sudden 429."""
    length = storm.requests / storm.per_second
    spells: list[Any] = []
    for fault, seconds in (
        ("unauthorized", 20),
        ("refused", 40),
        ("dropped", 15),
        ("throttled", 1),
    ):
        for _ in range(1 + int(length / 600)):
            begin = start + rng.uniform(0.1, 0.9) * length
            spells.append((begin, begin + seconds, fault, None))
    bus = replace(WEATHER.bus, never=set(), too_large=set())  # of this world only
    faults = replace(WEATHER, bus=bus, blip=replace(BLIP_WEATHER, spells=spells))
    return faults if storm.history else replace(faults, receipts_lost=1.0)


def run(storm: Storm) -> Result:
    """Run a storm until all is quiet; return what is left."""
    rng = random.Random(storm.seed)
    faults = weather(rng, storm, START)
    settings = Settings(
        concurrency=8,
        history=HistorySettings(kept=storm.history),
        all_receipts=storm.all_receipts,
        registry=True,
    )
    # Whether BLiP prolongs a cooldown for calls that it refuses meanwhile is not documented.
    bots = [
        Account("default", storm.plan, 4 * storm.plan, chat=_chat(storm), templates=TEMPLATES),
        Account("clinic", storm.plan, 4 * storm.plan, prolonged=True, templates=TEMPLATES),
    ]
    with World(storm.seed, bots=bots, faults=faults, settings=settings) as world:
        for number in range(storm.requests):
            at = START + rng.uniform(0, storm.requests / storm.per_second)
            _publish(world, storm, rng, number, at)
            if number % 200 == 0:
                world.later(at, world.poison)
        seconds = world.settle(at_most=MAX_SECONDS)
        if storm.redriven:
            _redrive(world, rng, storm.redriven)
            seconds += world.settle(at_most=MAX_SECONDS)
        sent = world.blip.sent
        reasons = Counter(
            letter.attributes["reason"]["StringValue"] for letter in world.invariants.letters
        )
        broken = world.invariants.broken()
        return Result(
            requests=storm.requests,
            seconds=seconds,
            broken=broken,
            outcomes=world.outcomes,
            letters=reasons,
            sent_twice=sum(len(messages) > 1 for messages in sent.values()),
            lost=sum(" lost: " in f" {what}" for what in broken),
            killed=world.sending.killed + world.recording.killed + world.publishing.killed,
            throttled=sum(bot.throttled for bot in bots),
            most_receives=world.requests.most_receives,
        )


def _chat(storm: Storm) -> Chat:
    """Return live conversations of the same bot, now and then."""
    return Chat(0.2 * storm.plan, since=START, seed=storm.seed, share=0.3)


def _one_time_code(number: int) -> dict[str, str]:
    return {"name": "login_code", "language": "pt_BR", "otp": f"code{number:09}"}


def _publish(world: World, storm: Storm, rng: random.Random, number: int, at: float) -> None:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    phone = f"+55319{number:08}"
    body = a_request(
        id=f"n-{number}",
        to=phone,
        bot=rng.choice(["default", "clinic"]),
        if_unknown=storm.if_unknown or rng.choice(["resend", "fail"]),
    )
    fate = Fate(failing=FAILING.get(kind, ()))
    match kind:
        case "published twice":
            world.publish_at(at + rng.choice([0, 0.2, 30, 4000]), body)
        case "other content under the same id":
            other = body | {"metadata": {"other": "content"}}
            world.publish_at(at + rng.choice([0, 0.2, 30, 4000]), other)
        case "one-time code" | "one-time code, and another one":
            body["template"] = _one_time_code(number)
            fate.failing = rng.choice([(), (), (131026,), (131056,)])
            if kind == "one-time code, and another one":
                other = body | {"template": _one_time_code(number + 500_000_000)}
                world.publish_at(at + rng.choice([0, 0.2, 30, 4000]), other)
        case "soon out of date":
            body["valid_until"] = _iso(at + rng.choice([1, 20, 120, 900, 3000]))
        case "out of date":
            body["valid_until"] = _iso(at - 60)
        case "receipt: marketing, perhaps capped":
            body["template"] = body["template"] | {"name": "week_of_offers"}
            if number % 3 == 0:
                body["valid_until"] = _iso(at + 86_400)
        case "receipt: capped, and soon out of date":
            body["valid_until"] = _iso(at + rng.choice([600, 86_400, 2 * 86_400, 4 * 86_400]))
        case "malformed":
            world.publish_at(at, f"no JSON {number}")
            return
        case "invalid":
            body["to"] = "1234"
        case "unknown bot":
            body["bot"] = "nobody"
        case "no phone number":
            fate.a_number = False
        case "refused by BLiP":
            fate.refused = True
        case "refused in misleading words":
            fate = rng.choice(MISLEADING)
        case "no receipt":
            fate.silent = True
        case "taken back":
            back_at = at + rng.choice([0, 0.1, 2, 60])
            world.later(back_at, lambda: world.cancel(body["id"], body["bot"]))
        case "taken back in advance":
            world.later(at - rng.choice([0.05, 1]), lambda: world.cancel(body["id"], body["bot"]))
        case "forgotten":
            world.later(at + rng.choice([600, 4000]), lambda: world.forget(body))
        case "restored":
            key = ledger_key(body["bot"], body["id"])
            world.later(at + rng.choice([0.2, 60, 4000]), lambda: world.restore(key))
        case "refused by the event bus":
            refused = world.bus.faults.too_large if number % 2 else world.bus.faults.never
            refused.add(body["id"])
        case "two to one person":
            world.publish_at(at + rng.choice([0, 0.1, 2]), body | {"id": f"n-{number}-second"})
        case _:
            pass
    if fate != Fate():
        world.blip.fates[phone] = fate
    world.publish_at(at, body)


def _redrive(world: World, rng: random.Random, share: float) -> None:
    """Put some of the dead letters back, as the console does, within an hour."""

    def put_back(letter: Message, *, with_attributes: bool) -> None:
        at = world.simulation.now + rng.uniform(0, 3600)
        world.later(at, lambda: world.redrive(letter, with_attributes=with_attributes))

    for letter in world.letters():
        if rng.random() < share:
            put_back(letter, with_attributes=rng.random() < 0.8)


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
