"""What each of BLiP's receipts means, and whose it is.

The table is written out from the design and the providers' documents, not from the code.
"""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.blip.receipts import FAILED, Envelope, failure_code, kind, receipt, reduced
from notifier.domain.notification import message_id
from notifier.domain.receipts import FailureKind, Receipt
from notifier.domain.status import Status
from tests.unit.blip.receipt_envelopes import ADDRESS, KEY, LISTED, TABLE, envelope, failed

# --- The table ------------------------------------------------------------------------------------


def test_table_holds_every_code_once() -> None:
    assert sorted(LISTED) == sorted(FAILED)


@pytest.mark.parametrize(("code", "failure_kind"), TABLE.items())
def test_every_code_has_one_meaning(code: int, failure_kind: FailureKind) -> None:
    about = failed({"code": code, "description": "Something about +5531999998888"})

    assert (about.failure_kind, about.code) == (failure_kind, code)
    assert about.detail.startswith(f"BLiP reports reason {code}: ")
    assert "5531" not in about.detail


@pytest.mark.parametrize(("code", "failure_kind"), TABLE.items())
@pytest.mark.parametrize("behind", [{"code": 81}, {}])
def test_every_code_is_found_inside_the_description(
    code: int, failure_kind: FailureKind, behind: dict[str, int]
) -> None:
    about = failed(behind | {"description": f"(#{code}) It did not work"})

    assert (about.failure_kind, about.code) == (failure_kind, code)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ({"code": 81, "description": "Message undeliverable 131026"}, 131026),
        ({"code": 81, "description": "131056: (131056) pair rate"}, 131056),
        ({"code": 81, "description": "error=80007;"}, 80007),
        # An unknown code is more specific than a vague one; a known one is the most specific.
        ({"code": 81, "description": "code 139999"}, 139999),
        ({"code": 81, "description": "code 139999, then 131026"}, 131026),
        ({"code": 81, "description": "(#101) 131026"}, 131026),
        ({"code": 101, "description": "131026"}, 131026),
        ({"code": 100, "description": "(#100) Invalid parameter (132012)"}, 132012),
        # What WhatsApp says itself is not put in question.
        ({"code": 131026, "description": "(#131056)"}, 131026),
        ({"code": 1026, "description": "131056"}, 1026),
        ({"code": 7777777, "description": "131056"}, 131056),
        ({"code": 1, "description": "131056"}, 131056),
        ({"code": 7777777, "description": "no number"}, 7777777),
        # Digits of something else.
        ({"code": 81, "description": "to 5513102688880 at 1310261234"}, 81),
        ({"code": 81, "description": "trace a131026b, 1.31026"}, 81),
        ({"code": 81, "description": "in 2001, error 1026"}, 81),
        ({"code": 81, "description": "#12345678"}, 81),
        ({"code": 81, "description": None}, 81),
        ({"code": 81, "description": ["131026"]}, 131026),
        ({"code": 81}, 81),
        ({"code": -1}, -1),
        # No code at all.
        ({"code": True}, None),
        ({"code": False, "description": "131026"}, 131026),
        ({"code": "131026"}, None),
        ({"code": 131026.0}, None),
        ({"code": None}, None),
        ({"code": 10**40}, None),
        ({"code": [131026]}, None),
        ({"description": "Destination not found"}, None),
        ({}, None),
        (None, None),
        ("131026", None),
        ([131026], None),
        (131026, None),
    ],
    ids=repr,
)
def test_most_specific_code_is_found(reason: object, code: int | None) -> None:
    assert failure_code(reason) == code


@pytest.mark.parametrize("reason", [None, {}, {"code": True}, {"description": "out of luck"}])
def test_failure_without_a_code_is_permanent(reason: object) -> None:
    assert failed(reason) == Receipt(
        KEY, 1, Status.FAILED, FailureKind.PERMANENT, None, "BLiP reports a failure without a code"
    )
    assert receipt(envelope()) == failed(reason)


def test_unknown_code_is_permanent() -> None:
    assert failed({"code": 9999, "description": "New"}) == Receipt(
        KEY,
        1,
        Status.FAILED,
        FailureKind.PERMANENT,
        9999,
        "BLiP reports reason 9999: a code that we do not know",
    )


# --- Whose receipt it is --------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["accepted", "dispatched", "received", "consumed"])
@pytest.mark.parametrize("prefix", ["", "fwd:", "fwd:fwd:", "fwd:fwd:fwd:"])
@pytest.mark.parametrize("generation", [1, 2, 17, 123_456_789])
def test_receipt_names_its_notification_and_generation(
    event: str, prefix: str, generation: int
) -> None:
    posted = envelope(event, id=prefix + message_id(KEY, generation))

    assert receipt(posted) == Receipt(KEY, generation, Status(event))
    # A reason beside another event than `failed` says nothing.
    assert receipt(posted | {"reason": {"code": 1}}) == Receipt(KEY, generation, Status(event))


@pytest.mark.parametrize(
    "foreign",
    [
        "",
        "fwd:",
        "wamid.HBgNNTUzMTk5OTk5ODg4OBUCABEYEj",
        "1b4e28ba-2fa1-4d3b-a3f5-ef19b5a7633b",  # version 4, as BLiP's SDKs make them
        str(UUID(KEY)).upper(),
        f"{KEY}:0",
        f"{KEY}:01",
        f"{KEY}:-1",
        f"{KEY}:",
        f"{KEY}:2:3",
        f"{KEY}:1234567890",
        f"{KEY}:²",
        f"{KEY} ",
        f"{KEY}\n",
        f"x{KEY}",
        f"{KEY}:fwd:",
        f"FWD:{KEY}",
        KEY.replace("-", ""),
        "\ud800",
    ],
)
def test_receipt_of_another_message_is_ignored(foreign: str) -> None:
    assert kind(envelope("received", id=foreign)) is Envelope.RECEIPT
    assert receipt(envelope("received", id=foreign)) is None


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        *((envelope(event), Envelope.RECEIPT) for event in ("accepted", "dispatched", "received")),
        *((envelope(event), Envelope.RECEIPT) for event in ("consumed", "failed")),
        *((envelope(event), Envelope.OTHER) for event in ("validated", "authorized", "deleted")),
        ({"id": "1", "from": ADDRESS, "type": "text/plain", "content": "Oi"}, Envelope.OTHER),
        ({"type": "text/plain", "content": "Oi", "event": "received", "id": KEY}, Envelope.OTHER),
        ({"type": "text/plain", "content": None}, Envelope.OTHER),
        ({"id": "1", "method": "get", "uri": "/ping"}, Envelope.OTHER),
        ({"id": "1", "method": "get", "status": "success"}, Envelope.OTHER),
        ({"state": "established"}, Envelope.OTHER),
        (envelope("exploded"), Envelope.INVALID),
        (envelope("Received"), Envelope.INVALID),
        (envelope(""), Envelope.INVALID),
        (envelope() | {"event": ["received"]}, Envelope.INVALID),
        (envelope() | {"event": {"received": 1}}, Envelope.INVALID),
        (envelope() | {"event": None}, Envelope.INVALID),
        (envelope() | {"event": 5}, Envelope.INVALID),
        (envelope() | {"id": None}, Envelope.INVALID),
        (envelope() | {"id": 5}, Envelope.INVALID),
        ({"event": "received"}, Envelope.INVALID),
        ({}, Envelope.INVALID),
        ([], Envelope.INVALID),
        ([envelope()], Envelope.INVALID),
        (None, Envelope.INVALID),
        ("received", Envelope.INVALID),
        (5, Envelope.INVALID),
    ],
)
def test_every_kind_of_envelope_is_recognised(document: object, expected: Envelope) -> None:
    assert kind(document) is expected
    if expected is not Envelope.RECEIPT:
        assert receipt(document) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.just(KEY) | st.just(f"fwd:{KEY}:2") | JSON,
            "event": st.sampled_from(["failed", "received", "deleted"]) | JSON,
            "reason": JSON | st.fixed_dictionaries({"code": JSON, "description": JSON}),
            "content": JSON,
        },
    )
    | JSON
)
def test_no_document_raises_an_error(document: object) -> None:
    about = receipt(document)

    assert (about is not None) <= (kind(document) is Envelope.RECEIPT)
    if kind(document) is Envelope.RECEIPT:
        assert isinstance(document, dict)
        assert receipt(reduced(document)) == about


def test_queued_envelope_holds_no_phone_number() -> None:
    posted = envelope(reason={"code": 131026, "description": "gone"})

    assert reduced(posted) == {
        "id": KEY,
        "event": "failed",
        "reason": {"code": 131026, "description": "gone"},
    }
    assert receipt(reduced(posted)) == receipt(posted)
    assert reduced(envelope("received")) == {"id": KEY, "event": "received"}
