"""A request that comes alone: its slot is reserved while it is claimed, if it can use it then."""

from collections.abc import Callable

import pytest

from notifier.domain.bot_state import BotState, Plan, Reservation
from notifier.domain.bots import Bot
from notifier.use_cases.send_notification.outcomes import Outcome
from notifier.use_cases.send_notification.round import Round
from tests.support.builders import KEY, a_request
from tests.support.clock import Clock
from tests.support.world import Sandbox, World

NUMBER = "+5531988887777"
BOT = Bot(name="default", key=KEY)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def sandbox(world: World) -> Sandbox:
    """One that has sent a message and is connected since, of a bot that is idle."""
    sandbox = world.sandbox()
    world.know("+5531911112222")
    (sent,) = sandbox.deliver(a_request(id="first", to="+5531911112222"))
    assert sent.outcome is Outcome.SENT
    world.clock.advance(1)
    world.know(NUMBER)
    return sandbox


def reserved_before_claimed(world: World) -> Callable[[], bool]:
    """Watch both tables; the answer says whether the last slot was reserved before the claim."""
    order: list[str] = []
    world.ledger_table.on_write = lambda *_: order.append("ledger")
    world.identities_table.on_write = lambda key, *_: order.append(key)
    return lambda: order[:2] == ["bot:default", "ledger"]


def test_slot_of_one_known_recipient_is_reserved_ahead(world: World, sandbox: Sandbox) -> None:
    ahead, before = reserved_before_claimed(world), len(sandbox.bot_states.reservations)

    (result,) = sandbox.deliver(a_request(to=NUMBER))

    assert result.outcome is Outcome.SENT
    assert ahead()
    assert sandbox.bot_states.reservations[before:] == [("default", "messages", 1)]


@pytest.mark.parametrize("why", ["new", "two", "again", "busy", "cold"])
def test_slot_that_may_not_be_used_at_once_is_not_reserved_ahead(
    world: World, sandbox: Sandbox, why: str
) -> None:
    records = [world.queued(a_request(to=NUMBER), receive_count=2 if why == "again" else 1)]
    if why == "new":
        records = [world.queued(a_request(to="+5531933334444"))]
    if why == "two":
        world.know("+5531933334444")
        records.append(world.queued(a_request(id="other", to="+5531933334444")))
    if why == "busy":
        sandbox.bot_states.reserve(BOT, "messages", 20, 1, share=0.9)
    if why == "cold":
        world.blip.taken.clear()
    ahead = reserved_before_claimed(world)

    results = sandbox.deliver(*records)

    assert {result.outcome for result in results} == {Outcome.SENT}
    assert not ahead()


def test_failure_of_a_reservation_ahead_shows_when_the_slot_is_taken() -> None:
    def reserve(bot: Bot, plan: Plan, count: int, *_: float, **__: object) -> Reservation:
        assert (bot, count) == (BOT, 1)
        tried.append(plan)
        if len(tried) == 1:
            raise ConnectionError
        return Reservation((clock.now(),))

    tried: list[Plan] = []
    clock = Clock()
    turn = Round(clock.now() + 30, {"default": BotState()}, reserve, clock)

    turn.reserve_ahead(BOT)
    turn.wait_for_slot(BOT, "messages", known=True, after=1)

    assert tried == ["messages", "messages"]
