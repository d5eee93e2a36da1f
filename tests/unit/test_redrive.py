"""Dead letters: what an operator may ask for, which of them go, and that dying does no harm."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from notifier import redrive
from notifier.failures import Reason
from notifier.redrive import OrderError, Redrive, RedriveOrder, read_order
from tests.fakes import FakeDeadLetters, World, a_request

HOUR, DAY = 3600, 86_400
PHONE = "+5531999998888"
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
    """Put a dead letter on the queue as the functions do; its request."""
    failure = changes.pop("failure", {})
    body = a_request(**changes)
    text = json.dumps(body)
    if reason is None:
        world.dead_letters.moved(text)
    else:
        world.dead_letters.put(
            "{" if reason is Reason.MALFORMED else text,
            reason,
            {"detail": "It went wrong.", "template": body["template"]["name"]} | failure,
            bot=None if reason is Reason.MALFORMED else body.get("bot", "default"),
            notification_id=None if reason is Reason.MALFORMED else body["id"],
            generation=None if reason in FOREIGN else generation,
        )
    return body


def run(world: World, action: str = "redrive", *, seconds: float = 50, **order: Any) -> Any:
    """Do what an operator asks for; the answer."""
    use_case = Redrive(world.dead_letters, world.requests, world.clock)
    report = use_case.run(read_order({"action": action} | order), world.clock.now() + seconds)
    return report.as_json()


def execute(world: World, **order: Any) -> Any:
    return run(world, dry_run=False, **order)


def fates(answer: Any) -> dict[tuple[str, str], int]:
    return {(group["fate"], group["reason"]): group["count"] for group in answer["groups"]}


def visible(world: World) -> int:
    kept = len(world.dead_letters.receive(0))
    assert kept < 10
    return kept


# --- The order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ([], "the event: must be a valid dictionary"),
        ({}, "action: must be list or redrive"),
        ({"action": "purge"}, "action: must be list or redrive"),
        ({"action": "list", "dry_run": True}, "dry_run: unknown field"),
        ({"action": "redrive", "reason": "expired"}, "reason: unknown field"),
        ({"action": "redrive", "dry_run": "no"}, "dry_run: must be a valid boolean"),
        ({"action": "redrive", "force": 1}, "force: must be a valid boolean"),
        ({"action": "redrive", "limit": 0}, "limit: must be greater than or equal to 1"),
        ({"action": "redrive", "limit": "3"}, "limit: must be a valid integer"),
        ({"action": "redrive", "limit": True}, "limit: must be a valid integer"),
        ({"action": "list", "reasons": []}, "reasons: List should have at least 1 item"),
        ({"action": "list", "reasons": ["expired", "old"]}, "reasons[1]: must be one of malformed"),
        ({"action": "list", "ids": "order-1"}, "ids: must be a valid list"),
        ({"action": "list", "bot": 1}, "bot: must be a valid string"),
        ({"action": "list", "minimum_age_seconds": -1}, "minimum_age_seconds: must be greater"),
        ({"action": "list", "maximum_age_seconds": 0.5}, "maximum_age_seconds: must be a valid"),
        ({"action": "list", "each": None}, "each: must be a valid boolean"),
    ],
)
def test_an_order_that_cannot_be_understood_is_refused_by_its_field(
    event: object, sentence: str
) -> None:
    with pytest.raises(OrderError) as refused:
        read_order(event)

    assert str(refused.value).startswith(sentence)


def test_a_redrive_is_a_dry_run_of_everything_unless_told_otherwise() -> None:
    order = read_order({"action": "redrive"})

    assert isinstance(order, RedriveOrder)
    assert (order.dry_run, order.force, order.limit, order.each) == (True, False, None, False)
    assert set(order.reasons) == {*Reason, "receives_exhausted"}
    assert (order.bot, order.template, order.ids) == (None, None, None)


# --- list -----------------------------------------------------------------------------------------


def test_nothing_lies_there(world: World) -> None:
    assert run(world, "list") == {"looked_at": 0, "hidden": 0, "more": False, "groups": []}


def test_letters_are_counted_by_reason_bot_and_template(world: World) -> None:
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
    assert (answer["looked_at"], answer["more"]) == (28, False)


def test_what_was_looked_at_can_be_seen_again(world: World) -> None:
    for _ in range(35):
        put(world)

    assert run(world, "list")["looked_at"] == 35
    assert run(world, "list") | {"hidden": 0} == run(world, "list")


def test_each_letter_is_told_if_asked_for_and_not_its_body(world: World) -> None:
    told = {"detail": "No such template.", "code": 132_001, "redrives": 2}
    body = put(world, failure=told, generation=3)

    (letter,) = run(world, "list", each=True)["letters"]

    assert letter == {
        "fate": "listed",
        "why": None,
        "id": body["id"],
        "bot": "default",
        "template": "order_shipped",
        "reason": "undelivered",
        "code": 132_001,
        "detail": "No such template.",
        "failed_at": "2027-01-15T08:00:00Z",
        "generation": 3,
        "redrives": 2,
    }


def test_an_answer_is_never_too_long_for_lambda(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redrive, "MOST_LETTERS_TOLD", 12)
    for _ in range(15):
        put(world)

    answer = run(world, "list", each=True)

    assert (len(answer["letters"]), answer["not_told"]) == (12, 3)
    assert answer["groups"][0]["count"] == 15


def test_what_somebody_else_is_looking_at_is_told(world: World) -> None:
    for _ in range(12):
        put(world)
    world.dead_letters.receive(60)

    answer = run(world, "list")

    assert (answer["looked_at"], answer["hidden"]) == (2, 10)


def test_a_letter_that_comes_twice_counts_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS may deliver again what is hidden."""
    for _ in range(13):
        put(world)
    receive = world.dead_letters.receive
    first: list[Any] = []

    def again(hidden_seconds: int) -> Any:
        received = receive(hidden_seconds)
        first[:] = first or received
        return [*received, first[0]] if received else first

    monkeypatch.setattr(world.dead_letters, "receive", again)

    assert run(world, "list")["looked_at"] == 13
    assert fates(execute(world)) == {("redriven", "undelivered"): 13}
    assert len(world.requests.redriven) == 13


# --- redrive --------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_would_go_and_changes_nothing(world: World) -> None:
    put(world, Reason.UNDELIVERED)
    put(world, Reason.MALFORMED)

    answer = run(world)

    assert fates(answer) == {("would_go", "undelivered"): 1, ("refused", "malformed"): 1}
    assert world.requests.redriven == []
    assert visible(world) == 2


def test_a_letter_is_put_back_as_it_came_and_taken_off(world: World) -> None:
    body = put(world, generation=2, failure={"redrives": 1})

    answer = execute(world)

    assert fates(answer) == {("redriven", "undelivered"): 1}
    (queued,) = world.requests.redriven
    assert (json.loads(queued.body), queued.generation, queued.redrives) == (body, 2, 2)
    assert world.dead_letters.letters == []


def test_what_sqs_itself_has_moved_goes_too(world: World) -> None:
    body = put(world, None)

    assert fates(execute(world)) == {("redriven", "receives_exhausted"): 1}
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
@pytest.mark.parametrize(("seconds", "fate"), [(0, "refused"), (0.001, "redriven")])
def test_what_has_expired_since_is_refused(
    world: World, how: str, seconds: float, fate: str
) -> None:
    body = a_request(valid_until=valid_until(world, HOUR + seconds))
    world.dead_letters.put(
        wrapped(body, how), Reason.UNDELIVERED, {}, bot="default", notification_id="1", generation=1
    )
    world.clock.advance(HOUR)

    answer = execute(world)

    assert fates(answer) == {(fate, "undelivered"): 1}
    assert answer["groups"][0]["why"] == ("it has expired" if fate == "refused" else None)
    assert len(world.dead_letters.letters) == (fate == "refused")


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        (Reason.MALFORMED, "it is malformed: publish it anew, mended"),
        (Reason.INVALID, "it is invalid: publish it anew, mended"),
        (Reason.EXPIRED, "it has expired"),
        (Reason.ID_CONFLICT, "its id belongs to another content: give it an id of its own"),
    ],
)
def test_what_cannot_succeed_is_refused_unless_forced(
    world: World, reason: Reason, why: str
) -> None:
    put(world, reason)

    refused = execute(world)
    assert fates(refused) == {("refused", reason): 1}
    assert refused["groups"][0]["why"] == why
    assert world.requests.redriven == []

    assert fates(execute(world, force=True)) == {("redriven", reason): 1}
    assert len(world.requests.redriven) == 1


@pytest.mark.parametrize("reason", [None, Reason.UNDELIVERED])
def test_what_the_contract_of_today_does_not_take_is_refused(
    world: World, reason: Reason | None
) -> None:
    put(world, reason, to="+551")

    answer = execute(world)

    assert answer["groups"][0]["fate"] == "refused"
    assert answer["groups"][0]["why"] == "it is invalid: publish it anew, mended"


@pytest.mark.parametrize(
    "reason",
    sorted({*Reason} - {Reason.MALFORMED, Reason.INVALID, Reason.EXPIRED} - {Reason.ID_CONFLICT}),
)
def test_everything_else_goes(world: World, reason: Reason) -> None:
    put(world, reason)

    assert fates(execute(world)) == {("redriven", reason): 1}


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
def test_filters(world: World, order: dict[str, Any], chosen: str) -> None:
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

    assert sorted(letter["id"] for letter in listed["letters"]) == list(chosen)
    gone = sorted(json.loads(queued.body)["id"] for queued in world.requests.redriven)
    assert gone == list(chosen)
    assert answer["looked_at"] == 5
    assert visible(world) == 5 - len(chosen)


@pytest.mark.parametrize("dry_run", [True, False])
def test_no_more_than_the_limit_go(world: World, dry_run: bool) -> None:
    for _ in range(25):
        put(world, Reason.MALFORMED)
        put(world)

    answer = run(world, limit=13, dry_run=dry_run)

    fate = "would_go" if dry_run else "redriven"
    assert fates(answer)[fate, "undelivered"] == 13
    assert not answer["more"]
    assert len(world.requests.redriven) == (0 if dry_run else 13)
    assert run(world, "list")["looked_at"] == 50 - len(world.requests.redriven)


def test_what_sqs_does_not_take_stays(world: World) -> None:
    put(world, id="good")
    put(world, id="bad")
    world.requests.refuses = lambda body: '"bad"' in body

    answer = execute(world)

    assert fates(answer) == {("redriven", "undelivered"): 1, ("not_taken", "undelivered"): 1}
    assert [letter.notification_id for letter in world.dead_letters.letters] == ["bad"]
    assert visible(world) == 1


def test_each_letter_that_goes_is_logged_by_its_name(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    body = put(world)

    execute(world)

    (line,) = [record.__dict__ for record in caplog.records if record.msg == "redriven"]
    assert (line["notification_id"], line["bot"]) == (body["id"], "default")
    assert (line["reason"], line["generation"]) == ("undelivered", 1)
    assert line["key"]


def test_what_fails_again_at_once_goes_round_only_once(
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

    assert (answer["looked_at"], fates(answer)) == (15, {("redriven", "undelivered"): 15})
    assert run(world, "list")["looked_at"] == 15


# --- Time -----------------------------------------------------------------------------------------


def test_a_run_ends_in_time_and_the_next_ones_see_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(200):
        put(world)
    receive = world.dead_letters.receive

    def slow(hidden_seconds: int) -> Any:
        world.clock.advance(5)
        return receive(hidden_seconds)

    monkeypatch.setattr(world.dead_letters, "receive", slow)
    answers = []
    for _ in range(10):
        began = world.clock.now()
        answers.append(run(world, "list"))
        assert world.clock.now() - began < 50
        if not answers[-1]["more"]:
            break

    assert [answer["more"] for answer in answers] == [True, True, False]
    assert sum(answer["looked_at"] for answer in answers) == 200
    world.clock.advance(redrive.PUT_ASIDE_SECONDS)
    assert world.dead_letters.hidden() == 0


def test_without_any_time_nothing_is_touched(world: World) -> None:
    put(world)

    answer = run(world, seconds=5)

    assert (answer["looked_at"], answer["more"]) == (0, True)
    assert visible(world) == 1


# --- Dying half way -------------------------------------------------------------------------------


class Death(BaseException):
    """The sandbox is gone; nothing in it goes on, no `finally` either."""


class Mortal:
    """Lets a sandbox die at its n-th call out, before the call is made or after."""

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
    """Let requests end as dead letters, through the real use case."""
    bodies = [a_request(to=f"+55319{number:08}", **changes) for number in range(count)]
    sandbox = world.sandbox()
    for body in bodies:
        (verdict,) = sandbox.deliver(body)
        assert verdict.reason is not None
    return bodies


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("point", range(9))
def test_wherever_a_redrive_dies_each_letter_is_sent_once(point: int, after: bool) -> None:
    world = World()
    unknown = failed_for_good(world, 12, bot="unknown")
    expired = failed_for_good(world, 3, valid_until=valid_until(world, -1))
    world.bots |= {"unknown": world.bots["default"]}
    mortal = Mortal(point, after=after)
    dying = Redrive(mortal.wrap(world.dead_letters), mortal.wrap(world.requests), world.clock)
    order = read_order({"action": "redrive", "dry_run": False, "reasons": ["unknown_bot"]})

    with pytest.raises(Death):
        dying.run(order, world.clock.now() + 50)
    world.clock.advance(redrive.HIDDEN_SECONDS)
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


def test_the_points_above_are_all_there_are() -> None:
    """Two receives, two sends and two deletions, and what is at the beginning and at the end."""
    world = World()
    failed_for_good(world, 12, bot="unknown")
    failed_for_good(world, 3, valid_until=valid_until(world, -1))
    mortal = Mortal(1000, after=False)
    order = read_order({"action": "redrive", "dry_run": False, "reasons": ["unknown_bot"]})

    Redrive(mortal.wrap(world.dead_letters), mortal.wrap(world.requests), world.clock).run(
        order, world.clock.now() + 50
    )

    assert mortal.calls == 9


def test_an_accident_in_the_middle_gives_back_what_was_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(15):
        put(world, Reason.EXPIRED)
    receive = FakeDeadLetters.receive

    def once(self: FakeDeadLetters, hidden_seconds: int) -> Any:
        if self.hidden():
            raise ConnectionError
        return receive(self, hidden_seconds)

    with monkeypatch.context() as patched:
        patched.setattr(FakeDeadLetters, "receive", once)
        with pytest.raises(ConnectionError):
            run(world, "list")

    assert world.dead_letters.hidden() == 0
