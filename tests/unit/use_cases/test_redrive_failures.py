"""Dead letters: what an operator may order, which are redriven, and that a kill loses none."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from notifier.domain.failures import Reason
from notifier.use_cases.redrive_failures import redrive
from notifier.use_cases.redrive_failures.orders import ListOrder, RedriveOrder
from notifier.use_cases.redrive_failures.redrive import Redrive
from tests.support.builders import a_failure, a_request
from tests.support.world import InlineExecutor, World

HOUR, DAY = 3600, 86_400
FOREIGN = frozenset({Reason.MALFORMED, Reason.INVALID})


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def discreet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO, "notifier")
    yield
    for record in caplog.records:
        for secret in ("99999888", "Maria"):
            assert secret not in str(record.__dict__)


def put(
    world: World, reason: Reason | None = Reason.UNDELIVERED, *, generation: int = 1, **changes: Any
) -> dict[str, Any]:
    """Put a dead letter on the queue as the functions do. Return its request."""
    failure = changes.pop("failure", {})
    body = a_request(**changes)
    text = json.dumps(body)
    if reason is None:
        world.dead_letters.moved(text)
    else:
        world.dead_letters.put(
            "{" if reason is Reason.MALFORMED else text,
            reason,
            a_failure(**{"template": body["template"]["name"]} | failure),
            bot=None if reason is Reason.MALFORMED else body.get("bot", "default"),
            notification_id=None if reason is Reason.MALFORMED else body["id"],
            generation=None if reason in FOREIGN else generation,
        )
    return body


def use_case(world: World, progress: Callable[[int, int], None] = lambda *_: None) -> Redrive:
    return Redrive(world.dead_letters, world.requests, world.clock, InlineExecutor(), progress)


def run(world: World, action: str = "redrive", **order: Any) -> Any:
    """Run an operator's order. Return the answer."""
    kind = {"list": ListOrder, "redrive": RedriveOrder}[action]
    return use_case(world).run(kind(**order)).as_json()


def execute(world: World, **order: Any) -> Any:
    return run(world, dry_run=False, **order)


def outcomes(answer: Any) -> dict[tuple[str, str], int]:
    return {(group["outcome"], group["reason"]): group["count"] for group in answer["groups"]}


def visible(world: World) -> int:
    kept = len(world.dead_letters.receive(0))
    assert kept < 10
    return kept


# --- list -----------------------------------------------------------------------------------------


def test_empty_queue_lists_nothing(world: World) -> None:
    assert run(world, "list") == {"scanned": 0, "in_flight": 0, "more": False, "groups": []}


def test_dead_letters_are_counted_by_reason_bot_and_template(world: World) -> None:
    put(world, Reason.UNDELIVERED)
    world.clock.advance(HOUR)
    for _ in range(23):
        put(world, Reason.UNDELIVERED)
        world.clock.advance(1)
    put(world, Reason.UNDELIVERED, bot="clinic")
    put(world, Reason.REJECTED, template={"name": "other", "language": "pt_BR"})
    put(world, Reason.MALFORMED, failure={"template": None})
    put(world, None)

    answer = run(world, "list")

    rows = [
        tuple(g[name] for name in ("reason", "bot", "template", "count")) for g in answer["groups"]
    ]
    assert rows[0] == ("undelivered", "default", "order_shipped", 24)
    assert sorted(rows[1:], key=str) == [
        ("malformed", None, None, 1),
        ("receives_exhausted", "default", "order_shipped", 1),
        ("rejected", "default", "other", 1),
        ("undelivered", "clinic", "order_shipped", 1),
    ]
    assert answer["groups"][0]["oldest"] == "2027-01-15T08:00:00Z"
    assert answer["groups"][0]["newest"] == "2027-01-15T09:00:22Z"
    assert (answer["scanned"], answer["more"]) == (28, False)


def test_listed_dead_letters_are_visible_again(world: World) -> None:
    for _ in range(35):
        put(world)

    assert run(world, "list")["scanned"] == 35
    assert run(world, "list") | {"in_flight": 0} == run(world, "list")


def test_each_dead_letter_is_listed_on_request_without_its_body(world: World) -> None:
    details = {"detail": "No such template.", "code": 132_001, "redrives": 2}
    body = put(world, failure=details, generation=3)

    (letter,) = run(world, "list", each=True)["dead_letters"]

    assert letter == {
        "outcome": "listed",
        "why": None,
        "id": body["id"],
        "bot": "default",
        "template": "order_shipped",
        "reason": "undelivered",
        "code": 132_001,
        "detail": "No such template.",
        "fields": [],
        "failed_at": "2027-01-15T08:00:00Z",
        "generation": 3,
        "redrives": 2,
    }


def test_dead_letters_are_listed_in_the_order_of_their_failures(world: World) -> None:
    for number in range(12):
        put(world, id=f"order-{number:02}")
        world.clock.advance(1)
    kept = world.dead_letters._kept
    world.dead_letters._kept = dict(reversed(kept.items()))

    letters = run(world, "list", each=True)["dead_letters"]

    assert [letter["id"] for letter in letters] == [f"order-{number:02}" for number in range(12)]


def test_dead_letters_in_flight_are_counted(world: World) -> None:
    for _ in range(12):
        put(world)
    world.dead_letters.receive(60)

    answer = run(world, "list")

    assert (answer["scanned"], answer["in_flight"]) == (2, 10)


def test_dead_letter_received_twice_counts_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS may deliver a message again while it is in flight."""
    for _ in range(13):
        put(world)
    receive = world.dead_letters.receive
    first: list[Any] = []

    def again(visibility_seconds: int) -> Any:
        received = receive(visibility_seconds)
        first[:] = first or received
        return [*received, first[0]] if received else first

    monkeypatch.setattr(world.dead_letters, "receive", again)

    assert run(world, "list")["scanned"] == 13
    assert outcomes(execute(world)) == {("redriven", "undelivered"): 13}
    assert len(world.requests.redriven) == 13


# --- redrive --------------------------------------------------------------------------------------


def test_dry_run_reports_what_would_be_redriven_and_changes_nothing(world: World) -> None:
    put(world, Reason.UNDELIVERED)
    put(world, Reason.MALFORMED)

    answer = run(world)

    assert outcomes(answer) == {("would_redrive", "undelivered"): 1, ("refused", "malformed"): 1}
    assert world.requests.redriven == []
    assert visible(world) == 2


def test_dead_letter_is_redriven_unchanged_and_deleted(world: World) -> None:
    body = put(world, generation=2, failure={"redrives": 1})

    answer = execute(world)

    assert outcomes(answer) == {("redriven", "undelivered"): 1}
    (queued,) = world.requests.redriven
    assert (json.loads(queued.body), queued.generation, queued.redrives) == (body, 2, 2)
    assert world.dead_letters.letters == []


def test_dead_letter_moved_by_sqs_is_redriven(world: World) -> None:
    body = put(world, None)

    assert outcomes(execute(world)) == {("redriven", "receives_exhausted"): 1}
    (queued,) = world.requests.redriven
    assert (json.loads(queued.body), queued.generation, queued.redrives) == (body, None, 1)


def valid_until(world: World, seconds: float) -> str:
    return datetime.fromtimestamp(world.clock.now() + seconds, UTC).isoformat()


def wrapped(body: dict[str, Any], how: str) -> str:
    text = json.dumps(body)
    match how:
        case "sns":
            return json.dumps({"Type": "Notification", "TopicArn": "arn", "Message": text})
        case "eventbridge":
            return json.dumps({"detail-type": "Wanted", "source": "shop", "detail": body})
        case "cloudevents":
            return json.dumps({"specversion": "1.0", "data": body})
        case _:
            return text


@pytest.mark.parametrize("how", ["bare", "sns", "eventbridge", "cloudevents"])
@pytest.mark.parametrize(("seconds", "outcome"), [(0, "refused"), (0.001, "redriven")])
def test_expired_request_is_not_redriven(
    world: World, how: str, seconds: float, outcome: str
) -> None:
    body = a_request(valid_until=valid_until(world, HOUR + seconds))
    world.dead_letters.put(
        wrapped(body, how),
        Reason.UNDELIVERED,
        a_failure(),
        bot="default",
        notification_id="1",
        generation=1,
    )
    world.clock.advance(HOUR)

    answer = execute(world)

    assert outcomes(answer) == {(outcome, "undelivered"): 1}
    assert answer["groups"][0]["why"] == ("it has expired" if outcome == "refused" else None)
    assert len(world.dead_letters.letters) == (outcome == "refused")


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        (Reason.MALFORMED, "it is malformed: publish it anew, fixed"),
        (Reason.INVALID, "it is invalid: publish it anew, fixed"),
        (Reason.EXPIRED, "it has expired"),
        (Reason.ID_CONFLICT, "its id belongs to another content: give it an id of its own"),
    ],
)
def test_request_that_cannot_succeed_is_redriven_only_with_force(
    world: World, reason: Reason, why: str
) -> None:
    put(world, reason)

    refused = execute(world)
    assert outcomes(refused) == {("refused", reason): 1}
    assert refused["groups"][0]["why"] == why
    assert world.requests.redriven == []

    assert outcomes(execute(world, force=True)) == {("redriven", reason): 1}
    assert len(world.requests.redriven) == 1


@pytest.mark.parametrize("reason", [None, Reason.UNDELIVERED, Reason.INVALID])
def test_request_whose_one_time_code_is_not_kept_is_refused_with_the_way_out(
    world: World, reason: Reason | None
) -> None:
    put(world, reason, template={"name": "login_code", "language": "pt_BR", "otp": "(removed)"})

    answer = execute(world)

    why = "its one-time code is not kept: publish a new request, with a new id"
    assert answer["groups"][0]["why"] == why
    assert world.requests.redriven == []


@pytest.mark.parametrize("reason", [None, Reason.UNDELIVERED])
def test_request_that_the_contract_no_longer_accepts_is_not_redriven(
    world: World, reason: Reason | None
) -> None:
    put(world, reason, to="+551")

    answer = execute(world)

    assert answer["groups"][0]["outcome"] == "refused"
    assert answer["groups"][0]["why"] == "it is invalid: publish it anew, fixed"


@pytest.mark.parametrize(
    "reason",
    sorted({*Reason} - {Reason.MALFORMED, Reason.INVALID, Reason.EXPIRED} - {Reason.ID_CONFLICT}),
)
def test_every_other_reason_is_redriven(world: World, reason: Reason) -> None:
    put(world, reason)

    assert outcomes(execute(world)) == {("redriven", reason): 1}


@pytest.mark.parametrize(
    ("order", "chosen"),
    [
        ({}, "abcde"),
        ({"reasons": ["undelivered"]}, "abc"),
        ({"reasons": ["undelivered", "receives_exhausted"]}, "abce"),
        ({"bot": "clinic"}, "b"),
        ({"template": "other"}, "cd"),
        ({"ids": ["a", "e", "of nobody"]}, "ae"),
        ({"minimum_age_seconds": 3 * HOUR}, "abc"),
        ({"maximum_age_seconds": 3 * HOUR}, "cde"),
        ({"minimum_age_seconds": 3 * HOUR, "maximum_age_seconds": 3 * HOUR}, "c"),
        ({"reasons": ["undelivered"], "template": "other"}, "c"),
        ({"reasons": ["expired"]}, ""),
    ],
)
def test_filters_select_dead_letters(world: World, order: dict[str, Any], chosen: str) -> None:
    other = {"name": "other", "language": "pt_BR"}
    for letter_id, reason, changes in (
        ("a", Reason.UNDELIVERED, {}),
        ("b", Reason.UNDELIVERED, {"bot": "clinic"}),
        ("c", Reason.UNDELIVERED, {"template": other}),
        ("d", Reason.REJECTED, {"template": other}),
        ("e", None, {}),
    ):
        put(world, reason, id=letter_id, **changes)
        world.clock.advance(HOUR)

    listed = run(world, "list", each=True, **order)
    answer = execute(world, **order)

    assert sorted(letter["id"] for letter in listed["dead_letters"]) == list(chosen)
    gone = sorted(json.loads(queued.body)["id"] for queued in world.requests.redriven)
    assert gone == list(chosen)
    assert answer["scanned"] == 5
    assert visible(world) == 5 - len(chosen)


@pytest.mark.parametrize("dry_run", [True, False])
def test_at_most_limit_dead_letters_are_redriven(world: World, dry_run: bool) -> None:
    for _ in range(25):
        put(world, Reason.MALFORMED)
        put(world)

    answer = run(world, limit=13, dry_run=dry_run)

    outcome = "would_redrive" if dry_run else "redriven"
    assert outcomes(answer)[outcome, "undelivered"] == 13
    assert not answer["more"]
    assert len(world.requests.redriven) == (0 if dry_run else 13)
    assert run(world, "list")["scanned"] == 50 - len(world.requests.redriven)


def test_dead_letter_that_sqs_does_not_accept_stays(world: World) -> None:
    put(world, id="good")
    put(world, id="bad")
    world.requests.refuses = lambda body: '"bad"' in body

    answer = execute(world)

    assert outcomes(answer) == {("redriven", "undelivered"): 1, ("not_taken", "undelivered"): 1}
    assert [letter.notification_id for letter in world.dead_letters.letters] == ["bad"]
    assert visible(world) == 1


def test_request_that_fails_again_at_once_is_redriven_only_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(15):
        put(world, id=f"order-{number}")
    world.clock.advance(1)
    redrive = world.requests.redrive

    def fail_again(letters: Any) -> Any:
        world.clock.advance(0.1)
        for letter in letters:
            put(world, id=letter.notification_id, generation=2)
        return redrive(letters)

    monkeypatch.setattr(world.requests, "redrive", fail_again)

    answer = execute(world)

    assert (answer["scanned"], outcomes(answer)) == (15, {("redriven", "undelivered"): 15})
    assert run(world, "list")["scanned"] == 15


# --- Dying half way -------------------------------------------------------------------------------


class Death(BaseException):
    """The sandbox is gone; nothing in it continues, no `finally` either."""


class Mortal:
    """Kills a sandbox at its n-th call out, before the call is made or after."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.calls = 0
        self._at = at
        self._after = after

    def wrap(self, inner: Any) -> Any:
        outer = self

        class Wrapped:
            def __getattr__(self, name: str) -> Callable[..., Any]:
                def call(*arguments: Any) -> Any:
                    if outer.calls > outer._at:
                        raise Death
                    outer.calls += 1
                    dies = outer.calls > outer._at
                    if dies and not outer._after:
                        raise Death
                    answer = getattr(inner, name)(*arguments)
                    if dies:
                        raise Death
                    return answer

                return call

        return Wrapped()


def failed_for_good(world: World, count: int, **changes: Any) -> list[dict[str, Any]]:
    """End requests as dead letters, through the real use case."""
    bodies = [a_request(to=f"+55319{number:08}", **changes) for number in range(count)]
    sandbox = world.sandbox()
    for body in bodies:
        (result,) = sandbox.deliver(body)
        assert result.reason is not None
    return bodies


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("point", range(9))
def test_redrive_that_dies_anywhere_sends_each_request_once(point: int, after: bool) -> None:
    world = World()
    unknown = failed_for_good(world, 12, bot="unknown")
    expired = failed_for_good(world, 3, valid_until=valid_until(world, -1))
    world.bots |= {"unknown": world.bots["default"]}
    mortal = Mortal(point, after=after)
    dying = replace(
        use_case(world),
        dead_letters=mortal.wrap(world.dead_letters),
        requests=mortal.wrap(world.requests),
    )

    with pytest.raises(Death):
        dying.run(RedriveOrder(dry_run=False, reasons=["unknown_bot"]))
    world.clock.advance(redrive.VISIBILITY_SECONDS)
    again = run(world, dry_run=False, reasons=["unknown_bot"])

    assert not again["more"]
    queued = world.requests.redriven
    assert {json.loads(one.body)["id"] for one in queued} == {body["id"] for body in unknown}
    for start in range(0, len(queued), 10):
        world.sandbox().deliver(*queued[start : start + 10])
    sent = Counter(message.message_id for message in world.blip.taken)
    assert len(sent) == 12
    assert set(sent.values()) == {1}
    assert len(world.dead_letters.letters) == len(expired)
    assert visible(world) == len(expired)


def test_points_of_death_are_all_covered() -> None:
    """Two receives, two sends and two deletions, and what is at the beginning and at the end."""
    world = World()
    failed_for_good(world, 12, bot="unknown")
    failed_for_good(world, 3, valid_until=valid_until(world, -1))
    mortal = Mortal(1000, after=False)
    living = replace(
        use_case(world),
        dead_letters=mortal.wrap(world.dead_letters),
        requests=mortal.wrap(world.requests),
    )

    living.run(RedriveOrder(dry_run=False, reasons=["unknown_bot"]))

    # Each thread looks at least once, and gives something back or nothing.
    assert mortal.calls == 7 + (redrive.MAX_THREADS - 1) + redrive.MAX_THREADS


# --- Time -----------------------------------------------------------------------------------------


def slowly(world: World, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Delay every answer of the queue by so long."""
    receive = world.dead_letters.receive

    def slow(visibility_seconds: int) -> Any:
        world.clock.advance(seconds)
        return receive(visibility_seconds)

    monkeypatch.setattr(world.dead_letters, "receive", slow)


def test_run_sees_each_dead_letter_once_however_long_it_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(400):
        put(world)
    slowly(world, monkeypatch, 60)

    assert run(world, "list")["scanned"] == 400

    assert world.clock.now() - 1_800_000_000 > 2 * redrive.VISIBILITY_SECONDS
    assert {kept.receive_count for kept in world.dead_letters._kept.values()} == {1}
    assert world.dead_letters.depth() == (400, 0)


def test_run_ends_with_the_dead_letters_of_its_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SQS moves there meanwhile seems to be as old as its request."""
    for _ in range(30):
        put(world, None)
    receive = world.dead_letters.receive

    calls = count()

    def more(visibility_seconds: int) -> Any:
        for _ in range(10 if next(calls) < 200 else 0):
            put(world, None)
        kept = world.dead_letters._kept
        for letter_id, letter in kept.items():
            kept[letter_id] = (
                letter if letter.receive_count else replace(letter, at=1_800_000_000.0)
            )
        return receive(visibility_seconds)

    monkeypatch.setattr(world.dead_letters, "receive", more)

    assert 30 <= run(world, "list")["scanned"] <= 30 + 10 * redrive.MAX_THREADS


def test_killed_run_returns_its_dead_letters_when_their_visibility_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(30):
        put(world)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(world.dead_letters, "change_visibility", die)
        patched.setattr(world.requests, "redrive", die)
        with pytest.raises(KeyboardInterrupt):
            execute(world)

    world.clock.advance(redrive.VISIBILITY_SECONDS)
    assert run(world, "list")["scanned"] == 30


def test_error_ends_the_run_and_returns_its_dead_letters(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(30):
        put(world)
    receive, answers = world.dead_letters.receive, iter([True, True])

    def fail(visibility_seconds: int) -> Any:
        if next(answers, False):
            return receive(visibility_seconds)
        raise ValueError("the queue does not answer")

    monkeypatch.setattr(world.dead_letters, "receive", fail)
    with pytest.raises(ValueError, match="does not answer"):
        run(world, "list")

    assert world.dead_letters.depth() == (30, 0)


def test_run_holds_at_most_as_many_dead_letters_as_sqs_keeps_in_flight(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redrive, "MAX_HELD", 50)
    for _ in range(600):
        put(world)

    answer = run(world, "list")

    assert answer["more"]
    assert 50 < answer["scanned"] < 600
    assert world.dead_letters.depth() == (600, 0)
    # Redriven dead letters are no longer in flight.
    answer = execute(world)
    assert (answer["more"], len(world.requests.redriven)) == (False, 600)


def test_progress_is_reported(world: World) -> None:
    for _ in range(25):
        put(world)
    progress: list[tuple[int, int]] = []

    use_case(world, lambda *numbers: progress.append(numbers)).run(ListOrder())

    assert progress[:3] == [(10, 25), (20, 25), (25, 25)]
