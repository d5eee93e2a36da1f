"""A bot that has worked, and that the bots' secret lacks now."""

from notifier.domain.failures import Reason
from tests.support.builders import KEY, a_request
from tests.support.world import World
from tests.unit.use_cases.send_notification.helpers import outcome


def test_requests_wait_for_a_working_bot_that_is_missing_from_the_secret(world: World) -> None:
    world.sandbox().deliver(a_request())
    bots, world.bots = world.bots, {}
    body = a_request()

    for _ in range(2):
        assert outcome(world.sandbox().deliver(body)[0]) == "misconfigured"
        world.clock.advance(449)
    world.bots = bots
    assert outcome(world.sandbox().deliver(body)[0]) == "sent"
    world.bots = {}
    world.clock.advance(600)
    assert outcome(world.sandbox().deliver(a_request())[0]) == "misconfigured"


def test_bot_missing_for_a_quarter_of_an_hour_is_unknown(world: World) -> None:
    world.sandbox().deliver(a_request())
    world.bots = {}
    world.sandbox().deliver(a_request())
    world.clock.advance(900)

    (result,) = world.sandbox().deliver(a_request())

    assert result.reason is Reason.UNKNOWN_BOT


def test_bot_missing_from_the_secret_waits_beside_one_that_is_there(world: World) -> None:
    world.bots["clinic"] = {"key": KEY}
    world.sandbox().deliver(a_request(), a_request(bot="clinic"))
    del world.bots["clinic"]

    results = world.sandbox().deliver(a_request(), a_request(bot="clinic"))

    assert list(map(outcome, results)) == ["sent", "misconfigured"]
