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

from notifier.contract.parse import read_kept
from notifier.contract.request import NotificationRequest
from notifier.domain.clock import Meter
from notifier.domain.dead_letters import DeadLetters, FailureDetails
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import LedgerEntry
from notifier.domain.receipts import FailureKind, Receipt, wait_seconds
from notifier.domain.status import Status, before
from notifier.domain.templates import Category

logger = logging.getLogger(__name__)

_REASONS = {
    FailureKind.CAPPED: Reason.RECIPIENT_CAPPED,
    FailureKind.PERHAPS_CAPPED: Reason.RECIPIENT_CAPPED,
    FailureKind.OPTED_OUT: Reason.OPTED_OUT,
}

# What WhatsApp said of a message that was sent before, it may have said long ago.
NEWS_SECONDS = 3600


class Ledger(Protocol):
    """Of the ledger, what receipts need."""

    def read(self, key: str) -> LedgerEntry | None: ...
    def advance(self, receipt: Receipt) -> tuple[bool, LedgerEntry | None]: ...
    def fail(self, receipt: Receipt, reason: Reason) -> bool: ...


class WaitingLedger(Protocol):
    """Of the ledger, what a message needs that is sent again later."""

    def wait(
        self, key: str, generation: int, until: float, kind: str, code: int | None
    ) -> bool: ...


class Identities(Protocol):
    """Of the identities, what receipts need."""

    def invalidate(self, recipient: tuple[str, str]) -> None: ...


class BotStates(Protocol):
    """Of the bots' items, what receipts need."""

    def number_down(self, bot: str, why: str) -> None: ...
    def number_in_trouble(self, bot: str, key: str, sent_at: float, why: str) -> bool: ...


class Templates(Protocol):
    """Of the templates, what receipts need."""

    def pause(self, bot: str, name: str, language: str) -> None: ...


class ReceiptOutcome(StrEnum):
    """What a receipt came to; counted."""

    MOVED = "receipt_recorded"
    REPEATED = "receipt_repeated"
    FOREIGN = "receipt_foreign"
    DEAD_LETTER = "receipt_dead_letter"
    WAITING = "receipt_waiting"
    # Counted with those that the webhook refuses by itself, and rings the same alarm.
    OTHER_BOT = "webhook_unauthorized"


@dataclass(frozen=True, slots=True)
class Receipts:
    """Records receipts, one at a time; its parts may be shared by threads."""

    ledger: Ledger
    waiting: WaitingLedger
    identities: Identities
    bot_states: BotStates
    templates: Templates
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
        kind, kept = _kind(receipt, entry), read_kept(entry.body)
        request = kept.request if kept is not None else None
        self._take_note(kind, receipt, entry, request)
        wait = wait_seconds(kind, entry.waits, self.uniform)
        if wait is not None and kept is not None and kept.is_whole:
            request, until = kept.request, self.now() + wait
            if request.valid_until is None or until < request.valid_until.timestamp():
                self.waiting.wait(entry.key, entry.generation, until, kind, receipt.code)
                return ReceiptOutcome.WAITING
        if kind is FailureKind.UNREACHABLE and request is not None:
            self.identities.invalidate((entry.bot, request.to))
        reason = _REASONS.get(kind, Reason.UNDELIVERED)
        self._dead_letter(receipt, entry, reason)
        self.ledger.fail(receipt, reason)
        return ReceiptOutcome.DEAD_LETTER

    def _take_note(
        self,
        kind: FailureKind,
        receipt: Receipt,
        entry: LedgerEntry,
        request: NotificationRequest | None,
    ) -> None:
        """Record what a failure says beyond its message: of the number, template or account."""
        if kind is FailureKind.ACCOUNT_LIMITED:
            self.meter.count("account_limited")
        if not self._is_news(entry):
            return
        if kind is FailureKind.SPORADIC:
            self.bot_states.number_in_trouble(entry.bot, receipt.key, entry.sent_at, receipt.detail)
        if kind is FailureKind.NUMBER_DOWN:
            self.bot_states.number_down(entry.bot, receipt.detail)
        if kind is FailureKind.TEMPLATE_PAUSED and request is not None:
            template = request.template
            self.templates.pause(entry.bot, template.name, template.language)

    def _is_news(self, entry: LedgerEntry) -> bool:
        """Return whether a receipt may say how the bot's number is now."""
        return not entry.sent_at or self.now() - entry.sent_at < NEWS_SECONDS

    def _dead_letter(self, receipt: Receipt, entry: LedgerEntry, reason: Reason) -> None:
        self.dead_letters.put(
            entry.body,
            reason,
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
                "reason": reason,
                "code": receipt.code,
            },
        )


def _kind(receipt: Receipt, entry: LedgerEntry) -> FailureKind:
    """Return the kind of a failure, now that the template's category is known."""
    kind = receipt.failure_kind
    if kind is not FailureKind.PERHAPS_CAPPED:
        return kind
    # The second time the recipient is indeed not to be reached.
    is_first_of_marketing = entry.category == Category.MARKETING and kind not in entry.waits
    return kind if is_first_of_marketing else FailureKind.UNREACHABLE
