"""A schedule calls this every minute; it asks BLiP for the receipts of bots without a webhook."""

from typing import TYPE_CHECKING, Any

from notifier.entrypoints.poll_receipts import poll_receipts
from notifier.settings import PollReceiptsSettings, read
from notifier.telemetry import logger, metrics

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_poll_receipts = poll_receipts(read(PollReceiptsSettings))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Ask for what is due."""
    return _poll_receipts.handle(context)
