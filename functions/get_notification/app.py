"""Producers call this over HTTP, signed: how does it go with a notification, and take it back."""

from typing import TYPE_CHECKING, Any

from notifier.entrypoints.get_notification import get_notification
from notifier.settings import GetNotificationSettings, read
from notifier.telemetry import logger

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_get_notification = get_notification(read(GetNotificationSettings))


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Answer one request of the HTTP API."""
    return _get_notification.handle(event, context)
