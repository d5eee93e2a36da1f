"""BLiP's list of a bot's message templates, read entry by entry.

The entries have the form of Meta's management API (BLiP help centre, article 39316925291671). An
entry that cannot be read is left out and counted. A component that cannot be read makes its
translation one that is not understood, by whose shape no request is refused.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import to_json

from notifier.blip.envelopes import PAGE, Json
from notifier.contract.template import LANGUAGE_PATTERN, TEMPLATE_NAME_PATTERN
from notifier.domain.failures import Transient
from notifier.domain.templates import (
    ButtonKind,
    Category,
    HeaderKind,
    RegisteredTemplate,
    Shape,
    TemplateStatus,
    Translation,
    Variables,
)

# An account has 6,000 templates at most, and their translations may be more. A server without an
# end is asked no further.
MAX_PAGES = 120
# More than WhatsApp allows; a translation that has more is not understood.
MAX_TEXT = 4096
MAX_ENTRIES = 20
MAX_TTL_SECONDS = 365 * 86_400

_VARIABLE = re.compile(r"\{\{\s*([A-Za-z0-9_]{1,64})\s*\}\}")
_HEADERS = {kind.name: kind for kind in HeaderKind}
# By their `type`; a URL needs a closer look, and of the others a send may bring anything.
_BUTTONS = {
    "QUICK_REPLY": ButtonKind.QUICK_REPLY,
    "COPY_CODE": ButtonKind.COPY_CODE,
    "OTP": ButtonKind.OTP,
    "PHONE_NUMBER": ButtonKind.STATIC,
}


@dataclass(frozen=True, slots=True)
class Listed:
    """What a list of templates says.

    Attributes:
        templates: by name.
        unreadable: how many entries were left out.
    """

    templates: dict[str, RegisteredTemplate]
    unreadable: int


class _NotUnderstood(Exception):
    """A component is not known here, or is not what it should be."""


def entries(first: object, more: Callable[[int], object]) -> Iterator[object]:
    """Yield the entries of a list, page by page, each once.

    The server may ignore what page is asked for, and how long it may be.

    Args:
        first: the resource of the first page.
        more: returns that of the page after so many entries.

    Raises:
        Transient: a page is no list, or the list does not end.
    """
    skip = 0
    seen: set[int] = set()
    resource = first
    for _ in range(MAX_PAGES):
        page, total = _page(resource)
        skip += len(page)
        new = {hash(to_json(entry)): entry for entry in page}
        new = {key: entry for key, entry in new.items() if key not in seen}
        seen.update(new)
        yield from new.values()
        is_last = len(page) < PAGE and total <= skip
        if not new or is_last or len(page) > PAGE:
            return
        resource = more(skip)
    raise Transient("BLiP's list of templates does not end")


def _page(resource: object) -> tuple[list[object], int]:
    """Return the entries of a page, and how many BLiP has in all; 0 if it does not say.

    The envelope of the enriched list is not documented: it may be any of these.
    """
    total = None
    if isinstance(resource, dict):
        total = resource.get("total")
        resource = next((resource[name] for name in ("data", "items") if name in resource), None)
    if not isinstance(resource, list):
        raise Transient("BLiP answered without a list of templates")
    return resource, total if isinstance(total, int) else 0


def read(listed: Iterable[object], asked_at: float) -> Listed:
    """Read the entries of a list.

    A name with an entry whose language cannot be read is left out as a whole: else that language
    would count as one that the template lacks.

    Args:
        listed: whatever BLiP lists.
        asked_at: when it was asked, in epoch seconds.
    """
    found: dict[str, dict[str, Translation]] = {}
    unreadable = 0
    incomplete: set[str | None] = set()
    for entry in listed:
        name, language = _names(entry)
        if name is None or language is None or not isinstance(entry, dict):
            unreadable += 1
            incomplete.add(name)
            continue
        translation = _translation(entry)
        languages = found.setdefault(name, {})
        languages[language] = _one_of(languages.get(language, translation), translation)
    templates = {
        name: RegisteredTemplate(name, asked_at, languages)
        for name, languages in found.items()
        if name not in incomplete
    }
    return Listed(templates, unreadable)


def _names(entry: object) -> tuple[str | None, str | None]:
    """Return the name and the language of an entry, None for what cannot be read."""
    if not isinstance(entry, dict):
        return None, None
    name, language = entry.get("name"), entry.get("language")
    if not (isinstance(name, str) and re.fullmatch(TEMPLATE_NAME_PATTERN, name)):
        return None, None
    language = language.replace("-", "_") if isinstance(language, str) else ""
    return name, language if re.fullmatch(LANGUAGE_PATTERN, language) else None


def _one_of(first: Translation, second: Translation) -> Translation:
    """Return what two entries for one translation say together."""
    if first == second:
        return first
    approved = second if second.status is TemplateStatus.APPROVED else first
    return replace(approved, is_understood=False)


def _translation(entry: Json) -> Translation:
    category = _category(entry.get("category"))
    try:
        parts = _Parts(category, _upper(entry.get("parameter_format")))
        shape, cards = parts.read(entry.get("components"))
        is_understood = True
    except _NotUnderstood:
        shape, cards, is_understood = Shape(), (), False
    status = _upper(entry.get("status"))
    return Translation(
        status=TemplateStatus(status) if status in _STATUSES else TemplateStatus.OTHER,
        category=category,
        previous_category=_category(entry.get("previous_category")),
        shape=shape,
        cards=cards,
        ttl_seconds=_seconds(entry.get("message_send_ttl_seconds", entry.get("ttl"))),
        is_understood=is_understood,
    )


_STATUSES = frozenset(TemplateStatus)
_CATEGORIES = frozenset(Category)


def _category(value: object) -> Category | None:
    name = _upper(value)
    return Category(name) if name in _CATEGORIES else None


def _seconds(value: object) -> int | None:
    """Return a time to live; None for none, and for the -1 with which Meta names its longest."""
    return value if type(value) is int and 0 < value <= MAX_TTL_SECONDS else None


@dataclass(frozen=True, slots=True)
class _Parts:
    """Reads the components of one translation.

    Attributes:
        category: the template's.
        parameter_format: NAMED or POSITIONAL, if BLiP says it.
    """

    category: Category | None
    parameter_format: str | None

    def read(self, components: object) -> tuple[Shape, tuple[Shape, ...]]:
        """Return the template's own shape, and those of its cards."""
        by_type = _by_type(components, {"HEADER", "BODY", "FOOTER", "BUTTONS", "CAROUSEL"})
        cards: tuple[Shape, ...] = ()
        if "CAROUSEL" in by_type:
            entries = _objects(by_type["CAROUSEL"].get("cards"))
            if not entries:
                raise _NotUnderstood
            cards = tuple(self._card(entry.get("components")) for entry in entries)
        return self._shape(by_type), cards

    def _card(self, components: object) -> Shape:
        return self._shape(_by_type(components, {"HEADER", "BODY", "BUTTONS"}))

    def _shape(self, by_type: Mapping[str, Json]) -> Shape:
        header, header_length = self._header(by_type.get("HEADER"))
        body, body_length = self._body(by_type.get("BODY"))
        buttons = _objects(by_type["BUTTONS"].get("buttons")) if "BUTTONS" in by_type else ()
        return Shape(header, header_length, body, body_length, tuple(map(self._button, buttons)))

    def _header(self, header: Json | None) -> tuple[HeaderKind | None, int]:
        if header is None:
            return None, 0
        kind = _HEADERS.get(_upper(header.get("format")) or "")
        if kind is not HeaderKind.TEXT:
            if kind is None:
                raise _NotUnderstood
            return kind, 0
        variables, length = self._text(header.get("text"))
        match variables:
            case 0:
                return None, length
            case 1 | (_,):
                return HeaderKind.TEXT, length
            case _:
                raise _NotUnderstood

    def _body(self, body: Json | None) -> tuple[Variables, int]:
        if body is None:
            return 0, 0
        if self.category is Category.AUTHENTICATION and body.get("text") is None:
            return 1, 0  # WhatsApp has written the text: a code and a line around it
        return self._text(body.get("text"))

    def _text(self, text: object) -> tuple[Variables, int]:
        """Return the variables of a text, and how many of its characters are fixed."""
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise _NotUnderstood
        names = tuple(dict.fromkeys(_VARIABLE.findall(text)))
        fixed = _VARIABLE.sub("", text)
        if "{{" in fixed:
            raise _NotUnderstood
        positions = {str(position + 1) for position in range(len(names))}
        is_positional = set(names) == positions
        if not is_positional and any(name.isdecimal() for name in names):
            raise _NotUnderstood
        if names and self.parameter_format == ("NAMED" if is_positional else "POSITIONAL"):
            raise _NotUnderstood
        return len(names) if is_positional else names, len(fixed)

    def _button(self, button: Json) -> ButtonKind:
        kind = _upper(button.get("type")) or ""
        url = button.get("url")
        if kind == "URL" and isinstance(url, str):
            return ButtonKind.URL if _VARIABLE.search(url) else ButtonKind.STATIC
        if kind == "COPY_CODE" and self.category is Category.AUTHENTICATION:
            return ButtonKind.OTP
        return _BUTTONS.get(kind, ButtonKind.OTHER)


def _by_type(components: object, known: set[str]) -> dict[str, Json]:
    """Return components by their type.

    Raises:
        _NotUnderstood: one is not known here, or comes twice.
    """
    found: dict[str, Json] = {}
    for component in _objects(components):
        kind = _upper(component.get("type"))
        if kind not in known or kind in found:
            raise _NotUnderstood
        found[kind] = component
    return found


def _objects(value: object) -> Sequence[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise _NotUnderstood
    if not all(isinstance(entry, dict) for entry in value):
        raise _NotUnderstood
    return value


def _upper(value: object) -> str | None:
    return value.upper() if isinstance(value, str) else None
