"""The simulated queues and moto's."""

import json
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from botocore.exceptions import ClientError
from moto.sqs import models as moto_queues

from notifier.aws.queues import RequestsQueue, queued_request
from tests.faults.simulated_aws.tables import keys
from tests.support.builders import an_entry
from tests.support.clock import Clock
from tests.support.simulated_aws.dynamodb import DirectAws
from tests.support.simulated_aws.simulation import Simulation
from tests.support.simulated_aws.sqs import MAX_VISIBILITY_SECONDS, RETENTION_SECONDS, Queue, SimSqs

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_sqs import SQSClient

VISIBILITY = 180
MAX_RECEIVES = 3


class QueueUnderTest(Protocol):
    """A queue with the clock that it goes by."""

    client: Any
    url: str

    def advance(self, seconds: float) -> None: ...
    def now(self) -> float: ...
    def receive(self) -> list[dict[str, Any]]:
        """Receive up to ten messages. Return them as Lambda hands them to a function."""
        ...

    def delete(self, handle: str) -> None: ...


class MotoQueue:
    """moto's, on a clock of the test."""

    def __init__(self, sqs: "SQSClient", monkeypatch: pytest.MonkeyPatch) -> None:
        self._clock = Clock()
        monkeypatch.setattr(moto_queues, "unix_time", self._clock.now)
        monkeypatch.setattr(moto_queues, "unix_time_millis", lambda: 1000 * self._clock.now())
        self.client = sqs
        name = next(keys)
        exhausted = sqs.create_queue(QueueName=f"{name}-exhausted")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=exhausted, AttributeNames=["QueueArn"])
        target = arn["Attributes"]["QueueArn"]
        policy = {"deadLetterTargetArn": target, "maxReceiveCount": MAX_RECEIVES}
        self.url = sqs.create_queue(
            QueueName=name,
            Attributes={
                "VisibilityTimeout": str(VISIBILITY),
                "MessageRetentionPeriod": str(RETENTION_SECONDS),
                "RedrivePolicy": json.dumps(policy),
            },
        )["QueueUrl"]

    def now(self) -> float:
        return self._clock.now()

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def receive(self) -> list[dict[str, Any]]:
        answer = self.client.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=10,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return [
            {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": message["Attributes"],
                "messageAttributes": {
                    name: {"stringValue": value["StringValue"], "dataType": value["DataType"]}
                    for name, value in message.get("MessageAttributes", {}).items()
                },
            }
            for message in answer.get("Messages", [])
        ]

    def delete(self, handle: str) -> None:
        self.client.delete_message(QueueUrl=self.url, ReceiptHandle=handle)


class SimulatedQueue:
    """Ours, without faults."""

    url = "requests"

    def __init__(self) -> None:
        self._simulation = Simulation(0)
        self._queue = Queue(
            self._simulation, "requests", visibility_timeout=VISIBILITY, max_receives=MAX_RECEIVES
        )
        self.client = SimSqs(DirectAws(self.now), {self.url: self._queue})

    def now(self) -> float:
        return self._simulation.now

    def advance(self, seconds: float) -> None:
        self._simulation.run(seconds)

    def receive(self) -> list[dict[str, Any]]:
        return [message.record() for message in self._queue.receive()]

    def delete(self, handle: str) -> None:
        self._queue.delete(handle)


@pytest.fixture(params=["moto", "simulated"])
def queue(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> QueueUnderTest:
    if request.param == "simulated":
        return SimulatedQueue()
    session: boto3.Session = request.getfixturevalue("session")
    return MotoQueue(session.client("sqs"), monkeypatch)


def test_message_is_received_as_it_was_sent(queue: QueueUnderTest) -> None:
    at = queue.now()
    requests = RequestsQueue(queue.client, queue.url)
    since = 1_800_000_000.0
    entry = an_entry(body="a body", bot="sales", generation=2, redrives=1, waits_since=since)
    assert requests.wake([entry]) == [entry]
    queue.advance(7)

    (record,) = queue.receive()

    queued = queued_request(record)
    assert queued.body == "a body"
    assert (queued.generation, queued.redrives, queued.receive_count) == (2, 1, 1)
    assert queued.waited_since == since
    assert queued.published_at == at
    assert record["messageAttributes"]["generation"] == {"stringValue": "2", "dataType": "Number"}


def send(queue: QueueUnderTest, *bodies: str, **arguments: Any) -> list[str]:
    """Put messages on the queue; return their ids."""
    return [
        queue.client.send_message(QueueUrl=queue.url, MessageBody=body, **arguments)["MessageId"]
        for body in bodies
    ]


def test_at_most_ten_messages_are_received_at_once(queue: QueueUnderTest) -> None:
    ids = send(queue, *map(str, range(12)))

    first, rest = queue.receive(), queue.receive()

    assert (len(first), len(rest)) == (10, 2)
    assert sorted(record["messageId"] for record in first + rest) == sorted(ids)
    assert queue.receive() == []


def test_received_message_returns_after_its_visibility_timeout(queue: QueueUnderTest) -> None:
    send(queue, "one")
    (first,) = queue.receive()
    queue.advance(VISIBILITY - 1)
    assert queue.receive() == []
    queue.advance(2)

    (again,) = queue.receive()

    assert again["messageId"] == first["messageId"]
    assert again["receiptHandle"] != first["receiptHandle"]
    assert [queued_request(record).receive_count for record in (first, again)] == [1, 2]


def bodies(queue: QueueUnderTest) -> list[str]:
    return sorted(record["body"] for record in queue.receive())


def test_delayed_message_is_received_later(queue: QueueUnderTest) -> None:
    send(queue, "later", DelaySeconds=60)
    send(queue, "now")
    assert bodies(queue) == ["now"]
    queue.advance(59)
    assert bodies(queue) == []
    queue.advance(2)
    assert bodies(queue) == ["later"]


def change_visibility(
    queue: QueueUnderTest, *changes: tuple[dict[str, Any], float]
) -> tuple[list[str], int]:
    """Change visibilities; return the ids of those that were changed, and how many were not."""
    answer = queue.client.change_message_visibility_batch(
        QueueUrl=queue.url,
        Entries=[
            {"Id": str(n), "ReceiptHandle": record["receiptHandle"], "VisibilityTimeout": seconds}
            for n, (record, seconds) in enumerate(changes)
        ],
    )
    return [entry["Id"] for entry in answer.get("Successful", [])], len(answer.get("Failed", []))


def test_message_returns_when_its_changed_visibility_ends(queue: QueueUnderTest) -> None:
    send(queue, "longer", "shorter", "at once")
    received = {record["body"]: record for record in queue.receive()}

    changed = change_visibility(
        queue, (received["longer"], 1000), (received["shorter"], 10), (received["at once"], 0)
    )

    assert changed == (["0", "1", "2"], 0)
    queue.advance(1)
    assert bodies(queue) == ["at once"]
    queue.advance(10)
    assert bodies(queue) == ["shorter"]
    queue.advance(VISIBILITY + 1)
    assert bodies(queue) == ["at once", "shorter"]
    queue.advance(1000 - VISIBILITY - 12 + 1)
    assert "longer" in bodies(queue)


def test_second_change_of_visibility_counts_from_its_own_time(queue: QueueUnderTest) -> None:
    send(queue, "one")
    (record,) = queue.receive()
    change_visibility(queue, (record, 100))
    queue.advance(90)
    change_visibility(queue, (record, 100))
    queue.advance(90)
    assert bodies(queue) == []
    queue.advance(11)
    assert bodies(queue) == ["one"]


def test_deleted_message_cannot_change_its_visibility(queue: QueueUnderTest) -> None:
    send(queue, "gone", "there")
    received = {record["body"]: record for record in queue.receive()}
    queue.delete(received["gone"]["receiptHandle"])

    assert change_visibility(queue, (received["gone"], 10), (received["there"], 10)) == (["1"], 1)


def test_visibility_ends_at_most_twelve_hours_after_the_receipt(
    queue: QueueUnderTest,
) -> None:
    send(queue, "one")
    (record,) = queue.receive()
    queue.advance(10)
    try:
        changed, refused = change_visibility(queue, (record, MAX_VISIBILITY_SECONDS - 9))
    except ClientError:  # moto refuses the whole batch
        changed, refused = [], 1

    assert (changed, refused) == ([], 1)
    assert change_visibility(queue, (record, MAX_VISIBILITY_SECONDS - 10)) == (["0"], 0)


def test_deleted_message_never_returns(queue: QueueUnderTest) -> None:
    send(queue, "one", "other")
    received = {record["body"]: record for record in queue.receive()}
    queue.delete(received["one"]["receiptHandle"])
    queue.delete(received["one"]["receiptHandle"])
    queue.advance(VISIBILITY + 1)

    assert bodies(queue) == ["other"]


def test_earlier_handle_deletes_as_well(queue: QueueUnderTest) -> None:
    send(queue, "one")
    (first,) = queue.receive()
    queue.advance(VISIBILITY + 1)
    queue.receive()
    queue.delete(first["receiptHandle"])
    queue.advance(VISIBILITY + 1)

    assert queue.receive() == []


def test_message_received_too_often_leaves_the_queue(queue: QueueUnderTest) -> None:
    send(queue, "one")
    counts = []
    for _ in range(MAX_RECEIVES):
        counts += [queued_request(record).receive_count for record in queue.receive()]
        queue.advance(VISIBILITY + 1)

    assert counts == [1, 2, 3]
    assert queue.receive() == []


def test_message_older_than_the_retention_leaves_the_queue(queue: QueueUnderTest) -> None:
    send(queue, "old")
    queue.advance(RETENTION_SECONDS - 200)
    assert bodies(queue) == ["old"]
    queue.advance(201)

    assert queue.receive() == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([], id="none"),
        pytest.param([("1", 0)] * 2, id="an id twice"),
        pytest.param([(str(n), 0) for n in range(11)], id="more than ten"),
    ],
)
def test_invalid_batch_is_refused(changes: list[tuple[str, int]]) -> None:
    """By its documentation: moto refuses none of these."""
    queue = SimulatedQueue()
    send(queue, "one")
    (record,) = queue.receive()
    entries = [
        {"Id": name, "ReceiptHandle": record["receiptHandle"], "VisibilityTimeout": seconds}
        for name, seconds in changes
    ]

    with pytest.raises(AssertionError):
        queue.client.change_message_visibility_batch(QueueUrl=queue.url, Entries=entries)

    assert queue.receive() == []


@pytest.mark.parametrize(("body", "delay"), [("too late", 901), ("", 0)])
def test_invalid_message_is_refused(body: str, delay: int) -> None:
    """By its documentation, too."""
    queue = SimulatedQueue()

    with pytest.raises(AssertionError):
        send(queue, body, DelaySeconds=delay)

    assert queue.receive() == []
