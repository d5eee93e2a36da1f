"""Runs one step of the set-up: a line that moves on a terminal, then a tick and its seconds.

    step.py TITLE HINT COMMAND...

The command's own output is shown only if it fails, before HINT, which says what to do then. It runs
under any python3: the environments do not exist yet.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time

TITLE_WIDTH = 60
LAST_LINES = 15
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def main() -> int:
    """Run the step; 1 if the command fails."""
    title, hint, *command = sys.argv[1:]
    began = time.monotonic()
    process = None

    def stop(number: int, _frame: object) -> None:
        if process:
            os.killpg(process.pid, signal.SIGKILL)
        show("\r\033[K" if sys.stderr.isatty() else "", "stopped\n")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 - a command of the Makefile
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        turn = 0
        while process.poll() is None:
            if sys.stderr.isatty():
                show("\r", line(SPINNER[turn % len(SPINNER)], title, time.monotonic() - began))
            turn += 1
            time.sleep(0.1)
        if sys.stderr.isatty():
            show("\r\033[K")
        if process.returncode == 0:
            show(line("✓", title, time.monotonic() - began), "\n")
            return 0
        output.seek(0)
        for each in output.read().decode(errors="replace").splitlines()[-LAST_LINES:]:
            show(f"  | {each}\n")
        show(f"error: {title}: {hint}\n")
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
