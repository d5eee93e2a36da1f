"""Status events where a story or a storm does not come."""

from dataclasses import replace

import pytest

from tests.faults.events import ALWAYS
from tests.faults.stories import an_order
from tests.faults.world import World
from tests.support.builders import PHONE

DAY = 86_400.0


@pytest.mark.parametrize("seed", range(4))
def test_reused_id_has_its_events_again(seed: int) -> None:
    """The item of before is still there, or swept by then: that is up to DynamoDB."""
    with World(seed) as world:
        world.blip.read = 1.0
        for _ in range(2):
            world.know(PHONE)
            world.publish(an_order())
            world.settle()
            world.run(46 * DAY)
        published = [
            (each["status"], each["generation"]) for each in world.bus.published["order-1"]
        ]

        assert published == [("sent", 1), ("received", 1), ("consumed", 1)] * 2
        # BLiP cannot know that it is another notification by now: the other invariants do not hold.
        so_far = [what for what in world.invariants.so_far if " event " in what]
        assert so_far + world.invariants.events.missing(set()) == []


def test_event_unpublished_for_a_day_is_dropped_and_named() -> None:
    with World(1) as world:
        world.publishing.automatic = False
        world.know(PHONE)
        world.publish(an_order())
        world.run(DAY)
        world.publishing.let_go()
        world.publish(an_order(id="order-2"))
        world.settle()

        assert world.bus.published.keys() & {"order-1", "order-2"} == {"order-2"}
        assert len(world.unpublished.messages) == len(world.publishing.dropped) > 0
        assert world.invariants.broken() == []


def test_event_dropped_although_the_function_was_called_is_a_loss() -> None:
    with World(1) as world:
        world.publishing.settings = replace(world.publishing.settings, oldest=3600)
        world.bus.faults.away = [ALWAYS]
        world.know(PHONE)
        world.publish(an_order())
        world.settle()

        assert any("upstream never heard of it" in what for what in world.invariants.broken())
        assert world.publishing.errors == []
