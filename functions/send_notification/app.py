"""The requests queue calls this with up to ten requests; it sends what can be sent now.

Records that have to come back are named in the answer (partial batch response), and stay invisible
for as long as they have to wait. Requests that cannot be delivered go to the dead-letter queue.
"""

from typing import TYPE_CHECKING, Any

from notifier.entrypoints.send_notification import send_notification
from notifier.settings import SendNotificationSettings, read
from notifier.telemetry import logger, metrics

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_send_notification = send_notification(read(SendNotificationSettings))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Deliver one batch of the requests queue."""
    return _send_notification.handle(event, context)
