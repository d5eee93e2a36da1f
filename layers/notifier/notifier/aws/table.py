"""A DynamoDB table of which single items are written under conditions."""

import re
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

type Item = dict[str, Any]

# BatchGetItem takes no more keys at once; a batch of ten requests never comes near it.
MAX_KEYS = 100
READ_TRIES = 3


class UnreadError(Exception):
    """DynamoDB is too busy to answer: what was to be done comes again."""


class _Deserializer(TypeDeserializer):
    """Returns whole numbers as `int`; no others are stored."""

    def _deserialize_n(self, value: str) -> int:
        return int(value)


_serialize = TypeSerializer().serialize
_deserialize = _Deserializer().deserialize


class Table:
    """One table whose partition key is `key`. Items are plain values. Thread-safe."""

    def __init__(self, dynamodb: "DynamoDBClient", name: str) -> None:
        self._dynamodb = dynamodb
        self._name = name

    def get(self, key: str) -> Item:
        """Read one item as it stands now; an empty one if there is none."""
        answer = self._dynamodb.get_item(
            TableName=self._name, Key={"key": {"S": key}}, ConsistentRead=True
        )
        return item_of(answer.get("Item", {}))

    def get_many(self, keys: list[str]) -> tuple[list[Item], set[str]]:
        """Read what there is under these keys, in any order, perhaps a moment old.

        Returns:
            The items, and the keys that DynamoDB left unread after READ_TRIES.
        """
        items: list[Item] = []
        unread: set[str] = set()
        for start in range(0, len(keys), MAX_KEYS):
            some = keys[start : start + MAX_KEYS]
            left: Any = {self._name: {"Keys": [{"key": {"S": key}} for key in some]}}
            for _ in range(READ_TRIES):
                answer = self._dynamodb.batch_get_item(RequestItems=left)
                items.extend(item_of(item) for item in answer["Responses"].get(self._name, []))
                left = answer.get("UnprocessedKeys")
                if not left:
                    break
            unread |= {key["key"]["S"] for key in left.get(self._name, {}).get("Keys", ())}
        return items, unread

    def scan(
        self, condition: str, values: dict[str, Any], attributes: list[str], after: str | None
    ) -> tuple[list[Item], int, str | None]:
        """Look through about a megabyte of the table, as it stands now.

        Args:
            condition: which items to return.
            values: of the condition.
            attributes: which of their attributes to return.
            after: the key that the page before ended with.

        Returns:
            The items, how many were scanned, and the key that the page ended with; None if
            nothing follows it.
        """
        start: Any = {"ExclusiveStartKey": {"key": {"S": after}}} if after is not None else {}
        answer = self._dynamodb.scan(
            TableName=self._name,
            ConsistentRead=True,
            FilterExpression=condition,
            ProjectionExpression=", ".join(f"#{name}" for name in attributes),
            ExpressionAttributeNames={f"#{name}": name for name in attributes},
            **_values(values),
            **start,
        )
        last: Any = answer.get("LastEvaluatedKey", {})
        items = [item_of(item) for item in answer["Items"]]
        return items, answer["ScannedCount"], last.get("key", {}).get("S")

    def delete(self, key: str) -> None:
        """Delete an item, if there is one."""
        self._dynamodb.delete_item(TableName=self._name, Key={"key": {"S": key}})

    def query(
        self,
        index: str,
        condition: str,
        values: dict[str, Any],
        most: int,
        *,
        after: Item | None = None,
    ) -> list[Item]:
        """Return up to `most` items of an index, in its order.

        Args:
            index: its name.
            condition: which items to return.
            values: of the condition.
            most: how many items at most.
            after: the keys of the item that the page before ended with: the index's and `key`.
        """
        start: Any = {}
        if after is not None:
            keys = {name: _serialize(value) for name, value in after.items()}
            start = {"ExclusiveStartKey": keys}
        answer = self._dynamodb.query(
            TableName=self._name,
            IndexName=index,
            KeyConditionExpression=condition,
            Limit=most,
            **_values(values),
            **start,
        )
        return [item_of(item) for item in answer["Items"]]

    def update(
        self,
        key: str,
        update: str,
        condition: str,
        values: dict[str, Any],
        *,
        returning: bool = True,
    ) -> tuple[bool, Item]:
        """Write if the condition holds, or always if there is none.

        Attributes whose names are DynamoDB's own words are written `#name` in the expressions.

        boto3 asks again for an answer that got lost, and then finds its own write in the way: a
        caller for whom that matters distinguishes it from a refusal by a token in the item.

        Returns:
            Whether it held, and the item: as it stands now, or as it stood in the way. Without
            `returning` an empty one if it held: an answer that is not used is a tenth of a call.
        """
        try:
            answer = self._dynamodb.update_item(
                TableName=self._name,
                Key={"key": {"S": key}},
                **_expressions(update, condition),
                **_values(values),
                ReturnValues="ALL_NEW" if returning else "NONE",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            return False, item_of(cast("Item", error.response.get("Item", {})))
        return True, item_of(answer.get("Attributes", {}))


@cache
def _expressions(update: str, condition: str) -> dict[str, Any]:
    """Return the expressions and the names that they use; DynamoDB takes nothing empty."""
    names = {f"#{name}": name for name in re.findall(r"#(\w+)", update + condition)}
    given = {
        "UpdateExpression": update,
        "ConditionExpression": condition,
        "ExpressionAttributeNames": names,
    }
    return {name: value for name, value in given.items() if value}


def _values(values: dict[str, Any]) -> dict[str, Any]:
    if not values:
        return {}
    return {"ExpressionAttributeValues": {name: _typed(value) for name, value in values.items()}}


def _typed(value: object) -> Any:
    # Nearly all that is written are texts and whole numbers. boto3 asks ten questions of each, in
    # 2 % of a batch's processor time.
    if isinstance(value, str):
        return {"S": value}
    return {"N": str(value)} if type(value) is int else _serialize(value)


def item_of(attributes: dict[str, Any]) -> Item:
    """Return an item as plain values, from DynamoDB's typed ones."""
    return {name: _deserialize(value) for name, value in attributes.items()}


def milliseconds(epoch_seconds: float) -> int:
    """Return a time as the tables hold it."""
    return round(epoch_seconds * 1000)
