"""A clock that stands still until it is moved."""

from threading import RLock


class Clock:
    """Stands still until somebody sleeps; sleepers in several threads sleep at the same time."""

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
