"""The queues: dead letters, requests and receipts."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from notifier.aws.queues import DeadLettersQueue, ReceiptsQueue, RequestsQueue, queued_request
from notifier.domain.dead_letters import DeadLetter, FailureDetails
from notifier.domain.failures import FieldError, Reason
from notifier.domain.notification import QueuedRequest
from tests.integration.aws.backends import HOUR, Backend, RealOnes
from tests.integration.conftest import Aws
from tests.support.builders import a_failure, an_entry
from tests.support.clock import Clock

# --- Dead letters that are scanned and redriven ---------------------------------------------------


def lay_down(letters: Any, body: str, **changes: Any) -> None:
    given: dict[str, Any] = {
        "reason": Reason.UNDELIVERED,
        "failure": a_failure(detail="ação", redrives=1),
        "bot": "default",
        "notification_id": "a:1",
        "generation": 3,
    } | changes
    letters.put(body, given.pop("reason"), given.pop("failure"), **given)


def test_dead_letter_is_read_with_all_its_attributes(backend: Backend) -> None:
    letters = backend.letters()
    lay_down(letters, ' {"any": "thing" }\n')
    failed_at = backend.clock.now()
    backend.clock.advance(HOUR)

    (letter,) = letters.receive(60)

    assert letter == DeadLetter(
        letter_id=letter.letter_id,
        receipt_handle=letter.receipt_handle,
        body=' {"any": "thing" }\n',
        reason="undelivered",
        failed_at=failed_at,
        bot="default",
        notification_id="a:1",
        generation=3,
        redrives=1,
        failure={
            "detail": "ação",
            "template": "order_shipped",
            "phase": "send",
            "attempts": 1,
            "possibly_sent": False,
            "redrives": 1,
        },
    )


def test_dead_letter_moved_by_sqs_has_only_its_time(backend: Backend) -> None:
    letters = backend.letters()
    backend.moved("a body")

    (letter,) = letters.receive(60)

    assert (letter.body, letter.reason, letter.failure) == ("a body", None, {})
    assert (letter.bot, letter.notification_id, letter.generation) == (None, None, None)
    assert (letter.failed_at, letter.redrives) == (backend.clock.now(), 0)


def test_dead_letters_are_received_by_ten_and_are_in_flight_for_a_time(backend: Backend) -> None:
    letters = backend.letters()
    for number in range(13):
        lay_down(letters, f"letter {number}")

    assert letters.depth()[1] == 0
    first = letters.receive(60)
    assert (len(first), letters.depth()[1]) == (10, 10)
    assert len(letters.receive(60)) == 3
    assert letters.receive(60) == []
    backend.clock.advance(61)
    assert letters.depth()[1] == 0
    assert len(letters.receive(60)) == 10


def test_dead_letters_become_visible_at_once_or_later(backend: Backend) -> None:
    letters = backend.letters()
    for number in range(25):
        lay_down(letters, f"letter {number}")
    handles = [letter.receipt_handle for _ in range(3) for letter in letters.receive(60)]

    letters.change_visibility(handles[:13], 0)
    letters.change_visibility(handles[13:], 900)

    backend.clock.advance(0.001)  # moto's "from now on" begins after now
    assert letters.depth()[1] == 12
    assert len([letter for _ in range(3) for letter in letters.receive(60)]) == 13
    backend.clock.advance(899)
    assert letters.depth()[1] == 12
    backend.clock.advance(2)
    assert letters.depth()[1] == 0


def test_only_the_given_dead_letters_are_deleted(backend: Backend) -> None:
    letters = backend.letters()
    for number in range(25):
        lay_down(letters, f"letter {number}")
    received = [letter for _ in range(3) for letter in letters.receive(60)]

    letters.delete(received[:13])

    backend.clock.advance(61)
    left = {letter.body for _ in range(3) for letter in letters.receive(60)}
    assert left == {letter.body for letter in received[13:]}
    letters.delete([])
    letters.change_visibility([], 0)


def test_redriven_requests_are_unchanged_and_marked(backend: Backend) -> None:
    letters = backend.letters()
    for number in range(12):
        lay_down(letters, f" letter {number}\n", generation=number or None)
    backend.moved("moved by SQS")
    received = [letter for _ in range(2) for letter in letters.receive(60)]

    assert backend.requests().redrive(received) == received
    assert backend.requests().redrive([]) == []

    assert sorted(backend.requested(), key=str) == sorted(
        [
            ("moved by SQS", None, 1),
            *((f" letter {number}\n", number or None, 2) for number in range(12)),
        ],
        key=str,
    )


def test_redriven_requests_keep_the_group_of_their_bot(real: RealOnes, aws: Aws) -> None:
    letters = real.letters()
    lay_down(letters, "one", bot="clinic")
    lay_down(letters, "two", bot=None)
    aws.calls.clear()

    real.requests().redrive(letters.receive(60))

    (sent,) = [parameters for name, parameters in aws.calls if name == "SendMessageBatch"]
    assert [entry["MessageGroupId"] for entry in sent["Entries"]] == ["clinic", "default"]


def test_large_dead_letters_are_redriven_in_batches_that_sqs_accepts(
    real: RealOnes, aws: Aws
) -> None:
    letters = real.letters()
    for _ in range(9):
        lay_down(letters, "ç" * 128 * 1024)  # 256 KiB
    received = letters.receive(60)
    aws.calls.clear()

    assert real.requests().redrive(received) == received

    batches = [parameters["Entries"] for name, parameters in aws.calls if name != "ReceiveMessage"]
    assert [len(entries) for entries in batches] == [3, 3, 3]


class PartlyRefusing:
    """SQS that refuses of each batch what an entry says, or the whole of it."""

    def __init__(self, sqs: Any, refused: Callable[[Any], bool], *, whole: bool = False) -> None:
        self._sqs = sqs
        self._refused = refused
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        def call(**parameters: Any) -> Any:
            entries = parameters["Entries"]
            refused = [entry for entry in entries if self._refused(entry)]
            if self._whole and refused:
                raise ClientError({"Error": {"Code": "ServiceUnavailable"}}, name)
            taken = [entry for entry in entries if entry not in refused]
            answer = getattr(self._sqs, name)(**parameters | {"Entries": taken}) if taken else {}
            failed = [{"Id": entry["Id"], "Code": "InternalError"} for entry in refused]
            return answer | {"Failed": failed}

        return call


@pytest.mark.parametrize("whole", [False, True])
def test_refused_dead_letters_are_left_out_of_the_answer(
    real: RealOnes, aws: Aws, whole: bool
) -> None:
    letters = real.letters()
    for number in range(20):
        lay_down(letters, f"letter {number}")
    received = [letter for _ in range(2) for letter in letters.receive(60)]
    sqs: Any = PartlyRefusing(
        aws.sqs, lambda entry: entry["MessageBody"] == "letter 3", whole=whole
    )

    taken = RequestsQueue(sqs, aws.requests_url).redrive(received)

    lost = 10 if whole else 1
    assert len(taken) == 20 - lost
    assert {letter.body for letter in taken} == {body for body, _, _ in real.requested()}


@pytest.mark.parametrize("whole", [False, True])
def test_failed_change_or_deletion_leaves_the_dead_letter_visible_again(
    real: RealOnes, aws: Aws, whole: bool
) -> None:
    letters = real.letters()
    lay_down(letters, "one")
    (letter,) = letters.receive(60)
    sqs: Any = PartlyRefusing(aws.sqs, lambda _: True, whole=whole)
    failing = DeadLettersQueue(sqs, aws.dead_letters_url, real.clock.now)

    failing.change_visibility([letter.receipt_handle], 0)
    failing.delete([letter])

    real.clock.advance(61)
    assert [again.body for again in letters.receive(60)] == ["one"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"reason": "", "failed_at": "yesterday", "failure": "{"},
        {"failed_at": "0001-01-01T00:00:00", "failure": "[]"},
        {"failure": '{"redrives": "2"}', "generation": "first"},
        {"failure": "[" * 3000},
        {"failure": '{"redrives": true}', "failed_at": ""},
    ],
)
def test_foreign_attributes_are_ignored(
    real: RealOnes, aws: Aws, attributes: dict[str, str]
) -> None:
    letters = real.letters()
    written: Any = {
        name: {"DataType": "String", "StringValue": value or "x"}
        for name, value in attributes.items()
    }
    written["picture"] = {"DataType": "Binary", "BinaryValue": b"\xff"}
    aws.sqs.send_message(
        QueueUrl=aws.dead_letters_url, MessageBody="a body", MessageAttributes=written
    )

    (letter,) = letters.receive(60)

    assert (letter.body, letter.generation, letter.redrives) == ("a body", None, 0)
    assert letter.failed_at <= real.clock.now()
    assert real.requests().redrive([letter]) == [letter]


def test_dead_letter_moved_by_sqs_after_a_redrive_keeps_its_count(real: RealOnes, aws: Aws) -> None:
    letters = real.letters()
    count: Any = {"DataType": "Number", "StringValue": "2"}
    aws.sqs.send_message(
        QueueUrl=aws.dead_letters_url,
        MessageBody="a body",
        MessageAttributes={"redrives": count, "generation": count},
    )

    (letter,) = letters.receive(60)

    assert (letter.reason, letter.generation, letter.redrives) == (None, 2, 2)


# --- Messages -------------------------------------------------------------------------------------


def a_record(**changes: Any) -> dict[str, Any]:
    return {
        "messageId": "record",
        "receiptHandle": "handle",
        "body": "body",
        "attributes": {"SentTimestamp": "1800000000123", "ApproximateReceiveCount": "3"},
        "messageAttributes": {},
    } | changes


def test_record_of_lambda_is_read() -> None:
    attributes = {
        "generation": {"stringValue": "4", "dataType": "Number"},
        "redrives": {"stringValue": "2", "dataType": "Number"},
    }

    assert queued_request(a_record(messageAttributes=attributes)) == QueuedRequest(
        record_id="record",
        receipt_handle="handle",
        body="body",
        published_at=1_800_000_000.123,
        generation=4,
        redrives=2,
        receive_count=3,
    )
    bare = queued_request(a_record())
    assert (bare.generation, bare.redrives) == (None, 0)


@pytest.mark.parametrize(
    "attribute",
    [
        {"stringValue": "", "dataType": "String"},
        {"stringValue": "one", "dataType": "String"},
        {"stringValue": "-1", "dataType": "Number"},
        {"stringValue": "1.5", "dataType": "Number"},
        {"stringValue": "1e3", "dataType": "Number"},
        {"stringValue": "9" * 400, "dataType": "Number"},
        {"stringValue": "²", "dataType": "String"},
        {"stringValue": "٣", "dataType": "String"},
        {"stringValue": None, "dataType": "String"},
        {"binaryValue": "MQ==", "dataType": "Binary"},
    ],
)
def test_unusable_attributes_of_a_producer_are_ignored(attribute: Any) -> None:
    queued = queued_request(
        a_record(messageAttributes={"generation": attribute, "redrives": attribute})
    )

    assert (queued.generation, queued.redrives) == (None, 0)


def test_visibility_of_each_request_is_changed_to_its_wait(aws: Aws) -> None:
    requests = RequestsQueue(aws.sqs, aws.requests_url)
    for number in range(23):
        aws.sqs.send_message(QueueUrl=aws.requests_url, MessageBody=f"request {number}")
    queued = []
    while messages := aws.sqs.receive_message(
        QueueUrl=aws.requests_url, MaxNumberOfMessages=10
    ).get("Messages"):
        queued += [
            QueuedRequest(message["MessageId"], message["ReceiptHandle"], message["Body"], 0)
            for message in messages
        ]
    waits = [0, -3, 0.4, 0.6, 899.5, 21_600, 99_999, float(10**12), *[7.0] * 15]
    aws.calls.clear()

    requests.change_visibility(zip(queued, waits, strict=True))

    assert [name for name, _ in aws.calls] == ["ChangeMessageVisibilityBatch"] * 3
    hidden = [
        entry["VisibilityTimeout"] for _, parameters in aws.calls for entry in parameters["Entries"]
    ]
    assert hidden == [0, 0, 0, 1, 900, 21_600, 21_600, 21_600, *[7] * 15]
    visible = aws.sqs.receive_message(QueueUrl=aws.requests_url, MaxNumberOfMessages=10)
    assert len(visible["Messages"]) == 3


def test_no_waits_make_no_call(aws: Aws) -> None:
    aws.calls.clear()

    RequestsQueue(aws.sqs, aws.requests_url).change_visibility([])

    assert aws.calls == []


def test_failed_change_of_visibility_is_not_an_error(aws: Aws) -> None:
    unknown = QueuedRequest("record", "no handle of this queue", "body", 0)
    RequestsQueue(aws.sqs, aws.requests_url).change_visibility([(unknown, 5)])

    aws.sqs.delete_queue(QueueUrl=aws.requests_url)
    RequestsQueue(aws.sqs, aws.requests_url).change_visibility([(unknown, 5)])


def test_next_generation_is_put_with_its_count_and_group(aws: Aws) -> None:
    since = 1_800_000_000.0
    entry = an_entry(body="the body", bot="sales", generation=2, redrives=1, waits_since=since)
    aws.calls.clear()

    assert RequestsQueue(aws.sqs, aws.requests_url).wake([entry]) == [entry]

    ((_, call),) = aws.calls
    assert [put["MessageGroupId"] for put in call["Entries"]] == ["sales"]
    (message,) = aws.sqs.receive_message(QueueUrl=aws.requests_url, MessageAttributeNames=["All"])[
        "Messages"
    ]
    assert message["Body"] == "the body"
    assert message["MessageAttributes"]["generation"]["StringValue"] == "2"
    assert message["MessageAttributes"]["redrives"]["StringValue"] == "1"
    assert message["MessageAttributes"]["waited_since"]["StringValue"] == "1800000000"


def test_next_generations_that_sqs_refuses_are_not_returned(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [an_entry(key=str(number), body=f"body {number}") for number in range(12)]
    send = aws.sqs.send_message_batch

    def refuse(**parameters: Any) -> Any:
        taken = [each for each in parameters["Entries"] if each["MessageBody"] != "body 3"]
        return send(**parameters | {"Entries": taken})

    monkeypatch.setattr(aws.sqs, "send_message_batch", refuse)

    taken = RequestsQueue(aws.sqs, aws.requests_url).wake(entries)

    assert taken == entries[:3] + entries[4:]
    aws.sqs.delete_queue(QueueUrl=aws.requests_url)
    assert RequestsQueue(aws.sqs, aws.requests_url).wake(entries) == []


def test_receipts_are_batched_by_number_and_size(aws: Aws) -> None:
    url = aws.sqs.create_queue(QueueName="receipts")["QueueUrl"]
    queue = ReceiptsQueue(aws.sqs, url)
    aws.calls.clear()

    envelopes = [{"id": str(number)} for number in range(25)] + [
        {"id": str(number), "text": "x" * 300_000} for number in range(25, 31)
    ]
    assert queue.put_all(envelopes) == set()

    sizes = [len(call["Entries"]) for name, call in aws.calls if name == "SendMessageBatch"]
    assert sizes == [10, 10, 8, 3]
    found = []
    while messages := aws.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        found += [json.loads(message["Body"])["id"] for message in messages]
    assert sorted(found, key=int) == [str(number) for number in range(31)]


def test_refused_receipts_are_named_by_position(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    url = aws.sqs.create_queue(QueueName="receipts")["QueueUrl"]

    def send(**call: Any) -> Any:
        failed = [entry for entry in call["Entries"] if entry["Id"] in {"3", "12"}]
        return {"Failed": [{"Id": entry["Id"], "Code": "InternalError"} for entry in failed]}

    monkeypatch.setattr(aws.sqs, "send_message_batch", send)

    assert ReceiptsQueue(aws.sqs, url).put_all([{"id": "1"}] * 15) == {3, 12}


def put_letter(aws: Aws, clock: Clock, failure: FailureDetails, **named: Any) -> dict[str, Any]:
    names = {"bot": None, "notification_id": None, "generation": None} | named
    letters = DeadLettersQueue(aws.sqs, aws.dead_letters_url, clock.now)
    letters.put(' {"any": "thing" }\n', Reason.INVALID, failure, **names)
    (letter,) = aws.dead_letters()
    return letter


def test_dead_letter_holds_every_known_field(aws: Aws) -> None:
    failure = a_failure(detail="ação", phase="contract", attempts=0, fields=())

    letter = put_letter(
        aws, Clock(1_800_000_000.5), failure, bot="default", notification_id="a:1", generation=3
    )

    assert letter == {
        "body": ' {"any": "thing" }\n',
        "reason": "invalid",
        "bot": "default",
        "notification_id": "a:1",
        "generation": "3",
        "failed_at": "2027-01-15T08:00:00.500+00:00",
        "failure": {
            "detail": "ação",
            "template": "order_shipped",
            "phase": "contract",
            "attempts": 0,
            "possibly_sent": False,
            "redrives": 0,
            "fields": [],
        },
    }


def test_dead_letter_without_names_omits_them(aws: Aws) -> None:
    assert set(put_letter(aws, Clock(), a_failure())) == {"body", "reason", "failed_at", "failure"}


def test_failure_is_short_ascii_however_many_fields_are_broken(aws: Aws) -> None:
    broken = tuple(FieldError(f"template.body[{n}]" + "ç" * 60, "ã" * 200) for n in range(20))

    put_letter(aws, Clock(), a_failure(detail="é" * 100, fields=broken, template="a" * 512))

    (parameters,) = [parameters for name, parameters in aws.calls if name == "SendMessage"]
    text = parameters["MessageAttributes"]["failure"]["StringValue"]
    assert text.isascii()
    assert len(text) <= 4096
    written = json.loads(text)
    kept = len(written["fields"])
    assert written["fields"] == [asdict(one) for one in broken[:kept]]
    assert kept
    assert written["fields_left_out"] == 20 - kept


def test_adapters_get_boto3_s_own_client(aws: Aws) -> None:
    """The recorder that these tests count calls with sees the function's clients, too."""
    aws.calls.clear()
    boto3.client("sqs").list_queues()

    assert [name for name, _ in aws.calls] == ["ListQueues"]
