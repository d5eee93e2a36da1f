"""Changes of status as EventBridge events. The phone number and the parameters stay out."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid5

from botocore.exceptions import BotoCoreError, ClientError

from notifier.aws.event_bus import EventBus
from notifier.domain.failures import crash_facts
from notifier.domain.status_events import Publication, StatusEvent

logger = logging.getLogger(__name__)

DETAIL_TYPE = "Notification Status Changed"
# What EventBridge answers for one entry while it takes none: it is throttled or broken, or the role
# or the bus's policy denies access, which AWS calls not retryable and an operator can change.
# Any other code is about the event itself: InvalidArgument, MalformedDetail, RedactionFailure.
# Source: the API references of PutEventsResultEntry, and of PutEvents for InternalException.
_NOT_NOW = {
    "ThrottlingException",
    "InternalFailure",
    "InternalException",
    "AccessDeniedException",
    "NotAuthorizedForSourceException",
    "NotAuthorizedForDetailTypeException",
    "InvalidAccountIdException",
}
# What it answers to a call whose entries it cannot take, as for one above its size ("Total size of
# the entries in the request is over the limit"). AWS documents no code for that.
_WRONG_CALL = {"ValidationException", "RequestEntityTooLargeException"}
_NAMESPACE = UUID("2f9b8a0c-9d0e-4f0c-9a4e-7b4f6c1f1f55")


class EventBridgeStatusEvents(EventBus):
    """Publishes status events. Thread-safe."""

    def put(self, events: Sequence[StatusEvent]) -> list[Publication]:
        """Publish up to ten events with one call; return what became of each."""
        try:
            codes = self._put(DETAIL_TYPE, [detail(event) for event in events])
        except (BotoCoreError, ClientError) as error:
            if not _is_refusal(error):
                logger.error("status events not published", extra=crash_facts(error))
                return [Publication.NOT_NOW] * len(events)
            if len(events) > 1:  # one of them is to blame
                return [outcome for event in events for outcome in self.put([event])]
            logger.error("status event refused", extra=crash_facts(error))
            return [Publication.REFUSED]
        return [_outcome(code) for code in codes]


def _is_refusal(error: BotoCoreError | ClientError) -> bool:
    """Return whether EventBridge refuses a call for what is in it."""
    return isinstance(error, ClientError) and error.response["Error"]["Code"] in _WRONG_CALL


def _outcome(code: str | None) -> Publication:
    if code is None:
        return Publication.TAKEN
    logger.error("status event refused", extra={"code": code})
    return Publication.NOT_NOW if code in _NOT_NOW else Publication.REFUSED


def detail(event: StatusEvent) -> dict[str, object]:
    """Return the event's detail, without the stack.

    Its `event_id` is the same however often it is published.
    """
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
        "category": event.category,
    }
