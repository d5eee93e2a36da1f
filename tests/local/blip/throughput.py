"""The plan's limits: how many envelopes a key may send in any second, and the penalty for more."""

from collections import deque
from collections.abc import Iterator
from random import Random

from tests.local.blip.settings import Traffic


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
        self.throttled_until = 0.0

    def refuses(
        self,
        kind: str,
        limit: float | None,
        penalty_seconds: float,
        now: float,
        *,
        prolonged: bool = False,
    ) -> float | None:
        """Count one envelope; for how many seconds the key is shut, or None where it may pass."""
        count = self.meters[kind].count(now)
        if now >= self.throttled_until:
            if limit is None or count <= limit:
                return None
            self.penalties += 1
            self.throttled_until = now + penalty_seconds
        elif prolonged:
            self.throttled_until = now + penalty_seconds
        return self.throttled_until - now


class OtherTraffic:
    """Draws when others send with a bot's key.

    Attributes:
        sent, refused: how many messages so far, and how many of them met a penalty.
    """

    def __init__(self, traffic: Traffic, began: float, random: Random) -> None:
        self.sent = self.refused = 0
        self._traffic = traffic
        self._began = began
        self._random = random
        self._on_for = 0.0  # the seconds in bursts before the next message
        self._skip()

    def until(self, now: float) -> Iterator[float]:
        """Return the times, in order, of the messages since the last call."""
        while (at := self._time()) <= now:
            self.sent += 1
            self._skip()
            yield at

    def _skip(self) -> None:
        rate = self._traffic.messages_per_second
        drawn = self._traffic.spacing == "poisson"
        self._on_for += self._random.expovariate(rate) if drawn else 1 / rate

    def _time(self) -> float:
        on = self._traffic.on_seconds
        bursts, within = divmod(self._on_for, on)
        return self._began + bursts * on / self._traffic.on_share + within
