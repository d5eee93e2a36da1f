"""Everything goes wrong at once, in a simulated world."""

import pytest

from tests.faults.storm import Storm, run


@pytest.mark.parametrize("seed", range(4))
def test_storm_loses_nothing_and_sends_nothing_twice(seed: int) -> None:
    result = run(Storm(600, seed=seed, all_receipts=seed % 2 == 1))

    assert result.broken == []
    assert (result.lost, result.sent_twice) == (0, 0)
    # It was one: sandboxes were killed, and sends had no answer.
    assert result.killed > 0
    assert result.outcomes["unknown"] > 0


@pytest.mark.parametrize("seed", range(2))
def test_no_history_prevents_a_second_send_if_unknown_is_fail(seed: int) -> None:
    result = run(Storm(400, seed=seed, history=False, if_unknown="fail"))

    assert result.broken == []
    assert (result.lost, result.sent_twice) == (0, 0)


@pytest.mark.parametrize("seed", range(2))
def test_silent_history_denies_nothing(seed: int) -> None:
    result = run(Storm(400, seed=seed, history=False, if_unknown="resend"))

    assert result.broken == []
    assert (result.lost, result.sent_twice) == (0, 0)
    assert result.outcomes["denied"] == 0
    assert result.letters["outcome_unknown"] > 0
