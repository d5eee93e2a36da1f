"""`restore-ledger` and `republish`: what is done to the ledger as a whole."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from functions.cli import arguments, output
from functions.cli.errors import CommandError
from functions.cli.stack import Json, Resources, Stack, on_stack, stack_arguments
from notifier.aws.events import EventBridgeStatusEvents
from notifier.aws.outbox import status_events
from notifier.aws.table import Item, Table, milliseconds
from notifier.domain.failures import crash_facts
from notifier.domain.ledger_entries import LedgerWrite
from notifier.domain.status import Status
from notifier.entrypoints.environment import SystemClock
from notifier.settings import PublishStatusEventsSettings, read
from notifier.use_cases.publish_status_events import ALL_PUBLISHED, DEFAULT_PUBLISHED, Publisher


@dataclass(frozen=True, slots=True)
class Restored:
    """How far a restoration has come.

    Attributes:
        read: how many items of the restored table.
        copied: how many of them the ledger lacked.
        waiting: how many of those waited to be sent again.
    """

    read: int = 0
    copied: int = 0
    waiting: int = 0


def restore_ledger(stack: Resources, source: str) -> Iterator[Restored]:
    """Copy from a restored table what the ledger lacks; what it has is newer and stays.

    Each item is marked: its status events were published before the backup. What waited then is not
    sent by itself: it may have been sent since.

    Yields:
        After each page of the restored table, how far the run has come.
    """
    dynamodb, ledger = stack.client("dynamodb"), stack.physical_id("LedgerTable")
    mark = {"restored_at": {"N": str(milliseconds(time.time()))}}
    read = copied = waiting = 0
    for page in dynamodb.get_paginator("scan").paginate(TableName=source, ConsistentRead=True):
        for item in page["Items"]:
            read += 1
            try:
                dynamodb.put_item(
                    TableName=ledger,
                    Item=_without_wait(item) | mark,
                    ConditionExpression="attribute_not_exists(#key)",
                    ExpressionAttributeNames={"#key": "key"},
                )
            except dynamodb.exceptions.ConditionalCheckFailedException:
                continue
            copied += 1
            waiting += item.get("status") == {"S": Status.WAITING}
        yield Restored(read, copied, waiting)


def _without_wait(item: Json) -> Json:
    """Return an item without the attributes by which its wait would end in a send."""
    return {name: item[name] for name in item if name not in {"wake_shard", "wake_at"}}


@dataclass(frozen=True, slots=True)
class Republished:
    """How far publishing again has come.

    Attributes:
        scanned: how many items of the ledger.
        published: how many status events.
        refused: the keys of items of which an event can never be published.
        continue_from: the key to continue from; None at the end of the ledger.
    """

    scanned: int = 0
    published: int = 0
    refused: tuple[str, ...] = ()
    continue_from: str | None = None


# The attributes of an item that a status event needs. No request is read.
_OF_EVENTS = ["key", "id", "bot", "template", "metadata", "correlation_id", "timeline", "refusals"]


def republish(stack: Resources, since: float, after: str | None) -> Iterator[Republished]:
    """Publish again every status event of the ledger since a time, with the same `event_id`.

    Args:
        stack: whose.
        since: in epoch seconds.
        after: the key to continue from; None for the whole ledger.

    Yields:
        After each page of the ledger, how far the run has come.

    Raises:
        CommandError: the event bus takes no events. The text names the key to continue from.
    """
    refused = _Refused()
    publisher = _publisher(stack, refused)
    ledger = Table(stack.client("dynamodb"), stack.physical_id("LedgerTable"))
    scanned = published = 0
    while True:
        values = {":since": milliseconds(since)}
        attributes = [*_OF_EVENTS, "updated_at"]
        items, count, last = ledger.scan("#updated_at >= :since", values, attributes, after)
        writes = [_since(item, since) for item in items]
        if publisher.publish(writes, deadline=float("inf")) is not None:
            where = f"FROM={after}" if after else "the same SINCE, from the beginning"
            raise CommandError(f"the event bus takes no events; later continue with {where}")
        scanned += count
        published += sum(
            event.status in publisher.published
            for write in writes
            if write.key not in refused.keys
            for event in write.events
        )
        yield Republished(scanned, published, tuple(refused.keys), last)
        if last is None:
            return
        after = last


def _publisher(stack: Resources, refused: "_Refused") -> Publisher:
    """Return what publishes as the stack's own function does, by its settings."""
    function = stack.client("lambda").get_function_configuration(
        FunctionName=stack.physical_id("PublishStatusEventsFunction")
    )
    environment = function["Environment"]["Variables"]
    settings = read(PublishStatusEventsSettings, environment)
    bus = EventBridgeStatusEvents(
        stack.client("events"), settings.event_bus, environment["POWERTOOLS_SERVICE_NAME"]
    )
    published = ALL_PUBLISHED if settings.publish_all_receipts else DEFAULT_PUBLISHED
    return Publisher(bus, refused, _Unmeasured(), SystemClock(), published)


def _since(item: Item, since: float) -> LedgerWrite:
    """Return an item's events since then, as if one write had added them all."""
    try:
        events = tuple(
            event
            for event in status_events(item)
            # A cancellation in advance is published when its request comes, perhaps much later.
            if event.time >= since or event.status is Status.CANCELLED
        )
    except Exception as crash:  # noqa: BLE001 - the items after it go on
        problem = str(crash_facts(crash)["error"])
        return LedgerWrite(item["key"], item["key"], problem=problem)
    return LedgerWrite(item["key"], item["key"], events)


class _Refused:
    """Remembers the keys of items of which an event can never be published."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def put(self, write: LedgerWrite, _problem: str) -> bool:
        if write.key not in self.keys:
            self.keys.append(write.key)
        return True


class _Unmeasured:
    """A meter that measures nothing: an operator's run is no work of the stack."""

    def took(self, what: str, seconds: float) -> None: ...

    def age(self, what: str, seconds: float) -> None: ...

    def share(self, what: str, share: float) -> None: ...

    def count(self, what: str, number: int = 1) -> None: ...


@on_stack
def run_restore_ledger(stack: Stack, options: argparse.Namespace) -> int:
    """Copy from a restored table what the ledger lacks; what it has is newer and stays."""
    done = Restored()
    with output.progress() as progress:
        for done in restore_ledger(stack, options.table):
            progress(f"{done.read} items read, {done.copied} copied")
    if options.json:
        output.print_json(asdict(done))
    else:
        output.say(f"copied back: {done.copied} of {done.read} items; the ledger has the others")
        if done.waiting:
            output.say(f"{done.waiting} of those waited, and are not sent again by themselves")
    return 0


@on_stack
def run_republish(stack: Stack, options: argparse.Namespace) -> int:
    """Publish again every status event of the ledger since a time, with the same event_id."""
    done = Republished()
    with output.progress() as progress:
        for done in republish(stack, options.since, options.after):
            if done.continue_from:
                counts = f"{done.scanned} items scanned, {done.published} events published"
                progress(f"{counts}; FROM={done.continue_from}")
    if options.json:
        output.print_json(asdict(done))
    else:
        output.say(
            f"published again: {done.published} status events of {done.scanned} ledger items"
        )
        for key in done.refused:
            output.say(f"not publishable: {key}")
    return 1 if done.refused else 0


def restore_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `restore-ledger` takes."""
    parser.add_argument("table", metavar="FROM", help="the name of the restored table")
    arguments.json_argument(parser)
    stack_arguments(parser)


def republish_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `republish` takes."""
    add = parser.add_argument
    add("since", type=arguments.time, metavar="SINCE", help="a time, as in 2026-11-26T00:00:00Z")
    add("--from", dest="after", metavar="KEY", help="continue a run that was cut off")
    arguments.json_argument(parser)
    stack_arguments(parser)
