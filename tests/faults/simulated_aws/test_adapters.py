"""The adapters on the simulated tables and on moto's answer the same, call by call."""

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock
from uuid import UUID

import pytest
from boto3.dynamodb.types import TypeSerializer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.identities import DynamoDbIdentities
from notifier.aws.refusals import DynamoDbRefusals
from notifier.aws.table import Item, Table
from notifier.aws.templates import DynamoDbTemplates
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import (
    Claim,
    ClaimLost,
    Control,
    LedgerEntry,
    LedgerPage,
    Refusal,
)
from notifier.domain.notification import Notification, ledger_key
from notifier.domain.receipts import Receipt
from notifier.domain.recipients import Identity, LookUpLease
from notifier.domain.status import Status
from notifier.domain.templates import RegisteredTemplate, TemplateStatus, Translation
from tests.support.adapters import WholeLedger
from tests.support.builders import a_bot, a_notification
from tests.support.clock import Clock
from tests.support.simulated_aws.dynamodb import DirectAws, SimTable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

DAY = 86_400.0
PHONES = ("+5531999998888", "+5531999990000")
IDS = ("order-1", "order-2")
TTL = 6 * 86_400


class Both:
    """The adapters on moto's tables and on the simulated ones, called side by side.

    Attributes:
        called: the methods that were called, by adapter.
    """

    def __init__(self, dynamodb: "DynamoDBClient") -> None:
        self.clock = Clock()
        self.called: set[tuple[str, str]] = set()
        self._dynamodb = dynamodb
        aws = DirectAws(self.clock.now)
        self._simulated = {name: SimTable(name, aws) for name in ("ledger", "identities")}
        real = {name: Table(dynamodb, name) for name in self._simulated}
        self._adapters = [self._built(tables) for tables in (real, self._simulated)]
        self._calls = itertools.count(1)

    def _built(self, tables: dict[str, Any]) -> dict[str, Any]:
        return {
            "ledger": WholeLedger(tables["ledger"], self.clock.now),
            "identities": DynamoDbIdentities(
                tables["identities"],
                templates=DynamoDbTemplates(tables["identities"], self.clock.now),
                now=self.clock.now,
                ttl_seconds=TTL,
                negative_ttl_seconds=86_400,
                uniform=max,
            ),
            "bot_states": DynamoDbBotStates(tables["identities"], self.clock.now),
            "templates": DynamoDbTemplates(tables["identities"], self.clock.now),
            "refusals": DynamoDbRefusals(tables["ledger"], self.clock.now),
        }

    def __call__(self, adapter: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of both, compare answers and tables, and return the answer."""
        self.called.add((adapter, method))
        # Each call makes tokens of its own, the same for both.
        token = UUID(int=next(self._calls))
        answers = []
        for adapters in self._adapters:
            with (
                mock.patch("notifier.aws.ledger.uuid4", return_value=token),
                mock.patch("notifier.aws.identities.uuid4", return_value=token),
            ):
                try:
                    answer = getattr(adapters[adapter], method)(*args, **kwargs)
                except ClaimLost as error:
                    answer = ("lost", *error.args, error.forgotten)
            answers.append(answer)
        real, simulated = answers
        assert _in_order(simulated) == _in_order(real), method
        for name, table in self._simulated.items():
            found = self._dynamodb.scan(TableName=name)["Items"]
            stored = {item["key"]["S"]: {n: _sorted(v) for n, v in item.items()} for item in found}
            assert {key: _typed(item) for key, item in table.items.items()} == stored, method
        return real

    def clear(self) -> None:
        """Empty moto's tables."""
        for name, table in self._simulated.items():
            for key in table.items:
                self._dynamodb.delete_item(TableName=name, Key={"key": {"S": key}})


def _typed(item: Item) -> dict[str, Any]:
    """Write an item as DynamoDB does, so that `1` and `True` differ."""
    return {name: _sorted(TypeSerializer().serialize(value)) for name, value in item.items()}


def _sorted(value: Any) -> Any:
    return {kind: sorted(v) if kind in {"SS", "NS"} else v for kind, v in value.items()}


def _in_order(answer: Any) -> Any:
    """Return what a table gives in any order in a fixed one."""
    match answer:
        case list():
            return sorted(answer, key=repr)
        case LedgerPage(held, scanned, last):
            return sorted(held, key=repr), scanned, last
        case _:
            return answer


def again_of(notification: Notification, generation: int) -> Notification:
    """Return the same request, put on the queue after a generation."""
    return replace(notification, queued=replace(notification.queued, generation=generation))


@pytest.fixture
def both(dynamodb: "DynamoDBClient") -> Iterator[Both]:
    made = Both(dynamodb)
    yield made
    made.clear()


def test_every_method_of_the_adapters_answers_the_same(both: Both) -> None:
    """The straight way through each of them; the search below takes all the others."""
    now = both.clock.now
    first, second = (a_notification(id=name, bot="default") for name in IDS)
    recipient = ("default", PHONES[0])
    claim = both("ledger", "claim", first, Status.CLAIMED, now() + 30)
    assert isinstance(claim, Claim)
    claim = both("ledger", "start_sending", claim, now() + 30)
    both("ledger", "mark_unknown", claim)
    standing = both("ledger", "claim", first, Status.CLAIMED, now() + 30)
    assert isinstance(standing, LedgerEntry)
    both.clock.advance(60)
    claim = both("ledger", "claim_unknown", standing, now() + 30)
    both("ledger", "release_unknown", replace(claim, control=Control("another", now())))
    claim = both("ledger", "claim_unknown", standing, now() + 30)
    both("ledger", "mark_not_sent", claim)
    claim = both("ledger", "claim", first, Status.SENDING, now() + 30)
    both("ledger", "mark_sent", claim, now())
    (poll,) = both("ledger", "due", "default", 10)
    both("ledger", "polled", poll, now() + 60)
    moved, _ = both("ledger", "advance", Receipt(first.key, 1, Status.ACCEPTED))
    assert moved
    assert both("ledger", "wait", first.key, 1, now() + 60, "rate limited", 131_056)
    both.clock.advance(60)
    (due,) = both("ledger", "due_waits", first.key[0], 10, None)
    assert both("ledger", "due_waits", first.key[0], 10, due) == []
    ((entry,), _) = both("ledger", "read_waiting", [due.key, second.key])
    both("ledger", "woken", entry)
    assert both("ledger", "due_waits", first.key[0], 10, None) == []
    claim = both("ledger", "claim", again_of(first, 1), Status.SENDING, now() + 30)
    assert claim.generation == 2
    moved, _ = both("ledger", "advance", Receipt(first.key, 1, Status.DISPATCHED))
    assert not moved
    both("ledger", "mark_failed", claim, Status.EXPIRED, Reason.EXPIRED, None)
    claim = both("ledger", "claim", again_of(first, 2), Status.SENDING, now() + 30)
    both("ledger", "mark_sent", claim, None)
    assert both("ledger", "fail", Receipt(first.key, 3, Status.FAILED), Reason.REJECTED)
    claim = both("ledger", "claim", second, Status.CLAIMED, now() + 30)
    both("ledger", "release", claim, attempted=False)
    claim = both("ledger", "claim", second, Status.SENDING, now() + 30)
    both("ledger", "release_unsent", claim)
    both("ledger", "cancel", "default", IDS[1])
    both("ledger", "complete_cancelled", second)
    both("ledger", "read", first.key)
    both("ledger", "details", "default", IDS[0])
    assert both("ledger", "matches", PHONES[0], None).matches
    both("ledger", "erase", first.key)
    both("refusals", "keep", "default", IDS[0], Refusal("message", Reason.INVALID))
    assert both("refusals", "holds", "default", IDS[0], "message")
    assert both("refusals", "details", "default", IDS[0])
    lease = both("identities", "lease", recipient, 10)
    both("identities", "store", lease, Identity("5531@wa.gw.msging.net"))
    both("identities", "get", recipient)
    both("identities", "invalidate", recipient)
    lease = both("identities", "lease", recipient, 10)
    both("identities", "release", lease)
    both("identities", "mark_forgotten", PHONES[1])
    described = RegisteredTemplate("one", now(), {"en": Translation(TemplateStatus.PAUSED)})
    both("templates", "keep", "default", described)
    both.clock.advance(1)
    both("templates", "keep_published", "default", replace(described, asked_at=now()))
    assert both("templates", "of_bot", "default", ["one", "two"])
    assert both("templates", "question", "default", "one").granted
    both("templates", "remember", ("default", "two"), {})
    both("templates", "pause", "default", "one", "en")
    both.clock.advance(1)
    both("templates", "resume", "default", "one", "en", now())
    both("templates", "synced", "default", now())
    assert both("bot_states", "state", "default").templates_synced_at
    assert both("templates", "remembered", ("default", "one"))
    both(
        "identities",
        "read",
        [recipient, ("default", PHONES[1])],
        ["default"],
        [("default", "three")],
    )
    assert both("identities", "holds", recipient)
    both("identities", "erase", recipient)
    assert both("bot_states", "reserve", a_bot(), "messages", 10, 3.0, share=0.9).slots
    both("bot_states", "state", "default")
    assert both("bot_states", "start_cooldown", a_bot(), "messages", now() + 120)
    assert not both("bot_states", "start_cooldown", a_bot(), "messages", now() + 130)
    assert both("bot_states", "missing", "default")
    both("bot_states", "found", "default")
    both("bot_states", "keep_control", "default", Control("one", now()), now())
    both("bot_states", "keep_control", "default", Control("two", now() + 9), now() + 9)
    both("bot_states", "history_shows", "default", now())
    assert not both("bot_states", "number_in_trouble", "default", "one", now(), "why")
    assert not both("bot_states", "number_in_trouble", "default", "two", now(), "why")
    both("bot_states", "failed", "default", ["one"])
    both("bot_states", "answered", "default")
    both("bot_states", "open_breaker", "default", "why")
    both("bot_states", "probe", "default")
    both("bot_states", "close_breaker", "default", sent=True)
    both("bot_states", "number_down", "default", "why")
    both("bot_states", "pause", "default")
    both("bot_states", "resume", "default")

    adapters = {
        "ledger": WholeLedger,
        "identities": DynamoDbIdentities,
        "bot_states": DynamoDbBotStates,
        "templates": DynamoDbTemplates,
        "refusals": DynamoDbRefusals,
    }
    assert both.called == {
        (name, method)
        for name, adapter in adapters.items()
        for method, _ in inspect.getmembers(adapter, inspect.isfunction)
        if not method.startswith("_")
    }


BOT_NAMES = ("default", "sales")
RECEIPTS = [Status.ACCEPTED, Status.DISPATCHED, Status.RECEIVED, Status.CONSUMED]

WORK = [
    *("start_sending", "mark_sent", "polled later", "mark_unknown", "release", "give back"),
    *("mark_failed", "claim_unknown", "mark_not_sent", "release_unknown", "release_unsent"),
]
seconds = st.sampled_from([0.0, 1.0, 31.0, 601.0, 3600.0, 46 * DAY])
bots = st.sampled_from(BOT_NAMES)
recipients = st.tuples(bots, st.sampled_from(PHONES))
ids = st.sampled_from(IDS)
generations = st.integers(0, 3)
any_of = st.integers(0, 5)


class Adapters(RuleBasedStateMachine):
    """Calls of the adapters in any order, with claims and leases of any age."""

    dynamodb: "DynamoDBClient"

    def __init__(self) -> None:
        super().__init__()
        self.both = Both(self.dynamodb)
        self.claims: list[Claim] = []
        self.standings: list[LedgerEntry] = []
        self.leases: list[LookUpLease] = []

    def teardown(self) -> None:
        self.both.clear()

    def _keep(self, answer: Any) -> None:
        match answer:
            case Claim():
                self.claims.append(answer)
            case LedgerEntry():
                self.standings.append(answer)
            case LookUpLease():
                self.leases.append(answer)
            case _:
                pass

    @rule(by=seconds)
    def time_goes_by(self, by: float) -> None:
        self.both.clock.advance(by)

    @rule(
        name=ids,
        generation=st.none() | generations,
        status=st.sampled_from([Status.CLAIMED, Status.SENDING]),
        body=st.sampled_from([["Maria", "981"], ["Jo", "982"]]),
    )
    def claim(self, name: str, generation: int | None, status: Status, body: list[str]) -> None:
        template = {"name": "order_shipped", "language": "pt_BR", "body": body}
        notification = a_notification(
            id=name, bot="default", template=template, generation=generation
        )
        until = self.both.clock.now() + 30
        self._keep(self.both("ledger", "claim", notification, status, until))

    @rule(
        number=any_of,
        what=st.sampled_from(WORK),
    )
    def work(self, number: int, what: str) -> None:
        until = self.both.clock.now() + 30
        if what == "claim_unknown":
            for standing in self.standings[-1 - number :][:1]:
                self._keep(self.both("ledger", what, standing, until))
            return
        for claim in self.claims[-1 - number :][:1]:
            match what:
                case "start_sending":
                    self._keep(self.both("ledger", what, claim, until))
                case "mark_sent":
                    self.both("ledger", what, claim, None)
                case "polled later":
                    self.both("ledger", "mark_sent", claim, until)
                case "release":
                    self.both("ledger", what, claim, attempted=True)
                case "give back":
                    self.both("ledger", "release", claim, attempted=False)
                case "mark_failed":
                    self.both("ledger", what, claim, Status.REJECTED, Reason.REJECTED, 21)
                case _:
                    self.both("ledger", what, claim)

    @rule(name=ids, generation=generations, status=st.sampled_from(RECEIPTS))
    def receipt(self, name: str, generation: int, status: Status) -> None:
        key = ledger_key("default", name)
        self.both("ledger", "advance", Receipt(key, generation, status))

    @rule(name=ids, generation=generations, code=st.none() | st.just(131_026))
    def failed_receipt(self, name: str, generation: int, code: int | None) -> None:
        receipt = Receipt(ledger_key("default", name), generation, Status.FAILED, code=code)
        self.both("ledger", "fail", receipt, Reason.UNDELIVERED)

    @rule(name=ids, generation=generations, by=seconds, code=st.none() | st.just(131_056))
    def waits(self, name: str, generation: int, by: float, code: int | None) -> None:
        until = self.both.clock.now() + by
        self.both("ledger", "wait", ledger_key("default", name), generation, until, "kind", code)

    @rule(is_woken=st.booleans())
    def wakes(self, is_woken: bool) -> None:
        keys = [ledger_key("default", name) for name in IDS]
        for shard in {key[0] for key in keys}:
            for due in self.both("ledger", "due_waits", shard, 10, None):
                self.both("ledger", "due_waits", shard, 1, due)
        entries, unreadable = self.both("ledger", "read_waiting", keys)
        assert unreadable == []
        for entry in entries if is_woken else ():
            self.both("ledger", "woken", entry)

    @rule(name=ids, message=st.integers(0, 3))
    def refused(self, name: str, message: int) -> None:
        if self.both("refusals", "holds", "default", name, str(message)):
            self.both("refusals", "details", "default", name)
        else:
            self.both("refusals", "keep", "default", name, Refusal(str(message), Reason.INVALID))

    @rule(name=ids)
    def meets_its_request(self, name: str) -> None:
        self.both("ledger", "complete_cancelled", a_notification(id=name, bot="default"))

    @rule(name=ids, what=st.sampled_from(["cancel", "details", "read", "erase", "matches"]))
    def ask(self, name: str, what: str) -> None:
        match what:
            case "cancel" | "details":
                self.both("ledger", what, "default", name)
            case "matches":
                self.both("ledger", what, PHONES[0], None)
            case _:
                self.both("ledger", what, ledger_key("default", name))

    @rule(next_in=st.none() | st.just(60.0))
    def poll(self, next_in: float | None) -> None:
        for poll in self.both("ledger", "due", "default", 10):
            next_at = None if next_in is None else self.both.clock.now() + next_in
            self.both("ledger", "polled", poll, next_at)

    @rule(recipient=recipients)
    def lease(self, recipient: tuple[str, str]) -> None:
        self._keep(self.both("identities", "lease", recipient, 10.0))

    @rule(number=any_of, code=st.none() | st.just(81), stored=st.booleans())
    def looked_up(self, number: int, code: int | None, stored: bool) -> None:
        for lease in self.leases[-1 - number :][:1]:
            if stored:
                address = None if code else "5531@wa.gw.msging.net"
                self.both("identities", "store", lease, Identity(address, code))
            else:
                self.both("identities", "release", lease)

    @rule(
        recipient=recipients,
        what=st.sampled_from(["get", "invalidate", "holds", "erase", "mark_forgotten", "read"]),
    )
    def identity(self, recipient: tuple[str, str], what: str) -> None:
        match what:
            case "mark_forgotten":
                self.both("identities", what, recipient[1])
            case "read":
                self.both("identities", what, [recipient], BOT_NAMES, [("default", "one")])
            case _:
                self.both("identities", what, recipient)

    @rule(
        what=st.sampled_from(["keep", "question", "pause", "resume", "synced"]),
        language=st.sampled_from(["pt_BR", "en"]),
    )
    def template(self, what: str, language: str) -> None:
        now = self.both.clock.now()
        match what:
            case "keep":
                languages = {language: Translation(TemplateStatus.APPROVED)}
                self.both("templates", what, "default", RegisteredTemplate("one", now, languages))
            case "question":
                self.both("templates", what, "default", "one")
            case "pause":
                self.both("templates", what, "default", "one", language)
            case "resume":
                self.both("templates", what, "default", "one", language, now)
            case _:
                self.both("templates", what, "default", now)

    @rule(
        bot=bots,
        plan=st.sampled_from(["messages", "commands"]),
        count=st.sampled_from([1, 10, 200]),
        probing=st.booleans(),
        asking=st.booleans(),
    )
    def reserve(self, bot: str, plan: str, count: int, probing: bool, asking: bool) -> None:
        self.both(
            *("bot_states", "reserve", a_bot(name=bot), plan, count, 3.0),
            share=0.9,
            probing=probing,
            asking=asking,
        )

    @rule(bot=bots, what=st.sampled_from(["answered", "pause", "resume", "probe"]))
    def bot_is(self, bot: str, what: str) -> None:
        self.both("bot_states", what, bot)

    @rule(bot=bots, what=st.sampled_from(["open_breaker", "number_down"]))
    def bot_breaks(self, bot: str, what: str) -> None:
        self.both("bot_states", what, bot, "why")

    @rule(bot=bots, by=st.sampled_from([1.0, 120.0]), sent=st.booleans(), close=st.booleans())
    def bot_is_shut_or_closed(self, bot: str, by: float, sent: bool, close: bool) -> None:
        if close:
            self.both("bot_states", "close_breaker", bot, sent=sent)
        else:
            self.both(
                "bot_states",
                "start_cooldown",
                a_bot(name=bot),
                "messages",
                self.both.clock.now() + by,
            )

    @rule(
        bot=bots,
        by=st.sampled_from([-400.0, 0.0, 5.0]),
        what=st.sampled_from(["missing", "found", "history_shows", "keep_control", "state"]),
    )
    def bot_is_known(self, bot: str, by: float, what: str) -> None:
        at = self.both.clock.now() + by
        match what:
            case "history_shows":
                self.both("bot_states", what, bot, at)
            case "keep_control":
                self.both("bot_states", what, bot, Control(f"at {at:.0f}", at), at - 300)
            case _:
                self.both("bot_states", what, bot)

    @rule(bot=bots, key=st.sampled_from("abcdef"))
    def number_is_in_trouble(self, bot: str, key: str) -> None:
        self.both("bot_states", "number_in_trouble", bot, key, self.both.clock.now(), "why")

    @rule(bot=bots, failing=st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3))
    def fails(self, bot: str, failing: set[str]) -> None:
        self.both("bot_states", "failed", bot, failing)


def test_any_sequence_of_calls_answers_the_same(dynamodb: "DynamoDBClient") -> None:
    """Compares the answer and every item of both tables after each call."""
    Adapters.dynamodb = dynamodb

    run_state_machine_as_test(
        Adapters, settings=settings(max_examples=25, stateful_step_count=25, database=None)
    )
