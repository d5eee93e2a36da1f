"""Real sandboxes in the local stack: killed at their calls, and in a storm."""

import pytest

from tests.faults import local_crashes, local_storm
from tests.faults.deployed import deployed, killable_stack
from tests.faults.local_crashes import SIDES, Point, Theatre
from tests.faults.local_outbox import load
from tests.faults.local_storm import Storm, rage
from tests.local.events import listening

# Where it matters most; `make faults` takes every call. Receipts have a stack of their own, because
# their story waits until all others of the stack have run.
SENDING = [
    Point("known recipient", 0, "UpdateItem LedgerTable", "after"),
    Point("known recipient", 0, "BLiP: send", "before"),
    Point("known recipient", 0, "BLiP: send", "after"),
    Point("new recipient", 0, "BLiP: accounts", "after"),
    Point("dead letter: no phone number", 0, "SendMessage DeadLettersQueue", "after"),
]
RECORDING = [Point("receipt: read", 0, "UpdateItem LedgerTable", "after")]
PUBLISHING = [Point("status events", 0, "PutEvents", side) for side in SIDES]


@pytest.mark.parametrize(
    "points", [SENDING, RECORDING, PUBLISHING], ids=["sending", "recording", "publishing"]
)
def test_kill_at_any_call_of_a_deployed_sandbox_loses_nothing_and_sends_nothing_twice(
    points: list[Point],
) -> None:
    with (
        killable_stack(local_crashes.PARAMETERS) as (stack, killer),
        listening(stack.aws) as heard,
    ):
        came_of_it = list(Theatre(stack, killer, heard).kill_at(points))

    assert {str(point): point.broken for point in came_of_it if point.broken} == {}
    assert len(came_of_it) == len(points)


def test_storm_over_the_deployed_stack_loses_nothing_and_sends_nothing_twice() -> None:
    with deployed(local_storm.PARAMETERS) as stack:
        result = rage(stack, Storm(150, seconds=6, kills=3))

    assert result.broken == []
    assert (result.lost, result.sent_twice, result.wrong, result.undeserved) == (0, 0, 0, 0)
    # It was one.
    assert result.killed > 0
    assert result.struck > 0


def test_steady_load_publishes_each_event_in_order() -> None:
    result = load(per_second=5, seconds=6)

    assert result.broken == []
    # Each is measured. How long it takes is the machine's too: `make faults` holds it to 2 s.
    assert len(result.delays) >= result.events
