"""One function per row of `make faults`.

Each takes its size, so that a short form of it is a test, and returns what came of it in a
sentence, with what did not keep its bound.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.blip import (
    Fate,
)
from tests.faults.long_runs import request
from tests.faults.world import World
from tests.support.simulated_aws import sqs

START = 1_800_000_000.0
DAY = 86_400.0


@dataclass
class Came:
    """The result of a row.

    Attributes:
        summary: one sentence.
        broken: the bounds that were not kept.
    """

    summary: str = ""
    broken: list[str] = field(default_factory=list)

    def check(self, what: str, *, held: bool) -> None:
        """Note a bound that was not kept."""
        if not held:
            self.broken.append(what)


def bot_item(world: World, bot: str = "default") -> dict[str, Any]:
    return world.tables["identities"].items.setdefault(f"bot:{bot}", {"key": f"bot:{bot}"})


def publish(
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


def waited(world: World, published: Mapping[str, float]) -> list[float]:
    """Return how long requests waited until BLiP had them the first time, sorted."""
    first: dict[str, float] = {}
    for messages in world.blip.sent.values():
        for message in messages:
            first[message.phone] = min(message.at, first.get(message.phone, message.at))
    return sorted(first[phone] - at for phone, at in published.items() if phone in first)


def p99_of(waits: Sequence[float]) -> float:
    return waits[int(0.99 * len(waits))] if waits else float("inf")


def sent_twice(world: World) -> list[str]:
    return [f"{sent_as} twice" for sent_as, taken in world.blip.sent.items() if len(taken) > 1]


class Silent(dict[str, Fate]):
    """Fates without any receipt, since receipts do not affect the pace."""

    def get(self, _: object, __: object = None) -> Any:
        return Fate(silent=True)


def reason_of(letter: sqs.Message) -> str:
    return letter.attributes["reason"]["StringValue"]
