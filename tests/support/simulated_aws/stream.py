"""A table's DynamoDB stream and Lambda's mapping from it to a function, as AWS documents them.

The stream has a record for every write that changes an item, once, and the records of one key in
the order of its writes. It is kept for 24 hours; the mapping drops a record before that, so nothing
here is ever trimmed. What the function is given comes at least once: a batch comes again after any
failure, and now and then without one.

https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Streams.html
https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-batchfailurereporting.html
https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-params.html
"""

import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

from boto3.dynamodb.types import TypeSerializer

from notifier.aws.table import Item
from tests.support.simulated_aws.simulation import Simulation
from tests.support.simulated_aws.sqs import SourceMapping

TEMPLATE = Path(__file__).parents[3] / "template.yaml"
SHARDS = 4
# Lambda reads a shard four times a second.
READ_SECONDS = 0.25
# AWS says only that Lambda waits longer and longer between tries that come to nothing.
MAX_BACKOFF_SECONDS = 60.0

_type = TypeSerializer()


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """What a write changed.

    Attributes:
        number: its sequence number.
        before, after: the item; empty where there was or is none.
        at: when it was written, in epoch seconds.
    """

    number: int
    key: str
    before: Item
    after: Item
    at: float

    def event(self) -> dict[str, Any]:
        """Return it as Lambda hands it to the function."""
        change: dict[str, Any] = {
            "ApproximateCreationDateTime": int(self.at),
            "Keys": _image({"key": self.key}),
            "SequenceNumber": str(self.number),
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        }
        if self.before:
            change["OldImage"] = _image(self.before)
        if self.after:
            change["NewImage"] = _image(self.after)
        return {
            "eventID": f"{self.number:032x}",
            "eventName": self.name,
            "eventSource": "aws:dynamodb",
            "dynamodb": change,
        }

    @property
    def name(self) -> str:
        if not self.before:
            return "INSERT"
        return "MODIFY" if self.after else "REMOVE"


def _image(item: Item) -> dict[str, Any]:
    return {name: _type.serialize(value) for name, value in item.items()}


class Stream:
    """The stream of one table.

    Attributes:
        on_record: called for every record, with its shard.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.on_record: Callable[[int, Record], None] = lambda *_: None
        self._simulation = simulation
        self._numbers = count(1)

    def write(self, key: str, before: Item, after: Item) -> Record | None:
        """Record a write. Return its record, or None if it changed nothing."""
        if before == after:
            return None
        record = Record(next(self._numbers), key, before, after, self._simulation.now)
        self.on_record(zlib.crc32(key.encode()) % SHARDS, record)
        return record


@dataclass
class StreamFaults:
    """What Lambda may do with a stream, as probabilities per batch.

    Attributes:
        repeated: the function has a batch once more that it has answered.
        late: a batch comes up to `latest` seconds later.
    """

    repeated: float = 0.0
    late: float = 0.0
    latest: float = 300.0


@dataclass(frozen=True)
class StreamSettings:
    """What the template says of the mapping; times in seconds.

    Attributes:
        statuses: the filter: what the new image's `status` has to be among.
        window: for how long a batch is gathered.
        most: how many records it has at most.
        oldest: after so long a record is dropped.
        timeout: the function's.
    """

    statuses: Collection[str]
    window: float
    most: int
    oldest: float
    timeout: float


@cache
def deployed() -> StreamSettings:
    """Return what the template says, which the simulated world takes as it is."""
    template = TEMPLATE.read_text(encoding="utf-8")
    _, _, function = template.partition("\n  PublishStatusEventsFunction:\n")
    function, _, _ = function.partition("\n\n")
    facts = dict(re.findall(r"^ +(\w+): (\S.*)$", function, re.MULTILINE))
    patterns = re.findall(r"- Pattern: '(.*)'$", function, re.MULTILINE)
    (statuses,) = [json.loads(each)["dynamodb"]["NewImage"]["status"]["S"] for each in patterns]
    assert facts["FunctionResponseTypes"] == "[ReportBatchItemFailures]"
    assert facts["MaximumRetryAttempts"] == "-1"
    assert facts["ParallelizationFactor"].startswith("1 ")
    return StreamSettings(
        statuses,
        float(facts["MaximumBatchingWindowInSeconds"]),
        int(facts["BatchSize"]),
        float(facts["MaximumRecordAgeInSeconds"]),
        float(facts["Timeout"]),
    )


@dataclass(eq=False)
class Shard:
    """How far the function is in a shard.

    Attributes:
        waiting: the records after its checkpoint that pass the filter.
        again: how many of these are a batch that comes again.
        tries: how often it came without the checkpoint moving.
    """

    waiting: deque[Record] = field(default_factory=deque)
    again: int = 0
    tries: int = 0
    busy: bool = False
    due: bool = False


@dataclass
class Batch:
    """Some records of a shard, as the function has them."""

    shard: Shard
    records: list[Record]


@dataclass
class StreamMapping(SourceMapping[Batch]):
    """Lambda's mapping with partial batch answers: one batch a shard at a time, without end.

    Attributes:
        dropped: the records that grew too old.
        on_dropped: called for each of them; the template has a destination for these.
        automatic_from: since when it polls by itself, in epoch seconds.
    """

    stream: Stream
    settings: StreamSettings
    _: KW_ONLY
    faults: StreamFaults = field(default_factory=StreamFaults)
    dropped: list[Record] = field(default_factory=list)
    on_dropped: Callable[[Record], None] = lambda _: None

    def __post_init__(self) -> None:
        self._shards = [Shard() for _ in range(SHARDS)]
        self.stream.on_record = self._arrived
        self.automatic_from = self.simulation.now

    @property
    def waiting(self) -> int:
        """How many records the function has not done with."""
        return sum(len(shard.waiting) for shard in self._shards)

    @property
    def age(self) -> float:
        """How old the oldest of these is, in seconds."""
        first = [shard.waiting[0].at for shard in self._shards if shard.waiting]
        return self.simulation.now - min(first, default=self.simulation.now)

    def let_go(self) -> None:
        self.automatic = True
        self.automatic_from = self.simulation.now
        for shard in self._shards:
            self._soon(shard)

    def startable(self) -> bool:
        return any(shard.waiting and not shard.busy for shard in self._shards)

    def poll(self, most: int) -> bool:
        """Start the batch of one shard or another."""
        free = [shard for shard in self._shards if shard.waiting and not shard.busy]
        return bool(free) and self._start(self.simulation.random.choice(free), most)

    def _arrived(self, number: int, record: Record) -> None:
        if record.after.get("status") in self.settings.statuses:
            shard = self._shards[number]
            shard.waiting.append(record)
            if len(shard.waiting) == self.settings.most:
                shard.due = False  # a full batch waits for nothing more
            self._soon(shard)

    def _soon(self, shard: Shard) -> None:
        if not self.automatic or shard.due or shard.busy or not shard.waiting:
            return
        chance = self.simulation.random
        wait = chance.uniform(0.2, 1) * READ_SECONDS
        if shard.tries:
            wait += chance.random() * min(MAX_BACKOFF_SECONDS, 0.2 * 2 ** min(shard.tries, 9))
        elif not shard.again and len(shard.waiting) < self.settings.most:
            wait += self.settings.window
        if chance.random() < self.faults.late:
            wait += chance.uniform(0, self.faults.latest)
        shard.due = True
        self.simulation.at(self.simulation.now + wait, lambda: self._due(shard))

    def _due(self, shard: Shard) -> None:
        if shard.due and not shard.busy:
            shard.due = False
            self._start(shard, self.settings.most)

    def _start(self, shard: Shard, most: int) -> bool:
        while shard.waiting and self.simulation.now - shard.waiting[0].at > self.settings.oldest:
            self.dropped.append(shard.waiting.popleft())
            self.on_dropped(self.dropped[-1])
            shard.again = max(0, shard.again - 1)
        if not shard.waiting:
            return False
        batch = Batch(shard, list(islice(shard.waiting, shard.again or most)))
        # So it is if the function raises, is killed or is out of time.
        shard.again = len(batch.records)
        shard.tries += 1
        shard.busy = True
        self._invoke(batch, [record.event() for record in batch.records])
        return True

    def _answered(self, batch: Batch, answer: dict[str, Any]) -> None:
        """Set the checkpoint: what comes before the lowest number that failed is done."""
        shard = batch.shard
        numbers = [record.number for record in batch.records]
        failed = [int(entry["itemIdentifier"]) for entry in answer["batchItemFailures"]]
        assert set(failed) <= set(numbers), "Lambda takes the whole batch as failed"
        done = numbers.index(min(failed)) if failed else len(numbers)
        if not failed and self.simulation.random.random() < self.faults.repeated:
            return
        for _ in range(done):
            shard.waiting.popleft()
        shard.again = len(numbers) - done
        if done:
            shard.tries = 0

    def _over(self, batch: Batch, /) -> None:
        batch.shard.busy = False
        self._soon(batch.shard)
