"""The function publish_status_events whole: the ledger's stream in, events on a bus out."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import botocore.exceptions
import pytest
from boto3.dynamodb.types import TypeSerializer
from botocore.exceptions import BotoCoreError

from notifier.domain.notification import ledger_key
from notifier.use_cases.publish_status_events import CALL_EVENTS
from tests.integration.receipts_stack import Json, ReceiptsStack
from tests.support.lambda_runtime import a_context, load_app, printed_metrics

AT = 1_700_000_000_123
PRIVATE = ("+5531999998888", "99998888", "Maria")

pytestmark = pytest.mark.usefixtures("clock")  # no wait for the bus takes any time


def an_image(name: str, *timeline: list[Any], **changes: Any) -> Json:
    """Return an item of the ledger as a record of the stream holds it."""
    status, generation, at, _ = timeline[-1]
    item = {
        "key": ledger_key("default", name),
        "id": name,
        "bot": "default",
        "status": status,
        "generation": generation,
        "updated_at": at,
        "timeline": list(timeline),
        "template": "order_shipped",
        "recipient": "…8888",
        "request": json.dumps({"to": "+5531999998888", "body": ["Maria"]}),
        "metadata": {},
        "correlation_id": None,
    }
    serialize = TypeSerializer().serialize
    return {key: serialize(value) for key, value in (item | changes).items()}


def a_record(number: int, new: Json, old: Json | None = None) -> Json:
    """Return a record of the stream as Lambda hands it over."""
    change = {"Keys": {"key": new["key"]}, "SequenceNumber": str(number), "NewImage": new}
    return {"dynamodb": change if old is None else change | {"OldImage": old}}


def sent(number: int, **changes: Any) -> Json:
    """Return the record of a notification that was sent; order-1 is the first."""
    return a_record(number, an_image(f"order-{number}", ["sent", 1, AT, None], **changes))


def several(count: int) -> list[Json]:
    return [sent(number) for number in range(1, count + 1)]


def ids(events: list[Json]) -> list[str]:
    return [event["detail"]["id"] for event in events]


@dataclass
class Bus:
    """Stands before moto's EventBridge.

    Attributes:
        calls: the producers' ids in each call.
        entry_code: what EventBridge answers for an entry, by the producer's id; None: it takes it.
        call_code: what it answers to a call whose entries have these ids.
        error: what happens to a call instead of any answer.
    """

    receipts: ReceiptsStack
    calls: list[list[str]] = field(default_factory=list)
    entry_code: Callable[[str], str | None] = lambda _: None
    call_code: Callable[[list[str]], str | None] = lambda _: None
    error: BotoCoreError | None = None

    def answer(self, params: Json, **_: Any) -> tuple[SimpleNamespace, Json]:
        entries = json.loads(params["body"])["Entries"]
        names = [json.loads(entry["Detail"])["id"] for entry in entries]
        self.calls.append(names)
        if self.error is not None:
            raise self.error
        if refused := self.call_code(names):
            error = {"Code": refused, "Message": "refused"}
            return SimpleNamespace(status_code=400), {"Error": error}
        answers: list[Json] = []
        for name, entry in zip(names, entries, strict=True):
            if code := self.entry_code(name):
                answers.append({"ErrorCode": code, "ErrorMessage": "not taken"})
            else:
                self.receipts.events.put_events(Entries=[entry])
                answers.append({"EventId": "1"})
        failed = sum("ErrorCode" in each for each in answers)
        return SimpleNamespace(status_code=200), {"FailedEntryCount": failed, "Entries": answers}


@pytest.fixture
def bus(receipts: ReceiptsStack) -> Iterator[Bus]:
    bus = Bus(receipts)
    events: Any = receipts.publisher._publisher.events
    client = events._eventbridge
    client.meta.events.register("before-call.events.PutEvents", bus.answer)
    yield bus
    client.meta.events.unregister("before-call.events.PutEvents", bus.answer)


# --- What is put on the bus -----------------------------------------------------------------------


def test_each_event_has_its_documented_form(receipts: ReceiptsStack) -> None:
    """Word for word: consumers may depend on it, and recognise repetitions by the id."""
    image = an_image(
        "order-1",
        ["sent", 1, AT, None],
        ["failed", 1, AT + 5000, "undelivered"],
        metadata={"pedido": "nº 981"},
        correlation_id="trace-1",
    )

    assert receipts.publish_records([a_record(1, image)]) == []

    puts = [params["Entries"] for name, params in receipts.aws.calls if name == "PutEvents"]
    assert puts == [
        [
            {
                "EventBusName": "default",
                "Source": "blip-notifier",
                "DetailType": "Notification Status Changed",
                "Detail": f'{{"event_id": "{event_id}", "id": "order-1", "bot": "default",'
                f' "status": "{status}", "reason": {reason}, "generation": 1,'
                f' "time": "2023-11-14T22:13:{second}.123+00:00",'
                ' "metadata": {"pedido": "nº 981"}, "correlation_id": "trace-1",'
                ' "category": null, "stack": "blip-notifier"}',
            }
        ]
        for event_id, status, reason, second in [
            ("cdf13bc2-0af7-57c7-94db-b8ec14d5571f", "sent", "null", 20),
            ("acacc997-7aff-5437-b494-f02a44ed12de", "failed", '"undelivered"', 25),
        ]
    ]


def test_only_new_timeline_entries_are_published(receipts: ReceiptsStack) -> None:
    first, second = ["sent", 1, AT, None], ["received", 1, AT + 1, None]
    old = an_image("order-1", first)

    assert receipts.publish_records([a_record(1, an_image("order-1", first, second), old)]) == []

    assert [event["detail"]["status"] for event in receipts.heard()] == ["received"]


def test_batch_is_published_ten_events_at_a_time(receipts: ReceiptsStack, bus: Bus) -> None:
    assert receipts.publish_records(several(23)) == []

    assert [len(call) for call in bus.calls] == [CALL_EVENTS, CALL_EVENTS, 3]
    assert ids(receipts.heard()) == [f"order-{number}" for number in range(1, 24)]


# --- What the bus does not take -------------------------------------------------------------------

PASSING = ["ThrottlingException", "InternalFailure"]
NOT_LET_IN = [
    "AccessDeniedException",
    "InvalidAccountIdException",
    "NotAuthorizedForSourceException",
    "NotAuthorizedForDetailTypeException",
]
LASTING = ["InvalidArgument", "MalformedDetail", "RedactionFailure"]


@pytest.mark.parametrize("code", PASSING)
def test_only_the_throttled_entry_is_put_again(
    receipts: ReceiptsStack, bus: Bus, code: str
) -> None:
    bus.entry_code = lambda name: code if name == "order-2" and len(bus.calls) < 3 else None

    assert receipts.publish_records(several(3)) == []

    assert bus.calls == [["order-1", "order-2", "order-3"], ["order-2"], ["order-2"]]
    assert ids(receipts.heard()) == ["order-1", "order-3", "order-2"]
    assert receipts.unpublished() == []


def test_later_entries_of_a_notification_wait_for_its_throttled_one(
    receipts: ReceiptsStack, bus: Bus
) -> None:
    codes = iter(["ThrottlingException"])  # for the first entry only, whatever is put beside it
    bus.entry_code = lambda _: next(codes, None)
    first, second = ["sent", 1, AT, None], ["received", 1, AT + 1, None]
    old = an_image("order-1", first)
    records = [a_record(1, old), a_record(2, an_image("order-1", first, second), old)]

    assert receipts.publish_records(records) == []

    assert [event["detail"]["status"] for event in receipts.heard()] == ["sent", "received"]


@pytest.mark.parametrize("code", [*PASSING, *NOT_LET_IN])
def test_event_throttled_to_the_end_returns_with_its_record(
    receipts: ReceiptsStack, bus: Bus, code: str
) -> None:
    records = several(3)
    bus.entry_code = lambda name: code if name == "order-2" else None

    assert receipts.publish_records(records) == records[1:]

    assert ids(receipts.heard()) == ["order-1", "order-3"]
    assert receipts.unpublished() == []
    bus.entry_code = lambda _: None
    assert receipts.publish_records(records[1:]) == []
    assert ids(receipts.heard()) == ["order-2", "order-3"]


@pytest.mark.parametrize("code", LASTING)
def test_event_that_the_bus_refuses_is_set_aside_by_its_key(
    receipts: ReceiptsStack, bus: Bus, code: str
) -> None:
    bus.entry_code = lambda name: code if name == "order-2" else None

    assert receipts.publish_records(several(3)) == []

    assert bus.calls == [["order-1", "order-2", "order-3"]]
    assert ids(receipts.heard()) == ["order-1", "order-3"]
    assert receipts.unpublished() == [
        {
            "key": ledger_key("default", "order-2"),
            "sequence_number": "2",
            "problem": "the event bus refuses it",
        }
    ]


def network_errors() -> list[type[BotoCoreError]]:
    """Return every class of error that botocore raises where no answer comes."""
    found: list[type[BotoCoreError]] = [
        botocore.exceptions.HTTPClientError,
        botocore.exceptions.ConnectionError,
    ]
    for kind in found:
        found += [other for other in kind.__subclasses__() if other not in found]
    return found


@pytest.mark.parametrize("kind", network_errors())
def test_bus_that_does_not_answer_stops_the_batch(
    receipts: ReceiptsStack, bus: Bus, kind: type[BotoCoreError]
) -> None:
    records = several(2)
    bus.error = kind(error="reset", endpoint_url="https://events", proxy_url="https://proxy")

    assert receipts.publish_records(records) == records

    assert len(bus.calls) > 1
    bus.error = None
    assert receipts.publish_records(records) == []
    assert ids(receipts.heard()) == ["order-1", "order-2"]
    assert receipts.unpublished() == []


@pytest.mark.parametrize(
    "code", ["ThrottlingException", "InternalException", "AccessDeniedException", "ExpiredToken"]
)
def test_call_answered_with_an_error_stops_the_batch(
    receipts: ReceiptsStack, bus: Bus, code: str
) -> None:
    records = several(2)
    bus.call_code = lambda _: code

    assert receipts.publish_records(records) == records

    assert {len(call) for call in bus.calls} == {2}
    assert receipts.unpublished() == []


@pytest.mark.parametrize("code", ["ValidationException", "RequestEntityTooLargeException"])
def test_events_of_a_refused_call_are_put_one_by_one(
    receipts: ReceiptsStack, bus: Bus, code: str
) -> None:
    bus.call_code = lambda names: code if "order-2" in names else None

    assert receipts.publish_records(several(3)) == []

    assert bus.calls == [["order-1", "order-2", "order-3"], ["order-1"], ["order-2"], ["order-3"]]
    assert ids(receipts.heard()) == ["order-1", "order-3"]
    (letter,) = receipts.unpublished()
    assert letter["key"] == ledger_key("default", "order-2")


def test_single_event_may_meet_a_bus_that_does_not_answer(
    receipts: ReceiptsStack, bus: Bus
) -> None:
    records = several(3)
    away = {"order-2": "ThrottlingException"}
    bus.call_code = lambda names: "ValidationException" if names[1:] else away.get(names[0])

    assert receipts.publish_records(records) == records[1:]

    assert ids(receipts.heard()) == ["order-1", "order-3"]
    assert receipts.unpublished() == []


def test_no_call_starts_that_the_sandbox_might_not_outlive(
    receipts: ReceiptsStack, bus: Bus
) -> None:
    records = several(1)
    bus.call_code = lambda _: "ThrottlingException"

    assert receipts.publish_records(records, seconds=20.05) == records  # one call and a wait

    assert len(bus.calls) == 1


# --- What cannot be understood --------------------------------------------------------------------


def poison(number: int) -> Json:
    return a_record(number, an_image("order-1", ["teleported", 1, AT, "+5531999998888"]))


def test_unreadable_record_is_set_aside_by_its_key_and_stops_nothing(
    receipts: ReceiptsStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="notifier")

    assert receipts.publish_records([poison(1), sent(2)]) == []

    assert ids(receipts.heard()) == ["order-2"]
    (letter,) = receipts.unpublished()
    assert letter == {
        "key": ledger_key("default", "order-1"),
        "sequence_number": "1",
        "problem": "ValueError",
    }
    for record in caplog.records:
        for private in PRIVATE:
            assert private not in f"{record.getMessage()} {vars(record)}"


def test_record_that_cannot_be_set_aside_returns(receipts: ReceiptsStack, bus: Bus) -> None:
    bus.entry_code = lambda name: "MalformedDetail" if name == "order-2" else None
    receipts.aws.sqs.delete_queue(QueueUrl=receipts.unpublished_url)
    records = [sent(1), sent(2), poison(3)]

    assert receipts.publish_records(records) == records[1:]

    receipts.aws.sqs.create_queue(QueueName="unpublished")
    assert receipts.publish_records(records) == []
    assert [letter["sequence_number"] for letter in receipts.unpublished()] == ["2", "3"]


# --- The handler ----------------------------------------------------------------------------------


def test_handler_runs_as_lambda_calls_it(
    receipts: ReceiptsStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVENT_BUS", "default")
    monkeypatch.setenv("UNPUBLISHED_QUEUE_URL", receipts.unpublished_url)
    monkeypatch.setenv("PUBLISH_ALL_RECEIPTS", "false")
    app = load_app("publish_status_events")

    answer = app["handler"]({"Records": [poison(1), sent(2)]}, a_context())

    assert answer == {"batchItemFailures": []}
    assert ids(receipts.heard()) == ["order-2"]
    out = capsys.readouterr().out
    metrics = printed_metrics(out)
    assert sum(sum(line.get("status_event_unpublished", [])) for line in metrics) == 1
    assert any("changed_to_published" in line for line in metrics)
    for private in PRIVATE:
        assert private not in out
