"""A secret of Secrets Manager, cached. Nothing of it is ever logged."""

import logging
from threading import Lock
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from notifier.domain.failures import crash_facts

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

CACHED_SECONDS = 300.0
# However often a value is asked for that the secret does not hold, Secrets Manager is not asked
# more often than this.
FRESH_SECONDS = 10.0


class CachedSecret[T]:
    """What a secret holds, as `read` returns it. Thread-safe: one thread reads, others wait.

    While Secrets Manager does not answer, the value that was read before stays valid.
    """

    def __init__(self, name: str, read: "Callable[[], T]", now: "Callable[[], float]") -> None:
        """Set up; nothing is read yet.

        Args:
            name: what log lines call the secret.
            read: reads the secret.
            now: the wall clock, in epoch seconds.
        """
        self._name = name
        self._read = read
        self._now = now
        self._value: T | None = None
        self._read_at = float("-inf")
        self._lock = Lock()

    @property
    def known(self) -> T | None:
        """The value as it was read last, however long ago; None before that."""
        return self._value

    def value(self, max_age_seconds: float = CACHED_SECONDS) -> T:
        """Return the value; read it again if it is older than that.

        Raises:
            BotoCoreError, ClientError: Secrets Manager does not answer, and no value is known.
        """
        with self._lock:
            if self._value is None or self._now() - self._read_at > max_age_seconds:
                self._value = self._refreshed()
                self._read_at = self._now()
            return self._value

    def _refreshed(self) -> T:
        try:
            return self._read()
        except (BotoCoreError, ClientError) as error:
            # An empty value is none: taking it for the truth would refuse every request.
            if not self._value:
                raise
            logger.error(
                "secret not read: the known value stays valid",
                extra={"secret": self._name, **crash_facts(error)},
            )
            return self._value
