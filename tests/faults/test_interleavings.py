"""Any order of what can happen to a few notifications; and that a broken product would not pass."""

import pytest

from tests.faults import interleavings
from tests.faults.blip import Fate
from tests.faults.breaks import BREAKS
from tests.faults.interleavings import NOTIFICATIONS, Interleavings


def test_no_interleaving_loses_anything_or_sends_it_twice() -> None:
    interleavings.run(300, anew=False)


def test_message_forgotten_by_the_history_becomes_a_deserved_dead_letter() -> None:
    """A random search found this story once. For 75 hours no sandbox receives the copies.

    When the history is queried at last, BLiP's history has dropped it.
    """
    story = Interleavings()
    story.deploy(
        seed=0,
        known=True,
        if_unknown=["resend"] * NOTIFICATIONS,
        fates=[Fate(), Fate()],
        valid_for=None,
        lag=(0, 300),
    )
    story.publish(0, None, other=False)
    story.blip_fails("messages", "swallowed")
    for _ in range(10):
        story.publish(0, None, other=False)
    story.start(0, most=1, steps=0, order=0)
    story.wait(90_000)
    story.publish(0, None, other=False)
    story.wait(90_000)
    story.wait(90_000)
    for _ in range(33):
        story.publish(0, None, other=False)
    story.start(0, most=1, steps=0, order=0)
    story.start(0, most=1, steps=0, order=0)

    story.nothing_is_broken()
    story.teardown()  # lets everything go, and looks at what became of it


@pytest.mark.parametrize(
    "name",
    [
        "a claim ignores another one that is alive",
        "a claim takes what was being sent when its sandbox died",
        "a receipt is written over whatever stands there",
        "an unknown is sent again without asking",
        "a receipt that overtakes the answer stands for no `sent`",
        "a batch is done though the bus did not take all of it",
    ],
)
def test_interleavings_find_each_break(name: str) -> None:
    with BREAKS[name].made(), pytest.raises(AssertionError):
        interleavings.run(500, anew=False, shrink=False)


@pytest.mark.parametrize("name", BREAKS)
def test_every_break_can_still_be_made(name: str) -> None:
    """That the interleavings find each of them, `make faults` shows."""
    with BREAKS[name].made():
        pass
