"""The policy, and every wait of a request. All times in seconds.

Every wait is at least a sixtieth of the request's age, an hour at most. So SQS, which gives up
after a thousand receives, delivers it less than 700 times in a week, whatever the parameters are.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from notifier.domain.notification import Notification, QueuedRequest

# The longest wait at a time, except for a slot, so that every change is noticed.
MAX_WAIT_SECONDS = 900.0
PART_OF_AGE = 1 / 60
# The most that is added to the wait for a slot, and the most that a request's age makes of a wait.
MAX_JITTER_SECONDS = 3600.0
# SQS delivers nothing while 120,000 requests are in flight: those of a bot on hold would then keep
# every other bot's waiting. From CROWDED on they are in flight for short times only.
CROWDED = 80_000
CROWDED_SECONDS = (20.0, 30.0)
# What waits for the end of a cooldown does not come back all at once.
BACK_PER_SECOND = 200


@dataclass(frozen=True, slots=True)
class Policy:
    """What operators may tune. See the template's parameters.

    Attributes:
        allowed_recipients: only numbers that start with one of these may be sent to.
        ledger_restored_at: when the ledger was restored from a backup, in epoch seconds. What it
            says of requests that are older is not to be trusted: they may have been sent.
        maximum_concurrency: how many batches are under way at a time at most.
    """

    cooldown_seconds: int = 120
    breaker_wait_seconds: int = 600
    backoff_base_seconds: int = 5
    backoff_max_seconds: int = 900
    settle_window_seconds: int = 900
    max_attempts: int = 20
    max_wait_seconds: int = 604_800
    allowed_recipients: tuple[str, ...] = ("+",)
    ledger_restored_at: float = 0.0
    maximum_concurrency: int = 5


@dataclass(frozen=True, slots=True)
class Waits:
    """The waits that follow from the policy. `uniform` draws a number between two bounds."""

    policy: Policy
    uniform: Callable[[float, float], float] = random.uniform

    def jittered(self, seconds: float, jitter: float = 1.0) -> float:
        """Return a wait with a little more, so that not all come back at once."""
        return seconds + self.uniform(0, jitter)

    def for_bot(self) -> float:
        """Return the wait of a request whose bot is broken, paused or invalid."""
        wait = self.policy.breaker_wait_seconds
        return self.uniform(wait, 1.5 * wait)

    def for_cooldown(self, seconds: float) -> float:
        """Return the wait of the request that BLiP throttled."""
        return self.uniform(seconds, 1.1 * seconds + 5)

    def for_retry(self, attempts: int, valid_until: float | None, now: float) -> float:
        """Return the wait before the next attempt: random, with a bound that doubles."""
        policy = self.policy
        bound = min(policy.backoff_max_seconds, policy.backoff_base_seconds * 2.0**attempts)
        wait = max(policy.backoff_base_seconds, self.uniform(0, bound))
        if valid_until is not None:
            # It comes back in time to be found expired, and not long after.
            wait = min(wait, valid_until - now)
        return max(0, wait)

    def for_settling(self, seconds: float | None = None) -> float:
        """Return the wait before BLiP's history is asked about an unknown.

        Args:
            seconds: how far away the end of the settle window is; None: it has passed.
        """
        window = self.policy.settle_window_seconds
        if seconds is None:
            return min(MAX_WAIT_SECONDS, self.uniform(window / 3, window))
        return min(MAX_WAIT_SECONDS, self.jittered(seconds))

    def receive_backoff(self, queued: QueuedRequest, least: float, most: float) -> float:
        """Return a wait that doubles with every receive, where nothing counts attempts."""
        factor = min(2.0 ** min(queued.receive_count - 1, 16), MAX_WAIT_SECONDS / most)
        return self.uniform(factor * least, factor * most)

    def slot_jitter(self, notification: Notification, now: float) -> float:
        """Return by how much a wait for a slot is longer than the slot is away.

        A request that has waited long waits longer: else each request of a backlog of days would
        come by every few seconds, and SQS gives up what it has delivered a thousand times.
        """
        waited = now - notification.queued.published_at
        valid_until = notification.valid_until
        left = waited if valid_until is None else valid_until - now
        return self.uniform(0, max(0.0, min(MAX_JITTER_SECONDS, waited / 30, left / 30)))

    def on_hold(self, seconds: float, in_flight: int, *, cooling_down: bool) -> float:
        """Return the wait of a request whose bot is on hold.

        Args:
            seconds: how long it would be, if the request were alone.
            in_flight: how many requests are in flight.
            cooling_down: BLiP has throttled the bot.
        """
        if in_flight >= CROWDED:
            return min(seconds, self.uniform(*CROWDED_SECONDS))
        if cooling_down:
            return self.jittered(seconds, in_flight / BACK_PER_SECOND)
        return seconds


def least_wait(queued: QueuedRequest, valid_until: float | None, now: float) -> float:
    """Return the shortest wait for a request of its age."""
    least = min(MAX_JITTER_SECONDS, (now - queued.published_at) * PART_OF_AGE)
    # The nearer its end, the more often it gets its chance.
    return least if valid_until is None else min(least, (valid_until - now) / 10)
