"""For all tests."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A slow machine is no bug. What is fast is shown by the benchmarks, which compare.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def same_log_handlers() -> Iterator[None]:
    """Restore the package's log handlers, which the operator's commands replace."""
    logger = logging.getLogger("notifier")
    handlers = logger.handlers
    yield
    logger.handlers = handlers
