"""Changes of templates as EventBridge events."""

import logging
from datetime import UTC, datetime
from uuid import UUID, uuid5

from botocore.exceptions import BotoCoreError, ClientError

from notifier.aws.event_bus import EventBus
from notifier.domain.failures import crash_facts
from notifier.domain.templates import TemplateChange

logger = logging.getLogger(__name__)

DETAIL_TYPE = "Template Changed"
_NAMESPACE = UUID("b5f0e6c6-3f4d-4f43-9b0c-0d8f5f4a7a11")


class EventBridgeTemplateChanges(EventBus):
    """Publishes changes of templates. Thread-safe."""

    def put(self, change: TemplateChange) -> bool:
        """Publish a change; return whether EventBridge has taken it."""
        try:
            (code,) = self._put(DETAIL_TYPE, [_detail(change)])
        except (BotoCoreError, ClientError) as error:
            logger.error("template change refused", extra=crash_facts(error))
            return False
        if code is not None:
            logger.error("template change refused", extra={"code": code})
        return code is None


def _detail(change: TemplateChange) -> dict[str, object]:
    """Return the event's detail, without the stack.

    Its `event_id` is the same until the registry has the change.
    """
    parts = (change.bot, change.name, change.language, change.status, change.category)
    name = "/".join(str(part) for part in (*parts, change.stored_at))
    return {
        "event_id": str(uuid5(_NAMESPACE, name)),
        "bot": change.bot,
        "name": change.name,
        "language": change.language,
        "status": change.status.value,
        "previous_status": change.previous_status and change.previous_status.value,
        "category": change.category and change.category.value,
        "previous_category": change.previous_category and change.previous_category.value,
        "time": datetime.fromtimestamp(change.time, UTC).isoformat(timespec="milliseconds"),
    }
