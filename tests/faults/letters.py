"""A long queue of dead letters: listed, and redriven by a run that is killed in the middle."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from functions.cli import dead_letters
from notifier.contract.parse import parse
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import Claim
from notifier.domain.notification import QueuedRequest, ledger_key
from notifier.domain.status import Status
from notifier.use_cases.redrive_failures.orders import ListOrder, RedriveOrder
from notifier.use_cases.redrive_failures.redrive import VISIBILITY_SECONDS
from notifier.use_cases.redrive_failures.report import Report
from tests.faults.long_runs import request
from tests.faults.world import World
from tests.support.adapters import WholeLedger
from tests.support.builders import a_notification
from tests.support.simulated_aws.simulation import STRAGGLES_SECONDS, Process, SimThreads
from tests.support.simulated_aws.sqs import SimSqs

# An operator is not in AWS's region.
AWAY_SECONDS = 0.1


@dataclass
class Redriven:
    """The result of a long queue of dead letters.

    Attributes:
        listed_in: seconds.
        took: seconds for the list, the run that was killed, the wait after it and the next run.
        redriven_twice: dead letters that the kill left on both queues.
        sent: requests that BLiP took.
    """

    listed: int = 0
    listed_in: float = 0.0
    took: float = 0.0
    redriven_twice: int = 0
    sent: int = 0
    sent_twice: int = 0
    broken: list[str] = field(default_factory=list)


def redrive(letters: int, undelivered: int, seed: int = 1) -> Redriven:
    """Redrive the undelivered ones of so many dead letters, with a kill in the middle."""
    result = Redriven()
    reasons = {Reason.UNDELIVERED: undelivered, Reason.RETRIES_EXHAUSTED: letters - undelivered}
    with World(seed) as world, _operator(world):
        wanted = _put_letters(world, letters, undelivered)
        began = world.simulation.now
        listed = _finished(world, ListOrder())
        result.listed_in = world.simulation.now - began
        result.listed = listed.scanned
        _compare(result, "listed", _counts(listed), {str(r): n for r, n in reasons.items()})

        put_back: Counter[str] = Counter()
        world.requests.on_sent = lambda message: put_back.update([message.body])
        order = RedriveOrder(reasons=[Reason.UNDELIVERED], dry_run=False)
        process, _ = _started(world, order)
        world.run_until(lambda: len(put_back) >= undelivered / 2, at_most=600, every=0.02)
        world.simulation.kill(process)
        if len(put_back) >= undelivered:
            result.broken.append("the run ended before it was killed")
        # The killed run's calls under way arrive a little later; what they receive is in flight.
        world.run(VISIBILITY_SECONDS + STRAGGLES_SECONDS)
        _finished(world, order)
        result.took = world.simulation.now - began
        result.redriven_twice = sum(times > 1 for times in put_back.values())
        _compare(result, "put back", set(put_back), set(wanted))

        world.settle()
        left = _finished(world, ListOrder())
        others = {str(Reason.RETRIES_EXHAUSTED): letters - undelivered}
        _compare(result, "left", _counts(left), others)
        _compare(result, "to be seen", world.dead_letters.depth(), (letters - undelivered, 0))
        sent = {message_id: len(taken) for message_id, taken in world.blip.sent.items()}
        result.sent = len(sent)
        result.sent_twice = sum(times > 1 for times in sent.values())
        _compare(result, "sent", sent, {f"{key}:2": 1 for key in wanted.values()})
        result.broken += world.unforeseen
    return result


def _compare(result: Redriven, what: str, came: object, expected: object) -> None:
    if came != expected:
        result.broken.append(f"{what}: {str(came)[:200]} instead of {str(expected)[:200]}")


def _counts(report: Report) -> dict[str, int]:
    return {group["reason"]: group["count"] for group in report.as_json()["groups"]}


@contextmanager
def _operator(world: World) -> Iterator[None]:
    """Run the operator's commands in the world's time, with its threads."""
    clock = mock.Mock(return_value=SimpleNamespace(now=world.now), now=world.now)
    with (
        mock.patch.object(dead_letters, "SystemClock", clock),
        mock.patch.object(
            dead_letters, "ThreadPoolExecutor", return_value=SimThreads(world.simulation)
        ),
    ):
        yield


def _started(world: World, order: ListOrder) -> tuple[Process, Any]:
    """Start an operator's command. Return its process and its future answer."""
    queues = {"RequestsQueue": world.requests, "DeadLettersQueue": world.dead_letters}
    sqs = SimSqs(world.aws, queues, AWAY_SECONDS)
    stack: Any = SimpleNamespace(client=lambda _: sqs, physical_id=lambda name: name)
    process = Process("operator")
    command = lambda: dead_letters.redrive(stack, order, lambda *_: None)  # noqa: E731 - a thread's work
    return process, world.simulation.spawn(process, command)


def _finished(world: World, order: ListOrder) -> Report:
    _, answer = _started(world, order)
    world.run_until(answer.done, at_most=3600, every=1)
    report: Report = answer.result()
    return report


def _put_letters(world: World, letters: int, undelivered: int) -> dict[str, str]:
    """Put dead letters on their queue, with the ledger as the functions leave it.

    Returns:
        The keys of those that were not delivered, by body.
    """
    wanted: dict[str, str] = {}
    pattern = _ended(world)
    for number in range(letters):
        request_ = request(number)
        body = json.dumps(request_)
        reason = Reason.UNDELIVERED if number < undelivered else Reason.RETRIES_EXHAUSTED
        key = ledger_key("default", request_["id"])
        if number < undelivered:
            wanted[body] = key
            world.know(request_["to"])
            world.invariants.published(body)
            world.invariants.wanted[key].redriven = True
            world.tables["ledger"].items[key] = pattern | {
                "key": key,
                "id": request_["id"],
                "content_hash": parse(body).content_hash,
                "request": body,
            }
        facts = {"reason": reason, "bot": "default", "notification_id": request_["id"]}
        attributes = {
            name: {"DataType": "String", "StringValue": str(text)}
            for name, text in (facts | {"failure": "{}"}).items()
        }
        attributes["generation"] = {"DataType": "Number", "StringValue": "1"}
        world.dead_letters.send(body, attributes)
    return wanted


def _ended(world: World) -> dict[str, Any]:
    """Return the item of a notification whose first generation was not delivered."""
    ledger = WholeLedger(world.tables["ledger"], world.now)
    queued = QueuedRequest("record", "receipt", json.dumps(request(0)), world.now())
    notification = a_notification(queued)

    def end() -> None:
        claim = ledger.claim(notification, Status.SENDING, world.now() + 30)
        assert isinstance(claim, Claim)
        ledger.mark_failed(claim, Status.FAILED, Reason.UNDELIVERED, 132_001)

    with mock.patch.object(world.tables["ledger"], "on_write"):
        ended = world.simulation.spawn(Process("sender"), end)
        world.run_until(ended.done, at_most=60, every=1)
        ended.result()
    return world.tables["ledger"].items.pop(notification.key)
