"""What the function logs, and its clock."""

import io
from collections.abc import Iterator

import pytest

from notifier import telemetry
from notifier.entrypoints.environment import SystemClock
from notifier.use_cases.send_notification import batch as batches
from tests.integration.conftest import Stack
from tests.support.builders import MARIA
from tests.support.clock import MachineClock


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch, stack: Stack) -> Iterator[io.StringIO]:
    """Yield the function's log, and assert that it holds no number, no parameter and no key."""
    telemetry.metrics.clear_metrics()
    stream = io.StringIO()
    monkeypatch.setattr(telemetry.logger.registered_handler, "stream", stream)
    yield stream
    logged = stream.getvalue()
    for secret in ("99999888", "98888770", "+55", MARIA, "Maria"):
        assert secret not in logged
    for key in {request.headers.get("Authorization", "") for request in stack.blip.requests}:
        assert not key or key.removeprefix("Key ") not in logged


@pytest.fixture
def no_holding_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pause of a batch that cannot proceed: the unit tests cover it."""
    monkeypatch.setattr(batches, "HOLD_STILL_SECONDS", 0)


@pytest.fixture
def shifted_clock(monkeypatch: pytest.MonkeyPatch) -> MachineClock:
    """Return a clock that a test moves forward. Unlike with `clock`, slots are still awaited."""
    clock = MachineClock()
    monkeypatch.setattr(SystemClock, "now", staticmethod(clock.now))
    return clock
