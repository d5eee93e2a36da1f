"""Short forms of the rows about distance, neighbours, slow plans and bad luck."""

import pytest

from tests.faults.hardships import aws, network, refusals, slow_plans
from tests.support.simulated_aws.dynamodb import ERRORS


def test_distant_blip_is_never_called_too_fast_with_cold_connections() -> None:
    came = network.distance(requests=300, seeds=[1], most_seconds=9)

    assert came.broken == []


def test_share_of_the_plan_recovers_beside_a_live_chat() -> None:
    came = network.paced_chat(hours=1)

    assert came.broken == []


def test_sending_finds_its_pace_beside_a_live_chat() -> None:
    came = network.live_chat(hours=0.1)

    assert came.broken == []


@pytest.mark.parametrize("kind", refusals.POISONS)
def test_one_poisonous_notification_affects_no_other(kind: str) -> None:
    came = refusals.poison(requests=200, kinds=[kind])

    assert came.broken == []


def test_wrong_key_or_missing_channel_costs_no_notification() -> None:
    came = refusals.wrong_bot(requests=60, hours=1)

    assert came.broken == []


def test_sporadic_failures_of_whatsapp_stop_no_bot() -> None:
    came = refusals.sporadic(requests=300, rate=0.01)

    assert came.broken == []


def test_history_that_lags_or_never_answers_causes_no_loss_and_no_second_send() -> None:
    came = refusals.lagging_history(requests=200)

    assert came.broken == []


@pytest.mark.parametrize("error", ERRORS)
def test_aws_error_at_any_call_causes_no_loss_and_no_second_send(error: str) -> None:
    came = aws.aws_errors(tales=["known recipient"], errors=[error], requests=100)

    assert came.broken == []


def test_slow_plan_and_long_wait_cost_no_time_outs_and_no_receives() -> None:
    came = slow_plans.slow_plan(
        plans=[0.1], requests=20, only=lambda name: name in {"as it is", "all least", "all most"}
    )

    assert came.broken == []


def test_requests_of_a_paused_bot_leave_room_for_another() -> None:
    came = aws.starvation(
        waiting=6500, others=60, states=["paused"], groups=[False], lead=10, scale=20
    )

    assert came.broken == []


def test_missing_event_bus_does_not_stop_sending_and_poison_stops_no_shard() -> None:
    came = aws.outbox(requests=300, hours=0.25)

    assert came.broken == []
