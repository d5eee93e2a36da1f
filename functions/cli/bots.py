"""`pause`, `resume` and `check-bot`."""

import argparse
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from functions.cli import output
from functions.cli.arguments import json_argument
from functions.cli.errors import CommandError
from functions.cli.stack import Resources, Stack, on_stack, stack_arguments
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.table import Table
from notifier.blip.client import BlipClient
from notifier.domain.bots import Bot, Bots, BotsSecretError, InvalidBot, parse_bots
from notifier.domain.failures import Failure

if TYPE_CHECKING:
    from notifier.domain.bot_state import Plan


def all_bots(stack: Resources) -> Bots:
    """Return the bots of the stack's secret, by name.

    Raises:
        CommandError: the secret cannot be read.
    """
    secret = stack.physical_id("BotsSecret")
    answer = stack.client("secretsmanager").get_secret_value(SecretId=secret)
    try:
        return parse_bots(answer["SecretString"])
    except BotsSecretError as error:
        raise CommandError(str(error)) from None


def one_bot(stack: Resources, name: str) -> Bot | InvalidBot:
    """Return a bot of the stack's secret.

    Raises:
        CommandError: there is no such bot.
    """
    bots = all_bots(stack)
    if name not in bots:
        known = ", ".join(sorted(bots)) or "none"
        raise CommandError(f"the bots' secret has no entry {name!r}; it has {known}")
    return bots[name]


def pause(stack: Resources, bot: str) -> None:
    """Stop everything of a bot (look-ups, sends, questions) until it is resumed.

    Raises:
        CommandError: there is no such bot.
    """
    one_bot(stack, bot)
    _states(stack).pause(bot)


def resume(stack: Resources, bot: str) -> None:
    """Resume a bot at once, if it was paused or its breaker is open.

    Raises:
        CommandError: there is no such bot.
    """
    one_bot(stack, bot)
    _states(stack).resume(bot)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried of a bot.

    Attributes:
        good: None where it could not be tried.
        detail: what was found, in a sentence without any value of the secret.
    """

    what: str
    good: bool | None
    detail: str


def check_bot(stack: Resources, name: str) -> list[Finding]:
    """Try a bot's entry, key, URL and channel. Nothing is looked up and nothing is sent.

    Raises:
        CommandError: there is no such bot.
    """
    bot = one_bot(stack, name)
    if isinstance(bot, InvalidBot):
        nothing = [Finding(what, None, "") for what in ("key and URL", "WhatsApp channel")]
        return [Finding("entry in the secret", good=False, detail=bot.problem), *nothing]
    plan = f"{bot.messages_per_second:g} messages and {bot.commands_per_second:g} commands a second"
    entry = Finding("entry in the secret", good=True, detail=f"{plan}, receipts by {bot.receipts}")
    with closing(BlipClient(1, 10.0)) as blip:
        return [entry, _share(stack, bot), _answers(blip, bot), _has_channel(blip, bot)]


def _states(stack: Resources) -> DynamoDbBotStates:
    table = Table(stack.client("dynamodb"), stack.physical_id("IdentitiesTable"))
    return DynamoDbBotStates(table, time.time)


def _share(stack: Resources, bot: Bot) -> Finding:
    now = time.time()
    state = _states(stack).state(bot.name)
    plans: tuple[Plan, ...] = ("messages", "commands")
    shares = [state.share(plan, bot.share, now) for plan in plans]
    detail = " and ".join(
        f"{100 * share:.0f} % for {plan}" for share, plan in zip(shares, plans, strict=True)
    )
    if min(shares) < bot.share:
        detail += f", after a penalty; climbs back to {100 * bot.share:.0f} %"
    return Finding("share of the plan", good=True, detail=detail)


def _answers(blip: BlipClient, bot: Bot) -> Finding:
    try:
        blip.ping(bot)
    except Failure as failure:
        return Finding("key and URL", good=False, detail=failure.detail)
    return Finding("key and URL", good=True, detail=f"{bot.base_url} answers this key")


def _has_channel(blip: BlipClient, bot: Bot) -> Finding:
    try:
        templates = blip.templates(bot)
    except Failure as failure:
        return Finding("WhatsApp channel", good=False, detail=failure.detail)
    approved = sum(status == "APPROVED" for _, _, status in templates)
    detail = f"{approved} of {len(templates)} templates are approved"
    return Finding("WhatsApp channel", good=bool(approved), detail=detail)


@on_stack
def run_pause(stack: Stack, options: argparse.Namespace) -> int:
    """Stop everything of a bot (look-ups, sends, questions) until it is resumed."""
    pause(stack, options.bot)
    if options.json:
        output.print_json({"bot": options.bot, "paused": True})
        return 0
    output.say(f"{options.bot} is paused: its requests wait, at no cost, for a week at most")
    return 0


@on_stack
def run_resume(stack: Stack, options: argparse.Namespace) -> int:
    """Resume a bot that is paused or whose breaker is open."""
    resume(stack, options.bot)
    if options.json:
        output.print_json({"bot": options.bot, "paused": False})
        return 0
    output.say(f"{options.bot} goes on: its requests come by within 15 minutes")
    return 0


@on_stack
def run_check_bot(stack: Stack, options: argparse.Namespace) -> int:
    """Try a bot's entry in the secret, its key, URL and channel; nothing is looked up or sent."""
    findings = check_bot(stack, options.bot)
    good = all(finding.good for finding in findings)
    if options.json:
        output.print_json({"bot": options.bot, "findings": [asdict(one) for one in findings]})
        return 0 if good else 1
    marks = {True: "✓", False: "✗", None: "-"}
    rows = [[finding.what, marks[finding.good], finding.detail] for finding in findings]
    output.table(["what", "", "found"], rows)
    return 0 if good else 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all three commands take."""
    parser.add_argument("bot", metavar="BOT", help="its name in the bots' secret")
    json_argument(parser)
    stack_arguments(parser)
