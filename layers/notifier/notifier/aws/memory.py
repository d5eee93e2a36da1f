"""What one sandbox remembers of a table, for a while."""

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

MEMORY_SECONDS = 300.0
MEMORY_ENTRIES = 10_000


class Memory[Key: "Hashable", Value]:
    """The last MEMORY_ENTRIES values, for MEMORY_SECONDS at most. Thread-safe."""

    def __init__(self, now: "Callable[[], float]") -> None:
        self._now = now
        self._entries: OrderedDict[Key, tuple[float, Value]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> Value | None:
        """Return what is remembered; None if nothing is."""
        with self._lock:
            entry = self._entries.get(key)
        return entry[1] if entry is not None and entry[0] > self._now() else None

    def keep(self, key: Key, value: Value, good_until: float = float("inf")) -> None:
        """Remember a value, no longer than it is good."""
        with self._lock:
            self._entries[key] = (min(good_until, self._now() + MEMORY_SECONDS), value)
            self._entries.move_to_end(key)
            if len(self._entries) > MEMORY_ENTRIES:
                self._entries.popitem(last=False)

    def drop(self, key: Key) -> None:
        """Remember nothing of a key."""
        with self._lock:
            self._entries.pop(key, None)
