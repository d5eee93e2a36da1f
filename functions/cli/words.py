"""Commands as they are typed: to `make`, which runs these commands, or to Python."""

import os
import shlex
from collections.abc import Sequence


def by_make() -> bool:
    """Return whether the command was typed as `make …`; the Makefile says so."""
    return os.environ.get("CALLED_BY") == "make"


def option(name: str) -> str:
    """Return how a value is given that `make` takes as a variable: `STACK=` or `--stack`."""
    return f"{name.upper()}=" if by_make() else f"--{name}"


def argument(name: str) -> str:
    """Return how an option is added to those that were typed: in ARGS, or as it is."""
    return f'ARGS="… {name}"' if by_make() else name


def make(target: str, variables: str = "", arguments: Sequence[str] = ()) -> str:
    """Return a command of `make`, to be typed next.

    Args:
        target: the command.
        variables: those that the target takes, as in `ID=order-981`.
        arguments: what goes into ARGS.
    """
    parts = ["make", target, variables]
    if arguments:
        text = shlex.join(arguments)
        parts.append(
            f"ARGS={text}" if len(arguments) == 1 and text == arguments[0] else f'ARGS="{text}"'
        )
    return " ".join(filter(None, parts))
