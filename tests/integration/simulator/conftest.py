"""The simulator, a client and a clock."""

from collections.abc import Iterator

import pytest

from tests.integration.simulator.client import Client, Clock
from tests.local.blip import Simulator, control, registry, server


@pytest.fixture
def blip() -> Iterator[Simulator]:
    with Simulator() as simulator:
        simulator.configure(
            receipts={"delays": {"dispatched": 0, "received": 0, "consumed": 0, "failed": 0}}
        )
        yield simulator


@pytest.fixture
def client(blip: Simulator) -> Iterator[Client]:
    client = Client(blip)
    yield client
    client.http.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(server, "time", clock)
    monkeypatch.setattr(control, "time", clock)
    monkeypatch.setattr(registry, "time", clock)
    return clock
