"""The bots' secret in Secrets Manager, cached for five minutes. Nothing of it is ever logged."""

from typing import TYPE_CHECKING

from notifier.aws.cached_secret import FRESH_SECONDS, CachedSecret
from notifier.domain.bots import Bot, Bots, InvalidBot, parse_bots

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_secretsmanager import SecretsManagerClient


class SecretsManagerBots:
    """The bots of the stack. Thread-safe."""

    def __init__(
        self, secrets_manager: "SecretsManagerClient", secret: str, now: "Callable[[], float]"
    ) -> None:
        def read() -> Bots:
            return parse_bots(secrets_manager.get_secret_value(SecretId=secret)["SecretString"])

        self._cached = CachedSecret("bots", read, now)

    def bots(self) -> Bots:
        """Return every bot by name.

        Raises:
            BotsSecretError: the secret is not a JSON object.
        """
        return self._cached.value()

    def fresh(self, name: str, stale: Bot | None) -> Bot | InvalidBot | None:
        """Return a bot that did not work, or was not there, as the secret has it now.

        Args:
            name: the bot's name.
            stale: the bot as the caller knows it; None if it knows none of that name.

        Raises:
            BotsSecretError: the secret is not a JSON object.
        """
        bot = (self._cached.known or {}).get(name)
        if bot != stale:
            return bot  # another thread has read it meanwhile
        return self._cached.value(FRESH_SECONDS).get(name)
