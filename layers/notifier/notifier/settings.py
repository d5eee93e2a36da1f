"""The functions' settings, from the template. The only reader of the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class SettingsError(Exception):
    """The environment lacks a variable, or holds a value that cannot be used."""


# One field per environment variable of the same name in capitals. What each is for, the template's
# resources and parameters of the same names say; times are in seconds.


@dataclass(frozen=True, slots=True)
class SendNotificationSettings:
    """Of the function SendNotification."""

    ledger_table: str
    identities_table: str
    requests_queue_url: str
    dead_letters_queue_url: str
    bots_secret_arn: str
    cooldown_seconds: int
    breaker_wait_seconds: int
    backoff_base_seconds: int
    backoff_max_seconds: int
    settle_window_seconds: int
    max_attempts: int
    max_wait_seconds: int
    maximum_concurrency: int
    identity_ttl_seconds: int
    identity_negative_ttl_seconds: int
    allowed_recipients: str
    ledger_restored_at: str


@dataclass(frozen=True, slots=True)
class ReceiveReceiptSettings:
    """Of the function ReceiveReceipt."""

    receipts_queue_url: str
    webhook_secret_arn: str


@dataclass(frozen=True, slots=True)
class RecordReceiptSettings:
    """Of the function RecordReceipt."""

    ledger_table: str
    identities_table: str
    dead_letters_queue_url: str


@dataclass(frozen=True, slots=True)
class WakeNotificationsSettings:
    """Of the function WakeNotifications."""

    ledger_table: str
    requests_queue_url: str


@dataclass(frozen=True, slots=True)
class PublishStatusEventsSettings:
    """Of the function PublishStatusEvents."""

    event_bus: str
    unpublished_queue_url: str
    publish_all_receipts: bool


@dataclass(frozen=True, slots=True)
class PollReceiptsSettings:
    """Of the function PollReceipts."""

    ledger_table: str
    identities_table: str
    bots_secret_arn: str
    receipts_queue_url: str
    cooldown_seconds: int


@dataclass(frozen=True, slots=True)
class SyncTemplatesSettings:
    """Of the function SyncTemplates."""

    identities_table: str
    bots_secret_arn: str
    event_bus: str
    cooldown_seconds: int


@dataclass(frozen=True, slots=True)
class GetNotificationSettings:
    """Of the function GetNotification."""

    ledger_table: str


@dataclass(frozen=True, slots=True)
class ForgetRecipientSettings:
    """Of the function ForgetRecipient."""

    ledger_table: str
    identities_table: str
    dead_letters_queue_url: str
    receipts_dead_letters_queue_url: str


def stack() -> str:
    """Return the name of the stack that runs, which its metrics, logs and events carry."""
    return os.environ.get("POWERTOOLS_SERVICE_NAME", "blip-notifier")


def release() -> str:
    """Name the release that runs."""
    return os.environ.get("RELEASE", "unknown")


def read[Settings: "DataclassInstance"](
    kind: type[Settings], environment: Mapping[str, str] = os.environ
) -> Settings:
    """Read and check all settings of a function at once.

    Raises:
        SettingsError: names every variable that is missing or wrong.
    """
    values: dict[str, str | int] = {}
    problems = []
    for field in fields(kind):
        name = field.name.upper()
        text = environment.get(name, "")
        if not text:
            problems.append(f"{name} is not set")
        elif field.type is str:
            values[field.name] = text
        elif field.type is bool:
            values[field.name] = text == "true"
            if text not in {"true", "false"}:
                problems.append(f"{name} is neither true nor false")
        elif text.isdecimal() and int(text) > 0:
            values[field.name] = int(text)
        else:
            problems.append(f"{name} is not a whole number above zero")
    if problems:
        raise SettingsError("; ".join(problems))
    return kind(**values)
