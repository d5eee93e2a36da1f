"""The clock, and what measures."""

from typing import Protocol


class Clock(Protocol):
    """Wall clock in epoch seconds, and waiting."""

    def now(self) -> float:
        """Return the time."""

    def sleep(self, seconds: float) -> None:
        """Wait; no time at all for what lies in the past."""


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
