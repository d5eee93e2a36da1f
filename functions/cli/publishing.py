"""`publish`: requests from files, put on the queue."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from functions.cli import output
from functions.cli.arguments import json_argument
from functions.cli.errors import CommandError
from functions.cli.stack import Resources, Stack, on_stack, stack_arguments
from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest


def publish(stack: Resources, files: Iterable[Path]) -> int:
    """Put requests on the queue as they stand; return how many.

    Args:
        stack: where to.
        files: each is one request; of a `.jsonl` file each line is one.

    Raises:
        CommandError: a file cannot be read.
    """
    sqs, queue = stack.client("sqs"), stack.physical_id("RequestsQueue")
    published = 0
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{file} cannot be read: {error}") from None
        for body in text.splitlines() if file.suffix == ".jsonl" else [text]:
            sqs.send_message(QueueUrl=queue, MessageBody=body, MessageGroupId=_group(body))
            published += 1
    return published


def _group(body: str) -> str:
    """Return the group that SQS's fair queues go by: the bot."""
    try:
        return parse(body).request.bot
    except InvalidRequest as failure:
        return failure.bot or "default"


@on_stack
def run_publish(stack: Stack, options: argparse.Namespace) -> int:
    """Put requests on the queue as they stand, valid or not."""
    published = publish(stack, options.files)
    if options.json:
        output.print_json({"published": published})
    else:
        output.say(f"{published} published")
    return 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `publish` takes."""
    help_ = "a .json file is one request, every line of a .jsonl file is one"
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=help_)
    json_argument(parser)
    stack_arguments(parser)
