"""One suite for the simulated tables and queues and for moto's.

The fault tests and the benchmarks rest on what is simulated. So each answer here is asserted of
both, and the adapters run on both side by side: their answers and the stored items are the same
after every step.
"""

import inspect
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock
from uuid import UUID

import boto3
import pytest
from boto3.dynamodb.types import TypeSerializer
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from moto import mock_aws
from moto.dynamodb.comparisons import FuncSize
from moto.sqs import models as moto_queues

from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.identities import DynamoDbIdentities
from notifier.aws.queues import RequestsQueue, queued_request
from notifier.aws.refusals import DynamoDbRefusals
from notifier.aws.table import Item, Table
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import (
    Claim,
    ClaimLost,
    Control,
    LedgerEntry,
    LedgerPage,
    Refusal,
)
from notifier.domain.notification import ledger_key
from notifier.domain.receipts import Receipt
from notifier.domain.recipients import Identity, LookUpLease
from notifier.domain.status import Status
from tests.support.adapters import WholeLedger
from tests.support.builders import a_bot, a_notification
from tests.support.clock import Clock
from tests.support.simulated_aws.dynamodb import DirectAws, SimTable
from tests.support.simulated_aws.simulation import Simulation
from tests.support.simulated_aws.sqs import MAX_VISIBILITY_SECONDS, RETENTION_SECONDS, Queue, SimSqs
from tests.template.transformed import load

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_sqs import SQSClient

DAY = 86_400.0


@pytest.fixture(scope="module")
def session() -> Iterator[boto3.Session]:
    with mock_aws():
        yield boto3.Session("testing", "testing", region_name="us-east-1")


@pytest.fixture(scope="module")
def dynamodb(session: boto3.Session) -> Iterator["DynamoDBClient"]:
    """A client of an AWS that has the stack's tables twice, as the template makes them."""
    client = session.client("dynamodb")
    tables = {"ledger": "LedgerTable", "identities": "IdentitiesTable"}
    for name, resource in (tables | {"indexed": "LedgerTable", "plain": "IdentitiesTable"}).items():
        properties = load().properties(resource)
        asked = ("KeySchema", "AttributeDefinitions", "GlobalSecondaryIndexes", "BillingMode")
        client.create_table(
            TableName=name, **{each: properties[each] for each in asked if each in properties}
        )
    measured = FuncSize.expr

    def measure(self: FuncSize, item: Any) -> Any:
        return None if self.attr.get_type(item) is None else measured(self, item)

    # To moto the size of what is missing is an error of its own; to DynamoDB it is missing.
    with mock.patch.object(FuncSize, "expr", measure):
        yield client


# --- Expressions ----------------------------------------------------------------------------------

keys = map(str, itertools.count())


@pytest.fixture(params=["moto", "simulated"])
def table(request: pytest.FixtureRequest) -> Table:
    if request.param == "moto":
        return Table(request.getfixturevalue("dynamodb"), "plain")
    return simulated_table()


def simulated_table() -> SimTable:
    return SimTable("plain", DirectAws(Clock().now))


def put(table: Table, item: Item) -> str:
    """Store an item under a new key, and return the key."""
    key = next(keys)
    if item:
        change = ", ".join(f"#{name} = :{name}" for name in item)
        table.update(key, f"SET {change}", "", {f":{name}": item[name] for name in item})
    return key


def met(table: Table, item: Item, condition: str, values: Item) -> bool:
    key = put(table, item)
    held, found = table.update(key, "SET written = :written", condition, values | {":written": 1})
    assert found == ({"key": key} | item | {"written": 1} if held else _found(key, item))
    return held


def _found(key: str, item: Item) -> Item:
    return {"key": key} | item if item else {}


ITEM: Item = {
    "n": 5,
    "s": "text",
    "yes": True,
    "nothing": None,
    "many": ["a", "b"],
    "few": {"a", "b"},
    "map": {"one": 1},
}


@pytest.mark.parametrize(
    ("condition", "values", "expected"),
    [
        ("attribute_exists(n)", {}, True),
        ("attribute_exists(absent)", {}, False),
        ("attribute_not_exists(absent)", {}, True),
        ("attribute_not_exists(n)", {}, False),
        # What is null is there.
        ("attribute_exists(nothing)", {}, True),
        ("n = :five", {":five": 5}, True),
        ("n = :five", {":five": 6}, False),
        ("n <> :five", {":five": 6}, True),
        ("n < :v", {":v": 6}, True),
        ("n < :v", {":v": 5}, False),
        ("n <= :v", {":v": 5}, True),
        ("n > :v", {":v": 5}, False),
        ("n >= :v", {":v": 5}, True),
        ("n > :v", {":v": -6}, True),
        ("s < :v", {":v": "texts"}, True),
        ("s > :v", {":v": "Text"}, True),
        (":v < n", {":v": 4}, True),
        # Types that differ are not equal, and in no order.
        ("n = :v", {":v": "5"}, False),
        ("n <> :v", {":v": "5"}, True),
        ("yes = :v", {":v": True}, True),
        ("nothing = :v", {":v": None}, True),
        ("many = :v", {":v": ["a", "b"]}, True),
        ("many = :v", {":v": ["b", "a"]}, False),
        ("few = :v", {":v": {"b", "a"}}, True),
        ("map = :v", {":v": {"one": 1}}, True),
        # What is missing is equal to nothing, and in no order.
        ("absent = :v", {":v": 5}, False),
        ("absent <> :v", {":v": 5}, True),
        ("absent < :v", {":v": 5}, False),
        ("absent >= :v", {":v": 5}, False),
        ("n IN (:a, :b)", {":a": 4, ":b": 5}, True),
        ("n IN (:a)", {":a": 4}, False),
        ("n IN (:a)", {":a": "5"}, False),
        ("absent IN (:a)", {":a": 4}, False),
        ("size(many) = :v", {":v": 2}, True),
        ("size(many) < :v", {":v": 2}, False),
        ("size(few) = :v", {":v": 2}, True),
        ("size(map) = :v", {":v": 1}, True),
        ("size(absent) < :v", {":v": 2}, False),
        # AND binds more tightly than OR.
        ("n = :n OR n = :n AND n = :m", {":n": 5, ":m": 6}, True),
        ("(n = :n OR n = :n) AND n = :m", {":n": 5, ":m": 6}, False),
        ("n = :m AND n = :n OR n = :n", {":n": 5, ":m": 6}, True),
        ("n = :m AND (n = :n OR n = :n)", {":n": 5, ":m": 6}, False),
        ("(n = :n) AND (n = :n)", {":n": 5}, True),
        ("((n = :n) AND (n = :n)) OR n = :n", {":n": 5}, True),
    ],
)
def test_a_condition(table: Table, condition: str, values: Item, expected: bool) -> None:
    assert met(table, ITEM, spelt(condition), values) is expected


@pytest.mark.parametrize(
    ("condition", "values"),
    [
        ("n < :v", {":v": "6"}),
        ("n >= :v", {":v": "4"}),
        ("yes = :v", {":v": 1}),
        ("yes IN (:v)", {":v": 1}),
        ("map = :v", {":v": {"one": True}}),
        ("many = :v", {":v": {"a", "b"}}),
        ("absent = :v", {":v": None}),
        ("absent = missing", {}),
        ("absent IN (missing)", {}),
    ],
)
def test_a_condition_that_does_not_hold_by_the_documentation(condition: str, values: Item) -> None:
    """moto fails here, or takes `True` for a number and what is missing for a null."""
    assert not met(simulated_table(), ITEM, spelt(condition), values)


def spelt(condition: str) -> str:
    """Write the attributes' names so that none is taken for a word of DynamoDB's own."""
    names = "|".join([*ITEM, "absent", "missing"])
    return re.sub(rf"(?<![:\w])({names})\b", r"#\1", condition)


def test_a_condition_on_an_item_that_is_not_there(table: Table) -> None:
    assert not met(table, {}, "attribute_exists(#key)", {})
    assert met(table, {}, "attribute_not_exists(#key)", {})
    assert not met(table, {}, "#n = :v", {":v": 1})


@pytest.mark.parametrize(
    ("item", "update", "values", "expected"),
    [
        ({}, "SET n = :v", {":v": 1}, {"n": 1}),
        ({"n": 1, "m": 2}, "SET n = :v", {":v": "x"}, {"n": "x", "m": 2}),
        # The right-hand sides are those of the item as it was.
        ({"a": 1, "b": 2}, "SET #a = #b, #b = #a", {}, {"a": 2, "b": 1}),
        ({"a": 1}, "SET #b = #a REMOVE #a", {}, {"b": 1}),
        ({"n": 5}, "SET n = n + :v", {":v": 3}, {"n": 8}),
        ({"n": 5}, "SET n = n - :v", {":v": 8}, {"n": -3}),
        ({"n": 5}, "SET m = :v - n", {":v": 3}, {"n": 5, "m": -2}),
        ({}, "SET n = if_not_exists(n, :v) + :v", {":v": 3}, {"n": 6}),
        ({"n": 5}, "SET n = if_not_exists(n, :v) + :v", {":v": 3}, {"n": 8}),
        ({"n": None}, "SET n = if_not_exists(n, :v)", {":v": 3}, {"n": None}),
        ({}, "SET n = if_not_exists(m, :v)", {":v": 3}, {"n": 3}),
        ({"l": ["a"]}, "SET l = list_append(l, :v)", {":v": ["b"]}, {"l": ["a", "b"]}),
        ({"l": ["a"]}, "SET l = list_append(:v, l)", {":v": ["b"]}, {"l": ["b", "a"]}),
        (
            {},
            "SET l = list_append(if_not_exists(l, :none), :v)",
            {":none": [], ":v": [["sent", 1, 2]]},
            {"l": [["sent", 1, 2]]},
        ),
        ({}, "ADD few :v", {":v": {"a"}}, {"few": {"a"}}),
        ({"few": {"a", "b"}}, "ADD few :v", {":v": {"b", "c"}}, {"few": {"a", "b", "c"}}),
        ({"a": 1, "b": 2}, "REMOVE #a, absent", {}, {"b": 2}),
        ({}, "REMOVE absent", {}, {}),
        ({"few": {"a"}}, "SET n = :n REMOVE few", {":n": 1}, {"n": 1}),
        (
            {"n": 1},
            "SET m = :v, o = :w",
            {":v": {"one": [None, True, ""]}, ":w": Status.SENT},
            {"n": 1, "m": {"one": [None, True, ""]}, "o": "sent"},
        ),
    ],
)
def test_an_update(table: Table, item: Item, update: str, values: Item, expected: Item) -> None:
    key = put(table, item)

    assert table.update(key, update, "", values) == (True, {"key": key} | expected)
    assert table.get(key) == {"key": key} | expected


@pytest.mark.parametrize(
    ("item", "update", "condition", "values"),
    [
        ({}, "SET n = m", "", {}),
        ({}, "SET n = n + :v", "", {":v": 1}),
        ({"n": "5"}, "SET n = n + :v", "", {":v": 1}),
        ({"n": True}, "SET n = n + :v", "", {":v": 1}),
        ({}, "SET l = list_append(l, :v)", "", {":v": []}),
        ({"l": "a"}, "SET l = list_append(l, :v)", "", {":v": ["b"]}),
        ({"l": "a"}, "SET l = list_append(l, :v)", "", {":v": "b"}),
        ({}, "SET n = if_not_exists(:v, :v)", "", {":v": 1}),
        ({}, "ADD few :v", "", {":v": set()}),
        ({}, "SET few = :v", "", {":v": set()}),
        ({"few": ["a"]}, "ADD few :v", "", {":v": {"a"}}),
        ({"few": {1}}, "ADD few :v", "", {":v": {"a"}}),
        ({}, "SET n = :v", "", {":v": 1, ":unused": 1}),
        ({}, "SET n = :v", "", {}),
        ({}, "SET n = :v", "attribute_not_exists(m) OR m = :w", {":v": 1}),
        ({}, "SET n = :v, n = :v", "", {":v": 1}),
        ({}, "SET n = :v REMOVE n", "", {":v": 1}),
        ({}, "SET n = :v SET m = :v", "", {":v": 1}),
        ({}, "SET #key = :v", "", {":v": "another"}),
        ({"n": 1}, "REMOVE #key", "", {}),
        ({}, "SET n = :v", "m", {":v": 1}),
        ({}, "SET n = :v", "((m = :v))", {":v": 1}),
        ({}, "SET n = :v", "n = :v OR ((m = :v AND n = :v))", {":v": 1}),
        ({}, "SET n = :v", "m = :v AND", {":v": 1}),
        ({}, "SET n = :v", "(m = :v", {":v": 1}),
        ({}, "SET n = :v", "m = :v m", {":v": 1}),
        ({}, "SET n = :v", "attribute_there(m)", {":v": 1}),
        ({}, "SET", "", {}),
        ({}, "CHANGE n = :v", "", {":v": 1}),
        ({}, "SET n = :v", "", {":v": 0.5}),
    ],
)
def test_what_is_refused(
    table: Table, item: Item, update: str, condition: str, values: Item
) -> None:
    key = put(table, item)
    before = table.get(key)

    with pytest.raises(REFUSALS[type(table)]):
        table.update(key, update, condition, values)

    assert table.get(key) == before


# moto, and boto3 before it, refuse in several ways.
REFUSALS: dict[type[Table], tuple[type[Exception], ...]] = {
    Table: (ClientError, TypeError, ValueError, KeyError),
    SimTable: (AssertionError,),
}


def test_what_was_read_or_written_is_nobody_elses(table: Table) -> None:
    """DynamoDB keeps no Python objects: nothing that the caller does later is seen in it."""
    given, event = {"list": [1]}, ["sent"]
    key = put(table, {"n": 1})
    _, written = table.update(key, "SET m = :m, l = :l", "", {":m": given, ":l": [event]})
    given["list"].append(2)
    event.append("seen")
    written["m"]["list"].append(3)
    table.get(key)["m"]["list"].append(4)
    table.get_many([key])[0][0]["l"].append(5)

    assert table.get(key) == {"key": key, "n": 1, "m": {"list": [1]}, "l": [["sent"]]}


def test_many_are_read_at_once(table: Table) -> None:
    one, other = put(table, {"n": 1}), put(table, {"n": 2})

    items, unread = table.get_many([one, "absent", other])

    assert sorted(item["n"] for item in items) == [1, 2]
    assert not unread
    assert table.get_many([]) == ([], set())
    with pytest.raises(REFUSALS[type(table)]):
        table.get_many([one, one])


def test_what_is_deleted_is_gone(table: Table) -> None:
    key = put(table, {"n": 1})

    table.delete(key)
    table.delete(key)

    assert table.get(key) == {}
    assert table.update(key, "SET n = :n", "attribute_exists(#key)", {":n": 2}) == (False, {})


@pytest.fixture(params=["moto", "simulated"])
def indexed(request: pytest.FixtureRequest) -> Table:
    if request.param == "moto":
        return Table(request.getfixturevalue("dynamodb"), "indexed")
    return SimTable("indexed", DirectAws(Clock().now), page=2)


def due(table: Table, bot: str, most: int = 10) -> list[Item]:
    condition = "poll_bot = :bot AND poll_at <= :now"
    return table.query("polls", condition, {":bot": bot, ":now": 100}, most)


def test_the_index_holds_what_has_both_of_its_keys(indexed: Table) -> None:
    bot = next(keys)
    polled = {"poll_bot": bot, "generation": 1, "poll_since": 3, "request": "not projected"}
    late = put(indexed, polled | {"poll_at": 100})
    early = put(indexed, polled | {"poll_at": 50})
    put(indexed, polled | {"poll_at": 101})
    put(indexed, polled)
    put(indexed, polled | {"poll_bot": f"{bot}'s other", "poll_at": 1})
    gone, ended = (put(indexed, polled | {"poll_at": 1}) for _ in range(2))
    indexed.delete(gone)
    indexed.update(ended, "REMOVE poll_at", "", {})

    found = due(indexed, bot)

    projected = {"poll_bot": bot, "generation": 1, "poll_since": 3}
    assert found == [
        projected | {"key": early, "poll_at": 50},
        projected | {"key": late, "poll_at": 100},
    ]
    assert due(indexed, bot, 1) == found[:1]


def test_a_scan_shows_everything_once_page_by_page(indexed: Table) -> None:
    mark, other = next(keys), next(keys)
    filler = "x" * 390_000
    wanted = {put(indexed, {"recipient": mark, "filler": filler}) for _ in range(4)}
    put(indexed, {"recipient": other})
    found: list[Item] = []
    pages, after = 0, None
    while pages == 0 or after is not None:
        items, scanned, after = indexed.scan(
            "#recipient = :mask", {":mask": mark}, ["key", "recipient", "absent"], after
        )
        assert len(items) <= scanned
        found += items
        pages += 1

    assert pages > 1
    assert sorted(item["key"] for item in found) == sorted(wanted)
    assert all(item.keys() == {"key", "recipient"} for item in found)


# Conditions of every form that is understood, as far as moto answers them as it should.
NUMBERS, TEXTS = {":0": 0, ":1": 1, ":2": 2}, {":x": "x", ":xx": "xx"}
NUMBER, TEXT = st.sampled_from([*NUMBERS]), st.sampled_from([*TEXTS])
ANY = st.one_of(NUMBER, TEXT)
NAME = st.sampled_from(["#n", "#m", "#s", "#l", "#absent"])
ORDER = st.sampled_from(["<", "<=", ">", ">="])
ATOMS = st.one_of(
    st.builds("attribute_exists({})".format, NAME),
    st.builds("attribute_not_exists({})".format, NAME),
    st.builds("{} {} {}".format, NAME, st.sampled_from(["=", "<>"]), ANY),
    st.builds("#n {} {}".format, ORDER, NUMBER),
    st.builds("#s {} {}".format, ORDER, TEXT),
    st.builds("{} IN ({}, {})".format, NAME, ANY, ANY),
    st.builds("size(#l) {} {}".format, ORDER, NUMBER),
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.builds(
        "{} {} {}".format, inner, st.sampled_from(["AND", "OR"]), inner
    ).flatmap(lambda both: st.sampled_from([both, f"({both})"])),
    max_leaves=6,
)
ITEMS = st.fixed_dictionaries(
    {"l": st.lists(st.integers(0, 1), max_size=2)},
    optional={
        "n": st.integers(0, 2),
        "m": st.sampled_from([1, "x", None, ["x"]]),
        "s": st.sampled_from(["", "x", "xx"]),
    },
)


def test_any_condition_means_the_same_to_both(dynamodb: "DynamoDBClient") -> None:
    tables = [Table(dynamodb, "plain"), simulated_table()]

    @settings(max_examples=300, database=None)
    @given(item=ITEMS, condition=CONDITIONS)
    def compare(item: Item, condition: str) -> None:
        used = set(re.findall(r":\w+", condition))
        values = {name: value for name, value in (NUMBERS | TEXTS).items() if name in used}
        moto, simulated = (met(table, item, condition, values) for table in tables)
        assert moto is simulated

    compare()


# --- The adapters ---------------------------------------------------------------------------------

BOT_NAMES = ("default", "sales")
PHONES = ("+5531999998888", "+5531999990000")
IDS = ("order-1", "order-2")
TTL = 6 * 86_400
RECEIPTS = [Status.ACCEPTED, Status.DISPATCHED, Status.RECEIVED, Status.CONSUMED]


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
                now=self.clock.now,
                ttl_seconds=TTL,
                negative_ttl_seconds=86_400,
                uniform=max,
            ),
            "bot_states": DynamoDbBotStates(tables["identities"], self.clock.now),
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
    assert both(
        "ledger", "fail", Receipt(first.key, 1, Status.FAILED), Reason.REJECTED, postponed=True
    )
    again = replace(first, queued=replace(first.queued, generation=1))
    claim = both("ledger", "claim", again, Status.SENDING, now() + 30)
    assert claim.generation == 2
    moved, _ = both("ledger", "advance", Receipt(first.key, 1, Status.DISPATCHED))
    assert not moved
    both("ledger", "mark_failed", claim, Status.EXPIRED, Reason.EXPIRED, None)
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
    both("identities", "read", [recipient, ("default", PHONES[1])], ["default"])
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
        "refusals": DynamoDbRefusals,
    }
    assert both.called == {
        (name, method)
        for name, adapter in adapters.items()
        for method, _ in inspect.getmembers(adapter, inspect.isfunction)
        if not method.startswith("_")
    }


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

    @rule(name=ids, generation=generations, postponed=st.booleans())
    def failed_receipt(self, name: str, generation: int, postponed: bool) -> None:
        receipt = Receipt(ledger_key("default", name), generation, Status.FAILED, code=131_026)
        self.both("ledger", "fail", receipt, Reason.UNDELIVERED, postponed=postponed)

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
                self.both("identities", what, [recipient], BOT_NAMES)
            case _:
                self.both("identities", what, recipient)

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


def test_any_calls_of_the_adapters_answer_the_same(dynamodb: "DynamoDBClient") -> None:
    """Compares the answer and every item of both tables after each call."""
    Adapters.dynamodb = dynamodb

    run_state_machine_as_test(
        Adapters, settings=settings(max_examples=25, stateful_step_count=25, database=None)
    )


# --- The queues -----------------------------------------------------------------------------------

VISIBILITY = 180
MAX_RECEIVES = 3


class QueueUnderTest(Protocol):
    """A queue with the clock that it goes by."""

    client: Any
    url: str

    def advance(self, seconds: float) -> None: ...
    def now(self) -> float: ...
    def receive(self) -> list[dict[str, Any]]:
        """Take up to ten messages off, as Lambda hands them to a function."""
        ...

    def delete(self, handle: str) -> None: ...


class MotoQueue:
    """moto's, on a clock of the test."""

    def __init__(self, sqs: "SQSClient", monkeypatch: pytest.MonkeyPatch) -> None:
        self._clock = Clock()
        monkeypatch.setattr(moto_queues, "unix_time", self._clock.now)
        monkeypatch.setattr(moto_queues, "unix_time_millis", lambda: 1000 * self._clock.now())
        self.client = sqs
        name = next(keys)
        exhausted = sqs.create_queue(QueueName=f"{name}-exhausted")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=exhausted, AttributeNames=["QueueArn"])
        target = arn["Attributes"]["QueueArn"]
        policy = {"deadLetterTargetArn": target, "maxReceiveCount": MAX_RECEIVES}
        self.url = sqs.create_queue(
            QueueName=name,
            Attributes={
                "VisibilityTimeout": str(VISIBILITY),
                "MessageRetentionPeriod": str(RETENTION_SECONDS),
                "RedrivePolicy": json.dumps(policy),
            },
        )["QueueUrl"]

    def now(self) -> float:
        return self._clock.now()

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def receive(self) -> list[dict[str, Any]]:
        answer = self.client.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=10,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return [
            {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": message["Attributes"],
                "messageAttributes": {
                    name: {"stringValue": value["StringValue"], "dataType": value["DataType"]}
                    for name, value in message.get("MessageAttributes", {}).items()
                },
            }
            for message in answer.get("Messages", [])
        ]

    def delete(self, handle: str) -> None:
        self.client.delete_message(QueueUrl=self.url, ReceiptHandle=handle)


class SimulatedQueue:
    """Ours, without faults."""

    url = "requests"

    def __init__(self) -> None:
        self._simulation = Simulation(0)
        self._queue = Queue(
            self._simulation, "requests", visibility_timeout=VISIBILITY, max_receives=MAX_RECEIVES
        )
        self.client = SimSqs(DirectAws(self.now), {self.url: self._queue})

    def now(self) -> float:
        return self._simulation.now

    def advance(self, seconds: float) -> None:
        self._simulation.run(seconds)

    def receive(self) -> list[dict[str, Any]]:
        return [message.record() for message in self._queue.receive()]

    def delete(self, handle: str) -> None:
        self._queue.delete(handle)


@pytest.fixture(params=["moto", "simulated"])
def queue(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> QueueUnderTest:
    if request.param == "simulated":
        return SimulatedQueue()
    session: boto3.Session = request.getfixturevalue("session")
    return MotoQueue(session.client("sqs"), monkeypatch)


def send(queue: QueueUnderTest, *bodies: str, **arguments: Any) -> list[str]:
    """Put messages on the queue; return their ids."""
    return [
        queue.client.send_message(QueueUrl=queue.url, MessageBody=body, **arguments)["MessageId"]
        for body in bodies
    ]


def change_visibility(
    queue: QueueUnderTest, *changes: tuple[dict[str, Any], float]
) -> tuple[list[str], int]:
    """Change visibilities; return the ids of those that were changed, and how many were not."""
    answer = queue.client.change_message_visibility_batch(
        QueueUrl=queue.url,
        Entries=[
            {"Id": str(n), "ReceiptHandle": record["receiptHandle"], "VisibilityTimeout": seconds}
            for n, (record, seconds) in enumerate(changes)
        ],
    )
    return [entry["Id"] for entry in answer.get("Successful", [])], len(answer.get("Failed", []))


def bodies(queue: QueueUnderTest) -> list[str]:
    return sorted(record["body"] for record in queue.receive())


def test_a_message_is_received_as_it_was_sent(queue: QueueUnderTest) -> None:
    at = queue.now()
    requests = RequestsQueue(queue.client, queue.url)
    requests.enqueue_next_generation(
        "a body", bot="sales", generation=2, redrives=1, delay_seconds=0
    )
    queue.advance(7)

    (record,) = queue.receive()

    queued = queued_request(record)
    assert queued.body == "a body"
    assert (queued.generation, queued.redrives, queued.receive_count) == (2, 1, 1)
    assert queued.published_at == at
    assert record["messageAttributes"]["generation"] == {"stringValue": "2", "dataType": "Number"}


def test_no_more_than_ten_are_received_at_once(queue: QueueUnderTest) -> None:
    ids = send(queue, *map(str, range(12)))

    first, rest = queue.receive(), queue.receive()

    assert (len(first), len(rest)) == (10, 2)
    assert sorted(record["messageId"] for record in first + rest) == sorted(ids)
    assert queue.receive() == []


def test_what_was_received_comes_back_after_the_visibility_timeout(queue: QueueUnderTest) -> None:
    send(queue, "one")
    (first,) = queue.receive()
    queue.advance(VISIBILITY - 1)
    assert queue.receive() == []
    queue.advance(2)

    (again,) = queue.receive()

    assert again["messageId"] == first["messageId"]
    assert again["receiptHandle"] != first["receiptHandle"]
    assert [queued_request(record).receive_count for record in (first, again)] == [1, 2]


def test_what_is_delayed_is_received_later(queue: QueueUnderTest) -> None:
    send(queue, "later", DelaySeconds=60)
    send(queue, "now")
    assert bodies(queue) == ["now"]
    queue.advance(59)
    assert bodies(queue) == []
    queue.advance(2)
    assert bodies(queue) == ["later"]


def test_what_is_hidden_comes_back_when_it_was_said_to(queue: QueueUnderTest) -> None:
    send(queue, "longer", "shorter", "at once")
    received = {record["body"]: record for record in queue.receive()}

    changed = change_visibility(
        queue, (received["longer"], 1000), (received["shorter"], 10), (received["at once"], 0)
    )

    assert changed == (["0", "1", "2"], 0)
    queue.advance(1)
    assert bodies(queue) == ["at once"]
    queue.advance(10)
    assert bodies(queue) == ["shorter"]
    queue.advance(VISIBILITY + 1)
    assert bodies(queue) == ["at once", "shorter"]
    queue.advance(1000 - VISIBILITY - 12 + 1)
    assert "longer" in bodies(queue)


def test_hiding_again_counts_from_then(queue: QueueUnderTest) -> None:
    send(queue, "one")
    (record,) = queue.receive()
    change_visibility(queue, (record, 100))
    queue.advance(90)
    change_visibility(queue, (record, 100))
    queue.advance(90)
    assert bodies(queue) == []
    queue.advance(11)
    assert bodies(queue) == ["one"]


def test_what_is_gone_is_not_hidden(queue: QueueUnderTest) -> None:
    send(queue, "gone", "there")
    received = {record["body"]: record for record in queue.receive()}
    queue.delete(received["gone"]["receiptHandle"])

    assert change_visibility(queue, (received["gone"], 10), (received["there"], 10)) == (["1"], 1)


def test_nothing_is_hidden_for_more_than_twelve_hours_from_its_receipt(
    queue: QueueUnderTest,
) -> None:
    send(queue, "one")
    (record,) = queue.receive()
    queue.advance(10)
    try:
        changed, refused = change_visibility(queue, (record, MAX_VISIBILITY_SECONDS - 9))
    except ClientError:  # moto refuses the whole batch
        changed, refused = [], 1

    assert (changed, refused) == ([], 1)
    assert change_visibility(queue, (record, MAX_VISIBILITY_SECONDS - 10)) == (["0"], 0)


def test_what_is_deleted_never_comes_back(queue: QueueUnderTest) -> None:
    send(queue, "one", "other")
    received = {record["body"]: record for record in queue.receive()}
    queue.delete(received["one"]["receiptHandle"])
    queue.delete(received["one"]["receiptHandle"])
    queue.advance(VISIBILITY + 1)

    assert bodies(queue) == ["other"]


def test_an_earlier_handle_deletes_as_well(queue: QueueUnderTest) -> None:
    send(queue, "one")
    (first,) = queue.receive()
    queue.advance(VISIBILITY + 1)
    queue.receive()
    queue.delete(first["receiptHandle"])
    queue.advance(VISIBILITY + 1)

    assert queue.receive() == []


def test_what_is_received_too_often_leaves_the_queue(queue: QueueUnderTest) -> None:
    send(queue, "one")
    counts = []
    for _ in range(MAX_RECEIVES):
        counts += [queued_request(record).receive_count for record in queue.receive()]
        queue.advance(VISIBILITY + 1)

    assert counts == [1, 2, 3]
    assert queue.receive() == []


def test_what_grows_too_old_leaves_the_queue(queue: QueueUnderTest) -> None:
    send(queue, "old")
    queue.advance(RETENTION_SECONDS - 200)
    assert bodies(queue) == ["old"]
    queue.advance(201)

    assert queue.receive() == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([], id="none"),
        pytest.param([("1", 0)] * 2, id="an id twice"),
        pytest.param([(str(n), 0) for n in range(11)], id="more than ten"),
    ],
)
def test_a_batch_that_sqs_refuses(changes: list[tuple[str, int]]) -> None:
    """By its documentation: moto refuses none of these."""
    queue = SimulatedQueue()
    send(queue, "one")
    (record,) = queue.receive()
    entries = [
        {"Id": name, "ReceiptHandle": record["receiptHandle"], "VisibilityTimeout": seconds}
        for name, seconds in changes
    ]

    with pytest.raises(AssertionError):
        queue.client.change_message_visibility_batch(QueueUrl=queue.url, Entries=entries)

    assert queue.receive() == []


@pytest.mark.parametrize(("body", "delay"), [("too late", 901), ("", 0)])
def test_a_message_that_sqs_refuses(body: str, delay: int) -> None:
    """By its documentation, too."""
    queue = SimulatedQueue()

    with pytest.raises(AssertionError):
        send(queue, body, DelaySeconds=delay)

    assert queue.receive() == []
