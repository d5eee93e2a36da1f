"""`templates`: what BLiP lists for a bot, what a send has to bring, and what the registry has."""

import argparse
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from functions.cli import output
from functions.cli.arguments import json_argument
from functions.cli.bots import all_bots, identities, one_bot
from functions.cli.errors import CommandError
from functions.cli.stack import Resources, Stack, on_stack, stack_arguments
from notifier.aws.templates import DynamoDbTemplates
from notifier.blip.client import BlipClient
from notifier.domain.bots import Bot, InvalidBot
from notifier.domain.failures import Failure
from notifier.domain.templates import ButtonKind, RegisteredTemplate, Shape, Translation

FUNCTION = "SyncTemplatesFunction"
CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Listed:
    """A template in one language, as BLiP lists it, and whether the registry agrees.

    Attributes:
        takes: what a send has to bring, in words.
        registry: what the registry has of it, in words.
    """

    bot: str
    name: str
    language: str
    category: str
    status: str
    takes: str
    registry: str


def templates(stack: Resources, bot: Bot) -> list[Listed]:
    """Return the templates of a bot.

    Raises:
        CommandError: BLiP does not list them.
    """
    with closing(BlipClient(1, CALL_SECONDS)) as blip:
        try:
            listed = blip.templates(bot, time.time(), lambda: None)
        except Failure as failure:
            raise CommandError(f"the templates of {bot.name}: {failure.detail}") from None
    registry = DynamoDbTemplates(identities(stack), time.time)
    known = registry.of_bot(bot.name, listed)
    return [
        Listed(
            bot=bot.name,
            name=name,
            language=language,
            category=translation.category or "-",
            status=translation.status,
            takes=takes(translation),
            registry=_registry(known, name, language, translation),
        )
        for name, template in sorted(listed.items())
        for language, translation in sorted(template.translations.items())
    ]


def takes(translation: Translation) -> str:
    """Return in words what a send of a template has to bring."""
    if not translation.is_understood:
        return "not known"
    parts = _parts(translation.shape)
    if translation.cards:
        cards = {", ".join(_parts(card)) or "nothing" for card in translation.cards}
        parts.append(f"{len(translation.cards)} cards with {' or '.join(sorted(cards))}")
    return ", ".join(parts) or "nothing"


def _parts(shape: Shape) -> list[str]:
    parts = [f"header {shape.header}"] if shape.header else []
    if isinstance(shape.body, tuple):
        parts.append(f"body {', '.join(shape.body)}")
    elif shape.body:
        parts.append(f"body {shape.body}")
    parts += [
        f"button {index} {button}"
        for index, button in enumerate(shape.buttons)
        if button is not ButtonKind.STATIC
    ]
    return parts


def _registry(
    known: Mapping[str, RegisteredTemplate], name: str, language: str, listed: Translation
) -> str:
    """Return whether the registry has what BLiP lists."""
    stored = known.get(name)
    if stored is None or language not in stored.translations:
        return "not synced"
    return "synced" if stored.translations[language] == listed else "older"


@on_stack
def run_templates(stack: Stack, options: argparse.Namespace) -> int:
    """List a bot's templates, and what a send of each has to bring."""
    bots = {options.bot: one_bot(stack, options.bot)} if options.bot else all_bots(stack)
    if options.sync:
        answer = stack.invoke(FUNCTION, {})
        if missing := [name for name in bots if name not in answer["templates"]]:
            raise CommandError(
                f"not synced: {', '.join(missing)}; see which bots answer",
                stack.command("check-bot", f"BOT={missing[0]}"),
            )
    listed: list[Listed] = []
    for name, bot in bots.items():
        if isinstance(bot, InvalidBot):
            raise CommandError(bot.problem, stack.command("check-bot", f"BOT={name}"))
        listed += templates(stack, bot)
    if options.json:
        output.print_json(
            [{name: getattr(one, name) for name in Listed.__slots__} for one in listed]
        )
        return 0
    output.table(
        ["template", "language", "category", "status", "takes", "registry"],
        [
            [one.name, one.language, one.category, one.status, one.takes, one.registry]
            for one in listed
        ],
    )
    if any(one.registry != "synced" for one in listed):
        output.say()
        output.next_step(
            "The registry is synced every 15 minutes; at once by",
            stack.command("templates", arguments=["--sync"]),
        )
    return 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `templates` takes."""
    parser.add_argument("--bot", metavar="BOT", help="of one bot; without it, of all")
    parser.add_argument("--sync", action="store_true", help="sync the registry first")
    json_argument(parser)
    stack_arguments(parser)
