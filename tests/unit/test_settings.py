"""The environment: everything is checked at once, and by name."""

from dataclasses import fields
from typing import Any

import pytest

from notifier import settings
from notifier.settings import (
    GetNotificationSettings,
    PollReceiptsSettings,
    PublishStatusEventsSettings,
    ReceiveReceiptSettings,
    RecordReceiptSettings,
    SendNotificationSettings,
    SettingsError,
    SyncTemplatesSettings,
    WakeNotificationsSettings,
)

KINDS = (
    SendNotificationSettings,
    ReceiveReceiptSettings,
    RecordReceiptSettings,
    PollReceiptsSettings,
    WakeNotificationsSettings,
    PublishStatusEventsSettings,
    SyncTemplatesSettings,
    GetNotificationSettings,
)
EXAMPLES: dict[Any, str] = {str: "a text", int: "7", bool: "true"}
COMPLETE: dict[str, str | None] = {
    field.name.upper(): EXAMPLES[field.type] for kind in KINDS for field in fields(kind)
}


def read(kind: Any = SendNotificationSettings, **changes: str | None) -> Any:
    changed = COMPLETE | changes
    return settings.read(
        kind, {name: value for name, value in changed.items() if value is not None}
    )


def test_every_variable_has_its_field() -> None:
    of_sending = read(LEDGER_TABLE="the-ledger", COOLDOWN_SECONDS="120")

    assert of_sending.ledger_table == "the-ledger"
    assert of_sending.cooldown_seconds == 120


@pytest.mark.parametrize("kind", KINDS)
def test_missing_or_empty_variable_is_named(kind: type[Any]) -> None:
    for field in fields(kind):
        name = field.name.upper()
        for value in (None, ""):
            with pytest.raises(SettingsError, match=f"^{name} is not set$"):
                read(kind, **{name: value})


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "ten", " 7", "1e3", "²"])
def test_variable_that_is_not_a_number_is_named(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^MAX_ATTEMPTS is not a whole number above zero$"):
        read(MAX_ATTEMPTS=value)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_switch_is_true_or_false(text: str, *, value: bool) -> None:
    of_publishing = read(PublishStatusEventsSettings, PUBLISH_ALL_RECEIPTS=text)

    assert of_publishing.publish_all_receipts is value


@pytest.mark.parametrize("text", ["yes", "True", "0", " true"])
def test_invalid_switch_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^PUBLISH_ALL_RECEIPTS is neither true nor false$"):
        read(PublishStatusEventsSettings, PUBLISH_ALL_RECEIPTS=text)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        read(LEDGER_TABLE=None, COOLDOWN_SECONDS="0", MAX_ATTEMPTS="many")

    assert set(str(error.value).split("; ")) == {
        "LEDGER_TABLE is not set",
        "COOLDOWN_SECONDS is not a whole number above zero",
        "MAX_ATTEMPTS is not a whole number above zero",
    }


def test_other_variables_are_ignored() -> None:
    assert read(AWS_REGION="us-east-1") == read()
    assert read(ReceiveReceiptSettings, LEDGER_TABLE=None) == read(ReceiveReceiptSettings)
