"""Makes the pictures of README from a real run: `make pictures`."""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect, sync_playwright
from rich.console import Console as Terminal

from tests.local.console import console_of
from tests.local.machine import ROOT, free_ports
from tests.local.progress import Steps
from tests.local.report import Report
from tests.local.rows import read_rows
from tests.local.stack import LocalStack
from tests.local.summary import Summary

PICTURES = ROOT / "tests" / "pictures"
# What is open in the picture: it has a header, a text and a button of its own.
SHOWN = "invoice-2041"


def console(stack: LocalStack, folder: Path) -> None:
    """Show the messages of the samples, one of them open."""
    with console_of(stack) as page_of, sync_playwright() as playwright:
        Report(stack, read_rows(sorted((ROOT / "events").glob("*.json")))).run()
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            chromium_sandbox=os.geteuid() != 0,
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5)
        page.goto(page_of.url)
        page.locator("#rows li", has_text=SHOWN).get_by_role("link").click()
        expect(page.locator("#detail .facts")).to_contain_text("consumed")
        expect(page.locator(".count[data-count=undelivered]")).to_have_text("7")
        page.screenshot(path=folder / "console.png")
        browser.close()


def terminal(folder: Path) -> None:
    """Show how `make run` ends, at 80 columns."""
    shown = Terminal(record=True, width=80, file=io.StringIO(), highlight=False)
    shown.print("$ make run", style="bold")
    rows = read_rows(sorted((ROOT / "events").glob("*.json")))
    with contextlib.ExitStack() as cleanup:
        with Steps(shown) as step:
            stack = cleanup.enter_context(LocalStack(step=step))
        Report(stack, rows).run()
    Summary(rows, are_samples=True, has_receipts=True).show(shown)
    shown.save_svg(str(folder / "terminal.svg"), title="make run", unique_id="terminal")


# Each makes one file, of a stack that nothing was published to before.
MAKERS: tuple[Callable[[LocalStack, Path], None], ...] = (console,)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    terminal(PICTURES)
    for make in MAKERS:
        port = free_ports(2)
        with LocalStack(port_base=port) as stack:
            make(stack, PICTURES)
    print(f"{len(MAKERS) + 1} made in {PICTURES.relative_to(ROOT)}/", file=sys.stderr)


if __name__ == "__main__":
    main()
