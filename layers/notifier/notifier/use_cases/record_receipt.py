"""What a receipt does to the ledger, and what follows from it.

Effects come first, then the ledger: a crash in between repeats them, and a repetition is
recognised by notification, generation and status. Statuses only move forward, so receipts may come
twice, late and in any order.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.clock import Meter
from notifier.domain.dead_letters import DeadLetters, FailureDetails
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import LedgerEntry
from notifier.domain.receipts import FailureKind, Receipt
from notifier.domain.status import Status, before

logger = logging.getLogger(__name__)

# A rate limit is over after minutes; SQS delays by a quarter of an hour at most.
POSTPONED_SECONDS = (300, 900)

# What WhatsApp said of a message that was sent before, it may have said long ago.
NEWS_SECONDS = 3600


class Ledger(Protocol):
    """Of the ledger, what receipts need."""

    def read(self, key: str) -> LedgerEntry | None: ...
    def advance(self, receipt: Receipt) -> tuple[bool, LedgerEntry | None]: ...
    def fail(self, receipt: Receipt, reason: Reason, *, postponed: bool) -> bool: ...


class Identities(Protocol):
    """Of the identities, what receipts need."""

    def invalidate(self, recipient: tuple[str, str]) -> None: ...


class BotStates(Protocol):
    """Of the bots' items, what receipts need."""

    def number_down(self, bot: str, why: str) -> None: ...
    def number_in_trouble(self, bot: str, key: str, sent_at: float, why: str) -> bool: ...


class Requests(Protocol):
    """The queue that requests come from."""

    def enqueue_next_generation(
        self, body: str, *, bot: str, generation: int, redrives: int, delay_seconds: int
    ) -> None: ...


class ReceiptOutcome(StrEnum):
    """What a receipt came to; counted."""

    MOVED = "receipt_recorded"
    REPEATED = "receipt_repeated"
    FOREIGN = "receipt_foreign"
    DEAD_LETTER = "receipt_dead_letter"
    POSTPONED = "receipt_postponed"
    # Counted with those that the webhook refuses by itself, and rings the same alarm.
    OTHER_BOT = "webhook_unauthorized"


@dataclass(frozen=True, slots=True)
class Receipts:
    """Records receipts, one at a time; its parts may be shared by threads."""

    ledger: Ledger
    identities: Identities
    bot_states: BotStates
    requests: Requests
    dead_letters: DeadLetters
    meter: Meter
    now: Callable[[], float]
    uniform: Callable[[float, float], float] = random.uniform

    def record(self, receipt: Receipt) -> ReceiptOutcome:
        """Do what a receipt asks for."""
        if receipt.status is Status.FAILED:
            entry = self.ledger.read(receipt.key)
            if entry is None:
                return ReceiptOutcome.FOREIGN
            if not receipt.may_be_of(entry.bot):
                return self._other_bot(receipt, entry)
            if receipt.generation == entry.generation and entry.status in before(Status.FAILED):
                return self._failed(receipt, entry)
        moved, entry = self.ledger.advance(receipt)
        if entry is None:
            return ReceiptOutcome.FOREIGN
        if not receipt.may_be_of(entry.bot):
            return self._other_bot(receipt, entry)
        if moved and receipt.status is Status.RECEIVED and entry.sent_at:
            self.meter.took("sent_to_received", self.now() - entry.sent_at)
        return ReceiptOutcome.MOVED if moved else ReceiptOutcome.REPEATED

    def _other_bot(self, receipt: Receipt, entry: LedgerEntry) -> ReceiptOutcome:
        """Drop a receipt that was shown with the secret of another bot.

        With that secret its holder must not end notifications of this bot: ids can be guessed.
        """
        facts = {"key": receipt.key, "bot": entry.bot, "shown": receipt.bots}
        logger.warning("receipt with the secret of another bot", extra=facts)
        return ReceiptOutcome.OTHER_BOT

    def _failed(self, receipt: Receipt, entry: LedgerEntry) -> ReceiptOutcome:
        """End a generation that was not delivered: once more later, or dead letter."""
        if receipt.failure_kind is FailureKind.UNREACHABLE:
            self._forget_identity(entry)
        if receipt.failure_kind is FailureKind.SPORADIC and self._is_news(entry):
            self.bot_states.number_in_trouble(entry.bot, receipt.key, entry.sent_at, receipt.detail)
        once_more = receipt.failure_kind in {FailureKind.RATE_LIMITED, FailureKind.SPORADIC}
        if once_more and not _is_second_try(entry):
            return self._postpone(receipt, entry)
        if receipt.failure_kind is FailureKind.NUMBER_DOWN and self._is_news(entry):
            self.bot_states.number_down(entry.bot, receipt.detail)
        self._dead_letter(receipt, entry)
        self.ledger.fail(receipt, Reason.UNDELIVERED, postponed=False)
        return ReceiptOutcome.DEAD_LETTER

    def _forget_identity(self, entry: LedgerEntry) -> None:
        """Drop what is known of a recipient who cannot be reached under it."""
        try:
            recipient = parse(entry.body).request.to
        except InvalidRequest:
            return  # the contract has changed since: the identity ends with its time to live
        self.identities.invalidate((entry.bot, recipient))

    def _is_news(self, entry: LedgerEntry) -> bool:
        """Return whether a receipt may say how the bot's number is now."""
        return not entry.sent_at or self.now() - entry.sent_at < NEWS_SECONDS

    def _postpone(self, receipt: Receipt, entry: LedgerEntry) -> ReceiptOutcome:
        """Put the request back for one more generation: the limit was not the message's fault."""
        self.requests.enqueue_next_generation(
            entry.body,
            bot=entry.bot,
            generation=entry.generation,
            redrives=entry.redrives,
            delay_seconds=round(self.uniform(*POSTPONED_SECONDS)),
        )
        self.ledger.fail(receipt, Reason.UNDELIVERED, postponed=True)
        return ReceiptOutcome.POSTPONED

    def _dead_letter(self, receipt: Receipt, entry: LedgerEntry) -> None:
        self.dead_letters.put(
            entry.body,
            Reason.UNDELIVERED,
            FailureDetails(
                detail=receipt.detail,
                code=receipt.code,
                template=entry.template,
                phase="receipt",
                attempts=entry.attempts,
                possibly_sent=receipt.failure_kind is FailureKind.POSSIBLY_SENT,
                redrives=entry.redrives,
            ),
            bot=entry.bot,
            notification_id=entry.notification_id,
            generation=entry.generation,
        )
        logger.warning(
            "dead letter",
            extra={
                "notification_id": entry.notification_id,
                "bot": entry.bot,
                "key": receipt.key,
                "correlation_id": entry.correlation_id,
                "reason": Reason.UNDELIVERED,
                "code": receipt.code,
            },
        )


def _is_second_try(entry: LedgerEntry) -> bool:
    """Return whether this generation is there because the one before met a rate limit."""
    return 0 < entry.postponed == entry.generation - 1
