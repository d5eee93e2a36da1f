"""The receipts queue calls this; it moves the ledger forward and does what follows from it.

Receipts that cannot be recorded now are named in the answer and come back.
"""

from typing import TYPE_CHECKING, Any

from notifier.entrypoints.record_receipt import record_receipt
from notifier.settings import RecordReceiptSettings, read
from notifier.telemetry import logger, metrics

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_record_receipt = record_receipt(read(RecordReceiptSettings))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Record one batch of the receipts queue."""
    return _record_receipt.handle(event)
