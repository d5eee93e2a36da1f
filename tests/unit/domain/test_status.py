"""The statuses: which stand for what, and how a notification ends for each reason."""

from itertools import permutations

from notifier.domain.failures import Reason
from notifier.domain.status import (
    SENT_OR_LATER,
    STARTS_BY_GENERATION,
    UNDELIVERED,
    Status,
    before,
    final_status,
    latest,
)

# The reason of a dead letter, and the status that the notification ends in.
ENDS = {
    "malformed": "rejected",
    "invalid": "rejected",
    "unknown_bot": "rejected",
    "id_conflict": "rejected",
    "expired": "expired",
    "not_a_phone_number": "rejected",
    "not_allowed": "rejected",
    "template_mismatch": "rejected",
    "template_unavailable": "rejected",
    "rejected": "rejected",
    "undelivered": "failed",
    "recipient_capped": "failed",
    "opted_out": "failed",
    "outcome_unknown": "failed",
    "retries_exhausted": "failed",
    "waited_too_long": "failed",
}


def test_statuses_are_those_of_the_contract() -> None:
    assert [status.value for status in Status] == [
        "claimed",
        "sending",
        "retrying",
        "unknown",
        "sent",
        "accepted",
        "dispatched",
        "waiting",
        "received",
        "consumed",
        "failed",
        "rejected",
        "expired",
        "cancelled",
    ]


def test_status_is_in_progress_or_with_blip_or_final() -> None:
    on_its_way = {Status.CLAIMED, Status.SENDING, Status.RETRYING, Status.UNKNOWN}

    apart = {Status.WAITING, Status.CANCELLED}
    assert set(Status) == on_its_way | SENT_OR_LATER | UNDELIVERED | apart
    assert UNDELIVERED | {Status.WAITING} == STARTS_BY_GENERATION
    assert not on_its_way & SENT_OR_LATER
    assert not on_its_way & UNDELIVERED
    assert not SENT_OR_LATER & UNDELIVERED


def test_every_reason_has_a_final_status() -> None:
    assert {reason.value: final_status(reason).value for reason in Reason} == ENDS


def test_every_failed_status_can_be_redriven() -> None:
    assert {final_status(reason) for reason in Reason} <= UNDELIVERED


RECEIPTS = (Status.ACCEPTED, Status.DISPATCHED, Status.RECEIVED, Status.CONSUMED)


def test_receipts_replace_only_earlier_statuses() -> None:
    on_its_way = {Status.CLAIMED, Status.SENDING, Status.RETRYING, Status.UNKNOWN}

    assert set(before(Status.SENT)) == on_its_way
    assert set(before(Status.ACCEPTED)) == {*on_its_way, Status.SENT}
    assert set(before(Status.DISPATCHED)) == {*on_its_way, Status.SENT, Status.ACCEPTED}
    # A delivery to the phone is a fact, even after an earlier failure.
    assert set(before(Status.RECEIVED)) == set(Status) - {Status.RECEIVED, Status.CONSUMED}
    assert set(before(Status.CONSUMED)) == set(Status) - {Status.CONSUMED}


def test_failure_replaces_everything_but_a_delivery_and_another_final_status() -> None:
    assert set(before(Status.FAILED)) == (
        set(Status) - STARTS_BY_GENERATION - {Status.CANCELLED, Status.RECEIVED, Status.CONSUMED}
    )
    assert before(Status.WAITING) == before(Status.FAILED)


def test_receipts_end_in_the_same_status_in_any_order() -> None:
    for order in permutations((Status.SENT, *RECEIPTS)):
        standing = Status.SENDING
        for status in order:
            if standing in before(status):
                standing = status

        assert standing is Status.CONSUMED, order


def test_latest_of_several_reports_is_the_furthest() -> None:
    class Report:
        def __init__(self, status: Status) -> None:
            self.status = status

    reports = [Report(status) for status in (Status.ACCEPTED, Status.RECEIVED, Status.DISPATCHED)]

    assert latest(reports) is reports[1]
