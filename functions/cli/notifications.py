"""`notification` and `cancel`: where a notification is, and taking it back."""

import argparse
import json
from http import HTTPStatus

from functions.cli import bots, dead_letters, evidence, output
from functions.cli.arguments import json_argument, notification_id
from functions.cli.errors import CommandError
from functions.cli.stack import Json, Stack, on_stack, stack_arguments
from notifier.domain.status import UNDELIVERED, Status
from notifier.use_cases.redrive_failures.orders import ListOrder

_UNDER_WAY = {
    Status.CLAIMED,
    Status.SENDING,
    Status.RETRYING,
    Status.UNKNOWN,
    Status.WAITING,
}


@on_stack
def run_notification(stack: Stack, options: argparse.Namespace) -> int:
    """Show where a notification is: in the ledger, among the dead letters, or not taken up yet."""
    answer = _ask(stack, "GET", options)
    if answer is None:
        return _not_in_the_ledger(stack, options)
    known = evidence.collect(stack, options.bot, options.id) if options.evidence else None
    if options.json:
        output.print_json(answer | ({} if known is None else {"evidence": known}))
        return 0
    _show(answer)
    if known is not None:
        output.say()
        evidence.show(stack, known)
    if answer["status"] in _UNDER_WAY:
        bots.warn(stack, options.bot)
    if answer["status"] in UNDELIVERED:
        output.say()
        output.next_step("See its dead letter", _failures(stack, options))
    return 0


@on_stack
def run_cancel(stack: Stack, options: argparse.Namespace) -> int:
    """Take a notification back that has not gone out."""
    answer = _ask(stack, "DELETE", options)
    if answer is None:
        raise CommandError(f"bot {options.bot} has no notification {options.id}")
    if options.json:
        output.print_json(answer)
        return 0
    _show(answer)
    # Once a request has come, its template is known; without a time the recipient was forgotten.
    if answer["template"] is None and answer["created_at"] is not None:
        output.say()
        output.say(
            f"No request with the id {options.id} has come yet: it is cancelled in advance, and"
            " not sent if it comes within 45 days. If the id is mistyped, nothing was taken back."
        )
    return 0


def _ask(stack: Stack, method: str, options: argparse.Namespace) -> Json | None:
    """Ask the function as the HTTP API does, which takes a role to sign with.

    Returns:
        Its answer; None if it does not know the notification.

    Raises:
        CommandError: it refuses, for the reason that the text gives.
    """
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
    if response["statusCode"] == HTTPStatus.NOT_FOUND:
        return None
    if response["statusCode"] != HTTPStatus.OK:
        raise CommandError(response["body"].strip())
    answer: Json = json.loads(response["body"])
    return answer


def _show(answer: Json) -> None:
    told = {name: fact for name, fact in answer.items() if name not in {"timeline", "metadata"}}
    facts = {name.replace("_", " "): str(fact) for name, fact in told.items() if fact is not None}
    output.facts(facts | {f"metadata {name}": text for name, text in answer["metadata"].items()})
    output.say()
    columns = ["time", "status", "generation"]
    if any(change.get("reason") for change in answer["timeline"]):
        columns.append("reason")
    rows = [
        ["-" if change.get(column) is None else str(change[column]) for column in columns]
        for change in answer["timeline"]
    ]
    output.table(columns, rows)


def _not_in_the_ledger(stack: Stack, options: argparse.Namespace) -> int:
    """Show the dead letters with the id; if there are none, why its request may be waiting."""
    order = ListOrder(ids=[options.id], bot=options.bot, each=True)
    letters = dead_letters.redrive(stack, order, lambda *_: None).as_json()["dead_letters"]
    stands = bots.standing(stack, options.bot, bots.all_bots(stack).get(options.bot))
    if options.json:
        output.print_json(
            {
                "id": options.id,
                "bot": options.bot,
                "status": None,
                "dead_letters": letters,
                "bot_holds": stands.holds,
            }
        )
        return 1
    if letters:
        output.say(
            f"The ledger has no notification {options.id} of the bot {options.bot}. Its request is"
            " a dead letter:"
        )
        output.say()
        dead_letters.show_each(letters)
        return 1
    output.say(
        f"Neither the ledger nor the dead letters have the id {options.id} of the bot"
        f" {options.bot}. Its request was never published, or it waits."
    )
    if stands.holds:
        bots.warn(stack, options.bot)
    else:
        output.say(f"The bot {options.bot} is ready.")
        output.next_step("See whether requests wait", stack.command("status"))
    return 1


def _failures(stack: Stack, options: argparse.Namespace) -> str:
    return stack.command("failures", "", ["--each", "--id", options.id])


def notification_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `notification` takes."""
    help_ = "show what explains a single send: claim, message ids, answer, history, receipts"
    parser.add_argument("--evidence", action="store_true", help=help_)
    cancel_arguments(parser)


def cancel_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `cancel` takes."""
    parser.add_argument("id", metavar="ID", type=notification_id, help="the request's id")
    parser.add_argument("--bot", default="default", help="its bot (default: %(default)s)")
    json_argument(parser)
    stack_arguments(parser)
