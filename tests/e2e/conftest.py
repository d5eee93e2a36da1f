import shutil
from collections.abc import Iterator

import pytest

from tests.local.stack import STATE, Aws, LocalStack, Ministack, free_ports


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ministack]:
    with Ministack(free_ports(1), tmp_path_factory.mktemp("ministack") / "home") as running:
        yield running


@pytest.fixture(scope="session")
def aws(ministack: Ministack) -> Aws:
    return Aws(ministack.url)


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    port = free_ports(2)
    with LocalStack(port_base=port) as running:
        yield running
    shutil.rmtree(STATE / str(port))


@pytest.fixture
def port_base() -> Iterator[int]:
    """Ports for a stack that the test starts, whose folder goes with it."""
    port = free_ports(3)
    yield port
    shutil.rmtree(STATE / str(port), ignore_errors=True)
