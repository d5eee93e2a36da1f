"""`forget`: what is held about a phone number, and erasing it."""

import argparse
import sys
from collections.abc import Callable

from functions.cli import output
from functions.cli.arguments import json_argument
from functions.cli.errors import CommandError
from functions.cli.stack import Json, Stack, on_stack, stack_arguments

FUNCTION = "ForgetRecipientFunction"


def forget(stack: Stack, number: str, progress: Callable[[str], None], *, dry_run: bool) -> Json:
    """Invoke the function until it has scanned everything; return its answers as one."""
    order: Json = {"to": number, "dry_run": dry_run}
    whole = last = stack.invoke(FUNCTION, order)
    while last["continue_from"] is not None:
        progress(f"{whole['scanned']} scanned")
        last = stack.invoke(FUNCTION, order | {"continue_from": last["continue_from"]})
        whole = {
            "scanned": whole["scanned"] + last["scanned"],
            "possible": whole["possible"] + last["possible"],
            "found": {what: n + last["found"][what] for what, n in whole["found"].items()},
            "erased": {what: n + last["erased"][what] for what, n in whole["erased"].items()},
            "continue_from": last["continue_from"],
        }
    return whole


@on_stack
def run_forget(stack: Stack, options: argparse.Namespace) -> int:
    """Find what is held about a phone number, and erase it. The number is asked for."""
    number = _number()
    with output.progress() as progress:
        answer = forget(stack, number, progress, dry_run=not options.yes)
    found, erased = answer["found"], answer["erased"]
    incomplete = options.yes and erased != found
    if options.json:
        output.print_json(
            {name: answer[name] for name in ("scanned", "possible", "found", "erased")}
        )
        return 1 if incomplete else 0
    output.table(
        ["what", "found", "erased"],
        [[what.replace("_", " "), str(n), str(erased[what])] for what, n in found.items()],
    )
    output.say()
    output.say(f"{answer['scanned']} notifications and dead letters were scanned.")
    if answer["possible"]:
        output.say(
            f"{answer['possible']} delivered ones went to a number with the same last four digits:"
            " nothing more of the number is left of them, and they stay."
        )
    if not options.yes:
        output.say("Nothing was erased: this was a dry run. To erase:")
        output.say_exactly(f"  {stack.command('forget', arguments=['--yes'])}")
        return 0
    output.say("Run it again in a quarter of an hour: functions/README.md says why.")
    return 1 if incomplete else 0


def _number() -> str:
    """Ask for the number: no list of processes and no shell's history holds it."""
    if sys.stdin.isatty():
        print("Phone number, as in +5531999998888: ", end="", file=sys.stderr, flush=True)
    number = sys.stdin.readline().strip()
    if not number:
        raise CommandError("no number was given: type it when asked, or pass it on standard input")
    return number


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `forget` takes."""
    parser.add_argument("--yes", action="store_true", help="erase; without it nothing changes")
    json_argument(parser)
    stack_arguments(parser)
