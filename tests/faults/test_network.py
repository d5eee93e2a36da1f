"""Short forms of the rows about distance, neighbours, slow plans and bad luck."""

import pytest

from tests.faults.hardships import aws, network, refusals, slow_plans
from tests.support.simulated_aws.dynamodb import ERRORS


def test_a_far_blip_is_never_asked_too_fast_although_connections_go_cold() -> None:
    came = network.distance(requests=300, seeds=[1], most_seconds=9)

    assert came.broken == []


def test_the_share_of_the_plan_heals_beside_a_live_chat() -> None:
    came = network.paced_chat(hours=1)

    assert came.broken == []


def test_the_product_finds_its_pace_beside_a_live_chat() -> None:
    came = network.live_chat(hours=0.1)

    assert came.broken == []


@pytest.mark.parametrize("kind", refusals.POISONS)
def test_one_poisonous_notification_harms_no_other(kind: str) -> None:
    came = refusals.poison(requests=200, kinds=[kind])

    assert came.broken == []


def test_a_wrong_key_and_a_bot_without_a_channel_cost_no_notification() -> None:
    came = refusals.wrong_bot(requests=60, hours=1)

    assert came.broken == []


def test_whatsapp_s_own_sporadic_failures_stop_no_bot() -> None:
    came = refusals.sporadic(requests=300, rate=0.01)

    assert came.broken == []


def test_a_history_that_lags_or_never_answers_sends_nothing_twice_and_loses_nothing() -> None:
    came = refusals.lagging_history(requests=200)

    assert came.broken == []


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_aws_at_any_call_loses_nothing_and_sends_nothing_twice(error: str) -> None:
    came = aws.aws_errors(tales=["known recipient"], errors=[error], requests=100)

    assert came.broken == []


def test_a_slow_plan_and_a_long_wait_cost_neither_time_outs_nor_receives() -> None:
    came = slow_plans.slow_plan(
        plans=[0.1], requests=20, only=lambda name: name in {"as it is", "all least", "all most"}
    )

    assert came.broken == []


def test_what_waits_for_a_paused_bot_leaves_room_for_another() -> None:
    came = aws.starvation(
        waiting=6500, others=60, states=["paused"], groups=[False], lead=10, scale=20
    )

    assert came.broken == []


def test_without_an_event_bus_sending_goes_on_and_poison_stops_no_shard() -> None:
    came = aws.outbox(requests=300, hours=0.25)

    assert came.broken == []
