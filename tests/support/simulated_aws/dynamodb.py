"""DynamoDB tables in memory that understand the expressions which the adapters write.

The real adapters run on them. `tests/faults/simulated_aws/` compares them with moto's: the
adapters' answers and items, and the evaluator expression by expression. What DynamoDB would refuse
raises `AssertionError`. Except for reserved words the evaluator is stricter than DynamoDB: it
refuses every expression that the adapters do not use, such as paths into attributes, other
functions, and `ADD` and `DELETE` of sets.
"""

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from itertools import islice
from operator import ge, gt, le, lt
from threading import RLock
from typing import Any, NoReturn, cast

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)

from notifier.aws.table import Item, Table
from tests.support.simulated_aws.simulation import Simulation

type _Values = dict[str, Any]
type _Condition = Callable[[Item, _Values], bool]
type _Operand = Callable[[Item, _Values], Any]
type _Change = Callable[[Item, Item, _Values], None]

_MISSING = object()
# Of each index: its keys, and what else it holds of an item beside `key`.
INDEXES = {
    "polls": ("poll_bot", "poll_at", ("generation", "poll_since")),
    "waits": ("wake_shard", "wake_at", ()),
}
_TOKEN = re.compile(r"\s*(?:([#:]?\w+)|(<=|>=|<>|[=<>(),+-]))")
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
}


# boto3 tries three times, as `entrypoints.environment.AWS` says, and waits in between.
TRIES = 3
_URL = "https://aws.invalid"


def refused(code: str, operation: str) -> ClientError:
    """Return an error that AWS answers."""
    return ClientError({"Error": {"Code": code, "Message": code}}, operation)


# What a call to AWS may raise, by name, with how long one try takes until then, in seconds.
ERRORS: dict[str, tuple[Callable[[str], BotoCoreError | ClientError], float]] = {
    "ReadTimeoutError": (lambda _: ReadTimeoutError(endpoint_url=_URL), 3.0),
    "ConnectTimeoutError": (lambda _: ConnectTimeoutError(endpoint_url=_URL), 1.0),
    "EndpointConnectionError": (lambda _: EndpointConnectionError(endpoint_url=_URL), 0.01),
    "ConnectionClosedError": (lambda _: ConnectionClosedError(endpoint_url=_URL), 0.1),
    "ProxyConnectionError": (lambda _: ProxyConnectionError(proxy_url=_URL), 1.0),
    "HTTPClientError": (lambda _: HTTPClientError(error="reset"), 0.1),
    "SSLError": (lambda _: SSLError(endpoint_url=_URL, error=OSError("no handshake")), 0.1),
    **{
        code: (partial(refused, code), 0.01)
        for code in (
            "ProvisionedThroughputExceededException",
            "ThrottlingException",
            "InternalServerError",
        )
    },
}


@dataclass(frozen=True)
class AwsError:
    """A call that fails in all its tries.

    Attributes:
        name: the error's name.
        happens: how many of the tries take effect although they fail.
    """

    name: str
    happens: int = 0


@dataclass
class AwsFaults:
    """What goes wrong with a call to AWS, as probabilities.

    Attributes:
        repeated: the answer gets lost, and boto3 asks again: it happens twice.
        failed: boto3 gives up, with any of ERRORS; how often it happened is chance.
        slow: it takes up to three seconds.
        stale: an eventually consistent read shows the item as it was before its last write.
    """

    repeated: float = 0.0
    failed: float = 0.0
    slow: float = 0.0
    stale: float = 0.0


class DirectAws:
    """Calls to AWS that happen at once and never fail. They need no simulation. Thread-safe.

    Attributes:
        now: the time, in epoch seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._lock = RLock()

    def call[T](self, point: str, effect: Callable[[], T], typical: float = 0.004) -> T:  # noqa: ARG002
        """Return the effect's value. Name and latency matter to a simulation only."""
        with self._lock:
            return effect()

    def swept(self) -> bool:
        """Return whether an item that has outlived its time to live is deleted by now."""
        return False

    def stale(self) -> bool:
        """Return whether an eventually consistent read misses the item's last write."""
        return False


class Aws(DirectAws):
    """Calls to AWS from the threads of a simulation, with their latencies and faults.

    Attributes:
        fails: asked at every call, given its name, how it fails; None if chance decides.
    """

    def __init__(self, simulation: Simulation, faults: AwsFaults) -> None:
        super().__init__(lambda: simulation.now)
        self.simulation = simulation
        self.faults = faults
        self.fails: Callable[[str], AwsError | None] = lambda _: None

    def swept(self) -> bool:
        return self.simulation.random.random() < 0.3

    def stale(self) -> bool:
        return bool(self.faults.stale) and self.simulation.random.random() < self.faults.stale

    def call[T](self, point: str, effect: Callable[[], T], typical: float = 0.004) -> T:
        """Do something at AWS; `typical` is the shortest latency."""
        chance = self.simulation.random
        there, back = chance.uniform(0.3, 1) * typical, chance.uniform(0.3, 1.5) * typical
        if error := self.fails(point):
            self._fail(point, effect, error, there)
        if chance.random() < self.faults.slow:
            slow = chance.uniform(0.1, 3)
            there, back = (there + slow, back) if chance.random() < 0.5 else (there, back + slow)
        fate = chance.random() - self.faults.repeated
        if fate < 0:
            return self.simulation.call(point, lambda: (effect(), effect())[1], there=there, back=1)
        if fate < self.faults.failed:
            happens = chance.choice([0, 0, *range(1, TRIES + 1)])
            self._fail(point, effect, AwsError(chance.choice(list(ERRORS)), happens), there)
        return self.simulation.call(point, effect, there=there, back=back)

    def _fail(
        self, point: str, effect: Callable[[], object], error: AwsError, there: float
    ) -> NoReturn:
        """Try in vain as often as boto3 does.

        Raises:
            BotoCoreError, ClientError: always.
        """
        make, seconds = ERRORS[error.name]
        waits = sum(self.simulation.random.uniform(0, 2**number) for number in range(TRIES - 1))

        def happen() -> None:
            for _ in range(error.happens):
                effect()

        self.simulation.call(point, happen, there=there, back=TRIES * seconds + waits)
        raise make(point)


class SimTable(Table):
    """One table. Every call of it is a call out.

    Attributes:
        items: by key.
        on_write: called for every write, with the item before and after it. After a deletion the
            item is empty, as it is before a first write.
        indexes: what each index holds: by partition, each item's place in its order, and its key.
        page: how many items a scan looks at in one call.
    """

    def __init__(self, name: str, aws: DirectAws, *, page: int = 1000) -> None:
        self.items: dict[str, Item] = {}
        self.on_write: Callable[[str, Item, Item], None] = lambda *_: None
        self.indexes: dict[str, dict[str, list[tuple[int, str]]]] = {name: {} for name in INDEXES}
        self.page = page
        self._table = name
        self._aws = aws
        self._older: dict[str, tuple[float, Item]] = {}

    def get(self, key: str) -> Item:
        return self._aws.call(f"{self._table}.get", lambda: _copied(self._live(key)))

    def get_many(self, keys: list[str]) -> tuple[list[Item], set[str]]:
        assert len(keys) == len(set(keys)), "DynamoDB refuses to read a key twice"

        def read() -> tuple[list[Item], set[str]]:
            return [_copied(item) for key in keys if (item := self._perhaps_stale(key))], set()

        return self._aws.call(f"{self._table}.get_many", read)

    def scan(
        self, condition: str, values: _Values, attributes: list[str], after: str | None
    ) -> tuple[list[Item], int, str | None]:
        holds, _, plain = _parsed("", condition, values)

        def read() -> tuple[list[Item], int, str | None]:
            keys = sorted(key for key in self.items if after is None or key > after)
            scanned, more = keys[: self.page], len(keys) > self.page
            found = [self.items[key] for key in scanned if holds(self.items[key], plain)]
            asked = [{name: item[name] for name in attributes if name in item} for item in found]
            return _copied(asked), len(scanned), scanned[-1] if more else None

        return self._aws.call(f"{self._table}.scan", read)

    def delete(self, key: str) -> None:
        self._aws.call(f"{self._table}.delete", lambda: self._drop(key))

    def query(
        self,
        index: str,
        condition: str,
        values: _Values,
        most: int,
        *,
        after: Item | None = None,
    ) -> list[Item]:
        holds, _, plain = _parsed("", condition, values)
        hashed, ranged, more = INDEXES[index]
        names = ("key", hashed, ranged, *more)
        (partition,) = re.findall(rf"^{hashed} = (:\w+) AND {ranged} <= :\w+$", condition)
        if after is not None:
            assert after.keys() == {"key", hashed, ranged}, "DynamoDB refuses other keys"
            assert after[hashed] == plain[partition]

        def read() -> list[Item]:
            entries = self.indexes[index].get(plain[partition], [])
            begin = bisect_right(entries, (after[ranged], after["key"])) if after else 0
            found = []
            for _, key in islice(entries, begin, begin + most):
                item = self.items[key]
                if not holds(item, plain):
                    break
                found.append({name: _copied(item[name]) for name in names if name in item})
            return found

        return self._aws.call(f"{self._table}.query", read)

    def update(
        self, key: str, update: str, condition: str, values: _Values, *, returning: bool = True
    ) -> tuple[bool, Item]:
        holds, changes, plain = _parsed(update, condition, values)

        def write() -> tuple[bool, Item]:
            before = self._live(key)
            if not holds(before, plain):
                return False, _copied(before)
            after = {**before, "key": key}
            for change in changes:
                change(before, after, plain)
            after = _copied(after)
            assert after.get("key") == key, "DynamoDB refuses to change the key"
            self.items[key] = after
            self._older[key] = (self._aws.now(), before)
            self._index(key, before, after)
            self.on_write(key, before, after)
            return True, _copied(after) if returning else {}

        return self._aws.call(f"{self._table}.update: {_meaning(update, plain)}", write)

    def _live(self, key: str) -> Item:
        """Return an item; an empty one if there is none, or it is swept by now."""
        item = self.items.get(key, {})
        if item.get("expires_at", float("inf")) <= self._aws.now() and self._aws.swept():
            self._drop(key)
            return {}
        return item

    def _drop(self, key: str) -> None:
        before = self.items.pop(key, None)
        if before:
            self._index(key, before, {})
            self.on_write(key, before, {})

    def put(self, key: str, item: Item) -> None:
        """Write an item as it is, at once, as an operator's tool does."""
        before = self.items.get(key, {})
        self.items[key] = item
        self._index(key, before, item)

    def _index(self, key: str, before: Item, after: Item) -> None:
        for name, (hashed, ranged, _) in INDEXES.items():
            was, now = ((item.get(hashed, ""), item.get(ranged)) for item in (before, after))
            if was == now:
                continue
            partitions = self.indexes[name]
            if was[0] and was[1] is not None:
                entries = partitions.get(was[0], [])
                position = bisect_left(entries, (was[1], key))
                # Tests change items behind the table's back, too.
                if entries[position : position + 1] == [(was[1], key)]:
                    del entries[position]
            if now[0] and now[1] is not None:
                insort(partitions.setdefault(now[0], []), (now[1], key))

    def _perhaps_stale(self, key: str) -> Item:
        item = self._live(key)
        if self._aws.stale():
            written_at, before = self._older.get(key, (0.0, item))
            return before if self._aws.now() - written_at < 1 else item
        return item


def _meaning(update: str, values: _Values) -> str:
    """Name a write for a person."""
    if ":status" in values:
        return str(values[":status"])
    return " ".join(update.split())[:40]


def _plain(value: Any) -> Any:
    """Return a value as DynamoDB would give it back, and share nothing with it."""
    match value:
        case Enum():
            return _plain(value.value)
        case str() | int() | None:
            return value
        case set():
            assert value, "DynamoDB knows no empty set"
            assert {type(each) for each in value} in ({str}, {int}), value
            return set(value)
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case _:
            raise AssertionError(value)


def _copied[T](value: T) -> T:
    """Return a copy of a stored value. Values that are not nested are immutable and shared."""
    copy: Any = value
    if isinstance(value, set):
        copy = set(value)
    elif isinstance(value, list):
        copy = [_copied(each) for each in value]
    elif isinstance(value, dict):
        copy = {name: _copied(each) for name, each in value.items()}
    return cast("T", copy)


def _parsed(
    update: str, condition: str, values: _Values
) -> tuple[_Condition, list[_Change], _Values]:
    """Return a call's parsed expressions; refuse unused and undefined values."""
    plain = {name: _plain(value) for name, value in values.items()}
    used = _values_of(update) | _values_of(condition)
    assert plain.keys() == used, f"DynamoDB refuses these values: {plain.keys() ^ used}"
    holds = parse_condition(condition) if condition else _always
    return holds, parse_changes(update), plain


def _always(_: Item, __: _Values) -> bool:
    return True


@cache
def _values_of(expression: str) -> set[str]:
    return set(re.findall(r":\w+", expression))


# --- Expressions ----------------------------------------------------------------------------------


class _Tokens:
    def __init__(self, text: str) -> None:
        self._all: list[str] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            assert match, text[position:]
            self._all.append(match[1] or match[2])
            position = match.end()
        self._at = 0
        # Where the last group in parentheses began and ended.
        self._group = (0, 0)

    def peek(self) -> str:
        return self._all[self._at] if self._at < len(self._all) else ""

    def take(self) -> str:
        assert self._at < len(self._all), f"the expression ends too early: {self._all}"
        self._at += 1
        return self._all[self._at - 1]

    def takes(self, token: str) -> bool:
        if self.peek() == token:
            self._at += 1
            return True
        return False

    def expect(self, token: str) -> None:
        assert self.take() == token, (token, self._all, self._at)

    def group[T](self, inner: Callable[["_Tokens"], T]) -> T:
        """Read what stands in parentheses, of which the first is taken already."""
        start = self._at
        value = inner(self)
        assert self._group != (start + 1, self._at), "DynamoDB refuses redundant parentheses"
        self.expect(")")
        self._group = (start, self._at)
        return value


@cache
def parse_condition(text: str) -> _Condition:
    """Return a condition expression as a function of an item and the expression's values."""
    tokens = _Tokens(text)
    condition = _either(tokens)
    assert not tokens.peek(), text
    return condition


def _either(tokens: _Tokens) -> _Condition:
    parts = [_both(tokens)]
    while tokens.takes("OR"):
        parts.append(_both(tokens))
    if len(parts) == 1:
        return parts[0]
    return lambda item, values: any(part(item, values) for part in parts)


def _both(tokens: _Tokens) -> _Condition:
    parts = [_one(tokens)]
    while tokens.takes("AND"):
        parts.append(_one(tokens))
    if len(parts) == 1:
        return parts[0]
    return lambda item, values: all(part(item, values) for part in parts)


def _one(tokens: _Tokens) -> _Condition:
    if tokens.takes("("):
        return tokens.group(_either)
    if tokens.peek() in {"attribute_exists", "attribute_not_exists"}:
        there = tokens.take() == "attribute_exists"
        tokens.expect("(")
        name = _name(tokens.take())
        tokens.expect(")")
        return lambda item, _: (name in item) is there
    left = _operand(tokens)
    if tokens.takes("IN"):
        tokens.expect("(")
        among = [_operand(tokens)]
        while tokens.takes(","):
            among.append(_operand(tokens))
        tokens.expect(")")
        return lambda item, values: any(
            _same(left(item, values), each(item, values)) for each in among
        )
    sign = tokens.take()
    right = _operand(tokens)
    if sign == "=":
        return lambda item, values: _same(left(item, values), right(item, values))
    if sign == "<>":
        return lambda item, values: not _same(left(item, values), right(item, values))
    assert sign in _ORDERS, f"not understood here: {sign}"
    holds = _ORDERS[sign]

    def comparison(item: Item, values: _Values) -> bool:
        one, other = left(item, values), right(item, values)
        if type(one) is not type(other) or one is _MISSING:
            return False
        assert type(one) in {int, str}, "DynamoDB compares numbers and texts only"
        return holds(one, other)

    return comparison


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal. `True` is no number, and what is missing is no value."""
    if one is _MISSING or type(one) is not type(other):
        return False
    if type(one) is list:
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is dict:
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return bool(one == other)


def _operand(tokens: _Tokens) -> _Operand:
    word = tokens.take()
    if word == "size":
        tokens.expect("(")
        inner = _operand(tokens)
        tokens.expect(")")

        def size(item: Item, values: _Values) -> Any:
            value = inner(item, values)
            if value is _MISSING:
                return value
            assert isinstance(value, list | dict | set), "only collections are measured here"
            return len(value)

        return size
    if word.startswith(":"):
        return lambda _, values: values[word]
    assert tokens.peek() != "(", f"not understood here: {word}"
    name = _name(word)
    return lambda item, _: item.get(name, _MISSING)


@cache
def parse_changes(text: str) -> list[_Change]:
    """Return an update expression as functions of the item before and after, and the values."""
    tokens = _Tokens(text)
    changes: list[_Change] = []
    clauses: set[str] = set()
    names: set[str] = set()
    while tokens.peek():
        clause = tokens.take()
        assert clause not in clauses, f"DynamoDB refuses {clause} twice"
        clauses.add(clause)
        changes.append(_change(clause, names, tokens))
        while tokens.takes(","):
            changes.append(_change(clause, names, tokens))
    return changes


def _change(clause: str, names: set[str], tokens: _Tokens) -> _Change:
    name = _name(tokens.take())
    assert name not in names, f"DynamoDB refuses to change {name} twice"
    names.add(name)
    match clause:
        case "REMOVE":
            return lambda _, after, __: after.pop(name, None) and None
        case "ADD":
            value = _operand(tokens)

            def add(before: Item, after: Item, values: _Values) -> None:
                more, held = value(before, values), before.get(name, _MISSING)
                assert isinstance(more, set), "only sets are added here"
                if held is _MISSING:
                    after[name] = more
                    return
                same = isinstance(held, set) and {*map(type, held)} == {*map(type, more)}
                assert same, f"DynamoDB refuses to add a set to what {name} is"
                after[name] = held | more

            return add
        case "DELETE":
            leaving = _operand(tokens)

            def delete(before: Item, after: Item, values: _Values) -> None:
                held = before.get(name, _MISSING)
                if held is _MISSING:
                    return
                assert isinstance(held, set), f"DynamoDB refuses that: {name} is no set"
                rest = held - leaving(before, values)
                after.pop(name) if not rest else after.update({name: rest})

            return delete
        case "SET":
            tokens.expect("=")
            total = _sum(tokens)

            def put(before: Item, after: Item, values: _Values) -> None:
                value = total(before, values)
                assert value is not _MISSING, f"DynamoDB refuses to read {name}, which is not there"
                after[name] = value

            return put
        case _:
            raise AssertionError(clause)


def _sum(tokens: _Tokens) -> _Operand:
    left = _term(tokens)
    if tokens.peek() not in {"+", "-"}:
        return left
    sign = 1 if tokens.take() == "+" else -1
    right = _term(tokens)

    def add(item: Item, values: _Values) -> Any:
        one, other = left(item, values), right(item, values)
        assert type(one) is type(other) is int, "DynamoDB adds numbers only"
        return one + sign * other

    return add


def _term(tokens: _Tokens) -> _Operand:
    if tokens.peek() not in {"if_not_exists", "list_append"}:
        return _operand(tokens)
    function = tokens.take()
    tokens.expect("(")
    assert function == "list_append" or not tokens.peek().startswith(":"), "not an attribute"
    first = _term(tokens)
    tokens.expect(",")
    second = _term(tokens)
    tokens.expect(")")

    def apply(item: Item, values: _Values) -> Any:
        one = first(item, values)
        if function == "if_not_exists":
            return second(item, values) if one is _MISSING else one
        other = second(item, values)
        assert type(one) is type(other) is list, "DynamoDB appends a list to a list"
        return one + other

    return apply


def _name(token: str) -> str:
    return token.removeprefix("#")
