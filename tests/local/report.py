"""Publishes requests and follows each to its end: a final state in the ledger, or a dead letter."""

import contextlib
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import batched, islice
from typing import Any

from botocore.exceptions import ClientError

from notifier.domain.failures import Reason
from notifier.domain.status import SENT_OR_LATER, UNDELIVERED, Status
from tests.local.dead_letters import DeadLetters, Letter
from tests.local.rows import Row, now
from tests.local.stack import LocalStack

PUBLISHERS = 4
MAX_BATCH_BYTES = 900_000  # SQS allows a mebibyte, attributes included
MAX_KEYS = 100  # DynamoDB's own limit
MAX_CHUNKS = 5  # looked at in one go
CLOCK_SKEW_SECONDS = 5
GIVE_UP_SECONDS = 20 * 60
DELIVERED = frozenset({Status.RECEIVED, Status.CONSUMED})


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
        self._held_back: list[Row] = []
        first: dict[tuple[str, str], Row] = {}
        for row in rows:
            if row.key is not None and row.parsed is not None:
                known = first.setdefault((row.key, row.parsed.content_hash), row)
                if known is not row:
                    row.repeats = known.source
                self._by_key[row.key].append(row)
                earliest = self._by_key[row.key][0].parsed
                if earliest and earliest.content_hash != row.parsed.content_hash:
                    self._held_back.append(row)

    def run(self, show: Callable[[], None] = lambda: None) -> bool:
        """Publish everything and wait until each row has ended; False if that took too long.

        Args:
            show: called whenever the rows may have changed.
        """
        held_back = {row.line for row in self._held_back}
        at_once = [row for row in self.rows if row.line not in held_back]
        pool = ThreadPoolExecutor(PUBLISHERS, thread_name_prefix="publish")
        try:
            publishing = [pool.submit(self._publish, batch) for batch in _batches(at_once)]
            has_ended = self._follow(publishing, show)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self._collect()
        self._explain()
        self.letters.give_back()
        return has_ended

    def _follow(self, publishing: list["Future[None]"], show: Callable[[], None]) -> bool:
        while any(row.ended_at is None for row in self.rows):
            began = time.monotonic()
            for future in [future for future in publishing if future.done()]:
                publishing.remove(future)
                future.result()
            self._poll()
            self._publish_held_back()
            show()
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
        published_at = now()
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
            published_at = now()
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
        row.published_at = now()
        row.attempts = 0
        row.end(Status.REJECTED, Reason.MALFORMED, now())
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
                " updated_at, timeline",
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
            for event in item.get("timeline", {}).get("L", []):
                name, _, at, *_ = event["L"]
                if name["S"] in SENT_OR_LATER:
                    row.sent_at = row.sent_at or int(at["N"]) / 1000
                if name["S"] in DELIVERED:
                    row.delivered_at = row.delivered_at or int(at["N"]) / 1000
            if status in self.delivered or status in UNDELIVERED:
                row.end(status, item.get("reason", {}).get("S"), updated_at / 1000)

    def _explain(self) -> None:
        """Add to the rows that the ledger ended what their dead letters say."""
        for row in self.rows:
            letter = self._by_body.get(row.text or "")
            if letter and row.status in UNDELIVERED and not row.detail:
                row.detail = letter.failure.get("detail", "")


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
