"""The webhook's secrets in Secrets Manager, cached for five minutes. Nothing of it is ever logged.

The value is a JSON object with one entry per bot:

    {"clinic": {"current": "…", "previous": "…", "rotated_at": "2026-11-26T09:00:00+00:00"}}

`previous` counts for a day after `rotated_at`. A value that does not begin with a brace, which is
what a first deploy makes, is one secret for all bots. Of those, Secrets Manager's version before
counts for a day as well.

Apart from the bots' secret, so that the webhook's function does not import how bots are checked.
"""

import hmac
import json
import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from notifier.aws.cached_secret import FRESH_SECONDS, CachedSecret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_secretsmanager import SecretsManagerClient

logger = logging.getLogger(__name__)

# How long the value before counts beside a new one: a day to enter it in BLiP's portal.
OVERLAP_SECONDS = 24 * 3600.0
# Stands for all bots. No bot can have this name.
EVERY_BOT = "*"


class WebhookSecretError(Exception):
    """The value of the secret begins with a brace and is not a JSON object."""


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A secret, the bot whose receipts it admits, and until when (epoch seconds)."""

    bot: str
    secret: bytes = field(repr=False)
    until: float = float("inf")


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
        self._cached = CachedSecret("webhook", self._read, now)

    def bots(self, given: bytes) -> list[str]:
        """Return the bots whose secret this is now, EVERY_BOT among them; empty if it is none.

        If the given one is not known, the secret is read again, but only every FRESH_SECONDS:
        guessing does not make the function ask AWS more often.

        Raises:
            BotoCoreError, ClientError, WebhookSecretError: it cannot be read, and none is known
                from before.
        """
        return self._accepting(given, self._cached.value()) or self._accepting(
            given, self._cached.value(FRESH_SECONDS)
        )

    def _accepting(self, given: bytes, accepted: "list[_Accepted]") -> list[str]:
        # Every one is compared, so that the time taken does not depend on which one fits.
        return [
            one.bot
            for one in accepted
            if self._now() < one.until and hmac.compare_digest(given, one.secret)
        ]

    def _read(self) -> "list[_Accepted]":
        try:
            return [one for one in self._versions() if one.secret]
        except WebhookSecretError:
            if not self._cached.known:
                raise
            logger.error("the webhook's secret is not JSON: the known value stays valid")
            return self._cached.known

    def _versions(self) -> "Iterator[_Accepted]":
        current, since = self._version("AWSCURRENT")
        if current.startswith("{"):
            yield from _per_bot(current)
            return
        previous, _ = self._version("AWSPREVIOUS")
        yield _Accepted(EVERY_BOT, current.encode())
        yield _Accepted(EVERY_BOT, previous.encode(), since + OVERLAP_SECONDS)

    def _version(self, stage: str) -> tuple[str, float]:
        """Return a version of the secret, and when it was put."""
        try:
            answer = self._secrets_manager.get_secret_value(
                SecretId=self._secret, VersionStage=stage
            )
        except self._secrets_manager.exceptions.ResourceNotFoundException:
            return "", 0.0  # it was never rotated
        return answer["SecretString"].strip(), answer["CreatedDate"].timestamp()


def _per_bot(text: str) -> "Iterator[_Accepted]":
    """Return the secrets of every bot. A broken entry does no harm to the other bots."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        # Without the decoder's error, which holds the whole text.
        raise WebhookSecretError("the webhook's secret is not a JSON object") from None
    for bot, entry in entries.items():
        try:
            yield _Accepted(bot, entry["current"].strip().encode())
            if previous := entry.get("previous"):
                rotated_at = datetime.fromisoformat(entry["rotated_at"]).timestamp()
                yield _Accepted(bot, previous.strip().encode(), rotated_at + OVERLAP_SECONDS)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            logger.error(
                "an entry of the webhook's secret cannot be read",
                extra={"bot": bot, "error": type(error).__name__},
            )
