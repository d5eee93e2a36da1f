"""The refusals that the ledger keeps."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import (
    Change,
    NotificationDetails,
    Refusal,
)
from notifier.domain.notification import ledger_key
from notifier.domain.status import Status
from tests.integration.aws.backends import DAY, Backend, RealOnes, bring_to, entry
from tests.support.builders import a_notification


def refuse(backend: Backend, *messages: str, **changes: Any) -> None:
    for message in messages:
        facts = {"record_id": message, "reason": Reason.INVALID} | changes
        backend.refusals().keep("default", "order-1", Refusal(**facts))


REFUSED = f"{ledger_key('default', 'order-1')}:refused"


def test_refused_request_has_its_own_ledger_entry(backend: Backend) -> None:
    notification = a_notification()
    bring_to(backend, notification, Status.SENT)
    before = entry(backend, notification)
    now = round(backend.clock.now() * 1000)

    refuse(backend, "message-1", metadata={"order": "982"}, reason=Reason.ID_CONFLICT)
    backend.clock.advance(1)
    refuse(backend, "message-2", correlation_id="trace-1")

    assert backend.item("ledger", REFUSED) == {
        "key": REFUSED,
        "id": "order-1",
        "bot": "default",
        "status": "rejected",
        "refusals": [
            ["message-1", "id_conflict", now, None, {"order": "982"}],
            ["message-2", "invalid", now + 1000, "trace-1", {}],
        ],
        "updated_at": now + 1000,
        "expires_at": round(backend.clock.now() + 14 * DAY),
    }
    # The notification with this id is not affected.
    assert entry(backend, notification) == before


def test_only_the_same_message_counts_as_refused_before(backend: Backend) -> None:
    refusals = backend.refusals()
    assert not refusals.holds("default", "order-1", "message-1")
    refuse(backend, "message-1", "message-2")

    for message in ("message-1", "message-2"):
        assert refusals.holds("default", "order-1", message)
    assert not refusals.holds("default", "order-1", "message-3")
    assert not refusals.holds("default", "order-2", "message-1")
    assert not refusals.holds("clinic", "order-1", "message-1")


def test_last_ten_refusals_are_kept(backend: Backend) -> None:
    messages = [f"message-{number}" for number in range(13)]
    for number, message in enumerate(messages):
        refuse(backend, message)
        kept = [refusal[0] for refusal in backend.item("ledger", REFUSED)["refusals"]]
        assert kept == messages[: number + 1][-10:]
        backend.clock.advance(1)

    assert not backend.refusals().holds("default", "order-1", "message-2")
    assert backend.refusals().holds("default", "order-1", "message-3")
    assert backend.item("ledger", REFUSED)["expires_at"] == round(
        backend.clock.now() - 1 + 14 * DAY
    )


def test_simultaneous_refusals_of_several_sandboxes_are_all_kept(real: RealOnes) -> None:
    refuse(cast("Backend", real), *(f"message-{number}" for number in range(8)))
    start = threading.Barrier(5)

    def refuse_one(number: int) -> None:
        start.wait()
        refuse(cast("Backend", real), f"at once {number}")

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(refuse_one, range(5)))

    kept = [refusal[0] for refusal in real.item("ledger", REFUSED)["refusals"]]
    assert len(kept) == 10
    assert kept[:5] == [f"message-{number}" for number in range(3, 8)]
    assert set(kept[5:]) == {f"at once {number}" for number in range(5)}


def test_refusals_are_read_with_their_reasons(backend: Backend) -> None:
    refusals, began = backend.refusals(), backend.clock.now()
    assert refusals.details("default", "order-1") is None
    refuse(backend, "message-1", metadata={"order": "982"}, reason=Reason.ID_CONFLICT)
    backend.clock.advance(1)
    refuse(backend, "message-2", correlation_id="trace-1")

    assert refusals.details("default", "order-1") == NotificationDetails(
        notification_id="order-1",
        bot="default",
        status=Status.REJECTED,
        generation=0,
        attempts=0,
        timeline=(
            Change(Status.REJECTED, 0, began, Reason.ID_CONFLICT),
            Change(Status.REJECTED, 0, began + 1, Reason.INVALID),
        ),
        created_at=began,
        updated_at=began + 1,
        reason=Reason.INVALID,
        metadata={},
        correlation_id="trace-1",
    )
    assert refusals.details("clinic", "order-1") is None
    backend.clock.advance(14 * DAY - 1)
    assert refusals.details("default", "order-1") is not None
    backend.clock.advance(1)
    assert refusals.details("default", "order-1") is None
