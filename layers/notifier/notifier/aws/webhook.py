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


class WebhookSecret:
    """What BLiP has to show at the webhook. Both versions count while it is being rotated."""

    def __init__(
        self, secrets_manager: "SecretsManagerClient", secret: str, now: "Callable[[], float]"
    ) -> None:
        self._secrets_manager = secrets_manager
        self._secret = secret
        self._now = now
        self._accepted: list[bytes] = []
        self._fetched_at = float("-inf")

    def accepted(self, given: bytes) -> list[bytes]:
        """Give the secrets that are good now; fetched afresh if this one is not among them.

        That is done every FRESH_SECONDS at most, so that nobody who guesses makes us ask AWS.
        """
        age = self._now() - self._fetched_at
        known = any(hmac.compare_digest(given, secret) for secret in self._accepted)
        if age > CACHED_SECONDS or (not known and age > FRESH_SECONDS):
            self._fetch()
        return self._accepted

    def _fetch(self) -> None:
        """Fetch both versions. While AWS does not answer, those that we have stay good."""
        try:
            versions = [self._version(stage) for stage in ("AWSCURRENT", "AWSPREVIOUS")]
        except (BotoCoreError, ClientError) as error:
            if not self._accepted:
                raise
            logger.error(
                "the webhook's secret was not fetched: the known one stays good",
                extra=crash_facts(error),
            )
        else:
            self._accepted = [secret for secret in versions if secret]
        self._fetched_at = self._now()

    def _version(self, stage: str) -> bytes:
        try:
            answer = self._secrets_manager.get_secret_value(
                SecretId=self._secret, VersionStage=stage
            )
        except self._secrets_manager.exceptions.ResourceNotFoundException:
            return b""  # it was never rotated
        return answer["SecretString"].strip().encode()
