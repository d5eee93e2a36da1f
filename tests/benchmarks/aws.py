"""A stand-in for AWS that costs little and always the same, in a process of its own.

    python -m tests.benchmarks.aws LATENCY_SECONDS

DynamoDB, SQS, EventBridge and Secrets Manager over HTTP, as far as they are called here. Conditions
and updates are evaluated, so no answer differs from one of AWS. Every call is counted,
and its capacity units by DynamoDB's rules, from the items' true sizes.
"""

import asyncio
import json
import marshal
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any

from tests.support.simulated_aws.dynamodb import parse_changes, parse_condition

type Item = dict[str, Any]

CONTROL = "Control."
_NUMBERS = count(1)


# --- DynamoDB -------------------------------------------------------------------------------------


def _plain(value: dict[str, Any]) -> Any:
    ((kind, inner),) = value.items()
    match kind:
        case "N":
            return int(inner)
        case "NULL":
            return None
        case "SS":
            return set(inner)
        case "L":
            return [_plain(each) for each in inner]
        case "M":
            return {name: _plain(each) for name, each in inner.items()}
        case _:
            return inner


def _typed(value: Any) -> dict[str, Any]:
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case str():
            return {"S": value}
        case set():
            return {"SS": sorted(value)}
        case list():
            return {"L": [_typed(each) for each in value]}
        case _:
            return {"M": {name: _typed(each) for name, each in value.items()}}


def _typed_item(item: Item) -> dict[str, Any]:
    return {name: _typed(value) for name, value in item.items()}


def size(value: Any) -> int:
    """Return the bytes that a value takes, as DynamoDB's documentation counts them."""
    match value:
        case None | bool():
            return 1
        case int():
            return (len(str(abs(value))) + 1) // 2 + 1 + (value < 0)
        case str():
            return len(value.encode())
        case set():
            return sum(map(size, value))
        case list():
            return 3 + sum(1 + size(each) for each in value)
        case _:
            return 3 + sum(1 + len(name.encode()) + size(each) for name, each in value.items())


def item_size(item: Item) -> int:
    """Return the bytes that an item takes: its attributes' names and values."""
    return sum(len(name.encode()) + size(value) for name, value in item.items())


@cache
def _named(expression: str, names: tuple[tuple[str, str], ...]) -> str:
    """Write the names that an expression only refers to into it."""
    real = dict(names)
    return re.sub(r"#\w+", lambda match: real[match[0]], expression)


class _RefusedError(Exception):
    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__()
        self.body = body


class Tables:
    """Every table, its items packed so that a million of them fit into memory.

    Attributes:
        written: the last writes of the ledger, by key: the item before and after it.
    """

    def __init__(self) -> None:
        self.written: dict[str, tuple[Item, Item]] = {}
        self.items: dict[str, dict[str, bytes]] = {}
        self.units = {"read": 0.0, "write": 0.0}
        self.largest = 0

    def put(self, table: str, key: str, item: Item) -> None:
        """Put an item there, uncounted."""
        self.items.setdefault(table, {})[key] = marshal.dumps(item)

    def get_item(self, call: dict[str, Any]) -> dict[str, Any]:
        item = self._read(call["TableName"], call["Key"], 1 if call.get("ConsistentRead") else 0.5)
        return {"Item": _typed_item(item)} if item else {}

    def batch_get_item(self, call: dict[str, Any]) -> dict[str, Any]:
        responses = {
            table: [
                _typed_item(item)
                for key in wanted["Keys"]
                if (item := self._read(table, key, 1 if wanted.get("ConsistentRead") else 0.5))
            ]
            for table, wanted in call["RequestItems"].items()
        }
        return {"Responses": responses, "UnprocessedKeys": {}}

    def put_item(self, call: dict[str, Any]) -> dict[str, Any]:
        item = {name: _plain(value) for name, value in call["Item"].items()}
        self._write(call, self._key(call["TableName"], call["Item"]), lambda _, __: item)
        return {}

    def update_item(self, call: dict[str, Any]) -> dict[str, Any]:
        names = tuple(call.get("ExpressionAttributeNames", {}).items())
        steps = parse_changes(_named(call["UpdateExpression"], names))

        def update(before: Item, values: Item) -> Item:
            after = before | {name: _plain(value) for name, value in call["Key"].items()}
            for step in steps:
                step(before, after, values)
            return after

        after = self._write(call, self._key(call["TableName"], call["Key"]), update)
        return {"Attributes": _typed_item(after)} if call.get("ReturnValues") == "ALL_NEW" else {}

    def delete_item(self, call: dict[str, Any]) -> dict[str, Any]:
        key = self._key(call["TableName"], call["Key"])
        self._write(call, key, lambda before, _: before)
        del self.items[call["TableName"]][key]
        return {}

    def _key(self, table: str, item: dict[str, Any]) -> str:
        """Return the partition key's value: the tables here have no sort key."""
        name = "id" if table.endswith("idempotency") else "key"
        key: str = item[name]["S"]
        return key

    def _read(self, table: str, key: dict[str, Any], units: float) -> Item:
        packed = self.items.get(table, {}).get(self._key(table, key))
        item: Item = marshal.loads(packed) if packed else {}  # noqa: S302 - our own
        self.units["read"] += units * max(1, -(-item_size(item) // 4096))
        return item

    def _write(self, call: dict[str, Any], key: str, change: Callable[[Item, Item], Item]) -> Item:
        table = self.items.setdefault(call["TableName"], {})
        packed = table.get(key)
        before: Item = marshal.loads(packed) if packed else {}  # noqa: S302 - our own
        given = call.get("ExpressionAttributeValues", {})
        values = {name: _plain(value) for name, value in given.items()}
        wanted = call.get("ConditionExpression")
        if wanted is not None:
            names = tuple(call.get("ExpressionAttributeNames", {}).items())
            if not parse_condition(_named(wanted, names))(before, values):
                self.units["write"] += max(1, -(-item_size(before) // 1024))
                refusal: dict[str, Any] = {
                    "__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException",
                    "message": "The conditional request failed",
                }
                if call.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and before:
                    refusal |= {"Item": _typed_item(before)}
                raise _RefusedError(refusal)
        after = change(before, values)
        table[key] = marshal.dumps(after)
        if call["TableName"] == "ledger":
            self.written[key] = (before, after)
        largest = max(item_size(before), item_size(after))
        self.largest = max(self.largest, largest)
        self.units["write"] += max(1, -(-largest // 1024))
        return after


# --- The other services, and the whole ------------------------------------------------------------


class Aws:
    """Answers every call.

    Attributes:
        secrets: by their ARN.
        calls: how often each operation was called.
        visibility: the visibility timeout that was set, by receipt handle.
    """

    def __init__(self) -> None:
        self.tables = Tables()
        self.secrets: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.visibility: dict[str, int] = {}
        tables = self.tables
        self._operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "DynamoDB_20120810.GetItem": tables.get_item,
            "DynamoDB_20120810.BatchGetItem": tables.batch_get_item,
            "DynamoDB_20120810.PutItem": tables.put_item,
            "DynamoDB_20120810.UpdateItem": tables.update_item,
            "DynamoDB_20120810.DeleteItem": tables.delete_item,
            "secretsmanager.GetSecretValue": self._get_secret_value,
            "AmazonSQS.SendMessage": self._send_message,
            "AmazonSQS.ChangeMessageVisibilityBatch": self._change_message_visibility_batch,
            "AWSEvents.PutEvents": self._put_events,
            "Control.Put": self._put,
            "Control.Fill": self._fill,
            "Control.Counts": self._counts,
            "Control.Stream": self._stream,
        }

    def answer(self, target: str, body: bytes) -> tuple[int, bytes]:
        call = json.loads(body)
        if not target.startswith(CONTROL):
            self.calls[target.partition(".")[2]] += 1
        try:
            return 200, json.dumps(self._operations[target](call)).encode()
        except _RefusedError as refusal:
            return 400, json.dumps(refusal.body).encode()

    def _get_secret_value(self, call: dict[str, Any]) -> dict[str, Any]:
        secret = call["SecretId"]
        return {
            "ARN": secret,
            "Name": secret,
            "SecretString": self.secrets[secret],
            "CreatedDate": 0,
        }

    def _send_message(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"MessageId": str(next(_NUMBERS)), "MD5OfMessageBody": "0" * 32}

    def _change_message_visibility_batch(self, call: dict[str, Any]) -> dict[str, Any]:
        for entry in call["Entries"]:
            self.visibility[entry["ReceiptHandle"]] = entry["VisibilityTimeout"]
        return {"Successful": [{"Id": entry["Id"]} for entry in call["Entries"]], "Failed": []}

    def _put_events(self, call: dict[str, Any]) -> dict[str, Any]:
        entries = [{"EventId": str(next(_NUMBERS))} for _ in call["Entries"]]
        return {"FailedEntryCount": 0, "Entries": entries}

    def _put(self, call: dict[str, Any]) -> dict[str, Any]:
        self.secrets |= call.get("secrets", {})
        for table, items in call.get("items", {}).items():
            for key, item in items.items():
                self.tables.put(table, key, item)
        return {}

    def _fill(self, call: dict[str, Any]) -> dict[str, Any]:
        """Fill a table with so many items, all like the one given."""
        items = self.tables.items.setdefault(call["table"], {})
        packed = marshal.dumps(call["item"])
        for number in range(len(items), call["count"]):
            items[f"filler-{number}"] = packed
        return {}

    def _stream(self, _: dict[str, Any]) -> dict[str, Any]:
        """Return the last write of each item of the ledger since then, as its stream does."""
        written, self.tables.written = self.tables.written, {}
        return {
            "Records": [
                {
                    "eventName": "MODIFY",
                    "dynamodb": {
                        "Keys": {"key": {"S": key}},
                        "SequenceNumber": f"{next(_NUMBERS):021}",
                        "OldImage": _typed_item(before),
                        "NewImage": _typed_item(after),
                    },
                }
                for key, (before, after) in written.items()
            ]
        }

    def _counts(self, _: dict[str, Any]) -> dict[str, Any]:
        """Return what was counted since the last time."""
        counts = {
            "calls": dict(self.calls),
            "read_units": self.tables.units["read"],
            "write_units": self.tables.units["write"],
            "largest_item": self.tables.largest,
            "hidden": self.visibility,
        }
        self.calls, self.visibility = Counter(), {}
        self.tables.units, self.tables.largest = {"read": 0.0, "write": 0.0}, 0
        return counts


class _Connection(asyncio.Protocol):
    def __init__(self, aws: Aws, latency: float) -> None:
        self._aws = aws
        self._latency = latency
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
        headers = {name.lower(): value.strip() for name, _, value in lines}
        length = int(headers[b"content-length"])
        if len(rest) < length:
            return
        self._received = rest[length:]
        target = headers[b"x-amz-target"].decode()
        status, body = self._aws.answer(target, rest[:length])
        answer = (
            f"HTTP/1.1 {status} -\r\nx-amzn-RequestId: {next(_NUMBERS)}\r\n"
            "Content-Type: application/x-amz-json-1.0\r\n"
            f"Content-Length: {len(body)}\r\nx-amz-crc32: {zlib.crc32(body)}\r\n\r\n"
        ).encode() + body
        latency = 0.0 if target.startswith(CONTROL) else self._latency
        asyncio.get_running_loop().call_later(latency, self._transport.write, answer)


async def _serve(latency: float) -> None:
    aws = Aws()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(aws, latency), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # ends with the process that started it


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
