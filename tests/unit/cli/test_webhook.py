"""`rotate-webhook`: what a person types and reads."""

from datetime import UTC, datetime
from typing import Any

import pytest

from functions.cli import webhook
from functions.cli.webhook import Rotation
from tests.unit.cli.conftest import Run


def rotation(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Have the next rotation come to this."""
    values: dict[str, Any] = {
        "bots": ["clinic"],
        "secret": "5ecre7" * 10,
        "previous_until": datetime(2026, 11, 27, 9, 0, tzinfo=UTC),
        "others_with_the_old_one": ["shop"],
    }

    def rotate(stack: Any, bot: str, *, leaked: bool) -> Rotation:
        assert (stack.name, bot) == ("blip-notifier", "clinic")
        assert leaked == (values["previous_until"] is None)
        return Rotation(**values)

    values |= changes
    monkeypatch.setattr(webhook, "rotate_webhook", rotate)


def test_rotation_shows_the_header_and_until_when_the_previous_secret_counts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotation(monkeypatch)

    assert run("rotate-webhook", "clinic") == (
        0,
        "Enter in BLiP's portal, as header of clinic; the one before counts until"
        f" 2026-11-27T09:00:00Z: X-Receipts-Secret: {'5ecre7' * 10} ",
    )


def test_rotation_after_a_leak_names_other_bots_with_the_same_secret(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotation(monkeypatch, bots=["clinic", "clinic-vip"], previous_until=None)

    code, text = run("rotate-webhook", "clinic", "--leaked")

    assert code == 0
    assert "as header of clinic and clinic-vip; it counts at once" in text
    assert "The one before is refused within five minutes" in text
    assert "It still lets others in, rotate them as well: shop" in text
