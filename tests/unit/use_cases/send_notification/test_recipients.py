"""From a phone number to a WhatsApp identity: the cache, the look-up and its lease."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from notifier.domain.failures import (
    Reason,
    Rejected,
)
from notifier.domain.recipients import LookUpLease
from tests.support.blip import identity_of, raises
from tests.support.builders import KEY, PHONE, a_request
from tests.support.clock import Clock
from tests.support.world import World
from tests.unit.use_cases.send_notification.helpers import DAY, OTHER_PHONE, Spread, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

# --- Looked up ------------------------------------------------------------------------------------


def test_unknown_recipient_is_looked_up_once(world: World) -> None:
    sandbox = world.sandbox()

    sandbox.deliver(a_request())
    sandbox.deliver(a_request())
    world.sandbox().deliver(a_request())

    assert world.blip.look_ups == [PHONE]
    assert [sent.identity for sent in world.blip.sent] == [identity_of(PHONE)] * 3


def test_look_ups_without_a_send_are_counted(world: World) -> None:
    number = Rejected(Reason.NOT_A_PHONE_NUMBER, "no number", code=61)
    world.blip.before_look_up = raises(number)
    sandbox = world.sandbox()

    sandbox.deliver(a_request())
    sandbox.deliver(a_request(to=OTHER_PHONE))
    sandbox.deliver(a_request(to=OTHER_PHONE))

    assert world.meter.counts == {
        "look_up": 2,
        "look_up_without_send": 1,
        "identity_miss": 2,
        "identity_hit": 1,
        "sent_in_time": 2,
        "template_unknown": 3,
    }


def test_two_requests_for_one_recipient_are_one_look_up_and_two_sends(world: World) -> None:
    first, second = a_request(), a_request()

    results = world.sandbox().deliver(first, second)

    assert list(map(outcome, results)) == ["sent", "sent"]
    assert world.blip.look_ups == [PHONE]


def test_recipient_is_not_looked_up_if_no_send_could_follow(world: World) -> None:
    """Look-ups that no send follows count against the number."""
    world.know(OTHER_PHONE)
    unknown, known = a_request(), a_request(to=OTHER_PHONE)

    first, second = world.sandbox().deliver(unknown, known, seconds=20)

    assert (outcome(first), first.retry_in) == ("retry_later", 0)
    assert outcome(second) == "sent"
    assert world.blip.look_ups == []
    entry = world.entry(unknown)
    assert (entry["status"], entry["attempts"]) == ("retrying", 0)
    # Its look-up is free for the next sandbox.
    lease = world.sandbox().identities.lease(("default", PHONE), 10)
    assert isinstance(lease, LookUpLease)


# --- No such number -------------------------------------------------------------------------------


def test_not_a_phone_number_is_a_dead_letter_and_is_cached(world: World) -> None:
    world.blip.before_look_up = raises(Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61))
    first, second = a_request(), a_request()

    for body in (first, second):
        (result,) = world.sandbox().deliver(body)
        assert result.reason is Reason.NOT_A_PHONE_NUMBER
        assert world.entry(body)["status"] == "rejected"

    assert world.blip.look_ups == [PHONE]
    assert world.blip.sent == []
    for letter in world.dead_letters.letters:
        assert letter.failure["code"] == 61
        assert letter.failure["phase"] == "look-up"

    world.clock.advance(DAY)
    (result,) = world.sandbox().deliver(a_request())
    assert outcome(result) == "sent"


def test_refused_look_up_is_a_dead_letter_and_is_not_cached(world: World) -> None:
    world.blip.before_look_up = raises(Rejected(Reason.REJECTED, "no", code=27))
    (first,) = world.sandbox().deliver(a_request())
    (second,) = world.sandbox().deliver(a_request())

    assert (first.reason, outcome(second)) == (Reason.REJECTED, "sent")
    assert len(world.blip.look_ups) == 2


# --- Looked up by another sandbox -----------------------------------------------------------------


class Meanwhile(Clock):
    """Calls a function while a thread sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps = 0
        self.happens: Callable[[int], None] = lambda _: None

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if seconds > 0:
            self.sleeps += 1
            self.happens(self.sleeps)


def test_look_up_by_another_sandbox_is_awaited(world: World) -> None:
    clock = Meanwhile()
    world = World(clock=clock)
    other = world.sandbox().identities
    lease = other.lease(("default", PHONE), 22)
    assert isinstance(lease, LookUpLease)

    def learn(sleeps: int) -> None:
        if sleeps == 5:
            world.know(PHONE)

    clock.happens = learn
    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "sent"
    assert world.blip.look_ups == []


def test_recipient_looked_up_a_moment_ago_is_not_looked_up_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = world.sandbox()
    read = sandbox.identities.read

    def read_too_early(*asked: Any) -> Any:
        found = read(*asked)
        world.know(PHONE)
        return found

    monkeypatch.setattr(sandbox.identities, "read", read_too_early)

    sandbox.deliver(a_request())

    assert [sent.identity for sent in world.blip.sent] == [identity_of(PHONE)]
    assert world.blip.look_ups == []


def test_request_returns_if_another_sandbox_looks_up_for_too_long(world: World) -> None:
    other = world.sandbox().identities
    other.lease(("default", PHONE), 22)
    started, body = world.clock.now(), a_request()

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "retry_later"
    assert result.retry_in is not None
    assert 1 <= result.retry_in <= 5.1
    assert 1.9 < world.clock.now() - started < 2.3
    assert world.blip.look_ups == []
    entry = world.entry(body)
    assert (entry["status"], entry["attempts"]) == ("retrying", 0)


def test_thread_that_wakes_too_late_for_its_slot_takes_another(world: World) -> None:
    """A stalled machine must not let out at once what it held up."""
    clock = Meanwhile()
    world = World(clock=clock, bots={"default": {"key": KEY, "messages_per_second": 2}})
    bodies = [a_request(to=f"+551198888{n:04}") for n in range(4)]
    for body in bodies:
        world.know(body["to"])

    def stall(sleeps: int) -> None:
        if sleeps == 1:
            clock.advance(0.3)

    clock.happens = stall
    results = world.sandbox().deliver(*bodies)

    assert set(map(outcome, results)) == {"sent"}
    times = [sent.at for sent in world.blip.sent]
    assert min(later - earlier for earlier, later in pairwise(times)) >= 1 / 2


def test_look_up_by_another_sandbox_delays_the_request_by_1_to_5_seconds(world: World) -> None:
    world.sandbox().identities.lease(("default", PHONE), 100)
    spread = Spread()
    began_at = world.clock.now()

    (result,) = world.sandbox(uniform=spread).deliver(a_request())

    assert outcome(result) == "retry_later"
    assert result.retry_in == pytest.approx(5, abs=0.1)
    assert spread.asked[0] == (1, 5)
    assert world.clock.now() - began_at == pytest.approx(2, abs=0.11)
    assert set(world.clock.slept) == {0.1}
