"""A steady load on the local stack, and when its status events are on the bus."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from tests.faults.deployed import Message, deployed, is_quiet, know, publish
from tests.local.events import listening
from tests.local.machine import wait_until
from tests.support.builders import a_request

MAX_SECONDS = 2.0
# Of one notification, as the simulator's receipts go.
STATUSES = ["sent", "received", "consumed"]


@dataclass
class Published:
    """How soon status events were published.

    Attributes:
        events: how many different ones.
        delays: from the change in the ledger to the event on the bus, in seconds, sorted: as the
            function measures it.
        repeated: how many were published more than once.
    """

    events: int
    delays: list[float]
    repeated: int
    broken: list[str] = field(default_factory=list)

    @property
    def p95(self) -> float:
        """Which of them 95 % do not exceed."""
        return quantiles(self.delays, n=20)[-1]


def load(per_second: int, seconds: int) -> Published:
    """Send so many notifications a second, for so long, and wait until every event is published."""
    with deployed({}) as stack, listening(stack.aws) as heard:
        assert stack.simulator
        assert stack.ministack
        first, *bodies = (_request(number) for number in range(per_second * seconds + 1))
        for body in (first, *bodies):
            know(stack, body["to"])

        def have_ended(number: int) -> bool:
            ended = {one["id"] for one in heard.collect() if one["status"] == "consumed"}
            return len(ended) == number and is_quiet(stack)

        # Before the load is steady every sandbox starts.
        publish(stack, [Message(json.dumps(first))])
        wait_until(lambda: have_ended(1), "the first end to be published", every=0.5)
        before = len(_measured(stack.ministack.log))
        publish(
            stack,
            [
                Message(json.dumps(body), delay=number // per_second)
                for number, body in enumerate(bodies)
            ],
        )
        every = 1 + len(bodies)
        wait_until(lambda: have_ended(every), "every end to be published", at_most=600, every=0.5)
        delays = sorted(_measured(stack.ministack.log)[before:])
    times = Counter(one["event_id"] for one in heard.details if one["id"] != first["id"])
    result = Published(len(times), delays, sum(count > 1 for count in times.values()))
    for body in bodies:
        statuses = heard.statuses(body["id"])
        # `received` may come after `consumed`, and then changes nothing.
        if statuses not in (STATUSES, [STATUSES[0], STATUSES[2]]):
            result.broken.append(f"{body['id']}: {statuses}")
    return result


def _request(number: int) -> dict[str, Any]:
    return a_request(id=f"steady-{number}", to=f"+5531912{number:06}")


def _measured(log: Path) -> list[float]:
    """Return the values of `changed_to_published` in the functions' log, in seconds."""
    found: list[float] = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith('{"_aws"') and '"changed_to_published"' in line:
            values = json.loads(line)["changed_to_published"]
            found += values if isinstance(values, list) else [values]
    return [value / 1000 for value in found]
