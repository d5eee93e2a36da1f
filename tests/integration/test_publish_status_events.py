"""The function publish_status_events whole: the stream in, status events out, over moto."""

import json
import logging
import runpy
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore import exceptions as botocore_exceptions
from botocore.exceptions import BotoCoreError, ClientError

from notifier import telemetry
from notifier.aws.events import EventBridgeStatusEvents, detail
from notifier.lifecycle import Status
from notifier.records import Publication, StatusEvent
from notifier.request import ledger_key
from tests.fakes import stream_record
from tests.faults.dynamodb import ERRORS
from tests.integration.conftest import Stack, a_request
from tests.integration.receipts_stack import ReceiptsStack, SimulatedClock, a_receipt

type Json = dict[str, Any]

ROOT = Path(__file__).parents[2]


def writes(count: int, *, first: int = 0) -> list[Json]:
    """Records of the stream: of so many notifications that each was sent."""
    return [
        stream_record(
            ledger_key("default", f"order-{number}"),
            number,
            {},
            {
                "id": f"order-{number}",
                "bot": "default",
                "status": "sent",
                "generation": 1,
                "template": "order_shipped",
                "metadata": {},
                "correlation_id": None,
                "timeline": [["sent", 1, 1_800_000_000_123, None]],
            },
        )
        for number in range(first, first + count)
    ]


def heard(receipts: ReceiptsStack) -> list[str]:
    return [event["detail"]["id"] for event in receipts.told()]


def calls(receipts: ReceiptsStack) -> list[int]:
    """How many events each call had."""
    return [len(call["Entries"]) for name, call in receipts.aws.calls if name == "PutEvents"]


@pytest.fixture
def unpublished(receipts: ReceiptsStack) -> Callable[[], list[Json]]:
    """Take all keys off the queue of what cannot be published."""
    return lambda: [json.loads(body) for body in receipts._take(receipts.unpublished_url)]


@pytest.fixture
def bus(
    receipts: ReceiptsStack,
    clock: SimulatedClock,  # noqa: ARG001 - nobody waits for a bus that fails
    monkeypatch: pytest.MonkeyPatch,
) -> "Bus":
    return Bus(receipts, monkeypatch)


class Bus:
    """EventBridge, which may fail before it does what it should.

    Attributes:
        codes: by the id of an event, what EventBridge answers for its entry.
        raises: given the ids of a call, raises what the call shall.
    """

    def __init__(self, receipts: ReceiptsStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.codes: dict[str, str] = {}
        self.raises: Callable[[list[str]], None] = lambda _: None
        events: Any = receipts.publisher._publisher.events
        self._put = events._eventbridge.put_events
        monkeypatch.setattr(events._eventbridge, "put_events", self._put_events)

    def _put_events(self, Entries: list[Json]) -> Json:  # noqa: N803 - as boto3 names it
        ids = [json.loads(entry["Detail"])["id"] for entry in Entries]
        self.raises(ids)
        good = [entry for entry, one in zip(Entries, ids, strict=True) if one not in self.codes]
        if good:
            self._put(Entries=good)
        answers = [{"ErrorCode": self.codes[one]} if one in self.codes else {} for one in ids]
        return {"FailedEntryCount": len(Entries) - len(good), "Entries": answers}


def test_the_stream_of_a_story_becomes_its_events(receipts: ReceiptsStack, stack: Stack) -> None:
    request = a_request(id="order-1", metadata={"order": "1"})
    assert stack.deliver(request) == []
    key = ledger_key("default", "order-1")
    receipts.record(a_receipt(key, "received"))

    first, second = (event["detail"] for event in receipts.told())

    (item,) = stack.aws.ledger()
    assert [first["status"], second["status"]] == ["sent", "received"]
    times = [int(entry["L"][2]["N"]) / 1000 for entry in item["timeline"]]
    told = [datetime.fromisoformat(event["time"]).timestamp() for event in (first, second)]
    assert told == times


def test_many_are_published_ten_at_a_time(receipts: ReceiptsStack) -> None:
    assert receipts.publish(writes(23)) == []

    assert calls(receipts) == [10, 10, 3]
    assert heard(receipts) == [f"order-{number}" for number in range(23)]


def test_an_event_is_the_same_however_often_it_is_published(receipts: ReceiptsStack) -> None:
    for _ in range(2):
        assert receipts.publish(writes(1)) == []

    first, second = (event["detail"] for event in receipts.told())
    assert first == second
    assert first["time"] == "2027-01-15T08:00:00.123+00:00"


@pytest.mark.parametrize("code", ["ThrottlingException", "InternalFailure"])
def test_the_batch_comes_again_from_the_first_that_the_bus_does_not_take(
    receipts: ReceiptsStack, bus: Bus, code: str
) -> None:
    bus.codes = {"order-5": code, "order-17": code}

    assert receipts.publish(writes(23)) == ["5"]

    bus.codes = {}
    assert receipts.publish(writes(18, first=5)) == []
    told = heard(receipts)
    assert set(told) == {f"order-{number}" for number in range(23)}


def test_what_is_refused_goes_by_its_key_to_the_queue(
    receipts: ReceiptsStack,
    bus: Bus,
    unpublished: Callable[[], list[Json]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus.codes = {"order-1": "MalformedDetail"}

    assert receipts.publish(writes(3)) == []

    assert heard(receipts) == ["order-0", "order-2"]
    (kept,) = unpublished()
    assert kept == {
        "key": ledger_key("default", "order-1"),
        "sequence_number": "1",
        "problem": "the event bus refuses it",
    }
    assert "MalformedDetail" in {vars(record).get("code") for record in caplog.records}


def test_what_cannot_be_understood_goes_by_its_key_to_the_queue(
    receipts: ReceiptsStack, unpublished: Callable[[], list[Json]]
) -> None:
    records = writes(3)
    records[1]["dynamodb"]["NewImage"]["timeline"] = {"L": [{"S": "what is that?"}]}

    assert receipts.publish(records) == []

    assert heard(receipts) == ["order-0", "order-2"]
    (kept,) = unpublished()
    assert kept["key"] == ledger_key("default", "order-1")
    assert kept["problem"] == "ValueError"


def test_without_the_queue_the_batch_waits(receipts: ReceiptsStack) -> None:
    records = writes(3)
    records[1]["dynamodb"]["NewImage"]["timeline"] = {"S": "what is that?"}
    receipts.aws.sqs.delete_queue(QueueUrl=receipts.unpublished_url)

    assert receipts.publish(records) == ["0"]

    assert heard(receipts) == []


def test_it_ends_before_its_sandbox_does(
    receipts: ReceiptsStack, bus: Bus, clock: SimulatedClock
) -> None:
    bus.codes = {"order-0": "ThrottlingException"}
    began = clock.now()

    assert receipts.publish(writes(1), seconds=21) == ["0"]

    assert clock.now() - began < 1.5


# --- What EventBridge answers ---------------------------------------------------------------------


EVENT = StatusEvent("key", "order-1", "default", Status.SENT, 1, 1.0, None, {})


class Answering:
    """EventBridge, with one answer or failure for each call."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.calls: list[int] = []

    def put_events(self, Entries: list[Json]) -> Json:  # noqa: N803 - as boto3 names it
        self.calls.append(len(Entries))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"Entries": answer}


def outcomes(eventbridge: Answering, count: int = 1) -> list[Publication]:
    bus: Any = eventbridge
    return EventBridgeStatusEvents(bus, "default", "stack").put([EVENT] * count)


# AWS's API reference of PutEventsResultEntry names these; `now` is what may pass without a change
# of the event: what it calls retryable, and what is about the role or the bus.
ENTRY_CODES = {
    "InternalFailure": Publication.NOT_NOW,
    "ThrottlingException": Publication.NOT_NOW,
    "AccessDeniedException": Publication.NOT_NOW,
    "InvalidAccountIdException": Publication.NOT_NOW,
    "NotAuthorizedForSourceException": Publication.NOT_NOW,
    "NotAuthorizedForDetailTypeException": Publication.NOT_NOW,
    "InvalidArgument": Publication.REFUSED,
    "MalformedDetail": Publication.REFUSED,
    "RedactionFailure": Publication.REFUSED,
    # The action's own error, and a code that nobody knows.
    "InternalException": Publication.NOT_NOW,
    "Unlucky": Publication.REFUSED,
}


@pytest.mark.parametrize(("code", "outcome"), ENTRY_CODES.items())
def test_each_code_of_an_entry_means_one_thing(code: str, outcome: Publication) -> None:
    answers = [{"EventId": "1"}, {"ErrorCode": code, "ErrorMessage": "no"}, {"EventId": "3"}]

    assert outcomes(Answering(answers), 3) == [Publication.TAKEN, outcome, Publication.TAKEN]


# Of the errors that all of AWS's actions have in common, those about what is in the call. The last
# has no body, so that botocore gives its HTTP status for a code.
WRONG_CALLS = ["ValidationException", "ValidationError", "RequestEntityTooLargeException", "413"]


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": ""}}, "PutEvents")


@pytest.mark.parametrize("code", WRONG_CALLS)
def test_a_call_that_is_refused_as_a_whole_is_tried_one_by_one(code: str) -> None:
    taken = [{"EventId": "1"}]
    bus = Answering(refused(code), taken, refused(code), taken)

    assert outcomes(bus, 3) == [Publication.TAKEN, Publication.REFUSED, Publication.TAKEN]
    assert bus.calls == [3, 1, 1, 1]


def test_what_is_tried_one_by_one_may_meet_an_outage() -> None:
    bus = Answering(refused("ValidationException"), refused("ThrottlingException"), [{}])

    assert outcomes(bus, 2) == [Publication.NOT_NOW, Publication.TAKEN]


@pytest.mark.parametrize(
    "code",
    [
        "InternalException",
        "InternalFailure",
        "ThrottlingException",
        "ServiceUnavailable",
        "RequestTimeoutException",
        "RequestAbortedException",
        "AccessDeniedException",
        "ExpiredTokenException",
        "UnrecognizedClientException",
        "NotAuthorized",
        "OptInRequired",
        "503",
    ],
)
def test_every_other_answer_to_a_call_means_that_the_bus_takes_nothing_now(code: str) -> None:
    bus = Answering(refused(code))

    assert outcomes(bus, 3) == [Publication.NOT_NOW] * 3
    assert bus.calls == [3]


def of_the_network() -> dict[str, Exception]:
    """Every error that botocore has for a connection, or for what is needed to sign a call."""
    bases = (
        botocore_exceptions.HTTPClientError,
        botocore_exceptions.ConnectionError,
        botocore_exceptions.NoCredentialsError,
        botocore_exceptions.PartialCredentialsError,
        botocore_exceptions.CredentialRetrievalError,
        botocore_exceptions.EndpointConnectionError,
        botocore_exceptions.IncompleteReadError,
    )
    facts: Any = {
        "endpoint_url": "https://aws.invalid",
        "proxy_url": "https://aws.invalid",
        "error": OSError("reset"),
        "actual_bytes": 1,
        "expected_bytes": 2,
        "provider": "env",
        "cred_var": "key",
        "error_msg": "no",
    }
    return {
        name: kind(**facts)
        for name, kind in vars(botocore_exceptions).items()
        if isinstance(kind, type) and issubclass(kind, bases) and issubclass(kind, BotoCoreError)
    }


def test_no_error_of_the_network_is_left_out() -> None:
    network = {name for name, (make, _) in ERRORS.items() if isinstance(make(""), BotoCoreError)}

    assert network <= of_the_network().keys()
    assert len(of_the_network()) >= 12


@pytest.mark.parametrize("error", of_the_network().values(), ids=of_the_network())
def test_a_bus_that_cannot_be_reached_stops_the_batch_and_loses_nothing(
    receipts: ReceiptsStack, bus: Bus, error: Exception
) -> None:

    def unreachable(_: list[str]) -> None:
        raise error

    bus.raises = unreachable
    assert receipts.publish(writes(12)) == ["0"]

    bus.raises = lambda _: None
    assert receipts.publish(writes(12)) == []
    assert heard(receipts) == [f"order-{number}" for number in range(12)]
    assert receipts._take(receipts.unpublished_url) == []


def test_a_call_that_fails_once_is_repeated_in_order(receipts: ReceiptsStack, bus: Bus) -> None:
    failures: list[Exception] = [refused("InternalException")]

    def once(ids: list[str]) -> None:
        if "order-11" in ids and failures:
            raise failures.pop()

    bus.raises = once

    assert receipts.publish(writes(23)) == []

    assert heard(receipts) == [f"order-{number}" for number in range(23)]


# --- As Lambda calls it ---------------------------------------------------------------------------


def test_the_function_as_lambda_calls_it(
    receipts: ReceiptsStack,
    stack: Stack,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EVENT_BUS", "default")
    monkeypatch.setenv("UNPUBLISHED_QUEUE_URL", receipts.unpublished_url)
    monkeypatch.setenv("PUBLISH_ALL_RECEIPTS", "false")
    stack.deliver(a_request(id="order-1"))
    app = runpy.run_path(str(ROOT / "functions" / "publish_status_events" / "app.py"))
    context = SimpleNamespace(
        function_name="publish",
        memory_limit_in_mb=512,
        invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:publish",
        aws_request_id="request",
        get_remaining_time_in_millis=lambda: 60_000,
    )
    telemetry.metrics.clear_metrics()

    answer = app["handler"]({"Records": receipts.stream.read()}, context)

    assert answer == {"batchItemFailures": []}
    (event,) = receipts.told()
    assert (event["detail"]["id"], event["detail"]["status"]) == ("order-1", "sent")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    (seconds,) = json.loads(line)["changed_to_published"]
    assert seconds >= 0


def test_no_log_holds_a_number_or_a_parameter(
    receipts: ReceiptsStack, stack: Stack, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    stack.deliver(a_request(id="order-1"), a_request(id="order-2"))
    caplog.set_level(logging.DEBUG, logger="notifier")
    bus.codes = {"order-1": "MalformedDetail"}
    records = receipts.stream.read()
    broken = json.loads(json.dumps(records[-1], default=str))
    broken["dynamodb"]["NewImage"]["timeline"] = {"L": [{"S": "what is that?"}]}

    assert receipts.publish([*records, broken]) == []

    assert caplog.records
    for record in caplog.records:
        for private in ("5531", "8888", "Maria"):
            assert private not in f"{record.getMessage()} {vars(record)}"


def test_an_event_names_the_stack(receipts: ReceiptsStack) -> None:
    receipts.publish(writes(1))

    (event,) = receipts.told()
    assert event["detail"]["stack"] == detail(EVENT, "blip-notifier")["stack"]
