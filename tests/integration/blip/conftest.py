"""Clients and a bot."""

import contextlib
from collections.abc import Iterator

import pytest

from notifier.blip.client import BlipClient
from notifier.domain.bots import Bot
from tests.local.blip import Simulator


@pytest.fixture
def client() -> Iterator[BlipClient]:
    """A client whose calls may take as long as in production."""
    with contextlib.closing(BlipClient(4, 10)) as client:
        yield client


@pytest.fixture
def bot(blip: Simulator) -> Bot:
    return Bot(name="default", base_url=blip.url, key=blip.key)
