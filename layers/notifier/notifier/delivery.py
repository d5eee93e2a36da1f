"""The story of one notification, straight down, and of a batch of them.

A batch is parsed; its bots and identities are read with one call; each notification is claimed,
who is not known is looked up, a send slot is waited for, the template is sent, the ledger settled.
Notifications run side by side on threads. Every step may be repeated: reads come first, and each
write holds only under its condition.

What follows from a failure is decided here, in `_deliver`; what a failure *is*, by `blip`.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

from notifier.bots import Bot, BotsSecretError, BrokenBot
from notifier.failures import (
    Failure,
    Misconfigured,
    Reason,
    Rejected,
    Throttled,
    Transient,
    Unknown,
    crash_facts,
)
from notifier.lifecycle import SENT_OR_LATER, UNDELIVERED, Status, final_status, latest
from notifier.records import (
    BotState,
    Claim,
    ClaimLost,
    Control,
    Identity,
    LookUpLease,
    Notification,
    Plan,
    QueuedRequest,
    Receipt,
    Refusal,
    Reservation,
    Standing,
    Still,
)
from notifier.request import Template, Unusable, ledger_key, message_id, parse
from notifier.turn import (
    CLOCK_SKEW_SECONDS,
    LONGEST_PENALTY_SECONDS,
    Clock,
    Meter,
    PutOff,
    Turn,
)

logger = logging.getLogger(__name__)

# What one call to BLiP may take, and the ledger's write after it.
CALL_SECONDS = 10.0
SETTLE_SECONDS = 2.0
# A look-up may be tried twice; its lease outlives both tries.
LOOK_UP_LEASE_SECONDS = 2 * CALL_SECONDS + SETTLE_SECONDS
LOOK_UP_RACE_SECONDS = 2.0
LOOK_UP_POLL_SECONDS = 0.1
# BLiP's history goes back three days: what may have gone out before that, nobody can deny.
DAY_SECONDS = 86_400
HISTORY_SECONDS = 3 * DAY_SECONDS
# When the first question for receipts is worth asking (they lag by minutes).
FIRST_POLL_SECONDS = 300
# No request is hidden for longer at a time, but for a slot, so that whatever changes is noticed.
LONGEST_WAIT_SECONDS = 900.0
# Every wait is at least this part of a request's age, an hour at most: so SQS, which gives up after
# a thousand receives, shows it less than 700 times in a week, whatever the parameters are.
PART_OF_AGE = 1 / 60
LONGEST_PATIENCE_SECONDS = 3600.0
# SQS gives nothing while 120,000 requests are in flight, and then those of a bot that is still
# would keep every other bot's waiting. From CROWDED on they are hidden for short times only; from
# FULL on a batch that can do nothing else holds still, so that no more are taken.
CROWDED = 80_000
FULL = 110_000
CROWDED_SECONDS = (20.0, 30.0)
# All sandboxes together look through no more than so many a second that only wait for their bot:
# SQS's figure is some seconds old, and fifty sandboxes would fill all 120,000 meanwhile.
LOOKED_THROUGH_PER_SECOND = 2000
# What SQS and Lambda take from the end of a batch to the start of the next one.
BETWEEN_BATCHES_SECONDS = 0.03
# What waits for the end of a penalty does not come back all at once.
BACK_PER_SECOND = 200
HOLD_STILL_SECONDS = 3.0
# For how long a bot that has worked may be missing from the secret before it is an unknown bot.
MISSING_SECONDS = 900.0
# Without a later message the history may deny an unknown by an earlier one after so long.
WITHOUT_LATER_MESSAGE_SECONDS = 6 * 3600
# An abandoned send was begun at most so long before its lease ended (`FunctionTimeoutSeconds`).
LONGEST_LEASE_SECONDS = 900 + 2 * CLOCK_SKEW_SECONDS


class Ledger(Protocol):
    """One item per notification: the only truth about what was sent."""

    def claim(
        self, notification: Notification, status: Status, lease_until: float
    ) -> Claim | Standing: ...
    def complete_cancelled(self, notification: Notification) -> None: ...
    def release_unsent(self, claim: Claim) -> None: ...
    def start_sending(self, claim: Claim, lease_until: float) -> Claim: ...
    def settle_sent(self, claim: Claim, poll_at: float | None) -> None: ...
    def settle_unknown(self, claim: Claim) -> None: ...
    def release(self, claim: Claim, *, attempted: bool) -> None: ...
    def end(self, claim: Claim, status: Status, reason: Reason, code: int | None) -> None: ...
    def question(self, standing: Standing, lease_until: float) -> Claim | None: ...
    def deny(self, claim: Claim) -> None: ...
    def put_back(self, claim: Claim) -> None: ...


class Refusals(Protocol):
    """Requests that were refused though their id is readable."""

    def holds(self, bot: str, notification_id: str, record_id: str) -> bool: ...
    def keep(self, bot: str, notification_id: str, refusal: Refusal) -> None: ...


class Identities(Protocol):
    """Who a phone number is on WhatsApp, per bot."""

    def read(
        self, recipients: Iterable[tuple[str, str]], bots: Iterable[str]
    ) -> tuple[Mapping[tuple[str, str], Identity], Mapping[str, BotState]]: ...
    def get(self, recipient: tuple[str, str]) -> Identity | None: ...
    def lease(
        self, recipient: tuple[str, str], seconds: float
    ) -> LookUpLease | Identity | None: ...
    def store(self, lease: LookUpLease, identity: Identity) -> None: ...
    def release(self, lease: LookUpLease) -> None: ...
    def erase(self, recipient: tuple[str, str]) -> None: ...


class Pacing(Protocol):
    """The bot's item: keeps every bot to its plan, and still while it does not work."""

    def reserve(
        self, bot: Bot, plan: Plan, count: int, horizon: float, *, share: float, probing: bool
    ) -> Reservation: ...
    def shut(self, bot: Bot, plan: Plan, until: float) -> bool: ...
    def missing(self, bot: str) -> float: ...
    def found(self, bot: str) -> None: ...
    def keep_control(self, bot: str, control: Control, older_than: float) -> None: ...
    def history_shows(self, bot: str, sent_at: float) -> None: ...
    def open_breaker(self, bot: str, why: str) -> None: ...
    def close_breaker(self, bot: str, *, sent: bool) -> bool: ...
    def answered(self, bot: str) -> None: ...
    def failed(self, bot: str, keys: Iterable[str]) -> bool: ...
    def probe(self, bot: str) -> bool: ...


class Secrets(Protocol):
    """The bots, from their secret."""

    def bots(self) -> Mapping[str, Bot | BrokenBot]: ...
    def fresh(self, name: str, stale: Bot | None) -> Bot | BrokenBot | None: ...


class Blip(Protocol):
    """The calls to BLiP; see `blip.client` for what they raise."""

    def is_connected(self, bot: Bot) -> bool: ...
    def look_up(self, bot: Bot, phone: str, on_connected: Callable[[], None]) -> str: ...
    def send(
        self,
        bot: Bot,
        message_id: str,
        identity: str,
        template: Template,
        on_connected: Callable[[], None],
    ) -> None: ...
    def history(
        self, bot: Bot, message_id: str, on_connected: Callable[[], None]
    ) -> list[Receipt]: ...
    def ping(self, bot: Bot) -> None: ...


class DeadLetters(Protocol):
    """Keeps what cannot be delivered, with the reason."""

    def put(
        self,
        body: str,
        reason: Reason,
        failure: dict[str, Any],
        *,
        bot: str | None,
        notification_id: str | None,
        generation: int | None,
    ) -> None: ...


class Receipts(Protocol):
    """What a receipt does; see `receipts`."""

    def record(self, receipt: Receipt) -> object: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What operators may tune; times in seconds. See the template's parameters.

    Attributes:
        allowed_recipients: only numbers that start with one of these may be sent to.
        ledger_restored_at: when the ledger was restored from a backup, in epoch seconds. What it
            says of requests that are older is not to be trusted: they may have been sent.
        maximum_concurrency: how many batches are under way at a time at most.
    """

    penalty_seconds: int = 120
    breaker_wait_seconds: int = 600
    backoff_base_seconds: int = 5
    backoff_max_seconds: int = 900
    settle_window_seconds: int = 900
    max_attempts: int = 20
    max_wait_seconds: int = 604_800
    allowed_recipients: tuple[str, ...] = ("+",)
    ledger_restored_at: float = 0.0
    maximum_concurrency: int = 5


class Outcome(StrEnum):
    """What this delivery of a request came to; counted, and logged with the notification's id."""

    SENT = "sent"
    DUPLICATE = "duplicate"
    CANCELLED = "cancelled"
    DEAD_LETTER = "dead_letter"
    RETRYING = "retrying"
    REFUSED = "refused"  # as if the bot were misconfigured; but it answers
    UNKNOWN = "unknown"
    UNSETTLED = "unsettled"
    SETTLED = "settled"
    DENIED = "denied"
    THROTTLED = "throttled"
    MISCONFIGURED = "misconfigured"
    BOT_SHUT = "bot_shut"
    PAUSED = "paused"
    IN_PENALTY = "in_penalty"
    PUT_OFF = "put_off"
    CRASHED = "crashed"


# Found out before anything was tried.
_NEVER_TRIED = frozenset(
    {Reason.EXPIRED, Reason.WAITED_TOO_LONG, Reason.UNKNOWN_BOT, Reason.NOT_ALLOWED}
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one record of the batch.

    Attributes:
        come_back_in: in how many seconds SQS shall deliver it again; None: it is done.
        reason: of a dead letter.
        no_answer: BLiP was asked, and did not answer definitely; five of these open the breaker.
        bot_still: it only waits for its bot, which is paused, throttled or does not work.
        sent_as: the bot, and the message that was sent.
    """

    queued: QueuedRequest
    outcome: Outcome
    come_back_in: float | None = None
    reason: Reason | None = None
    notification: Notification | None = None
    no_answer: bool = False
    bot_still: bool = False
    sent_as: tuple[str, Control] | None = None


class Delivery:
    """Delivers batches of requests. One per sandbox; its parts are shared by its threads."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        refusals: Refusals,
        identities: Identities,
        pacing: Pacing,
        secrets: Secrets,
        blip: Blip,
        dead_letters: DeadLetters,
        receipts: Receipts,
        in_flight: Callable[[], int],
        meter: Meter,
        clock: Clock,
        threads: Executor,
        side_by_side: int,
        policy: Policy,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._ledger = ledger
        self._refusals = refusals
        self._identities = identities
        self._pacing = pacing
        self._secrets = secrets
        self._blip = blip
        self._dead_letters = dead_letters
        self._receipts = receipts
        self._in_flight = in_flight
        self._meter = meter
        self._clock = clock
        self._threads = threads
        self._side_by_side = side_by_side
        self._policy = policy
        self._uniform = uniform

    # --- a batch ----------------------------------------------------------------------------------

    def deliver(self, batch: Sequence[QueuedRequest], deadline: float) -> list[Verdict]:
        """Take every request of a batch as far as it gets. One verdict per request, in any order.

        Args:
            batch: the requests.
            deadline: when the sandbox will be stopped, in epoch seconds.
        """
        began = self._clock.now()
        notifications: list[Notification] = []
        unusable: list[tuple[QueuedRequest, Unusable]] = []
        for queued in batch:
            try:
                notifications.append(_understood(queued))
            except Unusable as failure:
                unusable.append((queued, failure))

        verdicts: list[Verdict] = []
        for together in _rounds(notifications, self._side_by_side):
            verdicts.extend(self._round(together, deadline))
        # Last: where the tables or the secret cannot be read, the batch comes back as a whole, and
        # nothing could tell these letters from those of the next time.
        letters = [
            (queued, self._threads.submit(self._set_aside, queued, failure))
            for queued, failure in unusable
        ]
        verdicts.extend(self._outcome(queued, letter) for queued, letter in letters)

        now = self._clock.now()
        for verdict in verdicts:
            if verdict.come_back_in is not None:
                self._meter.age("oldest_request", now - verdict.queued.published_at)
        verdicts = self._make_room(verdicts, began, deadline)
        return [self._less_and_less_often(verdict) for verdict in verdicts]

    def _make_room(self, verdicts: list[Verdict], began: float, deadline: float) -> list[Verdict]:
        """Keep what waits for its bot from filling what SQS allows in flight."""
        if not any(verdict.bot_still for verdict in verdicts):
            return verdicts
        in_flight = self._in_flight()
        if all(verdict.bot_still for verdict in verdicts):
            takes = len(verdicts) * self._policy.maximum_concurrency / LOOKED_THROUGH_PER_SECOND
            until = began + takes - BETWEEN_BATCHES_SECONDS
            if in_flight >= FULL:
                until = self._clock.now() + HOLD_STILL_SECONDS
            self._clock.sleep(min(until, deadline - 1) - self._clock.now())
        return [
            replace(verdict, come_back_in=self._still_for(verdict, in_flight))
            if verdict.bot_still
            else verdict
            for verdict in verdicts
        ]

    def _still_for(self, verdict: Verdict, in_flight: int) -> float:
        """Return how long a request whose bot is still is hidden."""
        asked = verdict.come_back_in or 0.0
        if in_flight >= CROWDED:
            return min(asked, self._uniform(*CROWDED_SECONDS))
        if verdict.outcome in {Outcome.IN_PENALTY, Outcome.THROTTLED}:
            return asked + self._uniform(0, in_flight / BACK_PER_SECOND)
        return asked

    def _less_and_less_often(self, verdict: Verdict) -> Verdict:
        """Make a wait long enough for its request's age: SQS shows none more than 1,000 times."""
        if verdict.come_back_in is None or verdict.outcome is Outcome.DENIED:
            return verdict
        now = self._clock.now()
        least = min(LONGEST_PATIENCE_SECONDS, (now - verdict.queued.published_at) * PART_OF_AGE)
        notification = verdict.notification
        if notification is not None and notification.request.valid_until is not None:
            # The nearer its end, the more often it gets its chance.
            least = min(least, (notification.request.valid_until.timestamp() - now) / 10)
        return replace(verdict, come_back_in=max(verdict.come_back_in, least))

    def _round(self, notifications: Sequence[Notification], deadline: float) -> list[Verdict]:
        """Deliver side by side what names no notification and no recipient twice."""
        bots = self._bots({notification.request.bot for notification in notifications})
        identities, states = self._identities.read(
            [notification.recipient for notification in notifications], bots
        )
        bots = self._without_gaps(bots, states)
        turn = Turn(deadline, states, self._pacing.reserve, self._clock)
        verdicts: list[Verdict] = []
        ready: list[tuple[Notification, Identity | None]] = []
        probed: list[tuple[Notification, Identity | None]] = []
        probes = self._probes(bots, turn)
        for notification in notifications:
            identity = identities.get(notification.recipient)
            if identity is not None and identity.forgotten_at is not None:
                if notification.queued.published_at <= identity.forgotten_at:
                    verdicts.append(self._verdict(notification, Outcome.CANCELLED))
                    continue
                identity = None
            group = probed if notification.request.bot in probes else ready
            group.append((notification, identity))

        verdicts.extend(self._start(ready, bots, turn))
        for name, probe in probes.items():  # a bot that hangs kept nobody else's waiting
            if crash := probe.exception():
                logger.error("the probe crashed", extra={"bot": name, **crash_facts(crash)})
                turn.stop(name, None)
        verdicts.extend(self._start(probed, bots, turn))
        self._judge_bots(verdicts, identities, turn)
        self._keep_controls(verdicts, turn)
        for bot in bots.values():
            if isinstance(bot, Bot):
                self._meter.share("share_of_plan", turn.share(bot, "messages"))
        self._meter.count("look_up", len(turn.looked_up))
        self._meter.count("look_up_without_send", len(turn.looked_up - turn.posted.keys()))
        return verdicts

    def _start(
        self,
        notifications: Sequence[tuple[Notification, Identity | None]],
        bots: Mapping[str, Bot | BrokenBot | None],
        turn: Turn,
    ) -> list[Verdict]:
        """Claim what can be claimed, side by side, then deliver it."""
        verdicts: list[Verdict] = []
        claiming = []
        reserving: list[Future[None]] = []
        for notification, identity in notifications:
            try:
                bot = self._bot_for(notification, bots, turn)
                turn.needs(CALL_SECONDS + SETTLE_SECONDS)
            except PutOff as wait:
                verdicts.append(self._put_off(notification, wait))
            else:
                if (
                    bot
                    and len(notifications) == 1
                    and self._is_smooth(notification, bot, identity, turn)
                ):
                    reserving.append(self._threads.submit(turn.reserve_ahead, bot))
                claim = self._threads.submit(self._claim, notification, bot, identity, turn)
                claiming.append((notification, bot, identity, claim))

        for reservation in reserving:
            reservation.result()
        delivering = []
        for notification, bot, identity, future in claiming:
            claimed = self._outcome(notification.queued, future, notification)
            if isinstance(claimed, Verdict):
                verdicts.append(claimed)
            else:
                if claimed.status is not Status.UNKNOWN:
                    turn.expect(bot, known=claimed.status is Status.SENDING)
                delivering.append((notification, claimed, bot, identity))

        futures = [
            (story[0], self._threads.submit(self._deliver, *story, turn)) for story in delivering
        ]
        verdicts.extend(self._outcome(one.queued, future, one) for one, future in futures)
        return verdicts

    def _is_smooth(
        self, notification: Notification, bot: Bot, identity: Identity | None, turn: Turn
    ) -> bool:
        """Return whether a request that comes alone will surely use a slot of this very moment.

        Then the slot is reserved while it is claimed, and it is 4 % sooner with BLiP.
        """
        return (
            notification.queued.receives == 1
            and identity is not None
            and identity.address is not None
            and turn.state(bot.name).next_message_at <= self._clock.now()
            and bot.name not in turn.probing
            and self._blip.is_connected(bot)
        )

    def _bots(self, names: Iterable[str]) -> dict[str, Bot | BrokenBot | None]:
        """Give the bots of these names; None for a name that the secret does not hold."""
        try:
            bots = self._secrets.bots()
            return {
                name: bots[name] if name in bots else self._secrets.fresh(name, None)
                for name in names
            }
        except BotsSecretError as error:
            return {name: BrokenBot(name, str(error)) for name in names}

    def _without_gaps(
        self,
        bots: Mapping[str, Bot | BrokenBot | None],
        states: Mapping[str, BotState],
    ) -> dict[str, Bot | BrokenBot | None]:
        """Return the bots; one that has worked and is missing now may be back soon.

        The secret may have been written without it by mistake. Its requests wait for
        MISSING_SECONDS; then it is an unknown bot, as a name that never was is at once.
        """
        complete = dict(bots)
        for name, state in states.items():
            if bots[name] is not None:
                if state.missing_since:
                    self._note(name, partial(self._pacing.found, name))
                continue
            since = state.missing_since or self._note(name, partial(self._pacing.missing, name))
            since = since or self._clock.now()
            if self._clock.now() - since < MISSING_SECONDS:
                complete[name] = BrokenBot(name, f"the bots' secret has no entry {name!r} any more")
        return complete

    def _bot_for(
        self,
        notification: Notification,
        bots: Mapping[str, Bot | BrokenBot | None],
        turn: Turn,
    ) -> Bot | None:
        """Give the bot of a notification; None where none is needed to end it.

        Raises:
            PutOff: it has to wait for its bot. Not for ever: SQS deletes silently.
        """
        try:
            return self._may_start(bots[notification.request.bot], turn)
        except PutOff:
            try:
                self._wanted(notification, None)
            except Rejected as failure:
                if failure.reason is not Reason.UNKNOWN_BOT:
                    return None
            raise

    def _may_start(self, bot: Bot | BrokenBot | None, turn: Turn) -> Bot | None:
        """Give the bot if it can send now. A bot that does not exist is nothing to wait for.

        Raises:
            PutOff: it is shut, cannot be used, or has no slot free soon.
        """
        if bot is None:
            return None
        if isinstance(bot, BrokenBot):
            logger.error("the bot cannot be used", extra={"bot": bot.name, "problem": bot.problem})
            raise PutOff(None, Still.MISCONFIGURED)
        now = self._clock.now()
        state = turn.state(bot.name)
        if state.paused:
            raise PutOff(None, Still.PAUSED)
        if state.shut_until > now:
            raise PutOff(state.shut_until - now + self._uniform(0, 5), Still.IN_PENALTY)
        if state.broken:
            turn.check(bot.name)
            if bot.name not in turn.probed or bot.name in turn.probing:
                raise PutOff(None, Still.BOT_SHUT)
            turn.probing.add(bot.name)
        turn.admit(bot)
        return bot

    def _probes(
        self, bots: Mapping[str, Bot | BrokenBot | None], turn: Turn
    ) -> dict[str, Future[None]]:
        """Start to try the bots whose breakers are open, side by side."""
        now = self._clock.now()
        probes = {
            name: self._threads.submit(self._probe, bot, turn)
            for name, bot in bots.items()
            if isinstance(bot, Bot)
            and (state := turn.state(name)).broken
            and not state.paused
            and state.shut_until <= now
        }
        turn.probed.update(probes)
        return probes

    def _probe(self, bot: Bot, turn: Turn) -> None:
        """Try whether a bot works again. If BLiP answers, exactly one notification may go on."""
        try:
            turn.needs(CALL_SECONDS + SETTLE_SECONDS)
        except PutOff:
            turn.stop(bot.name, 0, None)
            return
        if not self._pacing.probe(bot.name):
            turn.stop(bot.name, None)  # somebody else is trying
            return
        try:
            self._ask(bot, self._blip.ping)
        except Throttled as failure:
            self._shut(bot, "commands", failure, turn)
        except Failure as failure:
            logger.warning(
                "the breaker stays open", extra={"bot": bot.name, "problem": failure.detail}
            )
            # So that the alarm tells a wrong key from an outage for as long as it is wrong.
            wrong = isinstance(failure, Misconfigured)
            turn.stop(bot.name, None, Still.MISCONFIGURED if wrong else Still.BOT_SHUT)

    def _judge_bots(
        self,
        verdicts: Iterable[Verdict],
        identities: Mapping[tuple[str, str], Identity],
        turn: Turn,
    ) -> None:
        """Open and close breakers by what became of this round, without a call if all is well.

        Args:
            verdicts: what became of it.
            identities: who was known before, so that BLiP was not asked for them.
            turn: knows for which bots this was a probe.
        """
        answered, failing = _answers(verdicts, identities)
        sent = {
            verdict.notification.request.bot
            for verdict in verdicts
            if verdict.notification is not None and verdict.outcome is Outcome.SENT
        }
        for bot in answered:
            if bot in turn.probing:
                if self._note(bot, partial(self._pacing.close_breaker, bot, sent=bot in sent)):
                    logger.warning("the bot works again", extra={"bot": bot})
            elif turn.state(bot).failing:
                self._note(bot, partial(self._pacing.answered, bot))
        for bot in failing.keys() - answered:
            if self._note(bot, partial(self._pacing.failed, bot, failing[bot])):
                logger.error("the breaker is open", extra={"bot": bot})

    def _note[Answer](self, bot: str, write: Callable[[], Answer]) -> Answer | None:
        """Write to a bot's item what the next batch can write as well; return what that answers.

        What was sent in this round is sent: a failure must not bring its requests back.
        """
        try:
            return write()
        except Exception as crash:  # noqa: BLE001 - whatever it was, it is logged and repeatable
            logger.error("the bot's item was not written", extra={"bot": bot, **crash_facts(crash)})
            return None

    def _keep_controls(self, verdicts: Iterable[Verdict], turn: Turn) -> None:
        """Keep a message of this round for each bot, by which its history can be tested later.

        At most one write per bot and third of a settle window.
        """
        older_than = self._clock.now() - self._policy.settle_window_seconds / 3
        kept: set[str] = set()
        for verdict in verdicts:
            if verdict.outcome is not Outcome.SENT or verdict.sent_as is None:
                continue
            bot = verdict.sent_as[0]
            controls = turn.state(bot).controls
            if bot not in kept and (not controls or controls[-1].at < older_than):
                control = verdict.sent_as[1]
                self._note(bot, partial(self._pacing.keep_control, bot, control, older_than))
                kept.add(bot)

    # --- one notification -------------------------------------------------------------------------

    def _claim(
        self,
        notification: Notification,
        bot: Bot | None,
        identity: Identity | None,
        turn: Turn,
    ) -> Claim | Verdict:
        """Take a notification for sending, or tell why it is not ours to send."""
        try:
            self._wanted(notification, bot)
            known = identity is not None and identity.address is not None
        except Rejected:
            known = False
        status = Status.SENDING if known else Status.CLAIMED
        found = self._ledger.claim(notification, status, turn.lease_until)
        now = self._clock.now()
        if isinstance(found, Claim):
            if found.attempts == 1:
                waited = now - notification.queued.published_at
                self._meter.took("published_to_claimed", waited)
            return found

        if found.status is Status.CANCELLED:
            return self._cancelled(notification, found)
        if found.content_hash != notification.content_hash:
            return self._conflict(notification)
        if found.status in SENT_OR_LATER or found.status in UNDELIVERED:
            return self._verdict(notification, Outcome.DUPLICATE)
        if found.lease_until > now:
            wait = found.lease_until - now + self._uniform(0, 1)
            return self._verdict(notification, Outcome.PUT_OFF, come_back_in=wait)
        if found.status not in {Status.UNKNOWN, Status.SENDING}:
            # It was given back between our two looks at it.
            return self._verdict(notification, Outcome.PUT_OFF, come_back_in=1)
        can_be_asked_at = found.in_flight_until + self._policy.settle_window_seconds
        if can_be_asked_at > now:
            wait = can_be_asked_at - now + self._uniform(0, 1)
            return self._verdict(
                notification, Outcome.UNSETTLED, come_back_in=min(LONGEST_WAIT_SECONDS, wait)
            )
        question = self._ledger.question(found, turn.lease_until)
        return question or self._verdict(notification, Outcome.PUT_OFF, come_back_in=30)

    def _deliver(
        self,
        notification: Notification,
        claim: Claim,
        bot: Bot | None,
        identity: Identity | None,
        turn: Turn,
    ) -> Verdict:
        """Bring one claimed notification to its end, or as near to it as it gets now."""
        if claim.status is Status.UNKNOWN:
            return self._settle_unknown(notification, claim, bot, turn)
        try:
            try:
                wanted = self._wanted(notification, bot)
            except Rejected as failure:
                return self._give_up(notification, claim, failure)
            return self._try(notification, claim, wanted, identity, turn)
        except Exception:
            # Whatever failed: of what was surely not sent the ledger must not say that it may be.
            if notification.key not in turn.posted:
                self._ledger.release_unsent(claim)
            raise

    def _try(
        self,
        notification: Notification,
        claim: Claim,
        bot: Bot,
        identity: Identity | None,
        turn: Turn,
    ) -> Verdict:
        """Send one claimed notification; tell failures apart by what follows from them."""
        known = claim.status is Status.SENDING
        claimed_at = self._clock.now()
        try:
            address = self._identify(notification, bot, identity, turn)
            if not known:
                claim = self._ledger.start_sending(claim, turn.lease_until)
            self._send(notification, claim, bot, address, turn, known=known)
        except PutOff as wait:
            self._ledger.release(claim, attempted=False)
            return self._put_off(notification, wait)
        except ClaimLost as lost:
            return self._lost(notification, lost)
        except Rejected as failure:
            return self._give_up(notification, claim, failure)
        except Transient as failure:
            return self._retry(notification, claim, failure)
        except Throttled as failure:
            self._ledger.release(claim, attempted=False)
            plan: Plan = "messages" if claim.status is Status.SENDING else "commands"
            return self._throttled(notification, bot, plan, failure, turn)
        except Misconfigured as failure:
            return self._misconfigured(notification, claim, bot, failure, turn)
        except Unknown as failure:
            self._ledger.settle_unknown(claim)
            return self._verdict(
                notification,
                Outcome.UNKNOWN,
                come_back_in=min(LONGEST_WAIT_SECONDS, self._policy.settle_window_seconds + 1),
                detail=failure.detail,
                no_answer=True,
            )
        poll_at = self._clock.now() + FIRST_POLL_SECONDS if bot.receipts == "history" else None
        self._ledger.settle_sent(claim, poll_at)
        self._meter.took("claimed_to_sent", self._clock.now() - claimed_at)
        sent_as = Control(message_id(claim.key, claim.generation), turn.posted[notification.key])
        return self._verdict(notification, Outcome.SENT, sent_as=(bot.name, sent_as))

    def _lost(self, notification: Notification, lost: ClaimLost) -> Verdict:
        if lost.forgotten:  # while we looked the recipient up: nobody else would erase it
            self._identities.erase(notification.recipient)
        return self._verdict(notification, Outcome.PUT_OFF, come_back_in=self._uniform(5, 10))

    def _wanted(self, notification: Notification, bot: Bot | None) -> Bot:
        """Give the bot of a notification that may still be sent.

        Raises:
            Rejected: it may not, whatever happens.
        """
        request = notification.request
        now = self._clock.now()
        if request.valid_until is not None and request.valid_until.timestamp() <= now:
            raise Rejected(
                Reason.EXPIRED, f"valid until {request.valid_until.isoformat()}, which has passed"
            )
        if now - notification.queued.published_at >= self._policy.max_wait_seconds:
            days = self._policy.max_wait_seconds / 86_400
            raise Rejected(Reason.WAITED_TOO_LONG, f"it lay on the queue for {days:g} days")
        if notification.queued.published_at < self._policy.ledger_restored_at:
            raise Rejected(
                Reason.OUTCOME_UNKNOWN,
                "it is older than the ledger's restoration from a backup, and may have been sent",
            )
        if not request.to.startswith(self._policy.allowed_recipients):
            raise Rejected(
                Reason.NOT_ALLOWED,
                "this stack may not send to the recipient: its parameter AllowedRecipients names "
                "those that it may",
            )
        if bot is None:
            raise Rejected(
                Reason.UNKNOWN_BOT,
                f"the bots' secret has no entry {request.bot!r}: add it, or mend the request",
            )
        return bot

    def _identify(
        self,
        notification: Notification,
        bot: Bot,
        identity: Identity | None,
        turn: Turn,
    ) -> str:
        """Give the recipient's identity. BLiP is asked by one sandbox at a time per recipient.

        Many look-ups that no send follows get the number banned: this one starts only when the
        send can follow it.
        """
        self._meter.count("identity_miss" if identity is None else "identity_hit")
        if identity is not None:
            return _address(identity)
        lease = self._identities.lease(notification.recipient, LOOK_UP_LEASE_SECONDS)
        if isinstance(lease, Identity):
            return _address(lease)
        if lease is None:
            return _address(self._identity_found_by_another(notification))
        try:
            address = self._ask(bot, lambda bot: self._look_up(notification, bot, turn))
        except Rejected as failure:
            if failure.reason is Reason.NOT_A_PHONE_NUMBER:
                self._identities.store(lease, Identity(None, failure.code))
            else:
                self._identities.release(lease)
            raise
        except (PutOff, Transient, Throttled, Misconfigured):
            self._identities.release(lease)
            raise
        self._identities.store(lease, Identity(address))
        return address

    def _look_up(self, notification: Notification, bot: Bot, turn: Turn) -> str:
        time_for_both = 2 * (CALL_SECONDS + SETTLE_SECONDS)
        turn.check(bot.name)
        turn.needs(time_for_both)

        def on_connected() -> None:
            turn.wait_for_slot(bot, "commands", known=False, after=time_for_both)
            turn.looked_up.add(notification.key)

        return self._blip.look_up(bot, notification.request.to, on_connected)

    def _identity_found_by_another(self, notification: Notification) -> Identity:
        """Watch the table for what another sandbox is looking up.

        Raises:
            PutOff: it takes too long; we come back, and do not ask BLiP a second time.
        """
        give_up_at = self._clock.now() + LOOK_UP_RACE_SECONDS
        while self._clock.now() < give_up_at:
            self._clock.sleep(LOOK_UP_POLL_SECONDS)
            identity = self._identities.get(notification.recipient)
            if identity is not None:
                return identity
        raise PutOff(self._uniform(1, 5))

    def _send(
        self,
        notification: Notification,
        claim: Claim,
        bot: Bot,
        address: str,
        turn: Turn,
        *,
        known: bool,
    ) -> None:
        """Send it when its slot has come. Nothing is sent that would not be wanted any more."""
        time_for_it = CALL_SECONDS + SETTLE_SECONDS

        def on_connected() -> None:
            turn.wait_for_slot(bot, "messages", known=known, after=time_for_it)
            self._wanted(notification, bot)
            turn.posted[notification.key] = self._clock.now()

        def send(bot: Bot) -> None:
            turn.check(bot.name)
            turn.needs(time_for_it)
            self._blip.send(
                bot,
                message_id(claim.key, claim.generation),
                address,
                notification.request.template,
                on_connected,
            )

        try:
            self._ask(bot, send)
        except (PutOff, Transient, Throttled, Misconfigured):
            turn.posted.pop(notification.key, None)  # surely not sent, whatever the ledger takes
            raise

    def _ask[Answer](self, bot: Bot, call: Callable[[Bot], Answer]) -> Answer:
        """Call BLiP; if it does not like the key or the URL, once more with the secret afresh."""
        try:
            return call(bot)
        except Misconfigured:
            try:
                fresh = self._secrets.fresh(bot.name, bot)
            except BotsSecretError as error:
                raise Misconfigured(str(error)) from None
            if not isinstance(fresh, Bot) or fresh == bot:
                raise
            return call(fresh)

    # --- what may have gone out -------------------------------------------------------------------

    def _settle_unknown(
        self, notification: Notification, claim: Claim, bot: Bot | None, turn: Turn
    ) -> Verdict:
        """Ask BLiP's history whether a send whose outcome is unknown went out after all."""
        if bot is None:
            return self._unsettled(notification, claim)
        asked_about = message_id(claim.key, claim.generation)
        try:
            receipts = self._ask(bot, lambda bot: self._history(asked_about, bot, turn))
        except Throttled as failure:
            self._ledger.put_back(claim)
            return self._throttled(notification, bot, "commands", failure, turn)
        except PutOff as wait:
            self._ledger.put_back(claim)
            return self._put_off(notification, wait)
        except (Rejected, Transient, Misconfigured) as failure:  # which is no answer
            return self._unsettled(notification, claim, failure.detail)
        if not receipts:
            return self._not_shown(notification, claim, bot, turn)
        self._history_shows(bot, claim.in_flight_until - LONGEST_LEASE_SECONDS, turn)
        if bot.receipts == "history":
            self._ledger.settle_sent(claim, self._clock.now() + FIRST_POLL_SECONDS)
        self._receipts.record(latest(receipts))
        return self._verdict(notification, Outcome.SETTLED)

    def _history(self, asked_about: str, bot: Bot, turn: Turn) -> list[Receipt]:
        time_for_it = CALL_SECONDS + SETTLE_SECONDS
        turn.needs(time_for_it)
        return self._blip.history(
            bot,
            asked_about,
            lambda: turn.wait_for_slot(bot, "commands", known=True, after=time_for_it),
        )

    def _history_shows(self, bot: Bot, sent_at: float, turn: Turn) -> None:
        """Record how far BLiP's history goes, if that is news."""
        if sent_at > turn.state(bot.name).history_seen:
            self._pacing.history_shows(bot.name, sent_at)

    def _unsettled(
        self, notification: Notification, claim: Claim, detail: str | None = None
    ) -> Verdict:
        """Ask again later; give up what BLiP's history has forgotten by now."""
        if self._clock.now() - claim.in_flight_until >= HISTORY_SECONDS:
            return self._give_up(notification, claim, _outcome_unknown(self._policy))
        self._ledger.put_back(claim)
        window = self._policy.settle_window_seconds
        later = min(LONGEST_WAIT_SECONDS, self._uniform(window / 3, window))
        return self._verdict(notification, Outcome.UNSETTLED, come_back_in=later, detail=detail)

    def _not_shown(self, notification: Notification, claim: Claim, bot: Bot, turn: Turn) -> Verdict:
        """Believe a history that shows nothing only if it shows a message of that time.

        It may lag, or its answer be one that we cannot read: an empty answer alone would send
        every unknown twice. That it fills in the order of time is inferred, not documented.
        """
        if self._clock.now() - claim.in_flight_until >= HISTORY_SECONDS:
            return self._unsettled(notification, claim)
        resend = notification.request.if_unknown == "resend" and claim.denials == 0
        known_by = claim.in_flight_until + CLOCK_SKEW_SECONDS
        if not resend or turn.state(bot.name).history_seen >= known_by:
            return self._denied(notification, claim)
        for_long = self._clock.now() - claim.in_flight_until >= WITHOUT_LATER_MESSAGE_SECONDS
        control = _control(claim, turn.state(bot.name), self._clock.now())
        if control is None:
            if for_long:
                return self._give_up(notification, claim, _outcome_unknown(self._policy))
            return self._unsettled(notification, claim)
        is_later = control.at >= known_by
        if (is_later or for_long) and self._is_shown(control, bot, turn):
            return self._denied(notification, claim)
        # Bound to its control, which is replaced every few minutes, so that it grows old enough.
        return self._unsettled(notification, replace(claim, control=control) if is_later else claim)

    def _is_shown(self, control: Control, bot: Bot, turn: Turn) -> bool:
        """Ask BLiP's history about a message that BLiP surely took, once for the whole round."""
        try:
            shown = turn.once.ask(
                control.message_id, lambda: self._history(control.message_id, bot, turn)
            )
        except Throttled as failure:
            self._shut(bot, "commands", failure, turn)
            return False
        except (Failure, PutOff):  # which is no answer
            return False
        if shown:
            self._history_shows(bot, control.at, turn)
        return bool(shown)

    def _denied(self, notification: Notification, claim: Claim) -> Verdict:
        """Send it again, once, if the producer wants that: BLiP never had it."""
        valid_until = notification.request.valid_until
        if valid_until is not None and valid_until.timestamp() <= self._clock.now():
            return self._give_up(
                notification,
                claim,
                Rejected(Reason.EXPIRED, f"valid until {valid_until.isoformat()}, never sent"),
            )
        if notification.request.if_unknown == "resend" and claim.denials == 0:
            self._ledger.deny(claim)
            return self._verdict(notification, Outcome.DENIED, come_back_in=0)
        return self._give_up(notification, claim, _outcome_unknown(self._policy))

    # --- what follows -----------------------------------------------------------------------------

    def _retry(
        self,
        notification: Notification,
        claim: Claim,
        failure: Transient | Misconfigured,
        outcome: Outcome = Outcome.RETRYING,
        *,
        no_answer: bool = True,
    ) -> Verdict:
        if claim.attempts >= self._policy.max_attempts:
            exhausted = Rejected(
                Reason.RETRIES_EXHAUSTED,
                f"{claim.attempts} attempts failed, the last one: {failure.detail}",
                code=failure.code,
            )
            return replace(self._give_up(notification, claim, exhausted), no_answer=no_answer)
        self._ledger.release(claim, attempted=True)
        longest = min(
            self._policy.backoff_max_seconds,
            self._policy.backoff_base_seconds * 2.0**claim.attempts,
        )
        wait = max(self._policy.backoff_base_seconds, self._uniform(0, longest))
        if notification.request.valid_until is not None:
            # It comes back in time to be told apart as expired, and not long after.
            wait = min(wait, notification.request.valid_until.timestamp() - self._clock.now())
        return self._verdict(
            notification,
            outcome,
            come_back_in=max(0, wait),
            detail=failure.detail,
            no_answer=no_answer,
        )

    def _throttled(
        self, notification: Notification, bot: Bot, plan: Plan, failure: Throttled, turn: Turn
    ) -> Verdict:
        seconds = self._shut(bot, plan, failure, turn)
        return self._verdict(
            notification,
            Outcome.THROTTLED,
            come_back_in=self._uniform(seconds, 1.1 * seconds + 5),
            detail=failure.detail,
            bot_still=True,
        )

    def _shut(self, bot: Bot, plan: Plan, failure: Throttled, turn: Turn) -> float:
        """Keep every sandbox away from the bot for the penalty; return its seconds."""
        asked = failure.retry_after_seconds or self._policy.penalty_seconds
        seconds = min(asked, LONGEST_PENALTY_SECONDS)
        turn.stop(bot.name, seconds, Still.IN_PENALTY)
        if self._pacing.shut(bot, plan, self._clock.now() + seconds):
            self._meter.count("penalty_began")
        return seconds

    def _misconfigured(
        self,
        notification: Notification,
        claim: Claim,
        bot: Bot,
        failure: Misconfigured,
        turn: Turn,
    ) -> Verdict:
        """Find out whether the bot is wrong or only this notification: one ping per round tells.

        If the ping is answered, this was an attempt of the notification. Five different ones in a
        row open the breaker all the same: a bot without a WhatsApp channel answers pings. Only
        first attempts count for that, because a later one tells nothing new about the bot.
        """
        if bot.name in turn.probing:  # which was pinged for
            if self._is_alone_to_blame(notification, turn.state(bot.name)):
                return self._retry(notification, claim, failure, Outcome.REFUSED, no_answer=False)
        else:
            try:
                turn.needs(CALL_SECONDS + SETTLE_SECONDS)
                turn.once.ask(("ping", bot.name), lambda: self._ask(bot, self._blip.ping))
            except PutOff as wait:
                self._ledger.release(claim, attempted=False)
                return self._put_off(notification, wait)
            except Throttled as throttled:
                self._ledger.release(claim, attempted=False)
                return self._throttled(notification, bot, "commands", throttled, turn)
            except Failure:
                pass
            else:
                first = claim.attempts == 1
                return self._retry(notification, claim, failure, Outcome.REFUSED, no_answer=first)
        self._ledger.release(claim, attempted=False)
        logger.error(
            "the bot is misconfigured: its requests wait",
            extra={"bot": bot.name, "problem": failure.detail},
        )
        turn.stop(bot.name, None)
        self._pacing.open_breaker(bot.name, failure.detail)
        return self._verdict(
            notification,
            Outcome.MISCONFIGURED,
            come_back_in=self._breaker_wait(),
            bot_still=True,
        )

    def _is_alone_to_blame(self, notification: Notification, state: BotState) -> bool:
        """Return whether a refusal while the bot is probed is an attempt of the notification.

        Else it costs none, for the bot may be without a channel. But where only notifications are
        left that are refused, nothing would ever close the breaker: what is a day old, and was
        published within a day of a message that BLiP took, has waited long enough for that.
        """
        published_at = notification.queued.published_at
        worked = bool(state.controls) and state.controls[-1].at > published_at - DAY_SECONDS
        return worked and self._clock.now() - published_at > DAY_SECONDS

    def _breaker_wait(self) -> float:
        wait = self._policy.breaker_wait_seconds
        return self._uniform(wait, 1.5 * wait)

    def _cancelled(self, notification: Notification, found: Standing) -> Verdict:
        """Send nothing. If it was cancelled in advance, its status event waits for the request."""
        if not (found.template or found.forgotten):
            self._ledger.complete_cancelled(notification)
        return self._verdict(notification, Outcome.CANCELLED)

    def _give_up(self, notification: Notification, claim: Claim, failure: Rejected) -> Verdict:
        """Dead letter first, then the ledger: a crash in between repeats it and loses nothing."""
        phases = {Status.CLAIMED: "look-up", Status.SENDING: "send"}
        phase = phases.get(claim.status, "settle")
        status = final_status(failure.reason)
        if failure.reason in _NEVER_TRIED and claim.status is Status.CLAIMED:
            claim = replace(claim, attempts=claim.attempts - 1)
        self._dead_letter(notification, failure, claim.generation, phase, claim.attempts)
        self._ledger.end(claim, status, failure.reason, failure.code)
        return self._verdict(
            notification, Outcome.DEAD_LETTER, reason=failure.reason, detail=failure.detail
        )

    def _conflict(self, notification: Notification) -> Verdict:
        """Keep the second content apart; the notification that has the id goes on undisturbed."""
        failure = Rejected(
            Reason.ID_CONFLICT,
            "another request with other content has this id: use a new id for other content",
        )
        request, queued = notification.request, notification.queued
        if not self._refusals.holds(request.bot, request.id, queued.record_id):
            # Without a generation: a redrive of it must not take the place of the one with the id.
            self._dead_letter(notification, failure, None, "claim", 0)
            refusal = Refusal(
                queued.record_id, failure.reason, request.metadata, request.correlation_id
            )
            self._refusals.keep(request.bot, request.id, refusal)
        return self._verdict(notification, Outcome.DEAD_LETTER, reason=failure.reason)

    def _dead_letter(
        self,
        notification: Notification,
        failure: Rejected,
        generation: int | None,
        phase: str,
        attempts: int,
    ) -> None:
        self._dead_letters.put(
            notification.queued.body,
            failure.reason,
            {
                "detail": failure.detail,
                "code": failure.code,
                "template": notification.request.template.name,
                "phase": phase,
                "attempts": attempts,
                "possibly_sent": failure.reason is Reason.OUTCOME_UNKNOWN,
                "redrives": notification.queued.redrives,
            },
            bot=notification.request.bot,
            notification_id=notification.request.id,
            generation=generation,
        )

    def _set_aside(self, queued: QueuedRequest, failure: Unusable) -> Verdict:
        """Keep a request that cannot be understood, with its reasons."""
        bot, notification_id = failure.bot or "default", failure.notification_id
        if notification_id is None:
            self._dead_letter_unusable(queued, failure)
        elif not self._refusals.holds(bot, notification_id, queued.record_id):
            self._dead_letter_unusable(queued, failure)
            refusal = Refusal(
                queued.record_id, failure.reason, correlation_id=failure.correlation_id
            )
            self._refusals.keep(bot, notification_id, refusal)
        facts = {
            "reason": failure.reason.value,
            "notification_id": notification_id,
            "bot": failure.bot,
            "correlation_id": failure.correlation_id,
            "record_id": queued.record_id,
            "detail": failure.detail,
        }
        logger.warning("dead letter", extra=facts)
        return Verdict(queued, Outcome.DEAD_LETTER, reason=failure.reason)

    def _dead_letter_unusable(self, queued: QueuedRequest, failure: Unusable) -> None:
        self._dead_letters.put(
            queued.body,
            failure.reason,
            {
                "detail": failure.detail,
                "fields": [
                    {"field": error.field, "problem": error.problem} for error in failure.fields
                ],
                "template": failure.template,
                "phase": "contract",
                "attempts": 0,
                "possibly_sent": False,
                "redrives": queued.redrives,
            },
            bot=failure.bot,
            notification_id=failure.notification_id,
            generation=None,
        )

    def _put_off(self, notification: Notification, wait: PutOff) -> Verdict:
        seconds = self._breaker_wait() if wait.seconds is None else wait.seconds
        if wait.for_slot:
            seconds += self._uniform(0, self._patience(notification))
        return self._verdict(
            notification,
            Outcome.PUT_OFF if wait.why is None else Outcome(wait.why),
            come_back_in=seconds,
            bot_still=wait.why is not None,
        )

    def _patience(self, notification: Notification) -> float:
        """Give by how much a wait for a slot may be longer than the slot is away.

        Who has waited for long can wait for longer: else each request of a backlog of days would
        come by every few seconds, and SQS takes what it has shown a thousand times for dead.
        """
        now = self._clock.now()
        waited = now - notification.queued.published_at
        valid_until = notification.request.valid_until
        left = valid_until.timestamp() - now if valid_until is not None else waited
        return max(0.0, min(LONGEST_PATIENCE_SECONDS, waited / 30, left / 30))

    def _again(self, queued: QueuedRequest, least: float, most: float) -> float:
        """Give a wait that doubles with every visit, where nothing counts attempts."""
        factor = min(2.0 ** min(queued.receives - 1, 16), LONGEST_WAIT_SECONDS / most)
        return self._uniform(factor * least, factor * most)

    def _verdict(
        self,
        notification: Notification,
        outcome: Outcome,
        *,
        come_back_in: float | None = None,
        reason: Reason | None = None,
        detail: str | None = None,
        no_answer: bool = False,
        bot_still: bool = False,
        sent_as: tuple[str, Control] | None = None,
    ) -> Verdict:
        facts = {
            "notification_id": notification.request.id,
            "bot": notification.request.bot,
            "key": notification.key,
            "correlation_id": notification.request.correlation_id,
            "come_back_in": come_back_in and round(come_back_in, 1),
            "reason": reason,
            "detail": detail,
        }
        logger.info(
            outcome.value,
            extra={name: fact for name, fact in facts.items() if fact is not None},
        )
        return Verdict(
            notification.queued,
            outcome,
            come_back_in,
            reason,
            notification,
            no_answer,
            bot_still,
            sent_as,
        )

    def _outcome[Result](
        self,
        queued: QueuedRequest,
        future: Future[Result],
        notification: Notification | None = None,
    ) -> Result | Verdict:
        """Give a thread's result. What nobody foresaw hurts this record only, and is no secret.

        The ledger still holds the claim: its lease ends by itself, and says then what was going on.
        """
        crash = future.exception()
        if crash is None:
            return future.result()
        facts = {"record_id": queued.record_id, **crash_facts(crash)}
        if notification is not None:
            request = notification.request
            facts |= {"notification_id": request.id, "bot": request.bot, "key": notification.key}
            if request.correlation_id is not None:
                facts["correlation_id"] = request.correlation_id
        logger.error("delivery crashed", extra=facts)
        return Verdict(queued, Outcome.CRASHED, come_back_in=self._again(queued, 30, 60))


def _understood(queued: QueuedRequest) -> Notification:
    parsed = parse(queued.body)
    request = parsed.request
    return Notification(queued, request, parsed.content_hash, ledger_key(request.bot, request.id))


def _answers(
    verdicts: Iterable[Verdict], identities: Mapping[tuple[str, str], Identity]
) -> tuple[set[str], dict[str, set[str]]]:
    """Give the bots of which BLiP gave a definite answer; and by bot what it gave none for."""
    answered: set[str] = set()
    failing: dict[str, set[str]] = defaultdict(set)
    for verdict in verdicts:
        if verdict.notification is None:
            continue
        bot = verdict.notification.request.bot
        looked_up = verdict.notification.recipient not in identities
        if (
            verdict.outcome is Outcome.SENT
            or verdict.reason is Reason.REJECTED
            or (verdict.reason is Reason.NOT_A_PHONE_NUMBER and looked_up)
        ):
            answered.add(bot)
        elif verdict.no_answer:
            failing[bot].add(verdict.notification.key)
    return answered, failing


def _control(claim: Claim, state: BotState, now: float) -> Control | None:
    """Return the message whose place in the history tells whether it covers an unknown's time.

    The one that the unknown is bound to; else the older one of those that were sent after it; else
    the newest one before it, as long as BLiP keeps it.
    """
    if claim.control is not None:
        return claim.control
    known_by = claim.in_flight_until + CLOCK_SKEW_SECONDS
    later = [control for control in state.controls if control.at >= known_by]
    kept = [control for control in state.controls if now - control.at < HISTORY_SECONDS]
    return later[0] if later else kept[-1] if kept else None


def _rounds(notifications: Iterable[Notification], size: int) -> list[list[Notification]]:
    """Split a batch so that the second of two equal notifications or recipients waits.

    So the second finds what the first has settled, and WhatsApp, which limits how fast one person
    may be written to, sees them one after the other. No round is larger than can start at once.
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


def _address(identity: Identity) -> str:
    if identity.address is None:
        raise Rejected(
            Reason.NOT_A_PHONE_NUMBER,
            "BLiP's look-up says that the recipient is not a phone number on WhatsApp",
            code=identity.code,
        )
    return identity.address


def _outcome_unknown(policy: Policy) -> Rejected:
    minutes = policy.settle_window_seconds / 60
    return Rejected(
        Reason.OUTCOME_UNKNOWN,
        f"it may have been sent; BLiP's history did not show it within {minutes:g} minutes",
    )
