"""A batch: its time, its slots, and the room that it leaves in flight."""

from itertools import pairwise
from typing import Any

import pytest

from notifier.domain.bot_state import Reservation
from notifier.domain.bots import Bot
from notifier.domain.failures import (
    Misconfigured,
    Throttled,
    Transient,
)
from tests.support.blip import always
from tests.support.builders import KEY, PHONE, a_request
from tests.support.world import World
from tests.unit.use_cases.send_notification.helpers import DAY, at, fail, outcome

# --- Time and slots -------------------------------------------------------------------------------


def test_too_little_time_claims_nothing_and_returns_the_whole_batch_at_once(
    world: World,
) -> None:
    bodies = [a_request() for _ in range(5)]

    results = world.sandbox().deliver(*bodies, seconds=11.9)

    assert [(outcome(v), v.retry_in) for v in results] == [("retry_later", 0)] * 5
    assert world.ledger_table.writes == 0
    assert world.blip.look_ups == []


def test_invalid_request_is_a_dead_letter_even_with_little_time_left(world: World) -> None:
    (result,) = world.sandbox().deliver("not JSON", seconds=1)

    assert outcome(result) == "dead_letter"


def test_slow_requests_start_no_send_that_could_be_cut_off(world: World) -> None:
    """Ten seconds per call, one after the other: what no longer fits comes back at once."""
    for number in range(6):
        world.know(f"+551198888770{number}")
    world.blip.call_seconds = 9.5
    bodies = [a_request(to=f"+551198888770{number}") for number in range(6)]

    results = world.sandbox().deliver(*bodies, seconds=30)

    assert list(map(outcome, results)) == ["sent", "sent", *["retry_later"] * 4]
    assert all(v.retry_in == pytest.approx(0, abs=1) for v in results[2:])
    assert all(world.entry(body)["attempts"] == 0 for body in bodies[2:])
    assert world.clock.now() - world.blip.sent[-1].at <= 12


def test_batch_keeps_to_the_plan(world: World) -> None:
    world.bots = {"default": {"key": KEY, "messages_per_second": 20}}
    bodies = [a_request(to=f"+551198888{n:04}") for n in range(30)]
    for body in bodies:
        world.know(body["to"])
    sandbox = world.sandbox()

    results = sandbox.deliver(*bodies)

    assert set(map(outcome, results)) == {"sent"}
    times = [sent.at for sent in world.blip.sent]
    assert max(sum(first <= at < first + 1 for at in times) for first in times) <= 20
    assert times[-1] - times[0] < 30 / 20 + 0.2
    # One reservation for the whole batch.
    assert sandbox.bot_states.reservations == [("default", "messages", 30)]


@pytest.mark.parametrize("answered_in", [0.02, 0.04, 0.1, 0.7])
def test_slow_reservation_lets_all_requests_send_but_not_at_once(
    world: World, answered_in: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bots = {"default": {"key": KEY, "messages_per_second": 20}}
    bodies = [a_request(to=f"+551198888{n:04}") for n in range(10)]
    for body in bodies:
        world.know(body["to"])
    sandbox = world.sandbox()
    reserve = sandbox.bot_states.reserve

    def slowly(*args: Any, **kwargs: Any) -> Reservation:
        reservation = reserve(*args, **kwargs)
        world.clock.sleep(answered_in)
        return reservation

    monkeypatch.setattr(sandbox.bot_states, "reserve", slowly)
    results = sandbox.deliver(*bodies)

    assert set(map(outcome, results)) == {"sent"}
    times = [sent.at for sent in world.blip.sent]
    assert max(sum(first <= at < first + 0.5 for at in times) for first in times) <= 11
    assert min(later - earlier for earlier, later in pairwise(times)) > 0


def test_look_ups_keep_to_the_commands_plan(world: World) -> None:
    world.bots = {"default": {"key": KEY, "commands_per_second": 5, "messages_per_second": 1000}}
    times = []
    world.blip.before_look_up = lambda _: times.append(world.clock.now())

    world.sandbox().deliver(*[a_request(to=f"+551198888{n:04}") for n in range(10)])

    assert len(times) == 10
    assert max(sum(first <= at < first + 1 for at in times) for first in times) <= 5


def test_look_ups_of_a_batch_share_one_reservation_and_so_do_its_sends(
    world: World,
) -> None:
    sandbox = world.sandbox()

    sandbox.deliver(*[a_request(to=f"+55119888877{n:02}") for n in range(2)])

    assert sandbox.bot_states.reservations == [
        ("default", "commands", 2),
        ("default", "messages", 2),
    ]


def test_bot_without_a_slot_soon_leaves_its_requests_unclaimed(world: World) -> None:
    world.bots = {"default": {"key": KEY, "messages_per_second": 1}}
    bodies = [a_request(to=f"+551198888{n:04}") for n in range(8)]
    for body in bodies:
        world.know(body["to"])
    first, second = world.sandbox(), world.sandbox()
    first.deliver(*bodies[:6])
    world.clock.advance(-5)  # as if the two had started together

    results = second.deliver(*bodies[6:])

    assert set(map(outcome, results)) == {"retry_later"}
    waits = [result.retry_in for result in results]
    assert all(wait is not None and 5 < wait < 7 for wait in waits)
    assert all(world.entry(body) == {} for body in bodies[6:])


@pytest.mark.parametrize(("requests", "rounds"), [(32, 1), (33, 2)])
def test_round_is_no_larger_than_can_start_at_once(
    world: World, requests: int, rounds: int
) -> None:
    sandbox = world.sandbox()

    sandbox.deliver(*(a_request(to=f"+55119888877{number:02}") for number in range(requests)))

    assert sandbox.identities.reads == rounds


# --- Room in flight -------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [0, 79_999, 80_000, 109_999, 110_000])
@pytest.mark.parametrize("reason", ["paused", "cooldown", "throttled", "broken", "wrong key"])
def test_stopped_bot_leaves_room_in_flight_for_other_bots(
    world: World, reason: str, in_flight: int
) -> None:
    sandbox = world.sandbox()
    match reason:
        case "paused":
            sandbox.bot_states.pause("default")
        case "broken":
            sandbox.bot_states.open_breaker("default", "no answer")
            world.blip.before_ping = always(lambda: Transient("busy"))
        case "wrong key":
            world.blip.before_send = always(lambda: Misconfigured("HTTP 401"))
            world.blip.before_ping = always(lambda: Misconfigured("HTTP 401"))
        case "throttled":  # in this very batch; the wait is longer by a tenth than the cooldown
            throttled = Throttled("too fast", retry_after_seconds=100 / 1.1)
            world.blip.before_send = always(lambda: throttled)
        case _:
            bot = Bot(name="default", key=KEY)
            sandbox.bot_states.start_cooldown(bot, "messages", world.clock.now() + 100)
    world.in_flight = in_flight

    (result,) = sandbox.deliver(a_request())

    # Requests that wait for the end of a cooldown return at 200 a second.
    long = 105 + in_flight / 200 if reason in {"cooldown", "throttled"} else 900
    assert result.retry_in == pytest.approx(long if in_flight < 80_000 else 30)
    assert [slept for slept in world.clock.slept if slept > 0.01] == (
        [3] if in_flight >= 110_000 else []
    )


def test_all_sandboxes_together_receive_at_most_2000_waiting_requests_a_second(
    world: World,
) -> None:
    sandbox = world.sandbox(maximum_concurrency=100)
    sandbox.bot_states.pause("default")

    sandbox.deliver(*(a_request(to=f"+55119888877{number:02}") for number in range(10)))
    assert world.clock.slept == [pytest.approx(0.5 - 0.03)]
    sandbox.deliver(a_request(), seconds=1.02)
    assert world.clock.slept[1:] == [pytest.approx(0.02)]


def test_batch_with_a_request_that_can_proceed_does_not_hold_still(world: World) -> None:
    world.bots["other"] = world.bots["default"]
    sandbox = world.sandbox()
    sandbox.bot_states.pause("default")
    world.in_flight = 110_000

    still, sent = sandbox.deliver(a_request(), a_request(bot="other"))

    assert (still.retry_in, outcome(sent), sent.retry_in) == (30, "sent", None)
    assert world.clock.slept == []


@pytest.mark.parametrize(
    ("age", "valid_for", "least"),
    [(60, None, 5), (6000, None, 100), (6 * DAY, None, 3600), (6000, 100, 10), (6000, 5000, 100)],
)
def test_every_wait_is_at_least_a_sixtieth_of_the_age(
    world: World, age: float, valid_for: float | None, least: float
) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    world.know(PHONE)
    changes = {} if valid_for is None else {"valid_until": at(world.clock.now() + valid_for)}
    queued = world.queued(a_request(**changes), age=age)

    (result,) = world.sandbox(uniform=min).deliver(queued)

    assert result.retry_in == pytest.approx(least, abs=0.1)


def test_age_of_each_returned_request_is_measured(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.bot_states.pause("default")

    sandbox.deliver(world.queued(a_request(), age=3600), world.queued(a_request(), age=60))

    assert sorted(world.meter.times["oldest_request"]) == pytest.approx([60, 3600], abs=5)


def test_batch_with_little_time_left_holds_still_until_a_second_before_its_end(
    world: World,
) -> None:
    world.identities_table.items["bot:default"] = {"broken": "no answer"}
    world.blip.before_ping = always(lambda: Transient("busy"))
    world.blip.call_seconds = 10
    world.in_flight = 110_000

    world.sandbox().deliver(a_request(), seconds=12.5)

    assert world.clock.slept == [10, 1.5]
