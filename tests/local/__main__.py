"""The product on this machine, deployed into a local AWS with a simulated BLiP beside it.

Publishes sample requests (`events/*.json`) or your own, shows what became of each, and stays up.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = (".venv", ".venv-ministack", ".venv-sam")


def _prepare() -> None:
    """Go on in the project's own environment, after making it where it is missing."""
    made = all((ROOT / name / ".done").exists() for name in ENVIRONMENTS)
    if not made:
        setup = ["make", "-C", str(ROOT), "setup"]
        if subprocess.run(setup, check=False, stdout=sys.stderr).returncode:  # noqa: S603 - our own
            sys.exit("`make setup` failed: see above")
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        python = str(ROOT / ".venv/bin/python")
        os.execv(python, [python, "-m", "tests.local", *sys.argv[1:]])  # noqa: S606 - our own
    sys.path.insert(0, str(ROOT / "layers/notifier"))


if __name__ == "__main__":
    _prepare()

from botocore.exceptions import BotoCoreError, ClientError  # noqa: E402
from rich.console import Console  # noqa: E402

from tests.local.console import Console as Page  # noqa: E402
from tests.local.console import console_of  # noqa: E402
from tests.local.report import DeadLetters, Report, as_expected, read_rows, table  # noqa: E402
from tests.local.stack import (  # noqa: E402
    DEFAULT_PORT_BASE,
    LocalStack,
    StackError,
    require_free,
)


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
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 1


def _run(options: argparse.Namespace) -> int:
    samples = not options.publish
    rows = read_rows(sorted((ROOT / "events").glob("*.json")) if samples else options.publish)
    parameters = dict(options.parameter)
    blip = (options.blip, options.key) if options.blip else None
    if _has_console(options):
        require_free(options.port_base + 2)
    with (
        LocalStack(
            port_base=options.port_base,
            blip=blip,
            aws_url=options.aws,
            parameters=parameters,
            tell=lambda text: print(text, file=sys.stderr),
        ) as stack,
        _console(stack, options) as page,
    ):
        report = Report(stack, rows)
        everything_ended = report.run()
        if options.json:
            for row in rows:
                print(json.dumps(row.as_json(), ensure_ascii=False))
            sys.stdout.flush()
        else:
            # Where nobody looks at it now, in a log, lines may be long.
            console = Console(width=None if sys.stdout.isatty() else 160)
            console.print(table(report, stack, judged=samples))
        if not everything_ended:
            print("gave up waiting: nothing has moved for a long time", file=sys.stderr)
            return 1
        if not options.once:
            _stay(stack, page, report.letters, Console(stderr=options.json, soft_wrap=True))
        return 0 if not samples or all(map(as_expected, rows)) else 1


def _has_console(options: argparse.Namespace) -> bool:
    """Return whether the page is served: of a stack of ours, which stays up to be looked at."""
    return not options.once and options.aws is None


def _console(
    stack: LocalStack, options: argparse.Namespace
) -> contextlib.AbstractContextManager[Page | None]:
    if not _has_console(options):
        return contextlib.nullcontext()
    return console_of(stack, options.port_base + 2)


def _stay(stack: LocalStack, page: Page | None, letters: DeadLetters, console: Console) -> NoReturn:
    """Say what one can do now, then tell what comes in, until somebody interrupts."""
    queue, dead_letters = (
        f"{stack.aws.url}/{url.split('/', 3)[3]}"
        for url in (stack.requests_queue, stack.dead_letters_queue)
    )
    receive = ("Action=ReceiveMessage", "VisibilityTimeout=0", "MessageAttributeName.1=All")
    hints = {
        "publish one": _post(queue, "Action=SendMessage", body="my-request.json"),
        "dead letters": _post(dead_letters, *receive, "MaxNumberOfMessages=10"),
    }
    if page:
        hints = {"console": page.url} | hints
    if stack.ministack:
        port = stack.ministack.port
        moved = "" if port == DEFAULT_PORT_BASE else f' ARGS="--port-base {port}"'
        hints |= {
            "publish one": f"make publish FILE=my-request.json{moved}",
            "dead letters": f"make failures{moved}",
            "logs": f"tail -f {shlex.quote(os.path.relpath(stack.ministack.log))}",
        }
    console.print()
    for title, hint in hints.items():
        console.print(f"  {title:14}{hint}", markup=False, highlight=False)
    console.print("\nCopy events/01-text.json to my-request.json and give it an id of its own: the")
    console.print("same id is the same notification, and a repetition is dropped without a word.")
    console.print(
        "What is sent, read or fails from now on is told here. Ctrl-C stops everything.\n"
    )
    seen = len(stack.simulator.inbox()) if stack.simulator else 0
    depth = letters.visible()
    followed: dict[str, str] = {}
    rang: set[str] = set()
    while True:
        time.sleep(1)
        ringing = stack.ringing()
        for name in sorted(ringing.keys() - rang):
            text = f"{_clock()} alarm {name}: {ringing[name]}"
            console.print(text, style="bold red", markup=False)
        rang = set(ringing)
        if stack.simulator:
            for message in stack.simulator.inbox(after=str(seen)):
                seen = message["number"]
                followed[message["id"].partition(":")[0]] = ""
        for key, told in list(followed.items()):
            item = stack.aws.dynamodb.get_item(
                TableName=stack.ledger_table, Key={"key": {"S": key}}
            ).get("Item", {})
            status = item.get("status", {}).get("S", "")
            if status != told and item:
                followed[key] = status
                text = f"{_clock()} {item['id']['S']}: {status} ({item['template']['S']})"
                console.print(text, style="green", markup=False, highlight=False)
            if status == "consumed" or "reason" in item:
                del followed[key]
        if letters.visible() != depth:
            for letter in letters.collect():
                named = f" {letter.notification_id}" if letter.notification_id else ""
                text = f"{_clock()} dead letter{named}: {letter.reason}"
                if detail := letter.failure.get("detail"):
                    text += f": {detail}"
                console.print(text, style="red", markup=False)
            letters.give_back()
            depth = letters.visible()


def _post(url: str, *form: str, body: str | None = None) -> str:
    """Return a command that calls SQS: with curl, else with what is here anyway."""
    if shutil.which("curl"):
        fields = [f"-d {field}" for field in form]
        if body:
            fields.append(f"--data-urlencode MessageBody@{body}")
        return f"curl -sS {url} {' '.join(fields)}"
    script = (
        "import sys, urllib.parse, urllib.request\n"
        "form = dict(field.split('=', 1) for field in sys.argv[2:])\n"
        "if 'file' in form: form['MessageBody'] = open(form.pop('file')).read()\n"
        "data = urllib.parse.urlencode(form).encode()\n"
        "print(urllib.request.urlopen(sys.argv[1], data).read().decode())"
    )
    fields = [*form, *([f"file={body}"] if body else [])]
    python = os.path.relpath(sys.executable)
    return f"{python} -c {shlex.quote(f'exec({script!r})')} {url} {' '.join(fields)}"


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _terminated(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - a signal handler
    sys.exit(128 + number)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.local",
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
    signal.signal(signal.SIGTERM, _terminated)
    # A shell lets what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
