"""The story of one notification, on simulated tables and a clock that stands still."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError
from hypothesis import given, settings
from hypothesis import strategies as st

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
from notifier.use_cases.send_notification.outcomes import Outcome
from tests.support.adapters import WholeLedger
from tests.support.blip import identity_of, raises
from tests.support.builders import KEY, MARIA, OTHER_KEY, PHONE, a_request
from tests.support.world import Sandbox, World
from tests.unit.use_cases.send_notification.helpers import (
    DAY,
    OTHER_PHONE,
    Request,
    ends,
    key_of,
    outcome,
    rejected,
)

# --- Sent -----------------------------------------------------------------------------------------


def test_known_recipient_is_sent_to_at_once(world: World) -> None:
    world.know(PHONE)
    body = a_request()

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "sent"
    assert result.retry_in is None
    (sent,) = world.blip.sent
    assert sent.message_id == key_of(body)
    assert sent.identity == identity_of(PHONE)
    assert sent.template.body == [MARIA, "981"]
    assert sent.bot.namespace == "ns"
    assert world.blip.look_ups == []
    assert world.entry(body)["status"] == "sent"
    assert ends(world) == []


def test_known_recipient_costs_two_ledger_writes(world: World) -> None:
    """One for the claim, which starts the send, and one for the result; a look-up costs a third."""
    world.know(PHONE)

    world.sandbox().deliver(a_request())
    assert world.ledger_table.writes == 2

    world.sandbox().deliver(a_request(to=OTHER_PHONE))
    assert world.ledger_table.writes == 5


@pytest.mark.parametrize(("receipts", "asked_for"), [("history", True), ("webhook", False)])
def test_sent_notification_is_polled_if_no_receipt_arrives(
    world: World, receipts: str, *, asked_for: bool
) -> None:
    world.bots["default"]["receipts"] = receipts
    body = a_request()

    world.sandbox().deliver(body)

    expected = round(1000 * (world.clock.now() + 300)) if asked_for else None
    assert world.entry(body).get("poll_at") == expected


def test_sent_notification_is_published(world: World) -> None:
    body = a_request(metadata={"order": "981"})

    world.sandbox().deliver(body)

    (event,) = world.events.published
    assert (event.notification_id, event.bot) == (body["id"], "default")
    assert (event.status, event.generation) == (Status.SENT, 1)
    assert event.metadata == {"order": "981"}


def test_correlation_id_of_the_producer_is_in_logs_and_events(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.sandbox().deliver(
        a_request(correlation_id="checkout-1"),
        a_request(correlation_id="checkout-2", id="order-1", extra="a typo"),
    )

    published = {event.status.value: event.correlation_id for event in world.events.published}
    assert published == {"sent": "checkout-1", "rejected": "checkout-2"}
    logged = {vars(record).get("correlation_id") for record in caplog.records}
    assert logged == {"checkout-1", "checkout-2"}


def test_durations_of_a_notification_are_measured_separately(world: World) -> None:
    world.blip.call_seconds = 0.25
    waited = world.queued(a_request(), age=40)

    world.sandbox().deliver(waited)

    assert world.meter.times["published_to_claimed"] == [pytest.approx(40)]
    assert world.meter.times["claimed_to_sent"] == [pytest.approx(0.5)]


def test_only_the_first_attempt_measures_the_time_on_the_queue(world: World) -> None:
    world.blip.before_send = raises(Transient("nothing"))
    body = a_request()

    for _ in range(2):
        world.sandbox().deliver(body)

    assert len(world.meter.times["published_to_claimed"]) == 1
    assert len(world.meter.times["claimed_to_sent"]) == 1


def test_claim_precedes_the_look_up_and_the_ledger_precedes_the_send(
    world: World,
) -> None:
    body, seen = a_request(), []
    world.blip.before_look_up = lambda _: seen.append(world.entry(body)["status"])
    world.blip.before_send = lambda _: seen.append(world.entry(body)["status"])

    world.sandbox().deliver(body)

    assert seen == ["claimed", "sending"]


def test_every_bot_sends_with_its_own_key(world: World) -> None:
    world.bots = {"default": {"key": KEY}, "clinic": {"key": OTHER_KEY, "namespace": "clinic"}}
    one, other = a_request(), a_request(bot="clinic")

    world.sandbox().deliver(one, other)

    keys = {sent.message_id: (sent.bot.key, sent.bot.namespace) for sent in world.blip.sent}
    assert keys == {key_of(one): (KEY, None), key_of(other): (OTHER_KEY, "clinic")}
    # A number is known per bot.
    assert world.blip.look_ups == [PHONE, PHONE]


# --- Sent once ------------------------------------------------------------------------------------


def test_repeated_request_is_a_duplicate(world: World) -> None:
    body = a_request()
    world.sandbox().deliver(body)

    (result,) = world.sandbox().deliver(body)

    assert (outcome(result), result.retry_in) == ("duplicate", None)
    assert len(world.blip.sent) == 1


def test_same_request_five_times_in_one_batch_is_sent_once(world: World) -> None:
    body = a_request()

    results = world.sandbox().deliver(*[body] * 5)

    assert sorted(map(outcome, results)) == ["duplicate"] * 4 + ["sent"]
    assert len(world.blip.sent) == 1


def test_same_json_in_another_order_is_the_same_request(world: World) -> None:
    body = a_request()
    reordered = dict(reversed(body.items()))

    results = world.sandbox().deliver(body, reordered)

    assert sorted(map(outcome, results)) == ["duplicate", "sent"]


def test_request_claimed_by_another_sandbox_returns_when_its_lease_ends(world: World) -> None:
    body, found = a_request(), []

    def meanwhile(_: Bot) -> None:
        found.extend(world.sandbox().deliver(body))

    world.blip.before_look_up = meanwhile
    world.sandbox(uniform=min).deliver(body, seconds=30)

    (result,) = found
    assert outcome(result) == "retry_later"
    assert result.retry_in == pytest.approx(30, abs=3)
    assert len(world.blip.sent) == 1
    assert world.entry(body)["attempts"] == 1


def test_other_content_under_the_same_id_is_a_dead_letter_and_the_first_is_sent(
    world: World,
) -> None:
    body = a_request()
    world.sandbox().deliver(body)
    other = body | {"to": OTHER_PHONE}
    before = world.entry(body)

    (result,) = world.sandbox().deliver(other)

    assert (outcome(result), result.reason) == ("dead_letter", Reason.ID_CONFLICT)
    (letter,) = world.dead_letters.letters
    assert '"+5511988887777"' in letter.body
    assert (letter.reason, letter.bot, letter.notification_id, letter.generation) == (
        Reason.ID_CONFLICT,
        "default",
        body["id"],
        None,
    )
    assert world.entry(body) == before
    assert len(world.blip.sent) == 1


def test_conflict_within_one_batch_sends_one_and_dead_letters_the_other(world: World) -> None:
    body = a_request()

    first, second = world.sandbox().deliver(body, body | {"to": OTHER_PHONE})

    assert (outcome(first), outcome(second)) == ("sent", "dead_letter")
    assert world.blip.look_ups == [PHONE]


def test_redrive_is_sent_as_the_next_generation(world: World) -> None:
    body = a_request()
    rejected(world, body)

    (result,) = world.sandbox().deliver(world.queued(body, generation=1))

    assert outcome(result) == "sent"
    assert world.blip.taken[0].message_id == f"{key_of(body)}:2"
    entry = world.entry(body)
    assert (entry["status"], entry["generation"]) == ("sent", 2)


def test_redrive_may_have_other_content(world: World) -> None:
    body = a_request()
    rejected(world, body)

    (result,) = world.sandbox().deliver(world.queued(body | {"to": OTHER_PHONE}, generation=1))

    assert outcome(result) == "sent"
    assert world.blip.taken[0].identity == identity_of(OTHER_PHONE)


def test_failed_request_that_is_only_repeated_is_not_sent(world: World) -> None:
    body = a_request()
    rejected(world, body)

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "duplicate"
    assert world.blip.taken == []
    assert len(ends(world)) == 1


def test_two_redrives_of_one_failure_are_one_send(world: World) -> None:
    body = a_request()
    rejected(world, body)
    redriven = world.queued(body, generation=1)

    results = world.sandbox().deliver(redriven, world.queued(body, generation=1))

    assert sorted(map(outcome, results)) == ["duplicate", "sent"]


def test_claim_lost_between_look_up_and_send_sends_nothing(world: World) -> None:
    """A sandbox that was frozen for a minute, and another that went on meanwhile."""
    body = a_request()
    slow = world.sandbox()

    def freeze(_: Bot) -> None:
        world.blip.before_look_up = lambda _: None
        world.clock.advance(60)
        (meanwhile,) = world.sandbox().deliver(body)
        assert outcome(meanwhile) == "sent"

    world.blip.before_look_up = freeze
    (result,) = slow.deliver(body)

    assert outcome(result) == "retry_later"
    assert len(world.blip.sent) == 1
    assert world.entry(body)["status"] == "sent"


# --- Cancelled or erased --------------------------------------------------------------------------


def cancelled(world: World, body: Request) -> None:
    WholeLedger(world.ledger_table, world.clock.now).cancel(body.get("bot", "default"), body["id"])


@pytest.mark.parametrize(
    ("changes", "generation", "age"),
    [
        ({}, None, 0),
        ({}, 1, 0),
        ({}, 0, 0),
        ({"to": OTHER_PHONE}, None, 0),
        ({"to": OTHER_PHONE}, 1, 0),
        ({"valid_until": "2020-01-01T00:00:00Z"}, None, 0),
        ({}, None, 8 * DAY),
    ],
)
@pytest.mark.parametrize("in_advance", [True, False])
def test_cancelled_request_is_acknowledged_in_every_form(
    world: World, changes: Request, generation: int | None, age: float, in_advance: bool
) -> None:
    body = a_request(metadata={"order": "981"})
    sandbox = world.sandbox()
    if not in_advance:
        world.blip.before_send = raises(Transient("503"))
        sandbox.deliver(body)
    cancelled(world, body)
    before = world.entry(body)
    assert len(world.events.published) == (not in_advance)

    for _ in range(2):
        again = world.queued(body | changes, generation=generation, age=age)
        (result,) = sandbox.deliver(again)
        assert (result.outcome, result.retry_in) == (Outcome.CANCELLED, None)

    # The cancellation is published once, however often its request arrives.
    (event,) = world.events.published
    assert (event.status, event.reason) == (Status.CANCELLED, None)
    assert event.metadata == {"order": "981"}
    what_its_event_needs = {"template": "order_shipped", "correlation_id": None}
    assert world.entry(body) == before | {"metadata": {"order": "981"}} | (
        what_its_event_needs if in_advance else {}
    )
    assert world.blip.taken == []
    assert world.dead_letters.letters == []


def test_cancelled_request_of_an_unknown_bot_is_acknowledged(world: World) -> None:
    body = a_request(bot="nobody")
    cancelled(world, body)

    (result,) = world.sandbox().deliver(body)

    assert result.outcome is Outcome.CANCELLED
    assert world.dead_letters.letters == []


def test_erased_notification_is_never_published(world: World) -> None:
    body = a_request()
    key = key_of(body)
    world.ledger_table.items[key] = {
        "key": key,
        "status": "cancelled",
        "generation": 1,
        "updated_at": 0,
        "expires_at": round(world.clock.now()) + DAY,
        "forgotten": True,
    }

    before = world.entry(body)

    (result,) = world.sandbox().deliver(body)

    assert (result.outcome, result.retry_in) == (Outcome.CANCELLED, None)
    assert world.entry(body) == before
    assert world.ledger_table.writes == 1  # the claim, which did not hold
    assert world.events.published == []
    assert world.blip.look_ups == []


# --- AWS fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_unsent_request_is_not_left_as_possibly_sent(
    world: World, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    if known:
        world.know(PHONE)
    sandbox, body = world.sandbox(), a_request()

    def fail_to_reserve(*_: Any, **__: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(sandbox.delivery, "_reserve", fail_to_reserve)
    (result,) = sandbox.deliver(body)

    assert outcome(result) == "crashed"
    item = world.entry(body)
    assert (item["status"], item["attempts"]) == ("retrying", 0)


def test_possibly_sent_request_stays_so_if_its_answer_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, body = world.sandbox(), a_request()

    def fail_to_settle(*_: Any, **__: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(sandbox.ledger, "mark_sent", fail_to_settle)
    (result,) = sandbox.deliver(body)

    assert (outcome(result), world.entry(body)["status"]) == ("crashed", "sending")


@pytest.mark.parametrize("failure", [Transient("busy"), Throttled("slowly")], ids=type)
def test_unsent_request_is_released_if_the_ledger_fails_once(
    world: World, monkeypatch: pytest.MonkeyPatch, failure: Failure
) -> None:
    world.know(PHONE)
    sandbox, body = world.sandbox(), a_request()
    world.blip.before_send = raises(failure)

    def fail_to_release(*_: Any, **__: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(sandbox.ledger, "release", fail_to_release)
    (result,) = sandbox.deliver(body)

    assert (outcome(result), world.entry(body)["status"]) == ("crashed", "retrying")


def unwritten(caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """Return the bot and the error of the only log line about a bot's item."""
    message = "the bot's item was not written"
    (record,) = [record for record in caplog.records if record.getMessage() == message]
    return record.__dict__["bot"], record.__dict__["error"]


@pytest.mark.parametrize(("method", "then"), [("missing", "misconfigured"), ("failed", "retrying")])
def test_request_waits_even_if_the_bot_s_item_cannot_be_written(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    then: str,
) -> None:
    world.identities_table.items["bot:default"] = {}
    world.blip.before_send = raises(Transient("busy"))
    if method == "missing":
        world.bots = {}
    sandbox = world.sandbox()

    def fail_to_write(*_: Any) -> None:
        raise ReadTimeoutError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(sandbox.bot_states, method, fail_to_write)
    (result,) = sandbox.deliver(a_request())

    assert outcome(result) == then
    assert unwritten(caplog) == ("default", "ReadTimeoutError")


@pytest.mark.parametrize(
    ("method", "item"),
    [
        ("keep_control", {}),
        ("answered", {"failing": {"a"}}),
        ("found", {"missing_since": 1_799_999_000_000}),
        ("close_breaker", {"broken": "no answer"}),
    ],
)
def test_sent_request_is_acknowledged_even_if_the_bot_s_item_cannot_be_written(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    item: dict[str, Any],
) -> None:
    world.identities_table.items["bot:default"] = item
    sandbox = world.sandbox()

    def fail_to_write(*_: Any, **__: Any) -> None:
        raise ReadTimeoutError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(sandbox.bot_states, method, fail_to_write)
    (result,) = sandbox.deliver(a_request())

    assert (outcome(result), result.retry_in) == ("sent", None)
    assert len(world.events.published) == 1
    assert unwritten(caplog) == ("default", "ReadTimeoutError")


@pytest.mark.parametrize("failures", [1, 3])
def test_claim_with_a_lost_answer_is_released(
    world: World, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    world.know(PHONE)
    sandbox, body = world.sandbox(), a_request()
    update, left = world.ledger_table.update, [True] + [False] * (failures - 1)

    def lose_answers(*args: Any) -> Any:
        if not left:
            return update(*args)
        if left.pop(0):
            update(*args)
        raise ReadTimeoutError(endpoint_url="https://aws.invalid")

    monkeypatch.setattr(world.ledger_table, "update", lose_answers)
    (result,) = sandbox.deliver(body)

    assert outcome(result) == "crashed"
    assert (world.entry(body)["status"], world.entry(body)["attempts"]) == ("retrying", 0)


# --- Crashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "method"),
    [("ledger", "claim"), ("identities", "lease"), ("ledger", "start_sending")],
)
def test_crash_before_the_send_affects_one_record_and_loses_nothing(
    world: World, part: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [a_request(to=f"+55119888877{n:02}") for n in range(3)]
    sandbox = world.sandbox()
    adapter = getattr(sandbox, part)
    original, calls = getattr(adapter, method), []

    def crash(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError(f"about {PHONE} and {MARIA}")
        return original(*args, **kwargs)

    monkeypatch.setattr(adapter, method, crash)
    # The log of a crash shows what was raised. What the adapters raise holds nothing personal.
    monkeypatch.setattr(
        "notifier.use_cases.send_notification.batch.logger.error", lambda *_, **__: None
    )
    results = sandbox.deliver(*bodies)

    assert list(map(outcome, results)) == ["sent", "crashed", "sent"]
    wait = results[1].retry_in
    assert wait is not None
    assert 30 <= wait <= 60
    world.clock.advance(wait)
    assert outcome(world.sandbox().deliver(bodies[1])[0]) == "sent"
    assert len(world.blip.sent) == 3


def test_repeated_request_is_not_published_again(world: World) -> None:
    body = a_request()
    world.sandbox().deliver(body)
    for receive_count in (1, 2):
        (result,) = world.sandbox().deliver(world.queued(body, receive_count=receive_count))
        assert (outcome(result), result.retry_in) == ("duplicate", None)

    assert [(event.notification_id, event.status) for event in world.events.published] == [
        (body["id"], Status.SENT)
    ]
    assert len(world.blip.sent) == 1


# --- Everything at once ---------------------------------------------------------------------------


class Mishap:
    """One call to BLiP: what it raises, and whether the message went out nevertheless."""

    def __init__(self, failure: Callable[[], Exception] | None, *, taken: bool) -> None:
        self.failure = failure
        self.taken = taken


MISHAPS = {
    "fine": Mishap(None, taken=True),
    "busy": Mishap(lambda: Transient("busy"), taken=False),
    "no answer, taken": Mishap(lambda: Unknown("no answer"), taken=True),
    "no answer, lost": Mishap(lambda: Unknown("no answer"), taken=False),
    "throttled": Mishap(lambda: Throttled("slowly"), taken=False),
    "wrong key": Mishap(lambda: Misconfigured("wrong key"), taken=False),
    "refused": Mishap(lambda: Rejected(Reason.REJECTED, "no"), taken=False),
    "crash, taken": Mishap(lambda: RuntimeError("gone"), taken=True),
    "crash, lost": Mishap(lambda: RuntimeError("gone"), taken=False),
}


@settings(max_examples=150, deadline=None)
@given(
    sends=st.lists(st.sampled_from(sorted(MISHAPS)), max_size=8),
    look_ups=st.lists(
        st.sampled_from(["fine", "busy", "throttled", "wrong key", "crash, lost"]), max_size=4
    ),
    early=st.lists(st.booleans(), max_size=10),
    if_unknown=st.sampled_from(["resend", "fail"]),
)
def test_any_mishap_ends_in_one_send_or_one_dead_letter(
    sends: list[str], look_ups: list[str], early: list[bool], if_unknown: str
) -> None:
    """BLiP's history is correct, so that no second send is needed."""
    world = World()
    body = a_request(if_unknown=if_unknown)
    arrived: list[str] = []

    def send(_: Bot) -> None:
        mishap = MISHAPS[sends.pop(0) if sends else "fine"]
        if mishap.taken:
            message_id = world.blip.sent[-1].message_id
            arrived.append(message_id)
            world.blip.stored[message_id] = [Receipt(key_of(body), 1, Status.ACCEPTED)]
        if mishap.failure:
            raise mishap.failure()

    def look_up(_: Bot) -> None:
        if (mishap := MISHAPS[look_ups.pop(0) if look_ups else "fine"]).failure:
            raise mishap.failure()

    world.blip.before_send, world.blip.before_look_up = send, look_up
    done = False
    for _ in range(60):
        (result,) = world.sandbox().deliver(body)
        if result.retry_in is None:
            done = True
            break
        # SQS delivers again when the visibility ends; or, occasionally, earlier.
        world.clock.advance(result.retry_in / (3 if early and early.pop() else 1) + 0.001)

    assert done
    assert len(arrived) <= 1
    assert bool(arrived) or len(world.dead_letters.letters) == 1
    final = world.entry(body)["status"]
    assert final in ({"sent", "accepted"} if arrived else {"failed", "rejected"})

    world.identities_table.items.pop("bot:default", None)  # its breaker may still be open
    (result,) = world.sandbox().deliver(body)
    assert result.outcome is Outcome.DUPLICATE
    assert len(arrived) <= 1


def test_sandboxes_share_the_world_and_nothing_else(world: World) -> None:
    """Two of them share the world and nothing else."""
    one, other = world.sandbox(), world.sandbox()
    one.deliver(a_request())

    assert isinstance(one, Sandbox)
    assert other.secrets_manager.fetches == 0
    assert other.identities.get(("default", PHONE)) is not None
