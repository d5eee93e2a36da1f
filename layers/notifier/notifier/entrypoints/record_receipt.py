"""Builds the function RecordReceipt: receipts queue -> ledger, dead letters."""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from notifier import telemetry
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.identities import DynamoDbIdentities
from notifier.aws.queues import DeadLettersQueue
from notifier.aws.receipts_ledger import DynamoDbReceiptsLedger
from notifier.aws.table import Table
from notifier.aws.templates import DynamoDbTemplates
from notifier.aws.waiting_ledger import DynamoDbWaitingLedger
from notifier.blip.receipts import receipt
from notifier.domain.failures import crash_facts
from notifier.domain.receipts import Receipt
from notifier.entrypoints.environment import AWS, MAX_THREADS, BatchCrashed, SystemClock, boto3
from notifier.settings import RecordReceiptSettings
from notifier.use_cases.record_receipt import ReceiptOutcome, Receipts

logger = logging.getLogger(__name__)


class RecordReceipt:
    """Takes the event of the receipts queue and answers with what has to come back.

    Attributes:
        close: ends the threads, where several are built in one process.
    """

    def __init__(
        self, receipts: Receipts, meter: telemetry.Meter, threads: ThreadPoolExecutor
    ) -> None:
        self._receipts = receipts
        self._meter = meter
        self._threads = threads
        self.close = threads.shutdown

    def handle(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Record a batch: notifications side by side, the receipts of each in their order.

        Raises:
            BatchCrashed: not one receipt could be recorded, for a fault of ours or of AWS.
        """
        outcomes: list[ReceiptOutcome] = []
        failed: list[str] = []
        crashed = 0
        by_key: dict[str, list[tuple[str, Receipt]]] = defaultdict(list)
        for record in event["Records"]:
            try:
                document = json.loads(record["body"])
                about = receipt(document)
            except (ValueError, RecursionError):
                logger.error("not JSON", extra={"record_id": record["messageId"]})
                failed.append(record["messageId"])
                continue
            if about is None:
                outcomes.append(ReceiptOutcome.FOREIGN)
            else:
                about = replace(about, bots=tuple(document.get("bots", ())))
                by_key[about.key].append((record["messageId"], about))
        for recorded, left, crashes in self._threads.map(self._record, by_key.values()):
            outcomes.extend(recorded)
            failed.extend(left)
            crashed += crashes
        self._meter.flush()
        telemetry.count(outcomes)
        telemetry.count(["receipt_comes_back"] * len(failed))
        if crashed and crashed == len(event["Records"]):
            raise BatchCrashed
        return {"batchItemFailures": [{"itemIdentifier": record_id} for record_id in failed]}

    def _record(
        self, receipts: list[tuple[str, Receipt]]
    ) -> tuple[list[ReceiptOutcome], list[str], int]:
        """Record one notification's receipts. What cannot be recorded now hurts no other.

        Return the outcomes, the records that come back, and how many of those crashed.
        """
        outcomes: list[ReceiptOutcome] = []
        failed: list[str] = []
        crashed = 0
        for record_id, about in receipts:
            try:
                outcomes.append(self._receipts.record(about))
            except Exception as crash:  # noqa: BLE001 - whatever it was, it hurts this one only
                facts = {"key": about.key, "record_id": record_id, **crash_facts(crash)}
                logger.error("receipt not recorded", extra=facts)
                failed.append(record_id)
                crashed += 1
        return outcomes, failed, crashed


def record_receipt(settings: RecordReceiptSettings) -> RecordReceipt:
    """Build what the function needs."""
    clock = SystemClock()
    meter = telemetry.Meter()
    dynamodb = boto3.client("dynamodb", config=AWS)
    ledger_table = Table(dynamodb, settings.ledger_table)
    identities_table = Table(dynamodb, settings.identities_table)
    templates = DynamoDbTemplates(identities_table, clock.now)
    receipts = Receipts(
        ledger=DynamoDbReceiptsLedger(ledger_table, clock.now),
        waiting=DynamoDbWaitingLedger(ledger_table, clock.now),
        identities=DynamoDbIdentities(
            identities_table,
            templates=templates,
            now=clock.now,
            ttl_seconds=1,
            negative_ttl_seconds=1,
        ),
        bot_states=DynamoDbBotStates(identities_table, clock.now),
        templates=templates,
        dead_letters=DeadLettersQueue(
            boto3.client("sqs", config=AWS), settings.dead_letters_queue_url, clock.now
        ),
        meter=meter,
        now=clock.now,
    )
    return RecordReceipt(receipts, meter, ThreadPoolExecutor(MAX_THREADS))
