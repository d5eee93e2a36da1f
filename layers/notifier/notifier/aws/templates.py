"""The registry: what BLiP says of each bot's templates, in the identities' table.

    key            template:BOT/NAME (partition key)
    languages      by language, what a send has to bring: see `_written`
    asked_at       epoch milliseconds: when BLiP was asked
    whole          BLiP was asked for this one alone
    published      by language, the status and category of its last event; written by the sync only
    ask_again_at   epoch milliseconds: no sandbox asks BLiP for this one template before
    expires_at     epoch seconds, time to live: KEPT_SECONDS after BLiP was asked

Nothing is deleted: a template that BLiP lists no more counts as unknown after a day (its reader
looks at `asked_at`), and its item goes by its time to live. One that BLiP does not list when it is
asked for it alone has no languages until the next sync: it is unknown at once.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from notifier.aws.bot_items import bot_key, bot_state, paused_since, paused_template
from notifier.aws.memory import Memory
from notifier.aws.table import Item, Table, UnreadError, milliseconds
from notifier.domain.templates import (
    ButtonKind,
    Category,
    HeaderKind,
    Question,
    RegisteredTemplate,
    Shape,
    TemplateStatus,
    Translation,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from notifier.domain.bot_state import BotState

KEPT_SECONDS = 3 * 86_400
# So often at most all sandboxes together ask BLiP for one template.
ASK_AGAIN_SECONDS = 60.0
# The bot's item is read with every batch, so it holds no more of them. The registry's own status
# stops the others, which takes a claim each.
MAX_PAUSED = 100

# A bot's name, and a template's.
type TemplateName = tuple[str, str]


class DynamoDbTemplates:
    """The registry, with this sandbox's memory in front. Thread-safe."""

    def __init__(self, table: Table, now: "Callable[[], float]") -> None:
        self._table = table
        self._now = now
        self._memory: Memory[TemplateName, RegisteredTemplate] = Memory(now)

    def remembered(self, name: TemplateName) -> RegisteredTemplate | None:
        """Return what this sandbox remembers of a template; None if nothing."""
        return self._memory.get(name)

    def remember(self, name: TemplateName, item: Item) -> RegisteredTemplate:
        """Read a template's item, and remember it; an empty one has no translations."""
        template = _registered(name[1], item)
        self._memory.keep(name, template)
        return template

    def of_bot(self, bot: str, names: "Iterable[str]") -> dict[str, RegisteredTemplate]:
        """Return what the registry has of these templates of a bot.

        Raises:
            UnreadError: DynamoDB left some unread, which must not be taken for new.
        """
        keys = {template_key((bot, name)): name for name in names}
        items, unread = self._table.get_many(list(keys))
        if unread:
            raise UnreadError
        return {keys[item["key"]]: _registered(keys[item["key"]], item) for item in items}

    def keep(self, bot: str, template: RegisteredTemplate) -> None:
        """Keep what BLiP says of a template, unless a later answer is there already."""
        self._keep(bot, template, "", {})

    def keep_published(self, bot: str, template: RegisteredTemplate) -> None:
        """Keep it, and that each of its changes was published."""
        published = {
            language: [status, category] for language, (status, category) in template.states.items()
        }
        self._keep(bot, template, ", published = :published", {":published": published})

    def _keep(
        self, bot: str, template: RegisteredTemplate, change: str, values: dict[str, Any]
    ) -> None:
        _, item = self._table.update(
            template_key((bot, template.name)),
            "SET languages = :languages, asked_at = :asked_at, whole = :whole,"
            f" expires_at = :expires_at{change}",
            "attribute_not_exists(asked_at) OR asked_at < :asked_at",
            values
            | {
                ":languages": {
                    language: _written(translation)
                    for language, translation in template.translations.items()
                },
                ":asked_at": milliseconds(template.asked_at),
                ":whole": template.is_whole,
                ":expires_at": round(template.asked_at) + KEPT_SECONDS,
            },
        )
        self.remember((bot, template.name), item)

    def question(self, bot: str, name: str) -> Question:
        """Take the right to ask BLiP for one template; one sandbox has it each minute."""
        now = milliseconds(self._now())
        again = milliseconds(self._now() + ASK_AGAIN_SECONDS)
        granted, item = self._table.update(
            template_key((bot, name)),
            "SET ask_again_at = :again",
            "attribute_exists(#key)"
            " AND (attribute_not_exists(ask_again_at) OR ask_again_at <= :now)",
            {":again": again, ":now": now},
        )
        stored = self.remember((bot, name), item)
        return Question(granted, stored, item.get("ask_again_at", 0) / 1000)

    def pause(self, bot: str, name: str, language: str) -> None:
        """Hold a template in every sandbox: WhatsApp has paused it."""
        if (name, language) in self._state(bot).paused_templates:
            return
        element = paused_template(name, language, milliseconds(self._now()))
        self._table.update(
            bot_key(bot),
            "ADD paused_templates :elements",
            "attribute_not_exists(paused_templates) OR size(paused_templates) < :max",
            {":elements": {element}, ":max": MAX_PAUSED},
        )

    def resume(self, bot: str, name: str, language: str, asked_at: float) -> bool:
        """Release a template, if BLiP was asked after the pause.

        Return whether it was held until now.
        """
        # Several receipts may have paused it, each a moment after the other.
        elements = {
            element
            for element in self._table.get(bot_key(bot)).get("paused_templates", ())
            if element.startswith(f"{name}/{language}@")
        }
        if not elements or max(map(paused_since, elements)) >= asked_at:
            return False
        self._table.update(
            bot_key(bot), "DELETE paused_templates :elements", "", {":elements": elements}
        )
        return True

    def synced(self, bot: str, at: float) -> None:
        """Record when BLiP was asked for all of a bot's templates."""
        self._table.update(
            bot_key(bot), "SET templates_synced_at = :at", "", {":at": milliseconds(at)}
        )

    def _state(self, bot: str) -> "BotState":
        return bot_state(self._table.get(bot_key(bot)))


def template_key(name: TemplateName) -> str:
    """Return the key of a template's item. No identity's key begins so: its bot has no colon."""
    bot, template = name
    return f"template:{bot}/{template}"


def _registered(name: str, item: Item) -> RegisteredTemplate:
    return RegisteredTemplate(
        name,
        item.get("asked_at", 0) / 1000,
        {language: _read(written) for language, written in item.get("languages", {}).items()},
        is_whole=item.get("whole", False),
        published={
            language: (
                _one_of(TemplateStatus, status) or TemplateStatus.OTHER,
                _one_of(Category, category),
            )
            for language, (status, category) in item.get("published", {}).items()
        },
    )


def _written(translation: Translation) -> dict[str, Any]:
    """Write a translation; what has its default is left out, for the item is read often."""
    written = {
        "status": translation.status.value,
        "category": translation.category and translation.category.value,
        "previous_category": translation.previous_category and translation.previous_category.value,
        "cards": [_written_shape(card) for card in translation.cards],
        "ttl_seconds": translation.ttl_seconds,
        "not_understood": not translation.is_understood,
    }
    return _brief(written) | _written_shape(translation.shape)


def _written_shape(shape: Shape) -> dict[str, Any]:
    return _brief(
        {
            "header": shape.header and shape.header.value,
            "header_length": shape.header_length,
            "body": list(shape.body) if isinstance(shape.body, tuple) else shape.body,
            "body_length": shape.body_length,
            "buttons": [button.value for button in shape.buttons],
        }
    )


def _brief(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value}


def _read(written: dict[str, Any]) -> Translation:
    """Read a translation. What a later release may have written there is what is not known here."""
    return Translation(
        status=_one_of(TemplateStatus, written.get("status")) or TemplateStatus.OTHER,
        category=_one_of(Category, written.get("category")),
        previous_category=_one_of(Category, written.get("previous_category")),
        shape=_read_shape(written),
        cards=tuple(_read_shape(card) for card in written.get("cards", ())),
        ttl_seconds=written.get("ttl_seconds"),
        is_understood=not written.get("not_understood", False),
    )


def _read_shape(written: dict[str, Any]) -> Shape:
    body = written.get("body", 0)
    return Shape(
        header=_one_of(HeaderKind, written.get("header")),
        header_length=written.get("header_length", 0),
        body=tuple(body) if isinstance(body, list) else body,
        body_length=written.get("body_length", 0),
        buttons=tuple(
            _one_of(ButtonKind, button) or ButtonKind.OTHER for button in written.get("buttons", ())
        ),
    )


def _one_of[Value: StrEnum](values: type[Value], text: str | None) -> Value | None:
    return values(text) if text is not None and text in values else None
