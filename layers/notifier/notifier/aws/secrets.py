"""The bots' secret in Secrets Manager, cached for five minutes. Nothing of it is ever logged."""

import logging
from threading import Lock
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from notifier.domain.bots import Bot, Bots, InvalidBot, parse_bots
from notifier.domain.failures import crash_facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_secretsmanager import SecretsManagerClient

logger = logging.getLogger(__name__)

CACHED_SECONDS = 300.0
# However many requests ask for a bot that is not there or not accepted, the secret is not
# fetched more often than this.
FRESH_SECONDS = 10.0


class SecretsManagerBots:
    """The bots of the stack. Thread-safe: one thread fetches, the others wait for it."""

    def __init__(
        self, secrets_manager: "SecretsManagerClient", secret: str, now: "Callable[[], float]"
    ) -> None:
        self._secrets_manager = secrets_manager
        self._secret = secret
        self._now = now
        self._bots: Bots = {}
        self._fetched_at = float("-inf")
        self._lock = Lock()

    def bots(self) -> Bots:
        """Return every bot by name.

        Raises:
            BotsSecretError: the secret is not a JSON object.
        """
        return self._not_older_than(CACHED_SECONDS)

    def fresh(self, name: str, stale: Bot | None) -> Bot | InvalidBot | None:
        """Return a bot that did not work, or was not there, as the secret has it now.

        Args:
            name: the bot's name.
            stale: the bot as the caller knows it; None if it knows none of that name.

        Raises:
            BotsSecretError: the secret is not a JSON object.
        """
        bot = self._bots.get(name)
        if bot != stale:
            return bot  # another thread has fetched it meanwhile
        return self._not_older_than(FRESH_SECONDS).get(name)

    def _not_older_than(self, seconds: float) -> Bots:
        with self._lock:
            if self._now() - self._fetched_at > seconds:
                self._fetch()
            return self._bots

    def _fetch(self) -> None:
        """Fetch the secret. While AWS does not answer, the bots that we have stay good."""
        try:
            answer = self._secrets_manager.get_secret_value(SecretId=self._secret)
        except (BotoCoreError, ClientError) as error:
            if not self._bots:
                raise
            logger.error(
                "the bots' secret was not fetched: the known one stays good",
                extra=crash_facts(error),
            )
        else:
            self._bots = parse_bots(answer["SecretString"])
        self._fetched_at = self._now()
