"""`make run` as a person has it: in a process of its own, with what it prints in a file."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.local.machine import ROOT, STATE, wait_until

COMMAND = (sys.executable, "-m", "tests.local")


@contextlib.contextmanager
def running_command(port: int, output: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    with output.open("w") as to:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*COMMAND, "--port-base", str(port), *map(str, arguments)],
            cwd=ROOT,
            stdout=to,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        wait_until(lambda: not processes_of(port), "everything to have ended")


def processes_of(port: int) -> list[str]:
    """Find the local AWS on a port and its sandboxes: they work in that stack's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(STATE / str(port)):
                found.append(process.name)
    return found
