"""The parser of the command line, and the types of the values on it."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from functions.cli import words
from functions.cli.errors import CommandError
from notifier.contract.request import ID_PATTERN

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class UsageError(CommandError):
    """The command line cannot be understood."""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in two lines: what is wrong, and the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line."""
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        problem = f"{missing[1]} is missing" if missing else message.removeprefix("argument ")
        raise UsageError(problem, " ".join(self.format_usage().split()))


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        run: does it; returns the exit code. Its docstring is the command's help.
        add_arguments: adds what it takes to its parser.
        variables: what `make` takes for it, as a person types it.
    """

    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    variables: str = ""


def parse(commands: Mapping[str, Command], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UsageError: it cannot be understood.
    """
    parser = Parser(prog="python -m functions.cli", description="The operator's commands.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name, command in commands.items():
        text = command.run.__doc__
        subparser = subparsers.add_parser(name, help=text, description=text)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, parser=subparser)
        if words.by_make():
            subparser.prog = f"make {name}"
            subparser.usage = f"make {name} {command.variables}"
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        # The command's own parser knows its usage.
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def json_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that shows the answer as JSON."""
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def age(text: str) -> int:
    """Read an age, as in `30m`, in seconds."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no age: write it as in 90s, 30m, 2h or 3d")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def notification_id(text: str) -> str:
    """Read the id of a request."""
    if not re.fullmatch(ID_PATTERN, text):
        rule = "1 to 128 of A-Z a-z 0-9 . _ : ~ -"
        raise argparse.ArgumentTypeError(f"{text!r} is no id: an id has {rule}")
    return text


def count(text: str) -> int:
    """Read a whole number above zero."""
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def time(text: str) -> float:
    """Read a time with its offset, in epoch seconds."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write it as 2026-11-26T00:00:00Z")
    return at.timestamp()
