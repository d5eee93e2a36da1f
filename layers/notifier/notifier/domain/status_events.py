"""Changes of status, as upstream systems hear of them."""

from dataclasses import dataclass
from enum import StrEnum

from notifier.domain.failures import Reason
from notifier.domain.status import Status


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """A change of status, as upstream systems hear of it. No phone number, no parameter.

    Attributes:
        key: the notification; with generation, status and reason it names the event.
        time: when it changed. With these four it is one entry of the ledger.
        category: of its template; None where the registry did not have it.
    """

    key: str
    notification_id: str
    bot: str
    status: Status
    generation: int
    time: float
    reason: Reason | None
    metadata: dict[str, str]
    correlation_id: str | None = None
    category: str | None = None

    @property
    def entry(self) -> tuple[Status, int, float, Reason | None]:
        """What distinguishes it from the other events of its notification."""
        return (self.status, self.generation, self.time, self.reason)


class Publication(StrEnum):
    """What became of an event that was put on the bus."""

    TAKEN = "taken"
    REFUSED = "refused"  # for its own sake, and would be for ever
    NOT_NOW = "not now"  # the bus is throttled or away, or denies access
