"""SQS standard queues and the mapping from a queue to a function, as AWS documents them.

Delivery is at least once and in any order. Fair queues are modelled simply: a message group is
noisy while it has at least 30 messages and more than a tenth of all in flight; messages of other
groups are received before a noisy group's.

`tests/faults/simulated_aws/` compares queue and client with moto's.
"""

import heapq
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, field
from itertools import count
from typing import Any

from tests.support.simulated_aws.dynamodb import Aws, DirectAws
from tests.support.simulated_aws.simulation import Process, Simulation

RETENTION_SECONDS = 14 * 86_400
MAX_VISIBILITY_SECONDS = 43_200
MAX_IN_FLIGHT = 120_000
BATCH = 10
# How old the approximate figures are at most that SQS gives.
FIGURES_SECONDS = 10.0
# How long Lambda waits when SQS has too many messages in flight.
OVER_LIMIT_SECONDS = 1.0


@dataclass
class QueueFaults:
    """How often a standard queue does what it may do, as probabilities per receipt.

    Attributes:
        shown_twice: a message that was just received is delivered to another receiver, too.
        comes_back: a deleted message is delivered once more.
    """

    shown_twice: float = 0.0
    comes_back: float = 0.0


@dataclass(eq=False, slots=True)
class Message:
    """One message.

    Attributes:
        changes: how often its visibility was set; distinguishes the last time from earlier ones.
    """

    number: int
    body: str
    attributes: dict[str, dict[str, str]]
    group: str
    sent_at: float
    receive_count: int = 0
    changes: int = 0
    handle: str = ""
    received_at: float = 0.0
    in_flight: bool = False
    deleted: bool = False

    def record(self) -> dict[str, Any]:
        """Return it as Lambda hands it to the function."""
        return {
            "messageId": str(self.number),
            "receiptHandle": self.handle,
            "body": self.body,
            "attributes": {
                "SentTimestamp": str(int(self.sent_at * 1000)),
                "ApproximateReceiveCount": str(self.receive_count),
            },
            "messageAttributes": {
                name: {"stringValue": value["StringValue"], "dataType": value["DataType"]}
                for name, value in self.attributes.items()
            },
        }

    def answer(self) -> dict[str, Any]:
        """Return it as SQS hands it to a client."""
        return {
            "MessageId": str(self.number),
            "ReceiptHandle": self.handle,
            "Body": self.body,
            "Attributes": {"SentTimestamp": str(int(self.sent_at * 1000))},
            "MessageAttributes": self.attributes,
        }


class Queue:
    """One standard queue.

    Attributes:
        on_visible: called when there may be something to receive.
        on_sent: called for every message put on it.
        vanished: the messages that SQS deleted because they grew too old.
        exhausted: the messages that were received more often than allowed.
        receive_count: how often any message was received; `most_receives`: the same one at most.
        most_in_flight: how many messages were in flight at a time at most.
    """

    def __init__(
        self,
        simulation: Simulation,
        name: str,
        *,
        visibility_timeout: float = 300.0,
        max_receives: int = 1000,
        faults: QueueFaults | None = None,
        approximate: bool = False,
    ) -> None:
        self.name = name
        self.faults = faults or QueueFaults()
        self.messages: dict[int, Message] = {}
        self.on_visible: Callable[[], None] = lambda: None
        self.on_sent: Callable[[Message], None] = lambda _: None
        self.vanished: list[Message] = []
        self.exhausted: list[Message] = []
        self.most_receives = 0
        self.most_in_flight = 0
        self.receive_count = 0
        self._simulation = simulation
        self._visibility_timeout = visibility_timeout
        self._max_receives = max_receives
        self._visible: dict[str, list[Message]] = {}
        self._in_flight: Counter[str] = Counter()
        self._flying = 0
        self._invisible: list[tuple[float, int, Message, int]] = []
        self._numbers = count(1)
        self._nudge_at = float("inf")
        self._approximate = approximate
        self._counted, self._counted_at = (0, 0), float("-inf")

    def send(
        self,
        body: str,
        attributes: Mapping[str, dict[str, str]] | None = None,
        *,
        group: str = "",
        delay: float = 0.0,
    ) -> Message:
        """Put a message on the queue."""
        assert body, "SQS refuses an empty body"
        assert 0 <= delay <= 900
        assert len(attributes or {}) <= 10
        message = Message(
            next(self._numbers), body, dict(attributes or {}), group, self._simulation.now
        )
        self.messages[message.number] = message
        self.on_sent(message)
        if delay:
            self._make_invisible(message, delay)
        else:
            self._show(message)
        return message

    def receive(self, most: int = BATCH, visibility: float | None = None) -> list[Message]:
        """Receive messages, in flight for `visibility` seconds or for the visibility timeout."""
        self._reveal()
        batch: list[Message] = []
        while len(batch) < most and self._visible and self._flying < MAX_IN_FLIGHT:
            message = self._take(self._group())
            if message.deleted or message.in_flight or message in batch:
                continue
            if self._simulation.now - message.sent_at > RETENTION_SECONDS:
                self._drop(message)
                self.vanished.append(message)
                continue
            if message.receive_count >= self._max_receives:
                self._drop(message)
                self.exhausted.append(message)
                continue
            message.receive_count += 1
            self.receive_count += 1
            self.most_receives = max(self.most_receives, message.receive_count)
            self._fly(message, True)
            message.handle = f"{message.number}/{message.receive_count}"
            message.received_at = self._simulation.now
            self._make_invisible(
                message, self._visibility_timeout if visibility is None else visibility
            )
            if self._simulation.random.random() < self.faults.shown_twice:
                self.show_again(message)
            batch.append(message)
        return batch

    def delete(self, handle: str) -> None:
        """Delete by any receipt handle that the message ever had."""
        message = self.messages.get(int(handle.partition("/")[0]))
        if message is None or message.deleted:
            return
        if self._simulation.random.random() < self.faults.comes_back:
            self._fly(message, False)
            self._make_invisible(message, self._simulation.random.uniform(1, 300))
            return
        self._drop(message)

    def change_visibility(self, handle: str, seconds: float) -> str | None:
        """Change when a message is visible again: this long from now.

        Returns:
            None, or SQS's code: the message is not in flight, or would be in flight for more than
            twelve hours from its receipt.
        """
        assert 0 <= seconds <= MAX_VISIBILITY_SECONDS
        message = self.messages.get(int(handle.partition("/")[0]))
        if message is None or message.deleted or not message.in_flight or message.handle != handle:
            return "MessageNotInflight"
        if self._simulation.now + seconds > message.received_at + MAX_VISIBILITY_SECONDS:
            return "InvalidParameterValue"
        self._make_invisible(message, seconds)
        return None

    def show_again(self, message: Message) -> None:
        """Make a message visible although it is in flight."""
        if not message.deleted:
            self._make_invisible(message, 0.0)

    def depth(self) -> tuple[int, int]:
        """Return how many messages can be received, and how many are in flight."""
        self._reveal()
        return len(self.messages) - self._flying, self._flying

    def waiting(self) -> list[Message]:
        """Return everything on the queue, in flight or not."""
        return [message for message in self.messages.values() if not message.deleted]

    def figures(self) -> tuple[int, int]:
        """Return the depth as SQS reports it: for approximate queues as it was some seconds ago."""
        if not self._approximate:
            return self.depth()
        now, chance = self._simulation.now, self._simulation.random
        if now - self._counted_at > chance.uniform(0, FIGURES_SECONDS):
            self._counted_at = now
            waiting, flying = self.depth()
            self._counted = waiting, round(flying * chance.uniform(0.97, 1.03))
        return self._counted

    def visible(self) -> bool:
        """Return whether there may be something to receive."""
        self._reveal()
        return bool(self._visible)

    def _make_invisible(self, message: Message, seconds: float) -> None:
        message.changes += 1
        until = self._simulation.now + seconds
        heapq.heappush(self._invisible, (until, message.number, message, message.changes))
        self._nudge_later()

    def _nudge_later(self) -> None:
        if self._invisible and self._invisible[0][0] < self._nudge_at:
            self._nudge_at = self._invisible[0][0]
            self._simulation.at(self._nudge_at, self._nudge)

    def _nudge(self) -> None:
        if self._simulation.now >= self._nudge_at:
            self._nudge_at = float("inf")
        if self.visible():
            self.on_visible()
        self._nudge_later()

    def _reveal(self) -> None:
        now = self._simulation.now
        while self._invisible and self._invisible[0][0] <= now:
            _, _, message, changes = heapq.heappop(self._invisible)
            if message.changes == changes and not message.deleted:
                self._fly(message, False)
                self._show(message)

    def _show(self, message: Message) -> None:
        self._visible.setdefault(message.group, []).append(message)
        self.on_visible()

    def _group(self) -> str:
        groups = list(self._visible)
        if len(groups) == 1:
            return groups[0]
        flying = self._flying
        quiet = [
            group
            for group in groups
            if self._in_flight[group] < 30 or self._in_flight[group] <= flying / 10
        ]
        among = quiet or groups
        weights = [len(self._visible[group]) for group in among]
        return self._simulation.random.choices(among, weights)[0]

    def _take(self, group: str) -> Message:
        """Take any message of a group: a standard queue keeps no order."""
        messages = self._visible[group]
        number = self._simulation.random.randrange(len(messages))
        messages[number], messages[-1] = messages[-1], messages[number]
        message = messages.pop()
        if not messages:
            del self._visible[group]
        return message

    def _fly(self, message: Message, flies: bool) -> None:
        if message.in_flight is not flies:
            message.in_flight = flies
            self._in_flight[message.group] += 1 if flies else -1
            self._flying += 1 if flies else -1
            self.most_in_flight = max(self.most_in_flight, self._flying)

    def _drop(self, message: Message) -> None:
        self._fly(message, False)
        message.deleted = True
        del self.messages[message.number]


class SimSqs:
    """Of boto3's SQS client, what the adapters call; `away` is the shortest latency."""

    def __init__(self, aws: DirectAws, queues: Mapping[str, Queue], away: float = 0.008) -> None:
        self._aws = aws
        self._queues = queues
        self._away = away

    def send_message(self, **arguments: Any) -> dict[str, Any]:
        queue = self._queues[arguments.pop("QueueUrl")]
        body = arguments.pop("MessageBody")
        attributes = arguments.pop("MessageAttributes", {})
        group = arguments.pop("MessageGroupId", "")
        delay = arguments.pop("DelaySeconds", 0)
        assert not arguments

        def send() -> dict[str, Any]:
            message = queue.send(body, attributes, group=group, delay=delay)
            return {"MessageId": str(message.number)}

        return self._aws.call(f"{queue.name}.send", send, self._away)

    def send_message_batch(self, **arguments: Any) -> dict[str, Any]:
        queue = self._queues[arguments["QueueUrl"]]
        entries = arguments["Entries"]
        assert 1 <= len(entries) <= BATCH

        def send() -> dict[str, Any]:
            for entry in entries:
                attributes = entry.get("MessageAttributes", {})
                queue.send(entry["MessageBody"], attributes, group=entry.get("MessageGroupId", ""))
            return {"Successful": [{"Id": entry["Id"]} for entry in entries]}

        return self._aws.call(f"{queue.name}.send", send, self._away)

    def receive_message(self, **arguments: Any) -> dict[str, Any]:
        queue = self._queues[arguments["QueueUrl"]]

        def receive() -> list[Message]:
            return queue.receive(arguments["MaxNumberOfMessages"], arguments["VisibilityTimeout"])

        messages = self._aws.call(f"{queue.name}.receive", receive, self._away)
        if not messages:
            assert isinstance(self._aws, Aws), "who waits needs a simulation"
            self._aws.simulation.sleep(arguments["WaitTimeSeconds"])
            messages = self._aws.call(f"{queue.name}.receive", receive, self._away)
        return {"Messages": [message.answer() for message in messages]}

    def delete_message_batch(self, **arguments: Any) -> dict[str, Any]:
        queue = self._queues[arguments["QueueUrl"]]

        def delete() -> dict[str, Any]:
            for entry in arguments["Entries"]:
                queue.delete(entry["ReceiptHandle"])
            return {"Successful": [{"Id": entry["Id"]} for entry in arguments["Entries"]]}

        return self._aws.call(f"{queue.name}.delete", delete, self._away)

    def get_queue_attributes(self, **arguments: Any) -> dict[str, Any]:
        queue = self._queues[arguments["QueueUrl"]]

        def count() -> dict[str, Any]:
            visible, in_flight = queue.figures()
            counts = {
                "ApproximateNumberOfMessages": str(visible),
                "ApproximateNumberOfMessagesNotVisible": str(in_flight),
            }
            return {"Attributes": counts}

        return self._aws.call(f"{queue.name}.count", count, self._away)

    def change_message_visibility_batch(self, **arguments: Any) -> dict[str, Any]:
        queue = self._queues[arguments.pop("QueueUrl")]
        entries = arguments.pop("Entries")
        assert not arguments
        assert 1 <= len(entries) <= BATCH
        assert len({entry["Id"] for entry in entries}) == len(entries), "SQS refuses an id twice"

        def change() -> dict[str, Any]:
            codes = {
                entry["Id"]: queue.change_visibility(
                    entry["ReceiptHandle"], entry["VisibilityTimeout"]
                )
                for entry in entries
            }
            return {
                "Successful": [{"Id": name} for name, code in codes.items() if code is None],
                "Failed": [
                    {"Id": name, "Code": code} for name, code in codes.items() if code is not None
                ],
            }

        return self._aws.call(f"{queue.name}.change_visibility", change, self._away)


type Handler = Callable[[dict[str, Any], float], dict[str, Any]]


@dataclass
class Sandbox:
    """A process with the function built in it."""

    process: Process
    handle: Handler


@dataclass
class SourceMapping[Batch](ABC):
    """An event source mapping: it hands batches to the sandboxes of a function.

    Attributes:
        build: makes a new sandbox.
        automatic: it polls by itself.
        killed_per_batch: how often a sandbox is killed in the middle of a batch, as a probability.
        errors: what functions raised.
    """

    simulation: Simulation
    build: Callable[[], Sandbox]
    _: KW_ONLY
    timeout: float = 30.0
    automatic: bool = True
    killed_per_batch: float = 0.0
    errors: list[BaseException] = field(default_factory=list)
    killed: int = 0
    timeouts: int = 0
    batches: int = 0
    busy: dict[Process, Batch] = field(default_factory=dict)
    warm: list[Sandbox] = field(default_factory=list)

    @abstractmethod
    def let_go(self) -> None:
        """Poll without being asked from here on."""

    @abstractmethod
    def startable(self) -> bool:
        """Return whether `poll` may find something."""

    @abstractmethod
    def poll(self, most: int) -> bool:
        """Start a batch of at most so many records; return whether there was one."""

    @abstractmethod
    def _answered(self, batch: Batch, answer: dict[str, Any]) -> None:
        """Do what the function's answer asks for."""

    @abstractmethod
    def _over(self, batch: Batch, /) -> None:
        """Continue after a batch, however it ended."""

    def _invoke(self, batch: Batch, records: list[dict[str, Any]]) -> None:
        """Hand a batch to a sandbox; see to its end, whatever that is."""
        simulation = self.simulation
        sandbox = self.warm.pop() if self.warm else self.build()
        process = sandbox.process
        self.batches += 1
        self.busy[process] = batch
        done_at = simulation.now + self.timeout

        def invocation() -> None:
            self._answered(batch, sandbox.handle({"Records": records}, done_at))

        def time_out() -> None:
            if self.busy.get(process) is batch:
                self.timeouts += 1
                self.kill(process)

        def crash() -> None:
            if self.busy.get(process) is batch:
                self.kill(process)

        def returned(future: Future[Any]) -> None:
            if self.busy.pop(process, None) is None:
                return
            error = future.exception()
            if error is not None:
                self.errors.append(error)
            self.warm.append(sandbox)  # Lambda keeps one whose handler raised
            self._over(batch)

        simulation.spawn(process, invocation).add_done_callback(returned)
        simulation.at(done_at, time_out)
        if simulation.random.random() < self.killed_per_batch:
            # Most batches are over within a second.
            simulation.at(simulation.now + simulation.random.expovariate(2.0), crash)

    def kill(self, process: Process) -> None:
        """End a sandbox in the middle of its batch."""
        self.killed += 1
        batch = self.busy.pop(process, None)
        self.simulation.kill(process)
        if batch is not None:
            self._over(batch)


@dataclass
class EventSourceMapping(SourceMapping[list[Message]]):
    """Lambda's mapping: as many pollers as its maximum concurrency says, each with one batch."""

    queue: Queue
    _: KW_ONLY
    concurrency: int = 5

    def __post_init__(self) -> None:
        self.queue.on_visible = self._poll_soon
        self._polling = 0
        self._poll_soon()

    def let_go(self) -> None:
        self.automatic = True
        for _ in range(self.concurrency):
            self._poll_soon()

    def startable(self) -> bool:
        return self.queue.visible()

    def _poll_soon(self) -> None:
        """Start one more poller, if one is free: each works on its own."""
        if self.automatic and len(self.busy) + self._polling < self.concurrency:
            self._polling += 1
            self.simulation.at(
                self.simulation.now + self.simulation.random.uniform(0.005, 0.03), self._poll
            )

    def _poll(self) -> None:
        self._polling -= 1
        if not self.poll() and self.queue.visible():
            self.simulation.at(self.simulation.now + OVER_LIMIT_SECONDS, self._poll_soon)

    def poll(self, most: int = BATCH) -> bool:
        messages = self.queue.receive(most)
        if messages:
            self._invoke(messages, [message.record() for message in messages])
        return bool(messages)

    def _answered(self, batch: list[Message], answer: dict[str, Any]) -> None:
        failed = {entry["itemIdentifier"] for entry in answer["batchItemFailures"]}
        assert failed <= {str(message.number) for message in batch}
        for message in batch:
            if str(message.number) not in failed:
                self.queue.delete(message.handle)

    def _over(self, _: list[Message]) -> None:
        self._poll_soon()
