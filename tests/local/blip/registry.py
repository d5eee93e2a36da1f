"""Which templates each bot has, now and a while ago."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.local.blip.templates import Template

# Templates that are there from the beginning are listed at once, whatever the list's lag.
_BEGINNING = 0.0

type _Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Version:
    """A template from a time on.

    Attributes:
        template: None if it was removed.
        at: epoch seconds.
    """

    template: Template | None
    at: float


class Registry:
    """The templates of all bots, by name and language.

    A template is every bot's, or one bot's, which takes the place of every bot's.

    Attributes:
        changes: counts up with every change.
    """

    def __init__(self, templates: list[Template]) -> None:
        self.changes = 0
        # By the bot whose it is, None being every bot's. The last version is the one in force.
        self._versions: dict[_Key, dict[str | None, list[Version]]] = {}
        self._failures: dict[_Key, Counter[str]] = {}
        for template in templates:
            self._put(template, _BEGINNING)

    def put(self, templates: list[Template]) -> None:
        """Add templates, or replace those of the same name and language.

        One that is every bot's also replaces what single bots have in its place.
        """
        for template in templates:
            self._put(template, time.time())

    def change(
        self, name: str, language: str | None, bot: str | None, changes: dict[str, Any]
    ) -> list[Template]:
        """Change some attributes of a template. Return it, once for each language and bot.

        Args:
            name: its name.
            language: None: all languages that it has.
            bot: only this bot's, which gets one of its own in place of every bot's; None: every
                bot's, those of single bots included.
            changes: the attributes, as in `Template`.

        Raises:
            ValueError: there is no such template, or a change does not fit it.
        """
        changed = [
            (key, owner, template.changed(owner, changes))
            for key, owner, template in self._chosen(name, language, bot)
        ]
        if not changed:
            raise ValueError(f"there is no template {name} {language or ''}".rstrip())
        for key, owner, template in changed:
            self._record(key, owner, template, time.time())
        return [template for _, _, template in changed]

    def remove(self, name: str | None, language: str | None, bot: str | None) -> None:
        """Remove templates, chosen as in `change`; without a name, all of them."""
        for key, owner, _ in self._chosen(name, language, bot):
            self._record(key, owner, None, time.time())

    def find(
        self, name: str | None, language: str | None, bot: str | None = None
    ) -> Template | None:
        """Return a bot's template, whatever its status; without a bot, every bot's."""
        if name is None or language is None:
            return None
        return self._latest(self._versions.get((name, language), {}), bot)

    def listed(self, bot: str, at: float) -> list[Version]:
        """Return a bot's templates as they were at a time, in epoch seconds."""
        found = []
        for owners in self._versions.values():
            version = _version(owners.get(bot, []), at) or _version(owners.get(None, []), at)
            if version is not None and version.template is not None:
                found.append(version)
        return found

    def of(self, bot: str) -> list[Template]:
        """Return the templates that a bot has now."""
        return [template for _, _, template in self._chosen(None, None, bot)]

    def report(self) -> list[dict[str, Any]]:
        return [template.model_dump() for _, _, template in self._chosen(None, None, None)]

    def count_failure(self, bot: str, name: str | None, language: str | None, limit: int) -> None:
        """Count a failed message of a template; the one that reaches the limit pauses it."""
        template = self.find(name, language, bot)
        if template is None or template.status != "APPROVED":
            return
        failures = self._failures.setdefault((template.name, template.language), Counter())
        failures[bot] += 1
        if failures[bot] >= limit:
            self.change(template.name, template.language, bot, {"status": "PAUSED"})

    def _put(self, template: Template, at: float) -> None:
        key = (template.name, template.language)
        if template.bot is None:
            owners = self._versions.get(key, {})
            self._versions[key] = {None: owners[None]} if None in owners else {}
        self._record(key, template.bot, template, at)

    def _record(self, key: _Key, owner: str | None, template: Template | None, at: float) -> None:
        self.changes += 1
        self._failures.pop(key, None)
        owners = self._versions.setdefault(key, {})
        owners.setdefault(owner, []).append(Version(template, at))

    def _chosen(
        self, name: str | None, language: str | None, bot: str | None
    ) -> list[tuple[_Key, str | None, Template]]:
        """Return the templates in force, each with its key and the bot whose it is to be."""
        found = []
        for key, owners in self._versions.items():
            if name in (None, key[0]) and language in (None, key[1]):
                for owner in owners if bot is None else (bot,):
                    template = self._latest(owners, owner)
                    if template is not None:
                        found.append((key, owner, template))
        return found

    def _latest(self, owners: dict[str | None, list[Version]], bot: str | None) -> Template | None:
        versions = owners.get(bot) or owners.get(None)
        return versions[-1].template if versions else None


def _version(versions: list[Version], at: float) -> Version | None:
    return next((version for version in reversed(versions) if version.at <= at), None)
