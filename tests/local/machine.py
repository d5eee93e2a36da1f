"""What the local stack needs of the machine: its folders, its ports, and patience."""

import contextlib
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".local"
HOST = "127.0.0.1"


class StackError(Exception):
    """The local stack cannot go on. The text tells a person why, and what to do."""


# Longer than anything takes on a busy machine: only what fails takes so long.
PATIENCE_SECONDS = 300.0


def wait_until[T](
    condition: Callable[[], T],
    what: str,
    *,
    at_most: float = PATIENCE_SECONDS,
    every: float = 0.02,
) -> T:
    """Return the first true value of a condition.

    Args:
        condition: asked again and again.
        what: is waited for, in the message of the error.
        at_most: how many seconds to wait.
        every: how many seconds pass between two questions.

    Raises:
        TimeoutError: it did not become true in time.
    """
    deadline = time.monotonic() + at_most
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {at_most:g} s for {what}")
        time.sleep(every)
    return value


def tail(log: Path, lines: int = 25) -> str:
    """Return the end of a log, for a message to a person."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])


def require_free(port: int) -> None:
    """Make sure that a port can be listened on.

    Raises:
        StackError: something else listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise StackError(
                f"port {port} cannot be used ({error.strerror}): is another `make run` up? "
                'Stop it, or start this one elsewhere: make run ARGS="--port-base 4600"'
            ) from None


def free_ports(count: int) -> int:
    """Return the first of some neighbouring ports on which nothing listens now."""
    while True:
        # Below those that calls out are given: nobody takes one before it is listened on.
        base = random.randrange(20_000, 32_000)
        with contextlib.suppress(StackError):
            for port in range(base, base + count):
                require_free(port)
            return base
