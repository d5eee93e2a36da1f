"""What people do to a stack's queue, tables and secrets, with rights of their own."""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError

from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.events import EventBridgeStatusEvents
from notifier.aws.outbox import status_events
from notifier.aws.queues import DeadLettersQueue, RequestsQueue
from notifier.aws.table import Item, Table, milliseconds
from notifier.aws.webhook import OVERLAP_SECONDS
from notifier.blip.client import BlipClient
from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.bots import Bot, Bots, BotsSecretError, InvalidBot, parse_bots
from notifier.domain.failures import Failure, crash_facts
from notifier.domain.ledger_entries import LedgerWrite
from notifier.domain.status import Status
from notifier.entrypoints.environment import SystemClock
from notifier.settings import PublishStatusEventsSettings, read
from notifier.use_cases.publish_status_events import ALL_PUBLISHED, DEFAULT_PUBLISHED, Publisher
from notifier.use_cases.redrive_failures import MAX_THREADS, ListOrder, Redrive, Report

if TYPE_CHECKING:
    from notifier.domain.bot_state import Plan


OVERLAP = timedelta(seconds=OVERLAP_SECONDS)


class Resources(Protocol):
    """A stack's resources, by their logical ids."""

    def client(self, service: str) -> Any:
        """Return boto3's client of a service, where the stack is."""

    def physical_id(self, logical_id: str) -> str:
        """Return what AWS calls a resource."""


class OperationError(Exception):
    """It cannot be done. The text tells a person why."""


def publish(stack: Resources, files: Iterable[Path]) -> int:
    """Put requests on the queue as they stand; give how many.

    Args:
        stack: where to.
        files: each is one request; of a `.jsonl` file each line is one.

    Raises:
        OperationError: a file cannot be read.
    """
    sqs, queue = stack.client("sqs"), stack.physical_id("RequestsQueue")
    published = 0
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OperationError(f"{file} cannot be read: {error}") from None
        for body in text.splitlines() if file.suffix == ".jsonl" else [text]:
            sqs.send_message(QueueUrl=queue, MessageBody=body, MessageGroupId=_group(body))
            published += 1
    return published


def _group(body: str) -> str:
    """Return the group that SQS's fair queues go by: the bot."""
    try:
        return parse(body).request.bot
    except InvalidRequest as failure:
        return failure.bot or "default"


def redrive(stack: Resources, order: ListOrder, progress: Callable[[int, int], None]) -> Report:
    """List dead letters, or put them back.

    Args:
        stack: whose.
        order: which ones, and what to do with them.
        progress: called with the letters looked at so far, and with about how many there are.
    """
    sqs = stack.client("sqs")
    dead_letters = stack.physical_id("DeadLettersQueue")
    with ThreadPoolExecutor(MAX_THREADS) as threads:
        return Redrive(
            dead_letters=DeadLettersQueue(sqs, dead_letters, SystemClock.now),
            requests=RequestsQueue(sqs, stack.physical_id("RequestsQueue")),
            clock=SystemClock(),
            threads=threads,
            progress=progress,
        ).run(order)


def pause(stack: Resources, bot: str) -> None:
    """Stop everything of a bot (look-ups, sends, questions) until it is resumed.

    Raises:
        OperationError: there is no such bot.
    """
    _entry(stack, bot)
    _bot_states(stack).pause(bot)


def resume(stack: Resources, bot: str) -> None:
    """Resume a bot at once, if it was paused or its breaker is open.

    Raises:
        OperationError: there is no such bot.
    """
    _entry(stack, bot)
    _bot_states(stack).resume(bot)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried of a bot.

    Attributes:
        good: None where it could not be tried.
        detail: what was found, in a sentence without any value of the secret.
    """

    what: str
    good: bool | None
    detail: str


def check_bot(stack: Resources, name: str) -> list[Finding]:
    """Try a bot's entry, key, URL and channel. Nothing is looked up and nothing is sent.

    Raises:
        OperationError: there is no such bot.
    """
    bot = _entry(stack, name)
    if isinstance(bot, InvalidBot):
        nothing = [Finding(what, None, "") for what in ("key and URL", "WhatsApp channel")]
        return [Finding("entry in the secret", good=False, detail=bot.problem), *nothing]
    plan = f"{bot.messages_per_second:g} messages and {bot.commands_per_second:g} commands a second"
    entry = Finding("entry in the secret", good=True, detail=f"{plan}, receipts by {bot.receipts}")
    with closing(BlipClient(1, 10.0)) as blip:
        return [entry, _share(stack, bot), _answers(blip, bot), _has_channel(blip, bot)]


class WebhookEntry(BaseModel):
    """A bot's secrets at the webhook, as notifier.aws.webhook reads them."""

    current: str
    previous: str | None = None
    rotated_at: AwareDatetime | None = None

    @property
    def previous_until(self) -> datetime | None:
        """Until when the previous secret counts; None if there is none that does."""
        return self.rotated_at + OVERLAP if self.previous and self.rotated_at else None

    def counting(self, now: datetime) -> set[str]:
        """Return the secrets that count."""
        until = self.previous_until
        return {self.current, *([self.previous] if self.previous and until and now < until else [])}


_WEBHOOK_ENTRIES = TypeAdapter(dict[str, WebhookEntry])


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new webhook secret.

    Attributes:
        bots: those that it is for: the bot, and other names of it in the bots' secret.
        secret: what BLiP has to show from now on.
        previous_until: until when the one before counts; None if it does not.
        others_with_the_old_one: other bots whose receipts the one before still lets in.
    """

    bots: list[str]
    secret: str = field(repr=False)
    previous_until: datetime | None
    others_with_the_old_one: list[str]


def rotate_webhook(stack: Resources, name: str, *, leaked: bool) -> Rotation:
    """Put a new webhook secret for a bot; those of the other bots stay as they are.

    The first rotation of a stack writes down for every bot the one secret that all have shared. Two
    names with the same key are one bot at BLiP, which shows one secret for both.

    Args:
        stack: where.
        name: the bot's name.
        leaked: refuse the secret before at once, not after a day.

    Raises:
        OperationError: there is no such bot, the secret cannot be read, or the bot's secret before
            the current one still counts and would be dropped.
    """
    bots, bot = _bots(stack), _entry(stack, name)
    names = [name]
    if isinstance(bot, Bot):
        names = [one.name for one in bots.values() if isinstance(one, Bot) and one.key == bot.key]
    client, secret = stack.client("secretsmanager"), stack.physical_id("WebhookSecret")
    entries = _webhook_entries(client, secret, bots)
    now = datetime.fromtimestamp(SystemClock.now(), UTC)
    before = [entries[one] for one in names if one in entries]
    counts_until = max(filter(None, (entry.previous_until for entry in before)), default=now)
    if now < counts_until and not leaked:
        raise OperationError(
            f"the secret of {name} was rotated less than a day ago, and the one before counts until"
            f" {counts_until:%FT%TZ}: wait until then, or --leaked refuses it at once"
        )
    new = secrets.token_hex(32)
    for one in names:
        previous = entries[one].current if one in entries and not leaked else None
        entries[one] = WebhookEntry(current=new, previous=previous, rotated_at=now)
    client.put_secret_value(SecretId=secret, SecretString=_written(entries))
    dropped = {value for entry in before for value in entry.counting(now)}
    others = [one for one, entry in entries.items() if dropped & entry.counting(now) - {new}]
    return Rotation(
        bots=names,
        secret=new,
        previous_until=now + OVERLAP if before and not leaked else None,
        others_with_the_old_one=[one for one in others if one not in names],
    )


def restore_ledger(stack: Resources, source: str) -> Iterator[tuple[int, int]]:
    """Copy from a restored table what the ledger lacks; what it has is newer and stays.

    Each is marked: its status events were published before the backup.

    Yields, again and again, how many items were read and how many of them were lacking.
    """
    dynamodb, ledger = stack.client("dynamodb"), stack.physical_id("LedgerTable")
    mark = {"restored_at": {"N": str(milliseconds(time.time()))}}
    read = copied = 0
    for page in dynamodb.get_paginator("scan").paginate(TableName=source, ConsistentRead=True):
        for item in page["Items"]:
            read += 1
            try:
                dynamodb.put_item(
                    TableName=ledger,
                    Item=item | mark,
                    ConditionExpression="attribute_not_exists(#key)",
                    ExpressionAttributeNames={"#key": "key"},
                )
            except dynamodb.exceptions.ConditionalCheckFailedException:
                continue
            copied += 1
        yield read, copied


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


# Of an item, what a status event needs: no request is read.
_OF_EVENTS = ["key", "id", "bot", "template", "metadata", "correlation_id", "timeline", "refusals"]


def republish(stack: Resources, since: float, after: str | None) -> Iterator[Republished]:
    """Publish again every status event of the ledger since a time, with the same `event_id`.

    Args:
        stack: whose.
        since: in epoch seconds.
        after: the key to continue from; None for the whole ledger.

    Yields:
        How far it has come, after each page of the ledger.

    Raises:
        OperationError: the event bus takes no events. The text names the key to continue from.
    """
    function = stack.client("lambda").get_function_configuration(
        FunctionName=stack.physical_id("PublishStatusEventsFunction")
    )
    told = function["Environment"]["Variables"]
    settings = read(PublishStatusEventsSettings, told)
    bus = EventBridgeStatusEvents(
        stack.client("events"), settings.event_bus, told["POWERTOOLS_SERVICE_NAME"]
    )
    refused = _Refused()
    publisher = Publisher(
        bus,
        refused,
        _Unmeasured(),
        SystemClock(),
        ALL_PUBLISHED if settings.publish_all_receipts else DEFAULT_PUBLISHED,
    )
    ledger = Table(stack.client("dynamodb"), stack.physical_id("LedgerTable"))
    scanned = published = 0
    while True:
        values = {":since": milliseconds(since)}
        attributes = [*_OF_EVENTS, "updated_at"]
        items, count, last = ledger.scan("#updated_at >= :since", values, attributes, after)
        writes = [_since(item, since) for item in items]
        if publisher.publish(writes, deadline=float("inf")) is not None:
            where = f"FROM={after}" if after else "the same SINCE, from the beginning"
            raise OperationError(f"the event bus takes no events; later continue with {where}")
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


def _since(item: Item, since: float) -> LedgerWrite:
    """Return an item's events since then, as if one write had added them all."""
    try:
        events = tuple(
            event
            for event in status_events(item)
            # Of one in advance, the event comes when the request does, perhaps much later.
            if event.time >= since or event.status is Status.CANCELLED
        )
    except Exception as crash:  # noqa: BLE001 - the items after it go on
        problem = str(crash_facts(crash)["error"])
        return LedgerWrite(item["key"], item["key"], problem=problem)
    return LedgerWrite(item["key"], item["key"], events)


class _Refused:
    """Remembers what can never be published."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def put(self, write: LedgerWrite, _problem: str) -> bool:
        if write.key not in self.keys:
            self.keys.append(write.key)
        return True


class _Unmeasured:
    """A meter for what is no work of the stack."""

    def took(self, what: str, seconds: float) -> None: ...

    def age(self, what: str, seconds: float) -> None: ...

    def share(self, what: str, share: float) -> None: ...

    def count(self, what: str, number: int = 1) -> None: ...


def _bots(stack: Resources) -> Bots:
    secret = stack.physical_id("BotsSecret")
    answer = stack.client("secretsmanager").get_secret_value(SecretId=secret)
    try:
        return parse_bots(answer["SecretString"])
    except BotsSecretError as error:
        raise OperationError(str(error)) from None


def _entry(stack: Resources, name: str) -> Bot | InvalidBot:
    bots = _bots(stack)
    if name not in bots:
        known = ", ".join(sorted(bots)) or "none"
        raise OperationError(f"the bots' secret has no entry {name!r}; it has {known}")
    return bots[name]


def _webhook_entries(client: Any, secret: str, bots: Iterable[str]) -> dict[str, WebhookEntry]:
    """Return the webhook's secrets by bot; of a plain string, what it means for each bot."""
    answer = client.get_secret_value(SecretId=secret)
    text = answer["SecretString"].strip()
    if text.startswith("{"):
        try:
            return _WEBHOOK_ENTRIES.validate_json(text)
        except ValidationError as error:
            where = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
            raise OperationError(
                f"the webhook's secret cannot be read{where and f' at {where}'}: fix it first"
            ) from None
    plain = WebhookEntry(current=text)
    try:
        previous = client.get_secret_value(SecretId=secret, VersionStage="AWSPREVIOUS")
    except client.exceptions.ResourceNotFoundException:
        pass  # it was never rotated
    else:
        plain.previous, plain.rotated_at = previous["SecretString"].strip(), answer["CreatedDate"]
    return dict.fromkeys(bots, plain)


def _written(entries: dict[str, WebhookEntry]) -> str:
    return _WEBHOOK_ENTRIES.dump_json(entries, exclude_none=True, indent=1).decode()


def _bot_states(stack: Resources) -> DynamoDbBotStates:
    table = Table(stack.client("dynamodb"), stack.physical_id("IdentitiesTable"))
    return DynamoDbBotStates(table, time.time)


def _share(stack: Resources, bot: Bot) -> Finding:
    now = time.time()
    state = _bot_states(stack).state(bot.name)
    plans: tuple[Plan, ...] = ("messages", "commands")
    shares = [state.share(plan, bot.share, now) for plan in plans]
    detail = " and ".join(
        f"{100 * share:.0f} % for {plan}" for share, plan in zip(shares, plans, strict=True)
    )
    if min(shares) < bot.share:
        detail += f", after a penalty; climbs back to {100 * bot.share:.0f} %"
    return Finding("share of the plan", good=True, detail=detail)


def _answers(blip: BlipClient, bot: Bot) -> Finding:
    try:
        blip.ping(bot)
    except Failure as failure:
        return Finding("key and URL", good=False, detail=failure.detail)
    return Finding("key and URL", good=True, detail=f"{bot.base_url} answers this key")


def _has_channel(blip: BlipClient, bot: Bot) -> Finding:
    try:
        templates = blip.templates(bot)
    except Failure as failure:
        return Finding("WhatsApp channel", good=False, detail=failure.detail)
    approved = sum(status == "APPROVED" for _, _, status in templates)
    detail = f"{approved} of {len(templates)} templates are approved"
    return Finding("WhatsApp channel", good=bool(approved), detail=detail)
