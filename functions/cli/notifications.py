"""`notification` and `cancel`: where a notification is, and taking it back."""

import argparse
import json
from http import HTTPStatus

from functions.cli import output
from functions.cli.arguments import json_argument
from functions.cli.errors import CommandError
from functions.cli.stack import Json, Stack, on_stack, stack_arguments


@on_stack
def run_notification(stack: Stack, options: argparse.Namespace) -> int:
    """Show where a notification is."""
    return _show(_ask(stack, "GET", options), options)


@on_stack
def run_cancel(stack: Stack, options: argparse.Namespace) -> int:
    """Take a notification back that has not gone out."""
    return _show(_ask(stack, "DELETE", options), options)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what both commands take."""
    parser.add_argument("id", metavar="ID", help="the request's id")
    parser.add_argument("--bot", default="default", help="its bot (default: %(default)s)")
    json_argument(parser)
    stack_arguments(parser)


def _ask(stack: Stack, method: str, options: argparse.Namespace) -> Json:
    """Ask the function as the HTTP API does, which takes a role to sign with."""
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
    answer: Json = json.loads(response["body"])
    return answer


def _show(answer: Json, options: argparse.Namespace) -> int:
    if options.json:
        output.print_json(answer)
        return 0
    timeline = answer.pop("timeline")
    metadata = answer.pop("metadata")
    facts = {name.replace("_", " "): str(fact) for name, fact in answer.items() if fact is not None}
    output.facts(facts | {f"metadata {name}": value for name, value in metadata.items()})
    output.say()
    output.table(
        ["time", "status", "generation"],
        [[change["time"], change["status"], str(change["generation"])] for change in timeline],
    )
    return 0
