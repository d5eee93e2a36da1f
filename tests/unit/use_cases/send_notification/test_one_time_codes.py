"""A one-time code on its way: sent in time, and kept nowhere."""

import json
import logging
from typing import Any

import pytest

from notifier.domain.bots import Bot
from notifier.domain.failures import Reason, Rejected, Transient
from notifier.domain.receipts import FailureKind, Receipt
from notifier.domain.status import Status
from notifier.use_cases.send_notification.outcomes import Outcome
from tests.support.blip import raises
from tests.support.builders import a_request
from tests.support.world import World
from tests.unit.use_cases.send_notification.helpers import (
    WINDOW,
    key_of,
    outcome,
    unknown,
)
from tests.unit.use_cases.send_notification.test_reconciliation import show_later_message

CODE = "418205"
TEN_MINUTES = 600


def a_code(code: str = CODE, **changes: Any) -> dict[str, Any]:
    template = {"name": "login_code", "language": "pt_BR", "otp": code}
    return a_request(template=template, **changes)


def stored(world: World) -> str:
    """Return all that the ledger and the queue of dead letters hold."""
    bodies = [kept.body for kept in world.dead_letters._kept.values()]
    failures = [letter.failure for letter in world.dead_letters.letters]
    return json.dumps([world.ledger_table.items, bodies, failures], default=str)


def test_code_is_sent_and_in_the_ledger_at_no_time(world: World) -> None:
    seen: list[str] = []

    def look(_: Bot) -> None:
        seen.append(stored(world))

    world.blip.before_look_up = world.blip.before_send = look
    body = a_code()
    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "sent"
    assert world.blip.sent[0].template.otp == CODE
    seen.append(stored(world))
    assert len(seen) == 3
    assert not any(CODE in text for text in seen)
    assert json.loads(world.entry(body)["request"])["template"]["otp"] == "(removed)"


def test_code_is_not_sent_more_than_ten_minutes_after_its_publication(world: World) -> None:
    in_time, late = a_code(), a_code()

    (result,) = world.sandbox().deliver(world.queued(in_time, age=TEN_MINUTES - 1))
    assert outcome(result) == "sent"

    (result,) = world.sandbox().deliver(world.queued(late, age=TEN_MINUTES))
    assert result.reason is Reason.EXPIRED
    assert result.detail is not None
    assert result.detail.endswith("which has passed")
    assert len(world.blip.sent) == 1
    assert world.entry(late)["status"] == "expired"


def test_same_id_with_another_code_is_a_duplicate(world: World) -> None:
    world.sandbox().deliver(a_code(id="login-1"))
    (result,) = world.sandbox().deliver(a_code("999999", id="login-1"))

    assert result.outcome is Outcome.DUPLICATE
    assert len(world.blip.sent) == 1


def test_same_id_with_other_content_is_a_conflict_without_its_code(world: World) -> None:
    world.sandbox().deliver(a_code(id="login-1"))
    (result,) = world.sandbox().deliver(a_code("999999", id="login-1", if_unknown="fail"))

    assert result.reason is Reason.ID_CONFLICT
    assert "999999" not in stored(world)


def test_dead_letter_of_a_code_that_was_not_sent_has_it_no_more(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no", code=21))
    with caplog.at_level(logging.DEBUG):
        world.sandbox().deliver(a_code())

    (letter,) = world.dead_letters.letters
    assert json.loads(letter.body)["template"]["otp"] == "(removed)"
    assert CODE not in stored(world) + caplog.text + str(world.events.published)
    assert not any(CODE in str(vars(record)) for record in caplog.records)


def test_code_that_is_tried_again_is_still_there_to_be_sent(world: World) -> None:
    body = world.queued(a_code())
    world.blip.before_send = raises(Transient("503"))
    world.sandbox().deliver(body)
    world.blip.before_send = lambda _: None
    world.clock.advance(60)

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "sent"
    assert world.blip.sent[-1].template.otp == CODE


def test_dead_letter_by_a_receipt_has_no_code(world: World) -> None:
    body = a_code()
    sandbox = world.sandbox()
    sandbox.deliver(body)
    sandbox.receipts.record(
        Receipt(key_of(body), 1, Status.FAILED, failure_kind=FailureKind.PERMANENT, code=131026)
    )

    (letter,) = world.dead_letters.letters
    assert json.loads(letter.body)["template"]["otp"] == "(removed)"


def test_code_found_unsent_after_its_ten_minutes_is_not_sent_again(world: World) -> None:
    body = a_code()
    queued = world.queued(body)
    unknown(world, body)
    later = show_later_message(world)

    world.clock.advance(WINDOW + 2)
    (result,) = world.sandbox().deliver(queued)

    assert result.reason is Reason.EXPIRED
    assert [sent.message_id for sent in world.blip.sent] == [key_of(body), later]


def test_dead_letter_without_its_code_is_refused_when_it_is_put_back(world: World) -> None:
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no", code=21))
    world.sandbox().deliver(a_code())
    (letter,) = world.dead_letters.letters
    world.blip.before_send = lambda _: None

    (result,) = world.sandbox().deliver(world.queued(letter.body, generation=1))

    assert result.reason is Reason.INVALID
    assert len(world.blip.sent) == 1
