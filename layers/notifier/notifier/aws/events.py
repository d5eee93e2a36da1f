"""Changes of status as EventBridge events. The phone number and the parameters stay out."""

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from botocore.exceptions import BotoCoreError, ClientError

from notifier.failures import crash_facts
from notifier.records import StatusEvent

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient

logger = logging.getLogger(__name__)

SOURCE = "blip-notifier"
DETAIL_TYPE = "Notification Status Changed"
MOST_ENTRIES = 10
_NAMESPACE = UUID("2f9b8a0c-9d0e-4f0c-9a4e-7b4f6c1f1f55")


class EventBridgeStatusEvents:
    """Tells upstream systems over an event bus. Thread-safe."""

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

    def put(self, events: Sequence[StatusEvent]) -> list[StatusEvent]:
        """Publish them; give back those that were not taken."""
        left: list[StatusEvent] = []
        for start in range(0, len(events), MOST_ENTRIES):
            some = events[start : start + MOST_ENTRIES]
            try:
                answer = self._eventbridge.put_events(
                    Entries=[
                        {
                            "EventBusName": self._bus,
                            "Source": SOURCE,
                            "DetailType": DETAIL_TYPE,
                            "Detail": json.dumps(detail(event, self._stack), ensure_ascii=False),
                        }
                        for event in some
                    ]
                )
            except (BotoCoreError, ClientError) as error:
                logger.error("status events not published", extra=crash_facts(error))
                left.extend(some)
            else:
                refused = [
                    event
                    for event, entry in zip(some, answer["Entries"], strict=True)
                    if "ErrorCode" in entry
                ]
                if refused:
                    logger.error("status events refused", extra={"count": len(refused)})
                left.extend(refused)
        return left


def detail(event: StatusEvent, stack: str) -> dict[str, object]:
    """Write the event's detail. Its `event_id` is the same however often it is told."""
    name = f"{event.key}/{event.generation}/{event.status}/{event.reason or ''}"
    return {
        "event_id": str(uuid5(_NAMESPACE, name)),
        "id": event.notification_id,
        "bot": event.bot,
        "status": event.status.value,
        "reason": event.reason.value if event.reason else None,
        "generation": event.generation,
        "time": datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds"),
        "metadata": event.metadata,
        "correlation_id": event.correlation_id,
        "stack": stack,
    }
