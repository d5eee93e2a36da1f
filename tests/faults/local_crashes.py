"""Real sandboxes in the local stack, killed before and after every call out.

Each story runs once without a kill, in a new sandbox, for the list of its calls. Then it runs
again for every place in that list, with SIGKILL there; SQS shows the request again, and
another sandbox finds what the dead one has left.
"""

import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from notifier.domain.notification import ledger_key
from tests.faults.deployed import (
    depth,
    is_quiet,
    know,
    ledger_items,
    receipts_are_quiet,
    show_again_after,
)
from tests.faults.sandboxes import Killer, Sandbox, Side, sandboxes
from tests.local.blip import Delays
from tests.local.dead_letters import DeadLetters, Letter
from tests.local.events import Heard
from tests.local.machine import wait_until
from tests.local.stack import LocalStack
from tests.support.builders import a_request

type Function = Literal[
    "SendNotificationFunction",
    "ReceiveReceiptFunction",
    "RecordReceiptFunction",
    "PublishStatusEventsFunction",
]

# Longer than a claim's lease, which is 2 s longer than the function's 30.
SEEN_AGAIN_SECONDS = 33
# Nothing of an earlier story is seen again while one is on its way to its kill.
WAVE_SECONDS = 25
# A receipt that comes sooner or later than usual changes a story's calls.
KILL_TRIES = 3
AT_MOST_SECONDS = 600
# Longer than any story takes that is not waiting for such traffic.
OTHER_TRAFFIC_SECONDS = SEEN_AGAIN_SECONDS + 30
PARAMETERS = {
    "MaximumConcurrency": "2",
    "SettleWindowSeconds": "2",
    "BackoffBaseSeconds": "1",
    "BackoffMaxSeconds": "1",
    "BreakerWaitSeconds": "1",
}
SIDES: tuple[Side, Side] = ("before", "after")


@dataclass(frozen=True)
class Story:
    """One story.

    Attributes:
        status: in which it ends.
        reason: of its dead letter.
        sent: how many messages BLiP takes.
        killed: the function whose sandbox is killed.
        known: the recipient's identity is stored.
        fault: what goes wrong at BLiP, as `blip.faults.Fault` has it.
        late: by how many seconds receipts are late, so that the history comes first.
        body: the published body, if it is not a request.
    """

    status: str = "consumed"
    reason: str | None = None
    sent: int = 1
    killed: Function = "SendNotificationFunction"
    known: bool = True
    fault: Mapping[str, Any] = field(default_factory=dict)
    late: float = 0.0
    body: str = ""


STORIES = {
    # Only BLiP's history knows of it when the request is received again.
    "known recipient": Story(late=SEEN_AGAIN_SECONDS + 12),
    "new recipient": Story(known=False),
    "dead letter: no phone number": Story(
        "rejected", "not_a_phone_number", sent=0, known=False,
        fault={"path": "lookups", "failure": 61},
    ),
    "dead letter: refused by BLiP": Story(
        "rejected", "rejected", sent=0, fault={"path": "messages", "status": 400, "code": 24}
    ),
    "dead letter: malformed": Story("", "malformed", sent=0, body='{"id": "%s", '),
    # Of a 503 alone it would be unknown whether BLiP took it: that waits for a later message.
    "refused once, tried again": Story(
        fault={"path": "messages", "status": 503, "code": 81, "each": 1}
    ),
    "no answer, settled by the history": Story(
        fault={"path": "messages", "drop": True, "accept": True, "each": 1}, late=20
    ),
    "receipt at the webhook": Story(killed="ReceiveReceiptFunction"),
    "receipt: read": Story(killed="RecordReceiptFunction"),
    "receipt: undelivered": Story(
        "failed", "undelivered", killed="RecordReceiptFunction",
        fault={"path": "messages", "receipt": 131047},
    ),
    "status events": Story(killed="PublishStatusEventsFunction"),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Where a sandbox is killed, and what came of it.

    Attributes:
        story: its name.
        number: of the call in the story, from 1; 0 for the first one of its name.
        broken: what did not hold.
    """

    story: str
    number: int
    call: str
    side: Side
    sent: int = 0
    broken: tuple[str, ...] = ()

    def __str__(self) -> str:
        number = f"{self.number}. " if self.number else ""
        return f"{self.story}: {self.side} {number}{self.call}"


class Theatre:
    """Runs stories in a local stack, with a kill or without."""

    def __init__(self, stack: LocalStack, killer: Killer, heard: Heard) -> None:
        assert stack.simulator
        self._heard = heard
        self._stack = stack
        self._killer = killer
        self._blip = stack.simulator
        self._letters = DeadLetters(stack.aws.sqs, stack.dead_letters_queue)
        self._letters_of: dict[str, list[Letter]] = defaultdict(list)
        self._told = 0
        # One receipt per message, so that a story's calls are few and always the same.
        delays = Delays(accepted=None, dispatched=None, received=None)
        self._blip.configure(receipts={"delays": delays.model_dump(), "retries": 8})
        show_again_after(stack, SEEN_AGAIN_SECONDS)
        for mapping in stack.aws.functions.list_event_source_mappings()["EventSourceMappings"]:
            stack.aws.functions.update_event_source_mapping(UUID=mapping["UUID"], BatchSize=1)

    def points(self, *names: str) -> list[Point]:
        """Return every place in these stories where a sandbox can be killed."""
        found = []
        for name in names:
            story = STORIES[name]
            self._in_a_new_sandbox(story)
            self._killer.watch(self._stack.resources[story.killed])
            identifier, body = self._tell(story)
            self._wait_until(is_quiet)
            self._wait_for_events([identifier])
            calls = self._killer.calls()
            _, broken = self._judge(story, identifier, body)
            if broken:
                raise RuntimeError(f"{name}, with no process killed: {broken}")
            found += [
                Point(name, number, self._readable(call), side)
                for number, call in enumerate(calls, 1)
                for side in SIDES
            ]
        return found

    def kill_at(self, points: Sequence[Point]) -> Iterator[Point]:
        """Run the stories with a kill at each of these points; yield what came of each."""
        left = deque(points)
        while left:
            began = time.monotonic()
            wave: list[tuple[Point, bool, str, str]] = []
            while left and time.monotonic() - began < WAVE_SECONDS:
                point = left.popleft()
                if wave and STORIES[wave[-1][0].story].killed != STORIES[point.story].killed:
                    self._wait_until(receipts_are_quiet)
                wave.append((point, *self._told_until_killed(point)))
            self._killer.watch("")
            self._wait_until(is_quiet)
            self._wait_for_events([identifier for _, _, identifier, _ in wave])
            for point, killed, identifier, body in wave:
                sent, broken = self._judge(STORIES[point.story], identifier, body)
                if not killed:
                    broken.append("it was not killed")
                yield replace(point, sent=sent, broken=tuple(broken))

    def _told_until_killed(self, point: Point) -> tuple[bool, str, str]:
        for _ in range(KILL_TRIES - 1):
            run = self._run_with_a_kill(point)
            if run[0]:
                return run
        return self._run_with_a_kill(point)

    def _run_with_a_kill(self, point: Point) -> tuple[bool, str, str]:
        story = STORIES[point.story]
        self._in_a_new_sandbox(story)
        call = point.number or self._physical(point.call)
        self._killer.watch(self._stack.resources[story.killed], (call, point.side))
        identifier, body = self._tell(story)
        return self._killer.wait_for_kill(120), identifier, body

    def _in_a_new_sandbox(self, story: Story) -> None:
        """End the sandboxes of the story's function: a new one makes every call, the first too."""

        def left() -> list[Sandbox]:
            function = self._stack.resources[story.killed]
            return [each for each in sandboxes(self._stack.home) if each.function == function]

        for sandbox in left():
            sandbox.kill()
        # ministack would hand the story to one that is dying.
        wait_until(lambda: not left(), "sandboxes to end")

    def _tell(self, story: Story) -> tuple[str, str]:
        """Begin a story. Return its request's id and the published body."""
        self._told += 1
        phone, identifier = f"+5531910{self._told:06}", f"story-{self._told}"
        body = story.body % identifier if story.body else json.dumps(_request(identifier, phone))
        self._let_the_bot_be_well()
        if story.known:
            know(self._stack, phone)
        if story.fault:
            self._blip.add_fault(to=phone, **story.fault)
        self._blip.configure(receipts={"late_seconds": story.late})
        self._stack.aws.sqs.send_message(QueueUrl=self._stack.requests_queue, MessageBody=body)
        return identifier, body

    def _let_the_bot_be_well(self) -> None:
        """Reset the count of failures of other stories: five in a row would open the breaker."""
        self._stack.aws.dynamodb.update_item(
            TableName=self._stack.identities_table,
            Key={"key": {"S": "bot:default"}},
            UpdateExpression="REMOVE failing, broken",
        )

    def _judge(self, story: Story, identifier: str, body: str) -> tuple[int, list[str]]:
        """Return how often a request was sent, and what of it is not as it should be."""
        for letter in self._letters.collect():
            self._letters_of[letter.body].append(letter)
        status = self._status(identifier)
        sent = len(self._blip.inbox(id=ledger_key("default", identifier)))
        reasons = {letter.reason for letter in self._letters_of[body]}
        broken = []
        if sent != story.sent:
            broken.append(f"sent {sent} times, not {story.sent}")
        if status != story.status:
            broken.append(f"it ended {status or 'nowhere'}, not {story.status}")
        if reasons != ({story.reason} if story.reason else set()):
            broken.append(f"its dead letters say {sorted(reasons)}, not {story.reason}")
        # The simulator shows no `received` here.
        wanted = ["sent"] * (status in {"consumed", "failed"}) + [status] * bool(status)
        if self._heard.statuses(identifier) != wanted:
            broken.append(f"published {self._heard.statuses(identifier)}, not {wanted}")
        return sent, broken

    def _wait_until(self, condition: Callable[[LocalStack], bool]) -> None:
        other_traffic_at = time.monotonic() + OTHER_TRAFFIC_SECONDS

        def holds() -> bool:
            nonlocal other_traffic_at
            self._let_the_bot_be_well()
            if condition(self._stack):
                return True
            if time.monotonic() > other_traffic_at:
                # BLiP's history can deny a message only when it shows one that was sent later.
                self._tell(Story())
                other_traffic_at = time.monotonic() + OTHER_TRAFFIC_SECONDS
            return False

        try:
            wait_until(holds, "the stories to end", at_most=AT_MOST_SECONDS, every=0.5)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; left: {self._left()}") from error

    def _left(self) -> dict[str, Any]:
        """Return what keeps the stories from ending."""
        assert self._stack.simulator
        self._heard.collect()
        return {
            "requests": depth(self._stack, self._stack.requests_queue),
            "receipts at BLiP": self._stack.simulator.statistics()["receipts"]["waiting"],
            "receipts": depth(self._stack, self._stack.resources["ReceiptsQueue"]),
            "not published": [
                (item["id"]["S"], item["status"]["S"], self._heard.statuses(item["id"]["S"]))
                for item in ledger_items(self._stack)
                if item.get("id")
                and item["status"]["S"] not in self._heard.statuses(item["id"]["S"])
            ],
        }

    def _wait_for_events(self, identifiers: Sequence[str]) -> None:
        """Wait until the last status of each is published; of what is malformed nothing is."""

        def all_are_published(_: LocalStack) -> bool:
            self._heard.collect()
            return all(
                self._status(identifier) in {"", *self._heard.statuses(identifier)}
                for identifier in identifiers
            )

        self._wait_until(all_are_published)

    def _status(self, identifier: str) -> str:
        key = ledger_key("default", identifier)
        item = self._stack.aws.dynamodb.get_item(
            TableName=self._stack.ledger_table, Key={"key": {"S": key}}, ConsistentRead=True
        ).get("Item", {})
        return item.get("status", {}).get("S", "")

    def _readable(self, call: str) -> str:
        """Name a table or queue as the template does."""
        operation, _, subject = call.partition(" ")
        for logical, physical in self._stack.resources.items():
            if subject and physical.rpartition("/")[2] == subject:
                return f"{operation} {logical}"
        return call

    def _physical(self, call: str) -> str:
        """Name a table or queue as AWS does."""
        operation, _, logical = call.partition(" ")
        resource = self._stack.resources.get(logical, logical)
        return f"{operation} {resource.rpartition('/')[2]}".strip()


def _request(identifier: str, phone: str) -> dict[str, Any]:
    return a_request(id=identifier, to=phone)
