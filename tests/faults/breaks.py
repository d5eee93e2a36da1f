"""Places where the product keeps its promises, and how to break each on purpose.

What never finds a bug proves nothing: the interleavings have to find every one of these.
"""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

from notifier.aws import events, outbox
from notifier.aws.ledger import DynamoDbLedger
from notifier.aws.notifications import DynamoDbNotifications
from notifier.aws.receipts_ledger import DynamoDbReceiptsLedger
from notifier.aws.waiting_ledger import DynamoDbWaitingLedger
from notifier.entrypoints import publish_status_events as root
from notifier.use_cases import publish_status_events as publishing
from notifier.use_cases.publish_status_events import Publisher
from notifier.use_cases.record_receipt import Receipts
from notifier.use_cases.send_notification.batch import SendNotifications
from notifier.use_cases.send_notification.delivery import Delivery
from notifier.use_cases.send_notification.outcomes import Outcomes
from notifier.use_cases.send_notification.reconciliation import Reconciliation
from notifier.use_cases.wake_notifications import Waking


@dataclass(frozen=True)
class Break:
    """One method with other code in it, or one function, where a module finds it."""

    owner: type | ModuleType
    method: str
    code: str
    becomes: str

    @contextmanager
    def made(self) -> Iterator[None]:
        """Break it for a while."""
        function = getattr(self.owner, self.method)
        source = textwrap.dedent(inspect.getsource(function))
        assert self.code in source, f"{self.method} has no {self.code!r} any more"
        names: dict[str, Any] = {}
        broken = source.replace(self.code, self.becomes)
        exec(broken, vars(sys.modules[function.__module__]), names)  # noqa: S102 - that is the point
        with mock.patch.object(self.owner, self.method, names[self.method]):
            yield


BREAKS = {
    "a claim ignores another one that is alive": Break(
        DynamoDbLedger,
        "_claim_as",
        "_FREE,",
        '_FREE.replace(" = :claimed AND lease_until < :now", " IN (:claimed, :status)"),',
    ),
    "a claim takes what was being sent when its sandbox died": Break(
        DynamoDbLedger,
        "_claim_as",
        "_FREE,",
        '_FREE.replace("#status = :claimed", "#status <> :claimed"),',
    ),
    "`sent` is written over whatever stands there": Break(
        DynamoDbLedger, "mark_sent", "before(Status.SENT)", "list(Status)"
    ),
    "a receipt is written over whatever stands there": Break(
        DynamoDbReceiptsLedger, "advance", "before(status)", "list(Status)"
    ),
    "a redrive of any generation starts the next one": Break(
        DynamoDbLedger, "_claim_as", 'found["generation"] == asked_generation', "asked_generation"
    ),
    "`valid_until` is not checked after the wait for a slot": Break(
        Delivery, "_send", "if rejected := self.rejection(notification):", "if rejected := None:"
    ),
    "an unknown outcome is retried": Break(
        Delivery,
        "_send_claimed",
        "self.ledger.mark_unknown(claim)",
        "self.ledger.release(claim, attempted=True)",
    ),
    "an unknown is sent again without asking": Break(
        Reconciliation,
        "reconcile",
        "receipts = self.breaker.with_fresh_key(\n"
        "            bot, lambda bot: self._history(asked_about, bot, this_round)\n"
        "        )",
        "return self._denied(notification, claim)",
    ),
    "the history is asked before it can know": Break(
        Delivery, "claim", " + self.waits.policy.settle_window_seconds", ""
    ),
    "an empty history is believed without a control": Break(
        Reconciliation, "_not_shown", "if not resend or", "if True or"
    ),
    "a request is given up before its dead letter is there": Break(
        Outcomes,
        "give_up",
        "self._dead_letter(",
        "self.ledger.mark_failed(claim, final_status(failure.reason), failure.reason, None)\n"
        "    self._dead_letter(",
    ),
    "a failed receipt is recorded before its dead letter is there": Break(
        Receipts,
        "_failed",
        "self._dead_letter(",
        "self.ledger.fail(receipt, Reason.UNDELIVERED)\n    self._dead_letter(",
    ),
    "what crashed does not come back": Break(
        SendNotifications, "_outcome", "retry_in=backoff", "retry_in=None"
    ),
    "a receipt that overtakes the answer stands for no `sent`": Break(
        outbox, "status_events", "events.append(_event(item, Status.SENT, generation, at))", "pass"
    ),
    "what waits is woken before its time": Break(
        DynamoDbWaitingLedger, "due_waits", '":now": milliseconds(self._now())', '":now": 2**53'
    ),
    "any request starts what waits": Break(
        DynamoDbLedger,
        "_claim_as",
        'found["generation"] == asked_generation',
        '(found["generation"] == asked_generation or found["status"] == "waiting")',
    ),
    "a wait is believed to be no word of BLiP's": Break(
        outbox, "status_events", "status is Status.WAITING or reason in", "reason in"
    ),
    "what was cancelled in advance is published before its request has come": Break(
        outbox, "status_events", '"template" not in item', "False"
    ),
    "what was cancelled in advance is not completed by its request": Break(
        Delivery, "_cancelled", "self.ledger.complete_cancelled(notification)", "pass"
    ),
    "what was restored is published again": Break(
        outbox, "_added", 'new.get("restored_at") != old.get("restored_at")', "False"
    ),
    "a record that cannot be understood stops its shard": Break(
        root, "ledger_write", "except Exception as crash", "except AssertionError as crash"
    ),
    "what cannot be understood is not put aside": Break(
        Publisher, "publish", "not self._set_aside(write, problem)", "False"
    ),
    "what the bus refuses for ever stops its shard": Break(
        events,
        "_outcome",
        "Publication.NOT_NOW if code in _NOT_NOW else Publication.REFUSED",
        "Publication.NOT_NOW",
    ),
    "what the bus does not take now is put aside": Break(
        events,
        "_outcome",
        "Publication.NOT_NOW if code in _NOT_NOW else Publication.REFUSED",
        "Publication.REFUSED",
    ),
    "the answer to each event is not looked at": Break(
        events, "_outcome", "if code is None", "if True"
    ),
    "one call has several events of one notification": Break(
        publishing,
        "_call",
        "call.setdefault(event.key, position)",
        "call[str(position)] = position",
    ),
    "a batch is done though the bus did not take all of it": Break(
        root.PublishStatusEvents, "handle", "[] if again is None else", "[] if True else"
    ),
    "the checkpoint is set behind what was not published": Break(
        Publisher,
        "_publish_events",
        "for write, _ in pending.values()",
        "for write, _ in list(pending.values())[-1:]",
    ),
}

# What interleavings come upon too seldom, and the story that finds it: with a sandbox killed, or a
# call that fails, at each of its calls.
IN_STORIES = {
    "what was put on the queue leaves the index before SQS has it": (
        "receipt: capped, sent again",
        Break(
            Waking,
            "_wake",
            "taken = self.requests.wake(entries)",
            "[self.ledger.woken(entry) for entry in entries]\n"
            "        taken = self.requests.wake(entries)",
        ),
    ),
    "what SQS does not take leaves the index": (
        "receipt: capped, sent again",
        Break(Waking, "_wake", "for entry in taken:", "for entry in entries:"),
    ),
    "what starts again stays in the index": (
        "receipt: capped, until it is given up",
        Break(
            DynamoDbLedger,
            "_claim_as",
            "_AS_NEW if lapsed else _RESTART",
            '_AS_NEW if lapsed else _RESTART.replace(",\\n    wake_shard, wake_at", "")',
        ),
    ),
    "what is taken back stays in the index": (
        "receipt: capped, then cancelled",
        Break(
            DynamoDbNotifications,
            "cancel",
            "key, _CANCEL, AS_FOUND",
            'key, _CANCEL.replace(", wake_shard, wake_at", ""), AS_FOUND',
        ),
    ),
}
