"""Changes of templates as EventBridge events."""

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from botocore.exceptions import BotoCoreError, ClientError

from notifier.aws.events import SOURCE
from notifier.domain.failures import crash_facts
from notifier.domain.templates import TemplateChange

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient

logger = logging.getLogger(__name__)

DETAIL_TYPE = "Template Changed"
_NAMESPACE = UUID("b5f0e6c6-3f4d-4f43-9b0c-0d8f5f4a7a11")


class EventBridgeTemplateChanges:
    """Publishes changes of templates on an event bus. Thread-safe."""

    def __init__(self, eventbridge: "EventBridgeClient", bus: str, stack: str) -> None:
        """Set up.

        Args:
            eventbridge: boto3's client.
            bus: the name of the bus.
            stack: the name of the stack, which each event carries: stages may share a bus.
        """
        self._eventbridge = eventbridge
        self._bus = bus
        self._stack = stack

    def put(self, change: TemplateChange) -> bool:
        """Publish a change; return whether EventBridge has taken it."""
        try:
            answer = self._eventbridge.put_events(
                Entries=[
                    {
                        "EventBusName": self._bus,
                        "Source": SOURCE,
                        "DetailType": DETAIL_TYPE,
                        "Detail": json.dumps(change_detail(change, self._stack)),
                    }
                ]
            )
        except (BotoCoreError, ClientError) as error:
            logger.error("template change refused", extra=crash_facts(error))
            return False
        (entry,) = answer["Entries"]
        if "ErrorCode" in entry:
            logger.error("template change refused", extra={"code": entry["ErrorCode"]})
        return "ErrorCode" not in entry


def change_detail(change: TemplateChange, stack: str) -> dict[str, object]:
    """Write the event's detail. Its `event_id` is the same until the registry has the change."""
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
        "stack": stack,
    }
