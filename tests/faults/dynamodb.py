"""DynamoDB tables in memory that understand the expressions which the adapters write.

So the real adapters run on them. `test_tables.py` holds them against moto's.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from operator import eq, ge, gt, le, lt, ne
from typing import Any, NoReturn

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
from tests.faults.simulation import Simulation

type _Values = dict[str, Any]
type _Condition = Callable[[Item, _Values], bool]
type _Operand = Callable[[Item, _Values], Any]
type _Change = Callable[[Item, Item, _Values], None]

_MISSING = object()
_TOKEN = re.compile(r"\s*(?:([#:]?\w+)|(<=|>=|<>|[=<>(),+-]))")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": eq,
    "<>": ne,
    "<": lt,
    "<=": le,
    ">": gt,
    ">=": ge,
}


# boto3 tries three times, as `runtime.AWS` says, and waits in between.
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
        name: of the error.
        happens: how many of the tries have their effect all the same.
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


class Aws:
    """Calls to AWS, with their latencies and faults.

    Attributes:
        fails: asked at every call, given its name, how it fails; None if chance decides.
    """

    def __init__(self, simulation: Simulation, faults: AwsFaults) -> None:
        self.simulation = simulation
        self.faults = faults
        self.fails: Callable[[str], AwsError | None] = lambda _: None

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
        on_write: called for every write, with the item before and after it.
        polled: the keys of the items in the index `polls`.
    """

    def __init__(self, name: str, aws: Aws) -> None:
        self.items: dict[str, Item] = {}
        self.on_write: Callable[[str, Item, Item], None] = lambda *_: None
        self._table = name
        self._aws = aws
        self._older: dict[str, tuple[float, Item]] = {}
        self.polled: set[str] = set()

    def get(self, key: str) -> Item:
        return self._aws.call(f"{self._table}.get", lambda: dict(self._live(key)))

    def get_many(self, keys: list[str]) -> tuple[list[Item], set[str]]:
        def read() -> tuple[list[Item], set[str]]:
            return [dict(item) for key in keys if (item := self._perhaps_stale(key))], set()

        return self._aws.call(f"{self._table}.get_many", read)

    def delete(self, key: str) -> None:
        def drop() -> None:
            self.items.pop(key, None)

        self._aws.call(f"{self._table}.delete", drop)

    def query(self, index: str, condition: str, values: _Values, most: int) -> list[Item]:
        assert index == "polls"
        holds = parse_condition(condition)

        def read() -> list[Item]:
            found = [self.items[key] for key in self.polled if holds(self.items[key], values)]
            return sorted(found, key=lambda item: (item["poll_at"], item["key"]))[:most]

        return self._aws.call(f"{self._table}.query", read)

    def update(self, key: str, update: str, condition: str, values: _Values) -> tuple[bool, Item]:
        holds = parse_condition(condition) if condition else None
        changes = parse_changes(update)
        plain = {name: _plain(value) for name, value in values.items()}
        unused = plain.keys() - set(re.findall(r":\w+", f"{update} {condition}"))
        assert not unused, f"DynamoDB refuses values that no expression uses: {unused}"

        def write() -> tuple[bool, Item]:
            before = self._live(key)
            if holds is not None and not holds(before, plain):
                return False, dict(before)
            after = {**before, "key": key}
            for change in changes:
                change(before, after, plain)
            self.items[key] = after
            self._older[key] = (self._aws.simulation.now, before)
            if "poll_bot" in after:
                self.polled.add(key)
            elif "poll_bot" in before:
                self.polled.discard(key)
            self.on_write(key, before, after)
            return True, dict(after)

        return self._aws.call(f"{self._table}.update: {_meaning(update, plain)}", write)

    def _live(self, key: str) -> Item:
        """Give an item. What has outlived its time is swept, sooner or later."""
        item = self.items.get(key, {})
        simulation = self._aws.simulation
        late = item.get("expires_at", float("inf")) <= simulation.now
        if late and simulation.random.random() < 0.3:
            del self.items[key]
            self.polled.discard(key)
            return {}
        return item

    def _perhaps_stale(self, key: str) -> Item:
        chance = self._aws.simulation.random
        item = self._live(key)
        if self._aws.faults.stale and chance.random() < self._aws.faults.stale:
            written_at, before = self._older.get(key, (0.0, item))
            return before if self._aws.simulation.now - written_at < 1 else item
        return item


def _meaning(update: str, values: _Values) -> str:
    """Name a write for a person."""
    if ":status" in values:
        return str(values[":status"])
    return " ".join(update.split())[:40]


def _plain(value: Any) -> Any:
    """Give a value as DynamoDB would give it back."""
    if isinstance(value, Enum):
        return str(value.value)
    assert value is None or isinstance(value, str | int | list | dict | set), value
    assert value != set(), "DynamoDB knows no empty set"
    return [_plain(each) for each in value] if isinstance(value, list) else value


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

    def peek(self) -> str:
        return self._all[self._at] if self._at < len(self._all) else ""

    def take(self) -> str:
        self._at += 1
        return self._all[self._at - 1]

    def takes(self, token: str) -> bool:
        if self.peek() == token:
            self._at += 1
            return True
        return False

    def expect(self, token: str) -> None:
        assert self.take() == token, (token, self._all, self._at)


@cache
def parse_condition(text: str) -> _Condition:
    """Read a condition expression once: a function of an item and the expression's values."""
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
        condition = _either(tokens)
        tokens.expect(")")
        return condition
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
        return lambda item, values: left(item, values) in [each(item, values) for each in among]
    compare = _COMPARISONS[tokens.take()]
    right = _operand(tokens)

    def comparison(item: Item, values: _Values) -> bool:
        one, other = left(item, values), right(item, values)
        if one is _MISSING or other is _MISSING or type(one) is not type(other):
            return compare is ne
        return compare(one, other)

    return comparison


def _operand(tokens: _Tokens) -> _Operand:
    word = tokens.take()
    if word == "size":
        tokens.expect("(")
        inner = _operand(tokens)
        tokens.expect(")")

        def size(item: Item, values: _Values) -> Any:
            value = inner(item, values)
            return value if value is _MISSING else len(value)

        return size
    if word.startswith(":"):
        return lambda _, values: values[word]
    name = _name(word)
    return lambda item, _: item.get(name, _MISSING)


@cache
def parse_changes(text: str) -> list[_Change]:
    """Read an update expression once: functions of the item before, after, and the values."""
    tokens = _Tokens(text)
    changes: list[_Change] = []
    while tokens.peek():
        clause = tokens.take()
        changes.append(_change(clause, tokens))
        while tokens.takes(","):
            changes.append(_change(clause, tokens))
    return changes


def _change(clause: str, tokens: _Tokens) -> _Change:
    name = _name(tokens.take())
    match clause:
        case "REMOVE":
            return lambda _, after, __: after.pop(name, None) and None
        case "ADD":
            value = _operand(tokens)

            def add(before: Item, after: Item, values: _Values) -> None:
                more = value(before, values)
                assert isinstance(more, set)
                after[name] = before.get(name, set()) | more

            return add
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
        assert isinstance(one, int), "DynamoDB adds numbers only"
        assert isinstance(other, int), "DynamoDB adds numbers only"
        return one + sign * other

    return add


def _term(tokens: _Tokens) -> _Operand:
    if tokens.peek() not in {"if_not_exists", "list_append"}:
        return _operand(tokens)
    function = tokens.take()
    tokens.expect("(")
    first = _term(tokens)
    tokens.expect(",")
    second = _term(tokens)
    tokens.expect(")")

    def apply(item: Item, values: _Values) -> Any:
        one = first(item, values)
        if function == "if_not_exists":
            return second(item, values) if one is _MISSING else one
        return one + second(item, values)

    return apply


def _name(token: str) -> str:
    return token.removeprefix("#")
