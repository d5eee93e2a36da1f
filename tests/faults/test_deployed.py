"""Real sandboxes in the local stack: killed at their calls, and in a storm."""

import pytest

from tests.faults import local_crashes, local_storm
from tests.faults.deployed import deployed, killable_stack
from tests.faults.local_crashes import Point, Theatre
from tests.faults.local_storm import Storm, rage

# Where it matters most; `make faults` takes every call. Receipts have a stack of their own, because
# their story waits until all others of the stack are told.
SENDING = [
    Point("known recipient", 0, "UpdateItem LedgerTable", "after"),
    Point("known recipient", 0, "BLiP: send", "before"),
    Point("known recipient", 0, "BLiP: send", "after"),
    Point("new recipient", 0, "BLiP: accounts", "after"),
    Point("dead letter: no phone number", 0, "SendMessage DeadLettersQueue", "after"),
]
RECORDING = [Point("receipt: read", 0, "PutEvents", "after")]


@pytest.mark.parametrize("points", [SENDING, RECORDING], ids=["sending", "recording"])
def test_a_sandbox_killed_at_a_call_loses_nothing_and_sends_nothing_twice(
    points: list[Point],
) -> None:
    with killable_stack(local_crashes.PARAMETERS) as (stack, killer):
        came_of_it = list(Theatre(stack, killer).kill_at(points))

    assert {str(point): point.broken for point in came_of_it if point.broken} == {}
    assert len(came_of_it) == len(points)


def test_a_storm_over_the_deployed_stack_loses_nothing_and_sends_nothing_twice() -> None:
    with deployed(local_storm.PARAMETERS) as stack:
        result = rage(stack, Storm(150, seconds=6, kills=3))

    assert result.broken == []
    assert (result.lost, result.sent_twice, result.wrong, result.undeserved) == (0, 0, 0, 0)
    # It was one.
    assert result.killed > 0
    assert result.struck > 0
