"""`restore-ledger` and `republish`, over moto."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from boto3.dynamodb.types import TypeSerializer

from functions.cli.errors import CommandError
from functions.cli.ledger import Republished, Restored, republish, restore_ledger
from notifier.aws.events import EventBridgeStatusEvents
from notifier.domain.status_events import Publication
from notifier.entrypoints.environment import SystemClock
from tests.integration.cli.deployed import Deployed
from tests.integration.conftest import Aws, Stack
from tests.support.builders import a_request


def test_a_restored_ledger_gives_back_what_is_lacking_and_overwrites_nothing(stack: Stack) -> None:
    stack.deliver(a_request(id="order-1"), a_request(id="order-2", to="+5511988887701"))
    dynamodb = stack.aws.dynamodb
    backup = dynamodb.scan(TableName="ledger")["Items"]
    dynamodb.create_table(
        TableName="restored",
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
    )
    for item in backup:
        waiting: Any = {"status": {"S": "waiting"}, "wake_shard": {"S": "a"}, "wake_at": {"N": "1"}}
        dynamodb.put_item(TableName="restored", Item=item | waiting)
    lost, kept = backup
    dynamodb.delete_item(TableName="ledger", Key={"key": lost["key"]})

    progress = [list(restore_ledger(Deployed(stack.aws), "restored"))[-1] for _ in range(2)]

    assert progress == [Restored(2, 1, 1), Restored(2, 0, 0)]
    after = {json.dumps(item["key"]): item for item in dynamodb.scan(TableName="ledger")["Items"]}
    assert after[json.dumps(kept["key"])] == kept
    back = after[json.dumps(lost["key"])]
    restored_at = back.pop("restored_at")
    # It is not sent by itself: that may have happened since the backup.
    assert back == lost | {"status": {"S": "waiting"}}
    # So that its status events, which were published in their own time, are not published again.
    assert abs(int(restored_at["N"]) / 1000 - time.time()) < 600


SINCE = 1_764_115_200.0


def in_the_ledger(
    aws: Aws, key: str, *timeline: tuple[str, float, str | None], **more: Any
) -> None:
    """Put an item with a timeline, whose times are in seconds from SINCE."""
    entries = [[status, 1, round((SINCE + at) * 1000), reason] for status, at, reason in timeline]
    item = {
        "key": key,
        "id": f"id-of-{key}",
        "bot": "default",
        "status": timeline[-1][0],
        "template": "order_shipped",
        "metadata": {"order": key},
        "request": "what nobody may see",
        "timeline": entries,
        "updated_at": entries[-1][2],
    }
    serialize = TypeSerializer().serialize
    plain = {name: serialize(value) for name, value in (item | more).items()}
    aws.dynamodb.put_item(TableName="ledger", Item=plain)


def put_on_the_bus(aws: Aws) -> list[dict[str, Any]]:
    """Return the details of all events that were put, in their order."""
    return [
        json.loads(entry["Detail"])
        for name, call in aws.calls
        if name == "PutEvents"
        for entry in call["Entries"]
    ]


def last(found: Iterator[Republished]) -> Republished:
    *_, at_the_end = found
    return at_the_end


def test_events_since_a_time_are_published_again_in_order_with_the_same_id(aws: Aws) -> None:
    in_the_ledger(aws, "before", ("sent", -200, None), ("consumed", -100, None))
    in_the_ledger(
        aws, "through", ("sent", -10, None), ("accepted", 5, None), ("received", 10, None)
    )
    for number in range(25):
        in_the_ledger(aws, f"after-{number}", ("sent", 1, None), ("failed", 2, "undelivered"))

    done = [last(republish(Deployed(aws), SINCE, None)) for _ in range(2)]

    assert done == [Republished(scanned=27, published=51)] * 2
    first, again = put_on_the_bus(aws)[:51], put_on_the_bus(aws)[51:]
    told = {(event["id"], event["status"]) for event in first}
    assert told == {("id-of-through", "received")} | {
        (f"id-of-after-{number}", status) for number in range(25) for status in ("sent", "failed")
    }
    of_one = [event["status"] for event in first if event["id"] == "id-of-after-7"]
    assert of_one == ["sent", "failed"]
    assert {event["event_id"] for event in first} == {event["event_id"] for event in again}
    assert {event["stack"] for event in first} == {"blip-notifier"}
    assert "what nobody may see" not in json.dumps(first)


def test_what_goes_out_again_is_what_the_stack_publishes(aws: Aws) -> None:
    in_the_ledger(aws, "one", ("sent", 1, None), ("accepted", 5, None))

    assert last(republish(Deployed(aws, all_receipts="true"), SINCE, None)).published == 2


def test_a_cancellation_in_advance_goes_out_again_if_its_request_came_since(aws: Aws) -> None:
    came = round((SINCE + 60) * 1000)
    in_the_ledger(aws, "in-advance", ("cancelled", -3600, None), updated_at=came)

    last(republish(Deployed(aws), SINCE, None))

    assert [event["status"] for event in put_on_the_bus(aws)] == ["cancelled"]


def test_an_item_that_cannot_be_understood_is_named_and_keeps_nothing_back(aws: Aws) -> None:
    in_the_ledger(aws, "poison", ("sent", 1, None), timeline=[["sent"]])
    in_the_ledger(aws, "good", ("sent", 1, None))

    done = last(republish(Deployed(aws), SINCE, None))

    assert (done.published, done.refused) == (1, ("poison",))


def test_a_run_that_was_cut_off_is_continued(aws: Aws) -> None:
    for number in range(6):
        in_the_ledger(aws, f"key-{number}", ("sent", 1, None))
    deployed = Deployed(aws, page=2)

    first = next(republish(deployed, SINCE, None))
    assert (first.scanned, first.published) == (2, 2)
    rest = last(republish(deployed, SINCE, first.continue_from))

    assert (rest.scanned, rest.published, rest.continue_from) == (4, 4, None)
    assert {event["id"] for event in put_on_the_bus(aws)} == {f"id-of-key-{n}" for n in range(6)}


def test_a_bus_that_takes_nothing_ends_the_run_and_names_where_to_continue(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        in_the_ledger(aws, f"key-{number}", ("sent", 1, None))
    deployed = Deployed(aws, page=1)
    key = next(republish(deployed, SINCE, None)).continue_from
    monkeypatch.setattr(SystemClock, "sleep", lambda *_: None)
    monkeypatch.setattr(
        EventBridgeStatusEvents, "put", lambda _, events: [Publication.NOT_NOW] * len(events)
    )

    with pytest.raises(CommandError, match="later continue with the same SINCE"):
        last(republish(deployed, SINCE, None))
    with pytest.raises(CommandError, match=f"later continue with FROM={key}$"):
        last(republish(deployed, SINCE, key))
