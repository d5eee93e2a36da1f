"""Dead letters, logs and status events of each outcome, word for word."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
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
from notifier.domain.notification import QueuedRequest, ledger_key
from notifier.domain.receipts import Receipt
from notifier.domain.status import Status
from notifier.domain.status_events import StatusEvent
from notifier.use_cases.send_notification.outcomes import Outcome
from tests.support.blip import always, raises
from tests.support.builders import a_request
from tests.support.world import World

type Request = dict[str, Any]

NOW = 1_800_000_000.0
WINDOW = 900
REQUEST: Request = a_request(id="order-1", metadata={"order": "981"}, correlation_id="trace-1")
KEY = ledger_key("default", "order-1")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "notifier")


def deliver(world: World, body: str | Request = REQUEST, **how: Any) -> None:
    world.sandbox().deliver(world.queued(body, **how))


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def logged(caplog: pytest.LogCaptureFixture, message: str) -> dict[str, Any]:
    """Return the facts of the only log line with this message."""
    (record,) = [record for record in caplog.records if record.getMessage() == message]
    ordinary = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}
    return {name: fact for name, fact in vars(record).items() if name not in ordinary}


def to_the_millisecond(world: World) -> Any:
    """Return the current time with the ledger's precision."""
    return pytest.approx(world.clock.now(), abs=0.001)


def an_event(status: Status, reason: Reason | None = None, **changes: Any) -> StatusEvent:
    facts: dict[str, Any] = {
        "key": KEY,
        "notification_id": "order-1",
        "bot": "default",
        "status": status,
        "generation": 1,
        "time": NOW,
        "reason": reason,
        "metadata": {"order": "981"},
        "correlation_id": "trace-1",
    }
    return StatusEvent(**facts | changes)


# --- Dead letters and the events that go with them ------------------------------------------------


def redriven(world: World, body: str | Request, redrives: int) -> QueuedRequest:
    queued = world.queued(body)
    return QueuedRequest(
        queued.record_id,
        queued.receipt_handle,
        queued.body,
        queued.published_at,
        redrives=redrives,
    )


def test_invalid_request_is_dead_lettered_published_and_logged_with_its_details(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"id": "order-1", "to": "+55", "template": {"name": "order_shipped", "language": "pt"}}
    queued = redriven(world, body, 2)

    (result,) = world.sandbox().deliver(queued)

    assert result.reason is Reason.INVALID
    (letter,) = world.dead_letters.letters
    assert (letter.bot, letter.notification_id, letter.generation) == (
        "default",
        "order-1",
        None,
    )
    detail = letter.failure.pop("detail")
    assert "to" in detail
    (field,) = letter.failure.pop("fields")
    assert field.keys() == {"field", "problem"}
    assert (field["field"], bool(field["problem"])) == ("to", True)
    assert letter.failure == {
        "template": "order_shipped",
        "phase": "contract",
        "attempts": 0,
        "possibly_sent": False,
        "redrives": 2,
    }
    event = an_event(
        Status.REJECTED, Reason.INVALID, generation=0, metadata={}, correlation_id=None
    )
    assert world.events.published == [event]
    assert logged(caplog, "dead letter") == {
        "reason": "invalid",
        "notification_id": "order-1",
        "bot": "default",
        "record_id": queued.record_id,
        "correlation_id": None,
        "detail": detail,
    }


def test_invalid_request_of_another_bot_names_that_bot(world: World) -> None:
    deliver(world, {"id": "order-1", "bot": "clinic"})

    assert world.dead_letters.letters[0].bot == "clinic"
    (event,) = world.events.published
    assert (event.bot, event.key) == ("clinic", ledger_key("clinic", "order-1"))


def test_invalid_request_with_an_invalid_bot_is_published_for_the_default_bot(world: World) -> None:
    deliver(world, {"id": "order-1", "bot": 5})

    assert world.dead_letters.letters[0].bot is None
    (event,) = world.events.published
    assert (event.bot, event.key) == ("default", KEY)


def test_body_that_is_not_json_is_not_published(world: World) -> None:
    world.sandbox().deliver("not JSON")

    assert world.events.published == []
    assert world.ledger_table.items == {}


def test_conflict_is_dead_lettered_and_published_with_its_details(world: World) -> None:
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no", code=21))
    deliver(world)
    deliver(world, generation=1)  # so that it is at its second generation
    world.events.published.clear()

    deliver(world, REQUEST | {"metadata": {"order": "982"}})

    letter = world.dead_letters.letters[-1]
    assert letter.generation is None
    assert letter.failure == {
        "detail": (
            "another request with other content has this id: use a new id for other content"
        ),
        "template": "order_shipped",
        "phase": "claim",
        "attempts": 0,
        "possibly_sent": False,
        "redrives": 0,
    }
    assert world.events.published == [
        an_event(
            Status.REJECTED,
            Reason.ID_CONFLICT,
            generation=0,
            metadata={"order": "982"},
            time=to_the_millisecond(world),
        )
    ]


@pytest.mark.parametrize("known", [True, False])
def test_expired_request_that_was_never_tried_has_no_attempts(world: World, *, known: bool) -> None:
    """It counts as no attempt, in the dead letter and in the ledger."""
    if known:
        world.know(REQUEST["to"])
    body = REQUEST | {"valid_until": at(NOW)}

    deliver(world, body)

    (letter,) = world.dead_letters.letters
    assert letter.failure == {
        "detail": f"valid until {at(NOW)}, which has passed",
        "template": "order_shipped",
        "phase": "look-up",
        "attempts": 0,
        "possibly_sent": False,
        "redrives": 0,
    }
    assert world.events.published == [an_event(Status.EXPIRED, Reason.EXPIRED)]
    assert world.entry(body)["attempts"] == 0


def test_request_that_waited_a_week_says_so(world: World) -> None:
    deliver(world, age=7 * 86_400)

    (letter,) = world.dead_letters.letters
    assert letter.failure["detail"] == "it lay on the queue for 7 days"


def test_request_older_than_the_ledger_restoration_says_so(world: World) -> None:
    world.sandbox(ledger_restored_at=NOW + 1).deliver(REQUEST)

    (letter,) = world.dead_letters.letters
    assert letter.failure["detail"] == (
        "it is older than the ledger's restoration from a backup, and may have been sent"
    )


def test_recipient_that_the_stage_does_not_allow_is_explained(world: World) -> None:
    world.sandbox(allowed_recipients=("+1",)).deliver(REQUEST)

    (letter,) = world.dead_letters.letters
    assert letter.failure["detail"] == (
        "this stack may not send to the recipient: its parameter AllowedRecipients names "
        "those that it may"
    )


def test_unknown_bot_is_explained(world: World) -> None:
    deliver(world, REQUEST | {"bot": "clinic"})

    (letter,) = world.dead_letters.letters
    assert letter.failure["detail"] == (
        "the bots' secret has no entry 'clinic': add it, or fix the request"
    )


def test_not_a_phone_number_counts_as_an_attempt(world: World) -> None:
    """The look-up was made, so it counts as an attempt."""
    world.blip.before_look_up = always(lambda: Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61))
    deliver(world)

    (letter,) = world.dead_letters.letters
    assert letter.failure == {
        "detail": "no",
        "code": 61,
        "template": "order_shipped",
        "phase": "look-up",
        "attempts": 1,
        "possibly_sent": False,
        "redrives": 0,
    }
    assert world.events.published == [an_event(Status.REJECTED, Reason.NOT_A_PHONE_NUMBER)]
    assert world.entry(REQUEST)["attempts"] == 1


def test_cached_not_a_phone_number_is_explained(world: World) -> None:
    world.blip.before_look_up = always(lambda: Rejected(Reason.NOT_A_PHONE_NUMBER, "no", code=61))
    sandbox = world.sandbox()
    sandbox.deliver(a_request())

    sandbox.deliver(REQUEST)

    letter = world.dead_letters.letters[-1]
    assert (letter.failure["detail"], letter.failure["code"]) == (
        "BLiP's look-up says that the recipient is not a phone number on WhatsApp",
        61,
    )


def test_refused_message_is_dead_lettered_published_and_logged_with_its_details(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.blip.before_send = always(lambda: Rejected(Reason.REJECTED, "refused", code=21))
    world.sandbox().deliver(redriven(world, REQUEST, 3))

    (letter,) = world.dead_letters.letters
    assert (letter.bot, letter.notification_id, letter.generation) == ("default", "order-1", 1)
    assert letter.failure == {
        "detail": "refused",
        "code": 21,
        "template": "order_shipped",
        "phase": "send",
        "attempts": 1,
        "possibly_sent": False,
        "redrives": 3,
    }
    assert world.events.published == [an_event(Status.REJECTED, Reason.REJECTED)]
    entry = world.entry(REQUEST)
    assert (entry["reason"], entry["code"], entry["attempts"]) == ("rejected", 21, 1)
    assert logged(caplog, "dead_letter") == {
        "notification_id": "order-1",
        "bot": "default",
        "key": KEY,
        "reason": Reason.REJECTED,
        "correlation_id": "trace-1",
        "detail": "refused",
    }


def test_failed_redrive_has_its_own_generation(world: World) -> None:
    world.blip.before_send = always(lambda: Rejected(Reason.REJECTED, "refused", code=21))
    deliver(world)

    deliver(world, generation=1)

    assert [letter.generation for letter in world.dead_letters.letters] == [1, 2]
    time = to_the_millisecond(world)
    assert world.events.published[-1] == an_event(
        Status.REJECTED, Reason.REJECTED, generation=2, time=time
    )


def test_exhausted_attempts_name_the_last_failure(world: World) -> None:
    world.blip.before_send = always(lambda: Transient("busy", code=51))
    for _ in range(2):
        world.sandbox(max_attempts=2).deliver(REQUEST)

    (letter,) = world.dead_letters.letters
    assert letter.failure["detail"] == "2 attempts failed, the last one: busy"
    assert (letter.failure["code"], letter.failure["attempts"]) == (51, 2)


def unknown(world: World, body: Request = REQUEST) -> None:
    world.blip.before_send = raises(Unknown("no answer"))
    deliver(world, body)
    # A later message of the bot, which its history shows.
    shown = Control("shown", world.clock.now() + 3)
    world.sandbox().bot_states.keep_control("default", shown, 0)
    world.blip.stored["shown"] = [Receipt("shown", 1, Status.ACCEPTED)]
    world.clock.advance(WINDOW + 2)


def test_unknown_outcome_is_dead_lettered_as_possibly_sent(world: World) -> None:
    body = REQUEST | {"if_unknown": "fail"}
    unknown(world, body)

    deliver(world, body)

    (letter,) = world.dead_letters.letters
    assert letter.failure == {
        "detail": "it may have been sent; BLiP's history did not show it within 15 minutes",
        "template": "order_shipped",
        "phase": "settle",
        "attempts": 1,
        "possibly_sent": True,
        "redrives": 0,
    }
    (event,) = world.events.published
    assert (event.status, event.reason) == (Status.FAILED, Reason.OUTCOME_UNKNOWN)


def test_request_not_sent_before_it_expired_says_so(world: World) -> None:
    body = REQUEST | {"valid_until": at(NOW + 60)}
    unknown(world, body)

    deliver(world, body)

    (letter,) = world.dead_letters.letters
    assert letter.failure["detail"] == f"valid until {at(NOW + 60)}, never sent"
    assert letter.failure["possibly_sent"] is False


# --- Events ---------------------------------------------------------------------------------------


def test_sent_notification_is_one_event(world: World) -> None:
    deliver(world)

    assert world.events.published == [an_event(Status.SENT)]


@pytest.mark.parametrize("receipt", [None, Status.ACCEPTED, Status.CONSUMED])
def test_repeated_record_of_a_sent_notification_publishes_nothing(
    world: World, receipt: Status | None
) -> None:
    sandbox = world.sandbox()
    sandbox.deliver(REQUEST)
    if receipt is not None:
        sandbox.ledger.advance(Receipt(KEY, 1, receipt))
    published = [an_event(Status.SENT)]
    published += [an_event(receipt)] if receipt is Status.CONSUMED else []
    assert world.events.published == published

    deliver(world, receive_count=2)

    assert world.events.published == published


def test_repeated_record_of_a_failed_notification_publishes_nothing(world: World) -> None:
    world.blip.before_send = always(lambda: Rejected(Reason.REJECTED, "refused", code=21))
    deliver(world)
    world.clock.advance(1)
    deliver(world, generation=1)

    deliver(world, generation=1, receive_count=2)

    assert [(event.reason, event.generation, event.time) for event in world.events.published] == [
        (Reason.REJECTED, 1, NOW),
        (Reason.REJECTED, 2, NOW + 1),
    ]


@pytest.mark.parametrize(
    ("stored", "published"),
    [
        (Status.ACCEPTED, [Status.SENT]),
        (Status.DISPATCHED, [Status.SENT]),
        (Status.RECEIVED, [Status.SENT, Status.RECEIVED]),
        (Status.CONSUMED, [Status.SENT, Status.CONSUMED]),
        (Status.FAILED, [Status.SENT, Status.FAILED]),
    ],
)
def test_status_found_in_the_history_is_published_once(
    world: World, stored: Status, published: list[Status]
) -> None:
    unknown(world)
    world.blip.stored[KEY] = [Receipt(KEY, 1, stored)]

    world.sandbox().deliver(REQUEST)

    assert [event.status for event in world.events.published] == published
    assert world.events.published[0] == an_event(Status.SENT, time=world.clock.now())


@pytest.mark.parametrize(("tried", "generation"), [(False, 0), (True, 1)])
def test_cancellation_in_advance_is_published_when_its_request_arrives(
    world: World, generation: int, *, tried: bool
) -> None:
    if tried:
        world.blip.before_send = raises(Transient("busy"))
        deliver(world)
    world.sandbox().ledger.cancel("default", "order-1")

    (result,) = world.sandbox().deliver(REQUEST)

    assert result.retry_in is None
    assert world.events.published == [an_event(Status.CANCELLED, generation=generation)]


# --- Logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Transient("busy"), "retrying"),
        (Unknown("no answer"), "unknown"),
        (Throttled("slowly"), "throttled"),
    ],
)
def test_failed_send_is_logged_with_its_reason(
    world: World, caplog: pytest.LogCaptureFixture, failure: Failure, message: str
) -> None:
    world.blip.before_send = raises(failure)

    (result,) = world.sandbox().deliver(REQUEST)

    assert result.retry_in is not None
    assert logged(caplog, message) == {
        "notification_id": "order-1",
        "bot": "default",
        "key": KEY,
        "retry_in": round(result.retry_in, 1),
        "correlation_id": "trace-1",
        "detail": failure.detail,
    }


def test_failed_history_query_is_logged_with_its_reason(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    unknown(world)
    world.blip.before_history = raises(Transient("busy"))

    deliver(world)

    assert logged(caplog, "unsettled")["detail"] == "busy"


def test_misconfigured_bot_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def unauthorized(_: Bot) -> None:
        raise Misconfigured("HTTP 401")

    world.blip.before_send = world.blip.before_ping = unauthorized

    deliver(world)

    facts = {"bot": "default", "problem": "HTTP 401"}
    assert logged(caplog, "the bot is misconfigured: its requests wait") == facts


def test_unreadable_secret_after_a_refused_key_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def unauthorized(_: Bot) -> None:
        world.bots = "not JSON"
        world.clock.advance(11)
        raise Misconfigured("HTTP 401")

    world.blip.before_send = world.blip.before_ping = unauthorized

    deliver(world)

    facts = logged(caplog, "the bot is misconfigured: its requests wait")
    assert facts["problem"].startswith("the bots' secret is not a JSON object")


@pytest.mark.parametrize(
    ("bots", "problem"),
    [
        ({"default": {"key": "no key"}}, "key"),
        ("not JSON", "the bots' secret is not a JSON object"),
    ],
)
def test_invalid_bot_is_logged(
    world: World, caplog: pytest.LogCaptureFixture, bots: Any, problem: str
) -> None:
    world.bots = bots

    (result,) = world.sandbox().deliver(REQUEST)

    assert result.outcome is Outcome.MISCONFIGURED
    facts = logged(caplog, "the bot cannot be used")
    assert facts.keys() == {"bot", "problem"}
    assert facts["bot"] == "default"
    assert problem in facts["problem"]


def test_bot_missing_from_the_secret_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    deliver(world)
    world.bots = {}

    deliver(world, a_request())

    facts = {"bot": "default", "problem": "the bots' secret has no entry 'default' any more"}
    assert logged(caplog, "the bot cannot be used") == facts


def test_crash_of_a_probe_is_logged_with_its_bot(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def crash(_: Bot) -> None:
        raise RuntimeError("unexpected")

    world.sandbox().bot_states.open_breaker("default", "no answer")
    world.blip.before_ping = crash

    (result,) = world.sandbox().deliver(REQUEST)

    assert result.outcome is Outcome.BREAKER_OPEN
    facts = logged(caplog, "the probe crashed")
    assert (facts["bot"], facts["error"]) == ("default", "RuntimeError")


def breaker_opens(world: World, failure: Callable[[], Failure]) -> None:
    world.blip.before_send = always(failure)
    for number in range(5):
        deliver(world, a_request(to=f"+55119888877{number:02}"))
    world.blip.before_send = raises()


def test_breaker_is_logged_when_it_opens_stays_open_and_closes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    breaker_opens(world, lambda: Transient("busy"))
    assert logged(caplog, "the breaker is open") == {"bot": "default"}

    world.blip.before_ping = raises(Transient("still busy"))
    deliver(world)
    facts = {"bot": "default", "problem": "still busy"}
    assert logged(caplog, "the breaker stays open") == facts

    world.clock.advance(31)
    deliver(world)
    assert logged(caplog, "the bot works again") == {"bot": "default"}


@pytest.mark.parametrize("at", ["the claim", "the send"])
def test_crash_is_logged_by_type_and_place(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def crash(*_: Any) -> Any:
        raise RuntimeError(json.dumps(REQUEST))

    sandbox = world.sandbox()
    if at == "the claim":
        monkeypatch.setattr(sandbox.ledger, "claim", crash)
    else:
        world.blip.before_send = crash
    queued = world.queued(REQUEST)

    sandbox.deliver(queued)

    facts = logged(caplog, "delivery crashed")
    assert (facts["record_id"], facts["error"]) == (queued.record_id, "RuntimeError")
    assert "test_outcomes.py" in str(facts["stack"])
    assert (facts["notification_id"], facts["bot"], facts["key"]) == ("order-1", "default", KEY)
    assert facts["correlation_id"] == "trace-1"
    assert str(REQUEST["to"]) not in str(facts)
