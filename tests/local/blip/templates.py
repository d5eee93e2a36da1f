"""The templates that WhatsApp knows: what a send of each brings, and what WhatsApp says of it."""

import re
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, TypeAdapter, model_validator

from tests.local.blip.lime import Json
from tests.local.blip.settings import Model

type Category = Literal["MARKETING", "UTILITY", "AUTHENTICATION"]
type Status = Literal[
    "APPROVED",
    "PENDING",
    "REJECTED",
    "PAUSED",
    "DISABLED",
    "IN_APPEAL",
    "PENDING_DELETION",
    "LIMIT_EXCEEDED",
]
type Header = Literal["TEXT", "IMAGE", "VIDEO", "DOCUMENT", "LOCATION"]
type Button = Literal[
    "QUICK_REPLY",
    "URL",
    "STATIC_URL",
    "COPY_CODE",
    "OTP",
    "PHONE_NUMBER",
    "FLOW",
    "CATALOG",
    "MPM",
]

CATEGORIES: tuple[str, ...] = get_args(Category.__value__)
STATUSES: tuple[str, ...] = get_args(Status.__value__)
_NAMES = {"bot", "name", "language"}
# What says the same as another attribute, and goes when only that one is changed.
_SAME = {"text": "body", "body": "text", "header": "header_text", "buttons": "labels"}


class Shape(Model):
    """What the components have to be, of a template or of a card.

    Attributes:
        header: TEXT is one with a variable; a text without is None here.
        header_text: the header's words. With TEXT they hold one variable, and are `{{1}}` if they
            are left out.
        body: how many positional parameters, or the names. If it is left out, `text` says so.
        text: the body, with {{1}} or {{name}}.
        buttons: URL is one with a variable, STATIC_URL one without, OTP copies a one-time code.
        labels: the words on the buttons, in the same order.
    """

    header: Header | None = None
    header_text: str | None = None
    body: int | list[str] = 0
    text: str | None = None
    buttons: list[Button] = Field(default_factory=list)
    labels: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _agrees_with_its_texts(self) -> Self:
        if self.header == "TEXT" and self.header_text is None:
            self.header_text = "{{1}}"
        if self.header_text is not None:
            if self.header not in ("TEXT", None):
                raise ValueError(f"header_text: a header of format {self.header} has no text")
            wanted = int(self.header == "TEXT")
            if _count(variables(self.header_text)) != wanted:
                raise ValueError(f"header_text: it has to have {wanted} variables")
        if self.text is not None:
            found = variables(self.text)
            if "body" not in self.model_fields_set:
                self.body = found
            elif _sorted(self.body) != _sorted(found):
                raise ValueError(f"text: its variables are {found}, those of body {self.body}")
        if len(self.labels) > len(self.buttons):
            raise ValueError("labels: there are more of them than buttons")
        return self


class Template(Shape):
    """One template in one language.

    Attributes:
        bot: whose it is; None: every bot's.
        category: how WhatsApp prices and limits it.
        previous_category: the one before WhatsApp changed it.
        rejected_reason: why it was rejected, in WhatsApp's words.
        ttl_seconds: for how long WhatsApp tries to deliver it.
        footer: the line below the body.
        cards: the cards of a carousel.
        further: components that are listed as they stand here, such as LIMITED_TIME_OFFER. A
            message may bring one of each, whatever is in it.
    """

    name: str = Field(pattern=r"^[a-z0-9_]{1,512}$")
    language: str = Field(pattern=r"^[A-Za-z]{2,3}(_[A-Za-z0-9]{2,4})?$")
    bot: str | None = None
    status: Status = "APPROVED"
    category: Category = "UTILITY"
    previous_category: Category | None = None
    rejected_reason: str | None = None
    ttl_seconds: int | None = None
    namespace: str | None = None
    footer: str | None = None
    cards: list[Shape] = Field(default_factory=list)
    further: list[Json] = Field(default_factory=list)

    def changed(self, bot: str | None, changes: Json) -> "Template":
        """Return it with some attributes changed, as a template of that bot.

        The attribute `previous_category` follows a change of `category`. What says the same as a
        changed attribute is left out, such as the text if `body` is changed, unless it is changed
        as well.

        Raises:
            ValueError: an attribute does not exist, has a wrong value, or names the template.
        """
        if fixed := sorted(changes.keys() & _NAMES):
            raise ValueError(f"{fixed[0]}: it names the template, so it cannot be changed")
        document = self.model_dump() | {"bot": bot}
        for attribute in _SAME.keys() & changes.keys():
            document.pop(_SAME[attribute], None)
        if changes.get("category", self.category) != self.category:
            document["previous_category"] = self.category
        return Template.model_validate(document | changes)


_LIST = TypeAdapter(list[Template])
_DEFAULT = Path(__file__).with_name("templates.json")


def read(path: Path = _DEFAULT) -> list[Template]:
    return _LIST.validate_json(path.read_bytes())


def parse(document: Any) -> list[Template]:
    """One template or a list of them, from JSON."""
    return _LIST.validate_python(document if isinstance(document, list) else [document])


def variables(text: str) -> int | list[str]:
    """Return how many positional variables a text has, or the names of its variables.

    Raises:
        ValueError: some are positional and some named, or a position is left out.
    """
    names = list(dict.fromkeys(re.findall(r"{{(\w+)}}", text)))
    if not any(name.isdecimal() for name in names):
        return names or 0
    if sorted(names) != sorted(str(position) for position in range(1, len(names) + 1)):
        raise ValueError(f"the variables {', '.join(names)} are not 1 to {len(names)}")
    return len(names)


def _count(found: int | list[str]) -> int:
    return found if isinstance(found, int) else len(found)


def _sorted(found: int | list[str]) -> int | list[str]:
    return found if isinstance(found, int) else sorted(found)
