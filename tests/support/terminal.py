"""A command on a pseudo-terminal, and a person who may press Ctrl-C."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

CTRL_C = b"\x03"
# SIGPIPE is as in a shell, not as Python has it.
_SPAWN = """
import os, pty, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os._exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])) & 255)
"""


class Typed:
    """A command that was typed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def press(self, keys: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(keys)
        self._process.stdin.flush()

    def end(self, within_seconds: float = 300) -> tuple[int, str]:
        """Wait for its end; return its exit code and what a person sees then."""
        shown, _ = self._process.communicate(timeout=within_seconds)
        return self._process.returncode, seen(shown.decode())


def seen(shown: str) -> str:
    """Return what is left on the screen: without styles, and what was written over."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r\n", "\n")
    return re.sub(r"[^\n]*\r", "", text)


@contextlib.contextmanager
def typed(
    command: str, folder: Path, environment: Mapping[str, str], *, columns: int = 80
) -> Iterator[Typed]:
    """Type a command into a shell on a terminal; whatever is left of it ends with the block."""
    shell = ["bash", "-c", f"stty cols {columns}; exec {command}"]
    process = subprocess.Popen(  # noqa: S603 - a command of the test
        [sys.executable, "-c", _SPAWN, *shell],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "TERM": "xterm"}
        | {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        | dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Typed(process)
    finally:
        # The terminal goes with it, and all that runs on it hears of that.
        process.kill()
        process.communicate()
