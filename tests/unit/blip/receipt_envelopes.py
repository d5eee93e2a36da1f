"""Receipts as BLiP sends them."""

from typing import Any

from notifier.blip.receipts import receipt
from notifier.domain.notification import ledger_key
from notifier.domain.receipts import FailureKind, Receipt

KEY = ledger_key("default", "order-1")
ADDRESS = "553199998888@wa.gw.msging.net"

FOR_GOOD = {
    "LIME": [
        *(
            1,
            11,
            12,
            13,
            14,
            15,
            16,
            17,
            18,
            21,
            22,
            23,
            24,
            25,
            26,
            27,
            31,
            32,
            35,
            41,
            43,
            44,
            51,
        ),
        *(60, 61, 62, 63, 64, 65, 66, 67, 71, 81, 82, 84, 87, 101),
    ],
    "on-premises": [
        *(400, 408, 410, 430, 431, 432, 433, 470, 480, 500),
        *(1000, 1001, 1002, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1014, 1017, 1018),
        *(1021, 1022, 1023, 1024, 1025, 1028, 2000, 2001, 2002, 2003, 2004, 2005),
    ],
    "Cloud": [
        *(0, 3, 10, 100, 190, 130497, 131005, 131008, 131009, 131021, 131030),
        *(131037, 131045, 131047, 131051, 131052, 131053),
        *(132000, 132001, 132005, 132007, 132008, 132012, 132016, 132068, 132069),
        *(133010, 133016, 135000, 137000),
    ],
}
LATER = {"LIME": [34, 85], "on-premises": [429, 1015], "Cloud": [4, 80007, 130429, 131056]}
UNREACHABLE = {"LIME": [33, 42, 83], "on-premises": [1013, 1026], "Cloud": [131062]}
PERHAPS_CAPPED = {"Cloud": [131026]}
CAPPED = {"on-premises": [472], "Cloud": [130472, 131049]}
ACCOUNT_LIMITED = {"on-premises": [471], "Cloud": [131048, 131063, 131064]}
TEMPLATE_PAUSED = {"Cloud": [132015]}
OPTED_OUT = {"Cloud": [131050]}
NUMBER_DOWN = {"on-premises": [402, 1031], "Cloud": [368, 131031, 131042]}
SPORADIC = {"on-premises": [1016], "Cloud": [2, 131000, 131016, 131057]}
POSSIBLY_SENT = {"LIME": [86]}

_KINDS = (
    (FailureKind.PERMANENT, FOR_GOOD),
    (FailureKind.RATE_LIMITED, LATER),
    (FailureKind.UNREACHABLE, UNREACHABLE),
    (FailureKind.PERHAPS_CAPPED, PERHAPS_CAPPED),
    (FailureKind.CAPPED, CAPPED),
    (FailureKind.ACCOUNT_LIMITED, ACCOUNT_LIMITED),
    (FailureKind.TEMPLATE_PAUSED, TEMPLATE_PAUSED),
    (FailureKind.OPTED_OUT, OPTED_OUT),
    (FailureKind.NUMBER_DOWN, NUMBER_DOWN),
    (FailureKind.SPORADIC, SPORADIC),
    (FailureKind.POSSIBLY_SENT, POSSIBLY_SENT),
)
LISTED = [code for _, families in _KINDS for codes in families.values() for code in codes]
TABLE = {code: kind for kind, families in _KINDS for codes in families.values() for code in codes}


def envelope(event: str = "failed", **members: Any) -> dict[str, Any]:
    """Return a receipt as BLiP posts it."""
    return {
        "id": KEY,
        "from": ADDRESS,
        "to": "bot@msging.net/instance",
        "event": event,
        "metadata": {"#message.to": ADDRESS},
    } | members


def failed(reason: object) -> Receipt:
    about = receipt(envelope(reason=reason))
    assert about is not None
    return about
