"""What a receipt does to the ledger, and what follows from it.

Effects come first, then the ledger: a crash in between repeats them, and a repetition is told
apart by notification, generation and status. Statuses only move forward, so receipts may come
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
from notifier.domain.dead_letters import DeadLetters
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
            standing = self.ledger.read(receipt.key)
            if standing is None:
                return ReceiptOutcome.FOREIGN
            if not receipt.may_be_of(standing.bot):
                return self._other_bot(receipt, standing)
            if receipt.generation == standing.generation and standing.status in before(
                Status.FAILED
            ):
                return self._failed(receipt, standing)
        moved, standing = self.ledger.advance(receipt)
        if standing is None:
            return ReceiptOutcome.FOREIGN
        if not receipt.may_be_of(standing.bot):
            return self._other_bot(receipt, standing)
        if moved and receipt.status is Status.RECEIVED and standing.sent_at:
            self.meter.took("sent_to_received", self.now() - standing.sent_at)
        return ReceiptOutcome.MOVED if moved else ReceiptOutcome.REPEATED

    def _other_bot(self, receipt: Receipt, standing: LedgerEntry) -> ReceiptOutcome:
        """Drop a receipt that was shown with the secret of another bot.

        With that secret its holder must not end notifications of this bot: ids can be guessed.
        """
        facts = {"key": receipt.key, "bot": standing.bot, "shown": receipt.bots}
        logger.warning("receipt with the secret of another bot", extra=facts)
        return ReceiptOutcome.OTHER_BOT

    def _failed(self, receipt: Receipt, standing: LedgerEntry) -> ReceiptOutcome:
        """End a generation that was not delivered: once more later, or dead letter."""
        if receipt.failure_kind is FailureKind.UNREACHABLE:
            self._forget_identity(standing)
        if receipt.failure_kind is FailureKind.SPORADIC and self._is_news(standing):
            self.bot_states.number_in_trouble(
                standing.bot, receipt.key, standing.sent_at, receipt.detail
            )
        once_more = receipt.failure_kind in {FailureKind.RATE_LIMITED, FailureKind.SPORADIC}
        if once_more and not _is_second_try(standing):
            return self._postpone(receipt, standing)
        if receipt.failure_kind is FailureKind.NUMBER_DOWN and self._is_news(standing):
            self.bot_states.number_down(standing.bot, receipt.detail)
        self._dead_letter(receipt, standing)
        self.ledger.fail(receipt, Reason.UNDELIVERED, postponed=False)
        return ReceiptOutcome.DEAD_LETTER

    def _forget_identity(self, standing: LedgerEntry) -> None:
        """Drop what is known of a recipient who cannot be reached under it."""
        try:
            recipient = parse(standing.body).request.to
        except InvalidRequest:
            return  # the contract has changed since: the identity ends with its time to live
        self.identities.invalidate((standing.bot, recipient))

    def _is_news(self, standing: LedgerEntry) -> bool:
        """Return whether a receipt may say how the bot's number is now."""
        return not standing.sent_at or self.now() - standing.sent_at < NEWS_SECONDS

    def _postpone(self, receipt: Receipt, standing: LedgerEntry) -> ReceiptOutcome:
        """Put the request back for one more generation: the limit was not the message's fault."""
        self.requests.enqueue_next_generation(
            standing.body,
            bot=standing.bot,
            generation=standing.generation,
            redrives=standing.redrives,
            delay_seconds=round(self.uniform(*POSTPONED_SECONDS)),
        )
        self.ledger.fail(receipt, Reason.UNDELIVERED, postponed=True)
        return ReceiptOutcome.POSTPONED

    def _dead_letter(self, receipt: Receipt, standing: LedgerEntry) -> None:
        self.dead_letters.put(
            standing.body,
            Reason.UNDELIVERED,
            {
                "detail": receipt.detail,
                "code": receipt.code,
                "template": standing.template,
                "phase": "receipt",
                "attempts": standing.attempts,
                "possibly_sent": receipt.failure_kind is FailureKind.POSSIBLY_SENT,
                "redrives": standing.redrives,
            },
            bot=standing.bot,
            notification_id=standing.notification_id,
            generation=standing.generation,
        )
        logger.warning(
            "dead letter",
            extra={
                "notification_id": standing.notification_id,
                "bot": standing.bot,
                "key": receipt.key,
                "correlation_id": standing.correlation_id,
                "reason": Reason.UNDELIVERED,
                "code": receipt.code,
            },
        )


def _is_second_try(standing: LedgerEntry) -> bool:
    """Return whether this generation is there because the one before met a rate limit."""
    return 0 < standing.postponed == standing.generation - 1
