"""Requests, notifications and records of the ledger's stream, as tests need them."""

import json
from typing import Any
from uuid import uuid4

from boto3.dynamodb.types import TypeSerializer

from notifier.aws.table import Item
from notifier.contract.parse import parse
from notifier.domain.bots import Bot
from notifier.domain.dead_letters import FailureDetails
from notifier.domain.ledger_entries import LedgerEntry
from notifier.domain.notification import Notification, QueuedRequest, ledger_key
from notifier.domain.status import Status

# The key of the bots below: base64 of bot:secret.
KEY = "Key Ym90OnNlY3JldA=="
OTHER_KEY = "Key Ym90Om90aGVy"
# What no log may hold.
PHONE = "+5531999998888"
MARIA = "Maria Aparecida"

_typed = TypeSerializer().serialize


def a_failure(**changes: Any) -> FailureDetails:
    """Return the details of a failure; `changes` are its attributes."""
    details: dict[str, Any] = {
        "detail": "It went wrong.",
        "code": None,
        "template": "order_shipped",
        "phase": "send",
        "attempts": 1,
        "possibly_sent": False,
        "redrives": 0,
    }
    return FailureDetails(**details | changes)


def a_request(**changes: Any) -> dict[str, Any]:
    """Return a valid request with an id of its own, to PHONE, and with MARIA as a parameter."""
    return {
        "id": f"order-{uuid4()}",
        "to": PHONE,
        "template": {"name": "order_shipped", "language": "pt_BR", "body": [MARIA, "981"]},
    } | changes


def a_notification(
    queued: QueuedRequest | None = None, *, generation: int | None = None, **changes: Any
) -> Notification:
    """Return such a request, parsed; its id is order-1."""
    if queued is None:
        body = json.dumps({"id": "order-1"} | a_request(**{"id": "order-1"} | changes))
        queued = QueuedRequest("record", "receipt", body, 1_800_000_000.0, generation)
    parsed = parse(queued.body)
    key = ledger_key(parsed.request.bot, parsed.request.id)
    return Notification(queued, parsed.request, parsed.content_hash, key)


def an_entry(**changes: Any) -> LedgerEntry:
    """Return an entry of the ledger that waits for its next generation."""
    attributes: dict[str, Any] = {
        "key": ledger_key("default", "order-1"),
        "notification_id": "order-1",
        "bot": "default",
        "status": Status.WAITING,
        "generation": 1,
        "content_hash": "1:hash",
        "attempts": 1,
        "lease_until": 0.0,
        "in_flight_until": 0.0,
        "template": "order_shipped",
        "body": "{}",
    }
    return LedgerEntry(**attributes | changes)


def a_bot(**changes: Any) -> Bot:
    """Return a bot with a plan of 20 messages a second."""
    return Bot(**{"name": "default", "key": KEY, "messages_per_second": 20} | changes)


def stream_record(key: str, number: int, before: Item, after: Item) -> Item:
    """Return a write as Lambda's event of the ledger's stream has it; an empty item is none."""
    images = {
        name: {attribute: _typed(value) for attribute, value in ({"key": key} | item).items()}
        for name, item in (("OldImage", before), ("NewImage", after))
        if item
    }
    return {"dynamodb": {"Keys": {"key": {"S": key}}, "SequenceNumber": str(number)} | images}
