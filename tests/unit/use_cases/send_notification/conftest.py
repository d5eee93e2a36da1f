"""For all tests of sending."""

import logging
from collections.abc import Iterator

import pytest

from tests.support.builders import MARIA
from tests.support.world import World
from tests.unit.use_cases.send_notification.helpers import KEYS


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def discreet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Assert that no log holds a number, a parameter or a key."""
    caplog.set_level(logging.INFO, "notifier")
    yield
    logged = "\n".join(f"{record.__dict__} {record.exc_text}" for record in caplog.records)
    for secret in ("99999888", "8888777", MARIA, *(key.removeprefix("Key ") for key in KEYS)):
        assert secret not in logged
