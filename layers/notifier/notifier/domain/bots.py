"""A bot: one BLiP key with its base URL, namespace and plan limits, from the bots' secret."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

PLACEHOLDER = "REPLACE_ME"
NAME_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
# Scheme, host and port only, each of a form that a connection can be made to. Every request carries
# the key: `http` is for this machine itself only, also as a container on it sees it.
_BASE_URL_PATTERN = (
    r"^(https://[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*"
    r"|http://(localhost|host\.docker\.internal|127(\.[0-9]{1,3}){3}))(:[0-9]{1,5})?/?$"
)


def _normalised_key(value: str) -> str:
    """Return the key with one `Key ` in front, as the portal shows it; it is pasted both ways."""
    key = re.sub(r"^(key(\s+|$))+", "", value.strip(), flags=re.IGNORECASE)
    if PLACEHOLDER in key:
        raise ValueError("is still the placeholder: put the bot's key from BLiP's portal here")
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("is empty or holds a space: copy it whole from BLiP's portal")
    return f"Key {key}"


def _no_placeholder(value: str) -> str:
    if value == PLACEHOLDER:
        raise ValueError("is still the placeholder: put the templates' namespace here, or drop it")
    return value


class Bot(BaseModel):
    """What is needed to speak to BLiP as one bot.

    Attributes:
        name: as requests call it.
        base_url: `https://CONTRACT.http.msging.net`, or without the contract's prefix. `http://` is
            for a simulator on this machine.
        key: the whole value of the `Authorization` header. Never logged.
        namespace: the WhatsApp namespace of its templates, where a request names none.
        messages_per_second: what the plan allows for messages.
        commands_per_second: what the plan allows for commands.
        share: the part of the plan that is used at most. The bot's live conversations use the same
            plan, and round trips vary: what leaves evenly spaced arrives less evenly.
        receipts: how they reach us: `webhook`, or `history` for bots that BLiP pushes nothing to
            (it pushes to HTTP bots only), which are asked about on a schedule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=NAME_PATTERN)
    base_url: str = Field(default="https://http.msging.net", pattern=_BASE_URL_PATTERN)
    key: Annotated[str, AfterValidator(_normalised_key)] = Field(repr=False)
    namespace: Annotated[str, AfterValidator(_no_placeholder)] | None = None
    messages_per_second: float = Field(default=50, gt=0, allow_inf_nan=False)
    commands_per_second: float = Field(default=200, gt=0, allow_inf_nan=False)
    share: float = Field(default=0.90, ge=0.1, le=1)
    receipts: Literal["webhook", "history"] = "webhook"


@dataclass(frozen=True, slots=True)
class InvalidBot:
    """A bot whose entry in the secret cannot be used. Its requests wait until it is fixed.

    Attributes:
        name: as requests call it.
        problem: what to fix, without any value of the secret.
    """

    name: str
    problem: str


type Bots = dict[str, Bot | InvalidBot]


class BotsSecretError(Exception):
    """The bots' secret as a whole cannot be used; the text says what to fix."""


def parse_bots(secret: str) -> Bots:
    """Read the bots' secret: a JSON object with one entry per bot, by name.

    One bot's broken entry does no harm to the others.

    Raises:
        BotsSecretError: it is not a JSON object.
    """
    try:
        entries = json.loads(secret)
    except ValueError:
        entries = None
    if not isinstance(entries, dict):
        raise BotsSecretError(
            'the bots\' secret is not a JSON object such as {"default": {"key": "Key …"}}'
        )
    return {name: _bot(name, entry) for name, entry in entries.items()}


def _bot(name: str, entry: object) -> Bot | InvalidBot:
    if not isinstance(entry, dict):
        return InvalidBot(name, f"bot {name}: its entry in the bots' secret is not a JSON object")
    try:
        return Bot.model_validate({**entry, "name": name})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        return InvalidBot(name, f"bot {name}: its entry in the bots' secret is wrong: {problems}")
