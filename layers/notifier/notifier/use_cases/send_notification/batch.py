"""A batch of the requests queue: parse, read, claim, deliver side by side, decide how long to wait.

A batch is delivered in rounds, so that no round holds a notification or a recipient twice. A round
reads its bots, identities and templates with one call, then claims and delivers its notifications
on threads. Every step may be repeated: reads come first, and each write has its condition.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import TYPE_CHECKING

from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.bots import Bot
from notifier.domain.failures import crash_facts
from notifier.domain.notification import Notification, QueuedRequest, ledger_key
from notifier.domain.status import Status
from notifier.use_cases.send_notification import service_level
from notifier.use_cases.send_notification.breaker import Bots, Breaker
from notifier.use_cases.send_notification.delivery import Delivery
from notifier.use_cases.send_notification.outcomes import Outcome, Outcomes, Result, logged
from notifier.use_cases.send_notification.recipients import Recipients
from notifier.use_cases.send_notification.reconciliation import Reconciliation
from notifier.use_cases.send_notification.round import CALL_SECONDS, SETTLE_SECONDS, Round
from notifier.use_cases.send_notification.templates import MAX_AGE_SECONDS, Templates
from notifier.use_cases.send_notification.waits import Waits, least_wait
from notifier.use_cases.slots import RetryLater

if TYPE_CHECKING:
    from notifier.domain.clock import Clock, Meter
    from notifier.domain.dead_letters import DeadLetters
    from notifier.domain.ledger_entries import Claim
    from notifier.domain.recipients import Identity
    from notifier.domain.templates import Category, RegisteredTemplate
    from notifier.use_cases.send_notification.ports import (
        Blip,
        BotStates,
        Identities,
        Ledger,
        Receipts,
        Refusals,
        Registry,
        Secrets,
    )

logger = logging.getLogger(__name__)

# With so many in flight, a batch of which every request waits for its bot holds still, so that SQS
# delivers no more.
FULL = 110_000
HOLD_STILL_SECONDS = 3.0
# All sandboxes together receive at most so many requests a second that wait for their bot. SQS's
# figure is some seconds old: fifty sandboxes would fill all 120,000 before it shows them.
LOOKED_THROUGH_PER_SECOND = 2000
# What SQS and Lambda take from the end of a batch to the start of the next one.
BETWEEN_BATCHES_SECONDS = 0.03


class SendNotifications:
    """Delivers batches of requests. One per sandbox; its parts are shared by its threads."""

    def __init__(
        self,
        *,
        ledger: "Ledger",
        refusals: "Refusals",
        identities: "Identities",
        bot_states: "BotStates",
        secrets: "Secrets",
        blip: "Blip",
        registry: "Registry",
        dead_letters: "DeadLetters",
        receipts: "Receipts",
        in_flight: Callable[[], int],
        meter: "Meter",
        clock: "Clock",
        threads: Executor,
        max_threads: int,
        waits: Waits,
    ) -> None:
        self._identities = identities
        self._reserve = bot_states.reserve
        self._blip = blip
        self._in_flight = in_flight
        self._meter = meter
        self._clock = clock
        self._threads = threads
        self._max_threads = max_threads
        self._waits = waits
        self._breaker = Breaker(bot_states, secrets, blip, meter, clock, threads, waits)
        self._outcomes = Outcomes(ledger, refusals, dead_letters)
        self._reconciliation = Reconciliation(
            ledger, bot_states, blip, receipts, self._breaker, self._outcomes, clock, waits
        )
        self._delivery = Delivery(
            ledger,
            identities,
            blip,
            Templates(registry, blip, self._breaker, meter, clock, waits),
            Recipients(identities, blip, self._breaker, meter, clock, waits),
            self._reconciliation,
            self._breaker,
            self._outcomes,
            meter,
            clock,
            waits,
        )

    def deliver(self, batch: Sequence[QueuedRequest], deadline: float) -> list[Result]:
        """Take every request of a batch as far as it gets. One result per request, in any order.

        Args:
            batch: the requests.
            deadline: when the sandbox will be stopped, in epoch seconds.
        """
        began = self._clock.now()
        notifications: list[Notification] = []
        invalid: list[tuple[QueuedRequest, InvalidRequest]] = []
        for queued in batch:
            try:
                notifications.append(_understood(queued))
            except InvalidRequest as failure:
                invalid.append((queued, failure))

        results: list[Result] = []
        for together in _rounds(notifications, self._max_threads):
            results.extend(self._round(together, deadline))
        # Invalid requests come last: if the tables or the secret cannot be read, the whole batch
        # comes back, and dead letters that were put before would be put again.
        refusing = [
            (queued, self._threads.submit(self._outcomes.dead_letter_invalid, queued, failure))
            for queued, failure in invalid
        ]
        results.extend(self._outcome(queued, refused) for queued, refused in refusing)

        now = self._clock.now()
        for result in results:
            if result.retry_in is not None:
                self._meter.age("oldest_request", now - result.queued.published_at)
        results = self._make_room(results, began, deadline)
        return [self._not_too_soon(result) for result in results]

    def _round(self, notifications: Sequence[Notification], deadline: float) -> list[Result]:
        """Deliver the notifications of one round side by side."""
        bots = self._breaker.bots({notification.request.bot for notification in notifications})
        identities, states, templates = self._identities.read(
            [notification.recipient for notification in notifications],
            bots,
            [notification.template for notification in notifications],
        )
        bots = self._breaker.without_gaps(bots, states)
        this_round = Round(deadline, states, templates, self._reserve, self._clock)
        results: list[Result] = []
        ready: list[tuple[Notification, Identity | None]] = []
        probed: list[tuple[Notification, Identity | None]] = []
        probes = self._breaker.probe_all(bots, this_round)
        for asked_for in notifications:
            notification = replace(
                asked_for, category=_category(asked_for, templates, this_round.began)
            )
            identity = identities.get(notification.recipient)
            if identity is not None and identity.forgotten_at is not None:
                if notification.queued.published_at <= identity.forgotten_at:
                    results.append(logged(notification, Outcome.CANCELLED))
                    continue
                identity = None
            group = probed if notification.request.bot in probes else ready
            group.append((notification, identity))

        results.extend(self._start(ready, bots, this_round))
        # Only now, so that a bot that hangs does not delay the others.
        self._breaker.wait_for(probes, this_round)
        results.extend(self._start(probed, bots, this_round))
        self._breaker.update(results, identities, this_round)
        self._reconciliation.keep_controls(results, this_round)
        for bot in bots.values():
            if isinstance(bot, Bot):
                self._meter.share("share_of_plan", this_round.share(bot, "messages"))
                if synced_at := this_round.state(bot.name).templates_synced_at:
                    self._meter.age("templates_late", self._clock.now() - synced_at)
        self._meter.count("look_up", len(this_round.looked_up))
        self._meter.count(
            "look_up_without_send", len(this_round.looked_up - this_round.posted.keys())
        )
        in_time, late = service_level.judge(results, this_round)
        self._meter.count("sent_in_time", in_time)
        self._meter.count("sent_late", late)
        return results

    def _start(
        self,
        notifications: Sequence[tuple[Notification, "Identity | None"]],
        bots: Bots,
        this_round: Round,
    ) -> list[Result]:
        """Claim what can be claimed, side by side, then deliver it."""
        results: list[Result] = []
        claiming = []
        reserving: list[Future[None]] = []
        for notification, identity in notifications:
            try:
                bot = self._delivery.bot_for(
                    notification, bots[notification.request.bot], this_round
                )
                this_round.needs(CALL_SECONDS + SETTLE_SECONDS)
            except RetryLater as wait:
                results.append(self._breaker.retry_later(notification, wait))
                continue
            alone = len(notifications) == 1
            if bot and alone and self._goes_at_once(notification, bot, identity, this_round):
                reserving.append(self._threads.submit(this_round.reserve_ahead, bot))
            claim = self._threads.submit(
                self._delivery.claim, notification, bot, identity, this_round
            )
            claiming.append((notification, bot, identity, claim))

        for reservation in reserving:
            reservation.result()
        delivering: list[tuple[Notification, Claim, Bot | None, Identity | None]] = []
        for notification, bot, identity, future in claiming:
            claimed = self._outcome(notification.queued, future, notification)
            if isinstance(claimed, Result):
                results.append(claimed)
            else:
                if claimed.status is not Status.UNKNOWN:
                    this_round.expect(bot, known=claimed.status is Status.SENDING)
                delivering.append((notification, claimed, bot, identity))

        futures = [
            (each[0], self._threads.submit(self._delivery.deliver, *each, this_round))
            for each in delivering
        ]
        results.extend(
            self._outcome(notification.queued, future, notification)
            for notification, future in futures
        )
        return results

    def _goes_at_once(
        self,
        notification: Notification,
        bot: Bot,
        identity: "Identity | None",
        this_round: Round,
    ) -> bool:
        """Return whether a request that comes alone will surely use a slot of this very moment.

        If so, the slot is reserved while the request is claimed: it reaches BLiP 4 % sooner.
        """
        return (
            notification.queued.receive_count == 1
            and identity is not None
            and identity.address is not None
            and this_round.state(bot.name).next_message_at <= self._clock.now()
            and bot.name not in this_round.probing
            and self._blip.is_connected(bot)
        )

    def _outcome[Answer](
        self,
        queued: QueuedRequest,
        future: Future[Answer],
        notification: Notification | None = None,
    ) -> Answer | Result:
        """Return a thread's answer. An unexpected error fails only this record; it is logged.

        Its claim stays in the ledger until its lease ends, and then shows how far it got.
        """
        crash = future.exception()
        if crash is None:
            return future.result()
        context = notification.log_context() if notification is not None else {}
        facts = {"record_id": queued.record_id, **context, **crash_facts(crash)}
        logger.error("delivery crashed", extra=facts)
        backoff = self._waits.receive_backoff(queued, 30, 60)
        return Result(queued, Outcome.CRASHED, retry_in=backoff)

    # --- waiting ----------------------------------------------------------------------------------

    def _make_room(self, results: list[Result], began: float, deadline: float) -> list[Result]:
        """Keep requests that wait for their bot from using up what SQS allows in flight."""
        if not any(result.on_hold for result in results):
            return results
        in_flight = self._in_flight()
        if all(result.on_hold for result in results):
            of_all = len(results) * self._waits.policy.maximum_concurrency
            until = began + of_all / LOOKED_THROUGH_PER_SECOND - BETWEEN_BATCHES_SECONDS
            if in_flight >= FULL:
                until = self._clock.now() + HOLD_STILL_SECONDS
            self._clock.sleep(min(until, deadline - 1) - self._clock.now())
        return [self._held(result, in_flight) if result.on_hold else result for result in results]

    def _held(self, result: Result, in_flight: int) -> Result:
        cooling_down = result.outcome in {Outcome.COOLING_DOWN, Outcome.THROTTLED}
        wait = self._waits.on_hold(result.retry_in or 0.0, in_flight, cooling_down=cooling_down)
        return replace(result, retry_in=wait)

    def _not_too_soon(self, result: Result) -> Result:
        """Make a wait long enough for its request's age: SQS delivers it 1,000 times at most."""
        if result.retry_in is None or result.outcome is Outcome.DENIED:
            return result
        valid_until = result.notification.valid_until if result.notification else None
        least = least_wait(result.queued, valid_until, self._clock.now())
        return replace(result, retry_in=max(result.retry_in, least))


def _understood(queued: QueuedRequest) -> Notification:
    parsed = parse(queued.body)
    request = parsed.request
    return Notification(queued, request, parsed.content_hash, ledger_key(request.bot, request.id))


def _category(
    notification: Notification,
    templates: "Mapping[tuple[str, str], RegisteredTemplate]",
    now: float,
) -> "Category | None":
    """Return the category of a notification's template, as the registry has it."""
    template = templates.get(notification.template)
    if template is None or template.asked_at < now - MAX_AGE_SECONDS:
        return None
    translation = template.translations.get(notification.request.template.language)
    return translation.category if translation else None


def _rounds(notifications: Iterable[Notification], size: int) -> list[list[Notification]]:
    """Split a batch so that no round holds a notification or a recipient twice.

    The second of two equal notifications then finds what became of the first, and a recipient's
    messages come one after the other: WhatsApp limits how fast one person may be written to. No
    round is larger than can start at once.
    """
    rounds: list[list[Notification]] = []
    taken: list[set[str | tuple[str, str]]] = []
    for notification in notifications:
        marks: set[str | tuple[str, str]] = {notification.key, notification.recipient}
        for together, seen in zip(rounds, taken, strict=True):
            if len(together) < size and not marks & seen:
                together.append(notification)
                seen.update(marks)
                break
        else:
            rounds.append([notification])
            taken.append(marks)
    return rounds
