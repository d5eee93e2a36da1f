"""The event bus on EventBridge."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient

SOURCE = "blip-notifier"


class EventBus:
    """Publishes events on an event bus. Thread-safe."""

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

    def _put(self, detail_type: str, details: Sequence[Mapping[str, object]]) -> list[str | None]:
        """Publish up to ten events with one call; return a code for each that was not taken.

        Raises:
            BotoCoreError, ClientError: EventBridge does not answer, or refuses the call.
        """
        answer = self._eventbridge.put_events(
            Entries=[
                {
                    "EventBusName": self._bus,
                    "Source": SOURCE,
                    "DetailType": detail_type,
                    "Detail": json.dumps({**detail, "stack": self._stack}, ensure_ascii=False),
                }
                for detail in details
            ]
        )
        return [entry.get("ErrorCode") for entry in answer["Entries"]]
