"""The BLiP simulator: the plan, its cooldown and other traffic."""

from random import Random
from typing import Any

import pytest

from tests.integration.simulator.client import COMMAND, Client, Clock
from tests.local.blip import Bot, Simulator, Traffic, wait_until
from tests.local.blip.throughput import Meter, OtherTraffic


def test_throughput_is_counted_over_a_sliding_second() -> None:
    meter = Meter()
    assert [meter.count(at) for at in (0.0, 0.5, 0.999, 1.0, 1.4, 1.5, 3.0)] == [
        1,
        2,
        3,
        3,
        4,
        4,
        1,
    ]
    assert meter.highest == 4


def test_exceeded_plan_throttles_the_key_on_every_path(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(messages_per_second=5))
    statuses = [client.send(id=str(number)).status_code for number in range(6)]
    assert statuses == [202] * 5 + [429]
    refused = client.post("/commands", COMMAND)
    assert (refused.status_code, refused.json()["code"]) == (429, 34)
    assert "Retry-After" not in refused.headers
    assert blip.statistics()["highest_per_second"]["simulated"]["messages"] == 6
    assert blip.statistics()["penalties"] == {"simulated": 1}
    assert len(blip.inbox()) == 5


def test_exceeded_plan_does_not_throttle_another_key(blip: Simulator, client: Client) -> None:
    other = Bot(name="other")
    blip.put_bot(other)
    blip.put_bot(Bot(messages_per_second=0))
    assert client.send().status_code == 429
    stranger = Client(blip, other.key)
    assert stranger.send().status_code == 202
    stranger.http.close()


def test_commands_have_their_own_plan(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(commands_per_second=2))
    statuses = [client.post("/commands", COMMAND).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_cooldown_ends(blip: Simulator, client: Client) -> None:
    blip.configure(penalty_seconds=1.1, retry_after=True)
    blip.put_bot(Bot(messages_per_second=1))
    client.send()
    refused = client.send()
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
    wait_until(lambda: client.post("/commands", COMMAND).status_code == 200)
    assert client.send().status_code == 202


@pytest.mark.parametrize(("prolonged", "after_130_seconds"), [(False, 202), (True, 429)])
def test_refused_requests_may_prolong_the_cooldown(
    blip: Simulator, client: Client, clock: Clock, prolonged: bool, after_130_seconds: int
) -> None:
    blip.configure(penalty_prolonged=prolonged)
    blip.put_bot(Bot(messages_per_second=1))
    assert [client.send().status_code for _ in range(2)] == [202, 429]
    clock.now += 100
    assert client.post("/commands", COMMAND).status_code == 429
    clock.now += 30
    assert client.send().status_code == after_130_seconds
    clock.now += 120
    assert client.send().status_code == 202
    assert blip.statistics()["penalties"] == {"simulated": 1}


def test_other_traffic_counts_against_the_plan(
    blip: Simulator, client: Client, clock: Clock
) -> None:
    traffic = {"messages_per_second": 2, "spacing": "even"}
    client.http.put("/_simulator/bots", json={"messages_per_second": 3, "traffic": traffic})
    clock.now += 1
    assert client.send().status_code == 202
    assert blip.statistics()["traffic"] == {"simulated": {"sent": 2, "refused": 0}}
    assert client.send().status_code == 429
    clock.now += 5
    seen = blip.statistics()
    assert seen["traffic"] == {"simulated": {"sent": 12, "refused": 10}}
    assert seen["highest_per_second"]["simulated"]["messages"] == 4
    assert len(blip.inbox()) == 1
    blip.clear()
    assert blip.statistics()["traffic"] == {"simulated": {"sent": 0, "refused": 0}}


def test_other_traffic_alone_can_exceed_the_plan(
    blip: Simulator, client: Client, clock: Clock
) -> None:
    blip.put_bot(Bot(messages_per_second=3, traffic=Traffic(messages_per_second=4)))
    other = Bot(name="other", messages_per_second=3)
    blip.put_bot(other)
    clock.now += 60
    stranger = Client(blip, other.key)
    assert (client.send().status_code, stranger.send().status_code) == (429, 202)
    stranger.http.close()


def drawn(until: float, seed: int, **traffic: Any) -> list[float]:
    return list(OtherTraffic(Traffic(**traffic), 0, Random(seed)).until(until))


def test_other_traffic_is_even_random_or_in_bursts() -> None:
    even = drawn(10, 1, messages_per_second=2, spacing="even")
    assert even == [number / 2 for number in range(1, 21)]
    chance = drawn(10_000, 1, messages_per_second=2)
    assert chance == sorted(chance)
    assert chance == drawn(10_000, 1, messages_per_second=2)
    assert chance != drawn(10_000, 2, messages_per_second=2)
    assert len(chance) == pytest.approx(20_000, rel=0.05)
    seconds = {int(at) for at in chance}
    assert len(seconds) == pytest.approx(10_000 * (1 - 2.718**-2), rel=0.05)
    bursts = drawn(24_000, 1, messages_per_second=2, on_share=0.25)
    assert {int(at) // 60 % 4 for at in bursts} == {0}
    assert len(bursts) == pytest.approx(12_000, rel=0.05)


def test_other_traffic_continues_where_it_was() -> None:
    whole, parts = (OtherTraffic(Traffic(messages_per_second=5), 0, Random(1)) for _ in range(2))
    drawn_in_parts = [at for until in range(101) for at in parts.until(until)]
    assert drawn_in_parts == list(whole.until(100))
    assert whole.sent == len(drawn_in_parts)


def test_plan_can_be_disabled(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(messages_per_second=1))
    blip.configure(throttle=False)
    assert {client.send().status_code for _ in range(5)} == {202}
    assert blip.statistics()["highest_per_second"]["simulated"]["messages"] == 5
