"""Any order of what can happen to a few notifications; and that a broken product would not pass."""

import pytest

from tests.faults import interleavings
from tests.faults.breaks import BREAKS


def test_no_interleaving_loses_anything_or_sends_it_twice() -> None:
    interleavings.run(300, anew=False)


@pytest.mark.parametrize(
    "name",
    [
        "a claim ignores another one that is alive",
        "a claim takes what was being sent when its sandbox died",
        "a receipt is written over whatever stands there",
        "an unknown is sent again without asking",
    ],
)
def test_interleavings_find_what_is_broken(name: str) -> None:
    with BREAKS[name].made(), pytest.raises(AssertionError):
        interleavings.run(500, anew=False, shrink=False)


@pytest.mark.parametrize("name", BREAKS)
def test_every_break_can_still_be_made(name: str) -> None:
    """That the interleavings find each of them, `make faults` shows."""
    with BREAKS[name].made():
        pass
