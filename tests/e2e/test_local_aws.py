"""What AWS documents of the mapping from a queue to a function, as the local AWS does it.

Our guarantees rest on each of these. The functions here are probes: they write down what they were
given and do what the messages tell them. Where the local AWS differs, `tests/README.md` says so.
"""

import io
import json
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.local.aws import Aws
from tests.local.machine import wait_until

# By then a sandbox has started and answered even on a busy machine: a message that is still at work
# then would come back once too often. A test that waits for a return waits that long.
RETURNS_SECONDS = 6

PROBE = """
import json, os, signal, time

STARTED_AT = time.time()

def note(**what):
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(json.dumps(what) + "\\n")

def handler(event, context):
    call = context.aws_request_id
    records = event["Records"]
    note(event="start", call=call, at=time.time(), pid=os.getpid(), sandbox=STARTED_AT,
         records=records, remaining=context.get_remaining_time_in_millis())
    failed = []
    answer = {"batchItemFailures": failed}
    for record in records:
        order = json.loads(record["body"])
        if int(record["attributes"]["ApproximateReceiveCount"]) > order.get("times", 1):
            continue
        match order.get("do"):
            case "fail":
                failed.append({"itemIdentifier": record["messageId"]})
            case "answer":
                answer = order["answer"]
            case "raise":
                raise RuntimeError("told to")
            case "exit":
                os._exit(1)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(60)
            case "hold":
                while not os.path.exists(os.environ["JOURNAL"] + ".open"):
                    time.sleep(0.01)
            case "visibility":
                import boto3
                boto3.client("sqs").change_message_visibility(
                    QueueUrl=os.environ["QUEUE_URL"],
                    ReceiptHandle=record["receiptHandle"],
                    VisibilityTimeout=order["seconds"],
                )
                failed.append({"itemIdentifier": record["messageId"]})
    note(event="end", call=call, at=time.time())
    return answer
"""


@dataclass
class Delivery:
    """One message in one invocation."""

    message: str
    body: dict[str, Any]
    receive_count: int
    at: float
    record: dict[str, Any]
    invocation: dict[str, Any]


@dataclass
class Probe:
    """A queue mapped to a probe function."""

    aws: Aws
    queue: str
    arn: str
    function: str
    journal: Path
    mapping: str = ""
    batch: int = 10
    concurrency: int = 5

    def connect(self) -> None:
        self.mapping = self.aws.functions.create_event_source_mapping(
            EventSourceArn=self.arn,
            FunctionName=self.function,
            BatchSize=self.batch,
            MaximumBatchingWindowInSeconds=0,
            FunctionResponseTypes=["ReportBatchItemFailures"],
            ScalingConfig={"MaximumConcurrency": self.concurrency},
        )["UUID"]

    def send(self, *orders: dict[str, Any], **more: Any) -> list[str]:
        bodies = map(json.dumps, orders)
        return [
            self.aws.sqs.send_message(QueueUrl=self.queue, MessageBody=body, **more)["MessageId"]
            for body in bodies
        ]

    def notes(self, event: str) -> list[dict[str, Any]]:
        if not self.journal.exists():
            return []
        lines = self.journal.read_text().split("\n")[:-1]
        return [note for note in map(json.loads, lines) if note["event"] == event]

    def deliveries(self) -> list[Delivery]:
        return [
            Delivery(
                record["messageId"],
                json.loads(record["body"]),
                int(record["attributes"]["ApproximateReceiveCount"]),
                note["at"],
                record,
                note,
            )
            for note in self.notes("start")
            for record in note["records"]
        ]

    def depth(self) -> tuple[int, int]:
        answer = self.aws.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["All"])
        attributes = answer["Attributes"]
        return (
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
        )

    def wait_for(self, condition: Callable[[list[Delivery]], Any], what: str) -> list[Delivery]:
        wait_until(lambda: condition(self.deliveries()), what)
        return self.deliveries()

    def wait_until_empty(self) -> list[Delivery]:
        wait_until(lambda: self.depth() == (0, 0), "the queue to be empty")
        return self.deliveries()

    def open_gate(self) -> None:
        Path(f"{self.journal}.open").touch()


type MakeProbe = Callable[..., Probe]


def make_queue(aws: Aws, **attributes: str) -> tuple[str, str]:
    """Make a queue; give its URL and its ARN."""
    given: Any = attributes
    url = aws.sqs.create_queue(QueueName=f"queue-{uuid.uuid4()}", Attributes=given)["QueueUrl"]
    answer = aws.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return url, answer["Attributes"]["QueueArn"]


@pytest.fixture
def make_probe(aws: Aws, tmp_path: Path) -> Iterator[MakeProbe]:
    made: list[Probe] = []

    def make(
        *,
        visibility: int = 300,
        timeout: int = 60,
        batch: int = 10,
        concurrency: int = 5,
        redrive: dict[str, Any] | None = None,
        connect: bool = True,
    ) -> Probe:
        name = f"probe-{uuid.uuid4()}"
        journal = tmp_path / name
        queue, arn = make_queue(
            aws,
            VisibilityTimeout=str(visibility),
            **({"RedrivePolicy": json.dumps(redrive)} if redrive else {}),
        )
        code = io.BytesIO()
        with zipfile.ZipFile(code, "w") as archive:
            archive.writestr("app.py", PROBE)
        aws.functions.create_function(
            FunctionName=name,
            Runtime="python3.13",
            Role="arn:aws:iam::000000000000:role/probe",
            Handler="app.handler",
            Code={"ZipFile": code.getvalue()},
            Timeout=timeout,
            Environment={"Variables": {"JOURNAL": str(journal), "QUEUE_URL": queue}},
        )
        probe = Probe(aws, queue, arn, name, journal, batch=batch, concurrency=concurrency)
        made.append(probe)
        if connect:
            probe.connect()
        return probe

    yield make
    for probe in made:
        probe.open_gate()
        if probe.mapping:
            aws.functions.delete_event_source_mapping(UUID=probe.mapping)
        aws.functions.delete_function(FunctionName=probe.function)
        aws.sqs.delete_queue(QueueUrl=probe.queue)


def test_a_batch_holds_at_most_its_size_and_every_message_comes_once(make_probe: MakeProbe) -> None:
    probe = make_probe(connect=False)
    sent = probe.send(*({"n": n} for n in range(25)))
    probe.connect()
    deliveries = probe.wait_until_empty()
    assert sorted(delivery.message for delivery in deliveries) == sorted(sent)
    sizes = [len(note["records"]) for note in probe.notes("start")]
    assert max(sizes) == 10
    assert {delivery.receive_count for delivery in deliveries} == {1}


def test_without_a_window_a_single_message_is_not_kept_waiting(make_probe: MakeProbe) -> None:
    probe = make_probe()
    probe.send({"n": 0})
    probe.wait_until_empty()  # the first one starts the sandbox
    probe.send({"n": 1})
    # Nothing else is sent: with a window that fills a batch it would wait in vain.
    deliveries = probe.wait_for(lambda seen: len(seen) == 2, "the second message")
    assert len(deliveries[1].invocation["records"]) == 1


def test_a_record_is_what_the_producer_sent(make_probe: MakeProbe) -> None:
    probe = make_probe()
    before = time.time()
    [message] = probe.send(
        {"text": "olá \U0001f44b"},
        MessageGroupId="default",
        MessageAttributes={"generation": {"DataType": "Number", "StringValue": "2"}},
    )
    [delivery] = probe.wait_until_empty()
    record = delivery.record
    assert record["messageId"] == message
    assert json.loads(record["body"]) == {"text": "olá \U0001f44b"}
    assert record["eventSource"] == "aws:sqs"
    assert record["eventSourceARN"] == probe.arn
    assert record["attributes"]["MessageGroupId"] == "default"
    assert before - 1 < int(record["attributes"]["SentTimestamp"]) / 1000 < time.time() + 1
    generation = record["messageAttributes"]["generation"]
    assert (generation["stringValue"], generation["dataType"]) == ("2", "Number")


def test_a_message_at_work_is_seen_by_nobody_else(make_probe: MakeProbe) -> None:
    probe = make_probe()
    [message] = probe.send({"do": "hold"})
    probe.wait_for(len, "the delivery")
    assert probe.depth() == (0, 1)
    assert "Messages" not in probe.aws.sqs.receive_message(QueueUrl=probe.queue)
    probe.open_gate()
    deliveries = probe.wait_until_empty()
    assert [delivery.message for delivery in deliveries] == [message]


def test_of_a_batch_only_the_reported_message_returns_and_is_counted(make_probe: MakeProbe) -> None:
    probe = make_probe(visibility=RETURNS_SECONDS, connect=False)
    good = probe.send({"n": 0}, {"n": 1})
    [bad] = probe.send({"do": "fail", "times": 2})
    good += probe.send({"n": 2})
    probe.connect()
    deliveries = probe.wait_for(lambda seen: len(seen) == 6, "two returns")
    probe.wait_until_empty()
    assert [delivery.receive_count for delivery in deliveries if delivery.message == bad] == [
        1,
        2,
        3,
    ]
    others = [delivery.message for delivery in deliveries if delivery.message != bad]
    assert sorted(others) == sorted(good)


def test_a_reported_message_returns_when_its_visibility_ends(make_probe: MakeProbe) -> None:
    probe = make_probe(visibility=RETURNS_SECONDS)
    probe.send({"do": "fail"})
    first, second = probe.wait_for(lambda seen: len(seen) == 2, "the return")
    received_at = int(second.record["attributes"]["ApproximateFirstReceiveTimestamp"]) / 1000
    assert received_at <= first.at
    assert second.at >= received_at + RETURNS_SECONDS - 0.1
    probe.wait_until_empty()


@pytest.mark.parametrize(
    ("visibility", "seconds"),
    [(300, 1), (RETURNS_SECONDS, RETURNS_SECONDS + 2)],
    ids=["sooner", "later"],
)
def test_a_reported_message_returns_when_the_function_says(
    make_probe: MakeProbe, visibility: int, seconds: int
) -> None:
    probe = make_probe(visibility=visibility)
    probe.send({"do": "visibility", "seconds": seconds})
    first, second = probe.wait_for(lambda seen: len(seen) == 2, "the return")
    # Not before it was said to; and before the queue's own time is over, where that is long.
    assert second.at >= first.at + seconds - 0.1
    if seconds < visibility:
        assert second.at < first.at + visibility
    assert second.receive_count == 2
    probe.wait_until_empty()


@pytest.mark.parametrize("answer", [None, {}, {"batchItemFailures": []}], ids=str)
def test_an_empty_answer_means_that_all_went_well(make_probe: MakeProbe, answer: Any) -> None:
    probe = make_probe()
    probe.send({"do": "answer", "answer": answer, "times": 99})
    [delivery] = probe.wait_until_empty()
    assert delivery.receive_count == 1


@pytest.mark.parametrize("accident", ["raise", "exit", "kill", "hang"])
def test_after_an_accident_the_whole_batch_returns(make_probe: MakeProbe, accident: str) -> None:
    probe = make_probe(timeout=3, visibility=RETURNS_SECONDS, connect=False)
    sent = probe.send({"n": 0}, {"do": accident}, {"n": 1})
    probe.connect()
    deliveries = probe.wait_for(lambda seen: len(seen) >= 6, "the batch to return")
    probe.wait_until_empty()
    assert sorted((delivery.message, delivery.receive_count) for delivery in deliveries) == sorted(
        (message, receive_count) for message in sent for receive_count in (1, 2)
    )


@pytest.mark.parametrize("accident", ["exit", "kill", "hang"])
def test_a_dead_sandbox_is_replaced_and_a_time_out_is_the_functions_own(
    make_probe: MakeProbe, accident: str
) -> None:
    probe = make_probe(timeout=3, visibility=RETURNS_SECONDS)
    probe.send({"do": accident})
    first, second = probe.wait_for(lambda seen: len(seen) == 2, "the return")
    assert first.invocation["pid"] != second.invocation["pid"]
    assert 0 < first.invocation["remaining"] <= 3000
    assert [note["call"] for note in probe.notes("end")] == [second.invocation["call"]]
    probe.wait_until_empty()


def test_a_sandbox_lives_on_from_one_batch_to_the_next(make_probe: MakeProbe) -> None:
    probe = make_probe()
    for n in range(3):
        probe.send({"n": n})
        probe.wait_until_empty()
    assert len({note["sandbox"] for note in probe.notes("start")}) == 1


def test_no_more_batches_at_a_time_than_the_maximum(make_probe: MakeProbe) -> None:
    probe = make_probe(batch=1, concurrency=2)
    probe.send(*({"do": "hold", "n": n} for n in range(8)))
    probe.wait_for(lambda seen: len(seen) == 2, "two batches side by side")
    assert len({note["pid"] for note in probe.notes("start")}) == 2
    # Others would have begun by now: a message that is sent now and taken at once shows it.
    other = make_probe()
    other.send({"n": 0})
    other.wait_until_empty()
    assert len(probe.deliveries()) == 2
    probe.open_gate()
    probe.wait_until_empty()
    edges = sorted(
        (note["at"], step)
        for event, step in (("start", 1), ("end", -1))
        for note in probe.notes(event)
    )
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    assert most == 2


def test_a_message_that_was_received_too_often_goes_to_the_dead_letter_queue_as_it_was(
    aws: Aws, make_probe: MakeProbe
) -> None:
    letters, arn = make_queue(aws)
    probe = make_probe(
        visibility=RETURNS_SECONDS, redrive={"deadLetterTargetArn": arn, "maxReceiveCount": 2}
    )
    probe.send(
        {"do": "fail", "times": 99},
        MessageAttributes={"a": {"DataType": "String", "StringValue": "b"}},
    )

    def received() -> Any:
        answer = aws.sqs.receive_message(QueueUrl=letters, MessageAttributeNames=["All"])
        return answer.get("Messages")

    [letter] = wait_until(received, "the dead letter")
    assert [delivery.receive_count for delivery in probe.deliveries()] == [1, 2]
    assert json.loads(letter["Body"]) == {"do": "fail", "times": 99}
    assert letter["MessageAttributes"] == {"a": {"DataType": "String", "StringValue": "b"}}
    assert probe.depth() == (0, 0)
