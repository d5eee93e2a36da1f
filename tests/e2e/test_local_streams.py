"""What AWS documents of the mapping from a table's stream to a function, as the local AWS does it.

`local/run_ministack.py` reads streams in ministack's place. The functions here are probes, as those
of `test_local_aws.py`.
"""

import io
import json
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.local.aws import Aws
from tests.local.machine import wait_until

PROBE = """
import collections, json, os, time

TIMES = collections.Counter()

def note(what):
    with open(os.environ["JOURNAL"], "a") as journal:
        journal.write(json.dumps(what) + "\\n")

def handler(event, context):
    records = event["Records"]
    note(records)
    failed = []
    for record in records:
        number = record["dynamodb"]["SequenceNumber"]
        order = json.loads(record["dynamodb"]["NewImage"].get("order", {"S": "{}"})["S"])
        TIMES[number] += 1
        if TIMES[number] > order.get("times", 1):
            continue
        match order.get("do"):
            case "fail":
                failed.append({"itemIdentifier": number})
            case "answer":
                return order["answer"]
            case "raise":
                raise RuntimeError("told to")
            case "hold":
                while not os.path.exists(os.environ["JOURNAL"] + ".open"):
                    time.sleep(0.01)
    return {"batchItemFailures": failed}
"""


@dataclass
class Probe:
    """A table whose stream is mapped to a probe function."""

    aws: Aws
    table: str
    stream: str
    function: str
    journal: Path
    mapping: str = ""

    def connect(self, **more: Any) -> None:
        self.mapping = self.aws.functions.create_event_source_mapping(
            **{
                "EventSourceArn": self.stream,
                "FunctionName": self.function,
                "StartingPosition": "TRIM_HORIZON",
                "BatchSize": 100,
                "MaximumBatchingWindowInSeconds": 0,
                "FunctionResponseTypes": ["ReportBatchItemFailures"],
            }
            | more
        )["UUID"]

    def put(self, key: str, status: str = "sent", **order: Any) -> None:
        self.aws.dynamodb.put_item(
            TableName=self.table,
            Item={
                "key": {"S": key},
                "status": {"S": status},
                "order": {"S": json.dumps(order)},
            },
        )

    def batches(self) -> list[list[Any]]:
        """Return the records of each call."""
        if not self.journal.exists():
            return []
        return [json.loads(line) for line in self.journal.read_text().split("\n")[:-1]]

    def keys(self) -> list[list[str]]:
        """Return the keys that each call was about."""
        return [[key_of(record) for record in batch] for batch in self.batches()]

    def wait_for(self, condition: Callable[[list[list[str]]], Any], what: str) -> list[list[str]]:
        wait_until(lambda: condition(self.keys()), what)
        return self.keys()


def key_of(record: dict[str, Any]) -> str:
    key: str = record["dynamodb"]["Keys"]["key"]["S"]
    return key


def flat(batches: list[list[str]]) -> list[str]:
    return [key for batch in batches for key in batch]


@pytest.fixture
def probe(aws: Aws, tmp_path: Path) -> Iterator[Probe]:
    name = f"probe-{uuid.uuid4()}"
    made = aws.dynamodb.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("app.py", PROBE)
    journal = tmp_path / name
    aws.functions.create_function(
        FunctionName=name,
        Runtime="python3.13",
        Role="arn:aws:iam::000000000000:role/probe",
        Handler="app.handler",
        Code={"ZipFile": code.getvalue()},
        Timeout=60,
        Environment={"Variables": {"JOURNAL": str(journal)}},
    )
    stream = made["TableDescription"]["LatestStreamArn"]
    probe = Probe(aws, name, stream, name, journal)
    yield probe
    Path(f"{journal}.open").touch()
    aws.functions.delete_event_source_mapping(UUID=probe.mapping)
    aws.functions.delete_function(FunctionName=name)
    aws.dynamodb.delete_table(TableName=name)


def test_a_record_holds_what_was_and_what_is(probe: Probe) -> None:
    probe.put("a", status="sending")
    probe.put("a", status="sent")
    probe.connect()
    probe.wait_for(lambda seen: flat(seen) == ["a", "a"], "both writes")
    first, second = (record for batch in probe.batches() for record in batch)
    assert (first["eventName"], second["eventName"]) == ("INSERT", "MODIFY")
    assert second["eventSource"] == "aws:dynamodb"
    assert second["eventSourceARN"] == probe.stream
    assert "OldImage" not in first["dynamodb"]
    assert second["dynamodb"]["OldImage"] == first["dynamodb"]["NewImage"]
    assert second["dynamodb"]["NewImage"]["status"] == {"S": "sent"}
    assert second["dynamodb"]["StreamViewType"] == "NEW_AND_OLD_IMAGES"
    numbers = [record["dynamodb"]["SequenceNumber"] for record in (first, second)]
    assert int(numbers[0]) < int(numbers[1])


def test_a_write_that_changes_nothing_is_no_record(probe: Probe) -> None:
    for key in ("a", "a", "b"):
        probe.put(key)
    probe.connect()
    assert flat(probe.wait_for(lambda seen: "b" in flat(seen), "the last write")) == ["a", "b"]


def test_what_the_filter_does_not_let_through_is_never_seen(probe: Probe) -> None:
    for number in range(20):
        probe.put(f"a{number}", status="sent" if number % 4 == 3 else "sending")
    pattern = {"dynamodb": {"NewImage": {"status": {"S": ["sent", "failed"]}}}}
    # The filter comes first: what it drops does not fill a batch.
    probe.connect(
        FilterCriteria={"Filters": [{"Pattern": json.dumps(pattern)}]},
        BatchSize=5,
        MaximumBatchingWindowInSeconds=300,
    )
    assert probe.wait_for(len, "the batch") == [["a3", "a7", "a11", "a15", "a19"]]


def test_a_batch_waits_until_it_is_full_or_its_window_is_over(probe: Probe) -> None:
    probe.connect(BatchSize=3, MaximumBatchingWindowInSeconds=300)
    for number in range(3):
        probe.put(f"full{number}")
    assert probe.wait_for(len, "a full batch") == [["full0", "full1", "full2"]]
    probe.aws.functions.update_event_source_mapping(
        UUID=probe.mapping, MaximumBatchingWindowInSeconds=1
    )
    probe.put("alone")
    assert probe.wait_for(lambda seen: len(seen) == 2, "the end of the window")[1] == ["alone"]


def test_from_the_record_that_an_answer_names_all_come_again(probe: Probe) -> None:
    probe.put("a")
    probe.put("b", do="fail", times=2)
    probe.put("c", do="fail", times=1)
    probe.put("d")
    probe.connect()
    assert probe.wait_for(lambda seen: len(seen) == 3, "two returns") == [
        ["a", "b", "c", "d"],
        ["b", "c", "d"],
        ["b", "c", "d"],
    ]


@pytest.mark.parametrize("identifier", ["", None, "no such number"])
def test_an_answer_that_names_no_record_brings_the_whole_batch_back(
    probe: Probe, identifier: str | None
) -> None:
    answer = {"batchItemFailures": [{"itemIdentifier": identifier}]}
    probe.put("a")
    probe.put("b", do="answer", answer=answer)
    probe.connect()
    assert probe.wait_for(lambda seen: len(seen) == 2, "the return") == [["a", "b"], ["a", "b"]]


@pytest.mark.parametrize("answer", [None, {}, {"batchItemFailures": None}], ids=str)
def test_an_empty_answer_means_that_all_went_well(probe: Probe, answer: Any) -> None:
    probe.put("a", do="answer", answer=answer)
    probe.connect(BatchSize=1)
    probe.put("b")
    assert probe.wait_for(lambda seen: len(seen) >= 2, "the next batch") == [["a"], ["b"]]


def test_after_an_error_the_whole_batch_comes_again(probe: Probe) -> None:
    probe.put("a")
    probe.put("b", do="raise")
    probe.connect()
    assert probe.wait_for(lambda seen: len(seen) == 2, "the return") == [["a", "b"], ["a", "b"]]


def test_all_is_in_order_and_one_batch_at_a_time(probe: Probe) -> None:
    probe.connect(BatchSize=7, MaximumBatchingWindowInSeconds=1)
    probe.put("0", do="fail", times=2)
    for number in range(1, 40):
        probe.put(str(number), do="fail" if number % 11 == 5 else "nothing")
    seen = flat(probe.wait_for(lambda seen: "39" in flat(seen), "the last write"))
    first_seen = list(dict.fromkeys(seen))
    assert first_seen == [str(number) for number in range(40)]
    # Whatever came again came before what stands behind it was seen for the last time.
    last_seen = list(dict.fromkeys(reversed(seen)))
    assert last_seen == [str(number) for number in reversed(range(40))]


def test_a_batch_at_work_keeps_nothing_else_waiting(probe: Probe, aws: Aws) -> None:
    """ministack's own reader would keep its polling of every mapping waiting."""
    probe.put("a", do="hold")
    probe.connect()
    probe.wait_for(len, "the batch")
    other = aws.functions.create_event_source_mapping(
        EventSourceArn=probe.stream, FunctionName=probe.function, StartingPosition="TRIM_HORIZON"
    )["UUID"]
    # A mapping that reads the same stream, in a second sandbox.
    probe.wait_for(lambda seen: len(seen) == 2, "the other mapping's batch")
    aws.functions.delete_event_source_mapping(UUID=other)


def test_the_age_of_what_is_handed_over_is_measured(probe: Probe, aws: Aws) -> None:
    probe.put("a")
    probe.connect()
    probe.wait_for(len, "the batch")
    found = aws.cloudwatch.list_metrics(Namespace="AWS/Lambda", MetricName="IteratorAge")
    dimensions = [metric["Dimensions"] for metric in found["Metrics"]]
    assert [{"Name": "FunctionName", "Value": probe.function}] in dimensions
