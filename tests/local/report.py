"""Publishes requests and follows each to its end: a final state in the ledger, or a dead letter."""

import contextlib
import json
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import batched, islice
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from mypy_boto3_sqs import SQSClient
from mypy_boto3_sqs.type_defs import MessageTypeDef
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from notifier.contract.parse import Parsed, parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.failures import Reason
from notifier.domain.notification import ledger_key
from notifier.domain.status import SENT_OR_LATER, UNDELIVERED, Status
from tests.local.stack import LocalStack, StackError

# What SQS itself moved to the dead letters says no reason.
RECEIVES_EXHAUSTED = "receives_exhausted"

PUBLISHERS = 4
MAX_BATCH_BYTES = 900_000  # SQS allows a mebibyte, attributes included
MAX_KEYS = 100  # DynamoDB's own limit
MAX_CHUNKS = 5  # looked at in one go
LETTERS_HIDDEN_SECONDS = 600
CLOCK_SKEW_SECONDS = 5
GIVE_UP_SECONDS = 20 * 60

_REJECTED = frozenset(
    {
        Reason.MALFORMED,
        Reason.INVALID,
        Reason.UNKNOWN_BOT,
        Reason.ID_CONFLICT,
        Reason.NOT_A_PHONE_NUMBER,
        Reason.NOT_ALLOWED,
        Reason.REJECTED,
    }
)


@dataclass(slots=True)
class Row:
    """One published request.

    Attributes:
        line: its number among all that are published, from 1.
        source: its file, and the line in it where it is one of many.
        body: what is published, byte by byte.
        parsed: the request, where it is a valid one.
        id, bot, template: as far as they are readable.
        key: of its item in the ledger, where it is valid.
        status, reason, attempts, detail: how it ended, or stands.
        timeline: the statuses it went through.
    """

    line: int
    source: str
    body: bytes
    parsed: Parsed | None = None
    id: str | None = None
    bot: str | None = None
    template: str | None = None
    key: str | None = None
    status: str | None = None
    reason: str | None = None
    attempts: int | None = None
    detail: str = ""
    timeline: list[str] = field(default_factory=list)
    published_at: float | None = None
    ended_at: float | None = None

    @classmethod
    def read(cls, line: int, source: str, body: bytes) -> "Row":
        row = cls(line, source, body)
        try:
            row.parsed = parse(row.text or "")
        except InvalidRequest as unusable:
            row.id, row.bot = unusable.notification_id, unusable.bot
            row.template = unusable.template
        else:
            request = row.parsed.request
            row.id, row.bot, row.template = request.id, request.bot, request.template.name
            row.key = ledger_key(request.bot, request.id)
        return row

    @property
    def text(self) -> str | None:
        """The body as SQS carries it; None for what is no text."""
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            return None

    @property
    def pending(self) -> bool:
        return self.published_at is not None and self.ended_at is None

    def end(self, status: str, reason: str | None, at: float) -> None:
        self.status, self.reason = status, reason
        # A repeated request ended before it was published, with the first of its kind.
        self.ended_at = max(at, self.published_at or at)

    def as_json(self) -> dict[str, Any]:
        return {
            "line": self.line,
            "id": self.id,
            "bot": self.bot,
            "status": self.status,
            "reason": self.reason,
            "attempts": self.attempts,
            "published_at": _iso(self.published_at),
            "ended_at": _iso(self.ended_at),
        }


def read_rows(files: Iterable[Path]) -> list[Row]:
    """Make a row of every file, and of every line of a `.jsonl` file, exactly as it stands."""
    rows: list[Row] = []
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StackError(f"cannot read {path}: {error.strerror}") from None
        if path.suffix == ".jsonl":
            lines = content.removesuffix(b"\n").split(b"\n") if content else []
            for number, line in enumerate(lines, 1):
                rows.append(Row.read(len(rows) + 1, f"{path.name}:{number}", line))
        else:
            rows.append(Row.read(len(rows) + 1, path.name, content))
    return rows


def expected_reason(sample: str) -> Reason | None:
    """Return how a file of `events/` should end: with the reason in its name, or delivered."""
    name = Path(sample).stem.partition("-")[2].replace("-", "_")
    return Reason(name) if name in set(Reason) else None


def as_expected(row: Row) -> bool:
    """Whether a sample ended as its name says."""
    expected = expected_reason(row.source)
    return row.reason == expected if expected else row.reason is None and row.ended_at is not None


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter."""

    body: str
    sent_at: float
    reason: str
    notification_id: str | None
    failure: dict[str, Any]

    @classmethod
    def read(cls, message: MessageTypeDef) -> "Letter":
        attributes = {
            name: value.get("StringValue", "")
            for name, value in message.get("MessageAttributes", {}).items()
        }
        failure = {}
        with contextlib.suppress(ValueError):
            failure = json.loads(attributes.get("failure", "{}"))
        return cls(
            body=message["Body"],
            sent_at=int(message["Attributes"]["SentTimestamp"]) / 1000,
            reason=attributes.get("reason", RECEIVES_EXHAUSTED),
            notification_id=attributes.get("notification_id"),
            failure=failure,
        )

    @property
    def status(self) -> Status:
        if self.reason == Reason.EXPIRED:
            return Status.EXPIRED
        return Status.REJECTED if self.reason in _REJECTED else Status.FAILED


class DeadLetters:
    """The dead-letter queue, read without taking anything off it."""

    def __init__(self, sqs: SQSClient, url: str) -> None:
        self._sqs = sqs
        self._url = url
        self._seen: dict[str, Letter] = {}
        self._held: dict[str, str] = {}

    def collect(self) -> list[Letter]:
        """Return those not seen before. They stay hidden until they are given back."""
        new = []
        while messages := self._sqs.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=LETTERS_HIDDEN_SECONDS,
            MessageSystemAttributeNames=["SentTimestamp"],
            MessageAttributeNames=["All"],
        ).get("Messages"):
            for message in messages:
                self._held[message["MessageId"]] = message["ReceiptHandle"]
                if message["MessageId"] not in self._seen:
                    letter = self._seen[message["MessageId"]] = Letter.read(message)
                    new.append(letter)
        return new

    def give_back(self) -> None:
        for handles in batched(self._held.values(), 10, strict=False):
            self._sqs.change_message_visibility_batch(
                QueueUrl=self._url,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
                    for number, handle in enumerate(handles)
                ],
            )
        self._held.clear()

    def visible(self) -> int:
        answer = self._sqs.get_queue_attributes(
            QueueUrl=self._url, AttributeNames=["ApproximateNumberOfMessages"]
        )
        return int(answer["Attributes"]["ApproximateNumberOfMessages"])


class Report:
    """Publishes rows and follows them.

    A request with the id of an earlier one and other content is published once the earlier one has
    been taken up: which of the two is in conflict would be a matter of chance otherwise.
    """

    def __init__(
        self, stack: LocalStack, rows: Sequence[Row], patience_seconds: float = GIVE_UP_SECONDS
    ) -> None:
        self.rows = rows
        self._patience_seconds = patience_seconds
        self.letters = DeadLetters(stack.aws.sqs, stack.dead_letters_queue)
        self._stack = stack
        # The simulator tells how it went on; of another BLiP nothing more is heard here.
        self.delivered = {Status.CONSUMED} if stack.simulator else SENT_OR_LATER
        self._unmatched: dict[str, list[Letter]] = defaultdict(list)
        self._by_body: dict[str, Letter] = {}
        self._by_key: dict[str, list[Row]] = defaultdict(list)
        self._seen_items: dict[str, tuple[Any, ...]] = {}
        self._moved_at = time.monotonic()
        self._looked_at = 0
        first: dict[str, Row] = {}
        self._held_back: list[Row] = []
        for row in rows:
            if row.key is not None and row.parsed is not None:
                self._by_key[row.key].append(row)
                known = first.setdefault(row.key, row).parsed
                if known and known.content_hash != row.parsed.content_hash:
                    self._held_back.append(row)

    def run(self) -> bool:
        """Publish everything and wait until each row has ended; False where we gave up waiting."""
        held_back = {row.line for row in self._held_back}
        at_once = [row for row in self.rows if row.line not in held_back]
        pool = ThreadPoolExecutor(PUBLISHERS, thread_name_prefix="publish")
        try:
            publishing = [pool.submit(self._publish, batch) for batch in _batches(at_once)]
            with _progress(len(self.rows)) as show:
                return self._follow(publishing, show)
        finally:
            pool.shutdown(cancel_futures=True)
            self._collect()
            self._explain()
            self.letters.give_back()

    def _follow(self, publishing: list["Future[None]"], show: "_Show") -> bool:
        while any(row.ended_at is None for row in self.rows):
            began = time.monotonic()
            for future in [future for future in publishing if future.done()]:
                publishing.remove(future)
                future.result()
            self._poll()
            self._publish_held_back()
            ended = sum(row.ended_at is not None for row in self.rows)
            show(sum(row.published_at is not None for row in self.rows), ended)
            if time.monotonic() - self._moved_at > self._patience_seconds:
                return False
            # Looking takes a fifth of the time at most: what is looked at needs the processor, too.
            time.sleep(min(15, max(0.1, 4 * (time.monotonic() - began))))
        return True

    def _publish(self, rows: Sequence[Row]) -> None:
        """Put a batch on the queue; one by one where SQS refuses something in it."""
        sqs, queue = self._stack.aws.sqs, self._stack.requests_queue
        sendable = []
        for row in rows:
            if row.text:
                sendable.append(row)
            else:
                self._refused(row, "empty" if row.text == "" else "not UTF-8")
        if not sendable:
            return
        published_at = _now()
        left = sendable
        with contextlib.suppress(ClientError):
            answer = sqs.send_message_batch(
                QueueUrl=queue,
                Entries=[
                    {
                        "Id": str(number),
                        "MessageBody": row.text or "",
                        "MessageGroupId": row.bot or "default",
                    }
                    for number, row in enumerate(sendable)
                ],
            )
            for entry in answer.get("Successful", []):
                sendable[int(entry["Id"])].published_at = published_at
            left = [row for row in sendable if row.published_at is None]
        for row in left:
            published_at = _now()
            try:
                sqs.send_message(
                    QueueUrl=queue,
                    MessageBody=row.text or "",
                    MessageGroupId=row.bot or "default",
                )
            except ClientError as error:
                self._refused(row, error.response["Error"].get("Message", str(error)))
            else:
                row.published_at = published_at

    @staticmethod
    def _refused(row: Row, why: str) -> None:
        row.detail = f"SQS does not take it: {why}"
        row.published_at = _now()
        row.attempts = 0
        row.end(Status.REJECTED, Reason.MALFORMED, _now())
        print(f"{row.source} cannot be put on a queue: {why}", file=sys.stderr)

    def _publish_held_back(self) -> None:
        for row in list(self._held_back):
            earlier = [other for other in self._by_key[row.key or ""] if other.line < row.line]
            taken_up = row.key in self._seen_items
            if taken_up or any(other.ended_at is not None for other in earlier):
                self._held_back.remove(row)
                self._publish([row])

    def _poll(self) -> None:
        self._collect()
        waiting = [row for row in self.rows if row.pending]
        # Some of them at a time, and the next ones the next time.
        keys = deque(dict.fromkeys(row.key for row in waiting if row.key is not None))
        keys.rotate(-(self._looked_at % max(1, len(keys))))
        chunks = list(islice(batched(keys, MAX_KEYS, strict=False), MAX_CHUNKS))
        for chunk in chunks:
            for item in self._items(chunk):
                self._read_item(item)
        self._looked_at += sum(
            any(row.pending for row in self._by_key[key]) for chunk in chunks for key in chunk
        )
        for row in waiting:
            if row.pending and (letter := self._letter_for(row)):
                row.attempts = letter.failure.get("attempts", 0 if letter.failure else None)
                row.detail = letter.failure.get("detail", "")
                row.end(letter.status, letter.reason, letter.sent_at)
                self._moved_at = time.monotonic()

    def _collect(self) -> None:
        for letter in self.letters.collect():
            self._unmatched[letter.body].append(letter)
            self._by_body[letter.body] = letter
            self._moved_at = time.monotonic()

    def _letter_for(self, row: Row) -> Letter | None:
        """Take the dead letter of a row: each row that ends by one has one of its own."""
        letters = self._unmatched.get(row.text or "", [])
        oldest = (row.published_at or 0) - CLOCK_SKEW_SECONDS
        found = next((letter for letter in letters if letter.sent_at >= oldest), None)
        if found:
            letters.remove(found)
        return found

    def _items(self, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
        table = self._stack.ledger_table
        wanted: Any = {
            table: {
                "Keys": [{"key": {"S": key}} for key in keys],
                "ConsistentRead": True,
                "ProjectionExpression": "#key, #status, reason, content_hash, attempts,"
                " updated_at, timeline, generation, postponed",
                "ExpressionAttributeNames": {"#key": "key", "#status": "status"},
            }
        }
        while wanted:
            answer = self._stack.aws.dynamodb.batch_get_item(RequestItems=wanted)
            yield from answer["Responses"].get(table, [])
            wanted = answer.get("UnprocessedKeys")

    def _read_item(self, item: dict[str, Any]) -> None:
        key, status = item["key"]["S"], item["status"]["S"]
        updated_at = int(item["updated_at"]["N"])
        if self._seen_items.get(key) != (status, updated_at):
            self._seen_items[key] = (status, updated_at)
            self._moved_at = time.monotonic()
        for row in self._by_key[key]:
            own = row.parsed and row.parsed.content_hash == item["content_hash"]["S"]
            if not (own and row.pending):
                continue
            row.status = status
            row.attempts = int(item["attempts"]["N"])
            row.timeline = [event["L"][0]["S"] for event in item.get("timeline", {}).get("L", [])]
            # Put back because of a rate limit, it goes on as the next generation.
            goes_on = item.get("postponed") == item["generation"]
            if status in self.delivered or (status in UNDELIVERED and not goes_on):
                row.end(status, item.get("reason", {}).get("S"), updated_at / 1000)

    def _explain(self) -> None:
        """Add to the rows that the ledger ended what their dead letters say."""
        for row in self.rows:
            letter = self._by_body.get(row.text or "")
            if letter and row.status in UNDELIVERED and not row.detail:
                row.detail = letter.failure.get("detail", "")

    def way(self, row: Row, looked_up: set[str]) -> str:
        """Tell in a few words what became of a row."""
        if row.published_at is None:
            return "not published"
        steps = ["queue"]
        twin = next(
            (
                other
                for other in self._by_key.get(row.key or "", [])
                if other.line < row.line and other.parsed and row.parsed
                and other.parsed.content_hash == row.parsed.content_hash
            ),
            None,
        )  # fmt: skip
        if twin:
            steps.append(f"dropped: the same as {twin.source}")
        else:
            if row.parsed and row.parsed.request.to in looked_up and row.attempts:
                steps.append("look-up")
            steps += row.timeline[:-1] if row.ended_at else row.timeline
            if row.ended_at is None:
                steps.append(f"still {row.status or 'waiting'}")
            elif row.reason:
                steps.append(f"dead letter: {row.detail}" if row.detail else "dead letter")
            else:
                steps.append(row.status or "")
        return " → ".join(steps)


type _Show = "_Bar | _Lines"


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        if batch and (len(batch) == 10 or size + len(row.body) > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row.body)
    if batch:
        yield batch


@contextlib.contextmanager
def _progress(total: int) -> Iterator["_Show"]:
    """Show on standard error how far it is: a bar on a terminal, elsewhere a line now and then."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield _Bar(progress, total)
    else:
        yield _Lines(total)


class _Bar:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._published = progress.add_task("published", total=total)
        self._ended = progress.add_task("ended", total=total)

    def __call__(self, published: int, ended: int) -> None:
        self._progress.update(self._published, completed=published)
        self._progress.update(self._ended, completed=ended)


class _Lines:
    def __init__(self, total: int) -> None:
        self._total = total
        self._shown_at = time.monotonic()

    def __call__(self, published: int, ended: int) -> None:
        if time.monotonic() - self._shown_at >= 5:
            self._shown_at = time.monotonic()
            print(f"published {published}, ended {ended} of {self._total}", file=sys.stderr)


def table(report: Report, stack: LocalStack, *, judged: bool) -> Table:
    """Draw one row per request; judged against what the samples' names say, where asked for."""
    looked_up = set(stack.simulator.statistics()["lookups"]) if stack.simulator else set()
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("request", "id", "template", "its way"):
        drawn.add_column(title, overflow="fold")
    drawn.add_column("took", justify="right", no_wrap=True)
    drawn.add_column("end", no_wrap=True)
    for row in report.rows:
        took = (row.ended_at or 0) - (row.published_at or 0)
        good = as_expected(row) if judged else row.status in report.delivered
        end = row.reason or row.status if row.ended_at else "not ended"
        mark = f" {'✓' if good else '✗ ' + _should(row)}" if judged else ""
        drawn.add_row(
            escape(row.source),
            escape(row.id or ""),
            escape(row.template or ""),
            escape(report.way(row, looked_up)),
            f"{took:.1f} s" if row.ended_at else "",
            f"[{'green' if good else 'red'}]{end}{mark}[/]",
        )
    return drawn


def _should(row: Row) -> str:
    return f"(should be {expected_reason(row.source) or 'delivered'})"


def _now() -> float:
    # In whole milliseconds, as all other times here, so that they can be compared.
    return int(time.time() * 1000) / 1000


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
