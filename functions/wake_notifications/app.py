"""A schedule calls this every minute; it puts on the queue what has waited long enough."""

from typing import TYPE_CHECKING, Any

from notifier.entrypoints.wake_notifications import wake_notifications
from notifier.settings import WakeNotificationsSettings, read
from notifier.telemetry import logger, metrics

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_wake_notifications = wake_notifications(read(WakeNotificationsSettings))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Wake what is due."""
    return _wake_notifications.handle(context)
