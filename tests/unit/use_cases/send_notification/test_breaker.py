"""Which bots may send: keys, cooldowns, probes, and what opens and closes a breaker."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

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
from notifier.domain.ledger_entries import Control
from tests.support.blip import always, identity_of, raises
from tests.support.builders import KEY, OTHER_KEY, PHONE, a_request
from tests.support.world import World
from tests.unit.use_cases.send_notification.helpers import (
    DAY,
    OTHER_PHONE,
    STAGES,
    ends,
    fail,
    fix,
    outcome,
)

# --- Cooldowns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("retry_after", "seconds"), [(None, 120), (17.0, 17)])
def test_throttled_bot_cools_down_in_every_sandbox(
    world: World, stage: str, retry_after: float | None, seconds: float
) -> None:
    fail(world, stage, lambda: Throttled("slowly", code=34, retry_after_seconds=retry_after))
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(5)]

    results = world.sandbox(uniform=min).deliver(*bodies)

    # One was over the plan; the others of the batch were not even tried.
    asked = world.blip.look_ups if stage == "before_look_up" else world.blip.sent
    assert len(asked) == 1
    assert sorted(map(outcome, results)) == ["cooling_down"] * 4 + ["throttled"]
    assert all(result.retry_in == pytest.approx(seconds, abs=1) for result in results)
    for body in bodies:
        assert world.entry(body)["attempts"] == 0
        assert world.entry(body)["status"] == "retrying"

    # Another sandbox, another notification: not even claimed.
    fix(world)
    later = a_request()
    world.clock.advance(seconds - 1)
    (result,) = world.sandbox(uniform=min).deliver(later)
    assert outcome(result) == "cooling_down"
    assert result.retry_in == pytest.approx(1, abs=0.5)
    assert world.entry(later) == {}

    world.clock.advance(2)
    assert {outcome(v) for v in world.sandbox().deliver(later, *bodies)} == {"sent"}


@pytest.mark.parametrize("call", ["look_up", "send"])
def test_throttled_bot_opens_no_further_connection(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    if call == "send":
        for phone in (PHONE, OTHER_PHONE):
            world.know(phone)
    begun: list[object] = []

    def throttle(_: Bot, about: object, *_others: object) -> None:
        begun.append(about)
        raise Throttled("slowly")

    monkeypatch.setattr(world.blip, call, throttle)

    results = world.sandbox().deliver(a_request(), a_request(to=OTHER_PHONE))

    assert list(map(outcome, results)) == ["throttled", "cooling_down"]
    assert len(begun) == 1


def test_throttled_bot_does_not_stop_the_others(world: World) -> None:
    world.bots["clinic"] = {"key": OTHER_KEY}

    def refuse(bot: Bot) -> None:
        if bot.name == "default":
            raise Throttled("slowly")

    world.blip.before_send = refuse
    first, second = world.sandbox().deliver(a_request(), a_request(bot="clinic"))

    assert (outcome(first), outcome(second)) == ("throttled", "sent")


def test_waiting_for_a_cooldown_is_not_an_attempt(world: World) -> None:
    fail(world, "before_send", lambda: Throttled("slowly"))
    body = a_request()

    for _ in range(30):
        (result,) = world.sandbox(max_attempts=2).deliver(body)
        assert outcome(result) == "throttled"
        world.clock.advance(200)

    fix(world)
    (result,) = world.sandbox(max_attempts=2).deliver(body)
    assert outcome(result) == "sent"


# --- The breaker ----------------------------------------------------------------------------------


def wrong_key(bot: Bot) -> None:
    if bot.key == KEY:
        raise Misconfigured("wrong key", code=13)


@pytest.mark.parametrize("stage", STAGES)
def test_rotated_key_is_fetched_during_a_batch(world: World, stage: str) -> None:
    sandbox = world.sandbox()
    sandbox.secrets.bots()
    world.bots = {"default": {"key": OTHER_KEY}}
    world.clock.advance(11)
    setattr(world.blip, stage, wrong_key)
    world.blip.before_send = wrong_key

    (result,) = sandbox.deliver(a_request())

    assert outcome(result) == "sent"
    assert world.blip.taken[0].bot.key == OTHER_KEY
    assert sandbox.secrets_manager.fetches == 2


@pytest.mark.parametrize("stage", STAGES)
def test_wrong_key_stops_the_bot_and_its_requests_wait(world: World, stage: str) -> None:
    setattr(world.blip, stage, wrong_key)
    world.blip.before_ping = wrong_key
    sandbox = world.sandbox(uniform=min)
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(5)]

    results = sandbox.deliver(*bodies)

    asked = world.blip.look_ups if stage == "before_look_up" else world.blip.sent
    assert len(asked) == 1
    assert all(outcome(result) in {"misconfigured", "breaker_open"} for result in results)
    assert all(result.retry_in == 600 for result in results)
    assert ends(world) == []
    assert all(world.entry(body)["attempts"] == 0 for body in bodies)

    # Hours later it is the same; nothing is claimed, looked up or sent, nothing dead-lettered.
    for _ in range(20):
        world.clock.advance(700)
        (result,) = world.sandbox().deliver(a_request())
        assert outcome(result) == "misconfigured"
        assert result.retry_in is not None
        assert 600 <= result.retry_in <= 900
    assert len(world.blip.sent) <= 1
    assert ends(world) == []

    # An operator fixes the key.
    world.bots = {"default": {"key": OTHER_KEY}}
    world.clock.advance(700)
    for _ in range(2):
        results = sandbox.deliver(*bodies)
        world.clock.advance(700)
    assert {outcome(result) for result in results} <= {"sent", "duplicate"}
    assert len(world.blip.taken) == 5


def test_unreadable_secret_after_a_refused_key_stops_the_bot(world: World) -> None:
    """The key was refused: that nothing went out is certain, whatever the secret holds now."""
    world.know(PHONE)
    sandbox = world.sandbox()
    sandbox.secrets.bots()
    world.bots = "not JSON"
    world.clock.advance(11)
    world.blip.before_send = world.blip.before_ping = wrong_key
    body = a_request()

    (result,) = sandbox.deliver(body)

    assert outcome(result) == "misconfigured"
    assert world.entry(body)["status"] == "retrying"


@pytest.mark.parametrize(
    "bots",
    [
        {"default": {"key": "REPLACE_ME"}},
        {"default": {"key": "not base64"}},
        {"default": {}},
        {"default": None},
        "",
        "not JSON",
        "[]",
    ],
    ids=str,
)
def test_invalid_bot_makes_its_requests_wait(world: World, bots: Any) -> None:
    world.bots = bots
    body = a_request()

    (result,) = world.sandbox().deliver(body)

    assert result.retry_in is not None
    assert 600 <= result.retry_in <= 900
    assert world.entry(body) == {}
    assert ends(world) == []

    world.bots = {"default": {"key": KEY}}
    world.clock.advance(result.retry_in)
    assert outcome(world.sandbox().deliver(body)[0]) == "sent"


def test_invalid_bot_does_not_affect_other_bots(world: World) -> None:
    world.bots = {"default": {"key": "REPLACE_ME"}, "clinic": {"key": KEY}}

    first, second = world.sandbox().deliver(a_request(), a_request(bot="clinic"))

    assert first.retry_in is not None
    assert outcome(second) == "sent"


def test_batch_that_cannot_proceed_holds_still_for_a_moment(world: World) -> None:
    """SQS allows 120,000 in flight."""
    world.bots = {"default": {"key": "REPLACE_ME"}}
    world.in_flight = 110_000

    world.sandbox().deliver(a_request(), a_request())
    assert world.clock.slept == [pytest.approx(3)]

    # But not if a request of the batch could proceed.
    world.sandbox().deliver(a_request(), "not JSON")
    assert len(world.clock.slept) == 1


def five_failures(world: World, failure: Callable[[], Failure]) -> None:
    fail(world, "before_send", failure)
    for number in range(5):
        (result,) = world.sandbox().deliver(a_request(to=f"+55119888877{number:02}"))
        assert outcome(result) in {"retrying", "unknown"}
    fix(world)


@pytest.mark.parametrize("failure", [Transient, Unknown])
def test_five_notifications_in_a_row_without_an_answer_open_the_breaker(
    world: World, failure: type[Failure]
) -> None:
    five_failures(world, lambda: failure("nothing"))
    asked = len(world.blip.look_ups), len(world.blip.sent)
    body = a_request()

    (result,) = world.sandbox().deliver(body)  # the probe
    assert outcome(result) == "sent"
    assert world.blip.pings == 1
    assert outcome(world.sandbox().deliver(a_request())[0]) == "sent"
    assert world.blip.pings == 1
    assert (len(world.blip.look_ups), len(world.blip.sent)) == (asked[0] + 1, asked[1] + 2)


def test_last_attempts_without_an_answer_open_the_breaker_as_well(world: World) -> None:
    fail(world, "before_send", lambda: Transient("nothing"))
    for number in range(5):
        assert "broken" not in world.identities_table.get("bot:default")
        body = a_request(to=f"+55119888877{number:02}")
        assert outcome(world.sandbox(max_attempts=1).deliver(body)[0]) == "dead_letter"

    assert "broken" in world.identities_table.get("bot:default")


def test_unanswered_probe_prevents_every_claim_look_up_and_send(
    world: World,
) -> None:
    five_failures(world, lambda: Transient("nothing"))
    asked = len(world.blip.look_ups), len(world.blip.sent)
    world.blip.before_ping = always(lambda: Transient("nothing"))
    bodies = [a_request() for _ in range(3)]

    for _ in range(3):
        results = world.sandbox().deliver(*bodies)
        assert {outcome(result) for result in results} == {"breaker_open"}
        world.clock.advance(31)

    assert world.blip.pings == 3
    assert (len(world.blip.look_ups), len(world.blip.sent)) == asked
    assert all(world.entry(body) == {} for body in bodies)


def test_unreadable_secret_during_a_probe_leaves_the_breaker_open(
    world: World,
) -> None:
    five_failures(world, lambda: Transient("nothing"))
    sandbox = world.sandbox()
    sandbox.secrets.bots()
    world.bots = "not JSON"
    world.clock.advance(11)
    world.blip.before_ping = wrong_key

    (result,) = sandbox.deliver(a_request())

    assert outcome(result) == "misconfigured"
    assert world.blip.pings == 1


def test_successful_probe_lets_one_notification_through(world: World) -> None:
    five_failures(world, lambda: Transient("nothing"))
    bodies = [a_request(to=f"+55119777766{n:02}") for n in range(4)]

    results = world.sandbox().deliver(*bodies)

    assert sorted(map(outcome, results)) == ["breaker_open"] * 3 + ["sent"]
    assert {outcome(v) for v in world.sandbox().deliver(*bodies)} == {"sent", "duplicate"}


def test_notification_from_before_the_breaker_opened_does_not_close_it(world: World) -> None:
    fail(world, "before_send", lambda: Transient("nothing"))
    world.sandbox().deliver(a_request())  # so that an answer is worth a write
    sandbox = world.sandbox()
    world.blip.before_send = lambda _: sandbox.bot_states.number_down("default", "payment")

    (result,) = sandbox.deliver(a_request())

    assert outcome(result) == "sent"
    item = world.identities_table.get("bot:default")
    assert (item["broken"], "tried_at" in item) == ("payment", False)


def test_crashing_probe_affects_only_its_own_bot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bots = {name: {"key": KEY} for name in ("default", "clinic")}
    sandbox = world.sandbox()
    sandbox.bot_states.open_breaker("default", "nothing works")

    def crash(_: str) -> bool:
        raise ConnectionError

    monkeypatch.setattr(sandbox.bot_states, "probe", crash)

    results = sandbox.deliver(a_request(), a_request(bot="clinic"))

    assert sorted(map(outcome, results)) == ["breaker_open", "sent"]
    assert world.blip.pings == 0


def test_refusal_does_not_close_the_breaker_of_a_number_that_is_down(world: World) -> None:
    world.blip.before_look_up = always(lambda: Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61))
    sandbox = world.sandbox()
    sandbox.bot_states.number_down("default", "payment")

    for number in range(3):
        world.clock.advance(601)
        (result,) = sandbox.deliver(a_request(to=f"+55119777766{number:02}"))
        assert outcome(result) == "dead_letter"

    item = world.identities_table.get("bot:default")
    assert (item["broken"], "tried_at" in item) == ("payment", False)


def test_second_message_that_is_sent_closes_the_breaker_of_a_number_that_was_down(
    world: World,
) -> None:
    world.sandbox().bot_states.number_down("default", "payment")
    still_open = []
    for number in range(2):
        world.clock.advance(601)
        body = a_request(to=f"+55119777766{number:02}")
        assert outcome(world.sandbox().deliver(body)[0]) == "sent"
        still_open.append("broken" in world.identities_table.get("bot:default"))

    assert still_open == [True, False]


def test_no_recipient_is_looked_up_while_the_number_is_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may have read the bot's item before."""
    sandbox = world.sandbox()
    read = sandbox.identities.read

    def just_before(*arguments: Any) -> Any:
        found = read(*arguments)
        sandbox.bot_states.number_down("default", "payment")
        return found

    monkeypatch.setattr(sandbox.identities, "read", just_before)

    sandbox.deliver(a_request(), a_request(to=OTHER_PHONE))

    assert (world.blip.look_ups, world.blip.sent) == ([], [])


def test_bots_that_do_not_answer_delay_no_other_bot(world: World) -> None:
    names = ("hangs", "hangs-too", "clinic")
    world.bots = {name: {"key": KEY} for name in names}
    sent = Event()
    waited: list[bool] = []

    def hang(_: Bot) -> None:
        waited.append(sent.wait(5))
        raise Transient("nothing")

    world.blip.before_ping = hang
    world.blip.before_send = lambda _: sent.set()
    with ThreadPoolExecutor(8) as threads:
        sandbox = world.sandbox(threads=threads)
        for name in names[:2]:
            sandbox.bot_states.open_breaker(name, "nothing works")

        results = sandbox.deliver(*[a_request(bot=name) for name in names])

    assert sorted(map(outcome, results)) == ["breaker_open", "breaker_open", "sent"]
    assert waited == [True, True]


def test_paused_bot_sends_nothing_until_it_is_resumed(world: World) -> None:
    world.bots = {name: {"key": KEY} for name in ("default", "clinic")}
    sandbox = world.sandbox()
    sandbox.bot_states.pause("default")
    body, other = a_request(), a_request(bot="clinic")

    paused, sent = sandbox.deliver(body, other)

    assert (outcome(paused), outcome(sent)) == ("paused", "sent")
    assert paused.retry_in is not None
    assert paused.retry_in >= 600
    assert world.entry(body) == {}
    assert world.blip.look_ups == [PHONE]

    sandbox.bot_states.resume("default")
    assert outcome(sandbox.deliver(body)[0]) == "sent"
    assert world.entry(body)["attempts"] == 1


def test_bot_paused_during_a_batch_sends_nothing_more(world: World) -> None:
    sandbox = world.sandbox()
    world.blip.before_look_up = lambda _: sandbox.bot_states.pause("default")
    body = a_request()

    (result,) = sandbox.deliver(body)

    assert outcome(result) == "paused"
    assert world.blip.sent == []
    assert world.entry(body)["status"] == "retrying"


def test_one_notification_that_fails_five_times_stops_no_bot(world: World) -> None:
    fail(world, "before_send", lambda: Transient("nothing"))
    body = a_request()
    for _ in range(6):
        (result,) = world.sandbox().deliver(body)
        assert outcome(result) == "retrying"


def test_answer_in_between_resets_the_count_of_failures(world: World) -> None:
    for _ in range(3):
        fail(world, "before_send", lambda: Transient("nothing"))
        for _ in range(4):
            assert outcome(world.sandbox().deliver(a_request())[0]) == "retrying"
        fix(world)
        assert outcome(world.sandbox().deliver(a_request())[0]) == "sent"
    assert world.blip.pings == 0


# --- Answers that count ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "answer"),
    [
        ("before_look_up", Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61)),
        ("before_send", Rejected(Reason.REJECTED, "no", code=21)),
    ],
)
def test_refusal_counts_as_an_answer(world: World, stage: str, answer: Failure) -> None:
    world.identities_table.items["bot:default"] = {"failing": {"a", "b", "c", "d"}}
    fail(world, stage, lambda: answer)

    world.sandbox().deliver(a_request())

    assert "failing" not in world.identities_table.get("bot:default")


def test_cached_not_a_phone_number_does_not_count_as_an_answer(world: World) -> None:
    fail(world, "before_look_up", lambda: Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61))
    world.sandbox().deliver(a_request())
    world.identities_table.items["bot:default"] = {"failing": {"a", "b", "c", "d"}}

    world.sandbox().deliver(a_request())

    assert len(world.identities_table.get("bot:default")["failing"]) == 4


def test_crash_does_not_discard_the_answer_of_another_notification(world: World) -> None:
    world.identities_table.items["bot:default"] = {"failing": {"a", "b", "c", "d"}}
    world.blip.before_send = raises(RuntimeError("nobody foresaw it"))

    results = world.sandbox().deliver(a_request(), a_request(to=OTHER_PHONE))

    assert list(map(outcome, results)) == ["crashed", "sent"]
    assert "failing" not in world.identities_table.get("bot:default")


# --- The probe ------------------------------------------------------------------------------------


def test_throttled_probe_starts_a_cooldown_in_every_sandbox(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.bot_states.open_breaker("default", "no answer")
    world.blip.before_ping = always(lambda: Throttled("too fast", retry_after_seconds=90))

    (result,) = sandbox.deliver(a_request())

    assert (outcome(result), world.blip.sent) == ("cooling_down", [])
    assert list(sandbox.bot_states.state("default").shares) == ["commands"]
    for _ in range(3):
        world.clock.advance(28)
        sandbox.deliver(a_request())
    assert world.blip.pings == 1


@pytest.mark.parametrize(("seconds", "pings"), [(11.9, 0), (12.1, 1)])
def test_probe_that_could_not_end_in_time_is_not_started(
    world: World, seconds: float, pings: int
) -> None:
    world.identities_table.items["bot:default"] = {"broken": "no answer"}
    world.blip.before_ping = always(lambda: Transient("busy"))

    results = world.sandbox().deliver(a_request(), a_request(to=OTHER_PHONE), seconds=seconds)

    assert world.blip.pings == pings
    if not pings:  # another sandbox can try at once
        ends = [(outcome(result), result.retry_in) for result in results]
        assert ends == [("retry_later", 0)] * 2


def test_probe_of_another_sandbox_holds_the_bot(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox = world.sandbox()
    sandbox.bot_states.open_breaker("default", "no answer")
    assert sandbox.bot_states.probe("default")

    (result,) = sandbox.deliver(a_request())

    assert (outcome(result), world.blip.pings) == ("breaker_open", 0)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_bot_is_probed_and_sends_at_the_moment_in_which_its_cooldown_ends(world: World) -> None:
    ends_at = round(world.clock.now() * 1000)
    for broken in ({"broken": "no answer"}, {}):
        world.identities_table.items["bot:default"] = {"throttled_until": ends_at} | broken

        assert outcome(world.sandbox().deliver(a_request(to=OTHER_PHONE))[0]) == "sent"


# --- A wrong bot, or a wrong notification ---------------------------------------------------------


def refuse(world: World, *phones: str, failure: Callable[[], Failure] | None = None) -> None:
    """Refuse the messages to these as though the bot were misconfigured."""
    addresses = {identity_of(phone) for phone in phones}

    def strike(_: Bot) -> None:
        if world.blip.sent[-1].identity in addresses:
            raise failure() if failure else Misconfigured("HTTP 403", code=403)

    world.blip.before_send = strike


def test_notification_refused_while_the_bot_answers_costs_an_attempt(
    world: World,
) -> None:
    refuse(world, PHONE)
    bad, good = a_request(), a_request(to=OTHER_PHONE)

    refused, sent = world.sandbox().deliver(bad, good)

    assert (outcome(refused), outcome(sent)) == ("refused", "sent")
    assert (world.blip.pings, world.entry(bad)["attempts"]) == (1, 1)
    assert "broken" not in world.identities_table.get("bot:default")


def test_notification_that_is_always_refused_becomes_a_dead_letter(world: World) -> None:
    refuse(world, PHONE)
    body = a_request()

    for _ in range(19):
        world.sandbox().deliver(body)
        world.clock.advance(900)
    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.RETRIES_EXHAUSTED
    assert "broken" not in world.identities_table.get("bot:default")
    assert world.dead_letters.letters[0].failure["code"] == 403


def test_five_different_refusals_in_a_row_open_the_breaker(world: World) -> None:
    """A bot without a WhatsApp channel answers pings, and no request can succeed."""
    fail(world, "before_look_up", lambda: Misconfigured("81 twice", code=81))
    phones = [f"+55119888877{number:02}" for number in range(5)]

    for phone in phones[:4]:
        world.sandbox().deliver(a_request(to=phone))
    assert "broken" not in world.identities_table.get("bot:default")
    world.sandbox().deliver(a_request(to=phones[4]))

    assert "broken" in world.identities_table.get("bot:default")


def test_later_refusals_of_the_same_notifications_do_not_open_the_breaker(world: World) -> None:
    bodies = [a_request(to=f"+55119888877{number:02}") for number in range(8)]
    refuse(world, *(body["to"] for body in bodies))
    for body in bodies:
        world.sandbox().deliver(body)
        world.sandbox().deliver(a_request(to=OTHER_PHONE))

    for _ in range(3):
        world.clock.advance(900)
        results = world.sandbox().deliver(*bodies)
        assert list(map(outcome, results)) == ["refused"] * 8

    assert "broken" not in world.identities_table.get("bot:default")


def test_refused_probe_costs_no_attempt_and_leaves_the_breaker_open(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.bot_states.open_breaker("default", "no answer")
    refuse(world, PHONE)
    world.know(PHONE)
    body = a_request()

    (result,) = sandbox.deliver(body)

    assert outcome(result) == "misconfigured"
    assert world.entry(body)["attempts"] == 0
    assert "broken" in world.identities_table.get("bot:default")


@pytest.mark.parametrize(
    ("age", "worked_before", "attempts"),
    [
        (DAY + 1, DAY - 1, 1),
        (DAY, DAY - 1, 0),
        (DAY + 1, DAY, 0),
        (DAY + 1, None, 0),
    ],
)
def test_refused_probe_costs_an_old_notification_of_a_working_bot_an_attempt(
    world: World,
    caplog: pytest.LogCaptureFixture,
    age: float,
    worked_before: float | None,
    attempts: int,
) -> None:
    """Where only such notifications are left, nothing else would end them."""
    sandbox = world.sandbox()
    published_at = world.clock.now() - age
    if worked_before is not None:
        for worked_at in (published_at - 3 * DAY, published_at - worked_before):
            sandbox.bot_states.keep_control("default", Control("a message", worked_at), worked_at)
    sandbox.bot_states.open_breaker("default", "no answer")
    world.know(PHONE)
    refuse(world, PHONE)
    body = a_request()

    (result,) = sandbox.deliver(world.queued(body, age=age))

    assert outcome(result) == ("refused" if attempts else "misconfigured")
    assert world.entry(body)["attempts"] == attempts
    assert "broken" in world.identities_table.get("bot:default")
    assert "the breaker is open" not in caplog.messages  # it was before, and nothing is counted


def test_refusals_of_one_batch_cause_one_ping(world: World) -> None:
    phones = [f"+55119888877{number:02}" for number in range(6)]
    refuse(world, *phones)

    results = world.sandbox().deliver(*(a_request(to=phone) for phone in phones))

    assert {outcome(result) for result in results} == {"refused"}
    assert world.blip.pings == 1


def test_ping_after_a_refusal_says_nothing_of_another_bot(world: World) -> None:
    world.bots["clinic"] = {"key": OTHER_KEY}
    world.blip.before_send = always(lambda: Misconfigured("HTTP 403", code=403))
    world.blip.before_ping = wrong_key

    results = world.sandbox().deliver(a_request(), a_request(bot="clinic"))

    assert list(map(outcome, results)) == ["misconfigured", "refused"]


def test_throttled_ping_after_a_refusal_starts_a_cooldown(world: World) -> None:
    """401 with LIME's 34 says both."""
    refuse(world, PHONE)
    world.blip.before_ping = always(lambda: Throttled("too fast"))
    body = a_request()

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "throttled"
    assert world.entry(body)["attempts"] == 0
    assert list(world.sandbox().bot_states.state("default").shares) == ["commands"]


def test_refusal_with_too_little_time_for_a_ping_returns_at_once(world: World) -> None:
    world.know(PHONE)
    refuse(world, PHONE)
    body = a_request()

    def slowly(_: Bot) -> None:
        world.clock.advance(5)
        raise Misconfigured("HTTP 403", code=403)

    world.blip.before_send = slowly
    (result,) = world.sandbox().deliver(body, seconds=14)

    assert (outcome(result), world.blip.pings) == ("retry_later", 0)
    assert world.entry(body)["attempts"] == 0


# --- The share of the plan ------------------------------------------------------------------------


def test_only_the_first_throttling_of_a_cooldown_lowers_the_share(
    world: World,
) -> None:
    sandbox = world.sandbox()
    world.blip.before_send = always(lambda: Throttled("too fast"))

    sandbox.deliver(a_request())
    first = world.identities_table.get("bot:default")
    sandbox.bot_states.start_cooldown(
        Bot(name="default", key=KEY), "messages", world.clock.now() + 130
    )
    second = world.identities_table.get("bot:default")

    assert first["messages_share"] == second["messages_share"] == 720_000
    assert second["throttled_until"] > first["throttled_until"]
    assert "commands_share" not in first
    assert world.meter.counts["cooldown_began"] == 1


def test_throttled_look_up_lowers_the_share_of_the_commands_plan(world: World) -> None:
    world.blip.before_look_up = always(lambda: Throttled("too fast"))

    world.sandbox().deliver(a_request())

    item = world.identities_table.get("bot:default")
    assert item["commands_share"] == 720_000
    assert "messages_share" not in item


def test_share_never_falls_below_a_tenth_and_grows_from_its_last_value(world: World) -> None:
    bot_states, bot = world.sandbox().bot_states, Bot(name="default", key=KEY)
    shares = []
    for _ in range(15):
        bot_states.start_cooldown(bot, "messages", world.clock.now() + 120)
        shares.append(bot_states.state("default").share("messages", bot.share, world.clock.now()))
        world.clock.advance(121)

    assert shares[1] == pytest.approx(0.8 * (0.72 + 0.02 * 121 / 3600))
    assert min(shares) == shares[-1] == 0.1
    world.clock.advance(3600)
    assert bot_states.state("default").share("messages", bot.share, world.clock.now()) > 0.12


def test_slots_are_spaced_by_the_current_share(world: World) -> None:
    world.know(PHONE)
    world.know(OTHER_PHONE)
    now = round(1000 * world.clock.now())
    world.bots["default"]["messages_per_second"] = 2
    world.identities_table.items["bot:default"] = {
        "messages_share": 500_000,
        "messages_share_at": now,
    }

    world.sandbox().deliver(a_request(), a_request(to=OTHER_PHONE))

    first, second = world.blip.sent
    assert second.at - first.at == pytest.approx(1)
    assert world.meter.times["share_of_plan"] == [pytest.approx(0.5, abs=1e-3)]
