"""The function whole: requests in, messages at BLiP, dead letters and the ledger out."""

import importlib.util
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from notifier import telemetry
from notifier.aws.ledger import DynamoDbLedger
from notifier.domain.notification import ledger_key
from notifier.entrypoints import send_notification as sending
from notifier.entrypoints.environment import BatchCrashed, SystemClock
from notifier.entrypoints.send_notification import SendNotification
from notifier.use_cases.send_notification import batch as batches
from tests.integration.conftest import Record, Stack
from tests.local.blip import Bot, wait_until
from tests.support.builders import MARIA, PHONE, a_request
from tests.support.clock import MachineClock
from tests.unit.test_envelopes import PLACEHOLDERS, SENDS, differences, documented

WEEK = timedelta(days=7)


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch, stack: Stack) -> Iterator[io.StringIO]:
    """What the function logs; whatever happens, no number, no parameter and no key in it."""
    telemetry.metrics.clear_metrics()
    stream = io.StringIO()
    monkeypatch.setattr(telemetry.logger.registered_handler, "stream", stream)
    yield stream
    logged = stream.getvalue()
    for secret in ("99999888", "98888770", "+55", MARIA, "Maria"):
        assert secret not in logged
    for key in {request.headers.get("Authorization", "") for request in stack.blip.requests}:
        assert not key or key.removeprefix("Key ") not in logged


@pytest.fixture(autouse=True)
def no_holding_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that can do nothing waits a moment: the unit tests show it, these don't wait."""
    monkeypatch.setattr(batches, "HOLD_STILL_SECONDS", 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MachineClock:
    clock = MachineClock()
    monkeypatch.setattr(SystemClock, "now", staticmethod(clock.now))
    return clock


def phone(number: int) -> str:
    """One of many recipients, whose identity has the number's own digits."""
    return f"+551198888{7700 + number:04}"


def set_plan(stack: Stack, **plan: Any) -> None:
    """Return the bot another plan, at BLiP and in the secret."""
    stack.blip.put_bot(Bot(name="simulated", **plan))
    stack.aws.put_bots({"default": {"base_url": stack.blip.url, "key": stack.blip.key} | plan})


def know(stack: Stack, *phones: str) -> None:
    """Let the identities hold these numbers, as if they had been looked up long ago."""
    for number in phones:
        stack.aws.dynamodb.put_item(
            TableName="identities",
            Item={
                "key": {"S": f"default/{number}"},
                "address": {"S": stack.blip.know(number)},
                "good_until": {"N": str(round((time.time() + 400_000) * 1000))},
                "expires_at": {"N": str(round(time.time() + 400_000))},
            },
        )


def statuses(stack: Stack) -> dict[str, str]:
    """The ledger: a status by the producer's id."""
    ledger = stack.aws.ledger()
    return {item["id"]: item["status"] for item in ledger if "refusals" not in item}


def hidden(stack: Stack) -> list[int]:
    """For how long requests were hidden, since this was last asked."""
    seconds = [
        entry["VisibilityTimeout"]
        for name, parameters in stack.aws.calls
        if name == "ChangeMessageVisibilityBatch"
        for entry in parameters["Entries"]
    ]
    stack.aws.calls.clear()
    return seconds


def max_threads(stack: Stack, *batches: list[Record]) -> list[str]:
    """Hand each batch to a sandbox of its own, all at once; the bodies that come back."""
    functions = [stack.sandbox() for _ in batches]
    start = threading.Barrier(len(batches))

    def run(function: SendNotification, batch: list[Record]) -> list[str]:
        start.wait()
        return stack.handle(batch, function=function)

    with ThreadPoolExecutor(len(batches)) as threads:
        return [body for some in threads.map(run, functions, batches) for body in some]


# --- What arrives ---------------------------------------------------------------------------------


def test_a_request_becomes_one_message_at_blip(stack: Stack) -> None:
    body = a_request()

    assert stack.deliver(body) == []

    (message,) = stack.blip.inbox()
    (item,) = stack.aws.ledger()
    assert item["status"] == "sent"
    assert item["id"] == body["id"]
    assert message["id"] == item["key"]
    assert message["phone"] == PHONE
    assert stack.aws.dead_letters() == []


def test_the_six_requests_of_blip_s_document(stack: Stack) -> None:
    """Five sends, and the look-up before each of them."""
    namespace = PLACEHOLDERS["{{NAMESPACE}}"]
    stack.aws.put_bots(
        {"default": {"base_url": stack.blip.url, "key": stack.blip.key, "namespace": namespace}}
    )
    name = PLACEHOLDERS["{{MESSAGE_TEMPLATE_NAME}}"]
    wanted: dict[str, str] = {}
    for shown, parts in SENDS.items():
        to = phone(len(wanted))
        wanted[to] = shown
        template: dict[str, Any] = {"name": name, "language": "pt_BR"} | parts
        assert stack.deliver(a_request(to=to, template=template)) == []

    messages = {message["phone"]: message["envelope"] for message in stack.blip.inbox()}
    for to, shown in wanted.items():
        theirs = documented(shown)
        changed = {path for path, _, _ in differences(theirs, messages[to])}
        typo = {f"content.template.components[0].parameters[1].{key}" for key in ("type", "Type")}
        assert changed == {"id", "to"} | (typo if shown == "2-text" else set())
    look_ups = [asked for asked in stack.blip.requests if asked.path == "/commands"]
    assert len(look_ups) == len(wanted)
    for asked, to in zip(look_ups, wanted, strict=True):
        theirs = documented("1-look-up")
        ours = asked.envelope | {"id": theirs["id"]}
        assert ours == theirs | {"uri": theirs["uri"].replace(PHONE, to)}


def test_all_kinds_of_content_arrive_as_whatsapp_wants_them(stack: Stack) -> None:
    """The samples of events/: the simulator fails by receipt what WhatsApp would refuse."""
    samples = sorted(Path("events").glob("[01]*.json"))
    assert len(samples) > 5
    for sample in samples:
        assert stack.deliver(sample.read_text(encoding="utf-8")) == [], sample

    wait_until(
        lambda: all(m["status"] in {"consumed", "failed"} for m in stack.blip.inbox()),
    )
    assert [(m["status"], m["reason"]) for m in stack.blip.inbox()] == [
        ("consumed", None) for _ in samples
    ]


# --- What cannot be delivered ---------------------------------------------------------------------


def the_letter(stack: Stack, body: str, reason: str) -> dict[str, Any]:
    """The one dead letter there is: the body untouched, and everything that belongs to it."""
    (sent,) = [
        parameters
        for name, parameters in stack.aws.calls
        if name == "SendMessage" and parameters["QueueUrl"] == stack.aws.dead_letters_url
    ]
    attributes = sent["MessageAttributes"]
    assert len(attributes) <= 10
    assert set(attributes) <= {
        *("reason", "bot", "notification_id", "generation", "failed_at", "failure")
    }
    for name, attribute in attributes.items():
        assert attribute["DataType"] == ("Number" if name == "generation" else "String")
        assert attribute["StringValue"]
        assert attribute["StringValue"].isascii()
    assert len(attributes["failure"]["StringValue"]) <= 4096
    (letter,) = stack.aws.dead_letters()
    assert letter["body"] == body
    assert letter["reason"] == reason
    failed_at = datetime.fromisoformat(letter["failed_at"])
    assert abs(datetime.now(UTC) - failed_at) < timedelta(minutes=1)
    failure: dict[str, Any] = letter["failure"]
    assert failure["possibly_sent"] is False
    assert failure["redrives"] == 0
    return letter


def assert_ended(stack: Stack, body: dict[str, Any], status: str) -> None:
    (item,) = stack.aws.ledger()
    assert (item["id"], item["status"]) == (body["id"], status)
    assert "token" not in item


def assert_refused(stack: Stack, notification_id: str, reason: str) -> None:
    """One refusal has been kept under the id, and nothing of the body."""
    (item,) = (item for item in stack.aws.ledger() if "refusals" in item)
    assert item.keys() == {
        *("key", "id", "bot", "status", "refusals", "updated_at", "expires_at"),
    }
    assert item["key"] == f"{ledger_key('default', notification_id)}:refused"
    assert (item["id"], item["bot"], item["status"]) == (notification_id, "default", "rejected")
    (refusal,) = item["refusals"]
    assert refusal["L"][1:3] == [{"S": reason}, {"N": item["updated_at"]}]
    assert int(item["expires_at"]) == pytest.approx(time.time() + 14 * 86_400, abs=60)


@pytest.mark.parametrize(
    "body", ["{", "Olá, Maria!", "[1]", "\ufeff{}", '{"Type": "Notification"}']
)
def test_malformed(stack: Stack, body: str) -> None:
    assert stack.deliver(body) == []

    letter = the_letter(stack, body, "malformed")
    assert not {"notification_id", "generation"} & set(letter)
    assert letter["failure"]["phase"] == "contract"
    assert stack.aws.ledger() == []


def test_invalid(stack: Stack) -> None:
    body = json.dumps(a_request(to="31 99999-8888", id="order-1"), indent=3) + "\n"

    assert stack.deliver(body) == []

    letter = the_letter(stack, body, "invalid")
    assert (letter["notification_id"], letter["bot"]) == ("order-1", "default")
    (field,) = letter["failure"]["fields"]
    assert field["field"] == "to"
    assert "99999" not in json.dumps(letter["failure"])
    assert letter["failure"]["template"] == "order_shipped"
    assert_refused(stack, "order-1", "invalid")
    assert stack.blip.requests == []


def test_invalid_in_everything_and_at_length(stack: Stack) -> None:
    names = [f"{'ção' * 40}_{number}" for number in range(30)]
    body = json.dumps(
        {"template": {"body": dict.fromkeys(names, "")}} | dict.fromkeys(names, MARIA)
    )

    assert stack.deliver(body) == []

    letter = the_letter(stack, body, "invalid")
    assert len(letter["failure"]["fields"]) >= 5


def test_unknown_bot(stack: Stack) -> None:
    body = a_request(bot="clinic")

    assert stack.deliver(body) == []

    letter = the_letter(stack, json.dumps(body), "unknown_bot")
    assert (letter["bot"], letter["generation"]) == ("clinic", "1")
    assert_ended(stack, body, "rejected")


def test_id_conflict(stack: Stack) -> None:
    body = a_request()
    other = body | {"to": phone(1)}

    assert stack.deliver(body) == []
    assert stack.deliver(other) == []

    letter = the_letter(stack, json.dumps(other), "id_conflict")
    assert letter["notification_id"] == body["id"]
    assert "generation" not in letter
    assert statuses(stack) == {body["id"]: "sent"}
    assert_refused(stack, body["id"], "id_conflict")
    assert len(stack.blip.inbox()) == 1


@pytest.mark.parametrize("reason", ["invalid", "id_conflict"])
def test_the_same_message_is_refused_once_and_the_same_body_again_twice(
    stack: Stack, reason: str
) -> None:
    """SQS may show a message twice; what a producer publishes twice is wrong twice."""
    body = a_request()
    if reason == "id_conflict":
        assert stack.deliver(body) == []
    stack.publish(body | {"to": phone(1) if reason == "id_conflict" else "no number"})
    records = stack.receive()

    assert stack.handle(records) == []
    assert stack.handle(records) == []
    assert [letter["reason"] for letter in stack.aws.dead_letters()] == [reason]
    again = [record | {"messageId": "another"} for record in records]
    assert stack.handle(again) == []

    assert [letter["reason"] for letter in stack.aws.dead_letters()] == [reason]
    (refused,) = (item for item in stack.aws.ledger() if "refusals" in item)
    ids = [refusal["L"][0]["S"] for refusal in refused["refusals"]]
    assert ids == [records[0]["messageId"], "another"]


def test_expired(stack: Stack) -> None:
    body = a_request(valid_until="2020-01-01T00:00:00-03:00")

    assert stack.deliver(body) == []

    letter = the_letter(stack, json.dumps(body), "expired")
    assert letter["notification_id"] == body["id"]
    assert_ended(stack, body, "expired")
    assert stack.blip.requests == []


def test_not_a_phone_number(stack: Stack) -> None:
    body = a_request(to="+5531900000061")

    assert stack.deliver(body) == []

    letter = the_letter(stack, json.dumps(body), "not_a_phone_number")
    assert letter["failure"]["code"] == 61
    assert_ended(stack, body, "rejected")
    assert stack.blip.inbox() == []
    # It is remembered: the next one is not even looked up.
    assert stack.deliver(a_request(to="+5531900000061")) == []
    assert stack.blip.statistics()["kinds"] == {"lookups": 1}


def test_rejected(stack: Stack) -> None:
    body = a_request(to="+5531900000031")
    stack.blip.add_fault(path="messages", status=400, code=21)

    assert stack.deliver(body) == []

    letter = the_letter(stack, json.dumps(body), "rejected")
    assert letter["failure"]["code"] == 21
    assert letter["failure"]["phase"] == "send"
    assert letter["failure"]["attempts"] == 1
    assert letter["failure"]["template"] == "order_shipped"
    assert_ended(stack, body, "rejected")


def test_retries_exhausted(stack: Stack) -> None:
    stack.aws.overrides["max_attempts"] = 3
    stack.blip.add_fault(path="messages", status=400, code=51)
    body = a_request()
    stack.publish(body)
    records = stack.receive()

    for attempt in (1, 2):
        assert stack.handle(records) == [json.dumps(body)]
        (seconds,) = hidden(stack)
        assert 5 <= seconds <= 5 * 2**attempt
    assert stack.handle(records) == []

    letter = the_letter(stack, json.dumps(body), "retries_exhausted")
    assert letter["failure"]["attempts"] == 3
    assert letter["failure"]["code"] == 51
    assert_ended(stack, body, "failed")


def test_waited_too_long(stack: Stack) -> None:
    body = a_request()
    stack.publish(body)
    (record,) = stack.receive()
    published = int(record["attributes"]["SentTimestamp"]) - WEEK / timedelta(milliseconds=1)
    record["attributes"]["SentTimestamp"] = str(round(published))

    assert stack.handle([record]) == []

    the_letter(stack, json.dumps(body), "waited_too_long")
    assert_ended(stack, body, "failed")
    assert stack.blip.requests == []


def test_the_longest_body_that_the_queue_takes(stack: Stack) -> None:
    body = "x" * 262_144

    assert stack.deliver(body) == []

    the_letter(stack, body, "malformed")


def test_a_redrive_is_the_next_generation(stack: Stack) -> None:
    body = a_request()
    stack.blip.add_fault(path="messages", status=400, code=21, times=1)
    stack.deliver(body)
    assert [letter["generation"] for letter in stack.aws.dead_letters()] == ["1"]

    assert stack.deliver(body) == []  # a mere repetition
    assert stack.blip.inbox() == []
    assert stack.deliver(body, generation=1) == []
    assert stack.deliver(body, generation=1) == []

    (message,) = stack.blip.inbox()
    (item,) = stack.aws.ledger()
    assert message["id"] == f"{item['key']}:2"
    assert (item["generation"], item["status"]) == ("2", "sent")


# --- Once -----------------------------------------------------------------------------------------


def test_the_same_request_five_times_in_one_batch(stack: Stack) -> None:
    body = a_request()

    assert stack.deliver(*[body] * 5) == []

    assert len(stack.blip.inbox()) == 1
    assert stack.blip.statistics()["lookups"] == {PHONE: 1}


def test_the_same_request_in_five_batches(stack: Stack) -> None:
    body = a_request()
    for _ in range(5):
        assert stack.deliver(body) == []

    assert len(stack.blip.inbox()) == 1


def test_the_same_request_in_five_sandboxes_at_once(stack: Stack) -> None:
    stack.blip.configure(latency_seconds=0.1)
    body = a_request()
    stack.publish(*[body] * 5)
    records = stack.receive()

    waiting = max_threads(stack, *[[record] for record in records])

    assert len(stack.blip.inbox()) == 1
    assert stack.blip.statistics()["lookups"] == {PHONE: 1}
    # Who came too soon comes back when the lease ends, and finds it done.
    assert set(waiting) <= {json.dumps(body)}
    assert stack.handle(records) == []
    assert len(stack.blip.inbox()) == 1
    assert statuses(stack) == {body["id"]: "sent"}


def test_twenty_requests_for_one_number_in_several_sandboxes_are_one_look_up(
    stack: Stack,
) -> None:
    stack.blip.configure(latency_seconds=0.2)
    bodies = [a_request() for _ in range(20)]
    stack.publish(*bodies)
    records = stack.receive()

    waiting = max_threads(stack, *[records[start::5] for start in range(5)])

    assert stack.blip.statistics()["lookups"] == {PHONE: 1}
    again = [record for record in records if record["body"] in waiting]
    assert stack.handle(again) == []
    assert stack.blip.statistics()["lookups"] == {PHONE: 1}
    assert Counter(statuses(stack).values()) == {"sent": 20}
    assert len({message["id"] for message in stack.blip.inbox()}) == 20 == len(stack.blip.inbox())


def test_a_claim_that_is_lost_during_the_look_up_sends_nothing(stack: Stack) -> None:
    # Long enough for the claim to be lost meanwhile.
    stack.blip.add_fault(path="lookups", latency_seconds=2)
    body = a_request()
    stack.publish(body)
    records = stack.receive()
    with ThreadPoolExecutor(1) as threads:
        handled = threads.submit(stack.handle, records)
        wait_until(lambda: bool(stack.blip.requests))
        (item,) = stack.aws.ledger()
        stack.aws.dynamodb.update_item(
            TableName="ledger",
            Key={"key": {"S": item["key"]}},
            UpdateExpression="SET #token = :another",
            ExpressionAttributeNames={"#token": "token"},
            ExpressionAttributeValues={":another": {"S": "another"}},
        )
        assert handled.result() == [json.dumps(body)]

    assert stack.blip.inbox() == []
    (item,) = stack.aws.ledger()
    assert (item["token"], item["status"]) == ("another", "claimed")


# --- Side by side ---------------------------------------------------------------------------------


def test_ten_new_recipients_are_looked_up_side_by_side_and_written_to_side_by_side(
    stack: Stack,
) -> None:
    set_plan(stack, messages_per_second=1000, commands_per_second=1000)
    # Long enough for all ten to begin, however busy the machine is.
    stack.blip.configure(latency_seconds=2)

    assert stack.deliver(*[a_request(to=phone(number)) for number in range(10)]) == []

    most = stack.blip.statistics()["most_in_flight"]
    assert most["/commands"] == 10
    assert most["/messages"] > 1
    assert len(stack.blip.inbox()) == 10


def calls(stack: Stack) -> Counter[str]:
    """The calls to AWS by what they were for, with the names of tables for writes."""
    return Counter(
        f"{name} {parameters['TableName']}" if name == "UpdateItem" else name
        for name, parameters in stack.aws.calls
        if name not in {"SendMessage", "ReceiveMessage", "DeleteMessage"}
    )


def cost_of_ten(stack: Stack, *, known: bool) -> Counter[str]:
    """What the cheapest of a few batches costs.

    A thread that wakes up too late for its slot reserves another: this machine may be busy.
    """
    stack.deliver(a_request())  # the sandbox starts, and fetches the secret
    costs = []
    for batch in range(5):
        phones = [phone(10 * batch + number) for number in range(10)]
        if known:
            know(stack, *phones)
        wait_until(lambda: time.time() > last_slot(stack))
        stack.aws.calls.clear()
        assert stack.deliver(*[a_request(to=to) for to in phones]) == []
        costs.append(calls(stack))
        if costs[-1].total() <= (22 if known else 53):
            break
    return min(costs, key=Counter.total)


def last_slot(stack: Stack) -> float:
    item = stack.aws.dynamodb.get_item(TableName="identities", Key={"key": {"S": "bot:default"}})[
        "Item"
    ]
    return max(float(item[f"next_{plan}_at"]["N"]) for plan in ("messages", "commands")) / 1e6


def test_what_a_batch_of_ten_known_recipients_costs(stack: Stack) -> None:
    """Per notification a claim and a settling; the rest per batch."""
    assert cost_of_ten(stack, known=True) == {
        "BatchGetItem": 1,
        "UpdateItem ledger": 20,
        "UpdateItem identities": 1,
    }


def test_what_a_batch_of_ten_new_recipients_costs(stack: Stack) -> None:
    """Per notification also the start of its send, and the look-up's lease and its end."""
    cost = cost_of_ten(stack, known=False)

    reserved = cost.pop("UpdateItem identities") - 20
    assert cost == {"BatchGetItem": 1, "UpdateItem ledger": 30}
    # One for all look-ups, and one for all sends; one more wherever a thread came late.
    assert 2 <= reserved <= 6


def test_a_look_up_that_hangs_delays_nobody(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "CALL_SECONDS", 5)
    know(stack, *map(phone, range(4)))
    stack.blip.add_fault(path="lookups", to=PHONE, hang=True)
    stuck = a_request()

    waiting = stack.deliver("not JSON", stuck, *[a_request(to=phone(n)) for n in range(5)])

    assert waiting == [json.dumps(stuck)]
    (hanging,) = (each for each in stack.blip.requests if each.status == 0)
    wait_until(lambda: hanging.ended is not None)  # the simulator notices that we hung up
    assert hanging.ended is not None
    sends = [sent for sent in stack.blip.requests if sent.path == "/messages"]
    assert len(sends) == 5
    # All were sent while the look-up hung.
    assert all(sent.ended is not None and sent.ended < hanging.ended for sent in sends)
    assert Counter(statuses(stack).values()) == {"sent": 5, "retrying": 1}
    assert len(stack.aws.dead_letters()) == 1


def test_a_status_of_a_newer_release_is_left_alone(stack: Stack) -> None:
    """During a canary, and after a rollback, two releases share the ledger."""
    body = a_request(id="order-1")
    stack.deliver(body)
    (item,) = stack.aws.ledger()
    stack.aws.dynamodb.update_item(
        TableName="ledger",
        Key={"key": {"S": item["key"]}},
        UpdateExpression="SET #status = :newer, something_else = :newer",
        ExpressionAttributeNames={"#status": "status"},
        ExpressionAttributeValues={":newer": {"S": "teleported"}},
    )

    assert stack.deliver(body) == [json.dumps(body)]

    assert len(stack.blip.inbox()) == 1
    assert statuses(stack) == {"order-1": "teleported"}
    assert stack.aws.dead_letters() == []
    assert all(30 <= seconds <= 60 for seconds in hidden(stack))


@pytest.mark.parametrize("step", ["start_sending", "mark_sent"])
def test_a_crash_in_one_thread_hurts_one_record(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, step: str, log: io.StringIO
) -> None:
    original = getattr(DynamoDbLedger, step)
    victim: list[str] = []

    def crash(self: DynamoDbLedger, claim: Any, *arguments: Any) -> Any:
        if not victim or claim.key in victim:
            victim.append(claim.key)
            raise OSError("the adapter is broken")
        return original(self, claim, *arguments)

    monkeypatch.setattr(DynamoDbLedger, step, crash)
    bodies = [a_request(to=phone(number)) for number in range(5)]

    (waiting,) = stack.deliver(*bodies)

    (seconds,) = hidden(stack)
    assert 30 <= seconds <= 60
    harmed = json.loads(waiting)["id"]
    found = statuses(stack)
    # What was surely not sent is given back. Else the claim holds: its lease ends by itself, and
    # says then what was going on.
    assert found.pop(harmed) == ("retrying" if step == "start_sending" else "sending")
    assert set(found.values()) == {"sent"}
    assert len(stack.blip.inbox()) == (4 if step == "start_sending" else 5)
    assert "delivery crashed" in log.getvalue()


def test_lambda_hears_of_a_batch_that_crashed_as_a_whole(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    """It counts no error for records in the answer, and a canary would stay."""

    def crash(*_: Any) -> Any:
        raise OSError("the release is broken")

    with monkeypatch.context() as broken:
        broken.setattr(DynamoDbLedger, "claim", crash)
        stack.publish(a_request(), a_request(to=phone(2)))
        records = stack.receive()
        context: Any = SimpleNamespace(get_remaining_time_in_millis=lambda: 30_000)
        with pytest.raises(BatchCrashed):
            stack.sandbox().handle({"Records": records}, context)

    assert log.getvalue().count("delivery crashed") == 2
    assert all(30 <= seconds <= 60 for seconds in hidden(stack))
    assert stack.handle(records) == []
    assert len(stack.blip.inbox()) == 2


# --- The plan -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_slots")
def test_several_sandboxes_together_keep_to_the_plan(stack: Stack) -> None:
    set_plan(stack, messages_per_second=20)
    stack.blip.configure(throttle=False)  # it counts, and lets everything pass
    know(stack, *map(phone, range(30)))
    stack.publish(*[a_request(to=phone(number)) for number in range(30)])
    records = stack.receive()

    assert max_threads(stack, records[:10], records[10:20], records[20:]) == []

    assert len(stack.blip.inbox()) == 30
    times = [sent.at for sent in stack.blip.requests]
    assert 29 / 20 - 0.1 < max(times) - min(times) < 4
    # Slots are spaced evenly (see test_adapters). What arrives may bunch a little, more so where
    # all these threads, a DynamoDB and a BLiP share one process.
    assert stack.blip.statistics()["highest_per_second"]["simulated"]["messages"] <= 23


def test_over_the_plan_everything_of_the_bot_stops(stack: Stack, clock: MachineClock) -> None:
    set_plan(stack, messages_per_second=5)
    know(stack, *map(phone, range(5)))
    stack.blip.add_fault(path="messages", status=429, code=34)
    bodies = [a_request(to=phone(number)) for number in range(5)]
    stack.publish(*bodies)
    records = stack.receive()

    waiting = stack.handle(records)

    assert len(waiting) == 5
    # Slots are a fifth of a second apart: the first one said it for all.
    assert stack.blip.statistics()["kinds"]["messages"] <= 2
    assert all(115 <= seconds <= 140 for seconds in hidden(stack))
    assert {item["attempts"] for item in stack.aws.ledger()} <= {"0"}
    assert set(statuses(stack).values()) == {"retrying"}

    # Another sandbox doesn't even claim.
    later = a_request(to=phone(0))
    stack.publish(later)
    more = stack.receive()
    assert stack.handle(more, function=stack.sandbox()) == [json.dumps(later)]
    assert later["id"] not in statuses(stack)
    assert all(100 <= seconds <= 125 for seconds in hidden(stack))

    stack.blip.clear_faults()
    clock.advance(121)
    assert stack.handle([*records, *more]) == []
    assert Counter(statuses(stack).values()) == {"sent": 6}
    assert stack.aws.dead_letters() == []


# --- A bot that is not well -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        json.dumps({"default": {"key": "REPLACE_ME", "base_url": "https://http.msging.net"}}),
        json.dumps({"default": {"key": "Key with spaces", "base_url": "https://http.msging.net"}}),
        "not JSON",
    ],
)
def test_a_bot_without_a_key_lets_its_requests_wait(
    stack: Stack, secret: str, clock: MachineClock
) -> None:
    good = {"default": {"base_url": stack.blip.url, "key": stack.blip.key}}
    stack.aws.put_bots(secret)
    bodies = [a_request(to=phone(number)) for number in range(3)]
    stack.publish(*bodies)
    records = stack.receive()

    assert len(stack.handle(records)) == 3

    waits = hidden(stack)
    assert min(waits) >= 600, waits
    assert max(waits) <= 900, waits
    assert stack.aws.ledger() == []
    assert stack.aws.dead_letters() == []

    stack.aws.put_bots(good)
    clock.advance(600)
    assert stack.handle(records) == []
    assert len(stack.blip.inbox()) == 3


def test_a_wrong_key_stops_the_bot_until_it_is_rotated(
    stack: Stack, clock: MachineClock, log: io.StringIO
) -> None:
    old = Bot(name="simulated", key="c2ltdWxhdGVkOm9sZA==")
    wrong = {"default": {"base_url": stack.blip.url, "key": old.key}}
    right = {"default": {"base_url": stack.blip.url, "key": stack.blip.key}}
    stack.blip.put_bot(old)
    stack.aws.put_bots(wrong)
    assert stack.deliver(a_request(to=phone(9))) == []
    stack.blip.put_bot(Bot(name="simulated"))  # somebody rotated the key over there
    know(stack, *map(phone, range(5)))
    bodies = [a_request(to=phone(number)) for number in range(5)]
    stack.publish(*bodies)
    records = stack.receive()
    clock.advance(60)
    stack.aws.calls.clear()

    assert len(stack.handle(records)) == 5

    # One thread fetched the secret afresh for all; it held nothing new.
    assert [name for name, _ in stack.aws.calls].count("GetSecretValue") == 1
    assert all(600 <= seconds <= 900 for seconds in hidden(stack))
    assert {item["attempts"] for item in stack.aws.ledger() if item["status"] != "sent"} == {"0"}
    assert "misconfigured" in log.getvalue()

    # Others don't even try.
    asked = len(stack.blip.requests)
    clock.advance(60)
    stack.publish(a_request(to=phone(7)))
    more = stack.receive()
    assert len(stack.handle(more, function=stack.sandbox())) == 1
    assert len(stack.blip.requests) - asked <= 1  # the ping of a probe
    assert stack.aws.dead_letters() == []

    stack.aws.put_bots(right)
    for _ in range(2):  # one goes with the probe, then the others
        clock.advance(601)
        stack.handle([*records, *more])
    assert stack.handle([*records, *more]) == []
    assert Counter(statuses(stack).values()) == {"sent": 7}
    assert stack.aws.dead_letters() == []


def test_a_key_that_was_rotated_in_time_costs_nobody_anything(
    stack: Stack, clock: MachineClock
) -> None:
    assert stack.deliver(a_request(to=phone(9))) == []
    rotated = Bot(name="simulated", key="c2ltdWxhdGVkOm5ldw==")
    stack.blip.put_bot(rotated)
    stack.aws.put_bots({"default": {"base_url": stack.blip.url, "key": rotated.key}})
    clock.advance(60)

    assert stack.deliver(*[a_request(to=phone(number)) for number in range(5)]) == []

    assert Counter(statuses(stack).values()) == {"sent": 6}


# --- Time -----------------------------------------------------------------------------------------


def test_with_little_time_left_everything_comes_back_at_once(stack: Stack) -> None:
    bodies = [a_request(to=phone(number)) for number in range(5)]

    assert len(stack.deliver(*bodies, seconds=5)) == 5

    assert hidden(stack) == [0] * 5
    assert stack.aws.ledger() == []
    assert stack.blip.requests == []
    # And can be had at once.
    assert stack.deliver() == []
    assert len(stack.blip.inbox()) == 5


def test_what_may_have_gone_out_waits(stack: Stack, clock: MachineClock) -> None:
    """An answer that got lost: not sent again before it is known whether it went out."""
    stack.blip.add_fault(path="messages", drop=True, accept=True, times=1)
    body = a_request()
    stack.publish(body)
    records = stack.receive()

    assert stack.handle(records) == [json.dumps(body)]
    assert statuses(stack) == {body["id"]: "unknown"}
    clock.advance(600)
    assert stack.handle(records) == [json.dumps(body)]
    assert all(0 < seconds <= 901 for seconds in hidden(stack))

    clock.advance(602)
    assert stack.handle(records) == []
    assert len(stack.blip.inbox()) == 1
    assert statuses(stack)[body["id"]] in {"accepted", "dispatched", "received", "consumed"}
    assert stack.aws.dead_letters() == []


# --- The handler ----------------------------------------------------------------------------------


def test_the_handler_logs_and_counts_and_keeps_to_itself_what_is_personal(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = stack.aws.settings
    for field in fields(settings):
        value = getattr(settings, field.name)
        monkeypatch.setenv(
            field.name.upper(), str(value).lower() if isinstance(value, bool) else str(value)
        )
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "send-notification")
    path = Path("functions/send_notification/app.py")
    spec = importlib.util.spec_from_file_location("send_notification_app", path)
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    conflict = a_request()
    stack.publish(a_request(to=phone(1)), "not JSON", conflict, conflict | {"to": phone(2)})
    context = SimpleNamespace(
        get_remaining_time_in_millis=lambda: 30_000,
        function_name="send-notification",
        memory_limit_in_mb=512,
        invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:send-notification",
        aws_request_id="request",
    )

    stack.functions.append(app._send_notification)
    answer = app.handler({"Records": stack.receive()}, context)

    assert answer == {"batchItemFailures": []}
    emitted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    metrics: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for line in emitted:
        for directive in line["_aws"]["CloudWatchMetrics"]:
            assert directive["Namespace"] == "BlipNotifier"
            for metric in directive["Metrics"]:
                value = line[metric["Name"]]
                metrics[metric["Name"]] += sum(value) if isinstance(value, list) else value
                if "reason" in line:
                    reasons[line["reason"]] += 1
    assert metrics["sent"] == 2
    assert metrics["dead_letter"] == 2
    assert (metrics["look_up"], metrics["look_up_without_send"]) == (2, 0)
    assert metrics["claimed_to_sent"] > 0
    assert reasons == {"malformed": 1, "id_conflict": 1}
    assert not any(digits in json.dumps(emitted) for digits in ("99998888", "88887701", MARIA))
