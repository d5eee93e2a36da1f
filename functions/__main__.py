"""The operator's commands: `python -m functions COMMAND`, or `make COMMAND`.

They speak to the local stack that `make run` keeps up, or with --stack to a deployed one: invoke a
function with `sam remote invoke` and show its answer as a table, or see to queues, tables and
secrets.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "layers/notifier"))

from functions import operations  # noqa: E402 - the package has to be found first
from notifier.use_cases.redrive_failures import (  # noqa: E402
    MAX_THREADS,
    REASONS,
    ListOrder,
    RedriveOrder,
)

SAM = str(ROOT / ".venv-sam/bin/sam")
# Where `make run` keeps the local stack.
LOCAL_STACK = "blip-notifier"
LOCAL_PORT = 4566
LOCAL_REGION = "us-east-1"
HINT = ": start it with `make run`, or name one with --stack"

type Json = dict[str, Any]

console = Console(width=None if sys.stdout.isatty() else 160)


class CommandError(Exception):
    """The command cannot go on. The text tells a person why."""


@dataclass(frozen=True)
class Stack:
    """A stack whose functions can be invoked, and whose resources can be reached.

    Attributes:
        name: CloudFormation's.
        arguments: what tells SAM CLI which stack it is.
        environment: likewise.
        session: boto3's, likewise.
        endpoint: the local AWS's; None for AWS itself.
    """

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    session: boto3.Session
    endpoint: str | None = None

    def client(self, service: str) -> Any:
        """Return boto3's client of a service, where the stack is."""
        config = Config(max_pool_connections=MAX_THREADS, retries={"mode": "standard"})
        return self.session.client(service, endpoint_url=self.endpoint, config=config)  # type: ignore[call-overload] # any

    def physical_id(self, logical_id: str) -> str:
        """Return what AWS calls a resource."""
        answer = self.client("cloudformation").describe_stack_resource(
            StackName=self.name, LogicalResourceId=logical_id
        )
        physical_id: str = answer["StackResourceDetail"]["PhysicalResourceId"]
        return physical_id

    def invoke(self, function: str, event: Json) -> Json:
        """Invoke the released version of a function, by its logical id; give its answer.

        Raises:
            CommandError: it could not be invoked, failed, or did not understand the event.
        """
        sam = subprocess.run(  # noqa: S603 - our own tool
            [
                *(SAM, "remote", "invoke", function, *self.arguments),
                *("--event-file", "-", "--output", "json", "--parameter", "Qualifier=live"),
            ],
            cwd=ROOT,
            env=self.environment,
            input=json.dumps(event),
            capture_output=True,
            text=True,
            check=False,
        )
        if sam.returncode:
            why = sam.stderr.rpartition("Error: ")[2].strip()
            hint = HINT if self.endpoint and "connect to the endpoint" in why else ""
            raise CommandError(f"{function} cannot be invoked: {why}{hint}")
        response = json.loads(sam.stdout)
        answer: Json = json.loads(response["Payload"])
        if "FunctionError" in response:
            raise CommandError(
                f"{function} failed: {answer.get('errorType')}: {answer.get('errorMessage')}"
            )
        if "error" in answer:
            raise CommandError(answer["error"])
        return answer


def _stack(options: argparse.Namespace) -> Stack:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SAM_", "PYTHON", "VIRTUAL_ENV"))
    } | {"SAM_CLI_TELEMETRY": "0"}
    if options.stack:
        arguments = ["--stack-name", options.stack]
        # The AWS CLI reads this variable, boto3 does not.
        region = options.region or os.environ.get("AWS_REGION")
        for name, value in {"profile": options.profile, "region": region}.items():
            if value:
                arguments += [f"--{name}", value]
        session = boto3.Session(profile_name=options.profile, region_name=region)
        return Stack(options.stack, tuple(arguments), environment, session)
    # No credentials and no profile of this machine: nothing can reach an account.
    endpoint = f"http://127.0.0.1:{options.port_base}"
    environment = {k: v for k, v in environment.items() if not k.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    arguments = ["--stack-name", LOCAL_STACK, "--region", LOCAL_REGION]
    return Stack(LOCAL_STACK, tuple(arguments), environment, _local_session(), endpoint)


def _local_session() -> boto3.Session:
    """Return a session that reads no profile of this machine, and asks no proxy for 127.0.0.1."""
    session = botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    session.set_credentials("local", "local")
    session.set_default_client_config(Config(proxies={}))
    return boto3.Session(botocore_session=session, region_name=LOCAL_REGION)


# --- failures and redrive -------------------------------------------------------------------------

FATES = {
    "would_redrive": "would go",
    "redriven": "put back",
    "refused": "refused",
    "not_taken": "not taken by SQS",
}
EACH = ["id", "bot", "template", "reason", "code", "detail", "failed_at", "generation", "redrives"]


# Fewer are looked at within seconds.
LONG_RUN = 1000


def failures(stack: Stack, options: argparse.Namespace) -> int:
    """Show what lies on the dead-letter queue."""
    answer = _run(stack, ListOrder(**_selection(options)))
    if options.json:
        console.print_json(data=answer)
        return 0
    _show(answer, ["reason", "bot", "template", "count", "oldest", "newest"])
    console.print(f"{_letters(answer, 'listed')}{_beside(answer)}")
    return 0


def redrive(stack: Stack, options: argparse.Namespace) -> int:
    """Put dead letters back on the requests queue, or show which ones would go."""
    order = RedriveOrder(
        **_selection(options),
        limit=options.limit,
        dry_run=not options.execute,
        force=options.force,
    )
    answer = _run(stack, order)
    not_taken = sum(group["count"] for group in answer["groups"] if group["fate"] == "not_taken")
    if options.json:
        console.print_json(data=answer)
        return 1 if not_taken else 0
    _show(answer, ["what", "reason", "bot", "template", "count", "oldest", "newest", "why"])
    if options.execute:
        console.print(f"put back: {_letters(answer, 'redriven')}{_beside(answer)}")
    else:
        console.print(f"would go: {_letters(answer, 'would_redrive')}{_beside(answer)}")
        console.print("Nothing was put back: this was a dry run. --execute puts them back.")
    return 1 if not_taken else 0


def _selection_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    reasons = "only of these reasons (events/README.md)"
    add("--reason", nargs="+", action="extend", choices=REASONS, metavar="REASON", help=reasons)
    add("--bot", help="only of this bot")
    add("--template", help="only with this template")
    add("--id", nargs="+", action="extend", help="only of the notifications with these ids")
    add("--older-than", type=_seconds, metavar="AGE", help="that failed earlier, as in 30m, 2h, 3d")
    add("--newer-than", type=_seconds, metavar="AGE", help="that failed later")
    add("--each", action="store_true", help="show each letter")
    add("--json", action="store_true", help="print JSON instead of a table")


def _redrive_arguments(parser: argparse.ArgumentParser) -> None:
    _selection_arguments(parser)
    add = parser.add_argument
    add("--execute", action="store_true", help="put them back; without it nothing changes")
    add("--limit", type=_count, metavar="N", help="put back at most so many")
    add("--force", action="store_true", help="also what cannot succeed as it is")


def _selection(options: argparse.Namespace) -> Json:
    return {
        "reasons": options.reason or REASONS,
        "bot": options.bot,
        "template": options.template,
        "ids": options.id,
        "minimum_age_seconds": options.older_than,
        "maximum_age_seconds": options.newer_than,
        "each": options.each,
    }


def _run(stack: Stack, order: ListOrder) -> Json:
    def progress(scanned: int, depth: int) -> None:
        if depth >= LONG_RUN:
            end = "\n" if scanned >= depth else ""
            text = f"\r{scanned} of about {depth} looked at"
            print(text, end=end, file=sys.stderr, flush=True)

    return operations.redrive(stack, order, progress).as_json()


def _show(answer: Json, columns: list[str]) -> None:
    if not answer["groups"]:
        return
    _table(columns, [_row(group, columns) for group in answer["groups"]])
    if "letters" in answer:
        each = ["what", *EACH, "why"] if "what" in columns else EACH
        console.print()
        _table(each, [_row(letter, each) for letter in answer["letters"]])
    console.print()


def _row(told: Json, columns: list[str]) -> list[str]:
    shown = told | {"what": FATES.get(told["fate"])}
    shown |= {name: _ago(told[name]) for name in ("oldest", "newest") if name in told}
    return ["-" if shown[column] is None else str(shown[column]) for column in columns]


def _table(columns: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(
            column.replace("_", " "),
            justify="right" if column in {"count", "code", "generation", "redrives"} else "left",
            overflow="fold",
            # What somebody copies stays in one piece; what somebody reads may be folded.
            no_wrap=column not in {"detail", "why", "found"},
        )
    for cells in rows:
        table.add_row(*map(escape, cells))
    console.print(table)


def _letters(answer: Json, fate: str) -> str:
    count = sum(group["count"] for group in answer["groups"] if group["fate"] == fate)
    return f"{count} of {answer['scanned']} dead letters"


def _beside(answer: Json) -> str:
    beside = ""
    if answer["more"]:
        beside += "; there are more than can be looked at in one run"
    if answer["hidden"]:
        beside += (
            f"; about {answer['hidden']} more were being looked at by somebody else, or by a run"
            " that broke off: they can be seen again within five minutes"
        )
    return beside


def _ago(at: str) -> str:
    seconds = max(0, time.time() - datetime.fromisoformat(at).timestamp())
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f}{name} ago"
    return f"{seconds:.0f}s ago"


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no age: write it as in 90s, 30m, 2h or 3d")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above zero")
    return int(text)


class _Facts(logging.Formatter):
    """Shows what AWS refused, which the package logs beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        facts = [str(getattr(record, name, "")) for name in ("error", "operation", "code", "codes")]
        return " ".join(filter(None, [f"{record.getMessage()}:", *facts]))


# --- operations -----------------------------------------------------------------------------------


def publish(stack: Stack, options: argparse.Namespace) -> int:
    """Put requests on the queue as they stand, valid or not."""
    count = operations.publish(stack, options.files)
    console.print(f"{count} published")
    return 0


def pause(stack: Stack, options: argparse.Namespace) -> int:
    """Stop everything of a bot (look-ups, sends, questions) until it is resumed."""
    operations.pause(stack, options.bot)
    console.print(f"{options.bot} is paused: its requests wait, at no cost, for a week at most")
    return 0


def resume(stack: Stack, options: argparse.Namespace) -> int:
    """Resume a paused bot."""
    operations.resume(stack, options.bot)
    console.print(f"{options.bot} goes on: its requests come by within 15 minutes")
    return 0


def check_bot(stack: Stack, options: argparse.Namespace) -> int:
    """Try a bot's entry in the secret, its key, URL and channel; nothing is looked up or sent."""
    findings = operations.check_bot(stack, options.bot)
    marks = {True: "✓", False: "✗", None: "-"}
    _table(["what", "", "found"], [[f.what, marks[f.good], f.detail] for f in findings])
    return 0 if all(finding.good for finding in findings) else 1


def rotate_webhook(stack: Stack, options: argparse.Namespace) -> int:
    """Put a new webhook secret for a bot; the one before counts for a day."""
    rotation = operations.rotate_webhook(stack, options.bot, leaked=options.leaked)
    name = " and ".join(rotation.bots)
    if rotation.previous_until:
        until = f"the one before counts until {rotation.previous_until:%FT%TZ}"
    else:
        until = "it counts at once, and nothing else lets the receipts of this bot in"
    lines = [f"Enter in BLiP's portal, as header of {name}; {until}:"]
    lines += ["", f"  X-Receipts-Secret: {rotation.secret}", ""]
    if options.leaked:
        lines.append("The one before is refused within five minutes, and BLiP repeats no receipt.")
        if others := rotation.others_with_the_old_one:
            lines.append(f"It still lets others in, rotate them as well: {', '.join(others)}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def restore_ledger(stack: Stack, options: argparse.Namespace) -> int:
    """Copy from a restored table what the ledger lacks; what it has is newer and stays."""
    read = copied = 0
    for read, copied in operations.restore_ledger(stack, options.table):
        print(f"\r{read} items read, {copied} copied", end="", file=sys.stderr)
    print(file=sys.stderr)
    console.print(f"{copied} of {read} items were lacking in the ledger and are back")
    return 0


def republish(stack: Stack, options: argparse.Namespace) -> int:
    """Publish again every status event of the ledger since a time, with the same event_id."""
    done = operations.Republished()
    for done in operations.republish(stack, options.since, options.after):
        if done.continue_from:
            counts = f"{done.scanned} items looked at, {done.published} events published"
            text = f"\r{counts}; FROM={done.continue_from}"
            print(text, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    console.print(
        f"{done.published} status events of {done.scanned} ledger items were published again"
    )
    for key in done.refused:
        console.print(f"not publishable: {key}")
    return 1 if done.refused else 0


def _republish_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("since", type=_time, metavar="SINCE", help="a time, as in 2026-11-26T00:00:00Z")
    add("--from", dest="after", metavar="KEY", help="continue a run that was cut off")


def _time(text: str) -> float:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write it as 2026-11-26T00:00:00Z")
    return at.timestamp()


def _files_argument(parser: argparse.ArgumentParser) -> None:
    help_ = "a .json file is one request, every line of a .jsonl file is one"
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=help_)


def _bot_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bot", help="its name in the bots' secret")


def _rotation_arguments(parser: argparse.ArgumentParser) -> None:
    _bot_argument(parser)
    parser.add_argument("--leaked", action="store_true", help="refuse the one before at once")


def _table_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", help="the name of the restored table")


# --- one notification -----------------------------------------------------------------------------


def notification(stack: Stack, options: argparse.Namespace) -> int:
    """Return how it goes with a notification."""
    return _ask(stack, "GET", options)


def cancel(stack: Stack, options: argparse.Namespace) -> int:
    """Take a notification back that has not gone out."""
    return _ask(stack, "DELETE", options)


def _notification_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the request's id")
    parser.add_argument("--bot", default="default", help="its bot (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the function's answer instead")


def _ask(stack: Stack, method: str, options: argparse.Namespace) -> int:
    """Ask the function as the HTTP API does, which is for whoever has a role to sign with."""
    path = f"/notifications/{options.id}"
    response = stack.invoke(
        "GetNotificationFunction",
        {
            "version": "2.0",
            "rawPath": path,
            "queryStringParameters": {"bot": options.bot},
            "headers": {},
            "requestContext": {"http": {"method": method, "path": path}, "stage": "$default"},
        },
    )
    if response["statusCode"] != HTTPStatus.OK:
        raise CommandError(response["body"].strip())
    answer = json.loads(response["body"])
    if options.json:
        console.print_json(data=answer)
        return 0
    timeline = answer.pop("timeline")
    metadata = answer.pop("metadata")
    facts = {name.replace("_", " "): str(fact) for name, fact in answer.items() if fact is not None}
    facts |= {f"metadata {name}": value for name, value in metadata.items()}
    _table(["", ""], [list(fact) for fact in facts.items()])
    console.print()
    _table(
        ["time", "status", "generation"],
        [[change["time"], change["status"], str(change["generation"])] for change in timeline],
    )
    return 0


# --- forgetting -----------------------------------------------------------------------------------


def forget(stack: Stack, options: argparse.Namespace) -> int:
    """Find what is held about a phone number, and erase it."""
    if not options.to:
        raise CommandError("which number? TO=+55… names it")
    order: Json = {"to": options.to, "dry_run": not options.yes}
    whole = last = stack.invoke("ForgetRecipientFunction", order)
    while last["continue_from"] is not None:
        print(f"\r{whole['scanned']} looked at", end="", file=sys.stderr)
        again = order | {"continue_from": last["continue_from"]}
        last = stack.invoke("ForgetRecipientFunction", again)
        whole = {
            "scanned": whole["scanned"] + last["scanned"],
            "possible": whole["possible"] + last["possible"],
            "found": {what: count + last["found"][what] for what, count in whole["found"].items()},
            "erased": {what: n + last["erased"][what] for what, n in whole["erased"].items()},
        }
    found, erased = whole["found"], whole["erased"]
    _table(
        ["what", "found", "erased"],
        [[what.replace("_", " "), str(n), str(erased[what])] for what, n in found.items()],
    )
    console.print(f"\n{whole['scanned']} notifications and dead letters were looked at.")
    if whole["possible"]:
        console.print(
            f"{whole['possible']} delivered ones went to a number with the same last four digits:"
            " nothing more of the number is left of them, and they stay."
        )
    if not options.yes:
        console.print("Nothing was erased: this was a dry run. --yes erases.")
        return 0
    console.print("Run it again in a quarter of an hour: functions/README.md says why.")
    return 0 if erased == found else 1


def _forget_arguments(parser: argparse.ArgumentParser) -> None:
    # From the environment, so that no list of processes shows it.
    parser.set_defaults(to=os.environ.get("TO"))
    parser.add_argument("--yes", action="store_true", help="erase; without it nothing changes")


# --- the command line -----------------------------------------------------------------------------

type _Command = tuple[
    Callable[[Stack, argparse.Namespace], int], Callable[[argparse.ArgumentParser], None]
]
# One function per command, and one that adds its arguments.
COMMANDS: dict[str, _Command] = {
    "failures": (failures, _selection_arguments),
    "redrive": (redrive, _redrive_arguments),
    "publish": (publish, _files_argument),
    "notification": (notification, _notification_arguments),
    "cancel": (cancel, _notification_arguments),
    "forget": (forget, _forget_arguments),
    "pause": (pause, _bot_argument),
    "resume": (resume, _bot_argument),
    "check-bot": (check_bot, _bot_argument),
    "rotate-webhook": (rotate_webhook, _rotation_arguments),
    "restore-ledger": (restore_ledger, _table_argument),
    "republish": (republish, _republish_arguments),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 if all went well."""
    options = _parser().parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(_Facts())
    logging.getLogger("notifier").handlers = [handler]
    try:
        return int(options.run(_stack(options), options))
    except EndpointConnectionError as error:
        print(f"error: {error}{'' if options.stack else HINT}", file=sys.stderr)
    except (CommandError, operations.OperationError, BotoCoreError, ClientError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    where = argparse.ArgumentParser(add_help=False)
    group = where.add_argument_group("which stack")
    add = group.add_argument
    add("--stack", metavar="NAME", help="a deployed stack; without it the local one of `make run`")
    add("--profile", help="the AWS profile for it")
    add("--region", help="the AWS region that it is in")
    add(
        "--port-base",
        metavar="N",
        type=int,
        default=LOCAL_PORT,
        help="where the local stack listens (default %(default)s)",
    )
    parser = argparse.ArgumentParser(prog="python -m functions", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, add_arguments) in COMMANDS.items():
        command = commands.add_parser(
            name, parents=[where], help=run.__doc__, description=run.__doc__
        )
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
