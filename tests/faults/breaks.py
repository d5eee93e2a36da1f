"""Places where the product keeps its promises, and how to break each on purpose.

What never finds a bug proves nothing: the interleavings have to find every one of these.
"""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from notifier.aws.ledger import DynamoDbLedger
from notifier.delivery import Delivery
from notifier.receipts import Receipts


@dataclass(frozen=True)
class Break:
    """One method with other code in it."""

    owner: type
    method: str
    code: str
    becomes: str

    @contextmanager
    def made(self) -> Iterator[None]:
        """Break it for a while."""
        source = textwrap.dedent(inspect.getsource(getattr(self.owner, self.method)))
        assert self.code in source, f"{self.method} has no {self.code!r} any more"
        names: dict[str, Any] = {}
        broken = source.replace(self.code, self.becomes)
        exec(broken, vars(sys.modules[self.owner.__module__]), names)  # noqa: S102 - that is the point
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
        DynamoDbLedger, "settle_sent", "before(Status.SENT)", "list(Status)"
    ),
    "a receipt is written over whatever stands there": Break(
        DynamoDbLedger, "advance", "before(status)", "list(Status)"
    ),
    "a redrive of any generation starts the next one": Break(
        DynamoDbLedger, "_claim_as", 'found["generation"] == asked_generation', "asked_generation"
    ),
    "nobody looks at `valid_until` after the wait for a slot": Break(
        Delivery, "_send", "self._wanted(notification, bot)", "pass"
    ),
    "an unknown outcome is retried": Break(
        Delivery,
        "_try",
        "self._ledger.settle_unknown(claim)",
        "self._ledger.release(claim, attempted=True)",
    ),
    "an unknown is sent again without asking": Break(
        Delivery,
        "_settle_unknown",
        "receipts = self._ask(bot, lambda bot: self._history(asked_about, bot, turn))",
        "return self._denied(notification, claim)",
    ),
    "the history is asked before it can know": Break(
        Delivery, "_claim", " + self._policy.settle_window_seconds", ""
    ),
    "an empty history is believed without a control": Break(
        Delivery, "_not_shown", "if not resend or", "if True or"
    ),
    "a request is given up before its dead letter is there": Break(
        Delivery,
        "_give_up",
        "self._dead_letter(",
        "self._ledger.end(claim, status, failure.reason, failure.code)\n    self._dead_letter(",
    ),
    "a failed receipt is recorded before its dead letter is there": Break(
        Receipts,
        "_failed",
        "self._dead_letter(",
        "self.ledger.fail(receipt, Reason.UNDELIVERED, postponed=False)\n    self._dead_letter(",
    ),
    "what crashed does not come back": Break(
        Delivery, "_outcome", "come_back_in=self._again(queued, 30, 60)", "come_back_in=None"
    ),
}
