"""Keeps the registry of templates: asks BLiP for those of each bot, on a schedule.

A template is written when it has changed, or once a day. What has changed is an event first, then
the registry: a crash in between repeats the event, with the same id.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import batched
from typing import Protocol

from notifier.domain.bots import Bot
from notifier.domain.clock import Clock, Meter
from notifier.domain.failures import Failure, Throttled, crash_facts
from notifier.domain.templates import (
    RegisteredTemplate,
    TemplateChange,
    TemplateStatus,
)
from notifier.use_cases.asking import BotStates, Secrets, command_slots, usable_bots
from notifier.use_cases.slots import RetryLater, cooldown

logger = logging.getLogger(__name__)

# What stays the same is written again after so long: a day without that, and it counts as unknown.
RENEW_SECONDS = 20 * 3600
# What one page of the list takes at most.
PAGE_SECONDS = 12.0
# So many templates are kept side by side before the time is looked at again.
KEPT_TOGETHER = 100
# Of what becomes a status, these matter to people; the others come and go.
REPORTED = frozenset({TemplateStatus.APPROVED, TemplateStatus.PAUSED, TemplateStatus.REJECTED})
# What ends a pause.
RELEASED = frozenset({TemplateStatus.APPROVED, TemplateStatus.REJECTED, TemplateStatus.DISABLED})


class Registry(Protocol):
    """What BLiP says of each bot's templates; see `aws.templates`."""

    def of_bot(self, bot: str, names: Iterable[str]) -> Mapping[str, RegisteredTemplate]: ...
    def keep_published(self, bot: str, template: RegisteredTemplate) -> None: ...
    def pause(self, bot: str, name: str, language: str) -> None: ...
    def resume(self, bot: str, name: str, language: str, asked_at: float) -> bool: ...
    def synced(self, bot: str, at: float) -> None: ...


class Blip(Protocol):
    """The question to BLiP."""

    def templates(
        self, bot: Bot, asked_at: float, on_connected: Callable[[], None]
    ) -> Mapping[str, RegisteredTemplate]: ...


class Changes(Protocol):
    """The event bus. Returns whether it has taken a change."""

    def put(self, change: TemplateChange) -> bool: ...


@dataclass(frozen=True, slots=True)
class Syncing:
    """Asks for the templates of each bot."""

    registry: Registry
    bot_states: BotStates
    secrets: Secrets
    blip: Blip
    changes: Changes
    meter: Meter
    clock: Clock
    threads: Executor
    cooldown_seconds: int

    def sync(self, deadline: float) -> dict[str, int]:
        """Ask for every bot, as long as there is time; one that fails hurts no other.

        Those that have waited longest come first, so that no bot is left out for ever. Return how
        many templates each bot has that was synced.
        """
        by_last_sync = sorted(
            usable_bots(self.secrets),
            key=lambda bot: self.bot_states.state(bot.name).templates_synced_at,
        )
        templates: dict[str, int] = {}
        crashes: list[Exception] = []
        for bot in by_last_sync:
            try:
                templates[bot.name] = self._sync(bot, deadline)
            except RetryLater:
                logger.info("not synced now", extra={"bot": bot.name})
            except Failure as failure:
                facts = {"bot": bot.name, "problem": failure.detail}
                logger.warning("templates not synced", extra=facts)
                if isinstance(failure, Throttled):
                    self._start_cooldown(bot, failure)
            except Exception as crash:  # noqa: BLE001 - whatever it was, it hurts this bot only
                logger.error("sync crashed", extra={"bot": bot.name, **crash_facts(crash)})
                crashes.append(crash)
        if crashes:  # the alarm for errors of functions rings
            raise crashes[0]
        return templates

    def _sync(self, bot: Bot, deadline: float) -> int:
        """Ask for one bot's templates, and keep what is new; return how many it has."""
        asked_at = self.clock.now()
        # Read afresh, for the bots before this one may have taken minutes; and after `asked_at`, so
        # that a pause which came too late to be read is no older than BLiP's answer.
        state = self.bot_states.state(bot.name)
        if state.paused or state.throttled_until > self.clock.now():
            raise RetryLater(None)

        def go_on() -> None:
            if deadline - self.clock.now() <= PAGE_SECONDS:
                raise RetryLater(0)

        slots = command_slots(self.bot_states, bot, state, self.clock, for_receipts=False)
        listed = self.blip.templates(bot, asked_at, lambda: slots.wait(go_on))
        stored = self.registry.of_bot(bot.name, listed)

        def keep(template: RegisteredTemplate) -> None:
            before = stored.get(template.name)
            if before is not None and before.asked_at >= asked_at:
                return  # a sandbox has asked for it meanwhile
            changes = _changes(bot.name, before, template) if state.templates_synced_at else ()
            reported = [self._report(change) for change in changes]
            if all(reported) and (before is None or _is_to_write(before, template)):
                self.registry.keep_published(bot.name, template)

        for some in batched(listed.values(), KEPT_TOGETHER, strict=False):
            go_on()
            list(self.threads.map(keep, some))
        self._hold(bot.name, state.paused_templates, listed, asked_at)
        self.registry.synced(bot.name, asked_at)
        return len(listed)

    def _hold(
        self,
        bot: str,
        held: Collection[tuple[str, str]],
        listed: Mapping[str, RegisteredTemplate],
        asked_at: float,
    ) -> None:
        """Hold in every sandbox what WhatsApp has paused, and release what it has not any more.

        What it has rejected, disabled or deleted does not wait either: the check refuses it, or
        lets it through where it is not listed.
        """
        for name, template in listed.items():
            for language, translation in template.translations.items():
                if translation.status is TemplateStatus.PAUSED and (name, language) not in held:
                    self.registry.pause(bot, name, language)
        for name, language in held:
            found = listed.get(name)
            now = found.translations.get(language) if found else None
            if now is None or now.status in RELEASED:
                self.registry.resume(bot, name, language, asked_at)

    def _report(self, change: TemplateChange) -> bool:
        """Publish a change; return whether the bus has taken it. Count what an alarm rings for."""
        facts = {"bot": change.bot, "template": change.name, "language": change.language}
        if not self.changes.put(change):
            logger.error("template change not published", extra=facts)
            return False
        logger.info("template changed", extra=facts)
        if change.status is TemplateStatus.PAUSED and change.status is not change.previous_status:
            self.meter.count("template_was_paused")
        if change.is_of_category:
            self.meter.count("template_category_changed")
        return True

    def _start_cooldown(self, bot: Bot, failure: Throttled) -> None:
        until = self.clock.now() + cooldown(failure, self.cooldown_seconds)
        if self.bot_states.start_cooldown(bot, "commands", until):
            self.meter.count("cooldown_began")


def _is_to_write(stored: RegisteredTemplate, listed: RegisteredTemplate) -> bool:
    if stored.translations != listed.translations or stored.published != listed.states:
        return True
    return listed.asked_at - stored.asked_at >= RENEW_SECONDS


def _changes(
    bot: str, stored: RegisteredTemplate | None, listed: RegisteredTemplate
) -> Iterator[TemplateChange]:
    """Return what is worth an event: a pause, a rejection, an approval, another category.

    Args:
        bot: whose templates.
        stored: what the registry has; None if the template is new to it.
        listed: what BLiP says now.
    """
    for language, now in listed.translations.items():
        nothing = (None, None)
        status, category = stored.published.get(language, nothing) if stored else nothing
        change = TemplateChange(
            bot=bot,
            name=listed.name,
            language=language,
            status=now.status,
            previous_status=status,
            category=now.category,
            previous_category=category,
            stored_at=stored.asked_at if stored else 0.0,
            time=listed.asked_at,
        )
        of_status = now.status in REPORTED and now.status is not change.previous_status
        if of_status or change.is_of_category:
            yield change
