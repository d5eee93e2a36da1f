"""Which requests count for the service level, and which of them are late."""

import pytest

from notifier.domain.bots import Bot
from notifier.domain.failures import Reason, Rejected, Throttled, Transient, Unknown
from tests.support.blip import raises
from tests.support.builders import a_request
from tests.support.world import World

PHONE = "+5531999998888"


@pytest.fixture
def world() -> World:
    world = World()
    world.know(PHONE)
    return world


def judged(world: World) -> tuple[int, int]:
    counts = world.meter.counts
    return counts["sent_in_time"], counts["sent_late"]


@pytest.mark.parametrize(
    ("age", "expected"), [(0.0, (1, 0)), (10.0, (1, 0)), (10.1, (0, 1)), (900.0, (0, 1))]
)
def test_request_is_late_if_it_goes_out_ten_seconds_after_it_was_published(
    world: World, age: float, expected: tuple[int, int]
) -> None:
    world.sandbox().deliver(world.queued(a_request(), age=age))

    assert judged(world) == expected


def test_every_request_of_a_batch_is_judged(world: World) -> None:
    phones = [f"+55119888877{number:02}" for number in range(5)]
    for phone in phones:
        world.know(phone)
    again, *others = [a_request(to=phone) for phone in phones]
    ages = (0.0, 0.0, 11.0, 11.0)
    first_times = [world.queued(body, age=age) for body, age in zip(others, ages, strict=True)]

    world.sandbox().deliver(world.queued(again, receive_count=2), *first_times)

    assert judged(world) == (2, 2)


def test_every_attempt_of_a_batch_that_sends_nothing_is_late(world: World) -> None:
    world.blip.before_send = raises(Transient("503"), Transient("503"))

    world.sandbox().deliver(a_request(), a_request(to="+5511988887777"))

    assert judged(world) == (0, 2)


def test_request_is_late_if_its_bot_has_a_slot_as_the_round_begins(world: World) -> None:
    free_at = round(world.clock.now() * 1_000_000)
    world.identities_table.items["bot:default"] = {"next_messages_at": free_at}

    world.sandbox().deliver(world.queued(a_request(), age=11))

    assert judged(world) == (0, 1)


def test_time_of_look_up_counts(world: World) -> None:
    world.blip.call_seconds = 6
    other = a_request(to="+5511988887777")

    world.sandbox().deliver(world.queued(other, age=5))

    assert judged(world) == (0, 1)


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (Unknown("no answer"), "unknown"),
        (Transient("503"), "retrying"),
        (RuntimeError("an error of ours"), "crashed"),
    ],
)
def test_attempt_that_sends_nothing_is_late_once(
    world: World, failure: Exception, outcome: str
) -> None:
    def strike(_: Bot) -> None:
        raise failure

    world.blip.before_send = strike
    body = a_request()

    (result,) = world.sandbox().deliver(body)
    assert result.outcome == outcome
    assert judged(world) == (0, 1)

    world.clock.advance(3600)
    world.sandbox().deliver(world.queued(body, age=3600, receive_count=2))
    assert judged(world) == (0, 1)


@pytest.mark.parametrize(
    "failure", [Rejected(Reason.REJECTED, "no such template"), Throttled("429")]
)
def test_request_that_may_not_go_out_does_not_count(world: World, failure: Exception) -> None:
    world.blip.before_send = raises(failure)

    world.sandbox().deliver(world.queued(a_request(), age=60))

    assert judged(world) == (0, 0)


def test_request_of_paused_bot_does_not_count_before_or_after(world: World) -> None:
    sandbox, body = world.sandbox(), a_request()
    sandbox.bot_states.pause("default")
    sandbox.deliver(body)
    sandbox.bot_states.resume("default")

    world.sandbox().deliver(world.queued(body, age=900, receive_count=2))

    assert len(world.blip.sent) == 1
    assert judged(world) == (0, 0)


def test_redrive_does_not_count(world: World) -> None:
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no such template"))
    body = a_request()
    world.sandbox().deliver(body)
    world.clock.advance(60)

    world.sandbox().deliver(world.queued(body, age=900, generation=1))

    assert len(world.blip.sent) == 2
    assert judged(world) == (0, 0)


def test_old_request_is_not_late_while_the_plan_is_in_use(world: World) -> None:
    world.sandbox().deliver(*(a_request(to=f"+55319999{n:05}") for n in range(10)))
    world.meter.counts.clear()

    world.sandbox().deliver(world.queued(a_request(), age=60))

    assert len(world.blip.sent) == 11
    assert judged(world) == (0, 0)
