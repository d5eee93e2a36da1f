"""A backlog in the local stack, drained at the plan's real rate, and a second bot beside it."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.faults.deployed import Message, deployed, is_quiet, know, publish
from tests.faults.long_runs import SHARE_OF_PLAN, request
from tests.local.blip import Bot
from tests.local.machine import wait_until
from tests.local.stack import SIMULATED_BOTS

PER_SECOND = 50
SECOND = 20
FIRST = 1_000_000  # the simulator does odd things with smaller numbers
# Of a second bot's requests.
MAX_WAIT_SECONDS = 10


@dataclass
class Drained:
    """How a backlog was drained.

    Attributes:
        rate: messages per second from the first to the last.
        share: of the configured rate.
        throttled: answers 429.
        second_waits: how long the second bot's requests waited until BLiP had them, in seconds.
    """

    rate: float
    share: float
    most_per_second: int
    throttled: int
    second_waits: list[float]
    broken: list[str] = field(default_factory=list)


def drain(requests: int) -> Drained:
    """Drain waiting requests of one bot, beside a few of a second one that come meanwhile."""
    with deployed({}) as stack:
        blip = stack.simulator
        assert blip
        # Without receipts: the machine has enough to do.
        for name in SIMULATED_BOTS.values():
            blip.put_bot(Bot(name=name, webhook=False))
        first, second = SIMULATED_BOTS
        backlog = [request(FIRST + number, first) for number in range(requests)]
        for body in backlog:
            know(stack, body["to"])
        publish(stack, _messages(backlog))
        wait_until(lambda: len(blip.inbox()) > requests / 10, "a tenth to be sent", every=1)
        published: dict[str, float] = {}
        for number in range(SECOND):
            body = request(FIRST + requests + number, second)
            published[body["to"]] = time.time()
            publish(stack, _messages([body]))
        wait_until(lambda: is_quiet(stack), "the backlog to be drained", at_most=600, every=1)
        sent = blip.inbox()
        statistics = blip.statistics()
    at = {message["phone"]: _time(message) for message in sent}
    times = sorted(_time(message) for message in sent if message["bot"] == SIMULATED_BOTS[first])
    rate = (len(times) - 1) / (times[-1] - times[0])
    result = Drained(
        rate=rate,
        share=rate / (SHARE_OF_PLAN * PER_SECOND),
        most_per_second=statistics["highest_per_second"][SIMULATED_BOTS[first]]["messages"],
        throttled=sum(each.get("429", 0) for each in statistics["requests"].values()),
        second_waits=sorted(at.get(phone, 1e9) - since for phone, since in published.items()),
    )
    for holds, what in (
        (len(sent) == len(at) == requests + SECOND, f"{len(sent)} sent to {len(at)}"),
        (not result.throttled, f"{result.throttled} answers said 429"),
        (result.most_per_second <= PER_SECOND, f"{result.most_per_second} in one second"),
        (result.share >= 0.95, f"{100 * result.share:.1f} % of the configured rate"),
        (result.second_waits[-1] < MAX_WAIT_SECONDS, "the second bot waited for the first"),
    ):
        if not holds:
            result.broken.append(what)
    return result


def _messages(requests: Iterable[dict[str, Any]]) -> list[Message]:
    return [Message(json.dumps(request), request["bot"]) for request in requests]


def _time(message: dict[str, Any]) -> float:
    return datetime.fromisoformat(message["accepted_at"]).timestamp()
