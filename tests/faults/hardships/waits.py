"""Waits: a recipient who is capped each time, and a hundred thousand that are over at once."""

import json
from itertools import pairwise
from typing import Any

from notifier.domain.notification import ledger_key
from tests.faults.blip import Account, Fate, described
from tests.faults.hardships.rows import DAY, Came, reason_of, sent_twice
from tests.faults.long_runs import request
from tests.faults.world import Settings, World
from tests.support.builders import PHONE, a_request

LADDER = (24, 48, 96)
# From a message to its receipt, and from the end of its wait to the next minute.
MAX_LATE_SECONDS = 70
# So many runs of a minute may it take to put all back.
FEW_RUNS = 5


def capped() -> Came:
    """Cap a recipient each time."""
    came = Came()
    with World(1) as world:
        world.know(PHONE)
        world.blip.fates[PHONE] = Fate(failing=[131049] * 4)
        world.publish(a_request(id="order-1"))
        world.settle(at_most=10 * DAY)
        times = sorted(taken.at for every in world.blip.sent.values() for taken in every)
        reasons = [reason_of(letter) for letter in world.invariants.letters]
        came.broken += world.invariants.broken()
    waits = [later - earlier for earlier, later in pairwise(times)]
    came.check(f"sent {len(times)} times", held=len(waits) == len(LADDER))
    for hours, waited in zip(LADDER, waits, strict=False):
        in_time = 3600 * hours <= waited <= 1.1 * 3600 * hours + MAX_LATE_SECONDS
        came.check(f"{waited / 3600:.1f} h instead of {hours}", held=in_time)
    came.check(f"it ended as {reasons}", held=reasons == ["recipient_capped"])
    after = ", ".join(f"{waited / 3600:.1f}" for waited in waits)
    came.summary = f"sent again after {after} h, then one dead letter"
    return came


def unreachable_by_marketing() -> Came:
    """Fail marketing twice as if its recipient could not be reached: the first time is a cap."""
    came = Came()
    bot = Account("default", templates=[described("order_shipped", category="MARKETING")])
    with World(1, bots=[bot], settings=Settings(registry=True)) as world:
        world.know(PHONE)
        world.blip.fates[PHONE] = Fate(failing=[131026] * 2)
        world.publish_at(world.simulation.now + 120, a_request(id="order-1"))
        world.settle(at_most=3 * DAY)
        times = sorted(taken.at for every in world.blip.sent.values() for taken in every)
        reasons = [reason_of(letter) for letter in world.invariants.letters]
        item = world.tables["identities"].items[f"default/{PHONE}"]
        came.broken += world.invariants.broken()
        came.check("it was looked up in between", held=world.blip.look_ups == 0)
    came.check(f"sent {len(times)} times", held=len(times) == 2)
    waited = (times[-1] - times[0]) / 3600
    came.check(f"sent again after {waited:.1f} h", held=24 <= waited <= 26.5)
    came.check(f"it ended as {reasons}", held=reasons == ["undelivered"])
    came.check("the identity is kept in the end", held="address" not in item)
    came.summary = f"131026 of marketing: sent again after {waited:.1f} h, then one dead letter"
    return came


def over_at_once(count: int = 100_000) -> Came:
    """End so many waits at the same time."""
    came = Came()
    with World(1) as world:
        world.sending.automatic = False  # what is put on the queue stays there
        over_at = world.simulation.now + 30
        for number in range(count):
            _wait(world, number, over_at)
        taken = 0
        runs: list[int] = []
        world.run(30)
        while world.next_wake is not None and len(runs) < 20:
            world.run(60)
            runs.append(len(world.requests.messages) - taken)
            taken += runs[-1]
        generations = {
            (message.body, message.attributes["generation"]["StringValue"])
            for message in world.requests.messages.values()
        }
        came.check(f"{taken} put on the queue", held=taken == len(generations) == count)
        came.check(f"it took {len(runs)} runs", held=len(runs) <= FEW_RUNS)
        came.broken += sent_twice(world)
        came.broken += world.unforeseen
    came.summary = f"{count} put on the queue in {len(runs)} runs of a minute, none twice"
    return came


def _wait(world: World, number: int, over_at: float) -> None:
    """Add a notification that waits."""
    body = request(number)
    key, now = ledger_key("default", body["id"]), round(world.simulation.now * 1000)
    item: dict[str, Any] = {
        "key": key,
        "id": body["id"],
        "bot": "default",
        "status": "waiting",
        "generation": 1,
        "request": json.dumps(body),
        "template": "order_shipped",
        "timeline": [["sent", 1, now, None], ["waiting", 1, now, None]],
        "updated_at": now,
        "expires_at": round(world.simulation.now + 45 * DAY),
        "waits": ["recipient capped"],
        "wake_shard": key[0],
        "wake_at": round(over_at * 1000),
    }
    world.invariants.published(item["request"])
    world.tables["ledger"].put(key, item)
