"""What a producer may ask of a notification: how it goes, and to take it back."""

import logging
from dataclasses import dataclass
from typing import Protocol

from notifier.domain.ledger_entries import NotificationDetails
from notifier.domain.notification import ledger_key
from notifier.domain.status import SENT_OR_LATER, UNDELIVERED, Status

logger = logging.getLogger(__name__)


class Ledger(Protocol):
    """Of the ledger, what questions need."""

    def details(self, bot: str, notification_id: str) -> NotificationDetails | None: ...
    def cancel(self, bot: str, notification_id: str) -> NotificationDetails: ...


class Refusals(Protocol):
    """Refused requests, by the id that they bear."""

    def details(self, bot: str, notification_id: str) -> NotificationDetails | None: ...


class NotKnown(Exception):
    """The ledger holds nothing of it."""


class TooLate(Exception):
    """It cannot be cancelled; the text says why."""


@dataclass(frozen=True, slots=True)
class Notifications:
    """Answers about single notifications."""

    ledger: Ledger
    refusals: Refusals

    def get(self, bot: str, notification_id: str) -> NotificationDetails:
        """Return how it goes with a notification; where none has the id, what was refused under it.

        Raises:
            NotKnown: nothing is known of it.
        """
        details = self.ledger.details(bot, notification_id)
        details = details or self.refusals.details(bot, notification_id)
        if details is None:
            raise NotKnown(f"bot {bot} has no notification {notification_id}")
        return details

    def cancel(self, bot: str, notification_id: str) -> NotificationDetails:
        """Take a notification back that has not gone out; doing it twice is doing it once.

        Where no request has come yet, the status event follows when it comes.

        Raises:
            TooLate: it has gone out, may have, may be doing so, or has ended.
        """
        details = self.ledger.cancel(bot, notification_id)
        facts = {
            "notification_id": notification_id,
            "bot": bot,
            "key": ledger_key(bot, notification_id),
            "correlation_id": details.correlation_id,
            "status": details.status,
        }
        if details.status is not Status.CANCELLED:
            logger.info("not cancelled", extra=facts)
            raise TooLate(
                f"notification {notification_id} of bot {bot} cannot be cancelled:"
                f" {_what_stands_in_the_way(details)}"
            )
        logger.info("cancelled", extra=facts)
        return details


def _what_stands_in_the_way(details: NotificationDetails) -> str:
    if details.status in SENT_OR_LATER:
        return f"it has gone out, and is {details.status}"
    if details.status in UNDELIVERED:
        return f"it has ended, {details.status}"
    if details.status is Status.UNKNOWN:
        return "it may have gone out"
    return "it is being sent; ask again in a minute"
