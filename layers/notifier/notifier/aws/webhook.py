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

from botocore.exceptions import BotoCoreError, ClientError

from notifier.domain.failures import crash_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_secretsmanager import SecretsManagerClient

logger = logging.getLogger(__name__)

CACHED_SECONDS = 300.0
FRESH_SECONDS = 10.0
# How long the value before counts beside a new one: a day to enter it in BLiP's portal.
OVERLAP_SECONDS = 24 * 3600.0
# Stands for all bots. No bot can have this name.
EVERY_BOT = "*"


class WebhookSecretError(Exception):
    """The value of the secret begins with a brace and is not a JSON object."""


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A secret, the bot whose receipts it lets in, and until when (epoch seconds)."""

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
        self._accepted: list[_Accepted] = []
        self._fetched_at = float("-inf")

    def bots(self, given: bytes) -> list[str]:
        """Return the bots whose secret this is now, EVERY_BOT among them; empty if it is none.

        The secret is fetched afresh if the given one is not known, but only every FRESH_SECONDS:
        guessing does not make the function ask AWS more often.

        Raises:
            BotoCoreError, ClientError, WebhookSecretError: it cannot be fetched or read, and none
                is known from before.
        """
        bots = self._bots(given)
        age = self._now() - self._fetched_at
        if age > CACHED_SECONDS or (not bots and age > FRESH_SECONDS):
            self._fetch()
            bots = self._bots(given)
        return bots

    def _bots(self, given: bytes) -> list[str]:
        # Compared with every one, whichever fits.
        return [
            one.bot
            for one in self._accepted
            if self._now() < one.until and hmac.compare_digest(given, one.secret)
        ]

    def _fetch(self) -> None:
        """Fetch the secret. While AWS does not answer, what is known stays good."""
        try:
            accepted = list(self._read())
        except (BotoCoreError, ClientError, WebhookSecretError) as error:
            if not self._accepted:
                raise
            logger.error(
                "the webhook's secret was not fetched: the known one stays good",
                extra=crash_facts(error),
            )
        else:
            self._accepted = [one for one in accepted if one.secret]
        self._fetched_at = self._now()

    def _read(self) -> "Iterator[_Accepted]":
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
