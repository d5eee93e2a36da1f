"""A local stack with its console, and a browser that looks at it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.local.blip import Simulator
from tests.local.console import console_of
from tests.local.machine import PATIENCE_SECONDS, STATE, free_ports
from tests.local.stack import LocalStack

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SIZES = {"desk": (1280, 800), "phone": (390, 844)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        reason = "no Chromium on this machine; on Debian: apt-get install chromium"
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    port = free_ports(2)
    with LocalStack(port_base=port) as running:
        yield running
    shutil.rmtree(STATE / str(port))


@pytest.fixture(scope="session")
def url(stack: LocalStack) -> Iterator[str]:
    with console_of(stack) as console:
        yield console.url.removesuffix("/")


@pytest.fixture
def blip(stack: LocalStack) -> Simulator:
    assert stack.simulator
    return stack.simulator


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # Chromium's own refuses to work for root.
            chromium_sandbox=os.geteuid() != 0,
        )
        yield browser
        browser.close()


@dataclass(frozen=True)
class Screen:
    """How a person looks at it."""

    size: str
    scheme: str

    def __str__(self) -> str:
        return f"{self.size}, {self.scheme}"


SCREENS = [Screen(size, scheme) for size in SIZES for scheme in ("light", "dark")]


@pytest.fixture(params=SCREENS, ids=str)
def screen(request: pytest.FixtureRequest) -> Screen:
    screen: Screen = request.param
    return screen


@pytest.fixture
def context(browser: Browser, screen: Screen, url: str) -> Iterator[BrowserContext]:
    width, height = SIZES[screen.size]
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": height},
        color_scheme=screen.scheme,
        is_mobile=screen.size == "phone",
    )
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page in which nothing goes wrong unseen: no script fails, nothing is blocked."""
    problems: list[str] = []
    page = context.new_page()
    # A form that is answered with what is wrong in it is logged as an error, too.
    page.on(
        "console",
        lambda told: (
            problems.append(told.text) if told.type == "error" and "422" not in told.text else None
        ),
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    assert problems == []
