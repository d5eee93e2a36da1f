"""The clock, and what measures."""

from typing import Protocol


class WallClock(Protocol):
    """The time, in epoch seconds."""

    def now(self) -> float:
        """Return the time."""


class Clock(WallClock, Protocol):
    """The time, and waiting."""

    def sleep(self, seconds: float) -> None:
        """Wait; return at once if `seconds` is not positive."""


class Meter(Protocol):
    """Measures what happens, for metrics; see `telemetry`."""

    def took(self, what: str, seconds: float) -> None:
        """Note how long something took."""

    def age(self, what: str, seconds: float) -> None:
        """Note how old something is."""

    def share(self, what: str, share: float) -> None:
        """Note a share, as a number from 0 to 1."""

    def count(self, what: str, number: int = 1) -> None:
        """Note that something happened."""
