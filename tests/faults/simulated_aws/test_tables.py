"""The simulated tables and moto's: expressions, reads, writes, the index and scans."""

import re
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from notifier.aws.table import Item, Table
from notifier.domain.status import Status
from tests.faults.simulated_aws.tables import due, keys, simulated_table
from tests.support.simulated_aws.dynamodb import SimTable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


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


def spelt(condition: str) -> str:
    """Return a condition whose attribute names cannot be reserved words of DynamoDB."""
    names = "|".join([*ITEM, "absent", "missing"])
    return re.sub(rf"(?<![:\w])({names})\b", r"#\1", condition)


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
def test_condition_is_evaluated(table: Table, condition: str, values: Item, expected: bool) -> None:
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
def test_condition_fails_where_the_documentation_says_so(condition: str, values: Item) -> None:
    """moto fails here, or takes `True` for a number and what is missing for a null."""
    assert not met(simulated_table(), ITEM, spelt(condition), values)


def test_condition_on_a_missing_item_is_evaluated(table: Table) -> None:
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
def test_update_is_applied(
    table: Table, item: Item, update: str, values: Item, expected: Item
) -> None:
    key = put(table, item)

    assert table.update(key, update, "", values) == (True, {"key": key} | expected)
    assert table.get(key) == {"key": key} | expected


# moto, and boto3 before it, refuse in several ways.
REFUSALS: dict[type[Table], tuple[type[Exception], ...]] = {
    Table: (ClientError, TypeError, ValueError, KeyError),
    SimTable: (AssertionError,),
}


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
def test_invalid_expression_is_refused(
    table: Table, item: Item, update: str, condition: str, values: Item
) -> None:
    key = put(table, item)
    before = table.get(key)

    with pytest.raises(REFUSALS[type(table)]):
        table.update(key, update, condition, values)

    assert table.get(key) == before


def test_items_share_nothing_with_their_caller(table: Table) -> None:
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


def test_many_items_are_read_at_once(table: Table) -> None:
    one, other = put(table, {"n": 1}), put(table, {"n": 2})

    items, unread = table.get_many([one, "absent", other])

    assert sorted(item["n"] for item in items) == [1, 2]
    assert not unread
    assert table.get_many([]) == ([], set())
    with pytest.raises(REFUSALS[type(table)]):
        table.get_many([one, one])


def test_deleted_item_is_gone(table: Table) -> None:
    key = put(table, {"n": 1})

    table.delete(key)
    table.delete(key)

    assert table.get(key) == {}
    assert table.update(key, "SET n = :n", "attribute_exists(#key)", {":n": 2}) == (False, {})


def test_index_holds_items_with_both_of_its_keys(indexed: Table) -> None:
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


def test_index_is_read_page_by_page(indexed: Table) -> None:
    shard = next(keys)
    waiting = {"wake_shard": shard, "wake_at": 7}
    wanted = sorted(put(indexed, waiting) for _ in range(3))
    wanted += [put(indexed, waiting | {"wake_at": wake_at}) for wake_at in (8, 9)]
    put(indexed, waiting | {"wake_at": 10})
    put(indexed, waiting | {"wake_shard": f"{shard}'s other"})
    condition, values = "wake_shard = :shard AND wake_at <= :now", {":shard": shard, ":now": 9}

    found: list[Item] = []
    while True:
        page = indexed.query("waits", condition, values, 2, after=found[-1] if found else None)
        found += page
        if len(page) < 2:
            break

    assert sorted(item["key"] for item in found[:3]) == wanted[:3]
    assert [item["key"] for item in found[3:]] == wanted[3:]
    assert all(item.keys() == {"key", "wake_shard", "wake_at"} for item in found)


def test_scan_returns_everything_once_page_by_page(indexed: Table) -> None:
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
