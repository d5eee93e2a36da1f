"""`pause`, `resume` and `check-bot`."""

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass

from functions.cli import output
from functions.cli.arguments import json_argument
from functions.cli.errors import CommandError
from functions.cli.stack import Addressed, Resources, Stack, on_stack, stack_arguments
from notifier.aws.bot_items import bot_key, bot_state
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.table import Table
from notifier.blip.client import BlipClient
from notifier.domain.bot_state import Plan
from notifier.domain.bots import Bot, Bots, BotsSecretError, InvalidBot, parse_bots
from notifier.domain.failures import Failure
from notifier.domain.templates import TemplateStatus

# So many templates `check-bot` names of each status.
SHOWN = 20
PLANS: tuple[Plan, ...] = ("messages", "commands")


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


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a bot sends, and what keeps it from sending. Times in epoch seconds.

    Attributes:
        paused_since: since when an operator has paused it; None if it is not paused.
        throttled_until: when BLiP's penalty ends; None if there is none.
        breaker: why its breaker is open; empty while it is closed.
        problem: what is wrong with its entry in the secret; empty if nothing is.
        shares: by plan, the share of it that may be used now; empty if the entry cannot be read.
        next_message_at: the first free send slot.
        paused_templates: those that WhatsApp has paused, with their languages.
    """

    name: str
    paused_since: float | None
    throttled_until: float | None
    breaker: str
    problem: str
    shares: dict[str, float]
    next_message_at: float
    paused_templates: tuple[str, ...]

    @property
    def holds(self) -> list[str]:
        """Everything that keeps it from sending, as the ends of a sentence about it."""
        holds = []
        if self.paused_since is not None:
            holds.append(f"is paused since {output.moment(self.paused_since)}")
        if self.problem:
            holds.append(f"cannot be used ({self.problem})")
        if self.breaker:
            holds.append(f"has an open breaker ({self.breaker})")
        if self.throttled_until is not None:
            holds.append(f"is throttled until {output.moment(self.throttled_until)}")
        return holds

    def way_out(self, stack: Addressed) -> str | None:
        """Return the command that helps; None if it goes on by itself."""
        if self.paused_since is not None:
            return stack.command("resume", f"BOT={self.name}")
        if self.problem or self.breaker:
            return stack.command("check-bot", f"BOT={self.name}")
        return None


def standing(stack: Resources, name: str, bot: Bot | InvalidBot | None) -> Standing:
    """Return how a bot stands now.

    Args:
        stack: whose.
        name: its name.
        bot: its entry in the secret; None if there is none.
    """
    now = time.time()
    item = identities(stack).get(bot_key(name))
    state = bot_state(item)
    problem = ""
    shares: dict[str, float] = {}
    if isinstance(bot, Bot):
        shares = {str(plan): state.share(plan, bot.share, now) for plan in PLANS}
    else:
        problem = bot.problem if bot else "the bots' secret has no entry for it"
    return Standing(
        name=name,
        paused_since=item["paused"] / 1000 if "paused" in item else None,
        throttled_until=state.throttled_until if state.throttled_until > now else None,
        breaker=state.broken,
        problem=problem,
        shares=shares,
        next_message_at=state.next_message_at,
        paused_templates=tuple(
            f"{name} ({language})" for name, language in sorted(state.paused_templates)
        ),
    )


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


def check_bot(stack: Addressed, name: str) -> list[Finding]:
    """Try a bot's entry, key, URL and channel. Nothing is looked up and nothing is sent.

    Raises:
        CommandError: there is no such bot.
    """
    bot = one_bot(stack, name)
    if isinstance(bot, InvalidBot):
        nothing = [Finding(what, None, "not tried") for what in ("key and URL", "WhatsApp channel")]
        return [Finding("entry in the secret", good=False, detail=bot.problem), *nothing]
    plan = f"{bot.messages_per_second:g} messages and {bot.commands_per_second:g} commands a second"
    entry = Finding("entry in the secret", good=True, detail=f"{plan}, receipts by {bot.receipts}")
    with closing(BlipClient(1, 10.0)) as blip:
        tried = [_answers(blip, bot), _has_channel(blip, bot)]
    stands = standing(stack, name, bot)
    return [entry, _ready(stack, stands), _share(stands, bot), *tried]


def identities(stack: Resources) -> Table:
    """Return the table with the bots' items."""
    return Table(stack.client("dynamodb"), stack.physical_id("IdentitiesTable"))


def _states(stack: Resources) -> DynamoDbBotStates:
    return DynamoDbBotStates(identities(stack), time.time)


def _ready(stack: Addressed, stands: Standing) -> Finding:
    """Return what keeps the bot from sending, although its entry is right."""
    if not stands.holds:
        return Finding("ready", good=True, detail="it is neither paused nor throttled")
    detail = f"it {', and '.join(stands.holds)}"
    if stands.paused_since is not None:
        detail += f"; `{stands.way_out(stack)}` resumes it"
    return Finding("ready", good=False, detail=detail)


def shares_as_text(shares: Mapping[str, float]) -> str:
    """Return the shares of a bot's plans that are in force."""
    return " and ".join(f"{100 * share:.0f} % for {plan}" for plan, share in shares.items())


def _share(stands: Standing, bot: Bot) -> Finding:
    detail = shares_as_text(stands.shares)
    if min(stands.shares.values()) < bot.share:
        detail += f", after a penalty; climbs back to {100 * bot.share:.0f} %"
    return Finding("share of the plan", good=True, detail=detail)


def _answers(blip: BlipClient, bot: Bot) -> Finding:
    try:
        blip.ping(bot)
    except Failure as failure:
        return Finding("key and URL", good=False, detail=failure.detail)
    return Finding("key and URL", good=True, detail=f"{bot.base_url} answers this key")


def _has_channel(blip: BlipClient, bot: Bot) -> Finding:
    """Return which templates are approved, and which are not."""
    try:
        templates = blip.templates(bot, time.time(), lambda: None)
    except Failure as failure:
        return Finding("WhatsApp channel", good=False, detail=failure.detail)
    names: dict[str, list[str]] = defaultdict(list)
    for template in templates.values():
        for language, translation in template.translations.items():
            names[translation.status].append(f"{template.name} ({language})")
    approved = names.pop(TemplateStatus.APPROVED, [])
    detail = f"{len(approved)} of {len(approved) + sum(map(len, names.values()))} templates are"
    detail += f" approved: {_some(approved)}"
    for status, others in sorted(names.items()):
        detail += f"; {status.lower()}: {_some(others)}"
    return Finding("WhatsApp channel", good=bool(approved), detail=detail)


def _some(names: list[str]) -> str:
    """Return the first SHOWN names; `make templates` lists all of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(sorted(names)[:SHOWN]) or "none") + more


def warn(stack: Stack, name: str) -> None:
    """Show what keeps a bot from sending, if anything does, and the way out."""
    stands = standing(stack, name, all_bots(stack).get(name))
    if not stands.holds:
        return
    output.say()
    output.say(f"Its requests wait: {name} {', and '.join(stands.holds)}.")
    if way_out := stands.way_out(stack):
        output.say_exactly(f"  {way_out}")


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
    output.facts({f"{marks[finding.good]} {finding.what}": finding.detail for finding in findings})
    return 0 if good else 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all three commands take."""
    parser.add_argument("bot", metavar="BOT", help="its name in the bots' secret")
    json_argument(parser)
    stack_arguments(parser)
