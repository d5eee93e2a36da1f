"""`publish --wait`: how a request is followed through the ledger to its end."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from functions.cli import following
from functions.cli.following import PATIENCE_SECONDS, Followed, follow
from functions.cli.publishing import Message, Published
from notifier.aws.outbox import REFUSED
from notifier.contract.parse import parse
from notifier.domain.notification import ledger_key

type Item = dict[str, Any]

BODY = json.dumps(
    {
        "id": "order-1",
        "to": "+5531900001001",
        "template": {"name": "order_shipped", "language": "pt_BR"},
    }
)
KEY = ledger_key("default", "order-1")
HASH = parse(BODY).content_hash


class Ledger:
    """Shows one state after the other, and then the last one for good; its clock is made up."""

    def __init__(self, *states: list[Item]) -> None:
        self._states = list(states)
        self.now = 0.0
        self.asked: list[list[str]] = []

    def read(self, keys: list[str]) -> Iterable[Item]:
        self.asked.append(keys)
        return self._states.pop(0) if len(self._states) > 1 else self._states[0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def an_item(status: str, **more: Any) -> Item:
    return {"key": KEY, "status": status, "generation": 1, "content_hash": HASH} | more


def followed(
    ledger: Ledger, *, wall: float = 1_900_000_000
) -> tuple[Followed, list[tuple[str | None, str | None]], bool]:
    """Follow a request; return it, its changes, and whether it has ended."""
    one = Followed(Published(Message("f.json", BODY, parse(BODY)), record_id="record-1"), KEY)
    changes: list[tuple[str | None, str | None]] = []
    ended = follow(
        ledger.read,
        [one],
        lambda changed: changes.append((changed.status, changed.reason)),
        sleep=ledger.sleep,
        now=lambda: ledger.now,
        wall=lambda: wall,
    )
    return one, changes, ended


def test_request_is_followed_until_it_is_delivered() -> None:
    ledger = Ledger(
        [], [an_item("sending")], [an_item("sent")], [an_item("sent")], [an_item("received")]
    )

    one, changes, ended = followed(ledger)

    assert ended
    assert one.delivered
    assert changes == [("sending", None), ("sent", None), ("received", None)]
    assert ledger.asked[0] == [KEY, KEY + REFUSED]
    assert ledger.now == 4 * following.POLL_SECONDS


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("failed", "undelivered"),
        ("rejected", "unknown_bot"),
        ("expired", "expired"),
        ("cancelled", None),
    ],
)
def test_request_is_followed_until_it_fails(status: str, reason: str | None) -> None:
    one, changes, ended = followed(Ledger([an_item(status, reason=reason)]))

    assert (ended, one.ended, one.delivered) == (True, True, False)
    assert changes == [(status, reason)]


def test_request_that_met_a_rate_limit_goes_on_as_its_next_generation() -> None:
    waiting = an_item("waiting", wake_at=1_800_000_000_000)

    one, changes, _ = followed(
        Ledger([waiting], [an_item("sent", generation=2)], [an_item("consumed")])
    )

    assert changes == [("waiting", None), ("sent", None), ("consumed", None)]
    assert one.wakes_at is None

    assert one.delivered


def test_other_content_under_the_id_is_not_the_request() -> None:
    other = an_item("received", content_hash="1:other")
    refused = {"key": KEY + REFUSED, "refusals": [["record-1", "id_conflict", 0, None, {}]]}

    one, changes, _ = followed(Ledger([other], [other, refused]))

    assert changes == [("rejected", "id_conflict")]
    assert one.ended


def test_refusal_of_another_message_with_the_id_is_not_the_request() -> None:
    refused = {"key": KEY + REFUSED, "refusals": [["record-0", "invalid", 0, None, {}]]}

    _, changes, _ = followed(Ledger([refused], [refused, an_item("consumed")]))

    assert changes == [("consumed", None)]


def test_request_that_was_cancelled_before_it_came_has_ended() -> None:
    in_advance = {"key": KEY, "status": "cancelled", "generation": 0}

    one, _, _ = followed(Ledger([in_advance]))

    assert one.ended


def test_following_ends_when_all_that_is_left_waits_for_long() -> None:
    until = 1_800_000_000
    ledger = Ledger([an_item("sent")], [an_item("waiting", wake_at=until * 1000)])

    one, changes, ended = followed(ledger, wall=until - PATIENCE_SECONDS - 1)

    assert ended
    assert not one.ended
    assert changes == [("sent", None), ("waiting", None)]
    assert ledger.now == following.POLL_SECONDS * 2
    assert following._line(one).endswith("order-1  waiting until 2027-01-15T08:00:00Z")
    assert following._stage(one) == "waiting"


def test_following_ends_if_nothing_changes() -> None:
    ledger = Ledger([an_item("retrying")])

    _, changes, ended = followed(ledger)

    assert not ended
    assert changes == [("retrying", None)]
    assert PATIENCE_SECONDS < ledger.now < PATIENCE_SECONDS + 10
