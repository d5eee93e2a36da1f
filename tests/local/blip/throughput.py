"""The plan's limits: how many envelopes a key may send in any second, and the penalty for more."""

from collections import deque


class Meter:
    """Counts one key's envelopes of one kind over a sliding second.

    Attributes:
        highest: the most that were seen in any second, refused ones included.
    """

    def __init__(self) -> None:
        self.highest = 0
        self._times: deque[float] = deque()

    def count(self, now: float) -> int:
        """Count one envelope and tell how many there were in the second that ends now."""
        times = self._times
        times.append(now)
        while times[0] <= now - 1:
            times.popleft()
        self.highest = max(self.highest, len(times))
        return len(times)


class Throttle:
    """One key's meters and its penalty, which shuts the whole key, whatever kind broke the plan."""

    def __init__(self) -> None:
        self.meters = {"messages": Meter(), "notifications": Meter(), "commands": Meter()}
        self.penalties = 0
        self.shut_until = 0.0

    def refuses(
        self, kind: str, limit: float | None, penalty_seconds: float, now: float
    ) -> float | None:
        """Count one envelope; for how many seconds the key is shut, or None where it may pass."""
        count = self.meters[kind].count(now)
        if now >= self.shut_until:
            if limit is None or count <= limit:
                return None
            self.penalties += 1
            self.shut_until = now + penalty_seconds
        return self.shut_until - now
