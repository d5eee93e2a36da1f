"""The bots' templates: as the simulated BLiP has them, and what the stack knows of them."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from notifier.aws.table import Table
from tests.local.blip import Template
from tests.local.blip.templates import CATEGORIES, STATUSES, Button, Shape
from tests.local.console import whatsapp
from tests.local.console.sources import Sources
from tests.local.console.whatsapp import Bubble

type Json = dict[str, Any]

# How often the stack is asked what it knows of the templates that are looked at.
SYNCED_SECONDS = 1.0
# The last ones that were looked at stay live; more would be more than one call.
MAX_WATCHED = 100


@dataclass(slots=True)
class BotTemplate:
    """A template of a bot in one language.

    Attributes:
        bot: the name that requests use.
        order: counts up in the order in which templates were first seen.
    """

    bot: str
    template: Template
    order: int
    version: int

    @property
    def ref(self) -> str:
        return f"{self.bot}.{self.template.name}.{self.template.language}"

    @property
    def place(self) -> tuple[float, int]:
        return (0.0, self.order)

    @property
    def number(self) -> str:
        return ""

    @property
    def searched(self) -> str:
        one = self.template
        words = (one.name, self.bot, one.language, one.category, one.status, one.text or "")
        return "\n".join(words)

    @property
    def bubble(self) -> Bubble:
        return whatsapp.of_template(self.template)

    @property
    def takes(self) -> list[tuple[str, str]]:
        """What a send has to bring: each part with what fills it."""
        parts = list(_takes(self.template))
        for index, card in enumerate(self.template.cards):
            parts += [(f"Card {index}, {part.lower()}", value) for part, value in _takes(card)]
        return parts


@dataclass(frozen=True, slots=True)
class Synced:
    """What the stack knows of a template.

    Attributes:
        asked_at: when BLiP was asked, in epoch seconds; 0 if that is not known.
        translations: as they are stored, by language.
    """

    asked_at: float
    translations: Json


class BotTemplates:
    """Follows what each bot has at BLiP, and what the stack knows of those that are looked at.

    Attributes:
        items: by their refs, oldest first.
        statuses, categories: what WhatsApp may say of one.
    """

    statuses = STATUSES
    categories = CATEGORIES

    def __init__(
        self, sources: Sources, changed: Callable[[], int], gone: Callable[[str], None]
    ) -> None:
        """Make it.

        Args:
            sources: the stack.
            changed: counts the page's version up, and returns it.
            gone: is told the refs of those that are no more.
        """
        self.items: dict[str, BotTemplate] = {}
        self._sources = sources
        self._changed = changed
        self._gone = gone
        self._table = Table(sources.client("dynamodb"), sources.physical_id("IdentitiesTable"))
        self._changes = -1
        self._orders = 0
        self._synced: dict[str, Synced | None] = {}
        self._asked = 0.0

    @property
    def is_known(self) -> bool:
        """Whether this BLiP is the simulated one, whose templates can be seen and changed here."""
        return self._sources.simulator is not None

    def refresh(self) -> None:
        """Learn what has changed since the last time."""
        self._read_simulator()
        if self._synced and time.monotonic() > self._asked + SYNCED_SECONDS:
            self._read_synced()
            self._asked = time.monotonic()

    def change(self, ref: str, changes: Json) -> None:
        """Change a template at BLiP.

        Raises:
            ValueError: there is no such template, or a change does not fit it.
        """
        item = self.items.get(ref)
        simulator = self._sources.simulator
        if item is None or simulator is None:
            raise ValueError(f"There is no template {ref}.")
        one = item.template
        simulator.change_template(one.name, one.language, self._sources.bots[item.bot], **changes)

    def synced(self, item: BotTemplate) -> Synced | None:
        """Return what the stack knows of a template, and keep it live; None if nothing."""
        key = _key(item)
        if key not in self._synced:
            for oldest in list(self._synced)[: max(0, len(self._synced) + 1 - MAX_WATCHED)]:
                del self._synced[oldest]
            self._synced[key] = None
            # The page says by itself that the stack does not answer.
            with suppress(BotoCoreError, ClientError):
                self._synced |= self._stored([key])
        return self._synced[key]

    def _read_simulator(self) -> None:
        simulator = self._sources.simulator
        changes = simulator.template_changes() if simulator else self._changes
        if simulator is None or changes == self._changes:
            return
        before, self.items = self.items, {}
        found = [
            (bot, template)
            for bot, simulated in self._sources.bots.items()
            for template in simulator.templates(simulated)
        ]
        # New ones stand above; those of the beginning, in the order in which they came.
        for bot, template in found if before else reversed(found):
            item = BotTemplate(bot, template, 0, 0)
            old = before.pop(item.ref, None)
            if old is None:
                self._orders += 1
                item.order, item.version = self._orders, self._changed()
            else:
                is_same = old.template == template
                item.order, item.version = old.order, old.version if is_same else self._changed()
            self.items[item.ref] = item
        for ref in before:
            self._gone(ref)
        self._changes = changes

    def _read_synced(self) -> None:
        now = self._stored(list(self._synced))
        for item in self.items.values():
            key = _key(item)
            if key in now and now[key] != self._synced[key]:
                item.version = self._changed()
        self._synced = now

    def _stored(self, keys: list[str]) -> dict[str, Synced | None]:
        items, _ = self._table.get_many(keys)
        found = {
            str(item["key"]): Synced(item.get("asked_at", 0) / 1000, item.get("languages", {}))
            for item in items
        }
        return {key: found.get(key) for key in keys}


def _key(item: BotTemplate) -> str:
    return f"template:{item.bot}/{item.template.name}"


_HEADERS = {
    "TEXT": "a text",
    "IMAGE": "the link of an image",
    "VIDEO": "the link of a video",
    "DOCUMENT": "the link of a PDF, and its name",
    "LOCATION": "a place",
}
_BUTTONS: dict[Button, str] = {
    "QUICK_REPLY": "a payload, or nothing",
    "URL": "the end of its link",
    "COPY_CODE": "a coupon",
    "OTP": "the one-time code",
    "FLOW": "an action, or nothing",
    "CATALOG": "an action, or nothing",
    "MPM": "an action",
}


def _takes(shape: Shape) -> list[tuple[str, str]]:
    parts: list[tuple[str, str]] = []
    if shape.header is not None:
        parts.append(("Header", _HEADERS[shape.header]))
    if isinstance(shape.body, list):
        parts.append(("Body", f"the values {', '.join(shape.body)}"))
    elif shape.body:
        parts.append(("Body", "1 value" if shape.body == 1 else f"{shape.body} values"))
    return parts + [
        (f"Button {index}", _BUTTONS[kind])
        for index, kind in enumerate(shape.buttons)
        if kind in _BUTTONS
    ]
