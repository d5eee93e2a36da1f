"""A schedule calls this every 15 minutes; it asks BLiP for the templates of each bot."""

from typing import TYPE_CHECKING, Any

from notifier.entrypoints.sync_templates import sync_templates
from notifier.settings import SyncTemplatesSettings, read
from notifier.telemetry import logger, metrics

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_sync_templates = sync_templates(read(SyncTemplatesSettings))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Sync the registry."""
    return _sync_templates.handle(context)
