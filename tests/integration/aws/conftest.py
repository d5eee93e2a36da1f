"""The adapters on the simulated tables and queues, and on moto's."""

from collections.abc import Iterator
from typing import cast

import pytest

from tests.integration.aws.backends import Backend, Fakes, RealOnes
from tests.integration.conftest import Aws


@pytest.fixture
def real(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> RealOnes:
    return RealOnes(aws, monkeypatch)


@pytest.fixture(params=["fake", "real"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "fake":
        return Fakes()
    return cast("Backend", request.getfixturevalue("real"))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Assert that no adapter logs personal data."""
    yield
    for record in caplog.records:
        assert "99999888" not in str(record.__dict__)
