"""Requests that become dead letters, and the refusals that the ledger keeps of them."""

import json
from dataclasses import replace
from typing import Any

import pytest

from notifier.domain.failures import (
    Misconfigured,
    Reason,
    Rejected,
    Transient,
)
from notifier.domain.notification import ledger_key
from notifier.domain.status import Status
from tests.support.blip import always, identity_of, raises
from tests.support.builders import KEY, OTHER_KEY, PHONE, a_request
from tests.support.world import World
from tests.unit.use_cases.send_notification.helpers import (
    DAY,
    OTHER_PHONE,
    at,
    ends,
    key_of,
    outcome,
    refused,
)

# --- Dead letters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "malformed"),
        ("not JSON", "malformed"),
        ("[]", "malformed"),
        ("{}", "invalid"),
        ('{"id": "a/b", "to": "+55"}', "invalid"),
    ],
)
def test_invalid_body_is_a_dead_letter(world: World, body: str, reason: str) -> None:
    (result,) = world.sandbox().deliver(body)

    assert (outcome(result), result.retry_in) == ("dead_letter", None)
    (letter,) = world.dead_letters.letters
    assert (letter.body, letter.reason.value) == (body, reason)
    assert letter.generation is None
    assert letter.failure["phase"] == "contract"
    assert letter.failure["possibly_sent"] is False
    assert world.ledger_table.items == {}


def test_invalid_request_with_a_readable_id_is_published(world: World) -> None:
    world.sandbox().deliver({"id": "order-1", "to": PHONE})

    (event,) = world.events.published
    assert (event.notification_id, event.status) == ("order-1", Status.REJECTED)
    assert event.reason is Reason.INVALID
    (letter,) = world.dead_letters.letters
    assert letter.notification_id == "order-1"
    assert [field["field"] for field in letter.failure["fields"]] == ["template"]


def test_invalid_request_does_not_affect_other_requests(world: World) -> None:
    good = [a_request(to=f"+55119888877{n:02}") for n in range(4)]

    results = world.sandbox().deliver("x", good[0], "{}", good[1], good[2], "[]", good[3])

    assert list(map(outcome, results)) == [
        *("dead_letter", "sent", "dead_letter", "sent"),
        *("sent", "dead_letter", "sent"),
    ]


def test_expired_request_is_a_dead_letter(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now()))

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.EXPIRED
    assert world.entry(body)["status"] == "expired"
    assert world.blip.look_ups == []
    assert world.blip.sent == []
    (event,) = world.events.published
    assert (event.status, event.reason) == (Status.EXPIRED, Reason.EXPIRED)


def test_expired_request_stays_expired_after_a_redrive(world: World) -> None:
    body = a_request(valid_until=at(world.clock.now()))
    world.sandbox().deliver(body)

    world.sandbox().deliver(world.queued(body, generation=1))

    assert [letter.generation for letter in world.dead_letters.letters] == [1, 2]
    assert world.blip.sent == []


def test_request_that_expires_while_it_waits_for_its_slot_is_not_sent(world: World) -> None:
    world.bots = {"default": {"key": KEY, "messages_per_second": 1}}
    world.know(PHONE)
    world.know(OTHER_PHONE)
    in_time = a_request()
    late = a_request(to=OTHER_PHONE, valid_until=at(world.clock.now() + 1))

    _, result = world.sandbox().deliver(in_time, late)

    assert result.reason is Reason.EXPIRED
    assert [sent.message_id for sent in world.blip.sent] == [key_of(in_time)]


def test_request_that_waited_a_week_is_a_dead_letter(world: World) -> None:
    """SQS deletes after two weeks, silently."""
    week = 7 * DAY
    young, old = world.queued(a_request(), age=week - 1), world.queued(a_request(), age=week)

    first, second = world.sandbox().deliver(young, old)

    assert outcome(first) == "sent"
    assert second.reason is Reason.WAITED_TOO_LONG
    assert world.dead_letters.letters[0].failure["detail"] == "it lay on the queue for 7 days"


@pytest.mark.parametrize("allowed", [("+5511",), (OTHER_PHONE, "+1")])
def test_stage_sends_only_to_allowed_recipients(world: World, allowed: tuple[str, ...]) -> None:
    stage = world.sandbox(allowed_recipients=allowed)
    world.know(PHONE)
    stranger, looked_up = a_request(), a_request(to="+5531999990000")
    tester = a_request(to=OTHER_PHONE)

    results = stage.deliver(stranger, looked_up, tester)

    assert [outcome(result) for result in results] == ["dead_letter", "dead_letter", "sent"]
    assert sorted(ends(world)) == sorted(
        [("not_allowed", stranger["id"]), ("not_allowed", looked_up["id"])]
    )
    assert world.blip.look_ups == [OTHER_PHONE]
    assert [sent.identity for sent in world.blip.sent] == [identity_of(OTHER_PHONE)]
    assert world.entry(stranger)["status"] == "rejected"


def test_requests_from_before_a_ledger_restoration_are_sent_only_by_a_redrive(
    world: World,
) -> None:
    sandbox = world.sandbox(ledger_restored_at=world.clock.now() - 60)
    older, newer = a_request(), a_request()

    gone, sent = sandbox.deliver(world.queued(older, age=61), world.queued(newer, age=59))

    assert (outcome(gone), outcome(sent)) == ("dead_letter", "sent")
    assert ends(world) == [("outcome_unknown", older["id"])]
    assert world.dead_letters.letters[0].failure["possibly_sent"] is True

    (redriven,) = sandbox.deliver(world.queued(older, generation=1))
    assert outcome(redriven) == "sent"


@pytest.mark.parametrize(("ago", "expected"), [(61, "dead_letter"), (60, "sent")])
def test_wait_from_before_a_ledger_restoration_does_not_end_in_a_send(
    world: World, ago: float, expected: str
) -> None:
    """The item may be a copy, and its next generation have been sent since."""
    sandbox = world.sandbox(ledger_restored_at=world.clock.now() - 60)
    request = a_request()
    woken = replace(world.queued(request), waited_since=world.clock.now() - ago)

    (result,) = sandbox.deliver(woken)

    assert outcome(result) == expected


@pytest.mark.parametrize("still", ["paused", "broken", "misconfigured"])
def test_requests_do_not_wait_for_ever_for_a_stopped_bot(world: World, still: str) -> None:
    """SQS deletes silently what is 14 days old."""
    sandbox = world.sandbox()
    world.blip.before_ping = always(lambda: Transient("nothing"))
    match still:
        case "paused":
            sandbox.bot_states.pause("default")
        case "broken":
            sandbox.bot_states.open_breaker("default", "nothing works")
        case _:
            world.bots = {"default": {"key": "Key REPLACE_ME"}}
    old, young, late = a_request(), a_request(), a_request(valid_until=at(world.clock.now() - 1))

    gone, waits, expired = sandbox.deliver(
        world.queued(old, age=7 * DAY), world.queued(young, age=6 * DAY), late
    )

    assert (outcome(gone), outcome(expired)) == ("dead_letter", "dead_letter")
    assert waits.retry_in is not None
    assert sorted(ends(world)) == sorted([("waited_too_long", old["id"]), ("expired", late["id"])])
    assert world.entry(young) == {}
    assert (world.blip.look_ups, world.blip.sent) == ([], [])


def test_dead_letters_are_not_repeated_while_a_table_cannot_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = world.sandbox()

    def unread(*_: Any) -> Any:
        raise ConnectionError

    monkeypatch.setattr(sandbox.identities, "read", unread)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            sandbox.deliver("not JSON", a_request())

    assert ends(world) == []


def test_redriven_conflict_does_not_replace_the_first_request(world: World) -> None:
    first, other = a_request(id="order-1"), a_request(id="order-1", to=OTHER_PHONE)
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no", code=21))
    sandbox = world.sandbox()
    sandbox.deliver(first)
    sandbox.deliver(other)
    rejected, conflict = world.dead_letters.letters
    assert (rejected.generation, conflict.generation) == (1, None)

    again = sandbox.deliver(world.queued(other, generation=conflict.generation))
    sent = sandbox.deliver(world.queued(first, generation=rejected.generation))

    assert [outcome(result) for result in (*again, *sent)] == ["dead_letter", "sent"]


def test_key_that_stays_wrong_is_named_as_the_reason(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.bot_states.open_breaker("default", "a wrong key")
    world.blip.before_ping = always(lambda: Misconfigured("HTTP 401", code=13))

    (result,) = sandbox.deliver(a_request())

    assert outcome(result) == "misconfigured"
    assert result.retry_in is not None


def test_unknown_bot_is_a_dead_letter(world: World) -> None:
    body = a_request(bot="clinic")

    (result,) = world.sandbox().deliver(body)

    assert result.reason is Reason.UNKNOWN_BOT
    (letter,) = world.dead_letters.letters
    assert (letter.bot, letter.generation) == ("clinic", 1)
    assert "'clinic'" in letter.failure["detail"]
    assert world.entry(body)["status"] == "rejected"


def test_bot_added_a_moment_ago_is_found(world: World) -> None:
    sandbox = world.sandbox()
    sandbox.deliver(a_request())
    world.bots["clinic"] = {"key": OTHER_KEY}
    world.clock.advance(11)

    (result,) = sandbox.deliver(a_request(bot="clinic"))

    assert outcome(result) == "sent"
    assert sandbox.secrets_manager.fetches == 2


def test_refused_message_is_a_dead_letter_at_once(world: World) -> None:
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no such template", code=21))
    body = a_request()

    (result,) = world.sandbox().deliver(body)

    assert (outcome(result), result.retry_in) == ("dead_letter", None)
    (letter,) = world.dead_letters.letters
    assert letter.reason is Reason.REJECTED
    assert letter.failure == {
        "detail": "no such template",
        "code": 21,
        "template": "order_shipped",
        "phase": "send",
        "attempts": 1,
        "possibly_sent": False,
        "redrives": 0,
    }
    assert world.entry(body)["reason"] == "rejected"
    assert world.entry(body)["code"] == 21


def test_dead_letter_is_written_before_the_ledger(world: World) -> None:
    """A crash in between repeats the dead letter, which can be recognised, and loses nothing."""
    world.blip.before_send = always(lambda: Rejected(Reason.REJECTED, "no", code=21))
    body, sandbox = a_request(), world.sandbox()
    statuses = []
    world.dead_letters.before_put = lambda: statuses.append(world.entry(body)["status"])

    sandbox.deliver(body)

    assert statuses == ["sending"]


def test_failed_dead_letter_write_loses_nothing(world: World) -> None:
    world.know(PHONE)
    body = a_request(valid_until=at(world.clock.now()))
    failures = [RuntimeError("SQS does not answer")]

    def put() -> None:
        if failures:
            raise failures.pop()

    world.dead_letters.before_put = put
    (result,) = world.sandbox().deliver(body)
    assert outcome(result) == "crashed"
    assert result.retry_in is not None
    assert 30 <= result.retry_in <= 60
    assert world.events.published == []

    world.clock.advance(result.retry_in)
    (result,) = world.sandbox().deliver(body)
    assert result.reason is Reason.EXPIRED
    assert ends(world) == [("expired", body["id"])]


# --- Refusals -------------------------------------------------------------------------------------


REFUSED = f"{ledger_key('default', 'order-1')}:refused"


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_refused_message_received_twice_is_one_dead_letter(world: World, kind: str) -> None:
    first = a_request(id="order-1")
    world.sandbox().deliver(first)
    before = world.entry(first)
    world.events.published.clear()
    message = world.queued(refused(kind)[0])

    for receive_count in (1, 2, 3):
        (result,) = world.sandbox().deliver(replace(message, receive_count=receive_count))
        assert (outcome(result), result.retry_in) == ("dead_letter", None)

    (letter,) = world.dead_letters.letters
    assert letter.reason == kind
    (event,) = world.events.published
    assert (event.reason, event.generation, event.key) == (kind, 0, before["key"])
    assert [refusal[0] for refusal in world.ledger_table.get(REFUSED)["refusals"]] == [
        message.record_id
    ]
    assert world.entry(first) == before


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_another_body_under_the_same_id_is_another_dead_letter(world: World, kind: str) -> None:
    world.sandbox().deliver(a_request(id="order-1"))
    world.events.published.clear()
    bodies = refused(kind)

    for body in bodies:
        world.sandbox().deliver(body)
        world.clock.advance(1)

    letters = [json.loads(letter.body) for letter in world.dead_letters.letters]
    assert letters == bodies
    assert [event.reason for event in world.events.published] == [kind, kind]


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_redriven_dead_letter_that_is_still_invalid_is_another_dead_letter(
    world: World, kind: str
) -> None:
    """SQS assigns another message id to a redriven request."""
    world.sandbox().deliver(a_request(id="order-1"))
    body = refused(kind)[0]
    world.sandbox().deliver(body)

    world.sandbox().deliver(replace(world.queued(body), redrives=1))

    redrives = [letter.failure["redrives"] for letter in world.dead_letters.letters]
    assert redrives == [0, 1]
    assert len(world.ledger_table.get(REFUSED)["refusals"]) == 2


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_dead_letter_is_written_before_the_refusal(world: World, kind: str) -> None:
    world.sandbox().deliver(a_request(id="order-1"))
    world.events.published.clear()
    message = world.queued(refused(kind)[0])
    held = []

    def crash() -> None:
        held.append(world.ledger_table.get(REFUSED))
        if len(held) == 1:
            raise RuntimeError("SQS does not answer")

    world.dead_letters.before_put = crash
    (result,) = world.sandbox().deliver(message)
    assert outcome(result) == "crashed"
    assert world.events.published == []

    (result,) = world.sandbox().deliver(message)
    assert outcome(result) == "dead_letter"

    assert held == [{}, {}]
    assert len(world.dead_letters.letters) == 1
    assert [event.reason for event in world.events.published] == [kind]


@pytest.mark.parametrize("kind", ["invalid", "id_conflict"])
def test_two_simultaneous_refusals_are_both_kept(world: World, kind: str) -> None:
    world.sandbox().deliver(a_request(id="order-1"))

    results = world.sandbox().deliver(*refused(kind))

    assert [outcome(result) for result in results] == ["dead_letter"] * 2
    assert len(world.dead_letters.letters) == 2
    kept = {refusal[0] for refusal in world.ledger_table.get(REFUSED)["refusals"]}
    assert kept == {result.queued.record_id for result in results}


def test_refused_body_without_a_readable_id_leaves_only_its_dead_letter(world: World) -> None:
    for _ in range(2):
        world.sandbox().deliver("{}")

    assert len(world.dead_letters.letters) == 2
    assert world.ledger_table.items == {}
    assert world.events.published == []


def test_failed_dead_letter_write_returns_only_its_own_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = world.sandbox()

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(world.dead_letters, "put", broken)
    letter = world.queued("not JSON")

    results = {result.queued: result for result in sandbox.deliver(a_request(), letter)}

    assert sorted(map(outcome, results.values())) == ["crashed", "sent"]
    assert outcome(results[letter]) == "crashed"
    assert results[letter].retry_in is not None
