"""BLiP calls this over HTTP with each receipt; it checks the secret and puts it on a queue."""

from typing import TYPE_CHECKING, Any

from notifier.entrypoints.receive_receipt import receive_receipt
from notifier.settings import ReceiveReceiptSettings, read
from notifier.telemetry import logger, metrics

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_receive_receipt = receive_receipt(read(ReceiveReceiptSettings))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Answer one request of the HTTP API."""
    return _receive_receipt.handle(event)
