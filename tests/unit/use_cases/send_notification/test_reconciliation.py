"""Sends with an unknown outcome: BLiP's history is asked, and they are sent again or given up."""

from collections.abc import Callable

import pytest

from notifier.domain.bots import Bot
from notifier.domain.failures import (
    Failure,
    Misconfigured,
    Reason,
    Rejected,
    Throttled,
    Transient,
    Unknown,
)
from notifier.domain.receipts import Receipt
from notifier.domain.status import Status
from tests.support.blip import always, raises
from tests.support.builders import OTHER_KEY, PHONE, a_request
from tests.support.world import World
from tests.unit.use_cases.send_notification.helpers import (
    DAY,
    WINDOW,
    Spread,
    at,
    ends,
    fail,
    fix,
    key_of,
    outcome,
    unknown,
)

# --- The history ----------------------------------------------------------------------------------


def test_possibly_sent_request_is_not_sent_again_before_reconciliation(world: World) -> None:
    body = a_request()
    unknown(world, body)

    for generation in (None, 1):
        world.clock.advance(WINDOW / 3)
        (result,) = world.sandbox().deliver(world.queued(body, generation=generation))
        assert result.retry_in is not None
        assert 0 < result.retry_in <= WINDOW
    assert len(world.blip.sent) == 1
    assert world.blip.asked == []


def test_possibly_sent_request_is_not_dead_lettered_as_expired(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now() + 60))
    unknown(world, body)

    world.clock.advance(120)
    (result,) = world.sandbox().deliver(body)

    assert result.retry_in is not None
    assert ends(world) == []


def test_sandbox_killed_during_a_send_leaves_an_unknown_outcome(world: World) -> None:
    world.know(PHONE)
    fail(world, "before_send", lambda: RuntimeError("the sandbox is gone"))
    body = a_request()
    (result,) = world.sandbox().deliver(body)
    assert outcome(result) == "crashed"
    assert world.entry(body)["status"] == "sending"
    fix(world)

    for seconds in (20, 40, WINDOW - 60):
        world.clock.advance(seconds)
        (result,) = world.sandbox().deliver(body)
        assert result.retry_in is not None
    assert len(world.blip.sent) == 1

    world.clock.advance(WINDOW)
    world.sandbox().deliver(body)
    assert world.blip.asked == [key_of(body)]


def test_abandoned_send_is_unknown_from_the_end_of_its_lease(world: World) -> None:
    world.know(PHONE)
    fail(world, "before_send", lambda: RuntimeError("the sandbox is gone"))
    body = a_request()
    world.sandbox().deliver(body, seconds=30)

    world.clock.advance(31.9)  # two clocks may differ by two seconds
    assert outcome(world.sandbox().deliver(body)[0]) == "retry_later"
    world.clock.advance(0.1)
    assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"


def test_history_is_queried_from_the_end_of_the_window(world: World) -> None:
    body = a_request()
    unknown(world, body)

    world.clock.advance(WINDOW)
    world.sandbox().deliver(body)

    assert world.blip.asked == [key_of(body)]


@pytest.mark.parametrize("stored", [Status.ACCEPTED, Status.DISPATCHED, Status.CONSUMED])
def test_message_in_the_history_is_marked_sent(world: World, stored: Status) -> None:
    body = a_request()
    unknown(world, body, stored=stored)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)

    assert (outcome(result), result.retry_in) == ("settled", None)
    assert world.entry(body)["status"] == stored
    assert len(world.blip.sent) == 1


def show_later_message(world: World, seconds: float = 3) -> str:
    """Send a message so much later that BLiP's history shows. Return its id."""
    before = len(world.blip.taken)
    world.blip.before_send = lambda _: None
    world.clock.advance(seconds)
    (result,) = world.sandbox().deliver(a_request(to="+5511977776666"))
    assert outcome(result) == "sent"
    later = world.blip.taken[before].message_id
    world.blip.stored[later] = [Receipt(later, 1, Status.ACCEPTED)]
    return later


def test_message_missing_from_the_history_is_sent_again_once_with_the_same_id(
    world: World,
) -> None:
    body = a_request()
    unknown(world, body)
    later = show_later_message(world)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)
    assert (outcome(result), result.retry_in) == ("denied", 0)
    assert world.blip.asked == [key_of(body), later]
    world.blip.before_send = raises(Unknown("no answer"))
    world.sandbox().deliver(body)
    assert [sent.message_id for sent in world.blip.sent] == [key_of(body), later, key_of(body)]

    # The second time it is given up.
    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)
    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert world.dead_letters.letters[0].failure["possibly_sent"] is True
    assert len(world.blip.sent) == 3


def test_request_that_expired_before_it_was_found_unsent_is_not_sent_again(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now() + 60))
    unknown(world, body)
    later = show_later_message(world)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.EXPIRED
    assert world.entry(body)["status"] == "expired"
    assert [sent.message_id for sent in world.blip.sent] == [key_of(body), later]


def test_expired_request_found_in_the_history_is_not_a_dead_letter(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now() + 60))
    unknown(world, body, stored=Status.RECEIVED)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "settled"
    assert ends(world) == []


def test_if_unknown_fail_prevents_a_second_send(world: World) -> None:
    body = a_request(if_unknown="fail")
    unknown(world, body)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert len(world.blip.sent) == 1


@pytest.mark.parametrize("failure", [Transient, Rejected, Misconfigured, Throttled])
def test_failed_history_query_decides_nothing(world: World, failure: type[Failure]) -> None:
    raised = Rejected(Reason.REJECTED, "no") if failure is Rejected else failure("no")
    body = a_request()
    unknown(world, body)
    world.blip.before_history = always(lambda: raised)

    for _ in range(3):
        world.clock.advance(WINDOW + 2)
        (result,) = world.sandbox().deliver(body)
        assert result.retry_in is not None
        assert result.retry_in >= 120
        assert world.entry(body)["status"] == "unknown"
    assert len(world.blip.sent) == 1
    assert ends(world) == []


def test_request_that_expires_as_it_is_found_unsent_is_not_sent_again(world: World) -> None:
    valid_until = world.clock.now() + WINDOW + 5
    body = a_request(valid_until=at(valid_until))
    unknown(world, body)
    show_later_message(world)
    world.clock.advance(valid_until - world.clock.now())

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.EXPIRED
    assert len(world.blip.sent) == 2


@pytest.mark.parametrize(("uniform", "wait"), [(max, WINDOW), (min, WINDOW / 3)])
def test_unknown_outcome_waits_for_a_bot_missing_from_the_secret(
    world: World, uniform: Callable[[float, float], float], wait: float
) -> None:
    body = a_request()
    unknown(world, body)
    show_later_message(world)
    bots, world.bots = world.bots, {}
    world.clock.advance(WINDOW + 2)
    assert outcome(world.sandbox().deliver(body)[0]) == "misconfigured"
    world.clock.advance(900)  # now it is an unknown bot

    (result,) = world.sandbox(uniform=uniform).deliver(body)

    assert (outcome(result), result.retry_in) == ("unsettled", wait)
    assert ends(world) == []
    # No sandbox holds it meanwhile: the next one may query the history.
    world.bots = bots
    assert outcome(world.sandbox().deliver(body)[0]) == "denied"


def test_history_query_waits_for_a_slot_of_the_commands_plan(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(2)]
    for body in bodies:
        unknown(world, body)
    world.clock.advance(WINDOW + 2)
    sandbox = world.sandbox()

    sandbox.deliver(*bodies)

    assert sandbox.bot_states.reservations == [("default", "commands", 1)] * 2


def test_history_query_takes_no_slot_reserved_for_a_look_up(world: World) -> None:
    body = a_request()
    unknown(world, body)
    world.clock.advance(WINDOW + 2)
    sandbox = world.sandbox()

    sandbox.deliver(body, *[a_request(to=f"+55119888877{n:02}") for n in range(2)])

    commands = [count for _, plan, count in sandbox.bot_states.reservations if plan == "commands"]
    assert commands == [1, 2]


def test_history_query_without_a_slot_soon_is_postponed(world: World) -> None:
    body = a_request()
    unknown(world, body)
    show_later_message(world)
    world.clock.advance(WINDOW + 2)
    later = round((world.clock.now() + 60) * 1e6)
    world.identities_table.items["bot:default"]["next_commands_at"] = later

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "retry_later"
    assert result.retry_in == pytest.approx(60, abs=1)
    assert world.blip.asked == []
    # No sandbox holds it meanwhile: the next one may query the history.
    world.clock.advance(60)
    assert outcome(world.sandbox().deliver(body)[0]) == "denied"


def test_history_query_that_could_not_end_in_time_is_not_started(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(2)]
    for body in bodies:
        unknown(world, body)
    later = show_later_message(world)
    world.clock.advance(WINDOW + 2)
    world.blip.call_seconds = 10

    first, second = world.sandbox().deliver(*bodies, seconds=31)

    assert (outcome(first), outcome(second)) == ("denied", "retry_later")
    assert second.retry_in == pytest.approx(0, abs=1)
    assert world.blip.asked == [key_of(bodies[0]), later]


def test_history_is_queried_with_the_bot_s_own_key(world: World) -> None:
    world.bots["clinic"] = {"key": OTHER_KEY}
    body = a_request(bot="clinic")
    unknown(world, body)
    world.clock.advance(WINDOW + 2)
    keys: list[str] = []
    world.blip.before_history = lambda bot: keys.append(bot.key)

    world.sandbox().deliver(body)

    assert keys == [OTHER_KEY]


@pytest.mark.parametrize(("receipts", "asked_for"), [("history", True), ("webhook", False)])
def test_message_found_in_the_history_is_polled_if_no_receipt_arrives(
    world: World, receipts: str, *, asked_for: bool
) -> None:
    world.bots["default"]["receipts"] = receipts
    body = a_request()
    unknown(world, body, stored=Status.ACCEPTED)
    world.clock.advance(WINDOW + 2)

    world.sandbox().deliver(body)

    entry = world.entry(body)
    assert entry["status"] == "accepted"
    expected = round(1000 * (world.clock.now() + 300)) if asked_for else None
    assert entry.get("poll_at") == expected


def test_unknown_outcome_fails_after_three_days_if_the_history_shows_nothing(
    world: World,
) -> None:
    body = a_request()
    unknown(world, body)
    show_later_message(world)

    world.clock.advance(3 * DAY - 3)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert world.blip.asked == [key_of(body)]
    assert len(world.blip.sent) == 2


def test_unknown_outcome_is_settled_after_three_days_if_the_history_shows_it(world: World) -> None:
    body = a_request()
    unknown(world, body, stored=Status.ACCEPTED)

    world.clock.advance(3 * DAY)
    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "settled"


def test_unknown_outcome_fails_after_three_days_if_the_history_query_fails(world: World) -> None:
    body = a_request()
    unknown(world, body)
    world.clock.advance(3 * DAY)
    world.blip.before_history = raises(Transient("no answer"))

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN


def test_throttled_history_query_lowers_the_share_of_the_commands_plan(world: World) -> None:
    body = a_request()
    unknown(world, body)
    world.clock.advance(WINDOW + 2)
    world.blip.before_history = raises(Throttled("slow down"))

    assert outcome(world.sandbox().deliver(body)[0]) == "throttled"

    assert list(world.sandbox().bot_states.state("default").shares) == ["commands"]


@pytest.mark.parametrize(("seconds", "then"), [(905, "unsettled"), (906, "denied")])
def test_message_in_the_history_covers_what_was_sent_before_it_can_have_begun(
    world: World, seconds: float, then: str
) -> None:
    missing, shown = a_request(), a_request()
    unknown(world, missing)
    world.clock.advance(seconds)  # the lease of an abandoned send, and twice the skew of two clocks
    unknown(world, shown, stored=Status.ACCEPTED)
    world.clock.advance(WINDOW + 2)
    assert outcome(world.sandbox().deliver(shown)[0]) == "settled"

    assert outcome(world.sandbox().deliver(missing)[0]) == then


def test_progress_of_the_history_is_written_only_if_it_is_news(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [a_request(), a_request()]
    for body in bodies:
        unknown(world, body, stored=Status.ACCEPTED)
    world.clock.advance(WINDOW + 2)
    world.sandbox().deliver(bodies[1])
    sandbox = world.sandbox()
    written: list[object] = []
    monkeypatch.setattr(sandbox.bot_states, "history_shows", lambda *seen: written.append(seen))

    assert outcome(sandbox.deliver(bodies[0])[0]) == "settled"
    assert written == []


# --- The control message --------------------------------------------------------------------------


def test_empty_history_counts_only_after_it_shows_a_later_message(world: World) -> None:
    body = a_request()
    unknown(world, body)
    later = show_later_message(world)
    shown = world.blip.stored.pop(later)

    for _ in range(8):
        world.clock.advance(WINDOW + 2)
        assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"
    world.blip.stored[later] = shown
    world.clock.advance(WINDOW + 2)

    assert outcome(world.sandbox().deliver(body)[0]) == "denied"


def test_unknown_outcome_keeps_its_control_while_newer_messages_replace_it(world: World) -> None:
    body = a_request()
    unknown(world, body)
    later = show_later_message(world)
    shown = world.blip.stored.pop(later)
    world.clock.advance(WINDOW + 2)
    world.sandbox().deliver(body)
    for _ in range(3):
        world.clock.advance(WINDOW)
        del world.blip.stored[show_later_message(world)]
    world.blip.stored[later] = shown

    assert outcome(world.sandbox().deliver(body)[0]) == "denied"
    assert world.blip.asked[-1] == later


def test_history_that_showed_a_later_message_needs_no_second_control(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(2)]
    for body in bodies:
        unknown(world, body)
    later = show_later_message(world)
    world.clock.advance(WINDOW + 2)

    assert outcome(world.sandbox().deliver(bodies[0])[0]) == "denied"
    assert outcome(world.sandbox().deliver(bodies[1])[0]) == "denied"

    assert world.blip.asked == [key_of(bodies[0]), later, key_of(bodies[1])]


def test_unknown_outcomes_of_one_batch_query_their_control_once(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(3)]
    for body in bodies:
        unknown(world, body)
    later = show_later_message(world)
    del world.blip.stored[later]
    world.clock.advance(WINDOW + 2)

    world.sandbox().deliver(*bodies)

    assert world.blip.asked.count(later) == 1


def test_message_sent_before_the_unknown_is_no_control_for_six_hours(world: World) -> None:
    show_later_message(world)
    body = a_request()
    unknown(world, body)

    world.clock.advance(6 * 3600 - 1)
    assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"
    world.clock.advance(1)
    assert outcome(world.sandbox().deliver(body)[0]) == "denied"


def test_message_sent_before_the_unknown_is_its_control_after_six_hours(world: World) -> None:
    del world.blip.stored[show_later_message(world)]
    body = a_request()
    unknown(world, body)

    world.clock.advance(6 * 3600)

    assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"


def test_first_message_of_a_bot_fails_after_six_hours(world: World) -> None:
    body = a_request()
    unknown(world, body)

    world.clock.advance(6 * 3600 - 1)
    assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"
    world.clock.advance(1)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert len(world.blip.sent) == 1


def test_if_unknown_fail_is_published_after_the_window(world: World) -> None:
    body = a_request(if_unknown="fail")
    unknown(world, body)
    world.clock.advance(WINDOW + 2)

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert world.blip.asked == [key_of(body)]


def test_control_is_written_once_in_a_third_of_the_window(world: World) -> None:
    sandbox = world.sandbox()
    kept = []
    for seconds in (0, WINDOW / 3 - 1, 2, WINDOW / 3 - 1):
        world.clock.advance(seconds)
        sandbox.deliver(a_request())
        kept.append(world.identities_table.get("bot:default")["control"])

    assert kept[0] == kept[1] != kept[2] == kept[3]
    assert world.identities_table.get("bot:default")["control_before"] == kept[0]


def fail_second_query(world: World, failure: Failure) -> None:
    """Make the query for the control fail, but not the one for the unknown before it."""
    failures = iter((None, failure))

    def strike(_: Bot) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure

    world.blip.before_history = strike


@pytest.mark.parametrize(
    "failure", [Transient("no"), Misconfigured("no"), Rejected(Reason.REJECTED, "no")]
)
def test_failed_control_query_decides_nothing(world: World, failure: Failure) -> None:
    body = a_request()
    unknown(world, body)
    show_later_message(world)
    world.clock.advance(WINDOW + 2)
    fail_second_query(world, failure)

    assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"
    world.blip.before_history = lambda _: None
    assert outcome(world.sandbox().deliver(body)[0]) == "denied"


def test_throttled_control_query_decides_nothing_and_starts_a_cooldown(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(2)]
    for body in bodies:
        unknown(world, body)
    show_later_message(world)
    world.clock.advance(WINDOW + 2)
    fail_second_query(world, Throttled("slow down", retry_after_seconds=60))

    first, second = world.sandbox().deliver(*bodies)

    assert (outcome(first), outcome(second)) == ("unsettled", "cooling_down")
    assert len(world.blip.asked) == 2
    state = world.sandbox().bot_states.state("default")
    assert state.throttled_until == pytest.approx(world.clock.now() + 60, abs=0.01)
    assert list(state.shares) == ["commands"]


@pytest.mark.parametrize(("seconds", "then"), [(1.9, "unsettled"), (2, "denied")])
def test_control_is_later_by_what_two_clocks_may_differ(
    world: World, seconds: float, then: str
) -> None:
    body = a_request()
    unknown(world, body)
    show_later_message(world, seconds)
    world.clock.advance(WINDOW)

    assert outcome(world.sandbox().deliver(body)[0]) == then


def test_older_one_of_two_later_messages_is_the_control(world: World) -> None:
    body = a_request()
    unknown(world, body)
    older = show_later_message(world, 2)
    del world.blip.stored[show_later_message(world, WINDOW / 3 + 1)]
    world.clock.advance(WINDOW)

    assert outcome(world.sandbox().deliver(body)[0]) == "denied"
    assert world.blip.asked == [key_of(body), older]


def test_message_sent_with_the_unknown_is_no_control_if_there_is_a_later_one(world: World) -> None:
    body = a_request()
    unknown(world, body)
    show_later_message(world, 1)
    later = show_later_message(world, WINDOW / 3 + 1)
    world.clock.advance(WINDOW)

    assert outcome(world.sandbox().deliver(body)[0]) == "denied"
    assert world.blip.asked == [key_of(body), later]


def test_unknown_outcome_is_not_bound_to_an_earlier_message(world: World) -> None:
    show_later_message(world)
    body = a_request()
    unknown(world, body)
    world.clock.advance(WINDOW + 2)
    assert outcome(world.sandbox().deliver(body)[0]) == "unsettled"

    later = show_later_message(world)

    assert outcome(world.sandbox().deliver(body)[0]) == "denied"
    assert world.blip.asked[-1] == later


def test_unknown_outcomes_of_one_batch_query_each_their_own_control(world: World) -> None:
    first, second = a_request(), a_request(to="+5511988887701")
    unknown(world, first)
    del world.blip.stored[show_later_message(world)]
    world.clock.advance(WINDOW + 2)
    assert outcome(world.sandbox().deliver(first)[0]) == "unsettled"
    unknown(world, second)
    show_later_message(world)
    world.clock.advance(WINDOW + 2)

    results = world.sandbox().deliver(first, second)

    assert [outcome(result) for result in results] == ["unsettled", "denied"]


def test_newest_message_before_the_unknown_is_its_control(world: World) -> None:
    show_later_message(world)
    world.clock.advance(3 * DAY)
    newest = show_later_message(world)
    body = a_request()
    unknown(world, body)

    world.clock.advance(6 * 3600)

    assert outcome(world.sandbox().deliver(body)[0]) == "denied"
    assert world.blip.asked == [key_of(body), newest]


def test_message_that_the_history_no_longer_holds_is_no_control(world: World) -> None:
    earlier = show_later_message(world)
    sent_at = world.blip.taken[-1].at
    world.clock.advance(3 * DAY - 7 * 3600)
    body = a_request()
    unknown(world, body)

    world.clock.advance(sent_at + 3 * DAY - world.clock.now())
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.OUTCOME_UNKNOWN
    assert earlier not in world.blip.asked


def test_control_that_is_new_enough_is_not_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = world.sandbox()
    for _ in range(2):
        sandbox.deliver(a_request())
        world.clock.advance(WINDOW / 3 - 1)
    world.clock.advance(2)
    sandbox.deliver(a_request())
    world.clock.advance(2)
    written: list[object] = []
    monkeypatch.setattr(sandbox.bot_states, "keep_control", lambda *kept: written.append(kept))

    assert outcome(sandbox.deliver(a_request())[0]) == "sent"
    assert written == []


# --- Waits ----------------------------------------------------------------------------------------


def test_history_query_by_another_sandbox_delays_the_request_by_30_seconds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = a_request()
    unknown(world, body)
    world.clock.advance(WINDOW + 2)
    sandbox = world.sandbox()
    monkeypatch.setattr(sandbox.ledger, "claim_unknown", lambda *_: None)

    (result,) = sandbox.deliver(body)

    assert (outcome(result), result.retry_in) == ("retry_later", 30)
    assert world.blip.asked == []


@pytest.mark.parametrize(("window", "wait"), [(60, 61), (900, 900), (3600, 900)])
def test_first_history_query_waits_for_the_window(world: World, window: int, wait: float) -> None:
    world.blip.before_send = raises(Unknown("no answer"))

    (result,) = world.sandbox(settle_window_seconds=window).deliver(a_request())

    assert (outcome(result), result.retry_in) == ("unknown", wait)


@pytest.mark.parametrize(("passed", "wait"), [(0, 900), (100, 801), (899.5, 1.5)])
def test_history_query_waits_for_the_rest_of_the_window(
    world: World, passed: float, wait: float
) -> None:
    body = a_request()
    unknown(world, body)
    world.clock.advance(passed)
    spread = Spread()

    (result,) = world.sandbox(uniform=spread).deliver(body)

    assert outcome(result) == "unsettled"
    assert result.retry_in == pytest.approx(wait, abs=0.01)
    assert spread.asked == [(0, 1)]
