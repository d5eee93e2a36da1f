"""What is held about one number: found, erased, and never sent to again from an old request."""

import base64
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from notifier.domain.bots import Bot
from notifier.domain.failures import Failure, Reason, Transient, Unknown
from notifier.domain.receipts import Receipt
from notifier.domain.status import Status
from notifier.use_cases.forget_recipient import Forgetting, Order, OrderError, Report, read_order
from notifier.use_cases.record_receipt import ReceiptOutcome
from notifier.use_cases.send_notification.outcomes import Outcome
from tests.support.adapters import CountingIdentities, WholeLedger
from tests.support.blip import raises
from tests.support.builders import PHONE, a_failure, a_request
from tests.support.queues import FakeDeadLetters
from tests.support.world import World

SAME_DIGITS = "+5521977778888"
OTHER = "+5511988887777"
ALL = {"notifications", "identities", "dead_letters"}

type Request = dict[str, Any]


@dataclass
class Memory:
    """The use case, over a world, and a queue of dead receipts beside it."""

    world: World = field(default_factory=World)
    receipts: FakeDeadLetters = field(default_factory=FakeDeadLetters)

    def __post_init__(self) -> None:
        self.receipts.now = self.world.clock.now
        now = self.world.clock.now
        self.ledger: Any = WholeLedger(self.world.ledger_table, now)
        self.identities: Any = CountingIdentities(self.world.identities_table, now=now)

    def run(self, seconds: float = 50, **order: Any) -> Report:
        """Run once, in a sandbox that has so much time."""
        forgetting = Forgetting(
            self.ledger,
            self.identities,
            [self.world.dead_letters, self.receipts],
            self.world.clock,
        )
        deadline = self.world.clock.now() + seconds
        event = {"to": PHONE, "dry_run": False} | order
        return forgetting.run(read_order(event), deadline)

    def retrying(self, request: Request) -> None:
        """Try a request in vain."""
        self.world.blip.before_send = raises(Transient("503"))
        (result,) = self.world.sandbox().deliver(request)
        assert result.outcome is Outcome.RETRYING

    def everything(self) -> str:
        """Return all stored data as text."""
        bodies = [kept.body for q in self.queues for kept in q._kept.values()]
        tables = [self.world.ledger_table.items, self.world.identities_table.items]
        return json.dumps([tables, bodies], default=str, ensure_ascii=False)

    @property
    def queues(self) -> list[FakeDeadLetters]:
        return [self.world.dead_letters, self.receipts]


@pytest.fixture
def memory() -> Memory:
    return Memory()


def letter(queue: FakeDeadLetters, body: str) -> None:
    queue.put(body, Reason.REJECTED, a_failure(), bot=None, notification_id=None, generation=None)


def filled(memory: Memory) -> list[Request]:
    """Store the recipient everywhere. Return the requests that wait or have been sent."""
    waiting = [a_request(id=f"waits-{number}") for number in range(3)]
    for request in waiting:
        memory.retrying(request)
    sent = a_request(id="was-sent", bot="clinic", metadata={"name": "Maria Silva"})
    memory.world.bots["clinic"] = memory.world.bots["default"]
    others = [a_request(id=f"other-{number}", to=OTHER) for number in range(3)]
    memory.world.sandbox().deliver(sent, *others)
    letter(memory.world.dead_letters, json.dumps(a_request(id="letter")))
    letter(memory.world.dead_letters, json.dumps(a_request(id="other-letter", to=OTHER)))
    letter(memory.receipts, '{"event": "failed", "reason": {"description": "to 5531999998888"}}')
    return [*waiting, sent]


def test_request_whose_one_time_code_is_not_kept_is_found(memory: Memory) -> None:
    template = {"name": "login_code", "language": "pt_BR", "otp": "418205"}
    memory.world.sandbox().deliver(a_request(to="+55 31 99999-8888", template=template))
    kept = a_request(to=PHONE, template=template | {"otp": "(removed)"})
    for number in (PHONE, OTHER):
        letter(memory.world.dead_letters, json.dumps(kept | {"to": number}))

    report = memory.run()

    assert report.erased == {"notifications": 1, "identities": 1, "dead_letters": 1}
    assert PHONE not in memory.everything()
    assert OTHER in memory.everything()


def test_dry_run_finds_everything_and_changes_nothing(memory: Memory) -> None:
    filled(memory)
    before = memory.everything()

    report = memory.run(dry_run=True)

    assert report.found == {"notifications": 4, "identities": 2, "dead_letters": 2}
    assert report.erased == dict.fromkeys(ALL, 0)
    assert (report.possible, report.scanned, report.continue_from) == (0, 7 + 3, None)
    assert memory.everything() == before
    assert len(memory.world.dead_letters.receive(1)) == 2


def test_everything_but_the_block_is_erased(memory: Memory) -> None:
    requests = filled(memory)

    report = memory.run()

    assert report.erased == report.found == {"notifications": 4, "identities": 2, "dead_letters": 2}
    everything = memory.everything()
    for trace in (
        PHONE.removeprefix("+"),
        "…8888",
        "Maria Silva",
        *(each["id"] for each in requests),
    ):
        assert trace not in everything
    assert everything.count(OTHER) == 3 + 2 + 1  # bodies, an identity and its key, a dead letter
    for request in requests:
        item = memory.world.entry(request)
        assert item.keys() == {
            "key", "status", "forgotten", "generation", "updated_at", "expires_at",
        }  # fmt: skip


def test_erasure_may_be_repeated(memory: Memory) -> None:
    filled(memory)
    memory.run()
    before = memory.everything()

    report = memory.run()

    assert report.found == report.erased == dict.fromkeys(ALL, 0)
    assert memory.everything() == before


@pytest.mark.parametrize(
    "failures",
    [(Transient("503"),), (Unknown("time-out"),), ()],
    ids=["retrying", "unknown", "sent"],
)
def test_copy_still_on_the_queue_is_not_sent(memory: Memory, failures: tuple[Failure, ...]) -> None:
    request, world = a_request(), memory.world
    world.blip.before_send = raises(*failures)
    world.sandbox().deliver(request)
    sent = len(world.blip.taken)
    memory.run()
    world.events.published.clear()

    for generation in (None, 0, 1):
        # Enqueued later than the mark: the tombstone stops it.
        world.clock.advance(100)
        again = world.queued(request, generation=generation)
        (result,) = world.sandbox().deliver(again)
        assert (result.outcome, result.retry_in) == (Outcome.CANCELLED, None)

    assert len(world.blip.taken) == sent
    assert world.events.published == []
    assert world.dead_letters.letters == []


def test_unclaimed_request_is_not_sent(memory: Memory) -> None:
    world, request = memory.world, a_request()
    on_the_queue = world.queued(request)
    sandbox = world.sandbox()
    sandbox.deliver(a_request())  # it has cached the identity
    world.clock.advance(1)
    memory.run()
    world.events.published.clear()

    (result,) = sandbox.deliver(on_the_queue)

    assert (result.outcome, result.retry_in) == (Outcome.CANCELLED, None)
    assert len(world.blip.taken) == 1
    assert world.entry(request) == {}
    assert world.events.published == []
    # Of another bot neither, and it delays no other request.
    other = a_request(to=OTHER)
    of_another_bot = world.queued(a_request(bot="clinic"), age=100)
    results = sandbox.deliver(of_another_bot, other)
    assert [each.outcome for each in results] == [Outcome.CANCELLED, Outcome.SENT]


def test_later_request_is_sent_again(memory: Memory) -> None:
    world = memory.world
    world.sandbox().deliver(a_request())
    memory.run()
    world.clock.advance(1)

    (result,) = world.sandbox().deliver(a_request())
    assert result.outcome is Outcome.SENT
    (result,) = world.sandbox().deliver(a_request())

    assert result.outcome is Outcome.SENT
    assert world.blip.look_ups == [PHONE, PHONE]


def test_sandbox_during_a_send_sends_nothing(memory: Memory) -> None:
    world, request = memory.world, a_request()

    def forget(_: Bot) -> None:
        memory.run()

    world.blip.before_look_up = forget

    (result,) = world.sandbox().deliver(request)

    assert result.outcome is Outcome.RETRY_LATER
    assert world.blip.taken == []
    assert PHONE not in memory.everything()


@pytest.mark.parametrize("status", [Status.ACCEPTED, Status.RECEIVED, Status.FAILED])
def test_receipt_of_an_erased_notification_writes_nothing(memory: Memory, status: Status) -> None:
    world, request = memory.world, a_request()
    sandbox = world.sandbox()
    sandbox.deliver(request)
    memory.run()
    before = world.entry(request)
    world.events.published.clear()

    effect = sandbox.receipts.record(Receipt(before["key"], 1, status, code=131026))

    assert effect is ReceiptOutcome.FOREIGN
    assert world.entry(request) == before
    assert world.dead_letters.letters == []
    assert world.events.published == []


def test_other_number_with_the_same_last_digits_is_kept(memory: Memory) -> None:
    request = a_request(to=SAME_DIGITS)
    memory.world.sandbox().deliver(request)
    before = memory.world.entry(request)

    report = memory.run()

    assert report.found == dict.fromkeys(ALL, 0)
    assert memory.world.entry(request) == before


@pytest.mark.parametrize("at", ["before the lease", "while BLiP is asked", "when it is stored"])
def test_recipient_erased_during_a_look_up_leaves_no_identity(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    request, sandbox = a_request(), memory.world.sandbox()
    lease, store = sandbox.identities.lease, sandbox.identities.store

    def forgotten_meanwhile(_: Bot) -> None:
        memory.run()

    def forgotten_just_before(*arguments: Any) -> Any:
        memory.run()
        return lease(*arguments)

    def forgotten_just_after(*arguments: Any) -> None:
        store(*arguments)
        memory.run()

    match at:
        case "before the lease":
            monkeypatch.setattr(sandbox.identities, "lease", forgotten_just_before)
        case "when it is stored":
            monkeypatch.setattr(sandbox.identities, "store", forgotten_just_after)
        case _:
            memory.world.blip.before_look_up = forgotten_meanwhile

    (result,) = sandbox.deliver(request)

    assert result.outcome == "retry_later"
    assert memory.world.blip.sent == []
    assert not any(PHONE in key for key in memory.world.identities_table.items)
    assert sandbox.identities.read([("default", PHONE)], [], [])[0].keys() == {("default", PHONE)}
    assert sandbox.identities.get(("default", PHONE)) is None


def test_delivered_notification_is_reported_as_possible_and_kept(memory: Memory) -> None:
    request, sandbox = a_request(), memory.world.sandbox()
    sandbox.deliver(request)
    key = memory.world.entry(request)["key"]
    sandbox.receipts.record(Receipt(key, 1, Status.RECEIVED))
    before = memory.world.entry(request)

    report = memory.run()

    assert (report.possible, report.found["notifications"]) == (1, 0)
    assert report.erased["identities"] == 1
    assert memory.world.entry(request) == before


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(a_request(to=" (+55) 31 99999-8888 ")),
        json.dumps(a_request(to="+55 (0)31 99999 8888")),
        json.dumps(a_request()).replace("+", "\\u002b"),
        json.dumps({"Type": "Notification", "TopicArn": "t", "Message": json.dumps(a_request())}),
        json.dumps(
            {
                "specversion": "1.0",
                "data_base64": base64.b64encode(json.dumps(a_request()).encode()).decode(),
            }
        ),
        json.dumps(a_request(priority=1)),
        '{"id": "cut-off", "to": "+55 31 99999-88 88", "templ',
    ],
)
def test_number_is_found_in_every_notation(memory: Memory, body: str) -> None:
    letter(memory.world.dead_letters, body)

    assert memory.run().erased["dead_letters"] == 1
    assert memory.world.dead_letters.letters == []


def test_dead_letter_moved_by_sqs_is_found(memory: Memory) -> None:
    memory.world.dead_letters.moved(json.dumps(a_request()))

    assert memory.run().erased["dead_letters"] == 1


def test_dead_letter_that_cannot_be_deleted_is_not_reported_as_erased(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter(memory.world.dead_letters, json.dumps(a_request()))
    with monkeypatch.context() as patch:
        patch.setattr(memory.world.dead_letters, "delete", lambda _: [])
        report = memory.run()

    assert (report.found["dead_letters"], report.erased["dead_letters"]) == (1, 0)
    assert memory.run().erased["dead_letters"] == 1


# --- Bit by bit -----------------------------------------------------------------------------------


def in_steps(memory: Memory, **order: Any) -> tuple[int, dict[str, int]]:
    """Run until it is done, with time for one step each. Return the runs and the totals found."""
    runs, found = 0, dict.fromkeys(ALL, 0)
    continue_from = None
    while True:
        report = memory.run(seconds=10.5, continue_from=continue_from, **order)
        runs += 1
        found = {what: found[what] + report.found[what] for what in found}  # type: ignore[index] # the same names
        continue_from = report.continue_from
        if continue_from is None:
            return runs, found
        read_order({"to": PHONE, "continue_from": continue_from})
        memory.world.clock.advance(1000)


@pytest.mark.parametrize("dry_run", [True, False])
def test_next_run_continues_after_a_run_out_of_time(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    filled(memory)
    for request in range(20):
        letter(memory.world.dead_letters, json.dumps(a_request(id=f"more-{request}")))
    clock, held, receive = memory.world.clock, memory.ledger.matches, memory.receipts.receive

    def slow_page(*arguments: Any) -> Any:
        clock.advance(1)
        return held(*arguments)

    def slow_letters(*arguments: Any) -> Any:
        clock.advance(0.2)
        return receive(*arguments)

    monkeypatch.setattr(memory.ledger, "matches", slow_page)
    monkeypatch.setattr(memory.receipts, "receive", slow_letters)

    runs, found = in_steps(memory, dry_run=dry_run)

    assert runs >= 3
    assert found["notifications"] == 4
    assert found["dead_letters"] == 22
    if not dry_run:
        assert PHONE.removeprefix("+") not in memory.everything()


def test_run_that_is_killed_anywhere_can_be_repeated(memory: Memory) -> None:
    """Each call out may be the last one, before it or after it had its effect."""
    calls = 0
    dies_at = 0

    class Died(Exception):
        pass

    def mortal(call: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        def made(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == dies_at and not after:
                raise Died
            answer = call(*arguments)
            if calls == dies_at:
                raise Died
            return answer

        return made

    for after in (True, False):
        dies_at = 0
        while True:
            dies_at += 1
            calls = 0
            memory = Memory()
            requests = filled(memory)
            for part, names in (
                (memory.ledger, ("matches", "erase")),
                (memory.identities, ("holds", "erase", "mark_forgotten")),
                *((queue, ("receive", "delete", "change_visibility")) for queue in memory.queues),
            ):
                for name in names:
                    setattr(part, name, mortal(getattr(part, name), after=after))
            try:
                memory.run()
            except Died:
                memory.world.clock.advance(1000)
                memory.run()
                assert PHONE.removeprefix("+") not in memory.everything(), dies_at
                for request in requests:
                    assert memory.world.entry(request)["forgotten"], dies_at
            else:
                break
        assert dies_at > 15


# --- What is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ({}, "to: Field required"),
        ([], "the event: must be a valid dictionary or instance of Order"),
        ({"to": 5531999998888}, "to: must be a valid string"),
        ({"to": "5531999998888"}, "to: must start with + and the country code"),
        ({"to": "+55319999"}, "to: is too short for a number of its country"),
        ({"to": PHONE, "dry": False}, "dry: unknown field"),
        ({"to": PHONE, "dry_run": "no"}, "dry_run: must be a valid boolean"),
        ({"to": PHONE, "continue_from": PHONE}, "continue_from: String should match pattern"),
    ],
)
def test_invalid_order_is_refused_without_the_number(event: Any, problem: str) -> None:
    with pytest.raises(OrderError) as error:
        read_order(event)

    assert str(error.value).startswith(problem)
    assert "9999" not in str(error.value)


def test_nothing_is_erased_without_the_explicit_option() -> None:
    assert read_order({"to": "+55 31 99999-8888"}) == Order(to=PHONE, dry_run=True)


def test_no_log_holds_the_number(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    filled(memory)
    caplog.clear()
    caplog.set_level(logging.DEBUG, logger="notifier")

    memory.run()

    assert [record.getMessage() for record in caplog.records] == ["forgotten"] * 4
    assert "8888" not in " ".join(str(vars(record)) for record in caplog.records)
