"""The function whole: threads, calls, the plan, and the handler."""

import io
import json
import time
from collections import Counter
from dataclasses import fields
from typing import Any

import pytest

from notifier.aws.ledger import DynamoDbLedger
from notifier.entrypoints import send_notification as sending
from notifier.entrypoints.environment import BatchCrashed
from tests.integration.conftest import Stack
from tests.integration.entrypoints.send_notification.helpers import (
    in_parallel,
    know,
    phone,
    statuses,
    visibility_timeouts,
)
from tests.local.blip import Bot, wait_until
from tests.support.builders import MARIA, PHONE, a_request
from tests.support.clock import MachineClock
from tests.support.lambda_runtime import a_context, load_app

pytestmark = pytest.mark.usefixtures("no_holding_still")

# --- Side by side ---------------------------------------------------------------------------------


def set_plan(stack: Stack, **plan: Any) -> None:
    """Return the bot another plan, at BLiP and in the secret."""
    stack.blip.put_bot(Bot(name="simulated", **plan))
    stack.aws.put_bots({"default": {"base_url": stack.blip.url, "key": stack.blip.key} | plan})


def test_ten_new_recipients_are_looked_up_and_sent_to_concurrently(
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
    """Return the calls to AWS by purpose, with the names of tables for writes."""
    return Counter(
        f"{name} {parameters['TableName']}" if name == "UpdateItem" else name
        for name, parameters in stack.aws.calls
        if name not in {"SendMessage", "ReceiveMessage", "DeleteMessage"}
    )


def cost_of_ten(stack: Stack, *, known: bool) -> Counter[str]:
    """Return the cost of the cheapest of a few batches.

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


def test_batch_of_ten_known_recipients_makes_the_expected_calls(stack: Stack) -> None:
    """Per notification a claim and a settling; the rest per batch."""
    assert cost_of_ten(stack, known=True) == {
        "BatchGetItem": 1,
        "UpdateItem ledger": 20,
        "UpdateItem identities": 1,
    }


def test_batch_of_ten_new_recipients_makes_the_expected_calls(stack: Stack) -> None:
    """Per notification also the start of its send, and the look-up's lease and its end."""
    cost = cost_of_ten(stack, known=False)

    reserved = cost.pop("UpdateItem identities") - 20
    assert cost == {"BatchGetItem": 1, "UpdateItem ledger": 30}
    # One for all look-ups, and one for all sends; one more wherever a thread came late.
    assert 2 <= reserved <= 6


def test_unanswered_look_up_delays_no_other_request(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_status_of_a_newer_release_is_left_alone(stack: Stack) -> None:
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
    assert all(30 <= seconds <= 60 for seconds in visibility_timeouts(stack))


@pytest.mark.parametrize("step", ["start_sending", "mark_sent"])
def test_crash_in_one_thread_affects_one_record(
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

    (seconds,) = visibility_timeouts(stack)
    assert 30 <= seconds <= 60
    harmed = json.loads(waiting)["id"]
    found = statuses(stack)
    # What was surely not sent is given back. Else the claim holds: its lease ends by itself, and
    # says then what was going on.
    assert found.pop(harmed) == ("retrying" if step == "start_sending" else "sending")
    assert set(found.values()) == {"sent"}
    assert len(stack.blip.inbox()) == (4 if step == "start_sending" else 5)
    assert "delivery crashed" in log.getvalue()


def test_crash_of_the_whole_batch_is_an_error_of_the_function(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    """It counts no error for records in the answer, and a canary would stay."""

    def crash(*_: Any) -> Any:
        raise OSError("the release is broken")

    with monkeypatch.context() as broken:
        broken.setattr(DynamoDbLedger, "claim", crash)
        stack.publish(a_request(), a_request(to=phone(2)))
        records = stack.receive()
        with pytest.raises(BatchCrashed):
            stack.sandbox().handle({"Records": records}, a_context())

    assert log.getvalue().count("delivery crashed") == 2
    assert all(30 <= seconds <= 60 for seconds in visibility_timeouts(stack))
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

    assert in_parallel(stack, records[:10], records[10:20], records[20:]) == []

    assert len(stack.blip.inbox()) == 30
    times = [sent.at for sent in stack.blip.requests]
    assert 29 / 20 - 0.1 < max(times) - min(times) < 4
    # Slots are spaced evenly (tests/integration/aws/test_bot_state.py). What arrives may bunch a
    # little, more so where all these threads, a DynamoDB and a BLiP share one process.
    assert stack.blip.statistics()["highest_per_second"]["simulated"]["messages"] <= 23


def test_throttling_stops_the_bot_in_every_sandbox(
    stack: Stack, shifted_clock: MachineClock
) -> None:
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
    assert all(115 <= seconds <= 140 for seconds in visibility_timeouts(stack))
    assert {item["attempts"] for item in stack.aws.ledger()} <= {"0"}
    assert set(statuses(stack).values()) == {"retrying"}

    # Another sandbox doesn't even claim.
    later = a_request(to=phone(0))
    stack.publish(later)
    more = stack.receive()
    assert stack.handle(more, function=stack.sandbox()) == [json.dumps(later)]
    assert later["id"] not in statuses(stack)
    assert all(100 <= seconds <= 125 for seconds in visibility_timeouts(stack))

    stack.blip.clear_faults()
    shifted_clock.advance(121)
    assert stack.handle([*records, *more]) == []
    assert Counter(statuses(stack).values()) == {"sent": 6}
    assert stack.aws.dead_letters() == []


# --- The handler ----------------------------------------------------------------------------------


def test_handler_logs_and_counts_without_personal_data(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = stack.aws.settings
    for field in fields(settings):
        value = getattr(settings, field.name)
        monkeypatch.setenv(
            field.name.upper(), str(value).lower() if isinstance(value, bool) else str(value)
        )
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "send-notification")
    app = load_app("send_notification")
    conflict = a_request()
    stack.publish(a_request(to=phone(1)), "not JSON", conflict, conflict | {"to": phone(2)})

    stack.functions.append(app["_send_notification"])
    answer = app["handler"]({"Records": stack.receive()}, a_context())

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
