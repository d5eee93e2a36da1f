"""What a recipient sees in WhatsApp of a template message, as data that a page can show.

It is for people, so it takes any content: what is no template message is shown as JSON.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup, escape

from notifier.blip.envelopes import components
from notifier.contract.template import Template as RequestedTemplate
from tests.local.blip.templates import Shape, Template

type Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Header:
    """What stands above the text.

    Attributes:
        kind: text, image, video, document or location.
        title: the text, the file's name or the place's.
        detail: the file's link, or the place's address and coordinates.
    """

    kind: str
    title: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Button:
    """A button below the text.

    Attributes:
        kind: quick_reply, url, copy_code, phone_number, flow, catalog or mpm.
        label: the words on it if the template says them, else what it does.
        value: what this message put in; empty if nothing.
    """

    kind: str
    label: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Bubble:
    """A message.

    Attributes:
        text: the body as plain text, values filled in, with WhatsApp's marks.
        footer: the line below the body; empty if there is none.
        note: what the reader has to know about how it is shown; empty if nothing.
    """

    text: str = ""
    header: Header | None = None
    footer: str = ""
    buttons: tuple[Button, ...] = ()
    cards: tuple["Bubble", ...] = ()
    note: str = ""

    @property
    def body(self) -> Markup:
        """The text with its marks and links as HTML."""
        return formatted(self.text)


def of_request(requested: RequestedTemplate, known: Template | None) -> Bubble:
    """Return what a request will look like when it arrives."""
    sent = {"name": requested.name, "components": components(requested)}
    return of_content({"type": "template", "template": sent}, known)


def of_content(content: Any, known: Template | None) -> Bubble:
    """Return what a message's content looks like.

    Args:
        content: of the envelope that BLiP took.
        known: the template that it names; None if there is no such template.
    """
    template = _object(_object(content).get("template"))
    if _object(content).get("type") != "template" or not template:
        text = content if isinstance(content, str) else _json(content)
        return Bubble(text, note="Not a template: shown as it came.")
    parts = [_object(part) for part in _list(template.get("components"))]
    bubble = _bubble(parts, known)
    if known is None:
        name = template.get("name")
        return replace(bubble, note=f"No template {name} is known: only its values are shown.")
    if known.text is None:
        note = "The template's text is not known: only its values are shown."
        return replace(bubble, note=note)
    return bubble


def of_template(template: Template) -> Bubble:
    """Return what recipients see of a template, its variables in place of values."""
    bubble = _of_shape(template)
    note = "" if template.text is not None else "The template's text is not known."
    cards = tuple(map(_of_shape, template.cards))
    return replace(bubble, footer=template.footer or "", cards=cards, note=note)


def _of_shape(shape: Shape) -> Bubble:
    names = shape.body if isinstance(shape.body, list) else range(1, shape.body + 1)
    text = shape.text if shape.text is not None else " · ".join(f"{{{{{n}}}}}" for n in names)
    header: Header | None = None
    if shape.header_text is not None:
        header = Header("text", shape.header_text)
    elif shape.header is not None:
        header = Header(shape.header.lower(), shape.header.capitalize(), "Each message has its own")
    return Bubble(text, header, buttons=tuple(_buttons({}, shape)))


def _bubble(parts: list[Json], shape: Shape | None) -> Bubble:
    header = Header("text", shape.header_text) if shape and shape.header_text else None
    values: list[tuple[str, str]] = []
    cards: list[Bubble] = []
    filled: dict[int, Json] = {}
    for part in parts:
        parameters = [_object(one) for one in _list(part.get("parameters"))]
        match part.get("type"):
            case "header" if parameters:
                header = _header(parameters[0], shape.header_text if shape else None)
            case "body":
                values = [
                    (str(one.get("parameter_name", position)), _value(one))
                    for position, one in enumerate(parameters, 1)
                ]
            case "button":
                filled[_index(part.get("index"))] = part
            case "carousel":
                shapes = shape.cards if isinstance(shape, Template) else []
                cards = list(_cards(part, shapes))
            case _:
                values.append(("", _json(part)))
    text = _fill(shape.text if shape else None, values)
    footer = (shape.footer or "") if isinstance(shape, Template) else ""
    return Bubble(text, header, footer, tuple(_buttons(filled, shape)), tuple(cards))


def _cards(carousel: Json, shapes: list[Shape]) -> Iterator[Bubble]:
    for position, card in enumerate(map(_object, _list(carousel.get("cards")))):
        parts = [_object(part) for part in _list(card.get("components"))]
        yield _bubble(parts, shapes[position] if position < len(shapes) else None)


def _fill(text: str | None, values: list[tuple[str, str]]) -> str:
    if text is None:
        return " · ".join(value for _, value in values)
    by_name = dict(values)
    # In one go: a value that looks like a placeholder is no placeholder.
    return re.sub(r"{{(\w+)}}", lambda found: by_name.get(found[1], found[0]), text)


def _header(parameter: Json, text: str | None) -> Header:
    kind = str(parameter.get("type"))
    media = _object(parameter.get(kind))
    match kind:
        case "text":
            value = str(parameter.get("text", ""))
            name = str(parameter.get("parameter_name", 1))
            return Header(kind, _fill(text, [(name, value)]))
        case "location":
            place = f"{media.get('latitude')}, {media.get('longitude')}"
            return Header(kind, str(media.get("name", "")), f"{media.get('address', '')} ({place})")
        case "image" | "video" | "document":
            link = str(media.get("link") or media.get("id") or "")
            name = media.get("filename") or link.rstrip("/").rpartition("/")[2]
            return Header(kind, str(name), link)
        case _:
            return Header("text", _json(parameter))


_LABELS = {
    "quick_reply": "Reply",
    "url": "Open link",
    "copy_code": "Copy code",
    "phone_number": "Call",
    "flow": "Open form",
    "catalog": "View catalogue",
    "mpm": "View items",
}


def _buttons(filled: dict[int, Json], shape: Shape | None) -> Iterator[Button]:
    """Return the template's buttons with what the message puts in, then any others."""
    kinds = shape.buttons if shape else []
    labels = dict(enumerate(shape.labels if shape else []))
    for index in sorted({*range(len(kinds)), *filled}):
        part = filled.get(index, {})
        known = kinds[index].lower().removeprefix("static_") if index < len(kinds) else ""
        # A one-time code is sent as the end of a link, and copied by its reader.
        kind = "copy_code" if known == "otp" else str(part.get("sub_type") or known)
        parameters = _list(part.get("parameters"))
        value = _value(_object(parameters[0])) if parameters else ""
        yield Button(kind, labels.get(index) or _LABELS.get(kind, kind), value)


def _value(parameter: Json) -> str:
    kind = str(parameter.get("type"))
    for member in ("text", "payload", "coupon_code"):
        if member in parameter:
            return str(parameter[member])
    value = parameter.get(kind)
    if isinstance(value, dict):
        return str(value.get("fallback_value") or value.get("link") or _json(value))
    return _json(parameter)


def _index(index: object) -> int:
    text = str(index)
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 3 else 0


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# Each mark stands at the edge of a word, around text without spaces at its ends.
_MARKS = re.compile(
    r"```(?P<code>[^`]+)```"
    r"|(?<!\w)\*(?P<strong>[^\s*](?:[^*\n]*[^\s*])?)\*(?!\w)"
    r"|(?<!\w)_(?P<em>[^\s_](?:[^_\n]*[^\s_])?)_(?!\w)"
    r"|(?<!\w)~(?P<s>[^\s~](?:[^~\n]*[^\s~])?)~(?!\w)"
    r"|(?P<link>https?://[^\s<>\"']*[^\s<>\"'.,;:!?()])",
    re.IGNORECASE,
)


def formatted(text: str) -> Markup:
    """Return text with WhatsApp's marks and links as HTML, everything else escaped."""
    html = Markup()
    end = 0
    for found in _MARKS.finditer(text):
        html += escape(text[end : found.start()])
        end = found.end()
        match found.lastgroup:
            case "link":
                link = Markup('<a href="{0}" rel="noreferrer" target="_blank">{0}</a>')
                html += link.format(found[0])
            case "code":
                html += Markup("<code>{}</code>").format(found["code"])
            case str(tag):
                html += Markup("<{0}>{1}</{0}>").format(tag, formatted(found[tag]))
            case None:
                pass
    return html + escape(text[end:])
