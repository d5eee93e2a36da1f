"""Builds the function ReceiveReceipt: BLiP's webhook. It answers at once and decides nothing."""

import base64
import json
import logging
from collections.abc import Mapping
from typing import Any

from notifier import telemetry
from notifier.aws.queues import ReceiptsQueue
from notifier.aws.webhook import EVERY_BOT, WebhookSecret
from notifier.blip.receipts import Envelope, kind, receipt, reduced
from notifier.entrypoints.environment import AWS, SystemClock, boto3
from notifier.settings import ReceiveReceiptSettings

logger = logging.getLogger(__name__)

# Receipts have a few hundred bytes; a chat message that comes to the same address may have more.
MAX_BYTES = 256 * 1024
HEADER = "x-receipts-secret"


class ReceiveReceipt:
    """Takes an HTTP request of the API and answers it."""

    def __init__(self, queue: ReceiptsQueue, secret: WebhookSecret) -> None:
        self._queue = queue
        self._secret = secret

    def handle(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Check the secret, and put receipts on their queue.

        Answers 401, 413 or 400 with one line, 200 with nothing else. BLiP sends everything of a bot
        to one address: what is no receipt, or not ours, is answered 200, counted and dropped. A
        receipt carries the names of the bots whose secret was shown, unless it is that of all.
        """
        bots = self._secret.bots(_shown(event))
        if not bots:
            telemetry.count(["webhook_unauthorized"])
            return _answer(401, f"the header {HEADER} is missing or wrong")
        body = _bytes(event)
        if len(body) > MAX_BYTES:
            telemetry.count(["webhook_too_large"])
            return _answer(413, f"the body is larger than {MAX_BYTES} bytes")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            telemetry.count(["webhook_invalid"])
            return _answer(400, "the body is not JSON")
        match kind(document):
            case Envelope.INVALID:
                telemetry.count(["webhook_invalid"])
                return _answer(400, "the body is not a LIME envelope with a known event and an id")
            case Envelope.OTHER:
                telemetry.count(["webhook_not_a_receipt"])
            case Envelope.RECEIPT if receipt(document) is None:
                telemetry.count(["webhook_foreign"])
            case Envelope.RECEIPT:
                about = reduced(document)
                if EVERY_BOT not in bots:
                    # A receipt does not say whose it is; the ledger knows it when it is recorded.
                    about["bots"] = bots
                self._queue.put(about)
                telemetry.count(["webhook_receipt"])
        return {"statusCode": 200}


def _shown(event: Mapping[str, Any]) -> bytes:
    """Return the secret that the caller shows; empty if there is none."""
    headers = event.get("headers") or {}
    shown = next((value for name, value in headers.items() if name.lower() == HEADER), "")
    return str(shown).encode(errors="replace")


def _bytes(event: Mapping[str, Any]) -> bytes:
    body = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        return str(body).encode(errors="replace")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:
        return b""


def _answer(status: int, line: str) -> dict[str, Any]:
    logger.warning("webhook refused", extra={"status": status, "why": line})
    return {
        "statusCode": status,
        "headers": {"Content-Type": "text/plain; charset=utf-8"},
        "body": line + "\n",
    }


def receive_receipt(settings: ReceiveReceiptSettings) -> ReceiveReceipt:
    """Build what the function needs."""
    return ReceiveReceipt(
        ReceiptsQueue(boto3.client("sqs", config=AWS), settings.receipts_queue_url),
        WebhookSecret(
            boto3.client("secretsmanager", config=AWS),
            settings.webhook_secret_arn,
            SystemClock.now,
        ),
    )
