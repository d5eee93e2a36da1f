"""The bot's item: slots, cooldowns, the share of the plan, the breaker."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from notifier.domain.bot_state import HoldReason, Reservation
from notifier.domain.bots import Bot
from notifier.domain.ledger_entries import (
    Control,
)
from tests.integration.aws.backends import Backend, Fakes, LostAnswers, RealOnes, state
from tests.integration.conftest import Aws
from tests.support.builders import a_bot

if TYPE_CHECKING:
    from collections.abc import Callable

HORIZON = 3.0
SHARE = 0.9


def reserve(
    backend: Backend, count: int = 1, bot: Bot | None = None, plan: str = "messages"
) -> Reservation:
    reservation = backend.bot_states().reserve(
        bot or a_bot(), plan, count, HORIZON, share=SHARE, probing=False
    )
    assert isinstance(reservation, Reservation)
    return reservation


def fastest(slots: list[float]) -> int:
    """Return the highest number of slots in any second."""
    ordered = sorted(slots)
    return max(sum(first <= slot < first + 1 for slot in ordered) for first in ordered)


def test_idle_bot_s_slots_start_now_and_are_evenly_spaced(backend: Backend) -> None:
    slots = reserve(backend, 40).slots

    assert len(slots) == 40
    assert slots[0] == pytest.approx(backend.clock.now(), abs=0.001)
    gaps = [later - earlier for earlier, later in pairwise(slots)]
    assert min(gaps) == pytest.approx(1 / (SHARE * 20), rel=0.001)
    assert max(gaps) == pytest.approx(min(gaps), rel=0.001)
    assert fastest(list(slots)) <= SHARE * 20 + 1


@pytest.mark.parametrize("per_second", [0.5, 1, 3, 7, 50, 80, 200, 1000])
def test_every_plan_is_kept(backend: Backend, per_second: float) -> None:
    bot = a_bot(messages_per_second=per_second)
    slots = [slot for _ in range(3) for slot in reserve(backend, 7, bot).slots]

    assert fastest(slots) <= max(1, per_second)
    gaps = [later - earlier for earlier, later in pairwise(slots)]
    assert min(gaps) >= 1 / per_second


def test_busy_bot_s_slots_follow_the_reserved_ones(backend: Backend) -> None:
    first, second = reserve(backend, 3).slots, reserve(backend, 3).slots

    assert second[0] - first[-1] == pytest.approx(first[1] - first[0], abs=0.0001)
    assert state(backend).next_message_at == pytest.approx(2 * second[2] - second[1], abs=0.0001)


def test_missed_slots_are_not_made_up_for(backend: Backend) -> None:
    reserve(backend, 3)
    backend.clock.advance(60)

    slots = reserve(backend, 30).slots

    assert slots[0] == pytest.approx(backend.clock.now(), abs=0.001)
    assert fastest(list(slots)) <= 20


def test_only_slots_within_the_horizon_are_reserved(backend: Backend) -> None:
    bot = a_bot(messages_per_second=1 / SHARE)  # one a second

    assert len(reserve(backend, 10, bot).slots) == 4
    before = backend.item("identities", "bot:default")
    beyond = reserve(backend, 1, bot)

    assert (beyond.slots, beyond.why) == ((), None)
    assert beyond.retry_in == pytest.approx(4, abs=0.01)
    assert backend.item("identities", "bot:default") == before
    backend.clock.advance(2.1)
    slots = reserve(backend, 5, bot).slots
    assert len(slots) == 2
    assert slots[0] == pytest.approx(backend.clock.now() + 1.9, abs=0.01)


def test_slow_plan_has_one_slot_at_a_time(backend: Backend) -> None:
    bot = a_bot(messages_per_second=0.1 / SHARE)  # one in ten seconds

    assert len(reserve(backend, 10, bot).slots) == 1
    assert reserve(backend, 10, bot).retry_in == pytest.approx(10, abs=0.01)


def test_reservation_that_meets_another_reads_again(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another sandbox takes slots between the two looks of this one."""
    bot = a_bot(messages_per_second=1 / SHARE)
    reserve(backend, 1, bot)
    bot_states = backend.bot_states()
    table = bot_states._table
    update, others = table.update, [lambda: reserve(backend, 1, bot)]

    def meets_another(*args: Any) -> Any:
        if "+ :taken" in args[1] and others:
            others.pop()()
        return update(*args)

    monkeypatch.setattr(table, "update", meets_another)
    slots = bot_states.reserve(bot, "messages", 9, HORIZON, share=SHARE).slots

    assert len(slots) == 2
    assert slots[0] == pytest.approx(backend.clock.now() + 2, abs=0.01)


def test_plans_and_bots_are_separate(backend: Backend) -> None:
    slow = a_bot(messages_per_second=0.01)
    assert reserve(backend, 1, slow).slots

    now = pytest.approx(backend.clock.now(), abs=0.001)
    assert reserve(backend, plan="commands").slots[0] == now
    assert reserve(backend, bot=a_bot(name="clinic")).slots[0] == now
    assert reserve(backend).slots == ()


def test_first_throttling_lowers_the_share_of_its_plan(backend: Backend) -> None:
    bot_states, now = backend.bot_states(), backend.clock.now()

    first = [
        bot_states.start_cooldown(a_bot(), "messages", now + seconds) for seconds in (120, 130, 120)
    ]

    assert first == [True, False, False]
    assert state(backend).shares["messages"] == pytest.approx((0.72, now))
    assert "commands" not in state(backend).shares
    assert state(backend).throttled_until == pytest.approx(now + 130, abs=0.001)
    backend.clock.advance(131)
    assert bot_states.start_cooldown(a_bot(), "messages", backend.clock.now() + 120)
    (share, _) = state(backend).shares["messages"]
    assert share == pytest.approx(0.8 * (0.72 + 0.02 * 131 / 3600), abs=1e-5)


def test_two_controls_are_kept_at_a_time(backend: Backend) -> None:
    bot_states, now = backend.bot_states(), backend.clock.now()
    for number, older_than in ((1, now), (2, now + 300), (3, now), (4, now + 900)):
        bot_states.keep_control("default", Control(f"message {number}", now + number), older_than)

    assert [control.message_id for control in state(backend).controls] == ["message 2", "message 4"]
    assert state(backend).controls[1].at == pytest.approx(now + 4, abs=0.001)


def test_latest_time_seen_in_the_history_only_grows(backend: Backend) -> None:
    bot_states, now = backend.bot_states(), backend.clock.now()
    for seconds in (10, 5, 20, 0):
        bot_states.history_shows("default", now + seconds)

    assert state(backend).history_seen == pytest.approx(now + 20, abs=0.001)


def test_number_is_not_down_if_only_a_small_part_of_its_sends_fail(backend: Backend) -> None:
    bot_states = backend.bot_states()
    for number in range(20):
        now = backend.clock.now()
        assert not bot_states.number_in_trouble("default", f"key {number}", now, "not available")
        assert len(reserve(backend, 18).slots) == 18
        backend.clock.advance(1)
    assert state(backend).broken == ""
    for number in range(20, 40):
        bot_states.number_in_trouble(
            "default", f"key {number}", backend.clock.now(), "not available"
        )

    assert state(backend).broken == "not available"


def test_bot_that_never_existed_is_not_missing(backend: Backend) -> None:
    bot_states = backend.bot_states()
    assert bot_states.missing("default") == 0
    bot_states.found("default")
    assert backend.item("identities", "bot:default") == {}

    reserve(backend)
    since = bot_states.missing("default")
    backend.clock.advance(60)
    assert (
        bot_states.missing("default") == since == pytest.approx(backend.clock.now() - 60, abs=0.001)
    )
    bot_states.found("default")
    assert state(backend).missing_since == 0


def test_number_is_down_after_five_different_notifications_within_minutes(
    backend: Backend,
) -> None:
    bot_states = backend.bot_states()
    for key in "aabbccdd":
        assert not bot_states.number_in_trouble(
            "default", key, backend.clock.now(), "not available"
        )
    backend.clock.advance(1800)
    for key in "abcd":  # anew
        assert not bot_states.number_in_trouble(
            "default", key, backend.clock.now(), "not available"
        )
    assert state(backend).broken == ""

    now = backend.clock.now()
    for key in "efghi":  # sent before the trouble began, as far as it is known
        assert not bot_states.number_in_trouble("default", key, now - 1, "not available")
    assert bot_states.number_in_trouble("default", "e", now, "not available")

    assert state(backend).broken == "not available"
    assert "down" not in backend.item("identities", "bot:default")


def test_sandboxes_that_reserve_at_once_share_the_plan(backend: Backend) -> None:
    bot = a_bot(messages_per_second=50)
    start = threading.Barrier(6)

    def race(_: int) -> list[float]:
        start.wait()
        return [slot for _ in range(4) for slot in reserve(backend, 3, bot).slots]

    with ThreadPoolExecutor(6) as threads:
        slots = sorted(slot for some in threads.map(race, range(6)) for slot in some)

    assert len(slots) == 72
    gaps = [later - earlier for earlier, later in pairwise(slots)]
    assert min(gaps) >= 1 / 50
    assert max(gaps) == pytest.approx(min(gaps), rel=0.001)


def test_throttled_bot_cools_down_in_all_sandboxes_and_plans(backend: Backend) -> None:
    backend.bot_states().start_cooldown(a_bot(), "messages", backend.clock.now() + 120)

    assert state(backend).throttled_until == pytest.approx(backend.clock.now() + 120, abs=0.001)
    for plan in ("messages", "commands"):
        refused = reserve(backend, plan=plan)
        assert refused.slots == ()
        assert refused.retry_in == pytest.approx(120, abs=0.001)
    assert reserve(backend, bot=a_bot(name="clinic")).slots

    backend.clock.advance(120)
    assert reserve(backend).slots


def test_busy_bot_can_be_throttled(backend: Backend) -> None:
    reserve(backend, 3)
    backend.bot_states().start_cooldown(a_bot(), "messages", backend.clock.now() + 120)

    assert reserve(backend).retry_in == pytest.approx(120, abs=0.001)


def test_longer_cooldown_is_kept(backend: Backend) -> None:
    now = backend.clock.now()
    for seconds in (60, 120, 30):
        backend.bot_states().start_cooldown(a_bot(), "messages", now + seconds)

    assert state(backend).throttled_until == pytest.approx(now + 120, abs=0.001)


def test_open_breaker_lets_only_a_probe_through(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.open_breaker("default", "a wrong key")

    assert state(backend).broken == "a wrong key"
    assert reserve(backend) == Reservation((), None, HoldReason.BREAKER_OPEN)
    assert bot_states.reserve(a_bot(), "messages", 1, HORIZON, share=SHARE, probing=True).slots

    bot_states.close_breaker("default", sent=True)
    assert state(backend).broken == ""
    assert reserve(backend).slots


def test_paused_bot_has_no_slots_until_it_is_resumed(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.pause("default")

    assert state(backend).paused
    assert reserve(backend) == Reservation((), 60, HoldReason.PAUSED)
    assert (
        bot_states.reserve(a_bot(), "commands", 1, HORIZON, share=SHARE, probing=True).slots == ()
    )
    assert reserve(backend, bot=a_bot(name="clinic")).slots

    bot_states.close_breaker("default", sent=True)
    assert state(backend).paused
    bot_states.resume("default")
    assert not state(backend).paused
    assert reserve(backend).slots


def test_one_sandbox_at_a_time_probes_an_open_breaker(backend: Backend) -> None:
    assert not backend.bot_states().probe("default")
    backend.bot_states().open_breaker("default", "a wrong key")

    assert backend.bot_states().probe("default")
    assert not backend.bot_states().probe("default")
    backend.clock.advance(30)
    assert backend.bot_states().probe("default")


def test_breaker_that_opens_again_at_once_is_not_probed_sooner(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.open_breaker("default", "a wrong key")
    assert bot_states.probe("default")
    bot_states.close_breaker("default", sent=True)
    bot_states.open_breaker("default", "a wrong key")

    assert not bot_states.probe("default")
    backend.clock.advance(30)
    assert bot_states.probe("default")


def test_number_that_is_down_is_tried_rarely_and_closes_with_the_second_answer(
    backend: Backend,
) -> None:
    bot_states = backend.bot_states()
    assert bot_states.probe("default") is False
    bot_states.number_down("default", "payment")
    assert state(backend).broken == "payment"
    backend.clock.advance(599)
    assert not bot_states.probe("default")
    backend.clock.advance(1)
    assert bot_states.probe("default")

    assert not bot_states.close_breaker("default", sent=False)  # BLiP refused: no number was tried
    assert not bot_states.close_breaker("default", sent=True)
    assert not bot_states.close_breaker("default", sent=False)
    assert state(backend).broken == "payment"
    backend.clock.advance(599)
    assert not bot_states.probe("default")
    backend.clock.advance(1)
    assert bot_states.probe("default")
    assert bot_states.close_breaker("default", sent=True)
    assert not state(backend).broken


def test_receipt_after_the_first_answer_starts_again(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.number_down("default", "payment")
    bot_states.close_breaker("default", sent=True)
    bot_states.number_down("default", "payment")

    assert not bot_states.close_breaker("default", sent=True)
    assert state(backend).broken


def test_answer_of_an_earlier_batch_does_not_close_the_breaker(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.failed("default", ["a"])
    bot_states.answered("default")
    assert state(backend).failing == 0
    bot_states.open_breaker("default", "a wrong key")

    bot_states.answered("default")

    assert state(backend).broken


@pytest.mark.parametrize("how", ["open_breaker", "number_down"])
def test_resumed_bot_works_at_once(backend: Backend, how: str) -> None:
    bot_states = backend.bot_states()
    getattr(bot_states, how)("default", "why")
    bot_states.probe("default")

    bot_states.resume("default")

    assert reserve(backend).slots
    bot_states.open_breaker("default", "a wrong key")
    assert bot_states.probe("default")


def test_five_different_notifications_in_a_row_open_the_breaker(backend: Backend) -> None:
    bot_states = backend.bot_states()

    assert not bot_states.failed("default", ["a", "b"])
    assert not bot_states.failed("default", ["a", "b", "c", "d"])
    assert state(backend).failing == 4
    assert not state(backend).broken
    assert bot_states.failed("default", ["e"])
    assert state(backend).broken

    bot_states.close_breaker("default", sent=True)
    assert state(backend).failing == 0
    assert not bot_states.failed("default", ["f"])


def test_open_breaker_counts_no_further_failures(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.open_breaker("default", "a wrong key")

    assert all(bot_states.failed("default", [f"key {number}"]) for number in range(9))

    assert state(backend).failing == 0
    assert state(backend).broken == "a wrong key"


def test_number_that_is_down_is_polled_for_receipts(backend: Backend) -> None:
    bot_states = backend.bot_states()
    bot_states.number_down("default", "payment")

    assert bot_states.reserve(a_bot(), "commands", 1, HORIZON, share=SHARE, asking=True).slots
    assert reserve(backend, plan="commands") == Reservation(
        (), None, HoldReason.BREAKER_OPEN
    )  # no recipient is looked up
    bot_states.pause("default")
    assert not bot_states.reserve(a_bot(), "commands", 1, HORIZON, share=SHARE, asking=True).slots


def test_reservation_with_a_lost_answer_costs_slots_and_keeps_the_plan(
    real: RealOnes, aws: Aws
) -> None:
    bot_states = real.bot_states(LostAnswers(aws.dynamodb))

    slots = [
        slot
        for _ in range(4)
        for slot in bot_states.reserve(a_bot(), "messages", 3, 9, share=SHARE).slots
    ]

    assert len(slots) == 12
    assert min(later - earlier for earlier, later in pairwise(slots)) >= 1 / 20


def test_simulated_and_moto_bot_state_agree(real: RealOnes) -> None:
    fakes = Fakes()
    rng = random.Random(20311122)
    bot = a_bot(messages_per_second=3, commands_per_second=7)
    for _ in range(90):
        seconds = rng.choice([0, 0, 0.1, 1, 5, 40, 200])
        fakes.clock.advance(seconds)
        real.clock.advance(seconds)
        count, plan = rng.randint(1, 9), rng.choice(["messages", "commands"])
        probing, until = rng.random() < 0.2, fakes.clock.now() + rng.choice([1, 120])
        keys = [rng.choice("abcdefg")]
        moves: list[Callable[[Any], Any]] = [
            lambda states: states.reserve(bot, plan, count, HORIZON, share=SHARE, probing=probing),  # noqa: B023
            lambda states: states.reserve(bot, plan, count, HORIZON, share=SHARE, probing=probing),  # noqa: B023
            lambda states: states.reserve(bot, plan, count, HORIZON, share=SHARE, probing=probing),  # noqa: B023
            lambda states: states.start_cooldown(bot, plan, until),  # noqa: B023
            lambda states: states.failed("default", keys),  # noqa: B023
            lambda states: states.probe("default"),
            lambda states: states.close_breaker("default", sent=True),
            lambda states: states.open_breaker("default", "why"),
            lambda states: states.number_down("default", "why"),
            lambda states: states.number_in_trouble("default", keys[0], until - 120, "why"),  # noqa: B023
            lambda states: states.missing("default"),
            lambda states: states.found("default"),
            lambda states: states.keep_control("default", Control(keys[0], until), until - 130),  # noqa: B023
            lambda states: states.history_shows("default", until),  # noqa: B023
            lambda states: states.answered("default"),
            lambda states: states.pause("default"),
            lambda states: states.resume("default"),
        ]
        move = rng.choices(moves, [4, 4, 4, 1, 3, 2, 3, 1, 1, 2, 1, 1, 2, 2, 1, 1, 2])[0]

        assert move(fakes.bot_states()) == move(real.bot_states())
        assert fakes.item("identities", "bot:default") == real.item("identities", "bot:default")
        assert state(fakes) == state(real)
