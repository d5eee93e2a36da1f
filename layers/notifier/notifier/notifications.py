"""What a producer may ask of a notification: how it goes, and to take it back."""

import logging
from dataclasses import dataclass
from typing import Protocol

from notifier.lifecycle import SENT_OR_LATER, UNDELIVERED, Status
from notifier.records import Account
from notifier.request import ledger_key

logger = logging.getLogger(__name__)


class Ledger(Protocol):
    """Of the ledger, what questions need."""

    def account(self, bot: str, notification_id: str) -> Account | None: ...
    def cancel(self, bot: str, notification_id: str) -> Account: ...


class Refusals(Protocol):
    """Refused requests, by the id that they bear."""

    def account(self, bot: str, notification_id: str) -> Account | None: ...


class NotKnown(Exception):  # noqa: N818 - an answer like any other
    """The ledger holds nothing of it."""


class TooLate(Exception):  # noqa: N818 - likewise
    """It cannot be taken back, for the reason that the text gives."""


@dataclass(frozen=True, slots=True)
class Notifications:
    """Answers about single notifications."""

    ledger: Ledger
    refusals: Refusals

    def get(self, bot: str, notification_id: str) -> Account:
        """Return how it goes with a notification; where none has the id, what was refused under it.

        Raises:
            NotKnown: nothing is known of it.
        """
        account = self.ledger.account(bot, notification_id)
        account = account or self.refusals.account(bot, notification_id)
        if account is None:
            raise NotKnown(f"bot {bot} has no notification {notification_id}")
        return account

    def cancel(self, bot: str, notification_id: str) -> Account:
        """Take a notification back that has not gone out; doing it twice is doing it once.

        Where no request has come yet, the status event follows when it comes.

        Raises:
            TooLate: it has gone out, may have, may be doing so, or has ended.
        """
        account = self.ledger.cancel(bot, notification_id)
        facts = {
            "notification_id": notification_id,
            "bot": bot,
            "key": ledger_key(bot, notification_id),
            "correlation_id": account.correlation_id,
            "status": account.status,
        }
        if account.status is not Status.CANCELLED:
            logger.info("not cancelled", extra=facts)
            raise TooLate(
                f"notification {notification_id} of bot {bot} cannot be cancelled:"
                f" {_what_stands_in_the_way(account)}"
            )
        logger.info("cancelled", extra=facts)
        return account


def _what_stands_in_the_way(account: Account) -> str:
    if account.status in SENT_OR_LATER:
        return f"it has gone out, and is {account.status}"
    if account.status in UNDELIVERED:
        return f"it has ended, {account.status}"
    if account.status is Status.UNKNOWN:
        return "it may have gone out"
    return "it is being sent; ask again in a minute"
