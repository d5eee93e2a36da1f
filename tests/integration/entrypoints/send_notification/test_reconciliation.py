"""Sends with an unknown outcome, the function whole: BLiP's history decides."""

from datetime import UTC, datetime
from typing import Any

import pytest

from notifier.domain.notification import ledger_key
from notifier.entrypoints import send_notification as sending
from tests.integration.conftest import Record, Stack
from tests.integration.receipts_stack import Json, ReceiptsStack, a_receipt
from tests.support.builders import a_request
from tests.support.clock import MachineClock

MINUTE, HOUR, DAY = 60, 3600, 86_400
WINDOW = 15 * MINUTE
LEASE = 33  # the sandbox's 30 s and what two clocks may differ by

LOST = {
    "dropped": {"drop": True},
    "504": {"status": 504},
    "500": {"status": 500},
    "no answer": {"hang": True},
}
NO_ANSWERS: dict[str, Json] = {
    "503": {"status": 503},
    "504": {"status": 504},
    "dropped": {"drop": True},
    "no answer": {"hang": True},
    "61": {"failure": 61},
    "62": {"failure": 62},
    "65": {"failure": 65},
    "401": {"status": 401, "code": 13},
    "no list": {"status": 200, "body": {"status": "success", "resource": {"items": None}}},
    "a list": {"status": 200, "body": []},
    "nothing": {"status": 200},
}


@pytest.fixture(autouse=True)
def fast(stack: Stack, clock: MachineClock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clock
    # For the tests in which BLiP hangs. A busy machine answers the others within that, too.
    monkeypatch.setattr(sending, "CALL_SECONDS", 3)
    stack.blip.configure(throttle=False)  # its clock is not the simulated one
    # What happens to a message has happened when its history is asked for, however fast we ask.
    at_once = {"dispatched": 0.0, "received": 0.0, "consumed": 0.0, "failed": 0.0}
    stack.blip.configure(receipts={"delays": at_once})
    stack.blip.know("+5531999998888")


class Case:
    """One request whose send may get lost, delivered as often as a test wants."""

    def __init__(self, stack: Stack, **changes: Any) -> None:
        self.stack = stack
        self.request = a_request(**changes)
        self.key = ledger_key("default", self.request["id"])
        stack.publish(self.request)
        self.records: list[Record] = stack.receive()

    def deliver(self) -> float | None:
        """Deliver the request once more. Return in how many seconds it returns, if it does."""
        self.stack.aws.calls.clear()
        back = self.stack.handle(self.records)
        for record in self.records:
            record["attributes"]["ApproximateReceiveCount"] = "2"
        if not back:
            return None
        (call,) = [
            params
            for name, params in self.stack.aws.calls
            if name == "ChangeMessageVisibilityBatch"
        ]
        (entry,) = call["Entries"]
        return float(entry["VisibilityTimeout"])

    @property
    def item(self) -> Json:
        return next(item for item in self.stack.aws.ledger() if item["key"] == self.key)

    @property
    def status(self) -> str:
        return str(self.item["status"])

    @property
    def posts(self) -> list[str]:
        """The ids of the messages that went out, taken by BLiP or not."""
        return [request.envelope["id"] for request in self._of("messages")]

    @property
    def questions(self) -> int:
        return len(self._of("history"))

    def _of(self, kind: str) -> list[Any]:
        return [request for request in self.stack.blip.requests if request.kind == kind]


def lost(stack: Stack, fault: Json | None = None, *, accept: bool, **changes: Any) -> Case:
    """Return a case whose first send is lost before or after BLiP accepts it."""
    stack.blip.add_fault(path="messages", **(fault or {"drop": True}), accept=accept, times=1)
    case = Case(stack, **changes)
    assert case.deliver() == 900  # the longest visibility timeout that is set
    assert case.status == "unknown"
    believe_history(stack)
    return case


def believe_history(stack: Stack) -> None:
    """Record that BLiP's history has shown a later message: what it does not show was not sent."""
    stack.aws.dynamodb.update_item(
        TableName="identities",
        Key={"key": {"S": "bot:default"}},
        UpdateExpression="SET history_seen = :later",
        ExpressionAttributeValues={":later": {"N": str(10**14)}},
    )


def published(receipts: ReceiptsStack) -> list[tuple[str, str | None]]:
    return [
        (event["detail"]["status"], event["detail"]["reason"]) for event in receipts.published()
    ]


# --- It went out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_message_in_the_history_is_not_sent_again(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock, fault: Json
) -> None:
    case = lost(stack, fault, accept=True)
    assert published(receipts) == []

    # Within the settle window an answer would mean nothing: no query and no send is made.
    for _ in range(3):
        clock.advance(WINDOW / 4)
        wait = case.deliver()
        assert wait is not None
        assert 0 < wait <= 900
        assert case.status == "unknown"
    assert case.questions == 0

    clock.advance(WINDOW / 4 + 2)
    assert case.deliver() is None

    assert case.questions == 1
    assert case.status == "consumed"
    assert case.posts == [case.key]
    assert len(stack.blip.inbox()) == 1
    assert published(receipts) == [("sent", None), ("consumed", None)]
    assert not case.item.keys() & {"token", "lease_until"}
    # And whatever SQS shows again.
    assert case.deliver() is None
    assert case.posts == [case.key]


def test_message_found_in_the_history_is_published_as_sent(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    stack.blip.configure(receipts={"delays": {"received": None, "consumed": None}})
    case = lost(stack, accept=True)
    clock.advance(WINDOW + 2)

    assert case.deliver() is None

    assert case.status == "dispatched"
    assert published(receipts) == [("sent", None)]


@pytest.mark.parametrize("every", [True, False])
def test_receipt_found_in_the_history_is_published_like_a_pushed_one(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock, *, every: bool
) -> None:
    receipts.all_receipts = every
    stack.blip.configure(receipts={"delays": {"received": None, "consumed": None}})
    case = lost(stack, accept=True)
    clock.advance(WINDOW + 2)

    case.deliver()

    assert (("dispatched", None) in published(receipts)) == every


def test_failure_found_in_the_history_is_recorded(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    stack.blip.put_templates()
    case = lost(stack, accept=True, template={"name": "no_such_template", "language": "pt_BR"})
    clock.advance(WINDOW + 2)

    assert case.deliver() is None

    (letter,) = stack.aws.dead_letters()
    assert (letter["reason"], letter["failure"]["code"]) == ("undelivered", 132_001)
    assert case.status == "failed"
    assert published(receipts) == [("sent", None), ("failed", "undelivered")]
    assert case.posts == [case.key]


def test_message_of_a_polled_bot_is_polled_further(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    bot = {"base_url": stack.blip.url, "key": stack.blip.key, "receipts": "history"}
    stack.aws.put_bots({"default": bot})
    stack.blip.configure(receipts={"delays": {"received": None, "consumed": None}})
    case = lost(stack, accept=True)
    clock.advance(WINDOW + 2)
    assert case.deliver() is None
    assert case.status == "dispatched"

    clock.advance(5 * MINUTE + 1)
    assert receipts.poll() == 1


# --- It did not -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "answer"),
    [({"drop": True}, "empty"), ({"status": 504}, "failure"), ({"hang": True}, "empty")],
    ids=["dropped", "504", "no answer"],
)
def test_message_missing_from_the_history_is_sent_once_more_with_the_same_id(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock, fault: Json, answer: str
) -> None:
    stack.blip.configure(unknown_history=answer)
    case = lost(stack, fault, accept=False)
    clock.advance(WINDOW + 2)

    assert case.deliver() == 0
    assert case.status == "retrying"
    assert case.posts == [case.key]
    assert case.deliver() is None

    assert case.status == "sent"
    assert case.posts == [case.key, case.key]
    assert len(stack.blip.inbox()) == 1
    assert case.item["denials"] == "1"
    assert case.item["generation"] == "1"
    assert published(receipts) == [("sent", None)]
    assert stack.aws.dead_letters() == []


def test_if_unknown_fail_ends_in_a_dead_letter(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    case = lost(stack, accept=False, if_unknown="fail")
    clock.advance(WINDOW + 2)

    assert case.deliver() is None

    (letter,) = stack.aws.dead_letters()
    assert letter["reason"] == "outcome_unknown"
    assert letter["generation"] == "1"
    assert letter["failure"]["possibly_sent"] is True
    assert letter["failure"]["phase"] == "settle"
    assert (case.status, case.item["reason"]) == ("failed", "outcome_unknown")
    assert published(receipts) == [("failed", "outcome_unknown")]
    assert case.deliver() is None
    assert case.posts == [case.key]
    assert stack.aws.dead_letters() == []


def test_second_empty_history_is_final(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    case = lost(stack, accept=False)
    clock.advance(WINDOW + 2)
    assert case.deliver() == 0
    stack.blip.add_fault(path="messages", drop=True, times=1)
    assert case.deliver() == 900
    # The window starts anew.
    clock.advance(WINDOW - 5)
    assert case.deliver() is not None
    assert case.questions == 1
    clock.advance(10)

    assert case.deliver() is None

    assert case.questions == 2
    (letter,) = stack.aws.dead_letters()
    assert letter["reason"] == "outcome_unknown"
    assert case.posts == [case.key, case.key]
    assert published(receipts) == [("failed", "outcome_unknown")]


def test_redrive_may_be_resent_again(stack: Stack, clock: MachineClock) -> None:
    case = lost(stack, accept=False)
    for generation in (1, 2):
        stack.blip.add_fault(path="messages", drop=True, times=2)
        for _ in range(4):  # lost, not sent, lost, not sent
            case.deliver()
            clock.advance(WINDOW + 2)
        assert (case.status, case.item["generation"]) == ("failed", str(generation))
        stack.blip.clear_faults()
        (letter,) = stack.aws.dead_letters()
        assert letter["reason"] == "outcome_unknown"
        stack.publish(letter["body"], generation=generation)
        case.records = stack.receive()
    assert case.deliver() is None

    ids = [case.key, f"{case.key}:2", f"{case.key}:3"]
    assert case.posts == [ids[0], ids[0], ids[1], ids[1], ids[2]]
    assert (case.status, case.item["generation"]) == ("sent", "3")


def test_history_counts_after_it_shows_a_later_message(stack: Stack, clock: MachineClock) -> None:
    stack.blip.add_fault(path="messages", drop=True, accept=False, times=1)
    case = Case(stack)
    case.deliver()
    clock.advance(WINDOW + 2)
    assert case.deliver() is not None
    assert (case.status, case.questions) == ("unknown", 1)  # there is no later message

    later = Case(stack, to="+5511988887777")
    assert later.deliver() is None
    assert case.deliver() == 0

    assert case.status == "retrying"
    asked = [request.envelope["uri"] for request in case._of("history")]
    assert [key in uri for key, uri in zip((case.key, later.key), asked[-2:], strict=True)] == [
        True,
        True,
    ]


# --- No answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_failed_history_query_decides_nothing(
    stack: Stack, clock: MachineClock, fault: Json
) -> None:
    case = lost(stack, accept=False)
    stack.blip.add_fault(path="history", **fault)
    clock.advance(WINDOW + 2)

    for _ in range(2):
        wait = case.deliver()
        assert wait is not None
        assert WINDOW / 3 <= wait <= WINDOW
        assert case.status == "unknown"
        assert not case.item.keys() & {"token", "lease_until"}
    assert case.questions >= 2
    assert case.posts == [case.key]
    assert stack.aws.dead_letters() == []

    stack.blip.clear_faults()
    assert case.deliver() == 0
    assert case.status == "retrying"


def test_events_of_another_message_decide_nothing(
    stack: Stack, clock: MachineClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lost(stack, accept=False)
    blip: Any = stack.functions[0]._delivery._blip
    other = a_receipt(ledger_key("default", "another"), "received")
    for strange in (other, a_receipt(f"{case.key}:2", "received"), a_receipt("x", "failed"), {}):
        monkeypatch.setattr(blip, "events", lambda *_, strange=strange: [strange])
        clock.advance(WINDOW + 2)

        assert case.deliver() is not None

        assert case.status == "unknown"
    assert len(stack.aws.ledger()) == 1


def test_throttling_stops_further_history_queries(stack: Stack, clock: MachineClock) -> None:
    case = lost(stack, accept=True)
    stack.blip.add_fault(path="history", status=429, times=1)
    clock.advance(WINDOW + 2)

    wait = case.deliver()

    assert wait is not None
    assert 120 <= wait <= 137
    assert case.status == "unknown"
    assert case.deliver() is not None
    assert case.questions == 1
    clock.advance(121)
    assert case.deliver() is None
    assert case.status == "consumed"


def test_bot_missing_from_the_secret_decides_nothing(stack: Stack, clock: MachineClock) -> None:
    case = lost(stack, accept=True)
    bots = {"default": {"base_url": stack.blip.url, "key": stack.blip.key}}
    stack.aws.put_bots({"other": bots["default"]})
    clock.advance(WINDOW + 2)

    assert case.deliver() is not None
    assert case.status == "unknown"

    stack.aws.put_bots(bots)
    clock.advance(301)
    assert case.deliver() is None
    assert case.status == "consumed"


@pytest.mark.parametrize("policy", ["resend", "fail"])
def test_message_forgotten_by_the_history_is_given_up(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock, policy: str
) -> None:
    case = lost(stack, accept=False, if_unknown=policy)
    stack.blip.add_fault(path="history", status=503)
    clock.advance(3 * DAY - MINUTE)
    assert case.deliver() is not None
    assert case.questions == 1
    clock.advance(MINUTE)

    assert case.deliver() is None

    assert case.questions == 2  # had the history shown it, it would be marked sent, however late
    (letter,) = stack.aws.dead_letters()
    assert letter["reason"] == "outcome_unknown"
    assert letter["failure"]["possibly_sent"] is True
    assert published(receipts) == [("failed", "outcome_unknown")]
    assert case.posts == [case.key]


# --- Receipts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["accepted", "dispatched", "received", "consumed"])
def test_receipt_before_the_query_settles_the_outcome(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock, event: str
) -> None:
    case = lost(stack, accept=True)
    assert receipts.record(a_receipt(case.key, event)) == []
    assert case.status == event

    assert case.deliver() is None  # at once, not only after the window
    clock.advance(WINDOW + 2)
    assert case.deliver() is None

    assert case.questions == 0
    assert case.posts == [case.key]
    # The receipt shows that it was sent, too.
    known = [(event, None)] if event in {"received", "consumed"} else []
    assert published(receipts) == [("sent", None), *known]


def test_failed_receipt_before_the_query_settles_the_outcome(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    case = lost(stack, accept=True)
    assert receipts.record(a_receipt(case.key, "failed", 132_001)) == []
    clock.advance(WINDOW + 2)

    assert case.deliver() is None

    assert case.status == "failed"
    assert len(stack.aws.dead_letters()) == 1
    assert case.questions == 0
    assert case.posts == [case.key]


def test_receipt_after_an_empty_history_prevents_the_second_send(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    case = lost(stack, accept=False)
    clock.advance(WINDOW + 2)
    assert case.deliver() == 0
    assert receipts.record(a_receipt(case.key, "dispatched")) == []

    assert case.deliver() is None

    assert case.posts == [case.key]
    assert case.status == "dispatched"


@pytest.mark.parametrize("event", ["accepted", "received"])
def test_receipt_during_the_query_is_kept(
    stack: Stack,
    receipts: ReceiptsStack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
    event: str,
) -> None:
    case = lost(stack, accept=False)
    blip: Any = stack.functions[0]._delivery._blip
    history = blip.history

    def overtaken(*question: Any) -> Any:
        answer = history(*question)
        assert receipts.record(a_receipt(case.key, event)) == []
        return answer

    monkeypatch.setattr(blip, "history", overtaken)
    clock.advance(WINDOW + 2)

    case.deliver()
    case.deliver()

    assert case.status == event
    assert case.posts == [case.key]


# --- Sandboxes that end ---------------------------------------------------------------------------


@pytest.mark.parametrize("went_out", [True, False])
def test_sandbox_killed_during_a_send_leaves_an_unknown_outcome(
    stack: Stack, clock: MachineClock, monkeypatch: pytest.MonkeyPatch, went_out: bool
) -> None:
    blip: Any = stack.sandbox()._delivery._blip
    send = blip.send

    def ends(*message: Any) -> None:
        if went_out:
            send(*message)
        else:
            message[-1]()  # the connection stood, and its slot had come
        raise RuntimeError("the sandbox ends here")

    case = Case(stack)
    with monkeypatch.context() as patched:
        patched.setattr(blip, "send", ends)
        assert case.deliver() is not None
    assert case.status == "sending"
    believe_history(stack)

    # While the lease is live it may still be under way.
    wait = case.deliver()
    assert wait is not None
    assert 25 <= wait <= LEASE
    clock.advance(LEASE)
    # From the lease's end on the window runs.
    clock.advance(WINDOW - 10)
    assert case.deliver() is not None
    assert case.questions == 0
    clock.advance(12)

    assert case.deliver() == (None if went_out else 0)

    assert case.questions == 1
    # As far as BLiP's history had come when it was asked.
    delivered = ("accepted", "dispatched", "received", "consumed")
    assert case.status in (delivered if went_out else ("retrying",))
    assert len(case.posts) == went_out


def test_sandbox_killed_during_a_query_costs_only_time(
    stack: Stack, clock: MachineClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lost(stack, accept=False)
    blip: Any = stack.functions[0]._delivery._blip

    def ends(*_: Any) -> None:
        raise RuntimeError("the sandbox ends here")

    clock.advance(WINDOW + 2)
    with monkeypatch.context() as patched:
        patched.setattr(blip, "history", ends)
        assert case.deliver() is not None
    in_flight_until = case.item["in_flight_until"]

    wait = case.deliver()
    assert wait is not None
    assert 25 <= wait <= LEASE
    assert case.questions == 0
    clock.advance(LEASE)
    assert case.deliver() == 0
    assert case.questions == 1
    assert case.item["in_flight_until"] == in_flight_until


def test_one_sandbox_at_a_time_queries_the_history(
    stack: Stack, clock: MachineClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lost(stack, accept=False)
    blip: Any = stack.functions[0]._delivery._blip
    history = blip.history
    other = stack.sandbox()

    def another_comes(*question: Any) -> Any:
        assert stack.handle(case.records, function=other) == [case.records[0]["body"]]
        return history(*question)

    monkeypatch.setattr(blip, "history", another_comes)
    clock.advance(WINDOW + 2)

    stack.handle(case.records)

    assert case.questions == 1
    assert case.item["denials"] == "1"


def test_second_sandbox_with_the_same_query_returns_the_request(
    stack: Stack, clock: MachineClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lost(stack, accept=False)
    first, other = stack.functions[0], stack.sandbox()
    ledger: Any = first._delivery._delivery.ledger
    question = ledger.claim_unknown
    asking: list[Any] = []

    def ends(*_: Any) -> None:
        asking.append(case.item["token"])
        raise RuntimeError("the sandbox ends here")

    def overtaken(*standing: Any) -> Any:
        stack.handle(case.records, function=other)
        return question(*standing)

    monkeypatch.setattr(other._delivery._blip, "history", ends)
    monkeypatch.setattr(ledger, "claim_unknown", overtaken)
    clock.advance(WINDOW + 2)

    assert stack.handle(case.records, function=first) != []

    assert case.questions == 0
    assert [case.item["token"]] == asking


# --- Time to live ---------------------------------------------------------------------------------


def valid_for(seconds: float, clock: MachineClock) -> str:
    return datetime.fromtimestamp(clock.now() + seconds, UTC).isoformat()


def test_message_sent_in_time_is_not_expired(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock
) -> None:
    case = lost(stack, accept=True, valid_until=valid_for(MINUTE, clock))
    clock.advance(2 * MINUTE)
    assert case.deliver() is not None  # not yet asked, so not yet expired
    assert case.status == "unknown"
    clock.advance(WINDOW)

    assert case.deliver() is None

    assert case.status == "consumed"
    assert stack.aws.dead_letters() == []
    assert published(receipts) == [("sent", None), ("consumed", None)]


@pytest.mark.parametrize("policy", ["resend", "fail"])
def test_unsent_request_expires_only_after_the_history_was_queried(
    stack: Stack, receipts: ReceiptsStack, clock: MachineClock, policy: str
) -> None:
    case = lost(stack, accept=False, valid_until=valid_for(MINUTE, clock), if_unknown=policy)
    clock.advance(WINDOW + 2)

    assert case.deliver() is None

    assert case.questions == 1
    (letter,) = stack.aws.dead_letters()
    assert letter["reason"] == "expired"
    assert letter["failure"]["possibly_sent"] is False
    assert case.status == "expired"
    assert published(receipts) == [("expired", "expired")]
    assert case.posts == [case.key]


def test_expired_request_is_not_resent(stack: Stack, clock: MachineClock) -> None:
    case = lost(stack, accept=False, valid_until=valid_for(WINDOW + MINUTE, clock))
    clock.advance(WINDOW + 2)
    assert case.deliver() == 0
    clock.advance(MINUTE)

    assert case.deliver() is None

    (letter,) = stack.aws.dead_letters()
    assert letter["reason"] == "expired"
    assert case.posts == [case.key]
