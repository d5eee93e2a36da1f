"""Slots of a bot's plan, and what else the notifications of a batch share."""

from collections.abc import Callable

import pytest

from notifier.domain.bot_state import BotState, HoldReason, Plan, Reservation
from notifier.domain.bots import Bot
from notifier.domain.failures import Transient
from notifier.use_cases.send_notification.outcomes import Outcome
from notifier.use_cases.send_notification.round import Once, Round
from notifier.use_cases.slots import SLOT_GRACE_SECONDS, RetryLater, Slots
from tests.support.builders import KEY, a_request
from tests.support.clock import Clock
from tests.support.world import Sandbox, World

NOW = 1_800_000_000.0
BOT = Bot(name="default", key=KEY)


class Reserved:
    """Returns these reservations, one after the other; records how many slots were asked for."""

    def __init__(self, *reservations: tuple[float, ...]) -> None:
        self._left = list(reservations)
        self.asked: list[int] = []
        self.probing: list[bool] = []
        self.horizons: list[float] = []
        self.before: Callable[[], None] = lambda: None

    def __call__(self, count: int, _: float = 0) -> Reservation:
        self.before()
        self.asked.append(count)
        slots = self._left.pop(0) if self._left else ()
        return Reservation(slots, None if slots else 7.0)

    def this_round(self, clock: Clock, *, seconds: float = 30) -> Round:
        return Round(clock.now() + seconds, {}, {}, self.reserve, clock)

    def reserve(
        self, bot: Bot, plan: Plan, count: int, horizon: float, *, share: float, probing: bool
    ) -> Reservation:
        assert (bot, plan, share) == (BOT, "messages", 0.9)
        self.horizons.append(horizon)
        self.probing.append(probing)
        return self(count)


def test_slots_are_reserved_for_all_expected_requests_and_handed_out_singly() -> None:
    reserved = Reserved((NOW, NOW + 1, NOW + 2))
    slots = Slots(reserved, Clock(NOW))
    for _ in range(3):
        slots.expect_one_more()

    assert [slots.take(0) for _ in range(3)] == [NOW, NOW + 1, NOW + 2]
    assert reserved.asked == [3]


def test_further_slots_are_reserved_for_the_requests_still_expected() -> None:
    reserved = Reserved((NOW,), (NOW + 1,), (NOW + 2,), (NOW + 3,))
    slots = Slots(reserved, Clock(NOW))
    for _ in range(3):
        slots.expect_one_more()

    for _ in range(4):
        slots.take(0)

    assert reserved.asked == [3, 2, 1, 1]


def test_request_with_a_slot_is_no_longer_expected() -> None:
    reserved = Reserved((NOW,), (NOW + 1,))
    slots = Slots(reserved, Clock(NOW))

    for _ in range(2):
        slots.expect_one_more()
        slots.take(0)

    assert reserved.asked == [1, 1]


def test_slot_may_be_used_slightly_late() -> None:
    clock = Clock(NOW)
    at_the_limit, missed = NOW + 1, NOW + 0.999
    reserved = Reserved((NOW, missed, at_the_limit, NOW + 9), (NOW + 10,))
    slots = Slots(reserved, clock)
    assert slots.take(0) == NOW

    clock.advance(1 + SLOT_GRACE_SECONDS)

    # Exactly so late, as far as a clock can say so.
    assert clock.now() - SLOT_GRACE_SECONDS == at_the_limit
    assert slots.take(0) == at_the_limit
    assert slots.take(0) == NOW + 9
    assert reserved.asked == [1]


def test_request_without_a_slot_soon_returns_when_the_bot_has_one() -> None:
    with pytest.raises(RetryLater) as retry_later:
        Slots(Reserved(), Clock(NOW)).take(0)

    assert retry_later.value.seconds == 7


def test_slots_that_pass_during_the_reservation_are_skipped() -> None:
    clock = Clock(NOW)
    just_in_time = NOW + 2 - SLOT_GRACE_SECONDS
    reserved = Reserved((NOW, NOW + 1.9, just_in_time, NOW + 2, NOW + 3))
    reserved.before = lambda: clock.advance(2)
    slots = Slots(reserved, clock)

    assert [slots.take(0) for _ in range(3)] == [just_in_time, NOW + 2, NOW + 3]
    assert reserved.asked == [1]


def test_one_slot_is_used_at_once_if_all_pass_during_the_reservation() -> None:
    clock = Clock(NOW)
    reserved = Reserved((NOW, NOW + 1))
    reserved.before = lambda: clock.advance(2)

    assert Slots(reserved, clock).take(0) == NOW + 2


def test_request_stopped_while_it_waits_for_its_slot_does_not_start() -> None:
    clock = Clock(NOW)
    reserved = Reserved((NOW + 2,))
    this_round = reserved.this_round(clock)
    reserved.before = lambda: this_round.hold("default", 120)

    with pytest.raises(RetryLater) as retry_later:
        this_round.wait_for_slot(BOT, "messages", known=True, after=12)

    assert retry_later.value.seconds == 120
    assert clock.now() == NOW + 2


def test_stopped_bot_reserves_nothing() -> None:
    reserved = Reserved((NOW,))
    this_round = reserved.this_round(Clock(NOW))
    this_round.hold("default", 120)

    with pytest.raises(RetryLater):
        this_round.wait_for_slot(BOT, "messages", known=True, after=12)

    assert reserved.asked == []


def test_stopping_one_bot_stops_no_other() -> None:
    this_round = Reserved((NOW,)).this_round(Clock(NOW))
    this_round.hold("clinic", 120)

    this_round.wait_for_slot(BOT, "messages", known=True, after=12)


class Drowsy(Clock):
    """Wakes up late."""

    def __init__(self, late: float) -> None:
        super().__init__(NOW)
        self._late = late

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.advance(self._late)


def test_machine_too_slow_for_any_slot_returns_the_request() -> None:
    clock = Drowsy(0.5)
    reserved = Reserved(*[(NOW + second,) for second in range(1, 10)])
    this_round = reserved.this_round(clock)

    with pytest.raises(RetryLater) as retry_later:
        this_round.wait_for_slot(BOT, "messages", known=True, after=12)

    assert (retry_later.value.seconds, retry_later.value.for_slot) == (1, True)
    assert len(reserved.asked) == 5


def test_slot_is_usable_to_the_end_of_its_grace() -> None:
    reserved = Reserved((NOW + 1,))
    clock = Drowsy(SLOT_GRACE_SECONDS)

    reserved.this_round(clock).wait_for_slot(BOT, "messages", known=True, after=12)

    assert len(reserved.asked) == 1


@pytest.mark.parametrize("probing", [True, False])
def test_open_breaker_leaves_slots_only_to_the_probe(*, probing: bool) -> None:
    reserved = Reserved((NOW,))
    this_round = reserved.this_round(Clock(NOW))
    if probing:
        this_round.probing.add("default")

    this_round.wait_for_slot(BOT, "messages", known=True, after=12)

    assert reserved.probing == [probing]


def test_time_counts_as_left_down_to_the_exact_need() -> None:
    clock = Clock(NOW)
    this_round = Reserved().this_round(clock, seconds=30)

    this_round.needs(30)
    clock.advance(0.5)
    with pytest.raises(RetryLater) as retry_later:
        this_round.needs(30)

    assert retry_later.value.seconds == 0


def test_claim_outlasts_the_sandbox_by_the_clock_difference() -> None:
    assert Reserved().this_round(Clock(NOW), seconds=30).lease_until == NOW + 32


def test_slot_is_not_reserved_if_its_call_could_not_end_in_time() -> None:
    reserved = Reserved((NOW,), (NOW,))

    reserved.this_round(Clock(NOW), seconds=30).wait_for_slot(BOT, "messages", known=True, after=12)
    reserved.this_round(Clock(NOW), seconds=14).wait_for_slot(BOT, "messages", known=True, after=12)

    assert reserved.horizons == [3, 2]


def test_horizon_leaves_time_for_the_call_expected_before() -> None:
    reserved = Reserved((NOW,))
    this_round = reserved.this_round(Clock(NOW), seconds=24.5)
    this_round.expect(BOT, known=True)

    this_round.wait_for_slot(BOT, "messages", known=True, after=24)

    assert reserved.horizons == [0.5]


def test_call_does_not_start_with_too_little_time_left_at_its_slot() -> None:
    this_round = Reserved((NOW + 2.5,)).this_round(Clock(NOW), seconds=14)

    with pytest.raises(RetryLater) as retry_later:
        this_round.wait_for_slot(BOT, "messages", known=True, after=12)

    assert (retry_later.value.seconds, retry_later.value.why) == (0, None)


def test_only_requests_with_a_slot_within_two_seconds_are_admitted() -> None:
    slow = BOT.model_copy(update={"messages_per_second": 2})  # of which 0.9 is used
    this_round = Reserved().this_round(Clock(NOW))

    for _ in range(4):
        this_round.admit(slow)
    with pytest.raises(RetryLater) as retry_later:
        this_round.admit(slow)

    assert retry_later.value.for_slot
    assert retry_later.value.seconds == pytest.approx(4 / 1.8)


def test_fewer_requests_are_admitted_after_a_penalty() -> None:
    slow = BOT.model_copy(update={"messages_per_second": 2})
    states = {"default": BotState(shares={"messages": (0.45, NOW), "commands": (0.9, NOW)})}
    this_round = Round(NOW + 30, states, {}, Reserved().reserve, Clock(NOW))

    for _ in range(2):
        this_round.admit(slow)
    with pytest.raises(RetryLater) as retry_later:
        this_round.admit(slow)

    assert retry_later.value.seconds == pytest.approx(2 / 0.9)


def test_slots_reserved_by_other_sandboxes_leave_less_room() -> None:
    clock = Clock(NOW)
    states = {"default": BotState(next_message_at=NOW + 2.1)}
    this_round = Round(NOW + 30, states, {}, Reserved().reserve, clock)

    with pytest.raises(RetryLater) as retry_later:
        this_round.admit(BOT)

    assert retry_later.value.seconds == pytest.approx(2.1)


def test_refused_reservation_means_waiting_for_a_slot() -> None:
    with pytest.raises(RetryLater) as retry_later:
        Slots(lambda *_: Reservation((), 7.0), Clock(NOW)).take(0)

    assert (retry_later.value.seconds, retry_later.value.why, retry_later.value.for_slot) == (
        7,
        None,
        True,
    )


def test_reservation_of_a_stopped_bot_does_not_mean_waiting_for_a_slot() -> None:
    with pytest.raises(RetryLater) as retry_later:
        Slots(lambda *_: Reservation((), 60.0, HoldReason.PAUSED), Clock(NOW)).take(0)

    assert (retry_later.value.why, retry_later.value.for_slot) == (HoldReason.PAUSED, False)


def test_share_grows_by_two_hundredths_an_hour_up_to_its_ceiling() -> None:
    state = BotState(shares={"messages": (0.5, NOW)})

    shares = [state.share("messages", 0.9, NOW + hours * 3600) for hours in (0, 1, 10, 30)]

    assert shares == pytest.approx([0.5, 0.52, 0.7, 0.9])
    assert state.share("commands", 0.9, NOW) == 0.9
    assert state.share("messages", 0.9, NOW - 5) == 0.5  # another sandbox's clock is ahead


def test_shared_call_runs_once_and_its_failure_reaches_every_caller() -> None:
    once, asked = Once(), []

    def ask() -> str:
        asked.append(1)
        return "shown"

    def fail() -> str:
        asked.append(2)
        raise Transient("no answer")

    assert [once.ask("a", ask), once.ask("a", ask)] == ["shown", "shown"]
    for _ in range(2):
        with pytest.raises(Transient):
            once.ask("b", fail)
    assert asked == [1, 2]


# --- A request that comes alone -------------------------------------------------------------------


NUMBER = "+5531988887777"
BOT = Bot(name="default", key=KEY)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def sandbox(world: World) -> Sandbox:
    """Return a sandbox that has sent a message and is still connected, with an idle bot."""
    sandbox = world.sandbox()
    world.know("+5531911112222")
    (sent,) = sandbox.deliver(a_request(id="first", to="+5531911112222"))
    assert sent.outcome is Outcome.SENT
    world.clock.advance(1)
    world.know(NUMBER)
    return sandbox


def reserved_before_claimed(world: World) -> Callable[[], bool]:
    """Return a function that says whether the last slot was reserved before the claim."""
    order: list[str] = []
    world.ledger_table.on_write = lambda *_: order.append("ledger")
    world.identities_table.on_write = lambda key, *_: order.append(key)
    return lambda: order[:2] == ["bot:default", "ledger"]


def test_slot_of_a_single_known_recipient_is_reserved_before_the_claim(
    world: World, sandbox: Sandbox
) -> None:
    ahead, before = reserved_before_claimed(world), len(sandbox.bot_states.reservations)

    (result,) = sandbox.deliver(a_request(to=NUMBER))

    assert result.outcome is Outcome.SENT
    assert ahead()
    assert sandbox.bot_states.reservations[before:] == [("default", "messages", 1)]


def test_slot_that_becomes_free_now_is_reserved_before_the_claim(
    world: World, sandbox: Sandbox
) -> None:
    free_at = round(world.clock.now() * 1_000_000)
    world.identities_table.items["bot:default"]["next_messages_at"] = free_at
    ahead = reserved_before_claimed(world)

    sandbox.deliver(a_request(to=NUMBER))

    assert ahead()


@pytest.mark.parametrize("why", ["new", "two", "again", "busy", "cold"])
def test_slot_that_cannot_be_used_at_once_is_not_reserved_before_the_claim(
    world: World, sandbox: Sandbox, why: str
) -> None:
    records = [world.queued(a_request(to=NUMBER), receive_count=2 if why == "again" else 1)]
    if why == "new":
        records = [world.queued(a_request(to="+5531933334444"))]
    if why == "two":
        world.know("+5531933334444")
        records.append(world.queued(a_request(id="other", to="+5531933334444")))
    if why == "busy":
        sandbox.bot_states.reserve(BOT, "messages", 20, 1, share=0.9)
    if why == "cold":
        world.blip.taken.clear()
    ahead = reserved_before_claimed(world)

    results = sandbox.deliver(*records)

    assert {result.outcome for result in results} == {Outcome.SENT}
    assert not ahead()


def test_failed_early_reservation_surfaces_when_the_slot_is_taken() -> None:
    def reserve(bot: Bot, plan: Plan, count: int, *_: float, **__: object) -> Reservation:
        assert (bot, count) == (BOT, 1)
        tried.append(plan)
        if len(tried) == 1:
            raise ConnectionError
        return Reservation((clock.now(),))

    tried: list[Plan] = []
    clock = Clock()
    this_round = Round(clock.now() + 30, {"default": BotState()}, {}, reserve, clock)

    this_round.reserve_ahead(BOT)
    this_round.wait_for_slot(BOT, "messages", known=True, after=1)

    assert tried == ["messages", "messages"]
