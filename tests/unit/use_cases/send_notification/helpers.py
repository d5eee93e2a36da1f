"""What several tests of sending do and read."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from notifier.domain.bots import Bot
from notifier.domain.failures import (
    Reason,
    Rejected,
    Unknown,
)
from notifier.domain.notification import ledger_key
from notifier.domain.receipts import Receipt
from notifier.domain.status import Status
from notifier.use_cases.send_notification.outcomes import Result
from tests.support.blip import raises
from tests.support.builders import KEY, OTHER_KEY, a_request
from tests.support.world import World

OTHER_PHONE = "+5511988887777"
DAY = 86_400

type Request = dict[str, Any]

KEYS = (KEY, OTHER_KEY)


def outcome(result: Result) -> str:
    return result.outcome.value


def key_of(body: Mapping[str, Any]) -> str:
    return ledger_key(body.get("bot", "default"), body["id"])


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def ends(world: World) -> list[tuple[str, str | None]]:
    """Return the dead letters: reason and the notification's id."""
    return [(letter.reason.value, letter.notification_id) for letter in world.dead_letters.letters]


def rejected(world: World, body: Request) -> None:
    world.blip.before_send = raises(Rejected(Reason.REJECTED, "no", code=21))
    world.sandbox().deliver(body)
    assert world.entry(body)["status"] == "rejected"


STAGES = ("before_look_up", "before_send")


def fail(world: World, stage: str, failure: Callable[[], Exception]) -> None:
    """Make every look-up, or every send, fail like this."""

    def strike(_: Bot) -> None:
        raise failure()

    setattr(world.blip, stage, strike)


def fix(world: World) -> None:
    for stage in STAGES:
        setattr(world.blip, stage, lambda _: None)


WINDOW = 900


def unknown(world: World, body: Request, *, stored: Status | None = None) -> None:
    """Send it, and lose the answer."""
    world.blip.before_send = raises(Unknown("no answer"))
    (result,) = world.sandbox().deliver(body)
    assert outcome(result) == "unknown"
    assert result.retry_in == pytest.approx(WINDOW, abs=1)
    assert world.entry(body)["status"] == "unknown"
    if stored is not None:
        message_id = world.blip.sent[-1].message_id
        world.blip.stored[message_id] = [Receipt(key_of(body), 1, stored)]


class Spread:
    """Replaces `random.uniform`: returns the upper bound and records both bounds."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def __call__(self, low: float, high: float) -> float:
        self.asked.append((low, high))
        return high


def refused(kind: str) -> list[Request]:
    """Return two different bodies under one id, which both are refused."""
    if kind == "id_conflict":
        return [a_request(id="order-1", to=f"+55119888877{number:02}") for number in range(2)]
    return [a_request(id="order-1", to=f"123{number}") for number in range(2)]
