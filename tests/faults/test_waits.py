"""What waits for days, on a simulated clock."""

from tests.faults.hardships import waits


def test_recipient_who_is_capped_each_time_gets_it_after_one_two_and_four_days_and_no_more() -> (
    None
):
    assert waits.capped().broken == []


def test_marketing_that_cannot_be_delivered_is_believed_to_be_capped_once() -> None:
    assert waits.unreachable_by_marketing().broken == []


def test_many_waits_that_are_over_at_once_are_put_back_within_a_few_runs() -> None:
    assert waits.over_at_once(5000).broken == []
