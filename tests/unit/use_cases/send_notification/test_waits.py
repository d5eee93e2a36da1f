"""How long a request waits for each reason to come back."""

from collections.abc import Callable
from functools import partial

import pytest

from notifier.domain.bots import Bot
from notifier.domain.failures import (
    Misconfigured,
    Reason,
    Throttled,
    Transient,
)
from notifier.domain.ledger_entries import ClaimLost
from notifier.use_cases.send_notification.waits import Policy, Waits
from tests.support.blip import always, raises
from tests.support.builders import a_request
from tests.support.world import World
from tests.unit.use_cases.send_notification.helpers import (
    DAY,
    STAGES,
    Spread,
    at,
    fail,
    fix,
    key_of,
    outcome,
)

# --- Attempts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_transient_failure_is_tried_again(world: World, stage: str) -> None:
    fail(world, stage, lambda: Transient("busy", code=51))
    body, sandbox = a_request(), world.sandbox()

    (result,) = sandbox.deliver(body)

    assert outcome(result) == "retrying"
    entry = world.entry(body)
    assert (entry["status"], entry["attempts"]) == ("retrying", 1)
    assert "token" not in entry
    fix(world)
    (result,) = sandbox.deliver(body)
    assert outcome(result) == "sent"
    # The identity's lease was given back, too.
    assert len(world.blip.look_ups) == (2 if stage == "before_look_up" else 1)


@pytest.mark.parametrize(
    ("uniform", "expected"),
    [
        (max, [10, 20, 40, 80, 160, 320, 640, 900, 900]),
        (min, [5] * 9),
    ],
)
def test_wait_grows_exponentially_with_full_jitter_up_to_15_minutes(
    world: World, uniform: Callable[[float, float], float], expected: list[float]
) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    body, waits = a_request(), []

    for _ in expected:
        world.clock.advance(900)
        world.identities_table.items.pop("bot:default", None)  # the breaker is another matter
        (result,) = world.sandbox(uniform=uniform).deliver(body)
        waits.append(result.retry_in)

    assert waits == expected


def test_last_attempt_ends_in_a_dead_letter(world: World) -> None:
    fail(world, "before_send", lambda: Transient("busy", code=503))
    body = a_request()

    for _ in range(2):
        (result,) = world.sandbox(max_attempts=3).deliver(body)
        assert outcome(result) == "retrying"
    (result,) = world.sandbox(max_attempts=3).deliver(body)

    assert result.reason is Reason.RETRIES_EXHAUSTED
    (letter,) = world.dead_letters.letters
    assert letter.failure["attempts"] == 3
    assert letter.failure["code"] == 503
    assert world.entry(body)["status"] == "failed"
    assert len(world.blip.sent) == 3


def test_redrive_has_all_its_attempts_again(world: World) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    body = a_request()
    world.sandbox(max_attempts=1).deliver(body)

    (result,) = world.sandbox(max_attempts=2).deliver(world.queued(body, generation=1))

    assert outcome(result) == "retrying"


def test_request_that_expires_soon_returns_when_it_expires(world: World) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    body = a_request(valid_until=at(world.clock.now() + 3))

    (result,) = world.sandbox().deliver(body)
    assert outcome(result) == "retrying"
    assert result.retry_in == pytest.approx(3, abs=0.5)

    world.clock.advance(3)
    (result,) = world.sandbox().deliver(body)
    assert result.reason is Reason.EXPIRED


# --- Every wait -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "bounds"),
    [
        (partial(Transient, "busy"), (0, 10)),
        (partial(Throttled, "slowly"), (120, 137)),
        (partial(Throttled, "slowly", retry_after_seconds=9999), (3600, 3965)),
        (partial(Misconfigured, "wrong key"), (600, 900)),
        (partial(RuntimeError, "unexpected"), (30, 60)),
    ],
)
def test_wait_after_a_failure_depends_on_its_kind(
    world: World, failure: Callable[[], Exception], bounds: tuple[float, float]
) -> None:
    fail(world, "before_send", failure)
    world.blip.before_ping = raises(Transient("no answer"))
    spread = Spread()

    (result,) = world.sandbox(uniform=spread).deliver(a_request())

    assert spread.asked[0] == pytest.approx(bounds)
    assert result.retry_in == pytest.approx(bounds[1])


@pytest.mark.parametrize(("left", "wait"), [(0.5, 0.5), (7, 7), (100, 10)])
def test_wait_after_a_failure_ends_with_the_request_s_validity(
    world: World, left: float, wait: float
) -> None:
    fail(world, "before_send", lambda: Transient("busy"))

    (result,) = world.sandbox().deliver(a_request(valid_until=at(world.clock.now() + left)))

    assert result.retry_in == pytest.approx(wait, abs=0.1)


def test_cooldown_delays_the_request_until_its_end_plus_up_to_a_tenth(world: World) -> None:
    until = round(1000 * (world.clock.now() + 50))
    world.identities_table.items["bot:default"] = {"throttled_until": until}
    spread = Spread()

    (result,) = world.sandbox(uniform=spread).deliver(a_request())

    assert (outcome(result), result.retry_in) == ("cooling_down", 55)
    assert spread.asked == [(0, 5), (0, 0)]  # and nothing else is in flight


@pytest.mark.parametrize(
    ("age", "valid_for", "longer"),
    [
        (0, None, 0),
        (600, None, 20),
        (DAY, None, 2880),
        (600, DAY, 20),
        (6 * DAY, None, 3600),  # a larger plan takes effect within the hour
        (DAY, 300, 10),  # a request that expires soon returns more often
    ],
)
def test_wait_for_a_slot_grows_with_the_request_s_age(
    world: World, age: float, valid_for: float | None, longer: float
) -> None:
    """SQS takes what it has shown a thousand times for dead."""
    free_at = round(1e6 * (world.clock.now() + 20))
    world.identities_table.items["bot:default"] = {"next_messages_at": free_at}
    changes = {} if valid_for is None else {"valid_until": at(world.clock.now() + valid_for)}

    (result,) = world.sandbox(uniform=Spread()).deliver(world.queued(a_request(**changes), age=age))

    assert outcome(result) == "retry_later"
    assert result.retry_in == pytest.approx(20 + longer, abs=0.1)


def test_open_breaker_delays_request_by_10_to_15_minutes(world: World) -> None:
    world.identities_table.items["bot:default"] = {"broken": "no answer"}
    world.blip.before_ping = always(lambda: Transient("busy"))
    spread = Spread()

    (result,) = world.sandbox(uniform=spread).deliver(a_request())

    assert (outcome(result), result.retry_in) == ("breaker_open", 900)
    assert spread.asked == [(600, 900)]


def test_slot_beyond_the_horizon_delays_the_request_until_that_slot(world: World) -> None:
    def next_at(seconds: float) -> None:
        free_at = round(1e6 * (world.clock.now() + seconds))
        world.identities_table.items["bot:default"] = {"next_messages_at": free_at}

    next_at(4)
    (result,) = world.sandbox().deliver(a_request())
    assert (outcome(result), result.retry_in) == ("retry_later", 4)

    next_at(2)
    (result,) = world.sandbox().deliver(a_request())
    assert outcome(result) == "sent"


def test_claim_of_another_sandbox_delays_the_request_until_its_lease_ends(world: World) -> None:
    body, found, spread = a_request(), [], Spread()

    def meanwhile(_: Bot) -> None:
        found.extend(world.sandbox(uniform=spread).deliver(body))

    world.blip.before_look_up = meanwhile
    world.sandbox().deliver(body, seconds=30)

    (result,) = found
    assert (outcome(result), result.retry_in) == ("retry_later", 33)
    assert spread.asked == [(0, 1)]


def test_claim_released_between_two_reads_delays_the_request_by_one_second(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(world, "before_send", lambda: Transient("busy"))
    body, sandbox = a_request(), world.sandbox()
    sandbox.deliver(body)
    standing = sandbox.ledger.read(key_of(body))
    monkeypatch.setattr(sandbox.ledger, "claim", lambda *_: standing)

    (result,) = sandbox.deliver(body)

    assert (outcome(result), result.retry_in) == ("retry_later", 1)
    assert result.notification is not None


@pytest.mark.parametrize(
    ("receives", "bounds"), [(1, (30, 60)), (2, (60, 120)), (3, (120, 240)), (99, (450, 900))]
)
def test_wait_after_a_crash_doubles_with_every_receive_up_to_15_minutes(
    world: World, receives: int, bounds: tuple[float, float]
) -> None:
    spread = Spread()
    queued = world.queued(a_request(), receive_count=receives)

    wait = Waits(Policy(), spread).receive_backoff(queued, 30, 60)

    assert (spread.asked, wait) == ([bounds], bounds[1])


def test_lost_claim_delays_the_request_by_5_to_10_seconds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise ClaimLost("key")  # not because the recipient was erased

    spread = Spread()
    sandbox = world.sandbox(uniform=spread)
    monkeypatch.setattr(sandbox.ledger, "start_sending", lost)

    (result,) = sandbox.deliver(a_request())

    assert (outcome(result), result.retry_in) == ("retry_later", 10)
    assert spread.asked == [(5, 10)]
