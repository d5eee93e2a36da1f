"""A long queue of dead letters is listed and redriven, in a short form."""

from tests.faults.letters import redrive


def test_dead_letters_are_listed_and_redriven_once_if_a_run_is_killed() -> None:
    result = redrive(1500, 500)

    assert result.broken == []
    assert (result.listed, result.sent, result.sent_twice) == (1500, 500, 0)
    assert result.took < 400
