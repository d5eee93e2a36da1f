"""The product on this machine, deployed into a local AWS with a simulated BLiP beside it.

Publishes sample requests (`events/*.json`) or your own, shows what became of each, and stays up.
"""

import signal

if __name__ == "__main__":
    # The imports take a moment, in which Ctrl-C would show a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = (".venv", ".venv-ministack", ".venv-sam")


def _prepare() -> None:
    """Go on in the project's own environment, after making it where it is missing."""
    marks = [f"{name}/.done" for name in ENVIRONMENTS]
    if not all((ROOT / mark).exists() for mark in marks):
        setup = ["make", "--silent", "-C", str(ROOT), *marks]
        if subprocess.run(setup, check=False, stdout=sys.stderr).returncode:  # noqa: S603 - our own
            sys.exit(1)
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        python = str(ROOT / ".venv/bin/python")
        os.execv(python, [python, "-m", "tests.local", *sys.argv[1:]])  # noqa: S606 - our own
    sys.path.insert(0, str(ROOT / "layers/notifier"))


def _show_start() -> None:
    """Show that something happens until all is imported; what is written next stands over it."""

    def show() -> None:
        dots = itertools.cycle((".  ", ".. ", "..."))
        while not _imported.wait(0.3):
            print(f"starting {next(dots)}", end="\r", file=sys.stderr, flush=True)

    if sys.stderr.isatty():
        threading.Thread(target=show, daemon=True).start()


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    print("stopped", file=sys.stderr)
    os._exit(128 + number)


_imported = threading.Event()

if __name__ == "__main__":
    # The imports take a moment, and nothing is to be ended yet.
    signal.signal(signal.SIGINT, _leave)
    _prepare()
    _show_start()

from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console

from tests.local.console import console_of
from tests.local.machine import HOST, StackError, require_free
from tests.local.progress import Bars, Steps
from tests.local.report import Report
from tests.local.rows import Row, as_expected, read_rows
from tests.local.stack import DEFAULT_PORT_BASE, LocalStack
from tests.local.summary import Summary
from tests.local.watch import show_what_to_do, watch

LOG_WIDTH = 160
MAX_WARNINGS = 5


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 where everything ended as it should."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.blip is None) != (options.key is None):
        parser.error("--blip and --key go together")
    try:
        return _run(options)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
    except (BotoCoreError, ClientError) as error:
        print(f"error: the local AWS: {error}", file=sys.stderr)
    except _Stopped as stopped:
        # A terminal has written ^C there.
        start_of_line = "\r" if sys.stderr.isatty() else ""
        print(f"{start_of_line}stopped; nothing is left running", file=sys.stderr)
        return stopped.code
    return 1


def _run(options: argparse.Namespace) -> int:
    are_samples = not options.publish
    rows = read_rows(sorted((ROOT / "events").glob("*.json")) if are_samples else options.publish)
    progress = Console(stderr=True, width=_width(sys.stderr), highlight=False)
    result = progress if options.json else Console(width=_width(sys.stdout), highlight=False)
    if not are_samples:
        _warn_of_broken(rows, progress)
    has_console = not options.once and options.aws is None
    page_port = options.port_base + 2
    if has_console:
        require_free(page_port)
    with contextlib.ExitStack() as cleanup:
        with Steps(progress) as step:
            stack = cleanup.enter_context(
                LocalStack(
                    port_base=options.port_base,
                    blip=(options.blip, options.key) if options.blip else None,
                    aws_url=options.aws,
                    parameters=dict(options.parameter),
                    step=step,
                )
            )
            with step("Templates: what BLiP lists"):
                stack.sync_templates()
            page = None
            if has_console:
                with step(f"Console: http://{HOST}:{page_port}/"):
                    page = cleanup.enter_context(console_of(stack, page_port))
        report = Report(stack, rows)
        has_receipts = stack.simulator is not None
        with Bars(progress, rows, has_receipts=has_receipts) as bars:
            everything_ended = report.run(bars.show)
        if options.json:
            for row in rows:
                print(json.dumps(row.as_json(), ensure_ascii=False))
            sys.stdout.flush()
        Summary(rows, are_samples=are_samples, has_receipts=has_receipts).show(result)
        if not everything_ended:
            print("gave up waiting: nothing has moved for a long time", file=sys.stderr)
            return 1
        if not options.once:
            show_what_to_do(stack, page.url if page else None, result)
            watch(stack, report.letters, result)
        return 0 if not are_samples or all(map(as_expected, rows)) else 1


def _width(output: TextIO) -> int | None:
    """Return how wide lines may be: as the terminal is, and long in a log."""
    return None if output.isatty() else LOG_WIDTH


def _warn_of_broken(rows: Sequence[Row], console: Console) -> None:
    """Say before anything starts what will not be sent: it is published all the same."""
    broken = [row for row in rows if row.problem]
    for row in broken[:MAX_WARNINGS]:
        console.print(
            f"{row.source} is published as it stands, and will not be sent: {row.problem}",
            markup=False,
        )
    if (left := len(broken) - MAX_WARNINGS) > 0:
        console.print(f"and {left} more of {len(rows)}")


class _Stopped(BaseException):
    """A signal that ends the command: no error, and nothing that ends errors may end it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # What is up is ended now; a second Ctrl-C must not keep it from that.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped(number)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}: `make run ARGS=--help` names all options\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        usage='make run [ARGS="OPTION …"]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--once",
        action="store_true",
        help="stop when every notification has ended; 0 if and only if every sample ended as it"
        " should, or, with --publish, if every request has ended",
    )
    add(
        "--publish",
        metavar="FILE",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help="publish these instead of events/: a .json file is one request, every line of a"
        " .jsonl file is one, as it stands, valid or not",
    )
    add("--blip", metavar="URL", help="another BLiP instead of the simulator")
    add("--key", help="the key for it, as BLiP's portal shows it")
    add("--aws", metavar="URL", help="another AWS endpoint instead of the local AWS: any emulator")
    add(
        "--json",
        action="store_true",
        help="nothing but JSON lines on standard output, one per published request, in order",
    )
    add(
        "--parameter",
        metavar="NAME=VALUE",
        type=_parameter,
        nargs="+",
        action="extend",
        default=[],
        help="template parameters other than the defaults",
    )
    add(
        "--port-base",
        metavar="N",
        type=int,
        default=DEFAULT_PORT_BASE,
        help="the local AWS listens on N, the simulator on N+1, the console on N+2"
        " (default %(default)s)",
    )
    return parser


if __name__ == "__main__":
    _imported.set()
    # Also SIGINT: a shell lets what it starts in the background ignore it.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _stop)
    code = main()
    sys.stdout.flush()
    # Not by sys.exit: threads may still ask an AWS that is gone, and it would wait for them.
    os._exit(code)
