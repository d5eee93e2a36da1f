"""Runs one step of the set-up: a line that moves on a terminal, then a tick and its seconds.

    step.py TITLE HINT COMMAND...

The command's own output is shown only if it fails, before HINT, which says what to do then. It runs
under any python3: the environments do not exist yet.
"""

import signal

# Until it has something to end: a traceback is no answer to Ctrl-C.
signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from types import FrameType

TITLE_WIDTH = 60
LAST_LINES = 15
LOG_WIDTH = 160
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def main() -> int:
    """Run the step; 1 if the command fails."""
    title, hint, *command = sys.argv[1:]
    began = time.monotonic()
    stopped_by = 0

    def stop(number: int, _frame: FrameType | None) -> None:
        # What it came in the middle of, the start of the command for one, is done first.
        nonlocal stopped_by
        stopped_by = number

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, stop)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 - a command of the Makefile
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        turn = 0
        while process.poll() is None and not stopped_by:
            if sys.stderr.isatty():
                show("\r", line(SPINNER[turn % len(SPINNER)], title, time.monotonic() - began))
            turn += 1
            time.sleep(0.1)
        if sys.stderr.isatty():
            show("\r\033[K")
        if stopped_by:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            show("stopped\n")
            return 128 + stopped_by
        if process.returncode == 0:
            show(line("✓", title, time.monotonic() - began), "\n")
            return 0
        output.seek(0)
        for each in output.read().decode(errors="replace").splitlines()[-LAST_LINES:]:
            show(f"  | {each}\n")
        width = shutil.get_terminal_size((LOG_WIDTH, 0)).columns
        problem = f"error: {title}: {hint}"
        show(*(f"{each}\n" for each in textwrap.wrap(problem, width, break_on_hyphens=False)))
        return 1


def line(mark: str, title: str, seconds: float) -> str:
    """Return a line as `make run` shows its own steps."""
    return f"{mark} {title:{TITLE_WIDTH}} {seconds:7.1f} s"


def show(*texts: str) -> None:
    """Write to standard error, whatever the locale."""
    sys.stderr.buffer.write("".join(texts).encode())
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
