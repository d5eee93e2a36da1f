"""The webhook's secret in Secrets Manager, cached for five minutes. Nothing of it is ever logged.

Apart from the bots' secret, so that the webhook's function does not import how bots are checked.
"""

import hmac
import logging
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from notifier.failures import crash_facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_secretsmanager import SecretsManagerClient

logger = logging.getLogger(__name__)

CACHED_SECONDS = 300.0
FRESH_SECONDS = 10.0
# How long the value before counts beside a new one: a day to enter it in BLiP's portal.
OVERLAP_SECONDS = 24 * 3600.0


class WebhookSecret:
    """What BLiP has to show at the webhook. The value before counts for a day after a rotation."""

    def __init__(
        self, secrets_manager: "SecretsManagerClient", secret: str, now: "Callable[[], float]"
    ) -> None:
        """Set up.

        Args:
            secrets_manager: boto3's client.
            secret: the secret's ARN.
            now: the wall clock in epoch seconds, as Secrets Manager dates its versions.
        """
        self._secrets_manager = secrets_manager
        self._secret = secret
        self._now = now
        self._current = self._previous = b""
        self._previous_until = 0.0
        self._fetched_at = float("-inf")

    def accepted(self, given: bytes) -> list[bytes]:
        """Give the secrets that are good now; fetched afresh if this one is not among them.

        That is done every FRESH_SECONDS at most, so that nobody who guesses makes us ask AWS.
        """
        age = self._now() - self._fetched_at
        known = any(hmac.compare_digest(given, secret) for secret in self._good())
        if age > CACHED_SECONDS or (not known and age > FRESH_SECONDS):
            self._fetch()
        return self._good()

    def _good(self) -> list[bytes]:
        overlap = self._now() < self._previous_until
        return [secret for secret in (self._current, self._previous if overlap else b"") if secret]

    def _fetch(self) -> None:
        """Fetch both versions. While AWS does not answer, those that we have stay good."""
        try:
            current, since = self._version("AWSCURRENT")
            previous, _ = self._version("AWSPREVIOUS")
        except (BotoCoreError, ClientError) as error:
            if not self._current:
                raise
            logger.error(
                "the webhook's secret was not fetched: the known one stays good",
                extra=crash_facts(error),
            )
        else:
            self._current, self._previous = current, previous
            self._previous_until = since + OVERLAP_SECONDS
        self._fetched_at = self._now()

    def _version(self, stage: str) -> tuple[bytes, float]:
        """Return a version of the secret, and when it was put."""
        try:
            answer = self._secrets_manager.get_secret_value(
                SecretId=self._secret, VersionStage=stage
            )
        except self._secrets_manager.exceptions.ResourceNotFoundException:
            return b"", 0.0  # it was never rotated
        return answer["SecretString"].strip().encode(), answer["CreatedDate"].timestamp()
