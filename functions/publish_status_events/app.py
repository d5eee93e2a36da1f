"""The ledger's stream calls this; it publishes each change of status to the event bus.

The answer names the record from which the batch has to come again, where the bus does not answer.
"""

from typing import TYPE_CHECKING, Any

from notifier.entrypoints.publish_status_events import publish_status_events
from notifier.settings import PublishStatusEventsSettings, read
from notifier.telemetry import logger, metrics

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_publish_status_events = publish_status_events(read(PublishStatusEventsSettings))


@logger.inject_lambda_context(log_event=False)  # whatever the environment says: it has requests
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Publish one batch of the ledger's stream."""
    return _publish_status_events.handle(event, context)
