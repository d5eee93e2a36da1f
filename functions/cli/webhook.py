"""`rotate-webhook`: a new secret for a bot at the webhook."""

import argparse
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError

from functions.cli import bots, output
from functions.cli.bots import all_bots, one_bot
from functions.cli.errors import CommandError
from functions.cli.stack import Resources, Stack, on_stack
from notifier.aws.webhook import OVERLAP_SECONDS
from notifier.domain.bots import Bot
from notifier.entrypoints.environment import SystemClock

OVERLAP = timedelta(seconds=OVERLAP_SECONDS)


class WebhookEntry(BaseModel):
    """A bot's secrets at the webhook, as notifier.aws.webhook reads them."""

    current: str
    previous: str | None = None
    rotated_at: AwareDatetime | None = None

    @property
    def previous_until(self) -> datetime | None:
        """Until when the previous secret counts; None if there is none that does."""
        return self.rotated_at + OVERLAP if self.previous and self.rotated_at else None

    def counting(self, now: datetime) -> set[str]:
        """Return the secrets that count."""
        until = self.previous_until
        return {self.current, *([self.previous] if self.previous and until and now < until else [])}


_WEBHOOK_ENTRIES = TypeAdapter(dict[str, WebhookEntry])


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new webhook secret.

    Attributes:
        bots: the bot, and its other names in the bots' secret.
        secret: the value that BLiP has to show from now on.
        previous_until: until when the one before counts; None if it does not.
        others_with_the_old_one: other bots whose receipts the one before still lets in.
    """

    bots: list[str]
    secret: str = field(repr=False)
    previous_until: datetime | None
    others_with_the_old_one: list[str]


def rotate_webhook(stack: Resources, name: str, *, leaked: bool) -> Rotation:
    """Put a new webhook secret for a bot; those of the other bots stay as they are.

    The first rotation of a stack writes down for every bot the one secret that all have shared. Two
    names with the same key are one bot at BLiP, which shows one secret for both.

    Args:
        stack: where.
        name: the bot's name.
        leaked: refuse the secret before at once, not after a day.

    Raises:
        CommandError: there is no such bot, the secret cannot be read, or the bot's secret before
            the current one still counts and would be dropped.
    """
    known, bot = all_bots(stack), one_bot(stack, name)
    names = [name]
    if isinstance(bot, Bot):
        names = [one.name for one in known.values() if isinstance(one, Bot) and one.key == bot.key]
    client, secret = stack.client("secretsmanager"), stack.physical_id("WebhookSecret")
    entries = _webhook_entries(client, secret, known)
    now = datetime.fromtimestamp(SystemClock.now(), UTC)
    before = [entries[one] for one in names if one in entries]
    counts_until = max(filter(None, (entry.previous_until for entry in before)), default=now)
    if now < counts_until and not leaked:
        raise CommandError(
            f"the secret of {name} was rotated less than a day ago, and the one before counts until"
            f" {counts_until:%FT%TZ}: wait until then, or --leaked refuses it at once"
        )
    new = secrets.token_hex(32)
    for one in names:
        previous = entries[one].current if one in entries and not leaked else None
        entries[one] = WebhookEntry(current=new, previous=previous, rotated_at=now)
    client.put_secret_value(SecretId=secret, SecretString=_written(entries))
    dropped = {value for entry in before for value in entry.counting(now)}
    others = [one for one, entry in entries.items() if dropped & entry.counting(now) - {new}]
    return Rotation(
        bots=names,
        secret=new,
        previous_until=now + OVERLAP if before and not leaked else None,
        others_with_the_old_one=[one for one in others if one not in names],
    )


def _webhook_entries(client: Any, secret: str, bots: Iterable[str]) -> dict[str, WebhookEntry]:
    """Return the webhook's secrets by bot. A plain string counts for every bot.

    Raises:
        CommandError: the value cannot be read.
    """
    answer = client.get_secret_value(SecretId=secret)
    text = answer["SecretString"].strip()
    if text.startswith("{"):
        try:
            return _WEBHOOK_ENTRIES.validate_json(text)
        except ValidationError as error:
            where = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
            raise CommandError(
                f"the webhook's secret cannot be read{where and f' at {where}'}: fix it first"
            ) from None
    plain = WebhookEntry(current=text)
    try:
        previous = client.get_secret_value(SecretId=secret, VersionStage="AWSPREVIOUS")
    except client.exceptions.ResourceNotFoundException:
        pass  # it was never rotated
    else:
        plain.previous, plain.rotated_at = previous["SecretString"].strip(), answer["CreatedDate"]
    return dict.fromkeys(bots, plain)


def _written(entries: dict[str, WebhookEntry]) -> str:
    return _WEBHOOK_ENTRIES.dump_json(entries, exclude_none=True, indent=1).decode()


@on_stack
def run_rotate_webhook(stack: Stack, options: argparse.Namespace) -> int:
    """Put a new webhook secret for a bot; the one before counts for a day."""
    rotation = rotate_webhook(stack, options.bot, leaked=options.leaked)
    if options.json:
        output.print_json(
            {
                "bots": rotation.bots,
                "secret": rotation.secret,
                "previous_until": rotation.previous_until and f"{rotation.previous_until:%FT%TZ}",
                "others_with_the_old_one": rotation.others_with_the_old_one,
            }
        )
        return 0
    if rotation.previous_until:
        until = f"the one before counts until {rotation.previous_until:%FT%TZ}"
    else:
        until = "it counts at once, and nothing else lets the receipts of this bot in"
    name = " and ".join(rotation.bots)
    output.say(f"Enter in BLiP's portal, as header of {name}; {until}:")
    output.say()
    output.say_exactly(f"  X-Receipts-Secret: {rotation.secret}")
    if options.leaked:
        output.say()
        output.say("The one before is refused within five minutes, and BLiP repeats no receipt.")
        if others := rotation.others_with_the_old_one:
            output.say(f"It still lets others in, rotate them as well: {', '.join(others)}")
    return 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `rotate-webhook` takes."""
    parser.add_argument("--leaked", action="store_true", help="refuse the one before at once")
    bots.arguments(parser)
