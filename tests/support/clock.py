"""Clocks that tests move: one that stands still, and the machine's."""

import time
from threading import Lock, RLock


class Clock:
    """A clock that stands still until a thread sleeps. Threads sleep at the same time.

    Attributes:
        slept: each sleep in seconds, in order.
    """

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._lock = RLock()
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            until = self._now + seconds
            with self._lock:
                self.slept.append(seconds)
                self._now = max(self._now, until)

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


class MachineClock:
    """The machine's clock, which a test moves forward instead of waiting.

    Called, it returns itself: it can replace the class `SystemClock`.

    Attributes:
        slept: each sleep in seconds, in order.
    """

    def __init__(self) -> None:
        self._ahead = 0.0
        self._lock = Lock()
        self.slept: list[float] = []

    def __call__(self) -> "MachineClock":
        return self

    def now(self) -> float:
        return time.time() + self._ahead

    def sleep(self, seconds: float) -> None:
        until = self.now() + seconds
        with self._lock:
            if seconds > 0:
                self.slept.append(seconds)
            self._ahead = max(self._ahead, until - time.time())

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._ahead += seconds
