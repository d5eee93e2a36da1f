"""The ledger's stream calls this; it publishes the status events that changes of the ledger stand for.

Records that cannot be published now are named in the answer; the stream hands them over again.
"""

from typing import TYPE_CHECKING, Any

from notifier.runtime.publishing import publish_status_events
from notifier.settings import PublishStatusEventsSettings, read
from notifier.telemetry import logger, metrics

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_publish_status_events = publish_status_events(read(PublishStatusEventsSettings))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Publish one batch of the ledger's stream."""
    return _publish_status_events.handle(event)
