"""Starvation, errors of AWS, and the outbox."""

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any
from unittest import mock

from notifier.aws import queues
from notifier.contract.parse import parse
from notifier.domain.failures import Reason
from notifier.domain.notification import ledger_key, message_id
from notifier.use_cases.send_notification import batch, waits
from tests.faults import stories
from tests.faults.blip import (
    Account,
    BlipFaults,
    Fate,
    Fault,
)
from tests.faults.events import ALWAYS, BusFaults
from tests.faults.hardships.rows import (
    DAY,
    START,
    Came,
    bot_item,
    p99_of,
    publish,
    reason_of,
    sent_twice,
    waited,
)
from tests.faults.long_runs import request
from tests.faults.world import Faults, Settings, World
from tests.support.simulated_aws import sqs
from tests.support.simulated_aws.dynamodb import ERRORS, AwsError, AwsFaults
from tests.support.simulated_aws.stream import MAX_BACKOFF_SECONDS

# --- Starvation -----------------------------------------------------------------------------------


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
    fault: Fault = "throttled" if state == "cooldown" else "refused"
    faults = Faults(blip=BlipFaults(spells=[(START, START + DAY, fault, "default")]))
    bots = [Account("default"), Account("clinic")]
    with World(seed, bots=bots, faults=faults, settings=settings) as world:
        if state == "paused":
            bot_item(world)["paused"] = round(START * 1000)
        for number in range(waiting):
            body = request(number)
            world.know(body["to"])
            world.publish(body)
        world.run(lead)
        numbers = range(waiting, waiting + others)
        published = publish(world, numbers, per_second=10, bot="clinic")
        with suppress(TimeoutError):
            world.run_until(lambda: len(waited(world, published)) == others, at_most=1800)
        waits = waited(world, published)
        came.check(f"{name}: {len(waits)} of {others} sent", held=len(waits) == others)
        most = world.requests.most_in_flight
        came.check(f"{name}: {most} in flight", held=most <= sqs.MAX_IN_FLIGHT)
        came.broken += world.invariants.broken(quiet=False)
        return p99_of(waits) if len(waits) == others else float("inf")


def starvation(
    *,
    waiting: int = 130_000,
    others: int = 600,
    states: Iterable[str] = ("cooldown", "paused", "broken"),
    lead: float = 120,
    groups: Iterable[bool] = (True, False),
    concurrency: int = 5,
    scale: int = 1,
    seed: int = 1,
) -> Came:
    """Fill SQS's limit in flight with one bot's requests; another's arrive at ten a second.

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
    came.summary = "the other's p99: " + ", ".join(slowest)
    return came


# --- Errors of AWS --------------------------------------------------------------------------------


def _aws_storm(came: Came, requests: int, seed: int) -> None:
    """Make many calls fail. A message that was never posted must not count as possibly sent."""
    aws = AwsFaults(repeated=0.02, failed=0.03, slow=0.02, stale=0.2)
    faults = Faults(aws=aws, bus=BusFaults(calls=aws, throttled=[(*ALWAYS, 0.02)]))
    bots = [Account("default"), Account("clinic")]
    with World(seed, bots=bots, faults=faults) as world:
        for bot, if_unknown in (("default", "fail"), ("clinic", "resend")):
            half = range(requests // 2)
            publish(world, half, per_second=20, bot=bot, known=False, if_unknown=if_unknown)
        world.settle(at_most=5 * DAY)
        twice = sent_twice(world)
        came.check(f"storm: {twice[:3]}", held=not twice)
        never = [
            letter
            for letter in world.invariants.letters
            if reason_of(letter) == Reason.OUTCOME_UNKNOWN and not _posted(world, letter)
        ]
        came.check(f"storm: {len(never)} outcome_unknown were never posted", held=not never)
        came.broken += [f"storm: {what}" for what in world.invariants.broken()]


def _posted(world: World, letter: sqs.Message) -> bool:
    asked = parse(letter.body).request
    generation = int(letter.attributes["generation"]["StringValue"])
    return bool(world.blip.posts.get(message_id(ledger_key(asked.bot, asked.id), generation)))


def _one_record(came: Came, seed: int) -> float:
    """Fail each call that concerns one record of ten. Return the others' longest wait."""
    slowest = 0.0
    calls = ("ledger.update", "identities.update", "ledger.get")
    for call in calls:
        for error in ERRORS:
            for happens in (0, 1):
                with World(seed, bots=[Account("default")]) as world:
                    left = [AwsError(error, happens)]

                    def fail(point: str, call: str = call, left: list[AwsError] = left) -> Any:
                        # All identities of a batch are read with one call.
                        own = point.startswith(call) and not point.endswith(".get_many")
                        return left.pop() if left and own else None

                    world.aws.fails = fail
                    # Before a failure is recorded, the ledger is read.
                    world.blip.fates[request(0)["to"]] = Fate(failing=[131047])
                    published = publish(world, range(10), known=call != "identities.get")
                    world.settle(at_most=DAY)
                    waits = waited(world, published)
                    name = f"{error} at one {call}, {'after' if happens else 'before'}"
                    came.check(f"{name}: {len(waits)} of 10 sent", held=len(waits) == 10)
                    nine = max(waits[:9], default=float("inf"))
                    came.check(f"{name}: the others waited {nine:.1f} s", held=nine <= 15)
                    slowest = max(slowest, nine)
                    came.check(f"{name}: it never happened", held=not left)
                    came.broken += [f"{name}: {what}" for what in world.invariants.broken()]
    return slowest


def aws_errors(
    *,
    tales: Iterable[str] | None = None,
    errors: Iterable[str] = ERRORS,
    requests: int = 2000,
    seed: int = 1,
) -> Came:
    """Raise each error of botocore at every call of every story, before and after its effect.

    Then a storm of them; and that an error at one record's calls hurts no other record.
    """
    came, points = Came(), 0
    for name in tales or stories.STORIES:
        story = stories.STORIES[name]
        calls = [call.partition(": ")[2] for call in stories.calls(story)]
        for number, call in enumerate(calls):
            # In that story the bus's outage fails these calls already.
            fails_by_itself = (name, call) == ("the event bus is away", "events.put")
            if call.startswith("blip.") or fails_by_itself:
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
    came.summary = (
        f"{points} failing calls in stories, a storm of {requests}; beside a failing record the "
        f"other nine went out within {others:.1f} s"
    )
    return came


# --- The outbox -----------------------------------------------------------------------------------


# What the publisher cannot be blamed for: the function is called once a second.
EVENT_SECONDS = 10.0


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
        published = publish(world, range(requests), per_second=requests / (hours * 3600))
        world.run(ends - world.simulation.now)
        early = len(world.bus.published)
        came.check(f"{name}: {early} events", held=(early == 0) is away)
        waits = waited(world, published)
        done_in = world.run_until(
            lambda: world.publishing.age < EVENT_SECONDS, at_most=DAY, every=1
        )
        world.settle()
        twice = sent_twice(world)
        came.check(f"{name}: {len(waits)} sent until its end", held=len(waits) >= requests - 1)
        came.check(f"{name}: {twice[:3]}", held=not twice)
        came.check(
            f"{name}: {len(world.invariants.letters)} letters", held=not world.invariants.letters
        )
        publishing = world.publishing
        lost = [*publishing.dropped, *publishing.errors, *world.unpublished.waiting()]
        came.check(f"{name}: {lost[:3]}", held=not lost and not publishing.timeouts)
        came.broken += [f"{name}: {what}" for what in world.invariants.broken()]
        ids = Counter(
            each["event_id"] for events in world.bus.published.values() for each in events
        )
        repeated = sum(times > 1 for times in ids.values())
        return _Outbox(p99_of(waits), done_in, len(ids), repeated)


def _poison_in_the_stream(came: Came, requests: int, seed: int) -> float:
    """Write an unreadable item, and two notifications whose events the bus always refuses.

    While the bus is away for some minutes, what cannot be published is put aside once nevertheless.
    Return how long the others' events took, all but one of a hundred.
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
        publish(world, range(requests), per_second=requests / 600)
        world.later(START + 5, world.poison)
        # In every shard's batch that the bus does not take, one and another.
        for number in range(16):
            world.publish_at(away[0], request(requests + number))
            world.later(away[0] + 0.3, world.poison)
        world.settle()
        p99 = p99_of(sorted(took))
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


def outbox(*, requests: int = 10_000, hours: float = 2, seed: int = 1) -> Came:
    """Make EventBridge unavailable for hours; then add poison in an event and in an item."""
    came = Came()
    calm = _without_a_bus(came, requests, hours, seed, away=False)
    away = _without_a_bus(came, requests, hours, seed, away=True)
    came.check(
        f"p99 {away.sent_in:.3f} s, {calm.sent_in:.3f} s without the outage",
        held=away.sent_in <= 1.1 * calm.sent_in + 0.1,
    )
    came.check(f"published {away.done_in:.0f} s after the outage", held=away.done_in <= 300)
    others = _poison_in_the_stream(came, 300, seed)
    came.summary = (
        f"{requests} sent with a p99 of {away.sent_in:.2f} s, {calm.sent_in:.2f} s without the "
        f"outage; {away.events} events published within {away.done_in:.0f} s after it, "
        f"{away.repeated} of them twice; beside poison the others' p99 is {others:.1f} s"
    )
    return came
