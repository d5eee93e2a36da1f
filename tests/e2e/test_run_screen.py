"""`make run` as a person sees it who types it: all that is left on the screen, against a file.

`WRITE_SCREENS=1` writes the files anew: look at the difference before it is committed.
"""

import os
import re
from pathlib import Path

import pytest

from tests.local.machine import PATIENCE_SECONDS, ROOT
from tests.support.terminal import typed

SCREENS = Path(__file__).with_name("screens")


def masked(shown: str) -> str:
    """Return what differs from run to run as zeros or x, without the bars, which are drawn over.

    Nor is there the step of building, which only the first run on a machine has.
    """
    shown = re.sub(
        r"^(?:[\u2800-\u28ff]|.*━|✓ Functions and layers).*\n", "", shown, flags=re.MULTILINE
    )
    first = "First one delivered: xx-xxxx.json, id xxxx"
    shown = re.sub(
        r"First one delivered: .*(?= \d+\.\d s)", lambda old: first.ljust(len(old[0])), shown
    )
    # Where the line of the verdict ends hangs on the digits in it.
    shown = re.sub(r"; median \d+\.\d s\s+to sent", "; median 0.0 s to sent", shown)
    shown = re.sub(r"127\.0\.0\.1:\d+ *", lambda old: "127.0.0.1:00000".ljust(len(old[0])), shown)
    return re.sub(r" +\d+\.\d s", lambda old: "0.0 s".rjust(len(old[0])), shown)


@pytest.mark.parametrize("columns", [80, 200])
def test_make_run_shows_each_step_the_verdict_and_each_sample(port_base: int, columns: int) -> None:
    command = f'make run ARGS="--once --port-base {port_base}"'
    with typed(command, ROOT, {}, columns=columns) as run:
        code, shown = run.end(PATIENCE_SECONDS)
    assert code == 0, shown
    assert max(map(len, shown.splitlines())) <= columns, shown
    file = SCREENS / f"run.{columns}.txt"
    if "WRITE_SCREENS" in os.environ:
        file.parent.mkdir(exist_ok=True)
        file.write_text(masked(shown))
    assert masked(shown) == file.read_text()
